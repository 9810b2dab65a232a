"""``conflicts``: fields that both sides have changed, and what people decide about them."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sync_orchestrator.cli.existing import existing_database, existing_database_to_read
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table
from sync_orchestrator.errors import UsageError

if TYPE_CHECKING:
    from sync_orchestrator.core.two_way.resolving import Choice

Number = Annotated[int, typer.Argument(metavar="ID", help="The number, as `conflicts list` shows it.")]

commands = typer.Typer(no_args_is_help=True, help="Fields that people have changed on both sides (two_way).")


@commands.command("list")
def conflicts_list(
    entity: Annotated[str | None, typer.Option(help="Only those of this entity.")] = None,
    field: Annotated[str | None, typer.Option(help="Only those about this shared field.")] = None,
    key: Annotated[str | None, typer.Option(help="Only those of this record of ours.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Also those that are over, with what was overruled.")] = False,
    most: Annotated[int, typer.Option(min=1)] = 100,
    json: Json = False,
) -> None:
    """List conflicts that a person has to decide, newest first. Exit status: 1 some are open."""
    from sync_orchestrator.core.two_way.resolving import OPEN, STATES, list_conflicts

    with existing_database_to_read().begin() as connection:
        rows = list_conflicts(
            connection, entity=entity, field=field, key=key, states=STATES if every else OPEN, most=most
        )
    if json:
        as_json(rows)
    else:
        names = ["id", "entity", "key", "field", "ours", "theirs", "state", "winner", "since"]
        print_table("conflicts", names, [[_show(row, name) for name in names] for row in rows])
        if not rows:
            print_line("there are none")
    raise typer.Exit(1 if any(row["state"] == "open" for row in rows) else 0)


@commands.command("show")
def conflicts_show(number: Number) -> None:
    """Show one conflict with both values, the value that both sides had before, and times, as JSON."""
    from sync_orchestrator.core.two_way.resolving import read_conflict

    with existing_database_to_read().begin() as connection:
        as_json(read_conflict(connection, number), indent=2)


@commands.command("resolve")
def conflicts_resolve(
    number: Number,
    ours: Annotated[bool, typer.Option("--ours", help="Our side's value goes to both sides.")] = False,
    theirs: Annotated[bool, typer.Option("--theirs", help="Their side's value goes to both sides.")] = False,
    value: Annotated[str | None, typer.Option(help="Another value, as JSON, goes to both sides.")] = None,
    alike: Annotated[
        bool, typer.Option("--all-alike", help="The same for all open conflicts about this field of the entity.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why; it is kept.")] = None,
) -> None:
    """Decide a conflict. What was decided goes out like a change, unless a newer change has overtaken it."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.two_way.resolving import resolve_alike, resolve_conflict

    choice = _read_choice(ours=ours, theirs=theirs, value=value)
    two_ways = composition.build_two_ways(composition.load_config())
    with existing_database().begin() as connection:
        if alike:
            count = resolve_alike(connection, two_ways, number, choice, by=getpass.getuser(), reason=reason)
            print_line(f"{count} conflict{'s' if count > 1 else ''} resolved")
            return
        resolved = resolve_conflict(connection, two_ways, number, choice, by=getpass.getuser(), reason=reason)
    what = "brings the value to both sides" if resolved["field"] is not None else "carries it out"
    print_line(f"conflict {number} resolved; the next drain {what}")


def _read_choice(*, ours: bool, theirs: bool, value: str | None) -> Choice:
    from sync_orchestrator import exact_json
    from sync_orchestrator.core.two_way.resolving import Choice
    from sync_orchestrator.core.two_way.three_way import Winner

    if ours + theirs + (value is not None) != 1:
        raise UsageError("say one of --ours, --theirs, --value JSON")
    if value is None:
        return Choice(Winner.OURS if ours else Winner.THEIRS)
    try:
        return Choice(None, exact_json.parse_text(value))
    except ValueError:
        raise UsageError(f"--value: not JSON: {value}. A text needs quotes: --value '\"text\"'") from None


def _show(row: dict[str, Any], name: str) -> object:
    if name == "field" and row[name] is None:
        return "(deleted)"
    return row[name]

"""``records``: single records, and those that are dead."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.existing import (
    entity_named,
    existing_context,
    existing_database,
    existing_database_to_read,
    say_who_pushes,
)
from sync_orchestrator.cli.options import Group, Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table
from sync_orchestrator.errors import UsageError

if TYPE_CHECKING:
    from sync_orchestrator.core.push.dead_records import DeadRecord, DeadSelection

Keys = Annotated[list[str] | None, typer.Argument(help="Keys of records, as `records list` shows them.")]
Cause = Annotated[str | None, typer.Option(help="Only records with this text in their error or cause.")]
Every = Annotated[bool, typer.Option("--all", help="All dead records of the entity.")]

_MAX_COUNTED = 10_000

commands = typer.Typer(no_args_is_help=True, help="Single records, and those that are dead.")


@commands.command("show")
def records_show(entity: str, key: str, json: Json = False) -> None:
    """Show everything known of a record: its parts, events, pushes and drift."""
    from sync_orchestrator.core.operations import records

    with existing_database_to_read().begin() as connection:
        found = records.read_biography(connection, entity, key)
    if json:
        as_json(found, indent=2)
        return
    for name, value in (found["record"] or {"not archived": "yet"}).items():
        if value is not None:
            print_line(f"{name:<17} {value.hex() if isinstance(value, bytes) else value}")
    print_line("")
    for name in ("parts", "events", "pushes", "drift"):
        rows = found[name]
        columns = [column for column in (rows[0] if rows else ()) if any(row[column] is not None for row in rows)]
        print_table(name, columns, [[row[column] for column in columns] for row in rows])


@commands.command("refresh")
def records_refresh(entity: str, key: str) -> None:
    """Reread a record from its sources, whatever version the archive has."""
    from sync_orchestrator.core.operations import records
    from sync_orchestrator.core.runtime import perform

    context = existing_context()
    found = perform(context, records.refresh_record(context, entity_named(context, entity), key))
    print_line(", ".join(f"{part}: {what}" for part, what in found.items()))


@commands.command("push")
def records_push(entity: str, key: str) -> None:
    """Push a record once more, whatever was acknowledged or refused. Exit status: 0 acknowledged, 1 not yet."""
    from sync_orchestrator.core.drain.drain import drain as run_drain
    from sync_orchestrator.core.operations import records
    from sync_orchestrator.core.runtime import perform

    context = existing_context()
    entity_named(context, entity)
    with context.engine.begin() as connection:
        group = records.push_again(connection, entity, key)
    perform(context, run_drain(context, linger=0, group=(entity, group)))
    with context.engine.begin() as connection:
        found = records.read_biography(connection, entity, key)
    record = found["record"]
    if record["out_of_sync"]:
        print_line(f"not acknowledged yet: {record['error'] or 'it is due'}")
    else:
        print_line(f"acknowledged: {found['pushes'][-1]['step'] if found['pushes'] else 'nothing to do'}")
    raise typer.Exit(1 if record["out_of_sync"] else 0)


@commands.command("list")
def records_list(
    entity: Annotated[str | None, typer.Argument(help="All entities by default.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Records that are refused, out of attempts or on hold.")] = False,
    discarded: Annotated[bool, typer.Option("--discarded", help="Records that an operator discarded.")] = False,
    group: Group = None,
    cause: Cause = None,
    limit: Annotated[int, typer.Option(min=1)] = 50,
    json: Json = False,
) -> None:
    """List records that are not pushed any more, with cause and time; the dead ones by default."""
    from sync_orchestrator.core.push.dead_records import DEAD_STATES, DeadSelection, list_dead_records

    states = (*(DEAD_STATES if dead or not discarded else ()), *(("discarded",) if discarded else ()))
    with existing_database_to_read().begin() as connection:
        found = list_dead_records(connection, DeadSelection(entity, None, group, cause), limit + 1, states)
    if json:
        as_json([{**asdict(record), "brought_by": record.brought_by} for record in found[:limit]])
        return
    print_table(
        "records",
        ["entity", "key", "group", "state", "cause", "since", "attempts", "brought by"],
        [
            [
                record.entity,
                record.key,
                record.group,
                _describe_state(record),
                record.cause,
                record.since.isoformat(timespec="seconds"),
                record.attempts,
                record.brought_by,
            ]
            for record in found[:limit]
        ],
    )
    if len(found) > limit:
        print_line("and more; --limit shows them")
    print_line("--json shows the whole error of each" if found else "there are none")


def _describe_state(record: DeadRecord) -> str:
    if record.kind == "event":
        return "dead before it was archived"
    return "on hold" if record.state == "on_hold" else record.state


@commands.command("redrive")
def records_redrive(
    entity: str,
    keys: Keys = None,
    group: Group = None,
    cause: Cause = None,
    every: Every = False,
    absent: Annotated[
        bool,
        typer.Option(
            "--absent",
            help="Create the named records that are on hold: you have checked that the third party does not have them.",
        ),
    ] = False,
) -> None:
    """Push dead records again with fresh attempts, whether an event or a full sync brought them."""
    from sync_orchestrator.core.operations.dead_records import redrive_dead_records

    selection = _build_selection(entity, keys, group, cause, every)
    if absent and not keys:
        raise UsageError("--absent needs the keys of the records that you have checked")
    engine = existing_database()
    count = redrive_dead_records(engine, selection, confirmed_absent=absent)
    print_line(f"{count} records redriven")
    if count:
        say_who_pushes(engine, "they are due")


@commands.command("discard")
def records_discard(
    entity: str,
    reason: Annotated[str, typer.Option(help="Why; it is kept.")],
    keys: Keys = None,
    group: Group = None,
    cause: Cause = None,
    every: Every = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not prompt.")] = False,
) -> None:
    """Give dead records up: they are not pushed until they change, and their dead events end."""
    from sync_orchestrator.core.operations.dead_records import discard_dead_records
    from sync_orchestrator.core.push.dead_records import list_dead_records

    selection = _build_selection(entity, keys, group, cause, every)
    engine = existing_database()
    if not keys and not yes:
        with engine.begin() as connection:
            found = list_dead_records(connection, selection, _MAX_COUNTED)
        many = f"{len(found)} or more" if len(found) == _MAX_COUNTED else str(len(found))
        typer.confirm(f"Discard {many} dead records of {entity}?", abort=True)
    print_line(f"{discard_dead_records(engine, selection, reason)} records discarded")


def _build_selection(
    entity: str, keys: list[str] | None, group: str | None, cause: str | None, every: bool
) -> DeadSelection:
    """Which records are meant; all of them only where that is said."""
    from sync_orchestrator.core.push.dead_records import DeadSelection

    if not (keys or group or cause or every):
        raise UsageError("name records by key, or use --group, --cause or --all")
    if keys and every:
        raise UsageError("name records by key, or use --all: not both")
    return DeadSelection(entity, keys or None, group, cause)

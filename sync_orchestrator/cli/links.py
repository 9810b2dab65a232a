"""``links``: which record of theirs a record of ours is, and what is not linked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.existing import existing_database, existing_database_to_read
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table
from sync_orchestrator.errors import UsageError

if TYPE_CHECKING:
    from sync_orchestrator.core.two_way.rules import TwoWay

Entity = Annotated[str, typer.Argument(help="The entity that has two_way.")]
Key = Annotated[str, typer.Argument(help="The key of our record.")]

_REASONS = {
    "ambiguous": "several records have the same natural key: correct one of them, or link two by `links make`",
    "not_complete": "a first full sync of the other side has to show what is there",
    "create_under_way": "a record is being made on the other side; it is looked at again in seconds",
    "not_made_there": "no record is made on the other side (creates: never)",
    "unusable": "an expression of two_way fails for this record",
}

commands = typer.Typer(no_args_is_help=True, help="Links between records of both sides (two_way).")


@commands.command("list")
def links_list(entity: Entity, most: Annotated[int, typer.Option(min=1)] = 100, json: Json = False) -> None:
    """Count links, and list the records that are not linked, with the reason."""
    from dataclasses import asdict

    from sync_orchestrator.core.two_way.resolving import count_links, list_waiting_records

    two_way = _find_two_way(entity)
    with existing_database_to_read().begin() as connection:
        counts = count_links(connection, two_way)
        waiting = list_waiting_records(connection, two_way, most=most)
    if json:
        as_json({**asdict(counts), "waiting": waiting})
        return
    print_table("links", list(asdict(counts)), [list(asdict(counts).values())])
    if waiting:
        rows = [[row["entity"], row["key"], row["detail"] or _REASONS[row["reason"]], row["since"]] for row in waiting]
        print_table("not linked", ["entity", "key", "reason", "since"], rows)


@commands.command("make")
def links_make(
    entity: Entity, key: Key, theirs_key: Annotated[str, typer.Argument(help="The key of their record.")]
) -> None:
    """Link two records by hand. Where their fields differ, the policies decide, as with every new link."""
    from sync_orchestrator.core.two_way.resolving import make_link

    with existing_database().begin() as connection:
        make_link(connection, _find_two_way(entity), key, theirs_key)
    print_line(f"{entity} {key} is linked with {theirs_key}")


@commands.command("break")
def links_break(entity: Entity, key: Key) -> None:
    """End a link: both records stay, and neither follows the other any more."""
    from sync_orchestrator.core.two_way.resolving import break_link

    with existing_database().begin() as connection:
        theirs_key = break_link(connection, _find_two_way(entity), key)
    print_line(f"{entity} {key} and {theirs_key} are not linked any more")


def _find_two_way(entity: str) -> TwoWay:
    from sync_orchestrator import composition

    two_ways = composition.build_two_ways(composition.load_config())
    if entity not in two_ways:
        raise UsageError(f"entity '{entity}' has no two_way; these have: {', '.join(two_ways) or 'none'}")
    return two_ways[entity]

"""``events``: change events in the ledger."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from sync_orchestrator.cli.existing import existing_database, existing_database_to_read, say_who_pushes
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, print_line, print_table
from sync_orchestrator.errors import NotFound, UsageError

Seqs = Annotated[list[int] | None, typer.Argument(help="Numbers of events, as `events list` shows them.")]

commands = typer.Typer(no_args_is_help=True, help="Change events in the ledger.")


@commands.command("list")
def events_list(
    state: Annotated[Literal["pending", "leased", "waiting", "dead"] | None, typer.Option()] = None,
    entity: str | None = None,
    key: str | None = None,
    most: Annotated[int, typer.Option(min=1)] = 50,
    json: Json = False,
) -> None:
    """List events that are not finished, newest first."""
    from sync_orchestrator.core.ledger import lookups
    from sync_orchestrator.core.values.names import to_nfc

    with existing_database_to_read().begin() as connection:
        found = lookups.list_events(connection, state=state, entity=entity, key=key and to_nfc(key), limit=most)
    rows = [dict(row._mapping) for row in found]
    if json:
        as_json(rows)
        return
    names = ["seq", "entity", "key", "source", "action", "version", "state", "attempts", "due_at", "error"]
    print_table("events", names, [[row[name] for name in names] for row in rows])
    if not rows:
        print_line("there are none")


@commands.command("show")
def events_show(seq: int) -> None:
    """Show one event, finished or not, as JSON."""
    from sync_orchestrator.core.ledger.lookups import find_event

    with existing_database_to_read().begin() as connection:
        event = find_event(connection, seq)
    if event is None:
        raise NotFound(f"there is no event {seq}")
    as_json(dict(event._mapping), indent=2)


@commands.command("redrive")
def events_redrive(
    seqs: Seqs = None,
    every: Annotated[bool, typer.Option("--all", help="All dead and waiting events.")] = False,
    entity: Annotated[str | None, typer.Option(help="Only those of this entity.")] = None,
) -> None:
    """Put dead or waiting events back to pending, with fresh attempts."""
    if not seqs and not every:
        raise UsageError("name events by number, or say --all")
    from sync_orchestrator.core.operations.events import redrive_events

    engine = existing_database()
    count = redrive_events(engine, seqs or None, entity)
    print_line(f"{count} events re-driven")
    if count:
        say_who_pushes(engine, "they are due")


@commands.command("discard")
def events_discard(seqs: Seqs, reason: Annotated[str, typer.Option(help="Why; it is kept.")]) -> None:
    """End dead events for good."""
    from sync_orchestrator.core.operations.events import discard_events

    print_line(f"{discard_events(existing_database(), seqs or [], reason)} events discarded")

"""``events``: change events in the ledger.

Not here: what becomes of them (``core/ledger/recording.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import typer

from sync_orchestrator.cli.existing import existing_database, existing_database_to_read, say_who_pushes
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, say, table
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.errors import NotFound

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
    from sync_orchestrator.core.values.names import composed

    rows = [
        dict(row._mapping)
        for row in _query(ledger_queries.LIST_EVENTS, state=state, entity=entity, key=key and composed(key), most=most)
    ]
    if json:
        as_json(rows)
        return
    names = ["seq", "entity", "key", "source", "action", "version", "state", "attempts", "due_at", "error"]
    table("events", names, [[row[name] for name in names] for row in rows])
    if not rows:
        say("there are none")


@commands.command("show")
def events_show(seq: int) -> None:
    """Show one event, finished or not, as JSON."""
    rows = _query(ledger_queries.SELECT_EVENT, seq=seq)
    if not rows:
        raise NotFound(f"there is no event {seq}")
    as_json(dict(rows[0]._mapping), indent=2)


@commands.command("redrive")
def events_redrive(
    seqs: Seqs = None,
    every: Annotated[bool, typer.Option("--all", help="All dead and waiting events.")] = False,
    entity: Annotated[str | None, typer.Option(help="Only those of this entity.")] = None,
) -> None:
    """Put dead or waiting events back to pending, with fresh attempts."""
    if not seqs and not every:
        raise NotFound("name events by number, or say --all")
    from sync_orchestrator.core.ledger import recording

    engine = existing_database()
    count = recording.redrive(engine, seqs or None, entity)
    say(f"{count} events re-driven")
    if count:
        say_who_pushes(engine, "they are due")


@commands.command("discard")
def events_discard(seqs: Seqs, reason: Annotated[str, typer.Option(help="Why; it is kept.")]) -> None:
    """End dead events for good."""
    from sync_orchestrator.core.ledger import recording

    say(f"{recording.discard(existing_database(), seqs or [], reason)} events discarded")


def _query(statement: str, **parameters: Any) -> Sequence[Any]:
    from sync_orchestrator.core.db.session import run

    with existing_database_to_read().begin() as connection:
        return run(connection, statement, **parameters)

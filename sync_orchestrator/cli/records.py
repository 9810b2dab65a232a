"""``records``: single records.

Not here: what is known of one, and what becomes of it (``core/records.py``).
"""

from __future__ import annotations

import typer

from sync_orchestrator.cli.existing import entity_named, existing_context, existing_database
from sync_orchestrator.cli.options import Json
from sync_orchestrator.core import records
from sync_orchestrator.core.drain import drain as run_drain
from sync_orchestrator.performing import perform
from sync_orchestrator.terminal import as_json, say, table

commands = typer.Typer(no_args_is_help=True, help="Single records.")


@commands.command("show")
def records_show(entity: str, key: str, json: Json = False) -> None:
    """Show everything known of a record: its parts, events, pushes and drift."""
    with existing_database().begin() as connection:
        found = records.show(connection, entity, key)
    if json:
        as_json(found, indent=2)
        return
    for name, value in (found["record"] or {"not archived": "yet"}).items():
        if value is not None:
            say(f"{name:<17} {value.hex() if isinstance(value, bytes) else value}")
    say("")
    for name in ("parts", "events", "pushes", "drift"):
        rows = found[name]
        columns = [column for column in (rows[0] if rows else ()) if any(row[column] is not None for row in rows)]
        table(name, columns, [[row[column] for column in columns] for row in rows])


@commands.command("refresh")
def records_refresh(entity: str, key: str) -> None:
    """Reread a record from its sources, whatever version the archive has."""
    context = existing_context()
    found = perform(context, records.refresh(context, entity_named(context, entity), key))
    say(", ".join(f"{part}: {what}" for part, what in found.items()))


@commands.command("push")
def records_push(entity: str, key: str) -> None:
    """Push a record once more, whatever was acknowledged or refused. Exit status: 0 acknowledged, 1 not yet."""
    context = existing_context()
    entity_named(context, entity)
    with context.engine.begin() as connection:
        group = records.push_again(connection, entity, key)
    perform(context, run_drain(context, linger=0, group=(entity, group)))
    with context.engine.begin() as connection:
        found = records.show(connection, entity, key)
    record = found["record"]
    if record["out_of_step"]:
        say(f"not acknowledged yet: {record['error'] or 'it is due'}")
    else:
        say(f"acknowledged: {found['pushes'][-1]['step'] if found['pushes'] else 'nothing to do'}")
    raise typer.Exit(1 if record["out_of_step"] else 0)

"""Whether change events can be recorded now: tried, not concluded from a connection that answers."""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.systems.heartbeats import record_heartbeat_in

WAIT_SECONDS = 4
"""The database ends a probe that takes longer."""


def try_to_record(engine: Engine, name: str) -> None:
    """Records an event and takes it back, then commits a heartbeat of ``probe`` and that name.

    Raises what the database raises: it cannot be reached, is read-only, is full, does not let us write.
    """

    def record_probe(connection: Connection) -> None:
        run(connection, f"SET LOCAL lock_timeout = '{WAIT_SECONDS}s'")
        run(connection, f"SET LOCAL statement_timeout = '{WAIT_SECONDS}s'")
        attempt = connection.begin_nested()
        record_in(connection, [ChangeEvent("probe", uuid4().hex, "probe", "probe", "delete", 0)])
        attempt.rollback()
        record_heartbeat_in(connection, f"probe {name}")

    in_transaction(engine, record_probe)

"""Notifications of the database: hints that wake processes which wait for work, so that nobody has to look often.

A hint is sent in the transaction that makes work due, and may be lost: whoever waits also looks from time to time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from sync_orchestrator.core.db import connections
from sync_orchestrator.core.db.session import run

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

OUTCOMES_CHANNEL = "sync_outcomes"
"""Wakes the senders of outcomes; ``INSERT_OUTCOMES`` announces on it."""

WAITING_CHANNEL = "sync_capture"
"""Asks the reader of a stream, by its name, to write at once how far it is: a read waits for that."""

_NOTIFY_WORK = "SELECT pg_notify('sync_work', '')"


def notify_work(connection: Connection) -> None:
    """Wakes the drains once the caller's transaction has committed."""
    run(connection, _NOTIFY_WORK)


def open_listener(engine: Engine, channel: str) -> psycopg.Connection[tuple[object, ...]]:
    """Opens a connection of its own that hears the announcements of a channel.

    Raises:
        psycopg.Error: The database cannot be reached.
    """
    connection: psycopg.Connection[tuple[object, ...]] = psycopg.connect(
        **connections.build_arguments(engine.url), autocommit=True
    )
    connection.execute(f"LISTEN {channel}")
    return connection

"""Brings a database to the present shape: Alembic, under an advisory lock, so that any process may try at start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.partitions import ensure_partitions

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_FOLDER = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Runs the migrations that are missing, in one transaction; processes that start together take turns."""
    with engine.begin() as connection:
        acquire_lock(connection, AdvisoryLock.MIGRATIONS)
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS sync")
        if not is_newest(connection):
            _upgrade_to_head(connection)
        ensure_partitions(connection)


def is_current(engine: Engine) -> bool:
    """Whether the database has the shape that this version needs."""
    with engine.begin() as connection:
        return is_newest(connection)


def newest_revision() -> str:
    """The revision of the last migration: the number that its file name begins with."""
    return max(path.name.partition("_")[0] for path in (_FOLDER / "versions").glob("[0-9]*_*.py"))


def is_newest(connection: Connection) -> bool:
    """Whether the last migration ran. Alembic would say the same, and every command would wait for its import."""
    if run(connection, "SELECT to_regclass('sync.alembic_version') IS NULL AS missing")[0].missing:
        return False
    rows = run(connection, "SELECT version_num FROM sync.alembic_version")
    return [row.version_num for row in rows] == [newest_revision()]


def _upgrade_to_head(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config as AlembicConfig

    config = AlembicConfig()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")

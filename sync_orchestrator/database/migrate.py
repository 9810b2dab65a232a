"""Brings a database to the present shape: Alembic, under an advisory lock, so that any process may try at start."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.script import ScriptDirectory
from sqlalchemy import Engine

from sync_orchestrator.core.sql import run
from sync_orchestrator.core.statements.ledger import ENSURE_PARTITIONS

_LOCK = 7_261_001
_FOLDER = Path(__file__).parent / "migrations"


def migrate(engine: Engine) -> None:
    """Runs the migrations that are missing, in one transaction; processes that start together take turns."""
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.exec_driver_sql("CREATE SCHEMA IF NOT EXISTS sync")
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        run(connection, ENSURE_PARTITIONS)


def is_current(engine: Engine) -> bool:
    """Whether the database has the shape that this version needs."""
    with engine.begin() as connection:
        rows = run(connection, "SELECT version_num FROM sync.alembic_version")
    return [row.version_num for row in rows] == ScriptDirectory.from_config(_config()).get_heads()


def _config() -> AlembicConfig:
    config = AlembicConfig()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config

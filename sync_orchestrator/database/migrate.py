"""Brings a database to the present shape: Alembic, under an advisory lock, so that any process may try at start."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config as AlembicConfig
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
        config = AlembicConfig()
        config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        run(connection, ENSURE_PARTITIONS)

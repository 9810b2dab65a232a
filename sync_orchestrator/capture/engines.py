"""Which database a source has, and what reads its log."""

from __future__ import annotations

from sqlalchemy import Engine

from sync_orchestrator.capture.mysql import MysqlCapture
from sync_orchestrator.capture.port import CaptureSource
from sync_orchestrator.capture.postgres_log import PostgresCapture
from sync_orchestrator.config.sources import SqlSourceSettings


def open_capture_source(name: str, settings: SqlSourceSettings, ledger: Engine | None = None) -> CaptureSource:
    """Returns the source of a stream; it connects when it is used.

    Args:
        name: The source system.
        settings: Its settings.
        ledger: Our database, by which a stream has a name of its own at the source; None for a look at what it has.

    Raises:
        ConfigError: The source's URL cannot be used.
    """
    if settings.has_binlog:
        return MysqlCapture(name, settings, ledger)
    return PostgresCapture(name, settings)

"""Which database a source has, and what reads its log."""

from __future__ import annotations

from sync_orchestrator.capture.port import CaptureSource
from sync_orchestrator.capture.postgres_log import PostgresCapture
from sync_orchestrator.config.sources import SqlSourceSettings


def open_capture_source(name: str, settings: SqlSourceSettings) -> CaptureSource:
    """Returns the source of a stream; it connects when it is used.

    Raises:
        ConfigError: The source's URL cannot be used.
    """
    return PostgresCapture(name, settings)

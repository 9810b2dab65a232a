"""Where the log of a Postgres server ends: on the primary, whose log the stream reads. Nothing is written there."""

from __future__ import annotations

from sqlalchemy import Connection, text

from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.log_positions import format_lsn, parse_lsn
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.ports import LogEnd

_LOG_END = """
SELECT pg_current_wal_insert_lsn()::text AS inserted, pg_current_wal_flush_lsn()::text AS flushed,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_block_size') AS page,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment,
       (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'wal_writer_delay') AS delay
"""
_PAGE_HEADER = 24
_SEGMENT_HEADER = 40
_DELAYS = 3
"""Postgres says that a commit whose session does not wait is flushed within three times ``wal_writer_delay``."""
_MARGIN_SECONDS = 0.2


class PostgresLogEnd:
    """Implements ``core.ports.SourceLog``."""

    def __init__(self, name: str, settings: SqlSourceSettings) -> None:
        assert settings.capture is not None
        url = settings.capture.url or settings.url
        self._database = SourceDatabase(name, settings.model_copy(update={"url": url, "connections": 2}))
        self._what = f"the log of {name}"
        self.stall_seconds = settings.capture.max_stall_seconds
        self.flush_delay_seconds = 1.0

    async def read_end(self) -> LogEnd:
        """Where the log ends now. Raises CallFailed."""
        return await self._database.run_on_connection(self._what, self._read_end)

    def choose_earlier(self, one: str, other: str) -> str:
        """The earlier of two positions."""
        return min(one, other, key=parse_lsn)

    async def close(self) -> None:
        """Closes its connections."""
        await self._database.close()

    def _read_end(self, connection: Connection) -> LogEnd:
        row = connection.execute(text(_LOG_END)).one()
        self.flush_delay_seconds = _DELAYS * row.delay + _MARGIN_SECONDS
        inserted = parse_lsn(row.inserted)
        return LogEnd(format_lsn(leave_out_header(inserted, row.page, row.segment)), row.flushed)


def leave_out_header(position: int, page: int, segment: int) -> int:
    """The end of the last record, where the next one begins behind the header of a page.

    The flushed log ends before that header until there is a next record, which may take long on an idle server.

    Args:
        position: Where the next record begins.
        page: The size of a page of the log, in bytes.
        segment: The size of a file of the log, in bytes; its first page has a longer header.
    """
    header = _SEGMENT_HEADER if position % segment < page else _PAGE_HEADER
    return position - header if position % page == header else position

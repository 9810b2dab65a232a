"""Ordinary connections to a captured source: to the server whose log is read, and to where records are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from sync_orchestrator.adapters.http.responses import sanitize_text
from sync_orchestrator.adapters.sql.database import open_source_engine
from sync_orchestrator.config.sources import CaptureSettings, SqlSourceSettings
from sync_orchestrator.errors import LogDown


class SourceConnections:
    """The connections of a stream to its source.

    Attributes:
        capture: The settings of the stream.
        capture_url: The URL of the server whose log is read.
    """

    def __init__(self, name: str, settings: SqlSourceSettings) -> None:
        assert settings.capture is not None
        self.capture: CaptureSettings = settings.capture
        self.capture_url = settings.capture.url or settings.url
        few = {"connections": 2}
        self._primary: Engine = open_source_engine(name, settings.model_copy(update={**few, "url": self.capture_url}))
        self._reading = (
            self._primary
            if self.capture_url == settings.url
            else open_source_engine(name, settings.model_copy(update={**few, "url": settings.url}))
        )

    def close(self) -> None:
        """Ends the connections; they may be used again."""
        self._primary.dispose()
        self._reading.dispose()

    @contextmanager
    def connect(self, *, reading: bool = False) -> Iterator[Connection]:
        """A connection to the primary, or to where parts are read.

        Raises:
            LogDown: The server does not do what is asked of it within the block.
        """
        engine = self._reading if reading else self._primary
        try:
            with engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise LogDown(self.describe(error.orig or error)) from None

    def describe(self, error: BaseException) -> str:
        """An error of the server in one line, without secrets."""
        password = self._primary.url.password
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return sanitize_text(lines[0], [str(password)] if password else [])

"""What an operator does with a stream: begin it anew, or drop it together with its slot."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, Engine

from sync_orchestrator.capture.engines import open_capture_source
from sync_orchestrator.capture.parts import entities_by_table, list_captured_tables, numbered_entities
from sync_orchestrator.capture.port import CaptureSource
from sync_orchestrator.config import Config
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.capture import streams
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.errors import LogDown, NotFound, NotPrepared


def reset_stream(engine: Engine, config: Config, name: str) -> str:
    """Begins a stream anew at the present end of the source's log, and returns that position.

    Raises:
        NotFound: The source is not captured.
        LogDown: The stream is being read, or the source does not do its part.
    """
    source = _open_source(engine, config, name)
    tables = list_captured_tables(config, name)
    token = _claim(engine, name)
    try:
        found = source.inspect(tables)
        if found.problems:
            raise NotPrepared(*found.problems)
        identity, position = source.begin_anew(found, lambda: None)
        stream = streams.CaptureStream(
            name, identity, position, None, 0, found.name_tables(), numbered_entities(tables)
        )

        def write(connection: Connection) -> None:
            forgotten = replace(stream, tables={})
            streams.open_stream(connection, forgotten, token, entities_by_table={})
            streams.open_stream(connection, stream, token, entities_by_table=entities_by_table(tables))

        in_transaction(engine, write)
    finally:
        in_transaction(engine, lambda connection: streams.release_stream(connection, name, token))
        source.close()
    return position


def drop_stream(engine: Engine, config: Config, name: str) -> bool:
    """Drops a stream and its slot; returns whether there was a slot.

    Raises:
        NotFound: The source has no ``capture`` in the configuration.
        LogDown: The stream is being read, or the source does not do its part.
    """
    source = _open_source(engine, config, name)
    _claim(engine, name)
    try:
        had_slot = source.drop_slot()
    finally:
        source.close()
    in_transaction(engine, lambda connection: streams.drop_stream(connection, name))
    return had_slot


def _open_source(engine: Engine, config: Config, name: str) -> CaptureSource:
    settings = config.sources.get(name)
    if not isinstance(settings, SqlSourceSettings) or settings.capture is None:
        raise NotFound(f"the source '{name}' has no 'capture' in sync.yaml")
    return open_capture_source(name, settings, engine)


def _claim(engine: Engine, name: str) -> int:
    token = in_transaction(
        engine, lambda connection: streams.claim_stream(connection, name, streams.STREAM_LEASE_SECONDS)
    )
    if token is None:
        raise LogDown(f"a process reads the stream {name}: stop `sync-orchestrator capture` (or `up`) first")
    return token

"""Dagster's storage in Postgres, on connections that are kept and set up as those of the core.

Dagster's own opens a connection for each statement, which costs more than the statement; and each tick of a sensor
makes its storage anew, so the connections are the process's. The instance's settings are in ``config.py``.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

from dagster_postgres import DagsterPostgresStorage

# Also its attribute `_engine` is set. Unnecessary once the pool can be configured:
# https://github.com/dagster-io/dagster/issues/33935
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import Engine, create_engine

from sync_orchestrator.core.db import connections

_MAX_IDLE_CONNECTIONS = 2
_MORE = 50
_SECONDS = 600


@cache
def engine_of(url: str) -> Engine:
    """This process's connections to a database: a few are kept, as many more as are needed are ended after use."""
    return _create_engine(url, pool_size=_MAX_IDLE_CONNECTIONS, max_overflow=_MORE, pool_recycle=_SECONDS)


def _create_engine(url: str, *, statement_timeout: int | None = None, **pool: int) -> Engine:
    """An engine on psycopg 2; ``statement_timeout`` in milliseconds."""
    known = connections.with_settings(url)
    if statement_timeout is not None:
        options = f"{known.query['options']} -c statement_timeout={statement_timeout}"
        known = known.update_query_dict({"options": options})
    return connections.watch_engine(create_engine(known, isolation_level="AUTOCOMMIT", pool_pre_ping=True, **pool))


class KeptConnections(DagsterPostgresStorage):
    """Dagster's storage, configured as that is; the webserver keeps connections of its own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine_of(storage.postgres_url)
            storage.optimize_for_webserver = partial(_replace_engine, storage)  # type: ignore[method-assign]

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> KeptConnections:
        return cls(
            postgres_url=pg_url_from_config(config_value),
            inst_data=inst_data,
            should_autocreate_tables=config_value.get("should_autocreate_tables", True),
        )


def _replace_engine(storage: Any, statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
    """Dagster's counterpart makes an engine that knows nothing of our sessions."""
    storage._engine = _create_engine(
        storage.postgres_url,
        statement_timeout=statement_timeout,
        pool_size=1,
        pool_recycle=pool_recycle,
        max_overflow=max_overflow,
    )

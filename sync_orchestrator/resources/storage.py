"""Dagster's storage in Postgres, on connections that are kept.

Dagster's own opens a connection for each statement, which costs more than the statement; and each tick of a sensor
makes its storage anew, so the connections are the process's. Not here: the instance's settings (``instance.py``).
"""

from __future__ import annotations

from functools import cache
from typing import Any

from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import pg_url_from_config
from sqlalchemy import Engine, create_engine

_KEPT = 2
_MORE = 50
_SECONDS = 600


@cache
def engine_of(url: str) -> Engine:
    """This process's connections to a database: a few are kept, as many more as are needed are ended after use."""
    return create_engine(url, isolation_level="AUTOCOMMIT", pool_size=_KEPT, max_overflow=_MORE, pool_pre_ping=True,
                         pool_recycle=_SECONDS)


class KeptConnections(DagsterPostgresStorage):
    """Dagster's storage, configured as that is; the webserver keeps connections of its own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine_of(storage.postgres_url)

    @classmethod
    def from_config_value(cls, inst_data: Any, config_value: Any) -> KeptConnections:
        return cls(postgres_url=pg_url_from_config(config_value), inst_data=inst_data,
                   should_autocreate_tables=config_value.get("should_autocreate_tables", True))

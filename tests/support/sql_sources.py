"""SQL sources on SQLite files, and what is read of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import PartSettings
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.ports import PartRead

Run = Callable[[str], None]


BASE = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z in microseconds


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of either kind."""
    if request.param == "sqlite":
        path = tmp_path / "a shop #1.db"
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version = 1")
        yield f"sqlite:///{path}"
        return
    told = request.getfixturevalue("database_url")
    yield told


@pytest.fixture
def run(url: str) -> Iterator[Run]:
    """Runs a statement in it, as its owner would."""
    engine = create_engine(url)

    def execute(statement: str) -> None:
        with engine.begin() as connection:
            connection.connection.cursor().execute(statement)

    yield execute
    engine.dispose()


def database(url: str, **settings: Any) -> SourceDatabase:
    return SourceDatabase("shop", SqlSourceSettings.model_validate({"kind": "sql", "url": url, **settings}))


def part(**changes: Any) -> PartSettings:
    sql = {"table": "items", **changes.pop("sql", {})}
    return PartSettings.model_validate(
        {"key": "sku", "version": {"path": "v", "kind": "number"}, "group": "store", "sql": sql, **changes}
    )


def items(run: Run, keys: list[str], *, kind: str = "TEXT", store: str = "'A'", unique: bool = True) -> None:
    run(f"CREATE TABLE items (sku {kind}{' PRIMARY KEY' if unique else ''}, store TEXT, v BIGINT)")
    for number, key in enumerate(keys):
        run(f"INSERT INTO items VALUES ({key}, {store}, {number + 1})")


async def listed(source: SqlSource, group: str = "A", after: str | None = None) -> list[list[str]]:
    return [[row.key for row in rows] async for rows, _ in source.pages(group, after)]


def only(rows: list[PartRead]) -> PartRead:
    [row] = rows
    return row

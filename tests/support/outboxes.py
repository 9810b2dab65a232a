"""Outboxes in real databases: the tests' Postgres, a SQLite file, and MariaDB where it runs on this machine.

``SYNC_TEST_MYSQL_URL`` names another server of MySQL or MariaDB.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakes import two_part_config
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.exc import OperationalError

from sync_orchestrator.config import Config

MYSQL = os.environ.get("SYNC_TEST_MYSQL_URL", "mysql+pymysql://root@127.0.0.1:3306")
TABLES = {
    "postgresql": """CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype text NOT NULL,
        aggregateid text NOT NULL, type text NOT NULL, payload jsonb, seq bigint, meta jsonb)""",
    "mysql": """CREATE TABLE outbox (id varchar(36) PRIMARY KEY DEFAULT uuid(), aggregatetype varchar(100) NOT NULL,
        aggregateid varchar(200) NOT NULL, type varchar(100) NOT NULL, payload json, seq bigint, meta json)""",
    "sqlite": """CREATE TABLE outbox (id text PRIMARY KEY DEFAULT (lower(hex(randomblob(16)))), aggregatetype text,
        aggregateid text, type text, payload text, seq integer, meta text)""",
}
INSERT = "INSERT INTO outbox (aggregatetype, aggregateid, type, payload, seq) VALUES (:entity, :key, :type, {}, :seq)"


class Outbox:
    """A table of a database of its own."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.engine: Engine = create_engine(url)
        self.run(TABLES[kind])

    def run(self, statement: str, **values: Any) -> list[Any]:
        """Runs a statement and commits."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result) if result.returns_rows else []

    def write(self, connection: Connection, number: int, **values: Any) -> None:
        """Writes a row within a transaction."""
        payload = {"key": f"k{number}", "store": "A", "v": number}
        row = {"entity": "item", "key": f"k{number}", "type": "created", "seq": number, "payload": payload, **values}
        body = row["payload"]
        row["payload"] = body if body is None or isinstance(body, str) else json.dumps(body)
        connection.execute(text(INSERT.format(":payload")), row)

    def send(self, number: int, **values: Any) -> None:
        """Writes a row and commits."""
        with self.engine.begin() as connection:
            self.write(connection, number, **values)

    def left(self) -> int:
        """The rows that are there."""
        return int(self.run("SELECT count(*) FROM outbox")[0][0])


def outbox_config(url: str, *, outbox: dict[str, Any] | None = None, **changes: Any) -> Config:
    """A configuration with the consumer ``orders``, which is an outbox."""
    settings = {"table": "outbox", "poll_every": "20ms", **(outbox or {})}
    consumer = {"url": url, "outbox": settings, "source": "shop", **changes.pop("consumer", {})}
    return two_part_config(consumers={"orders": consumer}, **changes)


@contextmanager
def mysql_database() -> Iterator[str]:
    """An empty database of MariaDB or MySQL, or the test is skipped and says so."""
    if importlib.util.find_spec("pymysql") is None:
        pytest.skip("pymysql is not installed")
    admin = create_engine(MYSQL)
    name = f"sync_test_{os.getpid()}_{secrets.token_hex(4)}"
    try:
        with admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except OperationalError as error:
        pytest.skip(f"no MariaDB lets us in at {admin.url.host}:{admin.url.port}: {error.orig}")
    try:
        yield admin.url.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name}"))
        admin.dispose()


@contextmanager
def database_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> Iterator[str]:
    """The URL of an empty database; of Postgres, the one that has the ledger."""
    if kind == "mysql":
        with mysql_database() as url:
            yield url
    elif kind == "postgresql":
        yield request.getfixturevalue("database_url")
    else:
        with closing(sqlite3.connect(folder / "shop.db")) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        yield f"sqlite:///{folder / 'shop.db'}"


@pytest.fixture(params=["postgresql", "mysql", "sqlite"])
def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outbox]:
    """An outbox in each kind of database."""
    with database_of(request.param, request, tmp_path) as url:
        made = Outbox(request.param, url)
        yield made
        made.engine.dispose()


@pytest.fixture
def postgres_outbox(database_url: str) -> Iterator[Outbox]:
    """An outbox in Postgres."""
    made = Outbox("postgresql", database_url)
    yield made
    made.engine.dispose()

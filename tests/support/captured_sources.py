"""Source databases whose changes are captured: real servers with ``wal_level = logical``, and readers of their log.

The wheel's Postgres, as a second server in a folder of its own, is always there. The machine's Postgres serves where
its ``wal_level`` is logical; otherwise tests on it are skipped, and say so.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from on_machines_postgres import USUAL
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from sync_orchestrator.capture import stream as stream_module
from sync_orchestrator.capture.stream import StreamReader
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.database import embedded

PATIENCE = 15.0
ITEMS = "CREATE TABLE items (sku text PRIMARY KEY, store text, v timestamptz DEFAULT clock_timestamp(), name text)"
_numbers = itertools.count(1)


@dataclass
class SourceServer:
    """A server of Postgres; ``folder``: its data folder, where the tests may stop and start it."""

    url: str
    folder: Path | None = None

    def execute(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Runs a statement in autocommit mode, as an operator of the source would."""
        with connect(self.url if database is None else _named(self.url, database)) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def stop(self) -> float:
        """A fast shutdown; returns how many seconds it took."""
        assert self.folder is not None
        began = time.monotonic()
        embedded.stop(self.folder)
        return time.monotonic() - began

    def start(self) -> None:
        assert self.folder is not None
        self.url = start_server(self.folder)


@dataclass
class CapturedSource:
    """A database of a server, with tables, a publication and a slot of its own."""

    server: SourceServer
    database: str
    slot: str = field(default_factory=lambda: f"slot_{os.getpid()}_{next(_numbers)}")

    @property
    def url(self) -> str:
        return _named(self.server.url, self.database)

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Runs statements in the database; several in one text are one transaction."""
        with connect(self.url) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def insert_many(self, prefix: str, number: int) -> None:
        """So many new rows of ``items`` in one transaction."""
        self.execute(f"INSERT INTO items SELECT '{prefix}' || n, 'A', now() FROM generate_series(1, {number}) n")

    def publish(self, *tables: str) -> None:
        self.execute(f"CREATE PUBLICATION sync_orchestrator FOR TABLE {', '.join(tables)}")

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The source system, for ``sync.yaml``."""
        return {"kind": "sql", "url": self.url, "capture": {"slot": self.slot, **changes}}

    def drop_slot(self) -> None:
        with suppress(psycopg.Error):
            self.server.execute(
                f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = '{self.slot}' "
                "AND active_pid IS NOT NULL"
            )
        for _ in range(100):
            try:
                self.server.execute(
                    "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots "
                    f"WHERE slot_name = '{self.slot}'"
                )
                return
            except psycopg.errors.ObjectInUse:
                time.sleep(0.05)

    def find_slot(self) -> tuple[Any, ...] | None:
        """Whether it is active, and how far it is acknowledged."""
        rows = self.server.execute(
            "SELECT active, confirmed_flush_lsn::text, restart_lsn::text, wal_status FROM pg_replication_slots "
            f"WHERE slot_name = '{self.slot}'"
        )
        return rows[0] if rows else None


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), autocommit=True)


def _named(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)


def start_server(folder: Path, *settings: str) -> str:
    """Starts the wheel's server in a folder, so that its log can be read."""
    wanted = ("wal_level = logical", "max_wal_senders = 20", "max_replication_slots = 20", "fsync = off", *settings)
    return embedded.start(folder, wanted)


@contextmanager
def own_server() -> Iterator[SourceServer]:
    """A server in a folder that other sessions of pytest do not close to its user."""
    with tempfile.TemporaryDirectory(prefix="captured-", ignore_cleanup_errors=True) as home:
        folder = Path(home) / "postgres"
        yield SourceServer(start_server(folder), folder)
        embedded.stop(folder)


@pytest.fixture(scope="session")
def wheel_server() -> Iterator[SourceServer]:
    with own_server() as server:
        yield server


@pytest.fixture(scope="session")
def machine_server() -> SourceServer:
    url = os.environ.get("SYNC_TEST_CAPTURE_URL") or os.environ.get("SYNC_TEST_DATABASE_URL") or USUAL
    server = SourceServer(url)
    try:
        [(level, version)] = server.execute("SELECT current_setting('wal_level'), current_setting('server_version')")
    except psycopg.Error:
        pytest.skip("no Postgres of this machine: its versions are not tried as sources")
    if level != "logical":
        pytest.skip(f"Postgres {version} of this machine has wal_level = {level}: it is not tried as a source")
    return server


@contextmanager
def a_database(server: SourceServer) -> Iterator[CapturedSource]:
    name = f"captured_{os.getpid()}_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    source = CapturedSource(server, name)
    try:
        yield source
    finally:
        source.drop_slot()
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["wheel", "machine"])
def source(request: pytest.FixtureRequest) -> Iterator[CapturedSource]:
    """An empty database on each server that is there."""
    with a_database(request.getfixturevalue(f"{request.param}_server")) as made:
        yield made


@pytest.fixture
def wheel_source(wheel_server: SourceServer) -> Iterator[CapturedSource]:
    """An empty database on the wheel's server, for what no version does otherwise."""
    with a_database(wheel_server) as made:
        yield made


@pytest.fixture
def shop(source: CapturedSource) -> CapturedSource:
    """A database with the published table ``items``."""
    source.execute(ITEMS)
    source.publish("items")
    return source


@pytest.fixture
def wheel_shop(wheel_source: CapturedSource) -> CapturedSource:
    wheel_source.execute(ITEMS)
    wheel_source.publish("items")
    return wheel_source


class AnySource(Protocol):
    """A database with the table ``items``, whose changes are captured."""

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]: ...

    def insert_many(self, prefix: str, number: int) -> None: ...

    def settings(self, **changes: Any) -> dict[str, Any]: ...

    def find_slot(self) -> tuple[Any, ...] | None: ...


def captured_config(source: AnySource, *, part: dict[str, Any] | None = None, **changes: Any) -> Config:
    """An entity ``item`` with the one part ``shop``, the table ``items``, mirrored to ``erp``."""
    entity = {
        "owner": "shop",
        "parts": {
            "shop": {
                "sql": {"table": "items"},
                "key": "sku",
                "group": "store",
                "version": {"path": "v"},
                "changes": {"by": "log"},
                **(part or {}),
            }
        },
        "mapping": {"code": "key", "store": "group", "name": "shop.name"},
        "third_party": {
            "system": "erp",
            "key_field": "code",
            "create": {"method": "POST", "path": "/"},
            "update": {"method": "PUT", "path": "/{{ id }}"},
            "delete": {"method": "DELETE", "path": "/{{ id }}"},
            "read": {"path": "/{{ id }}"},
            "list": {"path": "/"},
        },
        **changes.pop("entity", {}),
    }
    return Config.model_validate(
        {
            "sources": {"shop": source.settings(**changes.pop("capture", {}))},
            "third_parties": {"erp": {"base_url": "http://127.0.0.1:1", "timeout": 5, "search_lag": 0}},
            "entities": {"item": entity},
            "alerts": {"group_wait": 0},
            **changes,
        }
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(stream_module, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(stream_module, "_LEASE_WAIT_SECONDS", 0.05)


@contextmanager
def reading(engine: Engine, config: Config, name: str = "shop") -> Iterator[StreamReader]:
    """A reader at work in a thread; when the block is left it was asked to stop, and has."""
    stop = threading.Event()
    reader = StreamReader(engine, config, name, stop)
    thread = threading.Thread(target=reader.run)
    thread.start()
    try:
        yield reader
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def eventually(check: Callable[[], Any], what: str) -> None:
    """Waits for another thread's or process's doing."""
    ends = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < ends, f"{what} did not come about"
        time.sleep(0.02)


def begun(engine: Engine, config: Config, source: AnySource) -> None:
    """Has the stream begin, so that what is written from now on is captured."""
    with reading(engine, config):
        eventually(lambda: is_open(engine, source), "the stream")


def is_open(engine: Engine, source: AnySource) -> bool:
    found = source.find_slot()
    return found is not None and found[0] and bool(query(engine, "SELECT FROM sync.streams WHERE position <> ''"))


def query(engine: Engine, statement: str, **parameters: Any) -> Any:
    with engine.begin() as connection:
        return run(connection, statement, **parameters)


def recorded(engine: Engine) -> list[Any]:
    """All change events, in their order."""
    return list(
        query(
            engine,
            "SELECT seq, event_id, entity, key, group_key, action, version, thin, data, origin, content_hash "
            "FROM sync.events ORDER BY seq",
        )
    )


def received(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).received


def open_alerts(engine: Engine, kind: str) -> list[tuple[str, Any]]:
    return [
        (row.title, row.examples)
        for row in query(
            engine,
            "SELECT title, examples FROM sync.alerts WHERE resolved_at IS NULL AND kind = %(kind)s",
            kind=kind,
        )
    ]

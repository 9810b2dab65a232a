"""Commands that only look: they read by psycopg alone, and see what the engine would see."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, make_url
from world import World

from sync_orchestrator import composition
from sync_orchestrator.core.db import connections
from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.db.session_settings import add_settings
from sync_orchestrator.core.operations import records
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.database import reading, running_server

URLS = [
    "postgresql://u:p@db.example.org/sync",
    "postgresql+psycopg://u:p%40ss%3A%2F@db.example.org:6543/sync?sslmode=require&connect_timeout=3",
    "postgresql+psycopg2://u@/sync?host=%2Frun%2Fpostgres",
    "postgresql://db.example.org/sync?application_name=my+own&options=-c%20work_mem%3D5MB",
    "postgresql://u:p@[::1]:5432/sync",
]


@pytest.mark.parametrize("url", URLS)
def test_an_ordinary_url_means_what_it_means_to_the_engine(url: str) -> None:
    login = reading.login_of(url)
    assert login is not None
    add_settings(login)
    engine_url = make_url(url).set(drivername="postgresql+psycopg")
    assert _as_text(login) == _as_text(connections.build_arguments(connections.with_settings(engine_url)))


def _as_text(parameters: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in parameters.items()}


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u@h/d",
        "no url",
        "postgresql://u:p@ss@h/d",
        "postgresql://a,b/d",
        "postgresql://u@/d?host=a&host=b",
        "postgresql://u@h/d?what_is_this=1",
        "postgresql://h:port/d",
    ],
)
def test_any_other_url_is_left_to_the_engine(url: str) -> None:
    assert reading.login_of(url) is None


@pytest.fixture
def reader(engine: Engine) -> Iterator[Engine]:
    login = reading.login_of(engine.url.render_as_string(hide_password=False))
    assert login is not None
    opened = reading.open_for_reading(login)
    assert opened is not None
    yield opened
    opened.dispose()


def test_rows_are_those_of_the_engine(world: World, reader: Engine) -> None:
    world.put_record("a")
    for read in (lambda connection: records.read_biography(connection, "item", "a"), _values):
        with world.engine.begin() as connection:
            expected = read(connection)
        with reader.begin() as connection:
            assert read(connection) == expected
    seen, expected_status = collect_status(reader), collect_status(world.engine)
    assert {name: seen[name] for name in ("events", "records", "groups", "dead")} == {
        name: expected_status[name] for name in ("events", "records", "groups", "dead")
    }


def _values(connection: Any) -> Any:
    rows = run(
        connection,
        """
        SELECT %(list)s::text[] AS list, %(json)s::jsonb AS json, '\\x00ff'::bytea AS bytes, 1234567890123456789.5 AS n,
               now() - now() AS span, NULL AS nothing, '100%%' AS percent
        """,
        list=["a", 'b"\\', None],
        json=to_jsonb({"a": [1, 2.5, None]}),
    )
    assert rows[0].percent == rows[0][-1] == "100%"
    with pytest.raises(AttributeError):
        _ = rows[0].no_such_column
    return [dict(row._mapping) for row in rows]


def test_nothing_can_be_written(reader: Engine) -> None:
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction), reader.begin() as connection:
        run(connection, "DELETE FROM sync.entities")


def test_a_database_without_our_tables_is_left_to_the_engine(server_url: str) -> None:
    name = f"reading_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(server_url.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        try:
            url = make_url(server_url).set(database=name).render_as_string(hide_password=False)
            login = reading.login_of(url)
            assert login is not None
            assert reading.open_for_reading(login) is None
        finally:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def test_a_server_that_does_not_run_is_left_to_the_engine(tmp_path: Path) -> None:
    assert running_server.find_login(tmp_path) is None
    (tmp_path / "postmaster.pid").write_text(f"1\n{tmp_path}\n0\n5432\n{tmp_path}\n\n0\nstarting\n")
    assert running_server.find_login(tmp_path) is None
    (tmp_path / "postmaster.pid").write_text(f"1\n{tmp_path}\n0\n5432\n{tmp_path}\n\n0\nready\n")
    private = tmp_path.parent / f"{tmp_path.name}.private"
    private.mkdir()
    (private / "password").write_text("word\n")
    login = running_server.find_login(tmp_path)
    assert login == {"host": str(tmp_path), "port": "5432", "user": "postgres", "password": "word", "dbname": "sync"}
    assert reading.open_for_reading(login) is None  # the file is a killed server's


def test_the_embedded_server_is_read_where_it_runs(monkeypatch: pytest.MonkeyPatch, engine: Engine) -> None:
    monkeypatch.delenv("SYNC_DATABASE_URL", raising=False)
    login = reading.login_of(engine.url.render_as_string(hide_password=False))
    monkeypatch.setattr(running_server, "find_login", lambda folder: login)
    monkeypatch.setattr(composition, "open_database", lambda: pytest.fail("the engine was opened"))
    opened = composition.open_database_to_read()
    with opened.begin() as connection:
        assert run(connection, "SELECT current_database() AS name")[0].name == engine.url.database
    opened.dispose()

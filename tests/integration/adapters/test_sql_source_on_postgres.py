"""SQL sources on Postgres, and full syncs from a table."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from http_server import failure_of
from sql_sources import BASE, database, listed, only, part
from sql_sources import run as run
from sql_sources import url as url
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.errors import Failure


async def test_a_server_that_falls_silent_keeps_no_thread(database_url: str) -> None:
    """It lets go of the connection, whatever its driver waits for."""
    found = database(database_url, connections=1)
    found._patience = 0.3

    def silent(connection: Any) -> None:
        connection.exec_driver_sql("SET statement_timeout = 0")
        connection.exec_driver_sql("SELECT pg_sleep(60)")

    failure = await failure_of(found.run_on_connection("table items", silent))
    assert failure.kind is Failure.TRANSIENT
    for thread in [thread for thread in threading.enumerate() if thread.name == "sql-source"]:
        await asyncio.to_thread(thread.join, 10)
        assert not thread.is_alive()
    await found.close()


async def test_values_of_postgres_as_json(database_url: str) -> None:
    query = """SELECT 'a' AS sku, 'A' AS store, timestamptz '2026-01-01 01:00:00+01' AS v,
        1.50::numeric AS price, 12345678901234567890.12::numeric AS exact, 3.00::numeric AS whole,
        'NaN'::numeric AS nan, 1.5::float8 AS ratio, true AS yes,
        timestamp '2026-01-01 02:00' AS naive, date '2026-01-02' AS day,
        time '10:30' AS hour, interval '1.5 s' AS lasts, '\\xff00'::bytea AS raw,
        '{"a": [1, null, 0.1000000000000000055]}'::jsonb AS doc,
        ARRAY[1.5, 2]::numeric[] AS list, '0191d7a2-0000-7000-8000-000000000001'::uuid AS id, inet '10.0.0.1' AS host,
        NULL::text AS nothing"""
    source = SqlSource(
        database(database_url), part(sql={"table": None, "query": query}, version={"path": "v"}, zone="Europe/Berlin")
    )
    row = only(await source.read_many(["a"]))
    await source.close()
    assert row.version == BASE
    assert row.data == {
        "sku": "a",
        "store": "A",
        "v": "2026-01-01T00:00:00Z",
        "price": 1.5,
        "exact": Decimal("12345678901234567890.12"),
        "whole": 3,
        "nan": "NaN",
        "ratio": 1.5,
        "yes": True,
        "naive": "2026-01-01T01:00:00Z",
        "day": "2026-01-02",
        "hour": "10:30:00",
        "lasts": 1.5,
        "raw": "/wA=",
        "doc": {"a": [1, None, Decimal("0.1000000000000000055")]},
        "list": [1.5, 2],
        "id": "0191d7a2-0000-7000-8000-000000000001",
        "host": "10.0.0.1",
        "nothing": None,
    }


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("uuid", ["0191d7a2-0000-7000-8000-000000000001", "f191d7a2-0000-7000-8000-000000000001"]),
        ("numeric", ["2", "10.5", "11"]),
        ("char(3)", ["abc", "abd"]),
        ("mood", ["sad", "glad"]),
        ("bigint", ["9", "10"]),
    ],
)
async def test_types_of_keys_in_postgres(database_url: str, kind: str, keys: list[str]) -> None:
    """Each in its own order: an enum's is that of its making."""
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TYPE mood AS ENUM ('sad', 'glad')"))
        connection.execute(text(f"CREATE TABLE items (sku {kind} PRIMARY KEY, store text, v bigint)"))
        for key in keys:
            connection.execute(text(f"INSERT INTO items VALUES ('{key}', 'A', 1)"))
    engine.dispose()
    source = SqlSource(database(database_url), part(sql={"page": 1}))
    assert await listed(source) == [[key] for key in keys]
    assert await listed(source, after=keys[0]) == [[key] for key in keys[1:]]
    assert only(await source.read_many([keys[0]])).key == keys[0]
    await source.close()


async def test_keys_that_have_no_plain_text(database_url: str) -> None:
    source = SqlSource(
        database(database_url), part(sql={"table": None, "query": "SELECT now() AS sku, 'A' AS store, 1 AS v"})
    )
    failure = await failure_of(source.read("a"))
    assert failure.kind is Failure.PERMANENT
    assert "its key is a datetime" in failure.detail
    await source.close()


async def test_a_connection_that_was_cut_is_replaced(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE items AS SELECT 'a' AS sku, 'A' AS store, 1 AS v"))
    source = SqlSource(database(database_url, connections=1), part())
    assert await source.read("a") is not None
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                "AND datname = current_database()"
            )
        )
    engine.dispose()
    assert await source.read("a") is not None
    await source.close()


async def test_a_login_that_is_refused(database_url: str) -> None:
    url = make_url(database_url).set(username="nobody", password="pass-word").render_as_string(hide_password=False)
    source = SqlSource(database(url), part())
    failure = await failure_of(source.read("a"))
    assert failure.kind is Failure.AUTH
    assert "pass-word" not in failure.detail
    await source.close()


async def test_a_table_that_may_not_be_read(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE items AS SELECT 'a' AS sku, 'A' AS store, 1 AS v"))
        connection.execute(text("CREATE ROLE reader_of_nothing LOGIN PASSWORD 'pass-word'"))
    url = make_url(database_url).set(username="reader_of_nothing", password="pass-word")
    source = SqlSource(database(url.render_as_string(hide_password=False)), part())
    assert (await failure_of(source.read("a"))).kind is Failure.AUTH
    await source.close()
    with engine.begin() as connection:
        connection.execute(text("DROP ROLE reader_of_nothing"))
    engine.dispose()


def test_a_table_larger_than_a_page_is_synced(tmp_path: Path, make_world: Callable[..., Any]) -> None:
    """Filled, taken up again, and what is gone there deleted: in numbers' order, which is not that of texts."""
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE items (sku INTEGER PRIMARY KEY, store TEXT, v INTEGER, name TEXT)")
        connection.executemany("INSERT INTO items VALUES (?, 'A', 1, 'n')", [(n,) for n in range(1, 31)])
        connection.commit()
        world = make_world()
        source = SqlSource(database(f"sqlite:///{path}"), part(sql={"page": 7}))
        world.context.entities["item"].sources["shop"] = source
        for n in range(1, 31):
            world.stock.put(str(n), {"key": str(n), "count": n, "v": 0})
        world.run_full_sync()
        assert len(world.erp.store) == 30
        connection.execute("DELETE FROM items WHERE sku IN (3, 20)")
        connection.execute("UPDATE items SET name = 'new', v = 2 WHERE sku = 10")
        connection.commit()
        world.run_full_sync()
    asyncio.run(source.close())
    assert {record["code"] for record in world.erp.store.values()} == {str(n) for n in range(1, 31) if n not in (3, 20)}
    assert world.mirror_by_key()["10"]["name"] == "new"

"""SQL sources on SQLite files and on Postgres: pages in the database's own order, values as JSON, failures classed."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from http_server import failure_of
from pydantic import ValidationError
from sql_sources import BASE, Run, database, items, listed, only, part
from sql_sources import run as run
from sql_sources import url as url

from sync_orchestrator.adapters.factory import build_sources
from sync_orchestrator.adapters.sql import source as sql_source
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import Config
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.errors import ConfigError, Failure

Make = Callable[..., SqlSource]


@pytest.fixture
async def make(url: str) -> AsyncIterator[Make]:
    """Makes a source on it; keyword arguments change its part."""
    made: list[SqlSource] = []

    def source(system: dict[str, Any] | None = None, **changes: Any) -> SqlSource:
        made.append(SqlSource(database(url, **system or {}), part(**changes)))
        return made[-1]

    yield source
    for each in made:
        await each.close()


# Pages.


async def test_pages_follow_the_key(run: Run, make: Make) -> None:
    items(run, [f"'k{n:02}'" for n in range(7)])
    source = make(sql={"page": 3})
    assert await listed(source) == [["k00", "k01", "k02"], ["k03", "k04", "k05"], ["k06"]]
    assert [position async for _, position in source.pages("A")] == ["k02", "k05", "k06"]
    assert await listed(source, after="k04") == [["k05", "k06"]]
    assert await listed(source, "none") == []
    assert source.keyset_listing
    assert source.can_read


async def test_a_full_last_page_ends_the_listing(run: Run, make: Make) -> None:
    items(run, ["'a'", "'b'"])
    assert await listed(make(sql={"page": 2})) == [["a", "b"]]


@pytest.mark.parametrize("page", [1, 2, 3])
@pytest.mark.parametrize(
    ("url", "kind", "keys"),
    [
        ("sqlite", "TEXT COLLATE NOCASE", ["A", "a", "b", "B", "c", "C"]),
        ("sqlite", "TEXT", ["a", "b", "b", "b", "c"]),
        ("postgresql", "TEXT", ["a", "b", "b", "b", "c"]),
        ("postgresql", "INTEGER", ["1", "1", "1", "1", "1"]),
    ],
    indirect=["url"],
)
async def test_rows_of_equal_keys_are_not_lost_at_the_end_of_a_page(
    run: Run, make: Make, page: int, kind: str, keys: list[str]
) -> None:
    items(run, [f"'{key}'" for key in keys], kind=kind, unique=False)
    source = make(sql={"page": page})
    pages = [(rows, position) async for rows, position in source.pages("A")]
    found = [row for rows, _ in pages for row in rows]
    assert sorted(row.key for row in found) == sorted(set(keys))
    assert {row.key for row in found if row.problem} == {key for key in keys if keys.count(key) > 1}
    for number, (_, position) in enumerate(pages):
        behind = [row.key for rows, _ in pages[number + 1 :] for row in rows]
        assert [row.key async for rows, _ in source.pages("A", position) for row in rows] == behind


STRANGE = ["a\x00", "\ud800", str(2**63), str(-(2**63) - 1), "9" * 5000, "1e3", "", " "]


@pytest.mark.parametrize("kind", ["TEXT", "INTEGER"])
async def test_keys_that_cannot_be_there_spoil_no_other(run: Run, make: Make, kind: str) -> None:
    items(run, ["'7'"], kind=kind)
    assert [row.key for row in await make().read_many([*STRANGE, "7"])] == ["7"]


@pytest.mark.parametrize(("dialect", "there"), [("mysql", True), ("oracle", True), ("sqlite", False)])
def test_a_whole_number_of_more_than_64_bits_is_a_key_where_the_database_can_hold_it(dialect: str, there: bool) -> None:
    """A key that is not asked for looks like one that the source no longer has."""
    connection: Any = SimpleNamespace(dialect=SimpleNamespace(name=dialect))
    assert (sql_source._convert_value(connection, int, str(2**63 + 7)) == 2**63 + 7) is there


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_text_that_is_no_utf_8_spoils_its_row_alone(run: Run, make: Make) -> None:
    items(run, ["'a'", "'b'"])
    run("ALTER TABLE items ADD COLUMN name TEXT")
    run("UPDATE items SET name = CAST(X'FF41' AS TEXT) WHERE sku = 'a'")
    rows = [row async for page, _ in make().pages("A") for row in page]
    good, bad = sort_out(rows)
    assert ([row.key for row in good], [(row.key, row.problem) for row in bad]) == (
        ["b"],
        [("a", "a text holds a lone surrogate")],
    )


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
async def test_times_without_end_spoil_their_row_alone(run: Run, make: Make, kind: str) -> None:
    items(run, ["'a'", "'b'", "'c'"])
    run(f"ALTER TABLE items ADD COLUMN at {kind} DEFAULT '2026-01-01'")
    run("UPDATE items SET at = 'infinity' WHERE sku = 'a'")
    run("UPDATE items SET at = '20000-01-01' WHERE sku = 'c'")
    rows = {row.key: row async for page, _ in make(version={"path": "at"}).pages("A") for row in page}
    assert rows["b"].version == BASE
    assert "no version at 'at': 'infinity'" in str(rows["a"].problem)
    assert "no version at 'at': '20000-01-01" in str(rows["c"].problem)


async def test_slow_reads_wait_for_each_other_rather_than_fail(run: Run, make: Make) -> None:
    """Ten times as many at once as it has connections."""
    items(run, ["'a'"])
    source = make({"connections": 2, "timeout": 20})
    found = await asyncio.gather(*(source.read_many(["a"]) for _ in range(20)))
    assert all(only(rows).key == "a" for rows in found)


async def test_a_server_that_says_nothing_is_given_up_for_now() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        found = database(f"postgresql+psycopg://u@127.0.0.1:{silent.getsockname()[1]}/d", connections=1)
        found._patience = 0.2
        for _ in range(3):  # more than it has connections
            failure = await failure_of(found.run_on_connection("table items", lambda connection: None))
            assert (failure.kind, failure.detail) == (Failure.TRANSIENT, "table items: no answer within 0.2 s")
        await found.close()


async def test_numbers_as_keys_are_in_the_order_of_numbers(run: Run, make: Make) -> None:
    items(run, [str(n) for n in range(8, 13)], kind="INTEGER")
    source = make(sql={"page": 2})
    assert await listed(source) == [["8", "9"], ["10", "11"], ["12"]]
    assert await listed(source, after="9") == [["10", "11"], ["12"]]
    assert [row.key for row in await source.read_many(["12", "8", "7", "08", "x", "12x", "8.0", ""])] == ["8", "12"]


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)  # the embedded Postgres knows no order but code points
async def test_texts_are_in_the_order_of_their_collation(run: Run, make: Make) -> None:
    items(run, ["'B'", "'a'", "'_c'", "'A1'", "'é'", "'Z'"], kind="TEXT COLLATE NOCASE")
    source = make(sql={"page": 2})
    keys = list(itertools.chain(*await listed(source)))
    assert sorted(keys) == sorted(["B", "a", "_c", "A1", "é", "Z"])
    assert keys.index("a") < keys.index("B") < keys.index("Z")
    for at, key in enumerate(keys):
        assert list(itertools.chain(*await listed(source, after=key))) == keys[at + 1 :]


async def test_rows_added_and_removed_meanwhile_shift_nothing(run: Run, make: Make) -> None:
    items(run, [f"'{letter}'" for letter in "bdfh"])
    seen = []
    async for rows, _ in make(sql={"page": 2}).pages("A"):
        seen += [row.key for row in rows]
        if seen == ["b", "d"]:
            run("INSERT INTO items VALUES ('a', 'A', 9)")
            run("DELETE FROM items WHERE sku = 'b'")
    assert seen == ["b", "d", "f", "h"]


async def test_rows_without_a_key_are_no_records(run: Run, make: Make) -> None:
    run("CREATE TABLE items (sku TEXT, store TEXT, v BIGINT)")
    run("INSERT INTO items VALUES (NULL, 'A', 1), ('a', 'A', 1)")
    source = make()
    assert await listed(source) == [["a"]]
    assert await source.count("A") == 1


async def test_a_query_in_place_of_a_table(run: Run, make: Make) -> None:
    """With a colon, a percent sign, a comment and a semicolon in it."""
    items(run, ["'a:b'", "'a%c'", "'x'"])
    query = "SELECT sku, store, v, '50 % :off' AS note FROM items WHERE sku LIKE 'a%' -- not x\n -- :that;"
    source = make(sql={"table": None, "query": query, "page": 1})
    assert await listed(source) == [["a%c"], ["a:b"]]
    assert only(await source.read_many(["a:b"])).data["note"] == "50 % :off"
    assert (await source.count("A"), await source.groups()) == (2, ["A"])


async def test_a_table_in_a_schema(url: str, run: Run, make: Make) -> None:
    if url.startswith("postgresql"):
        run('CREATE SCHEMA "Back office"')
        run('CREATE TABLE "Back office"."Item" (sku TEXT, store TEXT, v BIGINT)')
        run("""INSERT INTO "Back office"."Item" VALUES ('a', 'A', 1)""")
        assert await listed(make(sql={"table": "Back office.Item"})) == [["a"]]
    else:
        items(run, ["'a'"])
        assert await listed(make(sql={"table": "main.items"})) == [["a"]]


# By key.


async def test_read_by_key(run: Run, make: Make) -> None:
    items(run, ["'it''s'", "'a,b'", "'%'"])
    source = make(read_many_size=2)
    assert sorted(row.key for row in await source.read_many(["it's", "a,b", "%", "none"])) == ["%", "a,b", "it's"]
    assert await source.read("a,b") == PartRead("a,b", 2, {"sku": "a,b", "store": "A", "v": 2}, "A")
    assert await source.read("A,B") is None
    assert await source.read_many([]) == []


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
async def test_a_collation_that_takes_one_key_for_another(run: Run, make: Make) -> None:
    items(run, ["'a'"], kind="TEXT COLLATE NOCASE")
    row = await make().read("A")
    assert row is not None
    assert (row.key, row.problem) == (
        "A",
        "the source knows this record as 'a', not 'A': notifications and other parts must use its spelling",
    )


async def test_an_empty_table_has_nothing(run: Run, make: Make) -> None:
    items(run, [])
    source = make()
    assert (await source.read("a"), await listed(source), await source.count("A"), await source.groups()) == (
        None,
        [],
        0,
        [],
    )
    run("INSERT INTO items VALUES ('a', 'A', 1)")
    assert await source.read("a") is not None
    assert await listed(source) == [["a"]]


async def test_groups_and_counts(run: Run, make: Make) -> None:
    run("CREATE TABLE items (sku TEXT PRIMARY KEY, store INTEGER, v BIGINT)")
    run("INSERT INTO items VALUES ('a', 1, 1), ('b', 2, 1), ('c', 2, 1), ('d', NULL, 1)")
    source = make()
    assert sorted(await source.groups() or []) == ["1", "2"]
    assert [await source.count(group) for group in ("1", "2", "3", "x")] == [1, 2, 0, 0]
    assert await listed(source, "2") == [["b", "c"]]
    assert only(await source.read_many(["d"])).group is None


async def test_groups_that_come_after_records_without_any(run: Run, make: Make) -> None:
    items(run, ["'a'"], store="NULL")
    source = make()
    assert await listed(source) == []
    run("UPDATE items SET store = 'A'")
    assert await listed(source) == [["a"]]


async def test_a_part_without_groups_is_listed_whole(run: Run, make: Make) -> None:
    items(run, ["'a'"])
    source = make(group=None)
    assert (await listed(source, "any"), await source.count("any"), await source.groups()) == ([["a"]], None, None)


# Values.


async def test_rows_that_are_deleted_logically(run: Run, make: Make) -> None:
    items(run, ["'a'", "'b'"])
    source = make(deleted_when="v == `2`")
    assert [row.deleted for row in await source.read_many(["a", "b"])] == [False, True]


@pytest.mark.parametrize(
    ("told", "zone", "version"),
    [
        ("2026-01-01 00:00:00", "UTC", BASE),
        ("2026-01-01 01:00:00.000001", "Europe/Berlin", BASE + 1),
        ("2026-07-01 02:00:00", "Europe/Berlin", BASE + 181 * 86_400_000_000),
    ],
)
async def test_versions_that_are_times_without_a_zone(run: Run, make: Make, told: str, zone: str, version: int) -> None:
    run("CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v TIMESTAMP)")
    run(f"INSERT INTO items VALUES ('a', 'A', '{told}')")
    assert only(await make(version={"path": "v"}, zone=zone).read_many(["a"])).version == version


async def test_a_row_without_a_version_cannot_be_used(run: Run, make: Make) -> None:
    items(run, ["'a'", "'b'"])
    run("UPDATE items SET v = NULL WHERE sku = 'a'")
    [(rows, _)] = [page async for page in make().pages("A")]
    assert [(row.key, row.problem) for row in rows] == [("a", "no version at 'v': None is no number"), ("b", None)]


# Nothing is written, nothing is waited for without end.


async def test_it_cannot_write(url: str, run: Run, make: Make) -> None:
    items(run, ["'a'"])
    told = database(url)
    failure = await failure_of(told.run_on_connection("table items", lambda c: c.exec_driver_sql("DELETE FROM items")))
    assert failure.kind in (Failure.TRANSIENT, Failure.PERMANENT)
    assert "read" in failure.detail
    await told.close()
    assert await listed(make()) == [["a"]]


async def test_a_statement_that_takes_too_long_is_stopped(url: str, make: Make) -> None:
    slow = (
        "SELECT pg_sleep(60)"
        if url.startswith("postgresql")
        else "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    )
    told = database(url, timeout=0.2)
    failure = await failure_of(
        asyncio.wait_for(told.run_on_connection("x", lambda c: c.exec_driver_sql(slow).all()), 20)
    )
    assert failure.kind is Failure.TRANSIENT
    await told.close()


async def test_no_more_connections_than_allowed(url: str, run: Run, make: Make) -> None:
    items(run, [f"'{n}'" for n in range(30)])
    source = make({"connections": 2}, read_many_size=1)
    rows = await asyncio.gather(*(source.read(str(n)) for n in range(30)))
    assert all(rows)


async def test_it_can_be_used_again_after_it_was_closed(run: Run, make: Make) -> None:
    items(run, ["'a'"])
    source = make()
    assert await source.read("a") is not None
    await source.close()
    assert await source.read("a") is not None


async def test_a_table_that_gets_a_column_meanwhile(run: Run, make: Make) -> None:
    items(run, ["'a'"])
    source = make({"connections": 1})
    for _ in range(10):
        assert await source.read("a") is not None
    run("ALTER TABLE items ADD COLUMN more TEXT")
    assert "more" in only(await source.read_many(["a"])).data


# Failures.


async def test_a_table_that_is_not_there(make: Make) -> None:
    failure = await failure_of(make().read("a"))
    assert failure.kind is Failure.PERMANENT
    assert failure.detail in ("table items: no such table: items", 'table items: relation "items" does not exist')


@pytest.mark.parametrize(
    ("changes", "place"),
    [({"key": "Nosuch"}, "key"), ({"group": "Nosuch"}, "group"), ({"version": {"path": "Nosuch"}}, "version.path")],
)
async def test_a_column_that_is_not_there(run: Run, make: Make, changes: dict[str, Any], place: str) -> None:
    """SQLite takes a quoted name that it does not know for a text, so a missing column would go unnoticed."""
    items(run, ["'a'"])
    failure = await failure_of(listed(make(**changes)))
    assert failure.kind is Failure.PERMANENT
    assert failure.detail == f"table items has no column 'Nosuch', which {place} names; it has sku, store, v"


async def test_a_query_that_is_none(make: Make) -> None:
    failure = await failure_of(make(sql={"table": None, "query": "SELEKT 1"}).read("a"))
    assert failure.kind is Failure.PERMANENT
    assert failure.detail.startswith("the query of sql.query: ")


async def test_a_database_that_does_not_answer(tmp_path: Path) -> None:
    for address in ("postgresql+psycopg://u:pass-word@127.0.0.1:1/x", f"sqlite:///{tmp_path}/none.db"):
        source = SqlSource(database(address), part())
        failure = await failure_of(source.read("a"))
        assert failure.kind is Failure.TRANSIENT
        assert "pass-word" not in failure.detail
        await source.close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("nonsense", "this is no database URL"),
        ("sqlserverish://h/x", "nothing installed knows 'sqlserverish'"),
        ("mysql+mysqldb://u:pass-word@h/x", "needs the driver 'MySQLdb', which is not installed"),
        ("sqlite+aiosqlite:///x", "aiosqlite"),
        ("postgresql+psycopg_async://h/x", "asynchronous"),
    ],
)
def test_urls_that_cannot_be_used(url: str, told: str) -> None:
    with pytest.raises(ConfigError, match=r"^sources\.shop\.url: ") as caught:
        database(url)
    assert told in str(caught.value)
    assert "pass-word" not in str(caught.value)


# By configuration.


def config(url: str, *, extra: dict[str, Any] | None = None) -> Config:
    return Config.model_validate(
        {
            "sources": {"shop": {"kind": "sql", "url": url}},
            "third_parties": {"erp": {"base_url": "http://127.0.0.1:1"}},
            "entities": {
                "item": {
                    "owner": "shop",
                    "mapping": {"code": "key"},
                    "parts": {
                        "shop": {
                            "key": "sku",
                            "version": {"path": "v", "kind": "number"},
                            "group": "store",
                            "sql": {"table": "items"},
                            **(extra or {}),
                        }
                    },
                    "third_party": {
                        "system": "erp",
                        "ids": "ours",
                        "key_field": "code",
                        "read": {"path": "/{{ id }}"},
                        "list": {"path": "/"},
                        "update": {"method": "PUT", "path": "/{{ id }}"},
                        "delete": {"method": "DELETE", "path": "/{{ id }}"},
                    },
                }
            },
        }
    )


async def test_a_source_by_configuration(url: str, run: Run) -> None:
    items(run, ["'a'"])
    source = build_sources(config(url))["item"]["shop"]
    assert await source.read("a") is not None
    await source.close()


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"sql": None}, "'sql' is needed"),
        ({"list": {"path": "/"}}, "'list' does not belong"),
        ({"read": {"path": "/"}}, "'read' is a call of a source system of kind rest"),
        ({"poll_every": 5}, "'poll_every' has no effect without 'changes': say changes: {by: column}"),
        ({"changes": {"path": "/"}}, "'changes' is a call of a source system of kind rest"),
        ({"changes": {"by": "log"}, "overlap": 5}, "'overlap' has no effect with changes by 'log'"),
        ({"key": "a.b"}, "key must be a column's name"),
        ({"zone": "Europe/Bonn"}, "there is no time zone 'Europe/Bonn'"),
        ({"sql": {"table": "a", "query": "b"}}, "say 'table' or 'query'"),
    ],
)
def test_configurations_that_are_refused(extra: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        config("sqlite:///x", extra=extra)


# Keys.


async def test_keys_and_versions_are_read_without_the_other_columns(run: Run, make: Make) -> None:
    run("CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v BIGINT, gone BOOLEAN, picture TEXT)")
    for number in range(5):
        run(f"INSERT INTO items VALUES ('k{number}', 'A', {number}, {str(number == 1).lower()}, 'large')")
    source = make(sql={"page": 2})
    rows = [row for page in [page async for page in source.keys("A")] for row in page]
    assert [(row.key, row.version, row.group, set(row.data)) for row in rows] == [
        (f"k{number}", number, "A", {"sku", "store", "v"}) for number in range(5)
    ]
    logically = make(sql={"page": 2}, deleted_when="gone")
    assert [row.key for page in [page async for page in logically.keys("A")] for row in page if row.deleted] == ["k1"]

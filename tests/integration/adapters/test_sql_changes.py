"""``changes: {by: column}``: a database is polled by its version column, and no long transaction outruns a poll."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from outboxes import database_of
from sql_sources import BASE, database
from sqlalchemy import Connection, Engine, create_engine, text
from world import World

from sync_orchestrator.adapters.containment import ContainedSource, Containment
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import PartSettings
from sync_orchestrator.core.intake.polling import Polled, poll_due
from sync_orchestrator.core.ports import OpenTransactions
from sync_orchestrator.errors import CallFailed

SECOND = 1_000_000
NOW = {
    "postgresql": "now()",
    "mysql": "now(6)",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
}


class Shop:
    """A database with the table ``items``."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.engine: Engine = create_engine(url, **({} if kind == "sqlite" else {"pool_size": 20}))
        self.database = database(url)

    def run(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for statement in statements:
                connection.execute(text(statement))

    def table(self, kind: str, *values: str) -> None:
        """A table with a version column of a kind, and a row for each value."""
        self.run(f"CREATE TABLE items (sku varchar(20) PRIMARY KEY, store varchar(20), name varchar(20), v {kind})")
        for number, value in enumerate(values):
            self.run(f"INSERT INTO items VALUES ('k{number}', 'A', 'n', {value})")

    def source(self, *, page: int = 2, **changes: Any) -> SqlSource:
        settings = {"key": "sku", "group": "store", "version": {"path": "v"}, "changes": {"by": "column"}}
        sql = {"table": "items", "page": page}
        return SqlSource(self.database, PartSettings.model_validate({**settings, "sql": sql, **changes}))


@pytest.fixture(params=["postgresql", "mysql", "sqlite"])
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with database_of(request.param, request, tmp_path) as url:
        made = Shop(request.param, url)
        yield made
        made.engine.dispose()
        asyncio.run(made.database.close())


@pytest.fixture
def postgres_shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    with database_of("postgresql", request, tmp_path) as url:
        made = Shop("postgresql", url)
        yield made
        made.engine.dispose()


async def changed(source: SqlSource, since: int) -> list[list[str]]:
    return [[row.key for row in rows] async for rows in source.changes(since)]


# Pages --------------------------------------------------------------------------------------------------------------


async def test_changes_come_in_pages_in_the_order_of_version_and_key(shop: Shop) -> None:
    shop.table("bigint", "9", "7", "7", "7", "5", "NULL")
    source = shop.source(version={"path": "v", "kind": "number"})
    assert source.can_poll
    assert await changed(source, 7) == [["k1", "k2"], ["k3", "k0"]]
    assert await changed(source, 0) == [["k4", "k1"], ["k2", "k3"], ["k0"]]
    assert await changed(source, 10) == []


async def test_a_table_without_rows_has_no_changes(shop: Shop) -> None:
    shop.table("bigint")
    assert await changed(shop.source(version={"path": "v", "kind": "number"}), 0) == []


TIMES = {
    "postgresql": ["timestamptz", "timestamp", "text", "varchar(40)"],
    "mysql": ["datetime(6)", "timestamp(6)", "varchar(40)"],
    "sqlite": ["text"],
}


async def test_times_of_every_kind_are_found_from_a_moment_on(shop: Shop) -> None:
    for kind in TIMES[shop.kind]:
        shop.table(kind, "'2026-01-01 00:00:00.5'", "'2026-01-03 00:00:00.25'", "'2026-01-03 00:00:01.75'")
        source = shop.source()
        rows = [row async for page in source.changes(BASE + 2 * 86_400 * SECOND + SECOND) for row in page]
        by_day = "char" in kind or kind == "text"  # texts are found by whole days, since their forms may differ
        assert [row.key for row in rows] == (["k1", "k2"] if by_day else ["k2"]), kind
        assert rows[-1].version == BASE + 2 * 86_400 * SECOND + 1_750_000
        assert [row.key for page in [page async for page in source.changes(0)] for row in page] == ["k0", "k1", "k2"]
        shop.run("DROP TABLE items")


async def test_dates_and_seconds_are_found_from_a_moment_on(shop: Shop) -> None:
    shop.table("date", "'2026-01-01'", "'2026-01-02'")
    assert [key for page in await changed(shop.source(), BASE + 90_000 * SECOND) for key in page][-1] == "k1"
    shop.run("DROP TABLE items")
    shop.table("bigint", "1767225600", "1767225700")
    assert await changed(shop.source(), BASE + 50 * SECOND) == [["k1"]]


async def test_times_without_a_zone_are_those_of_the_part_also_where_an_hour_comes_twice(shop: Shop) -> None:
    if shop.kind == "sqlite":
        pytest.skip("SQLite has texts")
    shop.table("timestamp" if shop.kind == "postgresql" else "datetime", "'2026-10-25 02:10:00'")
    source = shop.source(zone="Europe/Berlin")
    [[row]] = [page async for page in source.changes(0)]
    assert row.version == int(datetime(2026, 10, 25, 0, 10, tzinfo=UTC).timestamp()) * SECOND
    assert await changed(source, row.version) == [["k0"]]
    assert await changed(source, row.version + 40 * 60 * SECOND) == [["k0"]]  # it may be ten past two again
    assert await changed(source, row.version + 5 * 3600 * SECOND) == []


@pytest.mark.parametrize(
    ("value", "settings", "reason"),
    [
        ("'7'", {"version": {"path": "v", "kind": "number"}}, "its version is a str (7), whose order is not that of a"),
        ("'January'", {}, "its version is a str (January), whose order is not that of a time"),
    ],
)
async def test_a_column_of_another_order_is_refused(
    shop: Shop, value: str, settings: dict[str, Any], reason: str
) -> None:
    shop.table("varchar(20)", value)
    with pytest.raises(CallFailed) as refused:
        await changed(shop.source(**settings), 0)
    assert reason in str(refused.value)


async def test_a_column_that_is_not_there_is_named(shop: Shop) -> None:
    shop.table("bigint", "1")
    with pytest.raises(CallFailed, match=r"table items has no column 'w', which version.path names"):
        await changed(shop.source(version={"path": "w", "kind": "number"}), 0)


async def test_a_query_is_polled_by_what_it_gives(shop: Shop) -> None:
    shop.table("bigint", "3", "4")
    source = shop.source(
        version={"path": "w", "kind": "number"}, sql={"query": "SELECT sku, store, v + 10 AS w FROM items", "page": 1}
    )
    assert await changed(source, 13) == [["k0"], ["k1"]]
    assert await changed(source, 14) == [["k1"]]
    assert await source.has_version_index() is None


async def test_whether_an_index_begins_with_the_version_is_known(shop: Shop) -> None:
    shop.table("bigint", "1")
    number: dict[str, Any] = {"version": {"path": "v", "kind": "number"}}
    assert await shop.source(**number).has_version_index() is False
    shop.run("CREATE INDEX by_store ON items (store, v)")
    assert await shop.source(**number).has_version_index() is False
    shop.run("CREATE INDEX by_version ON items (v, sku)")
    assert await shop.source(**number).has_version_index() is True
    shop.run("CREATE VIEW shown AS SELECT * FROM items")
    assert await shop.source(**number, sql={"table": "shown"}).has_version_index() is None


# Open transactions --------------------------------------------------------------------------------------------------


async def test_open_transactions_are_reported(shop: Shop) -> None:
    shop.table("bigint", "1")
    source = shop.source()
    if shop.kind == "sqlite":
        assert await source.open_transactions() is None
        return
    time_passes(shop, 0.2)
    assert await source.open_transactions() == OpenTransactions()
    with shop.engine.connect() as first, first.begin(), shop.engine.connect() as second, second.begin():
        first.execute(text("SELECT * FROM items"))
        time_passes(shop, 0.2)
        before = await source.open_transactions()
        second.execute(text("INSERT INTO items VALUES ('y', 'A', 'n', 1)"))
        first.execute(text("INSERT INTO items VALUES ('x', 'A', 'n', 1)"))
        time_passes(shop, 0.2)  # which MariaDB's list lags behind
        both = await source.open_transactions()
        assert before is not None
        assert both is not None
        assert (len(before.names), len(both.names), before.names < both.names) == (1, 2, True)
    time_passes(shop, 0.2)
    assert await source.open_transactions() == OpenTransactions()


async def test_a_prepared_transaction_is_open(postgres_shop: Shop) -> None:
    postgres_shop.table("bigint", "1")
    with postgres_shop.engine.connect() as connection:
        if connection.execute(text("SHOW max_prepared_transactions")).scalar() == "0":
            pytest.skip("this server takes no prepared transactions")
    postgres_shop.run("UPDATE items SET v = 2", "PREPARE TRANSACTION 'two'")
    there = await postgres_shop.source().open_transactions()
    assert there is not None
    assert (len(there.names), there.may_have_new_names) == (1, True)
    with postgres_shop.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("COMMIT PREPARED 'two'"))


class PolledShop:
    """A world whose owner is a database that is polled."""

    def __init__(self, make_world: Callable[..., World], shop: Shop, overlap: float = 1) -> None:
        self.shop = shop
        part = {"key": "sku", "group": "store", "version": {"path": "v"}, "sql": {"table": "items"}}
        stock = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}, "required": False}
        polled = {**part, "changes": {"by": "column"}, "overlap": overlap, "poll_every": 30}
        self.world = make_world(
            entity={"parts": {"shop": polled, "stock": stock}},
            sources={"shop": {"kind": "sql", "url": shop.url}, "stock": {"base_url": "http://127.0.0.1:1"}},
        )
        self.source = SqlSource(shop.database, self.world.context.entities["item"].settings.parts["shop"])
        contained = ContainedSource(self.source, Containment("sources.shop", str))
        self.world.context.entities["item"].sources["shop"] = contained

    def poll(self) -> list[int]:
        """Polls, whatever the time; returns how many were shown and how many new."""
        with self.world.engine.begin() as connection:
            connection.execute(text("UPDATE sync.polls SET asked_at = '-infinity'"))
        [end] = asyncio.run(poll_due(self.world.context))
        assert isinstance(end, Polled), end
        return [end.shown, end.new]

    def keys(self) -> set[str]:
        """The keys of the events that were recorded."""
        with self.world.engine.begin() as connection:
            return set(connection.execute(text("SELECT DISTINCT key FROM sync.events")).scalars())


def write(connection: Connection, shop: Shop, key: str) -> None:
    """A row with the time at which its transaction began."""
    connection.execute(text(f"INSERT INTO items VALUES ('{key}', 'A', 'n', {NOW[shop.kind]})"))


@pytest.mark.slow
@pytest.mark.parametrize("is_known", [True, False])
def test_a_transaction_that_is_open_for_longer_than_the_overlap_is_not_outrun(
    make_world: Callable[..., World], shop: Shop, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the knowledge of open transactions, its row is lost: so the test would notice."""
    if shop.kind == "sqlite":
        pytest.skip("SQLite does not report its transactions")
    shop.table("timestamptz" if shop.kind == "postgresql" else "datetime(6)")
    shop.run("CREATE INDEX by_version ON items (v, sku)")
    polled = PolledShop(make_world, shop)
    if not is_known:

        async def nothing(self: SqlSource) -> None:
            return None

        monkeypatch.setattr(SqlSource, "open_transactions", nothing)
    polled.poll()
    with shop.engine.connect() as long, long.begin():
        write(long, shop, "long")
        for number in range(4):
            time_passes(shop, 1.2)
            with shop.engine.begin() as short:
                write(short, shop, f"short {number}")
            polled.poll()
        long.commit()
    polled.poll()
    assert polled.keys() == {f"short {number}" for number in range(4)} | ({"long"} if is_known else set())
    for _ in range(3):
        time_passes(shop, 0.2)
        shown, _ = polled.poll()
    assert shown <= 2  # the position has gone on: it is not all read for ever


def pause(connection: Connection, shop: Shop, seconds: float) -> None:
    """A statement that takes so long."""
    sleep = "pg_sleep" if shop.kind == "postgresql" else "sleep"
    connection.execute(text(f"SELECT {sleep}({seconds})"))


def time_passes(shop: Shop, seconds: float) -> None:
    """The source's clock goes on; nothing is awaited but that."""
    if shop.kind != "sqlite":
        with shop.engine.connect() as connection:
            pause(connection, shop, seconds)


def test_what_changed_in_a_database_is_recorded_once(make_world: Callable[..., World], shop: Shop) -> None:
    shop.table({"postgresql": "timestamptz", "mysql": "datetime(6)", "sqlite": "text"}[shop.kind])
    polled = PolledShop(make_world, shop)
    polled.poll()
    with shop.engine.begin() as connection:
        write(connection, shop, "a")
        write(connection, shop, "b")
    assert polled.poll() == [2, 2]
    assert polled.poll()[1] == 0
    assert polled.keys() == {"a", "b"}


@pytest.mark.slow
def test_rows_of_overlapping_transactions_are_all_found(make_world: Callable[..., World], shop: Shop) -> None:
    """637 rows of transactions that are open for up to five times the overlap, while polls run: none is lost."""
    if shop.kind == "sqlite":
        pytest.skip("SQLite has one writing transaction at a time")
    shop.table("timestamptz" if shop.kind == "postgresql" else "datetime(6)")
    shop.run("CREATE INDEX by_version ON items (v, sku)")
    polled = PolledShop(make_world, shop, overlap=0.2)
    left, lock = list(range(637)), threading.Lock()

    def write_rows(seed: int) -> None:
        chance = random.Random(seed)
        while True:
            count = chance.randint(1, 9)
            with lock:
                mine, left[:count] = left[:count], []
            if not mine:
                return
            with shop.engine.connect() as connection, connection.begin():
                for number in mine:
                    write(connection, shop, f"k{number}")
                pause(connection, shop, chance.random())

    polled.poll()
    writers = [threading.Thread(target=write_rows, args=(seed,)) for seed in range(12)]
    for writer in writers:
        writer.start()
    polls = 0
    while any(writer.is_alive() for writer in writers):
        polled.poll()
        polls += 1
    time_passes(shop, 0.2)
    polled.poll()
    assert polls > 5
    assert polled.keys() == {f"k{number}" for number in range(637)}
    assert polled.world.read_conservation().received == 637

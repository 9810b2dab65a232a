"""Rules from the field, on sources: errors of any kind are contained, a key is one record, absent is not null."""

from __future__ import annotations

import asyncio
import itertools
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

import psycopg
import pytest
from fakes import FakeThirdParty
from http_server import Server, failure_of
from jmespath.exceptions import JMESPathError
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.containment import ContainedSource, ContainedThirdParty, Containment
from sync_orchestrator.adapters.factory import build_sources, build_third_parties
from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.conformance import live_check
from sync_orchestrator.core.archive.absent_fields import mapped_fields
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import run as run_sql
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.plan import plan_group, ungrouped_notes
from sync_orchestrator.core.intake.polling import Polled, poll_due
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.ports import Item, PartRead, SourceSystem, ThirdParty, Ungrouped
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.core.version_guard import Action
from sync_orchestrator.errors import CallFailed, ConfigError, Failure
from sync_orchestrator.expressions.selectors import compile_selector

Execute = Callable[..., None]

MACHINE = "postgresql+psycopg://postgres@127.0.0.1:5432/test"
_numbers = itertools.count(1)


@pytest.fixture(params=["embedded", "machine"])
def postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty Postgres database: of the tests' own server, and of the machine's where there is one."""
    if request.param == "embedded":
        yield request.getfixturevalue("database_url")
        return
    owner = create_engine(MACHINE, isolation_level="AUTOCOMMIT", connect_args={"connect_timeout": 2})
    name = f"field_sources_{os.getpid()}_{next(_numbers)}"
    try:
        with owner.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
    except Exception as error:
        pytest.skip(f"no Postgres on 127.0.0.1:5432 ({type(error).__name__})")
    yield make_url(MACHINE).set(database=name).render_as_string()
    with owner.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("database_url"))
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("PRAGMA user_version = 1")
    return f"sqlite:///{tmp_path / 'shop.db'}"


def executing(url: str) -> Execute:
    def execute(*statements: str) -> None:
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(make_url(url).database or "")) as connection:
                for statement in statements:
                    connection.execute(statement)
                connection.commit()
            return
        with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)) as there:
            for statement in statements:
                there.execute(statement)

    return execute


TARGET = {
    "system": "erp",
    "key_field": "code",
    "create": {"method": "POST", "path": "/"},
    "update": {"method": "PUT", "path": "/{{ id }}"},
    "delete": {"path": "/{{ id }}"},
    "read": {"path": "/{{ id }}"},
    "list": {"path": "/"},
}
BASICS = {
    "retry": {"retries": 3, "first_wait": 10, "jitter": 0},
    "third_party": TARGET,
    "validation": {"confirm_after": 0},
    "source_check": {"confirm_after": 0},
}


def document(source: dict[str, Any], part: dict[str, Any], **more: Any) -> Config:
    """One entity ``item`` with one part ``shop``; ``more`` entities and sources of the test."""
    mapping = {"code": "key", "name": "shop.name", **more.pop("mapping", {})}
    return Config.model_validate(
        {
            "sources": {"shop": source, **more.pop("sources", {})},
            "third_parties": {"erp": {"base_url": "http://127.0.0.1:1", "timeout": 5, "search_lag": 0}},
            "entities": {
                "item": {
                    **BASICS,
                    "owner": "shop",
                    "mapping": mapping,
                    "parts": {
                        "shop": {"key": "sku", "group": "store", "version": {"path": "v", "kind": "number"}, **part}
                    },
                },
                **more.pop("entities", {}),
            },
            "alerts": {"group_wait": 0},
            **more,
        }
    )


def sql_config(url: str, **part: Any) -> Config:
    return document({"kind": "sql", "url": url}, {"sql": {"table": "items", **part.pop("sql", {})}, **part})


class Field:
    """A system assembled from a configuration, its third parties in memory."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine = engine
        self.erp = {name: FakeThirdParty(group_field=None) for name in config.entities}
        self.context: Context = build_context(engine, config, build_sources(config), dict(self.erp))

    def perform(self, work: Any) -> Any:
        async def performed() -> Any:
            try:
                return await work
            finally:
                await self.context.close()

        return asyncio.run(performed())

    def event(
        self,
        key: str,
        version: int,
        entity: str = "item",
        source: str = "shop",
        action: Action = "update",
        data: dict[str, Any] | None = None,
    ) -> None:
        record_events(
            self.engine,
            [
                ChangeEvent(
                    source,
                    f"e{next(_numbers)}",
                    entity,
                    key,
                    action,
                    version,
                    data,
                    None,
                )
            ],
        )

    def drain(self) -> Any:
        return self.perform(drain(self.context, linger=0, most_seconds=60))

    def full_sync(self, group: str = "A", entity: str = "item") -> Any:
        return self.perform(full_sync(self.context, self.context.entities[entity], group, patience=0.3))

    def names(self, entity: str = "item") -> dict[str, Any]:
        return {row["code"]: row["name"] for row in self.erp[entity].store.values()}

    def query(self, statement: str) -> Any:
        with self.engine.begin() as connection:
            return run_sql(connection, statement)


async def rows_of(source: SourceSystem, group: str = "A") -> list[PartRead]:
    return [row async for rows, _ in source.pages(group) for row in rows]


# Rule 37: whatever a port raises.

ODD = [
    NotImplementedError("can't parse timestamptz"),
    KeyError("x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
    RecursionError("too deep"),
    MemoryError(),
    OverflowError("date value out of range"),
    AttributeError("no"),
    ExceptionGroup("several", [ValueError("one")]),
    asyncio.CancelledError(),
    StopAsyncIteration(),
    AssertionError(),
    ConfigError("no base_url"),
]


class Odd:
    """An adapter of either kind that raises whatever it is given, from each method."""

    keyset_listing = can_read = can_poll = can_list_keys = True
    read_many_size, confirms_absence = 100, False
    capabilities: Any = None

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def _raise(self, *given: Any) -> Any:
        raise self.error

    read = read_many = count = groups = ungrouped = open_transactions = create = update = delete = lookup = close = (
        _raise
    )

    async def pages(self, *given: Any) -> Any:
        yield ([], None)
        raise self.error

    async def keys(self, *given: Any) -> Any:
        yield []
        raise self.error

    changes = keys


class OddThirdParty(Odd):
    pages = Odd.keys


CALLS: dict[str, tuple[Any, ...]] = {
    "read": ("a",),
    "read_many": (["a"],),
    "count": ("A",),
    "groups": (),
    "ungrouped": (),
    "open_transactions": (),
    "pages": ("A",),
    "keys": ("A",),
    "changes": (0,),
}
WRITES = {"create", "update", "delete"}
OF_THIRD_PARTY: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(WRITES | {"read"}, (Item("a", "A", {}),)),
    "lookup": ("a", "A"),
    "pages": ("A",),
    "count": ("A",),
}


async def called(port: Any, method: str, given: tuple[Any, ...]) -> None:
    came = getattr(port, method)(*given)
    if hasattr(came, "__aiter__"):
        async for _ in came:
            pass
    else:
        await came


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
async def test_rule_37_whatever_an_adapter_raises_is_the_failure_of_one_call(error: BaseException) -> None:
    containment = Containment("sources.shop", lambda shown: shown.replace("x", "***"))
    source = ContainedSource(Odd(error), containment)
    third_party = ContainedThirdParty(cast(ThirdParty, OddThirdParty(error)), containment)
    for port, calls in ((source, CALLS), (third_party, OF_THIRD_PARTY)):
        for method, given in calls.items():
            failure = await failure_of(called(port, method, given))
            assert failure.unknown == (method in WRITES and not isinstance(error, ConfigError)), method
            assert failure.kind is (Failure.PERMANENT if isinstance(error, ConfigError) else Failure.TRANSIENT)
        await port.close()


async def test_rule_37_a_failure_on_purpose_and_a_cancelled_caller_pass_through() -> None:
    refused = CallFailed(Failure.AUTH, "no")
    port = ContainedSource(Odd(refused), Containment("sources.shop", str))
    assert await failure_of(port.read("a")) is refused

    class Slow(Odd):
        async def read(self, *given: Any) -> Any:
            await asyncio.Event().wait()

    task = asyncio.create_task(ContainedSource(Slow(refused), Containment("sources.shop", str)).read("a"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_rule_37_the_log_has_the_traceback_without_secrets(caplog: pytest.LogCaptureFixture) -> None:
    containment = Containment("sources.shop", lambda shown: shown.replace("pass-word", "***"))
    failure = await failure_of(ContainedSource(Odd(KeyError("pass-word")), containment).read("a"))
    assert failure.detail.startswith("unexpected KeyError in read: '***' (test_field_sources.py, line ")
    assert "in _raise" in caplog.text
    assert "pass-word" not in caplog.text + failure.detail


def test_rule_37_every_port_is_contained(tmp_path: Path) -> None:
    config = document({"kind": "files", "folder": str(tmp_path)}, {"files": {"glob": "*.csv"}})
    assert isinstance(build_sources(config)["item"]["shop"], ContainedSource)
    assert isinstance(build_third_parties(config, {})["item"], ContainedThirdParty)


@pytest.mark.parametrize(
    ("expression", "data"),
    [
        ("sum(a)", {"a": ["x"]}),
        ("max_by(a, &b)", {"a": [{"b": 1}, {"b": "x"}]}),
        ("to_number(a)", {"a": 1}),
        ("ceil(a)", {"a": float("inf")}),
        ("abs(a)", {"a": float("nan")}),
        ("sort(a)", {"a": [1, "x"]}),
        ("a[?b < `1`]", {"a": [{"b": object()}]}),
        ("join(',', a)", {"a": [1]}),
        ("length(a)", {"a": 1}),
        ("floor(a)", {"a": float("inf")}),
    ],
)
def test_rule_37_an_expression_on_unmanaged_data_fails_in_one_way(expression: str, data: Any) -> None:
    with suppress(JMESPathError):
        compile_selector(expression).search(data)


@pytest.mark.parametrize("system", ["rest", "sql"])
async def test_rule_37_a_key_that_cannot_be_indexed_spoils_its_row_alone(
    system: str, server: Server, tmp_path: Path
) -> None:
    long = "k" * 3000
    if system == "rest":
        server.respond_with([{"sku": long, "store": "A", "v": 1}, {"sku": "b", "store": "A", "v": 1}])
        config = document({"base_url": server.url}, {"list": {"path": "/"}})
    else:
        place = f"sqlite:///{tmp_path / 'shop.db'}"
        with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
            connection.execute("CREATE TABLE items (sku TEXT, store TEXT, v INTEGER, name TEXT)")
            connection.execute("INSERT INTO items VALUES (?, 'A', 1, 'n'), ('b', 'A', 1, 'n')", (long,))
            connection.commit()
        config = sql_config(place)
    source = build_sources(config)["item"]["shop"]
    assert {row.key[:1]: row.problem for row in await rows_of(source)} == {
        "k": "the key is longer than 2000 bytes",
        "b": None,
    }
    await source.close()


# R08: the session of a source database.

LEAN = "CREATE TABLE items (sku text PRIMARY KEY, store text, v timestamptz, name text, open interval)"


def german(postgres: str, execute: Any) -> str:
    """The database of a source that writes times as no driver can read them."""
    name = make_url(postgres).database
    execute(
        f"ALTER DATABASE {name} SET datestyle = 'German, DMY'",
        f"ALTER DATABASE {name} SET intervalstyle = 'iso_8601'",
        f"ALTER DATABASE {name} SET timezone = 'America/New_York'",
        LEAN,
        "INSERT INTO items VALUES ('a', 'A', '2026-01-01 00:00Z', 'n', '1 day 2 hours')",
    )
    return postgres


async def test_case_r08_times_are_read_whatever_the_server_prefers(postgres: str) -> None:
    source = build_sources(sql_config(german(postgres, executing(postgres)), version={"path": "v"}))["item"]["shop"]
    [row] = await rows_of(source)
    assert (row.version, row.data["v"], row.data["open"], row.problem) == (
        1_767_225_600_000_000,
        "2026-01-01T00:00:00Z",
        93600,
        None,
    )
    assert await source.read("a") == row
    await source.close()


@pytest.fixture
def two(server: Server, tmp_path: Path) -> Config:
    """A SQL entity, and a healthy one over REST."""
    with closing(sqlite3.connect(tmp_path / "shop.db")) as connection:
        connection.execute("CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v INTEGER, name TEXT)")
        connection.execute("INSERT INTO items VALUES ('a', 'A', 1, 'n')")
        connection.commit()
    server.respond_with({"sku": "t1", "store": "A", "v": 5, "name": "thing"})
    rest = {
        "key": "sku",
        "group": "store",
        "version": {"path": "v", "kind": "number"},
        "list": {"path": "/"},
        "read": {"path": "/{{ key }}"},
    }
    return document(
        {"kind": "sql", "url": f"sqlite:///{tmp_path / 'shop.db'}"},
        {"sql": {"table": "items"}},
        sources={"good": {"base_url": server.url}},
        entities={
            "thing": {
                **BASICS,
                "owner": "good",
                "parts": {"good": rest},
                "mapping": {"code": "key", "name": "good.name"},
                "third_party": {
                    name: {**call, "path": f"/things{call['path']}"} if isinstance(call, dict) else call
                    for name, call in TARGET.items()
                },
            }
        },
    )


def test_case_r08_one_event_holds_up_neither_the_drain_nor_another_entity(
    two: Config, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def odd(*given: Any) -> Any:
        raise NotImplementedError("can't parse timestamptz with DateStyle 'German, DMY'")

    monkeypatch.setattr(SourceDatabase, "run_on_connection", odd)
    field = Field(engine, two)
    field.event("a", 1, action="create")
    field.event("t1", 5, "thing", "good", action="create")
    report = field.drain()
    assert report.settled.failed == 1
    assert field.names("thing") == {"t1": "thing"}
    [event] = field.query("SELECT state, error AS last_error FROM sync.events WHERE entity = 'item'")
    assert event.state == "waiting"
    assert event.last_error.startswith("unexpected NotImplementedError in read: can't parse timestamptz")
    monkeypatch.undo()
    field.query("UPDATE sync.events SET due_at = sync.clock() RETURNING seq")
    field.drain()
    assert field.names() == {"a": "n"}


@pytest.mark.parametrize("error", ODD[:3], ids=lambda error: type(error).__name__)
def test_rule_37_a_poll_of_one_source_fails_alone(two: Config, engine: Engine, error: Exception) -> None:
    field = Field(engine, two)
    healthy = field.context.entities["thing"].sources

    class Healthy(Odd):
        async def open_transactions(self) -> None:
            return None

        async def changes(self, *given: Any) -> Any:
            yield [PartRead("t1", 5, {"sku": "t1", "name": "thing"}, "A")]

    healthy["good"] = Healthy(error)

    field.context.entities["item"].sources["shop"] = Odd(error)
    ends = asyncio.run(poll_due(field.context))
    assert [type(end) for end in ends] == [CallFailed, Polled]


# Odd values of databases.

ODD_VALUES = {
    "time": "'24:00:00'",
    "timetz": "'24:00:00+02'",
    "timestamptz": "'infinity'",
    "timestamp": "'-infinity'",
    "date": "'0044-03-15 BC'",
    "interval": "'178000000 years'",
    "numeric": "'NaN'",
    "tstzrange": "'[-infinity,infinity]'",
    "timestamp[]": "'{infinity,2026-01-01}'",
    "inet": "'10.1.2.3/8'",
    "float8": "'NaN'",
    "money": "'12.34'",
    "jsonb": "'1e400'",
    "bytea": "'\\xff'",
    "tsmultirange": "'{[2026-01-01,infinity)}'",
    "bit(3)": "'101'",
    "point": "'(1,2)'",
    "date ": "'99999-01-01'",
    "timestamptz ": "'294276-12-31 23:59:59Z'",
}


async def test_rule_37_an_odd_value_spoils_at_most_its_own_row(postgres: str) -> None:
    columns = {f"c{n}": (kind, value) for n, (kind, value) in enumerate(ODD_VALUES.items())}
    executing(postgres)(
        "CREATE TABLE items (sku text PRIMARY KEY, store text, v bigint, name text, "
        + ", ".join(f"{name} {kind}" for name, (kind, _) in columns.items())
        + ")",
        "INSERT INTO items (sku, store, v) VALUES ('good', 'A', 1)",
        *(
            f"INSERT INTO items (sku, store, v, {name}) VALUES ('{name}', 'A', 1, {value})"
            for name, (_, value) in columns.items()
        ),
    )
    source = build_sources(sql_config(postgres, sql={"page": 7}))["item"]["shop"]
    listed = {row.key: row for row in await rows_of(source)}
    assert set(listed) == {"good", *columns}
    assert {key for key, row in listed.items() if row.problem} == set()
    assert {columns[key][0] for key in columns if (await source.read(key)) is None} == set()
    assert [row.problem for row in await source.read_many(["good", *columns])] == [None] * (1 + len(columns))
    shown = {columns[key][0]: listed[key].data[key] for key in columns}
    assert (shown["time"], shown["date"], shown["timestamptz"]) == ("24:00:00", "0044-03-15 BC", "infinity")
    await source.close()


async def test_rule_37_a_version_that_python_cannot_hold_spoils_its_row_alone(postgres: str) -> None:
    executing(postgres)(
        "CREATE TABLE items (sku text PRIMARY KEY, store text, v timestamptz, name text)",
        "INSERT INTO items VALUES ('a', 'A', '2026-01-01', 'n'), ('b', 'A', 'infinity', 'n'), "
        "('c', 'A', '0044-03-15 BC', 'n'), ('d', 'A', NULL, 'n')",
    )
    source = build_sources(sql_config(postgres, version={"path": "v"}))["item"]["shop"]
    rows = await rows_of(source)
    assert [row.key for row in rows if not row.problem] == ["a"]
    assert all("no version at 'v'" in (row.problem or "") for row in rows[1:])
    await source.close()


async def test_rule_37_texts_of_a_database_without_an_encoding_spoil_their_row_alone(postgres: str) -> None:
    owner = create_engine(postgres, isolation_level="AUTOCOMMIT")
    name = f"ascii_{os.getpid()}_{next(_numbers)}"
    with owner.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} ENCODING 'SQL_ASCII' TEMPLATE template0 LOCALE 'C'"))
    place = make_url(postgres).set(database=name).render_as_string(hide_password=False)
    executing(place)(
        "CREATE TABLE items (sku text PRIMARY KEY, store text, v bigint, name text)",
        "INSERT INTO items VALUES ('a', 'A', 1, E'\\xff'), ('b', 'A', 1, 'good')",
    )
    source = build_sources(sql_config(place))["item"]["shop"]
    rows = {row.key: row.data["name"] for row in await rows_of(source)}
    assert rows == {"a": "\udcff", "b": "good"}
    await source.close()
    with owner.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    owner.dispose()


async def test_a_url_that_names_a_time_zone_keeps_it(postgres: str) -> None:
    executing(postgres)(
        "CREATE TABLE items (sku text PRIMARY KEY, store text, at timestamptz)",
        "INSERT INTO items VALUES ('a', 'A', '2026-06-01 12:00Z')",
    )
    query = "SELECT sku, store, 1 AS v, '' AS name, to_char(at, 'HH24') AS hour FROM items"
    for options, hour in ({}, "12"), ({"options": "-c TimeZone=Europe/Berlin"}, "14"):
        place = make_url(postgres).update_query_dict(options).render_as_string(hide_password=False)
        source = build_sources(sql_config(place, sql={"table": None, "query": query}))["item"]["shop"]
        assert [row.data["hour"] for row in await rows_of(source)] == [hour]
        await source.close()


def test_dates_of_mysql_that_are_no_dates() -> None:
    pytest.importorskip("pymysql", reason="pymysql is not installed, nor is there a MariaDB")


# Rule 29: a key is one record (R35).

JOIN = "SELECT p.sku, p.store, p.v, p.name, c.title FROM products p JOIN categories c ON c.sku = p.sku"


def joined(execute: Any, titles: list[str], *, store: str = "A") -> None:
    execute(
        "CREATE TABLE products (sku TEXT, store TEXT, v BIGINT, name TEXT)",
        "CREATE TABLE categories (sku TEXT, title TEXT)",
        *(f"INSERT INTO products VALUES ('P{n}', '{store}', {n + 1}, 'n')" for n in range(4)),
        "INSERT INTO categories VALUES ('P0', 'Z')",
        "INSERT INTO categories VALUES ('P3', 'Z')",
        *(f"INSERT INTO categories VALUES ('P{n}', '{title}')" for n in (1, 2) for title in titles),
    )


def join_config(url: str, page: int = 1000) -> Config:
    return document({"kind": "sql", "url": url}, {"sql": {"query": JOIN, "page": page}}, mapping={"name": "shop.title"})


NOT_UNIQUE = "the key is not unique: 2 rows with key P1, which differ in title"


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
async def test_case_r35_a_key_with_two_rows_is_unusable_however_it_is_asked_for(url: str, page: int) -> None:
    joined(executing(url), ["X", "Y"])
    source = build_sources(join_config(url, page))["item"]["shop"]
    listed = {row.key: row.problem for row in await rows_of(source)}
    assert listed == {"P0": None, "P1": NOT_UNIQUE, "P2": NOT_UNIQUE.replace("P1", "P2"), "P3": None}
    keys = {row.key: row.problem for rows in [rows async for rows in source.keys("A")] for row in rows}
    assert keys == listed
    one = await source.read("P1")
    assert one is not None
    assert one.problem == NOT_UNIQUE
    assert {row.key: row.problem for row in await source.read_many(["P0", "P1"])} == {"P0": None, "P1": NOT_UNIQUE}
    assert isinstance(source, ContainedSource)
    assert await source.repeated("A") == Ungrouped(2, ("P1", "P2"))
    await source.close()


@pytest.mark.parametrize("page", [1, 2, 1000])
async def test_rule_29_rows_that_are_equal_in_everything_are_one(url: str, page: int) -> None:
    joined(executing(url), ["X", "X"])
    source = build_sources(join_config(url, page))["item"]["shop"]
    assert [(row.key, row.problem) for row in await rows_of(source)] == [(f"P{n}", None) for n in range(4)]
    assert [row.key for rows in [rows async for rows in source.keys("A")] for row in rows] == [
        f"P{n}" for n in range(4)
    ]
    one = await source.read("P1")
    assert one is not None
    assert one.data["title"] == "X"
    await source.close()


@pytest.mark.parametrize("page", [1, 1000])
async def test_rule_29_a_key_in_two_groups_is_unusable_in_both(url: str, page: int) -> None:
    executing(url)(
        "CREATE TABLE items (sku TEXT, store TEXT, v BIGINT, name TEXT)",
        "INSERT INTO items VALUES ('a', 'A', 1, 'n'), ('b', 'A', 1, 'n'), ('b', 'B', 1, 'n')",
    )
    source = build_sources(sql_config(url, sql={"page": page}))["item"]["shop"]
    for group in ("A", "B"):
        found = {row.key: row.problem for row in await rows_of(source, group)}
        assert found["b"] == "the key is not unique: 2 rows with key b, which differ in store"
    one = await source.read("b")
    assert one is not None
    assert one.problem is not None
    await source.close()


def test_case_r35_nothing_flips_and_it_is_reported_once(url: str, engine: Engine) -> None:
    """Full sync, thin event, full sync, thin event: what was mirrored before stays, and the alert has an example."""
    execute = executing(url)
    joined(execute, ["X"])
    field = Field(engine, join_config(url))
    field.full_sync()
    assert field.names() == {"P0": "Z", "P1": "X", "P2": "X", "P3": "Z"}
    execute("INSERT INTO categories VALUES ('P1', 'Y')")
    seen = []
    for number in range(2):
        field.full_sync()
        seen.append(field.names()["P1"])
        field.event("P1", 2)
        field.drain()
        seen.append(field.names()["P1"])
        assert field.erp["item"].calls["update"] == 0, number
    assert seen == ["X"] * 4
    [alert] = field.query(
        "SELECT n, examples FROM sync.alerts WHERE kind = 'invalid_source_records' AND resolved_at IS NULL"
    )
    assert NOT_UNIQUE in str(alert.examples)
    plan = field.perform(plan_group(field.context, field.context.entities["item"], "A"))
    assert (plan.counts.get("update", 0), plan.counts.get("delete", 0)) == (0, 0)
    checked = field.perform(check_sources(field.context, field.context.entities["item"], "A"))
    assert checked.lost == []


async def test_rule_29_a_primary_key_costs_no_look_at_other_groups(database_url: str) -> None:
    executing(database_url)(
        "CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v BIGINT, name TEXT)",
        "INSERT INTO items VALUES ('a', 'A', 1, 'n')",
    )
    source = build_sources(sql_config(database_url))["item"]["shop"]
    assert isinstance(source, ContainedSource)
    assert isinstance(source.inner, SqlSource)
    await rows_of(source)
    assert source.inner._key_is_unique
    await source.close()


REST_PART = {
    "list": {"path": "/list"},
    "read": {"path": "/one"},
    "changes": {"path": "/changes"},
    "read_many": {"path": "/many", "params": {"keys": "{{ keys | join(',') }}"}},
}


def rest_source(server: Server, **part: Any) -> tuple[SourceSystem, Config]:
    config = document({"base_url": server.url}, {**REST_PART, **part})
    return build_sources(config)["item"]["shop"], config


def item(key: str, name: str, **more: Any) -> dict[str, Any]:
    return {"sku": key, "store": "A", "v": 1, "name": name, **more}


async def test_rule_29_a_key_with_two_rows_over_rest(server: Server) -> None:
    server.respond_with([item("a", "X"), item("a", "Y")])
    source, _ = rest_source(server)
    problem = "the key is not unique: 2 rows with key a, which differ in name"
    assert [row.problem for row in await rows_of(source)] == [problem]
    for row in (await source.read("a"), *await source.read_many(["a"])):
        assert row is not None
        assert row.problem == problem
    assert [row.problem for rows in [rows async for rows in source.changes(0)] for row in rows] == [problem]
    server.respond_with([item("a", "X"), item("a", "X")])
    assert [row.problem for row in await rows_of(source)] == [None]
    await source.close()


async def test_rule_29_a_key_on_two_pages_over_rest(server: Server) -> None:
    """Under one version with other content; a record that changed meanwhile has another version."""
    pages: list[list[dict[str, Any]]] = []

    async def handler(request: Request) -> Response:
        number = int(request.query_params["page"])
        return JSONResponse(pages[number - 1] if number <= len(pages) else [])

    server.handler = handler
    source, _ = rest_source(server, list={"path": "/list", "paging": "page", "params": {"page": "{{ page }}"}})
    pages[:] = [[item("a", "X"), item("b", "n")], [item("a", "Y"), item("c", "n")]]
    found = [(row.key, row.problem is None) for row in await rows_of(source)]
    assert found == [("a", True), ("b", True), ("a", False), ("c", True)]
    pages[:] = [[item("a", "X")], [item("a", "Y", v=2)]]
    assert [row.problem for row in await rows_of(source)] == [None, None]
    await source.close()


async def test_rule_29_a_poll_that_shows_two_states_of_one_version_reads_the_record(server: Server) -> None:
    async def handler(request: Request) -> Response:
        if request.url.path == "/changes":
            return JSONResponse([item("a", "X"), item("a", "Y"), item("b", "n", v=1), item("b", "m", v=2)])
        return JSONResponse([item("a", "Y")])

    server.handler = handler
    source, _ = rest_source(server)
    [rows] = [rows async for rows in source.changes(0)]
    assert [(row.key, row.data["name"]) for row in rows] == [("b", "n"), ("b", "m"), ("a", "Y")]
    await source.close()
    unreadable, _ = rest_source(server, read=None, read_many=None)
    [rows] = [rows async for rows in unreadable.changes(0)]
    assert [row.data["name"] for row in rows if row.key == "a"] == ["X", "Y"]  # the order of the source decides
    await unreadable.close()


def file_source(folder: Path, name: str, content: str, **part: Any) -> ContainedSource:
    (folder / name).write_text(content)
    config = document({"kind": "files", "folder": str(folder)}, {"files": {"glob": "*", "page": 2}, **part})
    source = build_sources(config)["item"]["shop"]
    assert isinstance(source, ContainedSource)
    return source


HEAD = "sku,store,v,name\n"


async def test_rule_29_a_key_with_two_rows_in_a_file(tmp_path: Path) -> None:
    """An older row of a key is history, as in exports one after the other; two of one version are not."""
    source = file_source(
        tmp_path,
        "a.csv",
        HEAD + "a,A,1,X\nb,A,1,n\nc,A,1,old\nd,A,1,n\nd,A,1,n\na,A,1,Y\nc,A,2,new\ne,A,1,n\ne,B,1,n\n",
    )
    found = [(row.key, row.data.get("name"), row.problem) for row in await rows_of(source)]
    assert sorted(found, key=lambda row: row[0]) == [
        ("a", None, "the key is not unique: 2 rows with key a, which differ in name"),
        ("b", "n", None),
        ("c", "new", None),
        ("d", "n", None),
        ("e", None, "the key is not unique: 2 rows with key e, which differ in store"),
    ]
    assert await source.count("A") == 5
    assert await source.repeated("A") == Ungrouped(3, ("d", "a", "c"))


# A1: rows without a business group.


async def test_case_a1_rows_without_a_group_are_counted(url: str) -> None:
    executing(url)(
        "CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v BIGINT, name TEXT)",
        "INSERT INTO items VALUES ('a', 'A', 1, 'n'), ('b', NULL, 1, 'n'), ('c', '', 1, 'n'), ('d', '  ', 1, 'n')",
    )
    source = build_sources(sql_config(url))["item"]["shop"]
    assert await source.ungrouped() == Ungrouped(3, ("b", "c", "d"))
    assert await source.groups() == ["A"]
    one = await source.read("d")
    assert one is not None
    assert (one.group, one.problem) == (None, None)
    executing(url)("DELETE FROM items WHERE sku <> 'a'")
    assert await source.ungrouped() == Ungrouped(0)
    await source.close()


async def test_case_a1_groups_that_are_numbers(url: str) -> None:
    executing(url)(
        "CREATE TABLE items (sku TEXT PRIMARY KEY, store BIGINT, v BIGINT, name TEXT)",
        "INSERT INTO items VALUES ('a', 1, 1, 'n'), ('b', NULL, 1, 'n')",
    )
    source = build_sources(sql_config(url))["item"]["shop"]
    assert await source.ungrouped() == Ungrouped(1, ("b",))
    await source.close()


async def test_case_a1_files_and_apis(tmp_path: Path, server: Server) -> None:
    source = file_source(tmp_path, "a.csv", HEAD + "a,A,1,n\nb,,1,n\nc,  ,1,n\n,A,1,n\n")
    assert await source.ungrouped() == Ungrouped(2, ("b", "c"))
    server.respond_with([item("a", "n"), item("b", "n", store=None), item("c", "n", store=" ")])
    rest, _ = rest_source(server)
    assert {row.key: row.problem for row in await rows_of(rest)} == {
        "a": None,
        "b": "no business group at 'store'",
        "c": "no business group at 'store'",
    }
    await rest.close()


def test_case_a1_a_mirrored_record_whose_group_becomes_null_is_not_gone(url: str, engine: Engine) -> None:
    execute = executing(url)
    execute(
        "CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v BIGINT, name TEXT)",
        "INSERT INTO items VALUES ('a', 'A', 1, 'n'), ('b', 'A', 1, 'n')",
    )
    field = Field(engine, sql_config(url))
    field.full_sync()
    execute("UPDATE items SET store = NULL, v = 2, name = 'new' WHERE sku = 'b'")
    checked = field.perform(check_sources(field.context, field.context.entities["item"], "A"))
    assert [lost.kind for lost in checked.lost if lost.kind == "gone"] == []
    field.full_sync()
    assert field.names() == {"a": "n", "b": "new"}
    assert field.erp["item"].calls["delete"] == 0


# Rule 33: absent is not null.


@pytest.mark.parametrize(
    ("expression", "fields"),
    [
        ("shop.price", {"price"}),
        ("shop.price.net", {"price"}),
        ("shop.tags[0].x", {"tags"}),
        ("shop.tags[?x == `1`].y | [0]", {"tags"}),
        ("to_string(shop.price)", {"price"}),
        ("shop | price", {"price"}),
        ("shop.{a: a, b: [c.d, e]}", {"a", "c", "e"}),
        ("[shop.a, key]", {"a"}),
        ("shop.a == `1`", {"a"}),
        ('shop."odd name"', {"odd name"}),
        ("sort_by(shop.items, &p)[0].x", {"items"}),
        ("shop.a || shop.b", set()),
        ("not_null(shop.a, `1`)", set()),
        ("shop.a && shop.b", set()),
        ("!shop.a", set()),
        ("shop.*", set()),
        ("shop[?a]", set()),
        ("key", set()),
        ("keys(shop)", set()),
        ("max([shop.a, stock.b])", {"a"}),
    ],
)
def test_rule_33_what_a_mapping_certainly_reads(expression: str, fields: set[str]) -> None:
    assert mapped_fields({"x": expression}).get("shop", frozenset()) == fields


PRICED = "CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v BIGINT, name TEXT, price INTEGER)"


@pytest.mark.parametrize("drop", ["DROP COLUMN price", "RENAME COLUMN price TO cost"])
def test_rule_33_a_column_that_vanished_wipes_nothing(url: str, engine: Engine, drop: str) -> None:
    """By full sync, by an event, by a plan; and all goes on when it is back."""
    execute = executing(url)
    execute(PRICED, "INSERT INTO items VALUES ('a', 'A', 1, 'n', 5), ('b', 'A', 1, 'n', 6)")
    config = document({"kind": "sql", "url": url}, {"sql": {"table": "items"}}, mapping={"name": "shop.price"})
    field = Field(engine, config)
    field.full_sync()
    execute(f"ALTER TABLE items {drop}", "UPDATE items SET v = 2")
    with pytest.raises(CallFailed, match="table items has no column 'price', which the mapping reads") as caught:
        field.full_sync()
    assert caught.value.about_system
    field.event("a", 2)
    field.drain()
    assert field.names() == {"a": 5, "b": 6}
    assert field.erp["item"].calls["update"] == 0
    execute(
        f"ALTER TABLE items {'ADD COLUMN price INTEGER' if 'DROP' in drop else 'RENAME COLUMN cost TO price'}",
        "UPDATE items SET v = 3, price = 7",
    )
    field.full_sync()
    assert field.names() == {"a": 7, "b": 7}


async def test_rule_33_every_way_of_asking_a_database_is_checked(url: str) -> None:
    executing(url)(
        "CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v BIGINT)", "INSERT INTO items VALUES ('a', 'A', 1)"
    )
    source = build_sources(sql_config(url))["item"]["shop"]
    for call in (source.read("a"), source.read_many(["a"]), rows_of(source)):
        assert "has no column 'name', which the mapping reads; it has sku, store, v" in (await failure_of(call)).detail
    assert [row.key for rows in [rows async for rows in source.keys("A")] for row in rows] == ["a"]
    await source.close()
    allowed = build_sources(sql_config(url, absent_fields="null"))["item"]["shop"]
    assert [row.problem for row in await rows_of(allowed)] == [None]
    await allowed.close()


async def test_rule_33_a_file_without_the_column(tmp_path: Path) -> None:
    source = file_source(tmp_path, "a.csv", "sku,store,v\na,A,1\n")
    assert (await failure_of(rows_of(source))).detail.startswith("a.csv has no column 'name', which the mapping reads")
    assert (await failure_of(source.count("A"))).about_system
    assert await source.groups() == ["A"]
    lines = file_source(tmp_path, "a.csv", "", files={"glob": "*.jsonl"})
    (tmp_path / "a.jsonl").write_text('{"sku": "a", "store": "A", "v": 1}\n')
    assert [row.problem for row in await rows_of(lines)] == [None]  # the archive says whether it was there before


@pytest.fixture
def api(server: Server, engine: Engine) -> Field:
    """A REST source with three records, mirrored."""
    return Field(engine, document({"base_url": server.url}, {**REST_PART, "poll_every": 1}))


class Shop:
    """What the API has, and the fields that it sends."""

    def __init__(self, server: Server) -> None:
        self.rows = {key: item(key, "n") for key in ("a", "b", "c")}
        self.hidden: set[str] = set()
        server.handler = self.answer

    async def answer(self, request: Request) -> Response:
        rows = [{name: value for name, value in row.items() if name not in self.hidden} for row in self.rows.values()]
        wanted = request.query_params.get("keys", request.url.path.rpartition("/")[2]).split(",")
        if request.url.path == "/many":
            rows = [row for row in rows if row["sku"] in wanted]
        if request.url.path == "/one":
            rows = rows[:1]
        return JSONResponse(rows)


def test_rule_33_an_api_that_stops_to_send_a_field_wipes_nothing(server: Server, api: Field) -> None:
    """By full sync, plan, thin event and poll: the records are unusable and reported, and recover by themselves."""
    shop = Shop(server)
    api.full_sync()
    assert api.names() == {"a": "n", "b": "n", "c": "n"}
    shop.hidden = {"name"}
    for row in shop.rows.values():
        row["v"] = 2
    api.full_sync()
    [alert] = api.query(
        "SELECT examples FROM sync.alerts WHERE kind = 'invalid_source_records' AND resolved_at IS NULL"
    )
    assert "mapped field absent: 'name' (the archive has a value); send null to clear it" in str(alert.examples)
    plan = api.perform(plan_group(api.context, api.context.entities["item"], "A"))
    assert plan.counts.get("update", 0) == 0
    api.event("a", 2)
    api.drain()
    api.perform(poll_due(api.context))
    api.drain()
    assert api.names() == {"a": "n", "b": "n", "c": "n"}
    assert api.erp["item"].calls["update"] == 0
    shop.hidden = set()
    shop.rows["a"] |= {"v": 3, "name": None}  # null is null
    for key in "bc":
        shop.rows[key] |= {"v": 3, "name": "new"}
    api.full_sync()
    assert api.names() == {"a": None, "b": "new", "c": "new"}


def test_rule_33_a_field_that_a_record_never_had_is_no_matter(server: Server, api: Field) -> None:
    shop = Shop(server)
    del shop.rows["b"]["name"]
    api.full_sync()
    assert api.names() == {"a": "n", "b": None, "c": "n"}
    shop.rows["b"]["v"] = 2
    api.full_sync()
    assert api.query("SELECT 1 FROM sync.alerts WHERE kind = 'invalid_source_records'") == []


def test_rule_33_absent_is_null_where_the_source_leaves_out_what_is_null(server: Server, engine: Engine) -> None:
    shop = Shop(server)
    field = Field(engine, document({"base_url": server.url}, {**REST_PART, "absent_fields": "null"}))
    field.full_sync()
    del shop.rows["b"]["name"]
    shop.rows["b"]["v"] = 2
    field.full_sync()
    assert field.names() == {"a": "n", "b": None, "c": "n"}


# Rule 40: a refusal for safety says how to allow it, and a check goes as far as the real thing.


async def pages_of(server: Server, link: str, **system: Any) -> list[str]:
    async def handler(request: Request) -> Response:
        if "page" in request.query_params:
            return JSONResponse({"items": [item("b", "n")]})
        return JSONResponse({"items": [item("a", "n")], "next": link})

    server.handler = handler
    config = document(
        {"base_url": server.url, **system},
        {"list": {"path": "/list", "items": "items", "paging": "next_url", "next": "next"}},
    )
    source = build_sources(config)["item"]["shop"]
    try:
        return [row.key for row in await rows_of(source)]
    finally:
        await source.close()


@pytest.mark.parametrize(
    "origin", ["https://127.0.0.1:{port}", "http://127.0.0.1:1", "http://api.example", "http://127.0.0.1"]
)
async def test_rule_40_a_next_page_on_another_origin_names_the_setting(server: Server, origin: str) -> None:
    """Another scheme, another port, another host: refused, and read from ``base_url`` with the setting it names."""
    there = origin.format(port=server.url.rpartition(":")[2])
    link = f"{there}/list?page=2"
    failure = await failure_of(pages_of(server, link))
    assert f"set 'next_origins: {{\"{there}\": rewrite}}' of this system" in failure.detail.replace("Set", "set")
    assert failure.about_system
    assert await pages_of(server, link, next_origins={there: "rewrite"}) == ["a", "b"]


async def test_rule_40_a_next_page_can_be_followed_to_another_origin(server: Server) -> None:
    there = server.url.replace("127.0.0.1", "localhost")
    assert await pages_of(server, f"{there}/list?page=2", next_origins={there: "follow"}) == ["a", "b"]
    assert await pages_of(server, "/list?page=2") == ["a", "b"]
    with pytest.raises(CallFailed, match=r"evil\.example"):
        await pages_of(
            server, f"{there.replace('//', '//localhost@')}@evil.example/?page=2", next_origins={there: "follow"}
        )


def live(config: Config, group: str | None = None) -> dict[str, tuple[str, str]]:
    report = asyncio.run(live_check.check_live(config, group))
    return {f"{step.system} {step.what}": (step.outcome, step.detail) for step in report.steps}


def test_rule_40_the_live_check_reads_the_second_page(server: Server) -> None:
    """Of the source and of the third party: where next links name another scheme, nothing else would notice."""

    async def handler(request: Request) -> Response:
        if "page" in request.query_params:
            return JSONResponse({"items": [item("b", "n", id=2)]})
        return JSONResponse({"items": [item("a", "n", id=1)], "next": f"https://api.example{request.url.path}?page=2"})

    server.handler = handler
    paged = {"path": "/list", "items": "items", "paging": "next_url", "next": "next"}
    raw = document({"base_url": server.url}, {"list": paged}).model_dump(exclude_unset=True)
    raw["third_parties"]["erp"]["base_url"] = server.url
    raw["entities"]["item"]["third_party"] |= {
        "list": {**paged, "params": {"store": "{{ group }}"}},
        "filter_check": {"off": True},
    }
    found = live(Config.model_validate(raw), "A")
    for step in ("shop list", "erp list"):
        assert found[step][0] == "failed"
        assert "next_origins" in found[step][1]
    for system in (raw["sources"]["shop"], raw["third_parties"]["erp"]):
        system["next_origins"] = {"https://api.example": "rewrite"}
    found = live(Config.model_validate(raw), "A")
    assert found["shop list"] == ("ok", "2 pages with 2 records of 'A', the first is a")
    assert found["erp list"] == ("ok", "2 pages with 2 records in 'A'")
    assert found["erp write"] == ("skipped", "not tried: this check writes nothing")


def test_rule_40_the_live_check_compares_rows_with_keys_and_groups(tmp_path: Path) -> None:
    place = f"sqlite:///{tmp_path / 'shop.db'}"
    execute = executing(place)
    joined(execute, ["X", "Y"])
    execute(
        "INSERT INTO products VALUES ('P9', NULL, 1, 'n'), ('O1', 'A', 1, 'n'), ('O2', 'A', 1, 'n')",
        "INSERT INTO categories VALUES ('P9', 'Z'), ('O1', 'Z'), ('O2', 'Z')",
    )
    found = live(join_config(place, page=1), "A")
    assert found["shop keys"] == ("failed", "2 rows of 'A' have the key of another row, such as P1, P2: " + NOT_UNIQUE)
    assert found["shop ungrouped"] == ("skipped", "1 rows have no business group and are mirrored nowhere, such as P9")


def test_rule_39_a_plan_says_what_no_group_lists(url: str, engine: Engine) -> None:
    executing(url)(
        "CREATE TABLE items (sku TEXT PRIMARY KEY, store TEXT, v BIGINT, name TEXT)",
        "INSERT INTO items VALUES ('a', 'A', 1, 'n'), ('b', NULL, 1, 'n')",
    )
    field = Field(engine, sql_config(url))
    assert field.perform(ungrouped_notes(field.context.entities["item"])) == [
        "1 rows of 'shop' have no business group and are mirrored nowhere, such as b"
    ]

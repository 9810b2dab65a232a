"""Rule 29: keys, business groups and ids have one form at every border, and what cannot have one is refused by name."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import unicodedata
from contextlib import closing
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fakes import two_part_config
from http_server import Server, failure_of
from hypothesis import given
from hypothesis import strategies as st
from record_store import THEIRS, HttpWorld, Store, adapter, item
from sqlalchemy import Engine, create_engine, text
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from world import World

from sync_orchestrator.adapters.custom.guard import AdapterGuard, GuardedSource
from sync_orchestrator.adapters.files.source import FileSource
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.adapters.row_reader import select_requested_rows
from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import Config, PartSettings
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config.sources import FileSourceSettings, SqlSourceSettings
from sync_orchestrator.core.operations import records
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.core.values.names import NoName, are_alike, canonical_name, list_spellings, name_or_none
from sync_orchestrator.errors import Failure, InvalidEvent
from sync_orchestrator.event_formats.cloud_events import change_event
from sync_orchestrator.event_formats.custom_events import change_event_of
from sync_orchestrator.exact_json import parse

NFC, NFD = "Größe", unicodedata.normalize("NFD", "Größe")
SPELLING = "the source knows this record as '{}', not '{}': notifications and other parts must use its spelling"

has_pyarrow = pytest.mark.skipif(find_spec("pyarrow") is None, reason="pyarrow is not installed")


@pytest.mark.parametrize("told", ["7", "7.0", "7e0", "70e-1", "7.000", '"7"'])
def test_rule_29_equal_numbers_and_their_text_are_one_name(told: str) -> None:
    assert canonical_name(parse(told.encode())) == "7"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, None),
        ("", None),
        (0, "0"),
        (-7.0, "-7"),
        (2.0**53 - 1, "9007199254740991"),
        (10**30, str(10**30)),
        (Decimal("7.00"), "7"),
        (Decimal("10.50"), "10.5"),
        (Decimal(10**20), str(10**20)),
        ("007", "007"),
        (" a ", " a "),
        ("7.0", "7.0"),
        (NFD, NFC),
    ],
)
def test_rule_29_a_name_has_one_form(value: Any, name: str | None) -> None:
    assert (canonical_name(value), name_or_none(value)) == (name, name)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("9007199254740993.0", "the number 9007199254740993.0 is larger than a float holds exactly"),
        ("9007199254740992.0", "larger than a float holds exactly: give it as a text or as a whole number"),
        ("1e300", "the number 1e+300 is larger"),
        ("7.5", "7.5 is not a whole number"),
        ("true", "True is neither a text"),
        ("[]", "neither a text nor a whole number"),
        ('{"a": 1}', "neither a text nor a whole number"),
    ],
)
def test_rule_29_what_cannot_be_a_name_is_refused(value: str, says: str) -> None:
    with pytest.raises(NoName) as refused:
        canonical_name(parse(value.encode()))
    assert says in str(refused.value)
    assert name_or_none(parse(value.encode())) is None


@given(st.integers(-(2**53) + 1, 2**53 - 1))
def test_rule_29_every_whole_number_is_its_float(number: int) -> None:
    assert canonical_name(float(number)) == canonical_name(number) == canonical_name(str(number))


@given(st.text(max_size=10))
def test_rule_29_a_name_stays_what_it_is(told: str) -> None:
    name = canonical_name(told)
    assert canonical_name(name) == name
    assert name is None or (name in list_spellings(name) and are_alike(name, name))


def test_rule_29_ids_of_others_keep_their_text() -> None:
    assert canonical_name(NFD, of_ours=False) == NFD
    assert canonical_name(7.0, of_ours=False) == "7"


# Sources.


def part(**changes: Any) -> PartSettings:
    return PartSettings.model_validate(
        {"key": "sku", "version": {"path": "v", "kind": "number"}, "group": "store", **changes}
    )


def files(folder: Path) -> FileSource:
    return FileSource(
        FileSourceSettings.model_validate({"kind": "files", "folder": str(folder)}), part(files={"glob": "*"})
    )


async def rows_of(source: Any, group: str = "7") -> list[PartRead]:
    return [row async for rows, _ in source.pages(group) for row in rows]


def sql(path: Path, statements: list[str], **changes: Any) -> SqlSource:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    settings = SqlSourceSettings.model_validate({"kind": "sql", "url": f"sqlite:///{path}"})
    return SqlSource(SourceDatabase("shop", settings), part(sql={"table": "items"}, **changes))


async def test_case_r25_json_lines(tmp_path: Path) -> None:
    lines = [
        '{"sku": 1001.0, "store": 7.0, "v": 1}',
        '{"sku": 1e3, "store": "7", "v": 1}',
        '{"sku": 9007199254740993.0, "store": 7, "v": 1}',
        '{"sku": 5, "store": 7.5, "v": 1}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    rows = await rows_of(files(tmp_path))
    assert [(row.key, row.group) for row in rows if row.problem is None] == [("1001", "7"), ("1000", "7")]
    assert [row.problem for row in rows if row.problem is not None] == [
        "no key at 'sku': the number 9007199254740993.0 is larger than a float holds exactly: give it as a text or "
        "as a whole number (a.jsonl:3)",
        "no business group at 'store': 7.5 is not a whole number: give it as a text (a.jsonl:4)",
    ]
    assert (await files(tmp_path).count("7"), await files(tmp_path).groups()) == (None, ["7"])


@has_pyarrow
async def test_case_r25_parquet_of_pandas(tmp_path: Path) -> None:
    import pandas as pd

    pd.DataFrame({"sku": [1001.0, 1002.0, None], "store": [7.0, None, 8.0], "v": [1, 1, 1]}).to_parquet(
        tmp_path / "a.parquet"
    )
    rows = await rows_of(files(tmp_path))
    assert [(row.key, row.group) for row in rows if row.problem is None] == [("1001", "7")]
    assert len([row for row in rows if row.problem is not None]) == 2


async def test_case_r25_rest(server: Server) -> None:
    server.respond_with({"sku": 1001.0, "store": 7.0, "v": 1})
    source = RestSource(
        HttpClient(HttpSettings(base_url=server.url, timeout=5)),
        part(
            list={"path": "/", "items": "[@]"}, read={"path": "/{{ key }}"}, groups={"path": "/", "record": "[store]"}
        ),
    )
    assert await source.read("1001") == PartRead("1001", 1, {"sku": 1001.0, "store": 7.0, "v": 1}, "7")
    assert ([row.key for row in await rows_of(source)], await source.groups()) == (["1001"], ["7"])
    server.handler = lambda request: answer(b'{"sku": 9007199254740993.0, "store": 7, "v": 1}')
    failure = await failure_of(rows_of(source))
    await source.close()
    assert failure.kind is Failure.PERMANENT
    assert "no key at 'sku': the number 9007199254740993.0 is larger" in failure.detail


async def answer(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def test_case_r25_a_group_as_float_makes_no_second_set(engine: Engine, server: Server) -> None:
    world = HttpWorld(engine, two_part_config())
    shop = {str(key): {"key": key, "store": "7", "name": "n", "v": 1} for key in (1001, 1002)}
    for key in shop:
        world.stock.put(key, {"key": key, "count": 1, "v": 0})
        world.post_event("stock", key, "create", 1, {"key": key, "count": 1})

    async def handler(request: Request) -> Response:
        _, _, key = request.path_params["rest"].partition("/")
        told = {name: {**row, "key": float(row["key"]), "store": 7.0} for name, row in shop.items()}
        return await answer(json.dumps(told[key] if key else list(told.values())).encode())

    server.handler = handler
    world.context.entities["item"].sources["shop"] = RestSource(
        HttpClient(HttpSettings(base_url=server.url, timeout=5)),
        part(key="key", list={"path": "/items"}, read={"path": "/items/{{ key }}"}),
    )
    for key, row in shop.items():
        world.post_event("shop", key, "create", 1, row)
    world.run_drain()
    world.run_full_sync("7")
    world.run_drain()
    assert sorted(world.mirror_by_key()) == ["1001", "1002"]
    assert {row.group_key for row in world.query("SELECT group_key FROM sync.records WHERE NOT deleted")} == {"7"}
    assert world.query("SELECT count(*) AS n FROM sync.records")[0].n == 2
    world.close()


# Spelling.


@pytest.mark.parametrize(("known", "asked"), [("AB1", "ab1"), ("7", "007"), ("é1", "e1"), ("AB1", "AB1 ")])
def test_rule_29_another_spelling_is_not_absence(known: str, asked: str) -> None:
    [row] = select_requested_rows([asked], [PartRead(known, 1, {}, "A")])
    assert (row.key, row.problem) == (asked, SPELLING.format(known, asked))
    assert [each.problem for each in select_requested_rows([known, asked], [PartRead(known, 1, {}, "A")])] == [None]
    assert select_requested_rows(["other"], [PartRead(known, 1, {}, "A")]) == []


async def test_rule_29_sql_says_how_it_spells_a_key(tmp_path: Path) -> None:
    source = sql(
        tmp_path / "shop.db",
        [
            "CREATE TABLE items (sku TEXT COLLATE NOCASE, store TEXT, v INTEGER)",
            "INSERT INTO items VALUES ('AB1', '7', 1)",
        ],
    )
    row = await source.read("ab1")
    await source.close()
    assert row is not None
    assert (row.key, row.problem) == ("ab1", SPELLING.format("AB1", "ab1"))


async def test_rule_29_sql_knows_a_number_with_leading_zeros(tmp_path: Path) -> None:
    source = sql(
        tmp_path / "shop.db",
        ["CREATE TABLE items (sku INTEGER, store INTEGER, v INTEGER)", "INSERT INTO items VALUES (7, 7, 1)"],
    )
    row = await source.read("007")
    assert row is not None
    assert row.problem == SPELLING.format("7", "007")
    assert (await source.read("8"), await rows_of(source, "007")) == (None, [])
    await source.close()


@pytest.mark.parametrize("stored", [NFC, NFD])
async def test_rule_29_sql_finds_either_form_of_a_text(tmp_path: Path, stored: str) -> None:
    source = sql(
        tmp_path / "shop.db",
        [
            "CREATE TABLE items (sku TEXT, store TEXT, v INTEGER)",
            f"INSERT INTO items VALUES ('{stored}', '{stored}', 1)",
        ],
    )
    row = await source.read(NFC)
    assert row is not None
    assert (row.key, row.group, row.problem) == (NFC, NFC, None)
    assert [each.key for each in await rows_of(source, NFC)] == [NFC]
    assert (await source.groups(), await source.count(NFC)) == ([NFC], 1)
    await source.close()


async def test_rule_29_rest_says_how_it_spells_a_key(server: Server) -> None:
    server.respond_with({"sku": "AB1", "store": "7", "v": 1})
    source = RestSource(
        HttpClient(HttpSettings(base_url=server.url, timeout=5)), part(list={"path": "/"}, read={"path": "/{{ key }}"})
    )
    row = await source.read("ab1")
    assert row is not None
    assert (row.key, row.problem) == ("ab1", SPELLING.format("AB1", "ab1"))
    assert (await failure_of(source.read("other"))).kind is Failure.TRANSIENT
    await source.close()


async def test_rule_29_rest_finds_either_form_of_a_text(server: Server) -> None:
    async def handler(request: Request) -> Response:
        known = request.path_params["rest"] == NFD
        return JSONResponse({"sku": NFD, "store": "7", "v": 1}) if known else JSONResponse({}, 404)

    server.handler = handler
    source = RestSource(
        HttpClient(HttpSettings(base_url=server.url, timeout=5)), part(list={"path": "/"}, read={"path": "/{{ key }}"})
    )
    row = await source.read(NFC)
    await source.close()
    assert row is not None
    assert (row.key, row.problem) == (NFC, None)


class Spelling:
    """A class of somebody's own, which finds keys whatever their case."""

    keyset_listing = can_read = True
    can_poll = can_list_keys = False
    read_many_size, confirms_absence = 100, True

    async def read(self, key: str) -> PartRead | None:
        return PartRead("AB1", 1, {}, "A") if key.lower() == "ab1" else None

    async def read_many(self, keys: list[str]) -> list[PartRead]:
        return [row for key in keys if (row := await self.read(key)) is not None]


async def test_rule_29_a_class_says_how_it_spells_a_key() -> None:
    guard = AdapterGuard(Spelling(), 5, None, HoldOff(), ())  # type: ignore[arg-type]
    source = GuardedSource(Spelling(), guard, _nothing)  # type: ignore[arg-type]
    row = await source.read("ab1")
    assert row is not None
    assert row.problem == SPELLING.format("AB1", "ab1")
    assert [each.problem for each in await source.read_many(["ab1", "x"])] == [SPELLING.format("AB1", "ab1")]
    assert await source.read("x") is None


async def _nothing() -> None:
    return None


def test_rule_29_an_event_in_another_spelling_dies_with_both(world: World, tmp_path: Path) -> None:
    source = sql(
        tmp_path / "shop.db",
        [
            "CREATE TABLE items (sku TEXT COLLATE NOCASE, store TEXT, v INTEGER)",
            "INSERT INTO items VALUES ('AB1', 'A', 5)",
        ],
    )
    world.context.entities["item"].sources["shop"] = source
    world.post_event("shop", "ab1", "create", 5)
    world.run_drain()
    asyncio.run(source.close())
    [event] = world.query("SELECT state, error FROM sync.events")
    assert (event.state, event.error) == ("dead", SPELLING.format("AB1", "ab1"))


# Padding.


@pytest.fixture
def char_source(database_url: str) -> SqlSource:
    made = create_engine(database_url)
    with made.begin() as connection:
        connection.execute(text("CREATE TABLE items (sku CHAR(5), store CHAR(3), v bigint, note text)"))
        connection.execute(
            text("INSERT INTO items VALUES ('A1', 'B', 1, 'n '), ('A2345', 'B', 1, 'n'), ('A3', 'C', 1, 'n')")
        )
    made.dispose()
    settings = SqlSourceSettings.model_validate({"kind": "sql", "url": database_url})
    return SqlSource(SourceDatabase("shop", settings), part(sql={"table": "items", "page": 1}))


async def test_rule_29_padding_of_char_columns_is_no_part_of_a_name(char_source: SqlSource) -> None:
    rows = await rows_of(char_source, "B")
    assert [(row.key, row.group) for row in rows] == [("A1", "B"), ("A2345", "B")]
    assert rows[0].data == {"sku": "A1", "store": "B", "v": 1, "note": "n "}
    row = await char_source.read("A1")
    assert row is not None
    assert (row.key, row.problem) == ("A1", None)
    assert (sorted(await char_source.groups() or []), await char_source.count("B")) == (["B", "C"], 2)
    await char_source.close()


async def test_rule_29_blanks_of_a_text_are_part_of_a_name(tmp_path: Path) -> None:
    source = sql(
        tmp_path / "shop.db",
        [
            "CREATE TABLE items (sku TEXT, store TEXT, v INTEGER)",
            "INSERT INTO items VALUES ('A1 ', '7', 1), ('A1', '7', 1)",
        ],
    )
    assert sorted(row.key for row in await rows_of(source)) == ["A1", "A1 "]
    await source.close()


# Events.


def config(**events: Any) -> Config:
    return two_part_config(
        shop={
            "events": {"key": "body.key", "group": "body.group", "action": "'updated'", "version": "body.v", **events}
        }
    )


@pytest.mark.parametrize(("told", "name"), [("7", "7"), ("7.0", "7"), ('"7"', "7"), ("7e0", "7"), (f'"{NFD}"', NFC)])
def test_rule_29_own_events_have_the_same_names(told: str, name: str) -> None:
    body = parse(f'{{"key": {told}, "group": {told}, "v": 1}}'.encode())
    event = change_event_of(body, {}, "shop", config())
    assert (event.key, event.group) == (name, name)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ("9007199254740993.0", "larger than a float holds exactly"),
        ("7.5", "7.5 is not a whole number"),
        ("true", "neither"),
        ("[]", "neither a text nor a whole number"),
        ('""', "is needed, as text or a whole number"),
    ],
)
def test_rule_29_own_events_refuse_by_name_what_is_no_key(told: str, says: str) -> None:
    with pytest.raises(InvalidEvent) as refused:
        change_event_of(parse(f'{{"key": {told}, "v": 1}}'.encode()), {}, "shop", config())
    assert says in str(refused.value)
    assert refused.value.field == "key (body.key)"


def test_rule_29_cloud_events_have_the_same_names() -> None:
    told = {"specversion": "1.0", "source": "shop", "type": "item.updated", "id": "1", "version": 1}
    event = change_event({**told, "subject": NFD, "data": {"key": 1, "store": 7.0}}, config())
    assert (event.key, event.group) == (NFC, "7")
    with pytest.raises(InvalidEvent, match="larger than a float holds") as refused:
        change_event({**told, "subject": "k", "data": {"key": 1, "store": 2.0**60}}, config())
    assert refused.value.field == "data (store)"
    with pytest.raises(InvalidEvent, match="must be text"):
        change_event({**told, "subject": "k", "group": 7.5}, config())


# Third parties.


@pytest.mark.parametrize("shown", [7, 7.0, "7"])
async def test_rule_29_their_keys_groups_and_ids_are_the_same_names(server: Server, shown: Any) -> None:
    store = Store(server)
    store.items["7"] = {"id": shown, "code": shown, "store": shown, "v": 1, "name": "n"}
    erp = adapter(server, THEIRS)
    found = await erp.read(item("7", external_id="7"))
    await erp.close()
    assert found is not None
    assert (found.key, found.external_id, found.group) == ("7", "7", "7")


async def test_rule_29_a_key_of_theirs_that_is_not_exact_is_not_read_as_another(server: Server) -> None:
    store = Store(server)
    store.items["7"] = {"id": 7, "code": 2.0**53, "store": "A", "v": 1, "name": "n"}
    erp = adapter(server, THEIRS)
    failure = await failure_of(erp.read(item("7", external_id="7")))
    await erp.close()
    assert "larger than a float holds exactly" in failure.detail


def test_rule_29_operators_may_write_a_key_in_either_form(world: World) -> None:
    world.put_record(NFC)
    world.run_drain()
    with world.engine.begin() as connection:
        assert records.read_biography(connection, "item", NFD)["record"] is not None
    assert asyncio.run(records.refresh_record(world.context, world.entity, NFD))

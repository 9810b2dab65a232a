"""Rule 33: truth from unmanaged data is what it says, never Python's truth of a text; what says nothing is named.

Each place that reads one: ``deleted_when`` of every kind of source, ``gone_when``, ``when`` of a source's own events,
of outcomes and of routes.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import two_part_config
from http_server import Server, failure_of
from pydantic import ValidationError
from record_store import THEIRS, HttpWorld, Store, adapter, http_world, item
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.custom.guard import _no_part
from sync_orchestrator.adapters.files.source import FileSource
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.responses import Answer, condition_picks
from sync_orchestrator.adapters.http.responses import failure_of as meant
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.adapters.row_reader import Rows
from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import OutcomeRule, PartSettings
from sync_orchestrator.config.sources import FileSourceSettings, SqlSourceSettings
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.truth import NoTruth, parse_condition, parse_truth, says_something

SAID = [
    (True, True),
    (False, False),
    (None, False),
    (1, True),
    (0, False),
    (1.0, True),
    (0.0, False),
    ("", False),
    ("true", True),
    ("False", False),
    (" T ", True),
    ("f", False),
    ("YES", True),
    ("no", False),
    ("y", True),
    ("N", False),
    ("1", True),
    ("0", False),
    ("on", True),
    ("OFF", False),
    (b"\x00", False),
    (b"\x01", True),
    ("AA==", False),
    ("AQ==", True),
]
NOT_SAID = [
    "X",
    "archived",
    "2026-05-01",
    2,
    -1,
    0.5,
    float("nan"),
    "00",
    "null",
    [],
    {},
    ["x"],
    {"a": 1},
    b"",
    b"\x02",
    b"\x00\x00",
]


@pytest.mark.parametrize(("value", "said"), SAID)
def test_rule_33_truth_is_what_is_said(value: Any, said: bool) -> None:
    assert parse_truth(value) is said


@pytest.mark.parametrize("value", NOT_SAID)
def test_rule_33_anything_else_is_no_truth_value(value: Any) -> None:
    with pytest.raises(NoTruth, match="neither true nor false"):
        parse_truth(value)


@pytest.mark.parametrize(
    ("expression", "document", "holds"),
    [
        ("archived == 'X'", {"archived": "X"}, True),
        ("archived == 'X'", {}, False),
        ("archived", {}, False),
        ("!active", {"active": "0"}, True),
        ("!active", {"active": 0}, True),
        ("!active", {"active": "true"}, False),
        ("!active", {"active": None}, True),
        ("archived || hidden", {"archived": "0", "hidden": "false"}, False),
        ("archived || hidden", {"archived": "0", "hidden": "1"}, True),
        ("archived && final", {"archived": "0", "final": "1"}, False),
        ("status != 'active'", {"status": None}, True),
        ("contains(tags, 'gone')", {"tags": ["gone"]}, True),
        ("length(tags[?@ == 'gone']) > `0`", {"tags": ["gone"]}, True),
    ],
)
def test_rule_33_conditions_use_the_same_truth_within(expression: str, document: Any, holds: bool) -> None:
    assert parse_condition(expression).holds(document) is holds


@pytest.mark.parametrize(
    ("expression", "document", "says"),
    [
        (
            "archived",
            {"archived": "X"},
            "'archived' is to be true or false: 'X' is neither true nor false; configure a "
            "comparison, such as \"archived == 'X'\"",
        ),
        ("!status", {"status": "open"}, "neither true nor false"),
        ("tags[?@ == 'gone']", {"tags": ["gone"]}, "neither true nor false"),
        ("!active", {"sku": "P1"}, "'!active' is true only because there is no field 'active'"),
        ("status != 'active'", {"sku": "P1"}, "there is no field 'status'"),
        ("starts_with(name, 'DEL')", {"name": None}, "does not fit"),
    ],
)
def test_rule_33_a_condition_that_says_nothing_is_named(expression: str, document: Any, says: str) -> None:
    with pytest.raises(NoTruth) as caught:
        parse_condition(expression).holds(document)
    assert says in str(caught.value)


# deleted_when, by every kind of source.


def part(**changes: Any) -> PartSettings:
    return PartSettings.model_validate(
        {
            "key": "sku",
            "version": {"path": "v", "kind": "number"},
            "group": "store",
            "deleted_when": "archived",
            **changes,
        }
    )


async def of_rest(server: Server, tmp_path: Path, flag: Any) -> PartRead:
    if isinstance(flag, bytes):
        pytest.skip("JSON has no bytes")
    server.respond_with([{"sku": "P1", "store": "A", "v": 1, "archived": flag}])
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    source = RestSource(client, part(list={"path": "/"}))
    [row] = [row async for rows, _ in source.pages("A") for row in rows]
    await source.close()
    return row


async def of_csv(server: Server, tmp_path: Path, flag: Any) -> PartRead:
    if not isinstance(flag, str) or "\n" in flag:
        pytest.skip("CSV has texts only")
    (tmp_path / "a.csv").write_text(f"sku,store,v,archived\nP1,A,1,{flag}\n")
    return await of_file(tmp_path)


async def of_json_lines(server: Server, tmp_path: Path, flag: Any) -> PartRead:
    if isinstance(flag, bytes):
        pytest.skip("JSON has no bytes")
    (tmp_path / "a.jsonl").write_text(json.dumps({"sku": "P1", "store": "A", "v": 1, "archived": flag}) + "\n")
    return await of_file(tmp_path)


async def of_file(tmp_path: Path) -> PartRead:
    system = FileSourceSettings.model_validate({"kind": "files", "folder": str(tmp_path)})
    source = FileSource(system, part(files={"glob": "*"}))
    [row] = [row async for rows, _ in source.pages("A") for row in rows]
    return row


async def of_sql(server: Server, tmp_path: Path, flag: Any) -> PartRead:
    if isinstance(flag, bool | list | dict):
        pytest.skip("SQLite has none")
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE items (sku TEXT, store TEXT, v INTEGER, archived)")
        connection.execute("INSERT INTO items VALUES ('P1', 'A', 1, ?)", [flag])
        connection.commit()
    settings = SqlSourceSettings.model_validate({"kind": "sql", "url": f"sqlite:///{path}"})
    source = SqlSource(SourceDatabase("shop", settings), part(sql={"table": "items"}))
    [row] = [row async for rows, _ in source.pages("A") for row in rows]
    await source.close()
    return row


async def of_class(server: Server, tmp_path: Path, flag: Any) -> PartRead:
    return Rows(part()).part_of({"sku": "P1", "store": "A", "v": 1, "archived": flag})


KINDS = [of_rest, of_csv, of_json_lines, of_sql, of_class]


@pytest.mark.parametrize("read", KINDS)
@pytest.mark.parametrize(
    ("flag", "deleted"),
    [
        (False, False),
        (True, True),
        ("0", False),
        ("false", False),
        ("N", False),
        ("1", True),
        ("yes", True),
        (0, False),
        (1, True),
        (None, False),
        (b"\x00", False),
        (b"\x01", True),
        ("", False),
    ],
)
async def test_rule_33_deleted_when_reads_what_is_said(
    server: Server, tmp_path: Path, read: Any, flag: Any, deleted: bool
) -> None:
    row = await read(server, tmp_path, flag)
    assert (row.problem, row.deleted) == (None, deleted)


@pytest.mark.parametrize("read", KINDS)
@pytest.mark.parametrize("flag", ["X", "archived", 2, [], b"\x00\x00", "2026-05-01T00:00:00Z"])
async def test_rule_33_deleted_when_of_no_truth_value_spoils_the_row_by_name(
    server: Server, tmp_path: Path, read: Any, flag: Any
) -> None:
    row = await read(server, tmp_path, flag)
    assert (row.key, row.deleted) == ("P1", False)
    assert row.problem is not None
    assert row.problem.startswith("deleted_when: 'archived' is to be true or false: ")


async def test_rule_33_a_class_says_deleted_by_true_or_false() -> None:
    assert _no_part(PartRead("P1", 1, {}, "A", "0")) == "gave str ('0') as deleted, not True or False"  # type: ignore[arg-type]


async def test_rule_33_keys_without_the_field_of_the_condition_are_not_deleted(server: Server) -> None:
    server.respond_with([{"sku": "P1", "v": 1}])
    keyed = part(
        list={"path": "/items?store={{ group }}"},
        keys={"path": "/keys?store={{ group }}"},
        deleted_when="status != 'active'",
    )
    source = RestSource(
        HttpClient(HttpSettings(base_url=server.url, timeout=5)), keyed.model_copy(update={"group": None})
    )
    [row] = [row async for rows in source.keys("A") for row in rows]
    await source.close()
    assert (row.problem, row.deleted) == (None, False)


# The trial: an API that becomes another one.


class Shop:
    """The source's API: its items by store, whose flag is told as the test says."""

    def __init__(self, server: Server) -> None:
        self.items: dict[str, dict[str, Any]] = {
            f"P{n:03}": {"sku": f"P{n:03}", "store": "A", "v": 1, "name": "n", "archived": False} for n in range(200)
        }
        server.handler = self._handle

    async def _handle(self, request: Request) -> Response:
        _, _, key = request.path_params["rest"].partition("/")
        if key:
            return JSONResponse(self.items[key]) if key in self.items else JSONResponse({}, 404)
        return JSONResponse(list(self.items.values()))

    def flags(self, flag: Any) -> None:
        for number, product in enumerate(self.items.values()):
            product["archived"] = flag
            product["v"] += number % 2  # half of them by newer versions


@pytest.fixture
def shop_world(server: Server, engine: Engine) -> tuple[Shop, HttpWorld]:
    shop, world = Shop(server), HttpWorld(engine, two_part_config())
    source = RestSource(
        HttpClient(HttpSettings(base_url=server.url, timeout=5)),
        part(list={"path": "/items"}, read={"path": "/items/{{ key }}"}),
    )
    world.context.entities["item"].sources["shop"] = source
    for key in shop.items:
        world.stock.put(key, {"key": key, "count": 1, "v": 0})
    world.run_full_sync()
    assert len(world.erp.store) == 200
    return shop, world


@pytest.mark.parametrize("flag", ["0", "false", "N", 0, None, ""])
def test_case_r02_a_flag_that_says_false_as_text_deletes_nothing(shop_world: tuple[Shop, HttpWorld], flag: Any) -> None:
    shop, world = shop_world
    shop.flags(flag)
    world.run_full_sync()
    world.post_event("shop", "P001", "update", 3)
    shop.items["P001"]["v"] = 3
    world.run_drain()
    assert len(world.erp.store) == 200
    assert world.run_validation(full=True).verdict == "in_sync"


def test_case_r02_a_flag_that_says_nothing_deletes_nothing_and_is_named(shop_world: tuple[Shop, HttpWorld]) -> None:
    shop, world = shop_world
    shop.flags("archived?")
    report = world.run_full_sync()
    shop.items["P001"]["v"] = 3
    world.post_event("shop", "P001", "update", 3)
    world.run_drain()
    assert len(world.erp.store) == 200
    assert report.acknowledged == 0
    told = world.query("SELECT title, examples FROM sync.alerts WHERE kind = 'invalid_source_records'")
    assert any("deleted_when: 'archived'" in row.examples[0] for row in told)
    [event] = world.query("SELECT state, error FROM sync.events")
    assert (event.state, event.error.startswith("deleted_when: 'archived' is to be true or false")) == ("dead", True)


# gone_when.


@pytest.mark.parametrize(
    ("flag", "verdict"), [("0", "in_sync"), ("no", "in_sync"), (0, "in_sync"), ("active", "not_validated")]
)
def test_case_r02_gone_when_makes_no_duplicates(engine: Engine, server: Server, flag: Any, verdict: str) -> None:
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, "gone_when": "archived"})
    for number in range(7):
        world.put_record(f"k{number}", notify=False)
    world.run_full_sync()
    for stored in store.items.values():
        stored["archived"] = flag
    try:
        result = world.run_validation(full=True)
        said = (result.verdict, result.reason)
    except CallFailed as failure:
        said = ("not_validated", str(failure))
    world.run_until_settled()
    assert said[0] == verdict
    assert verdict == "in_sync" or "gone_when: 'archived' is to be true or false: 'active'" in str(said[1])
    assert len(store.items) == 7
    world.close()


# when of outcomes and of routes.


def outcome(when: str, means: str, body: Any, *, write: bool = True) -> CallFailed | None:
    rule = OutcomeRule.model_validate({"when": when, "means": means})
    return meant(Answer(200, {}, json.dumps(body).encode()), [rule], write=write)


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"error": False}, False),
        ({"error": "false"}, False),
        ({"error": "0"}, False),
        ({"error": 0}, False),
        ({"error": None}, False),
        ({"error": {}}, False),
        ({"error": []}, False),
        ({"error": ""}, False),
        ({}, False),
        ({"error": "no stock"}, True),
        ({"error": {"code": 5}}, True),
        ({"error": ["x"]}, True),
        ({"error": 17}, True),
        ({"error": "1"}, True),
        ({"error": True}, True),
    ],
)
def test_rule_33_an_error_is_what_says_that_there_is_one(body: Any, refused: bool) -> None:
    failure = outcome("body.error", "invalid", body)
    assert (failure is not None and failure.kind is Failure.PERMANENT) is refused


@pytest.mark.parametrize("means", ["ok", "created", "missing", "duplicate"])
def test_rule_33_no_success_or_absence_is_taken_from_another_text(means: str) -> None:
    failure = outcome("body.flag", means, {"flag": "failed"})
    assert failure is not None
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)
    assert failure.refusal is None
    assert "'body.flag' is to be true or false: 'failed'" in failure.detail
    assert outcome("body.flag", means, {"flag": "0"}) is None
    said = outcome("body.flag", means, {"flag": "1"})
    assert (said is None) is (means in ("ok", "created"))


def test_rule_33_a_negated_text_is_no_success() -> None:
    assert outcome("!(body.success)", "invalid", {"success": "true"}) is None
    refused = outcome("!(body.success)", "invalid", {"success": "false"})
    unread = outcome("!(body.success)", "invalid", {"success": "perhaps"})
    assert (refused is not None and refused.kind, unread is not None and unread.kind) == (
        Failure.PERMANENT,
        Failure.TRANSIENT,
    )


def test_rule_33_an_expression_that_negates_too_early_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"write '!\(a\.b\)'"):
        OutcomeRule.model_validate({"when": "!body.success", "means": "invalid"})


def test_rule_33_a_route_takes_its_errors_alike() -> None:
    assert condition_picks("body.error", {"body": {"error": "E17"}})
    assert not condition_picks("body.error", {"body": {"error": "0"}})
    assert not condition_picks("!(body.error)", {"body": {"error": "E17"}})


def test_rule_33_something_is_there() -> None:
    assert [says_something(value) for value in ("x", 5, [0], {"a": 0}, "false", [], {}, "", None)] == [
        True,
        True,
        True,
        True,
        False,
        False,
        False,
        False,
        False,
    ]


async def test_rule_33_gone_when_fails_the_read_by_name(server: Server) -> None:
    store = Store(server)
    store.by_hand(code="k1", archived="?")
    erp = adapter(server, {**THEIRS, "gone_when": "archived"})
    failure = await failure_of(erp.read(item(external_id="x1")))
    await erp.close()
    assert (failure.kind, failure.refusal) == (Failure.TRANSIENT, None)
    assert "gone_when: 'archived'" in failure.detail

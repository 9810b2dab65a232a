"""Classes of your own, named in ``sync.yaml``: told of where they are wrong, used, never believed."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import odd_adapters
import pytest
import yaml
from failing_adapters import raising
from http_server import Server, failure_of
from odd_adapters import Drawer, Shelf, class_document
from odd_adapters import empty_shelves as empty_shelves
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator import composition
from sync_orchestrator.adapters.custom.base import Given, ThirdPartyAdapter
from sync_orchestrator.adapters.custom.guard import AdapterGuard, GuardedSource
from sync_orchestrator.adapters.factory import build_sources, build_third_parties
from sync_orchestrator.config import Config
from sync_orchestrator.core.ports import Capabilities, Found, Item, PartRead, ThirdParty
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.errors import CallFailed, ConfigError, Failure, Refusal

PAYLOAD = {"code": "k1", "store": "A", "name": "n"}
GOOD = """
from sync_orchestrator.adapters.custom.base import SourceAdapter, ThirdPartyAdapter
from sync_orchestrator.core.ports import Capabilities
class Good(ThirdPartyAdapter):
    async def create(self, item): return "1"
    async def update(self, item): return "1"
    async def delete(self, item): return None
    async def read(self, item): return None
    async def pages(self, group):
        yield []
"""


def third_party(**changes: Any) -> ThirdParty:
    return build_third_parties(Config.model_validate(class_document(**changes)), {})["item"]


# Loading.


Told = Callable[..., list[str]]


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    """What is said of a document and of the module ``mine`` beside it, line by line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("SYNC_CONFIG", raising=False)

    def tell(module: str, adapter: str = "mine:Mine", **changes: Any) -> list[str]:
        (tmp_path / "mine.py").write_text(GOOD + module)
        (tmp_path / "sync.yaml").write_text(yaml.safe_dump(class_document(adapter, **changes), sort_keys=False))
        with pytest.raises(ConfigError) as caught:
            composition.load_config()
        return str(caught.value).splitlines()

    yield tell
    sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("module", "adapter", "said"),
    [
        (
            "",
            "nowhere.erp:Erp",
            "there is no module 'nowhere'; put it beside the configuration, install it, or name its "
            "folder in PYTHONPATH",
        ),
        ("", "mine:Goood", "mine has no class 'Goood'; did you mean 'Good'?"),
        (
            "Mine = 7",
            "mine:Mine",
            "'Mine' must be a class that begins with "
            "sync_orchestrator.adapters.custom.base.ThirdPartyAdapter: class Mine(ThirdPartyAdapter)",
        ),
        (
            "class Mine(SourceAdapter): pass",
            "mine:Mine",
            "'Mine' must be a class that begins with "
            "sync_orchestrator.adapters.custom.base.ThirdPartyAdapter: class Mine(ThirdPartyAdapter)",
        ),
        (
            "import not_there_at_all",
            "mine:Mine",
            "the import of mine failed: No module named 'not_there_at_all' (mine.py, line 11)",
        ),
        ("{}['x']", "mine:Mine", "the import of mine failed: KeyError: 'x' (mine.py, line 11)"),
        (
            "class Mine(ThirdPartyAdapter):\n    async def create(self, item): return '1'",
            "mine:Mine",
            "Mine has no 'delete', 'pages', 'read', 'update', which it must have",
        ),
        (
            "class Mine(Good):\n    def __init__(self, url, token): pass",
            "mine:Mine",
            "Mine must be made with one argument: def __init__(self, given: Given), and super().__init__(given) in it",
        ),
        (
            "class Mine(Good):\n    def read(self, item): return None",
            "mine:Mine",
            "Mine.read must be 'async def', and return its result",
        ),
        (
            "class Mine(Good):\n    async def pages(self, group): return []",
            "mine:Mine",
            "Mine.pages must yield pages: 'async def' with 'yield'",
        ),
        (
            "class Mine(Good):\n    capabilities = {}",
            "mine:Mine",
            "Mine.capabilities must be Capabilities(...), of sync_orchestrator.core.ports",
        ),
        (
            "class Mine(Good):\n    capabilities = Capabilities(True, True, False, False)",
            "mine:Mine",
            "Mine.capabilities says that it can be searched by key, and there is no 'lookup'",
        ),
        (
            "class Mine(Good):\n    Settings = dict",
            "mine:Mine",
            "Mine.Settings must be a pydantic model: class Settings(BaseModel)",
        ),
    ],
)
def test_a_class_that_cannot_be_used_is_told_of_where_it_is_named(
    told: Told,
    module: str,
    adapter: str,
    said: str,
) -> None:
    assert told(module, adapter) == [f"sync.yaml:7: third_parties.erp.adapter: {said}"]


def test_wrong_settings_are_told_of_where_they_stand(told: Told) -> None:
    module = """
from pydantic import BaseModel
class Mine(Good):
    class Settings(BaseModel, extra="forbid"):
        most: int
        folder: str
"""
    assert told(module, system={"settings": {"most": "many", "mots": 3}}, third_party={"settings": {"x": 1}}) == [
        "sync.yaml:11: third_parties.erp.settings.folder: is needed",
        "sync.yaml:12: third_parties.erp.settings.most: should be a valid integer, unable to parse string as an "
        "integer",
        "sync.yaml:13: third_parties.erp.settings.mots: Mine has no such setting; known here: folder, most",
        "sync.yaml:35: entities.item.third_party.settings.x: Mine has no such setting; known here: folder, most",
    ]


def test_a_wrong_class_of_a_source_is_told_of_in_the_same_way(told: Told) -> None:
    assert told("", "mine:Good", source={"adapter": "mine:Good"}) == [
        "sync.yaml:4: sources.shop.adapter: 'Good' must be a class that begins with "
        "sync_orchestrator.adapters.custom.base.SourceAdapter: class Good(SourceAdapter)"
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"third_party": {"read": {"path": "/x"}}},
            "entities.item.third_party.read: the class mine:Good sees to that: leave it out",
        ),
        ({"system": {"adapter": None}}, "third_parties.erp: 'base_url' is needed, or 'adapter'"),
        (
            {"system": {"adapter": None, "base_url": "http://x", "settings": {"a": 1}}},
            "third_parties.erp.settings: 'settings' are for a class: name it with 'adapter', or leave them out",
        ),
        (
            {"system": {"headers": {"A": "b"}}},
            "third_parties.erp.headers: 'headers' is for calls over HTTP: say 'base_url', too, or leave it out",
        ),
        (
            {"source": {"auth": {"kind": "bearer", "token": "t"}}},
            "sources.shop.auth: 'auth' is for calls over HTTP: say 'base_url', too, or leave it out",
        ),
        ({"system": {"adapter": "Good"}}, "third_parties.erp.adapter: should match pattern"),
    ],
)
def test_what_does_not_go_with_a_class_is_refused(told: Told, changes: dict[str, Any], said: str) -> None:
    assert said in told("", "mine:Good", **changes)[0]


def test_what_was_not_looked_at_before_is_told_of_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match=r"third_parties.erp.adapter: settings.most: should be a valid integer"):
        third_party(system={"settings": {"most": "x"}})
    with pytest.raises(ConfigError, match=r"third_parties.erp.adapter: there is no module 'no_such_module'"):
        third_party(adapter="no_such_module:Erp")


def test_a_constructor_that_fails_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Shelf, given: Any) -> None:
        raise OSError("no such folder")

    monkeypatch.setattr(Shelf, "__init__", fail)
    with pytest.raises(
        ConfigError, match=r"Shelf cannot be made: OSError: no such folder \(test_custom_adapters.py, line"
    ):
        third_party()


def test_capabilities_that_a_constructor_makes_are_looked_at_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shelf, "capabilities", property(lambda self: None))
    with pytest.raises(ConfigError, match=r"Shelf\.capabilities must be Capabilities"):
        third_party()


# What a class is given.


def test_settings_of_the_entity_count_more_than_those_of_the_system() -> None:
    third_party(system={"settings": {"collection": "a", "most": 7}}, third_party={"settings": {"collection": "b"}})
    assert list(Shelf.kept) == ["b"]


class OverHttp(ThirdPartyAdapter):
    """Its reads are tried again; a signature is made for each attempt."""

    def sign(self, call: Any) -> dict[str, str]:
        return {"X-Signature": f"{call.method} {call.target} {len(call.content)}"}

    async def create(self, item: Item) -> str:
        return str((await self.http.call("POST", "/items", body=b"<new/>", headers={"Content-Type": "x/y"})).body["id"])

    async def update(self, item: Item) -> str | None:
        return None

    async def delete(self, item: Item) -> None:
        await self.http.call("DELETE", f"/items/{item.external_id}")

    async def read(self, item: Item) -> Found | None:
        try:
            body = (await self.http.call("GET", "/items/x%2Fy", params={"q": "ä b", "none": None})).body
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING:
                return None
            raise
        return Found("k", "x", None, body)

    async def pages(self, group: str) -> Any:
        yield []


async def test_our_client_signs_each_attempt_and_hides_secrets(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bytes]] = []

    async def handler(request: Request) -> Response:
        seen.append((request.headers["X-Signature"], await request.body()))
        if request.method == "GET" and len(seen) < 3:
            return JSONResponse({}, 503)
        return JSONResponse({"token": "hush-hush"}, 500) if request.method == "DELETE" else JSONResponse({"id": 7})

    server.handler = handler
    monkeypatch.setattr(odd_adapters, "OverHttp", OverHttp, raising=False)
    adapter = third_party(
        adapter="odd_adapters:OverHttp", system={"base_url": f"{server.url}/v1", "headers": {"X-Token": "hush-hush"}}
    )
    item = Item("k", "A", {}, external_id="x")
    assert (await adapter.read(item)).fields == {"id": 7}  # type: ignore[union-attr]
    assert [sign for sign, _ in seen] == ["GET /v1/items/x%2Fy?q=%C3%A4%20b 0"] * 3
    assert await adapter.create(item) == "7"
    assert seen[-1] == ("POST /v1/items 6", b"<new/>")
    failure = await failure_of(adapter.delete(item))
    assert failure.unknown
    assert "***" in failure.detail
    assert "hush" not in failure.detail
    await adapter.close()


async def test_without_an_address_the_rate_counts_methods(server: Server) -> None:
    calls = 0

    async def before_call() -> None:
        nonlocal calls
        calls += 1

    adapter = build_third_parties(Config.model_validate(class_document()), {"erp": before_call})["item"]
    external_id = await adapter.create(Item("k1", "A", PAYLOAD))
    await adapter.read(Item("k1", "A", {}, external_id=external_id))
    assert calls == 2


@pytest.mark.parametrize("address", [{}, {"base_url": "http://127.0.0.1:1"}])
async def test_a_class_that_is_turned_away_is_left_alone_as_long_as_asked(address: dict[str, str]) -> None:
    def turned_away() -> None:
        raise CallFailed(Failure.THROTTLED, "busy", retry_after=600)

    Shelf.instead["read"] = turned_away
    hold_off = HoldOff()
    config = Config.model_validate(class_document(system=address))
    adapter = build_third_parties(config, {}, {"erp": hold_off})["item"]
    await failure_of(adapter.read(Item("k1", "A", {}, external_id="s1")))
    assert await hold_off.seconds_left() > 500
    if not address:
        assert (await failure_of(adapter.count("A"))).kind is Failure.THROTTLED
    await adapter.close()


# What is believed of it.


async def hang() -> None:
    await asyncio.Event().wait()


CALLS: dict[str, Callable[[ThirdParty], Awaitable[Any]]] = {
    "create": lambda adapter: adapter.create(Item("k1", "A", PAYLOAD)),
    "update": lambda adapter: adapter.update(Item("k1", "A", PAYLOAD, external_id="s1")),
    "delete": lambda adapter: adapter.delete(Item("k1", "A", {}, external_id="s1")),
    "read": lambda adapter: adapter.read(Item("k1", "A", {}, external_id="s1")),
    "lookup": lambda adapter: adapter.lookup("k1", "A"),
    "count": lambda adapter: adapter.count("A"),
    "pages": lambda adapter: anext(adapter.pages("A")),
}


@pytest.mark.parametrize("method", list(CALLS))
@pytest.mark.parametrize(
    ("misbehaviour", "said"),
    [
        (raising(KeyError("id")), r"Shelf.{} raised KeyError: 'id' \(odd_adapters.py, line \d+\)"),
        (raising(SystemExit(3)), "Shelf.{} raised SystemExit: 3 "),
        (raising(asyncio.CancelledError()), "Shelf.{} was cancelled from within"),
        (raising(TimeoutError()), "Shelf.{} raised TimeoutError"),
        (raising(CallFailed("gone", "x")), "Shelf.{} raised CallFailed of kind 'gone', which is no Failure"),  # type: ignore[arg-type]
        (raising(ValueError("no login with pass-word")), r"Shelf.{} raised ValueError: no login with \*\*\*"),
        (hang, "Shelf.{} has not ended within 0.1 s"),
        (lambda: 4.5, r"Shelf.{} (gave|returned) float \(4.5\), not"),
    ],
)
async def test_what_no_method_should_do_is_a_classed_failure(
    method: str,
    misbehaviour: Callable[[], Any],
    said: str,
) -> None:
    Shelf.kept["things"] = {"s1": dict(PAYLOAD)}
    Shelf.instead[method] = misbehaviour
    adapter = third_party(system={"timeout": 0.05, "settings": {"password": "pass-word"}})
    failure = await failure_of(CALLS[method](adapter))
    assert failure.kind is Failure.TRANSIENT
    assert failure.unknown == (method in ("create", "update", "delete"))
    with pytest.raises(CallFailed, match=said.format(method)):
        raise failure


@pytest.mark.parametrize(
    ("method", "came", "said"),
    [
        ("create", None, "gave NoneType, not a text that names something"),
        ("create", "", r"gave str \(''\), not a text that names something"),
        ("read", {"name": "n"}, "not a Found"),
        ("read", Found("k1", 7, "A", {}), r"gave int \(7\), not a text that names something, as external_id"),  # type: ignore[arg-type]
        ("read", Found("k1", "7", "A", {"at": {1}}), "gave fields that are no JSON"),
        ("lookup", None, "gave NoneType, not a list"),
        ("lookup", [None], "gave NoneType, not a Found"),
        ("count", True, "not a whole number"),
        ("delete", False, r"returned bool \(False\), not None; what fails is told by CallFailed"),
    ],
)
async def test_a_result_that_means_nothing_is_a_failure(method: str, came: Any, said: str) -> None:
    Shelf.instead[method] = lambda: came
    with pytest.raises(CallFailed, match=said):
        raise await failure_of(CALLS[method](third_party()))


async def test_a_listing_that_never_moves_on_is_ended() -> None:
    Shelf.kept["things"] = {f"s{number}": {**PAYLOAD, "code": f"k{number}"} for number in range(9)}
    Shelf.instead["pages"] = lambda: [Found("k1", "s1", "A", {})]
    Shelf.instead["count"] = lambda: 1

    async def all_of_it() -> list[Any]:
        return [page async for page in same(third_party().pages("A"))]

    async def same(pages: Any) -> Any:
        async for page in pages:
            yield page

    assert len(await all_of_it()) == 6  # a page between two is none twice running
    Shelf.kept["things"] = {f"s{number}": {**PAYLOAD, "code": "k1"} for number in range(9)}

    class Stuck(Shelf):
        async def pages(self, group: str) -> Any:
            while True:
                yield [Found("k1", "s1", "A", {})]

    odd_adapters.Stuck = Stuck  # type: ignore[attr-defined]
    adapter = third_party(adapter="odd_adapters:Stuck")

    async def endless() -> None:
        async for _ in adapter.pages("A"):
            pass

    assert "gives the same page again and again" in (await failure_of(endless())).detail


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (None, "gave NoneType, not a PartRead"),
        (PartRead("", 1, {}), "not a text that names something, as key"),
        (PartRead("k", 1.5, {}), "as version, not a whole number"),  # type: ignore[arg-type]
        (PartRead("k", 1, [1]), "as data, not a dict"),  # type: ignore[arg-type]
    ],
)
async def test_what_a_source_gives_is_looked_at_too(row: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Drawer, "part_of", lambda self, row_: row)
    Drawer.rows.append({"key": "k", "store": "A", "v": 1})
    source = build_sources(Config.model_validate(class_document()))["item"]["shop"]
    assert said in (await failure_of(anext(source.pages("A")))).detail


def test_what_a_source_can_do_follows_from_its_methods() -> None:
    assert not Drawer.can_read
    assert odd_adapters.ReadableDrawer.can_read
    assert not odd_adapters.ReadableDrawer.can_poll


async def test_records_are_read_one_by_one_where_only_that_is_written() -> None:
    Drawer.rows.extend({"key": key, "store": "A", "v": 1} for key in "abc")
    source = build_sources(Config.model_validate(class_document(source={"adapter": "odd_adapters:ReadableDrawer"})))
    assert [row.key for row in await source["item"]["shop"].read_many(["a", "x", "c"])] == ["a", "c"]


def test_records_are_read_together_where_a_class_has_a_way_of_its_own() -> None:
    class Together(Drawer):
        read_many_size = 20

        async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
            return []

    class Both(Together):
        async def read(self, key: str) -> PartRead | None:
            return None

    said = []
    for kind in (Drawer, odd_adapters.ReadableDrawer, Together, Both):
        made = kind(
            Given("shop", "item", {}, part=Config.model_validate(class_document()).entities["item"].parts["shop"])
        )
        guarded = GuardedSource(made, AdapterGuard(made, 5, None, HoldOff(), ()), made.close)
        said.append((guarded.can_read, guarded.read_many_size, guarded.confirms_absence))
    assert said == [(False, 1, False), (True, 1, False), (True, 20, False), (True, 20, True)]


# All of it.


def test_capabilities_are_those_of_the_class() -> None:
    assert third_party().capabilities == Capabilities(True, True, False, False)

"""The conformance test on other adapters: ids of ours, addresses with a group, bulk calls, classes, and sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import unquote

import odd_adapters
import pytest
from conformance_catalogue import SAMPLE, Catalogue, configuration, failed, skipped
from http_server import Server
from odd_adapters import Drawer, Shelf, class_document
from small_systems import Backoffice, products
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.custom.base import SourceAdapter
from sync_orchestrator.config import Config
from sync_orchestrator.conformance import assert_conforms, run_conformance
from sync_orchestrator.conformance.report import ConformanceReport
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import CallFailed, Failure


class Folders:
    """``/stores/{store}/items/{code}``: our keys are the ids, a PUT makes what is missing. ``strange`` is refused."""

    def __init__(self, server: Server) -> None:
        self.items: dict[tuple[str, str], dict[str, Any]] = {}
        self.strange = ""
        self.decodes_twice = False
        server.handler = self.handle

    async def handle(self, request: Request) -> Response:
        _, store, _, *rest = request.scope["raw_path"].decode().strip("/").split("/")
        if not rest:
            return JSONResponse([item for place, item in self.items.items() if place[0] == store])
        code = unquote(rest[0])
        place = store, code
        if set(code) & set(self.strange):
            return JSONResponse({"error": "no such characters"}, 422)
        if request.method == "PUT":
            self.items[place] = {**await request.json(), "code": unquote(code) if self.decodes_twice else code}
        if place not in self.items:
            return JSONResponse({"error": "no such item"}, 404)
        return JSONResponse(self.items.pop(place) if request.method == "DELETE" else self.items[place])


OURS = {
    "ids": "ours",
    "idempotency": None,
    "create": None,
    "lookup": None,
    "count": None,
    "update": {"method": "PUT", "path": "/stores/{{ group }}/items/{{ key }}"},
    "delete": {"path": "/stores/{{ group }}/items/{{ key }}"},
    "read": {"path": "/stores/{{ group }}/items/{{ key }}"},
    "list": {"path": "/stores/{{ group }}/items"},
}


EMPTY: dict[str, Any] = {}


@pytest.fixture
def folders(server: Server) -> Folders:
    return Folders(server)


async def tried(config: Config, **options: Any) -> ConformanceReport:
    return await run_conformance(config, "thing", samples=[SAMPLE], other_group="B", odd_keys=True, **options)


async def test_ids_of_ours_at_addresses_with_a_group(server: Server, folders: Folders) -> None:
    report = await tried(configuration(server, **OURS))
    assert failed(report) == {"wrong-login-is-told"}, "it has no login"
    assert skipped(report) == {
        "lookup-finds-by-key",
        "list-has-more-than-one-page",
        "count-agrees-with-list",
        "bulk-results-are-item-by-item",
    }
    assert folders.items == {}


async def test_keys_that_are_refused_are_skipped_and_those_that_change_fail(server: Server, folders: Folders) -> None:
    folders.strange = "/ "
    folders.decodes_twice = True
    report = await tried(configuration(server, **OURS))
    assert {"key-with-slash", "key-with-space"} <= skipped(report)
    assert "say which it takes with key_pattern" in report.find_ending("key-with-slash").came
    assert "key-with-percent" in failed(report)
    assert report.find_ending("key-with-quotes").outcome == "passed"


async def test_keys_fit_the_pattern_that_is_set_up(server: Server, folders: Folders) -> None:
    report = await tried(configuration(server, **OURS, key_pattern=r"\d{5,20}"), skip=["wrong-login-is-told"])
    assert failed(report) == set()
    assert "key-with-slash" in skipped(report)


@pytest.mark.parametrize(("spoilt", "outcome"), [(False, "passed"), (True, "failed")])
async def test_calls_of_many_records(server: Server, spoilt: bool, outcome: str) -> None:
    catalogue = Catalogue(server)
    single = catalogue.handle

    async def handle(request: Request) -> Response:
        if request.path_params["rest"] != "batch":
            return await single(request)
        asked = await request.json()
        if spoilt and any(one["id"] not in catalogue.items for one in asked):
            return JSONResponse([{"status": 404} for _ in asked])
        for one in asked:
            if one["id"] in catalogue.items:
                catalogue.items[one["id"]] |= one["payload"]
        return JSONResponse([{"status": 200 if one["id"] in catalogue.items else 404} for one in asked])

    server.handler = handle
    report = await tried(
        configuration(
            server,
            bulk_update={"request": {"path": "/batch", "body": "{{ items }}"}, "results": "@", "status": "status"},
        )
    )
    assert report.find_ending("bulk-results-are-item-by-item").outcome == outcome


# Classes.


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    yield
    Shelf.kept.clear()
    Shelf.instead.clear()
    Drawer.rows.clear()


async def of_class(**changes: Any) -> ConformanceReport:
    config = Config.model_validate(class_document(system={"search_lag": 0}, **changes))
    return await run_conformance(
        config, "item", samples=[{"code": "k", "store": "A", "name": "a name"}], other_group="B"
    )


async def test_a_class_that_does_what_it_should_passes() -> None:
    report = await of_class()
    assert failed(report) == set()
    assert {"list-has-more-than-one-page", "lookup-finds-by-key"}.isdisjoint(skipped(report))
    assert Shelf.kept["things"] == {}


@pytest.mark.parametrize(
    ("method", "misbehaviour", "named"),
    [
        ("delete", lambda: None, "delete-then-gone"),
        ("count", lambda: 10**6, "count-agrees-with-list"),
        ("lookup", list, "lookup-finds-by-key"),
        ("pages", lambda: EMPTY["id"], "list-is-complete"),
        ("read", lambda: None, "create-then-read"),
        ("update", lambda: EMPTY["id"], "update-then-read"),
    ],
)
async def test_a_class_that_does_not_is_told_where_to_look(
    method: str,
    misbehaviour: Callable[[], Any],
    named: str,
) -> None:
    Shelf.instead[method] = misbehaviour
    report = await of_class()
    assert named in failed(report)
    assert "odd_adapters:Shelf" in report.find_ending(named).hint


# Sources.


class Ledger(SourceAdapter):
    """Rows in pages of two, by key, each with a fault that a test plants."""

    keyset_listing = True
    fault = ""

    async def pages(self, group: str, after: str | None = None) -> Any:
        rows = [
            row
            for row in ROWS
            if row["store"] == group and row["key"] > ("" if self.fault == "restarts" else after or "")
        ]
        if self.fault == "repeats":
            rows = [rows[0], *rows]
        if self.fault == "mixes":
            rows = [*rows, {**rows[0], "key": "z", "store": "B"}]
        for start in range(0, len(rows), 2):
            page = rows[start : start + 2]
            yield [self.part_of({**row, "v": 0} if self.fault == "zero" else row) for row in page], page[-1]["key"]

    async def read(self, key: str) -> PartRead | None:
        row = next((row for row in ROWS if row["key"] == key), None)
        if self.fault == "stale" and row is not None:
            return self.part_of({**row, "v": row["v"] - 1})
        if self.fault == "blames" and row is None:
            raise CallFailed(Failure.PERMANENT, "no such row")
        return None if row is None or self.fault == "forgets" else self.part_of(row)

    async def changes(self, since: int) -> Any:
        yield [self.part_of(row) for row in ROWS if row["v"] >= since + 2 * (self.fault == "skips")]

    async def count(self, group: str) -> int | None:
        return len([row for row in ROWS if row["store"] == group]) + (self.fault == "miscounts")

    async def groups(self) -> list[str] | None:
        return ["B"] if self.fault == "hides" else ["A", "B"]


ROWS: list[dict[str, Any]] = [{"key": f"k{number}", "store": "A", "name": "n", "v": number + 10} for number in range(5)]


async def of_source(fault: str, monkeypatch: pytest.MonkeyPatch) -> ConformanceReport:
    monkeypatch.setattr(odd_adapters, "Ledger", Ledger, raising=False)
    monkeypatch.setattr(Ledger, "fault", fault)
    config = Config.model_validate(class_document(source={"adapter": "odd_adapters:Ledger"}))
    return await run_conformance(config, "item", part="shop", group="A")


async def test_a_source_that_does_what_it_should_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    report = await of_source("", monkeypatch)
    assert {ending.outcome for ending in report.endings} == {"passed"}


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ("restarts", "listing-goes-on-from-a-position"),
        ("repeats", "listing-is-complete"),
        ("zero", "versions-make-sense"),
        ("stale", "read-shows-what-is-listed"),
        ("forgets", "read-many-shows-what-is-listed"),
        ("blames", "missing-key-is-told"),
        ("skips", "changes-since-a-version-are-shown"),
        ("miscounts", "source-count-agrees-with-listing"),
        ("hides", "groups-are-named"),
    ],
)
async def test_a_fault_of_a_source_is_told_by_name(fault: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    report = await of_source(fault, monkeypatch)
    assert named in failed(report) or report.find_ending(named).because_of in failed(report)
    assert report.find_ending(named).hint or report.find_ending(named).because_of


async def test_a_source_over_http(server: Server) -> None:
    backoffice = Backoffice(products())
    server.handler = backoffice
    config = Config.model_validate(
        {
            "sources": {"backoffice": {"base_url": server.url, "auth": {"kind": "bearer", "token": "source-secret"}}},
            "third_parties": {"partner": {"base_url": server.url}},
            "entities": {
                "product": {
                    "owner": "backoffice",
                    "parts": {
                        "backoffice": {
                            "key": "sku",
                            "group": "shop",
                            "version": {"path": "updated_at"},
                            "groups": {"path": "/shops"},
                            "read": {"path": "/products/{{ key }}"},
                            "list": {
                                "path": "/products",
                                "items": "products",
                                "paging": "page",
                                "size": 2,
                                "params": {"shop": "{{ group }}", "page": "{{ page }}", "limit": "{{ limit }}"},
                            },
                        }
                    },
                    "mapping": {"sku": "key"},
                    "third_party": {
                        "system": "partner",
                        "key_field": "sku",
                        "create": {"path": "/items"},
                        "update": {"path": "/items/{{ id }}"},
                        "delete": {"path": "/items/{{ id }}"},
                        "read": {"path": "/items/{{ id }}"},
                        "list": {"path": "/items"},
                    },
                }
            },
        }
    )
    report = await assert_conforms(config, "product", part="backoffice")
    assert skipped(report) == {
        "listing-goes-on-from-a-position",
        "source-count-agrees-with-listing",
        "changes-since-a-version-are-shown",
    }
    backoffice.ignores_filters = True
    ending = (await run_conformance(config, "product", part="backoffice")).find_ending("listing-is-of-its-group")
    assert (ending.outcome, "4 rows belong to other groups" in ending.came) == ("skipped", True), ending


async def test_nothing_to_try_is_no_success(server: Server) -> None:
    with pytest.raises(AssertionError, match="nothing could be tried: 'nowhere' has no records"):
        await assert_conforms(Config.model_validate(class_document()), "item", part="shop", group="nowhere")


async def test_what_nobody_else_made_is_left_alone(server: Server) -> None:
    Shelf.kept["things"] = {"mine": {"code": "sync-test-by-hand", "store": "A", "name": "n"}}
    await of_class()
    assert Shelf.kept["things"] == {"mine": {"code": "sync-test-by-hand", "store": "A", "name": "n"}}

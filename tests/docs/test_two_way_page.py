"""The page about two-way sync, on two HTTP servers whose records people change: one of them has revisions."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cookbook_pages import fences_of, parse_yaml
from http_server import Server
from paths import ROOT
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator import composition
from sync_orchestrator.config import parse_config
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.intake.polling import poll
from sync_orchestrator.core.two_way.resolving import Choice, list_conflicts, resolve_conflict
from sync_orchestrator.core.two_way.three_way import Winner
from sync_orchestrator.core.validation.validate import validate


class Items:
    """A system with items; ``has_revisions``: it has an ETag, and refuses an update with another one."""

    def __init__(self, clock: Iterator[datetime], *, has_revisions: bool) -> None:
        self.server = Server()
        self.server.handler = self.receive
        self.rows: dict[str, dict[str, Any]] = {}
        self.writes: list[tuple[str, dict[str, Any]]] = []
        self._clock = clock
        self._ids = itertools.count(1)
        self._has_revisions = has_revisions

    def make(self, **fields: Any) -> dict[str, Any]:
        number = str(next(self._ids))
        self.rows[number] = {"id": number, "store": "A", **fields, "changed": next(self._clock).isoformat()}
        return self.rows[number]

    def edit(self, sku: str, **fields: Any) -> None:
        """A person changes an item."""
        self.find(sku).update({**fields, "changed": next(self._clock).isoformat()})

    def find(self, sku: str) -> dict[str, Any]:
        (row,) = [row for row in self.rows.values() if row["sku"] == sku]
        return row

    async def receive(self, request: Request) -> Response:
        body = await request.body()
        data, query = json.loads(body) if body else {}, request.query_params
        match request.url.path.strip("/").split("/"):
            case ["stores"]:
                return JSONResponse({"stores": ["A"]})
            case ["items"] if request.method == "POST":
                self.writes.append(("POST", data))
                return JSONResponse(self.make(**data), 201)
            case ["items"]:
                rows = [row for row in self.rows.values() if query.get("store") in (None, row["store"])]
                rows = [row for row in rows if query.get("sku") in (None, row["sku"])]
                since = datetime.fromisoformat(query.get("changed_since", "1970-01-01T00:00:00+00:00"))
                return JSONResponse({"items": [row for row in rows if datetime.fromisoformat(row["changed"]) >= since]})
            case ["items", number] if number in self.rows:
                return self._respond_to_item(request, number, data)
        return JSONResponse({"error": "no such item"}, 404)

    def _respond_to_item(self, request: Request, number: str, data: dict[str, Any]) -> Response:
        row = self.rows[number]
        etag = f'"{row["changed"]}"'
        if request.method == "PATCH":
            if self._has_revisions and request.headers.get("if-match") != etag:
                return JSONResponse({"error": "it has changed"}, 412)
            self.writes.append(("PATCH", data))
            row.update({**data, "changed": next(self._clock).isoformat()})
        elif request.method == "DELETE":
            self.writes.append(("DELETE", {}))
            del self.rows[number]
            return Response(status_code=204)
        return JSONResponse(row, headers={"ETag": etag} if self._has_revisions else {})


class Page:
    """Both systems, and the system between them by the YAML of the page."""

    def __init__(self, engine: Engine) -> None:
        clock = (datetime.now(UTC) + timedelta(seconds=10 * n) for n in itertools.count(1))
        self.engine = engine
        self.shop, self.erp = Items(clock, has_revisions=False), Items(clock, has_revisions=True)
        text = (ROOT / "docs" / "two-way.md").read_text(encoding="utf-8")
        (yaml,) = [fence for language, fence in fences_of(text) if language == "yaml"]
        for name, items in (("shop", self.shop), ("erp", self.erp)):
            yaml = yaml.replace(f"https://{name}.example.com", items.server.url)
        self.config = parse_config(json.dumps(parse_yaml(yaml)), "sync.yaml")
        self.context = composition.open_context(engine, self.config)

    async def sync(self) -> None:
        for name in ("product", "product_back"):
            await full_sync(self.context, self.context.entities[name], "A", patience=1)
        await self.drain()

    async def poll(self) -> None:
        for name, part in (("product", "shop"), ("product_back", "erp")):
            await poll(self.context, self.context.entities[name], part, due_only=False)
        await self.drain()

    async def drain(self) -> None:
        await drain(self.context, linger=0, most_seconds=30)

    async def close(self) -> None:
        await self.context.close()
        for items in (self.shop, self.erp):
            items.server.stop()

    def both(self, sku: str, *names: str) -> tuple[list[Any], list[Any]]:
        """Some fields of an item on both sides."""
        first, second = ([items.find(sku).get(name) for name in names] for items in (self.shop, self.erp))
        return first, second


@pytest.fixture
async def page(engine: Engine) -> AsyncIterator[Page]:
    page = Page(engine)
    page.shop.make(sku="L-1", title="a lamp", note="from the shop", price=10)
    page.erp.make(sku="C-1", title="a chair", note="from the ERP", price=20)
    await page.sync()
    yield page
    await page.close()


async def test_each_side_has_what_was_made_on_the_other(page: Page) -> None:
    assert page.both("L-1", "title", "note", "price") == (["a lamp", "from the shop", 10],) * 2
    assert page.both("C-1", "title", "note", "price") == (["a chair", "from the ERP", 20],) * 2
    assert [call for call, _ in (*page.shop.writes, *page.erp.writes)] == ["POST", "POST"]


async def test_only_changed_fields_are_written(page: Page) -> None:
    page.erp.edit("L-1", note="from a person in the ERP")
    await page.poll()
    assert page.both("L-1", "note") == (["from a person in the ERP"],) * 2
    call, sent = page.shop.writes[-1]
    assert (call, sent.get("note"), "price" in sent) == ("PATCH", "from a person in the ERP", False)


async def test_a_change_that_nobody_has_told_of_is_not_overwritten(page: Page) -> None:
    page.erp.edit("L-1", note="unseen")
    page.shop.edit("L-1", note="newer")
    await poll(page.context, page.context.entities["product"], "shop", due_only=False)
    await page.drain()
    await page.drain()
    assert page.both("L-1", "note") == (["newer"],) * 2
    with page.engine.begin() as connection:
        (noted,) = list_conflicts(connection, states=["decided"])
    assert (noted["ours"], noted["theirs"], noted["winner"]) == ("newer", "unseen", "ours")


async def test_a_person_decides_and_nothing_is_written_at_rest(page: Page) -> None:
    page.shop.edit("C-1", price=21)
    page.erp.edit("C-1", price=22)
    await page.poll()
    assert page.both("C-1", "price") == ([21], [22])
    two_ways = composition.build_two_ways(page.config)
    with page.engine.begin() as connection:
        (waiting,) = list_conflicts(connection)
        resolve_conflict(connection, two_ways, waiting["id"], Choice(Winner.THEIRS))
    await page.drain()
    assert page.both("C-1", "price") == ([22], [22])
    before = len(page.shop.writes) + len(page.erp.writes)
    for _ in range(3):
        await page.poll()
    await page.sync()
    assert len(page.shop.writes) + len(page.erp.writes) == before
    for name in ("product", "product_back"):
        found = await validate(page.context, page.context.entities[name], "A", full=True)
        assert found.verdict == "in_sync"


async def test_a_deletion_there_waits_for_a_person(page: Page) -> None:
    del page.erp.rows[page.erp.find("L-1")["id"]]
    page.shop.edit("L-1", title="a new title")  # the write to the ERP finds that the item is gone
    await page.poll()
    await page.drain()
    assert "L-1" in {row["sku"] for row in page.shop.rows.values()}
    with page.engine.begin() as connection:
        (waiting,) = list_conflicts(connection)
        assert (waiting["key"], waiting["field"]) == ("L-1", None)
        titles = [row.title for row in run(connection, "SELECT title FROM sync.alerts WHERE kind = 'conflicts'")]
    assert titles == ["product: both sides have changed records, and a person has to decide"]

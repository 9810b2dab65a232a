"""Source systems and a third party that speak HTTP in memory, with the faults that the field reports, on command.

The adapters that users have are what talks to them: only the connection is replaced (``connected``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from fakes import FakeSource, FakeThirdParty, two_part_config
from sqlalchemy import Engine
from tenacity import wait_none
from world import World

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.factory import build_sources, build_third_parties
from sync_orchestrator.adapters.http import client as http_module
from sync_orchestrator.adapters.http import read_retries
from sync_orchestrator.adapters.http.transport import Received
from sync_orchestrator.composition import build_context
from sync_orchestrator.core.ports import PartRead

Reply = tuple[int, Any]
"""A status and a body: JSON, or text that is sent as HTML."""

Backup = tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]], int]
"""Records by id, those of others among them, and the last id that was given."""

HTML = "<!DOCTYPE html><title>Maintenance</title>"


class LostAnswer(Exception):
    """The connection breaks after the request was carried out."""


class NotConnected(Exception):
    """Nobody listens."""


@dataclass
class FieldSource(FakeSource):
    """A source system whose reads may lag or lie for a while; what is true stays in ``rows``.

    ``fault``: ``lags`` shows what was there when it began, ``empty`` shows nothing, ``gone`` answers 404 in HTML to
    everything, ``html`` a page with status 200, ``down`` nothing at all. Keys are shown as texts and as numbers.
    """

    fault: str = "none"
    behind: dict[str, PartRead] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def turn(self, fault: str) -> None:
        """Another fault from now on, or none."""
        self.fault, self.behind = fault, dict(self.rows)

    def answer(self, path: str, query: Mapping[str, str]) -> Reply:
        """What a GET is answered with."""
        match self.fault:
            case "down":
                raise NotConnected
            case "gone":
                return 404, HTML
            case "html":
                return 200, HTML
        rows = {"lags": self.behind, "empty": {}}.get(self.fault, self.rows)
        if path == "/count":
            return 200, {"n": len(self._of(rows, query))}
        if path == "/groups":
            return 200, {"groups": sorted({row.group for row in rows.values() if row.group})}
        if path == "/rows":
            chosen = [row for row in self._of(rows, query) if row.key > query.get("after", "")]
            return 200, {"rows": [self._shown(row) for row in sorted(chosen, key=lambda row: row.key)[:2]]}
        if path == "/some":
            return 200, {"rows": [self._shown(rows[key]) for key in query["keys"].split(",") if key in rows]}
        row = rows.get(path.removeprefix("/rows/"))
        return (404, {"error": "no such record"}) if row is None else (200, self._shown(row))

    @staticmethod
    def _of(rows: Mapping[str, PartRead], query: Mapping[str, str]) -> list[PartRead]:
        return [row for row in rows.values() if row.group in (query.get("store"), None)]

    def _shown(self, row: PartRead) -> dict[str, Any]:
        key: Any = row.key
        if row.key.isdecimal():
            self.reads += 1
            key = (row.key, int(row.key), float(row.key))[self.reads % 3]
        return {**row.data, "key": key, "v": row.version}


class FieldThirdParty(FakeThirdParty):
    """Gives ids in a sequence, holds records of others beside ours, and takes each name once.

    ``fault`` says how calls end: ``down``, ``html`` (a page with status 200, nothing done), ``gone`` (404 to every id),
    ``moved`` (404 in HTML to everything), ``before`` and ``after`` (some 500, nothing or all done), ``lost`` (some
    answers do not come), ``empty`` (some answers have no body), ``texts`` (whether it is done is a text, and some are
    not), ``refuse a``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fault = "none"
        self.others: dict[str, dict[str, Any]] = {}
        self.written: list[dict[str, Any]] = []
        """What writes of ours left behind, in their order."""
        self.on_create: Callable[[str], None] = lambda external_id: None
        self.on_delete: Callable[[str, str], None] = lambda external_id, code: None
        self._writes = 0

    def add_for_others(self, code: str, store: str, under: str | None = None) -> None:
        """Somebody else's record, under an id that was free, or under the next one."""
        external_id = under or self._free_id()
        self.others[external_id] = {"code": code, "store": store, "name": f"of {code}", "count": 0}
        self.store[external_id] = dict(self.others[external_id])

    def backup(self) -> Backup:
        """What ``restore`` takes."""
        return {each: dict(record) for each, record in self.store.items()}, dict(self.others), self._next

    def restore(self, backup: Backup) -> None:
        """As it was at an earlier time; ids that were given since will be given again."""
        store, others, self._next = backup
        self.others = dict(others)
        self.store = {each: dict(record) for each, record in store.items()}

    def _free_id(self) -> str:
        self._next += 1
        while str(self._next) in self.store:
            self._next += 1
        return str(self._next)

    async def reply(self, verb: str, path: str, query: Mapping[str, str], body: Any) -> Reply:
        """What a call is answered with, after it was carried out or not."""
        writes = verb != "GET"
        key = str(body["code"]) if body else path
        self.under_way[key] += writes
        self.most_under_way = max(self.most_under_way, self.under_way[key])
        try:
            await asyncio.sleep(0)
            return self._reply(verb, path, query, body)
        finally:
            self.under_way[key] -= writes

    def _reply(self, verb: str, path: str, query: Mapping[str, str], body: Any) -> Reply:
        match self.fault:
            case "down":
                raise NotConnected
            case "html":
                return 200, HTML
            case "moved":
                return 404, HTML
            case "gone" if path != "/items":
                return 404, {"error": "no such item"}
        if verb == "GET":
            return self._read(path, query)
        self._writes += 1
        if self.fault == "before" and self._writes % 3 == 0:
            return 500, {"error": "out of order"}
        if self.fault == "texts" and self._writes % 3 == 0:
            there = path.removeprefix("/items/")
            return 200, {**(self._shown(there) if there in self.store else {}), "done": "false"}
        status, answer = self._write(verb, path.removeprefix("/items/"), body)
        if status >= 400:
            return status, answer
        match self.fault:
            case "lost" if self._writes % 2 == 0:
                raise LostAnswer
            case "after" if verb == "POST" or self._writes % 3 == 0:
                return 500, {"error": "out of order"}
            case "empty" if self._writes % 2 == 0:
                return 200, None
            case "texts":
                return 200, {**answer, "done": "true"}
        return status, answer

    def _read(self, path: str, query: Mapping[str, str]) -> Reply:
        if path == "/items":
            chosen = [
                self._shown(each)
                for each, record in sorted(self.store.items())
                if all(record.get(name) == value for name, value in query.items())
            ]
            return 200, {"items": chosen}
        external_id = path.removeprefix("/items/")
        if external_id not in self.store:
            return 404, {"error": "no such item"}
        return 200, self._shown(external_id)

    def _write(self, verb: str, external_id: str, body: Any) -> Reply:
        self.calls[verb] += 1
        if verb != "POST" and external_id not in self.store:
            return 404, {"error": "no such item"}
        if verb == "DELETE":
            self.on_delete(external_id, self.store.pop(external_id)["code"])
            return 200, {"done": True}
        if self.fault == "refuse a" and body["code"] == "a":
            return (200 if self._writes % 2 else 422), {"done": False, "refusal": "not this one"}
        if verb == "POST":
            external_id = self._free_id()
        if any(record["name"] == body["name"] and record["code"] != body["code"] for record in self.store.values()):
            return 409, {"error": "the name is taken"}
        if verb == "POST":
            self.on_create(external_id)
        self.store[external_id] = dict(body)
        self.written.append(dict(body))
        return 200, {**self._shown(external_id), "done": True}

    def _shown(self, external_id: str) -> dict[str, Any]:
        return {**self.store[external_id], "id": int(external_id)}


def field_config(**changes: Any) -> Any:
    """``two_part_config`` over HTTP as users would write it."""
    listing = {
        "path": "/rows",
        "params": {"store": "{{ group }}", "after": "{{ after }}"},
        "items": "rows",
        "paging": "after",
    }
    part = {"key": "key", "version": {"path": "v", "kind": "number"}, "read": {"path": "/rows/{{ key }}"}}
    some = {"path": "/some", "params": {"keys": "{{ keys | join(',') }}"}, "items": "rows"}
    return two_part_config(
        shop={"base_url": "http://127.0.0.1:1/shop"},
        stock={"base_url": "http://127.0.0.1:1/stock"},
        system={
            "base_url": "http://127.0.0.1:1/erp",
            "search_lag": 0,
            "timeout": 5,
            "breaker": {"failures": 4, "probe_after": 5},
            "outcomes": [
                {"when": "body.done", "means": "ok"},
                {"when": "body.refusal", "means": "invalid", "message": "body.refusal"},
            ],
            **changes.pop("system", {}),
        },
        entity={
            "parts": {
                "shop": {
                    **part,
                    "group": "store",
                    "list": listing,
                    "groups": {"path": "/groups", "record": "groups"},
                    "count": {"path": "/count", "params": {"store": "{{ group }}"}, "number": "n"},
                },
                "stock": {
                    **part,
                    "read_many": some,
                    "read_many_size": 3,
                    "list": {**listing, "params": {"after": "{{ after }}"}},
                },
            },
            "third_party": {
                "system": "erp",
                "key_field": "code",
                "group": "store",
                "create": {"path": "/items"},
                "update": {"method": "PUT", "path": "/items/{{ id }}"},
                "delete": {"path": "/items/{{ id }}"},
                "read": {"path": "/items/{{ id }}"},
                "lookup": {"path": "/items", "params": {"code": "{{ key }}"}, "items": "items"},
                "list": {"path": "/items", "params": {"store": "{{ group }}"}, "items": "items"},
            },
            **changes.pop("entity", {}),
        },
        **changes,
    )


@dataclass
class FieldWorld(World):
    """A world whose systems are reached by the adapters that users have."""

    shop: FieldSource = field(default_factory=FieldSource)
    stock: FieldSource = field(default_factory=FieldSource)
    erp: FieldThirdParty = field(default_factory=FieldThirdParty)

    def assemble_context(self) -> Any:
        return build_context(self.engine, self.config, build_sources(self.config), build_third_parties(self.config, {}))

    def own_mirror_by_key(self) -> dict[str, dict[str, Any]]:
        """What the third party holds for us, by its id."""
        return {each: record for each, record in self.erp.store.items() if each not in self.erp.others}

    def mirror_by_key(self) -> dict[str, dict[str, Any]]:
        return {record["code"]: record for record in self.own_mirror_by_key().values()}


@contextmanager
def connected(made: Callable[[], FieldWorld]) -> Iterator[Callable[[], FieldWorld]]:
    """Worlds whose requests reach the systems of the last one; reads are tried again without a pause."""
    worlds: list[FieldWorld] = []

    def make() -> FieldWorld:
        worlds[:] = [made()]
        return worlds[0]

    class Wire:
        def __init__(self, base_url: str, headers: Mapping[str, str], **_: Any) -> None:
            self._base_url, self._headers = base_url, headers

        def build_request(
            self, method: str, url: str, *, params: Mapping[str, str] | None, headers: Mapping[str, str], **body: Any
        ) -> httpx.Request:
            return httpx.Request(
                method, self._base_url + url, params=params, headers={**self._headers, **headers}, **body
            )

        async def fetch_response(self, request: httpx.Request, most: int | None = None) -> Received:
            return await _carried(worlds[-1], request)

        async def close(self) -> None:
            return None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(http_module, "Wire", Wire)
        patch.setattr(read_retries, "_backing_off", wait_none())
        yield make


async def _carried(world: FieldWorld, request: httpx.Request) -> Received:
    _, system, *rest = request.url.path.split("/")
    path, query = "/" + "/".join(rest), dict(request.url.params)
    try:
        if system == "erp":
            body = exact_json.parse(request.content) if request.content else None
            status, answer = await world.erp.reply(request.method, path, query, body)
        else:
            status, answer = getattr(world, system).answer(path, query)
    except NotConnected:
        raise httpx.ConnectError("nobody listens", request=request) from None
    except LostAnswer:
        raise httpx.ReadError("the connection broke", request=request) from None
    if isinstance(answer, str):
        return Received(status, {"content-type": "text/html"}, answer.encode())
    content = b"" if answer is None else exact_json.dumps(answer)
    return Received(status, {"content-type": "application/json"}, content)


def make_field_world(engine: Engine, **changes: Any) -> Callable[[], FieldWorld]:
    """Makes worlds on one database."""
    return lambda: FieldWorld(engine, field_config(**changes))

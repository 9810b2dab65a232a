"""A source system over HTTP, and how every call's failure is classed, against a small server that really listens."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from http_server import AWKWARD, Server, failure_of
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.http.responses import failure_of as meant
from sync_orchestrator.adapters.http.retry_after import requested_wait_seconds
from sync_orchestrator.adapters.rest.paging import get_record
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import PartSettings, ReadCallSettings
from sync_orchestrator.config import RequestSettings as Call
from sync_orchestrator.config.http_access import ThrottleSettings
from sync_orchestrator.core.values.source_versions import version_of
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions import templates

TOKEN = "s3cret-token"
BASE = 1_767_225_600_000_000  # 2026-01-01T00:00:00Z
SKUS = {"skus": "{{ keys | join(',') }}"}
POST = Call(method="POST", path="/x")


def http(url: str, **settings: Any) -> HttpClient:
    return HttpClient(HttpSettings(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, **settings))


def source(server: Server, concurrency: int = 32, **settings: Any) -> RestSource:
    part = {
        "key": "sku",
        "version": {"path": "v", "kind": "number"},
        "list": {"path": "/items", "items": "items"},
        "read": {"path": "/items/{{ key }}"},
        **settings,
    }
    return RestSource(http(server.url, concurrency=concurrency, timeout=5), PartSettings.model_validate(part))


def classed(status: int, headers: dict[str, str] | None = None) -> CallFailed | None:
    answer = Answer(status, headers or {}, b"why")
    return meant(answer, [], write=True, retry_after=requested_wait_seconds(answer, ThrottleSettings()))


async def listed(found: RestSource, after: str | None = None) -> list[tuple[list[str], str | None]]:
    return [([row.key for row in rows], position) async for rows, position in found.pages("g", after)]


# How answers are classed.


@pytest.mark.parametrize(
    ("status", "headers", "kind", "more"),
    [
        (301, {"location": "https://other/"}, Failure.TRANSIENT, {"unknown": True}),
        (400, {}, Failure.PERMANENT, {}),
        (401, {}, Failure.AUTH, {}),
        (403, {}, Failure.AUTH, {}),
        (404, {}, Failure.PERMANENT, {"refusal": Refusal.MISSING}),
        (410, {}, Failure.PERMANENT, {"refusal": Refusal.MISSING}),
        (408, {}, Failure.TRANSIENT, {"unknown": True}),
        (409, {}, Failure.PERMANENT, {"refusal": Refusal.DUPLICATE_OR_CONFLICT}),
        (412, {}, Failure.PERMANENT, {"refusal": Refusal.CONFLICT}),
        (413, {}, Failure.PERMANENT, {"refusal": Refusal.TOO_LARGE}),
        (422, {}, Failure.PERMANENT, {}),
        (429, {}, Failure.THROTTLED, {}),
        (429, {"retry-after": "7"}, Failure.THROTTLED, {"retry_after": 7.0}),
        (429, {"retry-after": "1.5"}, Failure.THROTTLED, {"retry_after": 1.5}),
        (429, {"retry-after": "soon"}, Failure.THROTTLED, {}),
        (429, {"retry-after": "inf"}, Failure.THROTTLED, {}),
        (429, {"retry-after": "-3"}, Failure.THROTTLED, {}),
        (500, {}, Failure.TRANSIENT, {"unknown": True}),
        (502, {}, Failure.TRANSIENT, {"unknown": True}),
        (503, {}, Failure.TRANSIENT, {"unknown": True}),  # a gateway's, for all we know
        (503, {"retry-after": "2"}, Failure.TRANSIENT, {"retry_after": 2.0, "unknown": True}),
        (504, {}, Failure.TRANSIENT, {"unknown": True}),
    ],
)
def test_classes(status: int, headers: dict[str, str], kind: Failure, more: dict[str, Any]) -> None:
    """An answer stands for one class, whoever gave it; what it did not say is not set."""
    failure = classed(status, headers)
    assert failure is not None
    told = {name: getattr(failure, name) for name in ("unknown", "refusal", "retry_after")}
    assert (failure.kind, failure.status) == (kind, status)
    assert told == {"unknown": False, "refusal": None, "retry_after": None, **more}


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_good_answers(status: int) -> None:
    assert classed(status) is None


def test_retry_after_as_a_date() -> None:
    at = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    failure = classed(429, {"retry-after": at})
    assert failure is not None
    assert failure.retry_after == pytest.approx(60, abs=2)


# Connections, really cut.

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[str]:
    """Reads each request's head, leaves the rest to ``talk`` and hangs up; at the end all connections are closed."""
    talks: list[asyncio.Task[Any]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())  # type: ignore[arg-type]  # this is a task
        await reader.readuntil(b"\r\n\r\n")
        await talk(reader, writer)
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    server.close()
    await asyncio.wait_for(asyncio.gather(*talks), 5)


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (b"", "no answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "no answer"),
        (b"garbage\r\n\r\n", "no answer"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
            "an answer that cannot be read: it is not gzip",
        ),
        (None, "no answer within 0.2 s"),
    ],
)
async def test_what_a_lost_answer_did_is_unknown(reply: bytes | None, detail: str) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(reply or b"")
        if reply is None:
            await reader.read()

    async with listening(talk) as url:
        client = http(url, timeout=0.2)
        failure = await failure_of(client.send(POST, {}, write=True, body={"a": 1}))
        await client.close()
    assert failure.detail.startswith(detail)
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)


async def test_the_deadline_is_the_whole_calls() -> None:
    """An answer that trickles is given up in time, though each piece of it comes soon."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n")
        hung_up = asyncio.ensure_future(reader.read())
        while not (await asyncio.wait([hung_up], timeout=0.02))[0]:
            writer.write(b" ")
        with suppress(ConnectionError):
            hung_up.result()

    async with listening(trickle) as url:
        client = http(url, timeout=0.3)
        failure = await asyncio.wait_for(failure_of(client.send(POST, {}, write=True, body={})), 3)
        await client.close()
    assert (failure.detail, failure.unknown) == ("no answer within 0.3 s", True)


async def test_a_refused_connection_did_nothing() -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        client = http(f"http://127.0.0.1:{taken.getsockname()[1]}", timeout=2)
        failure = await failure_of(client.send(POST, {}, write=True, body={}))
    assert (failure.kind, failure.unknown, failure.detail) == (Failure.TRANSIENT, False, "no connection")
    await client.close()


async def test_redirects_are_not_followed(server: Server) -> None:
    async def handler(request: Request) -> Response:
        return Response(status_code=302, headers={"location": "/login"})

    server.handler = handler
    client = http(server.url)
    failure = await failure_of(client.send(POST, {}, write=True, body={}))
    assert (failure.kind, failure.unknown, failure.about_system) == (Failure.TRANSIENT, True, True)
    assert "/login" in failure.detail
    assert len(server.seen) == 1
    await client.close()


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (403, f"Bearer {TOKEN} has expired"),
        (500, f"bad token {TOKEN}"),
        (200, f"<html>{TOKEN}</html>"),
        (302, "moved"),
    ],
)
async def test_no_error_tells_a_secret(server: Server, status: int, content: str) -> None:
    """Not even where the other side sends it back."""

    async def handler(request: Request) -> Response:
        return Response(content, status, headers={"location": f"/login?t={TOKEN}"})

    server.handler = handler
    client = http(server.url)
    failure = await failure_of(get_record(client, ReadCallSettings(path="/x", record="data"), {}))
    assert TOKEN not in str(failure)
    await client.close()


async def test_what_came_is_clipped(server: Server) -> None:
    server.respond_with("x" * 5000, 400)
    client = http(server.url)
    assert len(str(await failure_of(client.send(POST, {}, write=True, body={})))) < 340
    await client.close()


@pytest.mark.parametrize("body", [b"<html>", b"", b'{"a": NaN}', b'{"a": 1e999}', b"[" * 100_000, b"\xff\xfe"])
async def test_what_is_not_json_may_be_so_next_time(server: Server, body: bytes) -> None:
    async def handler(request: Request) -> Response:
        return Response(body)

    server.handler = handler
    found = source(server)
    failure = await failure_of(found.read("a"))
    assert (failure.kind, failure.refusal) == (Failure.TRANSIENT, None)
    await found.close()


async def test_reads_are_tried_again_but_not_against_retry_after(server: Server) -> None:
    """A read is harmless to repeat; where the other side names a time, that is for the retry rule to keep."""
    answers = [JSONResponse({}, 500), JSONResponse({"sku": "a", "v": 1})]

    async def handler(request: Request) -> Response:
        return answers.pop(0)

    server.handler = handler
    found = source(server)
    row = await found.read("a")
    assert row is not None
    answers.extend([JSONResponse({}, 503, headers={"Retry-After": "9"}), JSONResponse({"sku": "a", "v": 1})])
    assert (await failure_of(found.read("a"))).retry_after == 9
    await found.close()


async def test_before_call_is_awaited_each_time(server: Server) -> None:
    server.respond_with({})
    calls: list[int] = []

    async def before_call() -> None:
        calls.append(len(server.seen))

    client = HttpClient(HttpSettings(base_url=server.url), before_call)
    await client.read(Call(path="/x"), {})
    await client.send(Call(method="PUT", path="/x"), {}, write=True)
    assert calls == [0, 1]
    await client.close()


# Keys in addresses.


@pytest.mark.parametrize("key", AWKWARD)
async def test_awkward_keys_arrive_whole(server: Server, key: str) -> None:
    async def handler(request: Request) -> Response:
        path, query = request.scope["raw_path"].decode(), request.query_params["sku"]
        one = httpx.URL(f"http://x{path}").raw_path.decode().split("/")
        return JSONResponse({"sku": query, "v": 1, "segments": len(one)})

    server.handler = handler
    found = source(server, read={"path": "/items/{{ key }}", "params": {"sku": "{{ key }}"}})
    row = await found.read(key)
    assert row is not None
    assert (row.key, row.data["segments"]) == (key, 3)
    await found.close()


@pytest.mark.parametrize("key", ["", ".", ".."])
async def test_no_key_leads_out_of_its_place(server: Server, key: str) -> None:
    """'/items/..' would be the address of everything."""
    found = source(server)
    assert (await failure_of(found.read(key))).kind is Failure.PERMANENT
    assert server.seen == []
    await found.close()


def test_the_first_page_may_have_no_position() -> None:
    assert templates.render_path("/items/{{ after | raw }}", {"after": ""}) == "/items/"


# One record.


async def test_read(server: Server) -> None:
    server.respond_with({"data": {"sku": 7, "v": "12", "store": "A", "gone": True}})
    found = source(server, read={"path": "/items/{{ key }}", "record": "data"}, group="store", deleted_when="gone")
    row = await found.read("7")
    assert row is not None
    assert (row.key, row.version, row.group, row.deleted) == ("7", 12, "A", True)
    assert row.data == {"sku": 7, "v": "12", "store": "A", "gone": True}
    await found.close()


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (404, {}),
        (410, {}),
        (204, None),
        (200, None),
        (200, {"data": None}),
        (200, {"data": []}),
    ],
)
async def test_a_record_that_is_not_there(server: Server, status: int, content: Any) -> None:
    async def handler(request: Request) -> Response:
        return Response(status_code=204) if status == 204 else JSONResponse(content, status)

    server.handler = handler
    found = source(server, read={"path": "/items/{{ key }}", "record": "data"})
    assert await found.read("a") is None
    await found.close()


@pytest.mark.parametrize("content", [{"error": "maintenance"}, {}, [], "ok", {"data": "ok"}, {"data": ["ok"]}])
async def test_another_shape_is_no_missing_record(server: Server, content: Any) -> None:
    """Taken for a 404 it would delete the record."""
    server.respond_with(content)
    found = source(server, read={"path": "/items/{{ key }}", "record": "data"})
    assert (await failure_of(found.read("a"))).kind is Failure.TRANSIENT
    await found.close()


@pytest.mark.parametrize(
    ("record", "content"),
    [
        pytest.param("@", [{"sku": "a", "v": 1}], id="a single record in a list"),
        pytest.param("data.items", {"data": {"items": [{"sku": "a", "v": 1}]}}, id="a list in an envelope"),
        pytest.param("data", {"data": {"sku": "a", "v": 1}}, id="a record in an envelope"),
        pytest.param("items[?sku=='a']", {"items": [{"sku": "b"}, {"sku": "a", "v": 1}]}, id="picked from a list"),
        pytest.param("@", [{"sku": "a", "v": 1}, {"sku": "a", "v": 1}], id="the same one twice"),
    ],
)
async def test_envelopes_of_a_read(server: Server, record: str, content: Any) -> None:
    server.respond_with(content)
    found = source(server, read={"path": "/items/{{ key }}", "record": record})
    row = await found.read("a")
    assert row is not None
    assert (row.key, row.version) == ("a", 1)
    await found.close()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([{"sku": "a", "v": 1}, {"sku": "b", "v": 1}], "2 records where GET /items/{{ key }} should give one"),
        ([{"sku": "b", "v": 1}], "another came"),
    ],
)
async def test_a_list_with_other_records(server: Server, content: Any, says: str) -> None:
    """A filter that is ignored brings some other record first."""
    server.respond_with(content)
    found = source(server)
    failure = await failure_of(found.read("a"))
    assert failure.kind is Failure.TRANSIENT
    assert says in failure.detail
    await found.close()


async def test_another_record_than_asked_for(server: Server) -> None:
    server.respond_with({"sku": "b", "v": 1})
    found = source(server)
    assert "another came" in (await failure_of(found.read("a"))).detail
    await found.close()


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"sku": "a"}, "v"),
        ({"sku": "a", "v": "x"}, "v"),
        ({"sku": "a", "v": 2**63}, "v"),
        ({"sku": "a", "v": 1, "store": {"id": 1}}, "store"),
    ],
)
async def test_an_unusable_item_is_passed_on_as_such(server: Server, item: dict[str, Any], field: str) -> None:
    """It must neither stop its page nor count as missing."""
    server.respond_with({"items": [item, {"sku": "b", "v": 1, "store": "x"}]})
    found = source(server, group="store")
    [([bad, good], _)] = [page async for page in found.pages("g")]
    assert bad.key == "a"
    assert f"'{field}'" in str(bad.problem)
    assert good.problem is None
    await found.close()


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"v": 1}, "sku"),
        ({"sku": "", "v": 1}, "sku"),
        ({"sku": {}, "v": 1}, "sku"),
        ({"sku": True, "v": 1}, "sku"),
    ],
)
async def test_an_item_without_key_stops_the_listing(server: Server, item: dict[str, Any], field: str) -> None:
    server.respond_with({"items": [item]})
    found = source(server, group="store")
    failure = await failure_of(listed(found))
    assert failure.kind is Failure.PERMANENT
    assert f"'{field}'" in failure.detail
    await found.close()


async def test_an_expression_that_does_not_fit(server: Server) -> None:
    server.respond_with({"items": [{"sku": "a", "v": 1, "store": 5}]})
    found = source(server, group="starts_with(store, 'x')")
    assert (await failure_of(listed(found))).kind is Failure.TRANSIENT
    await found.close()


# Many records.


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"read_many": {"path": "/many", "params": SKUS, "items": "items"}, "read_many_size": 2},
    ],
)
async def test_read_many(server: Server, settings: dict[str, Any]) -> None:
    """With and without a call for many; keys with commas are never sent in a list."""
    rows = {key: {"sku": key, "v": 1} for key in ("a", "b", "c", "d,e")}

    async def handler(request: Request) -> Response:
        if skus := request.query_params.get("skus"):
            return JSONResponse({"items": [rows[key] for key in skus.split(",") if key in rows]})
        row = rows.get(request.path_params["rest"].removeprefix("items/"))
        return JSONResponse(row) if row else JSONResponse({}, 404)

    server.handler = handler
    found = source(server, **settings)
    assert sorted(row.key for row in await found.read_many(["a", "b", "c", "d,e", "none"])) == ["a", "b", "c", "d,e"]
    assert [query["skus"] for _, _, query in server.seen if query] == (["a,b", "c,none"] if settings else [])
    await found.close()


@pytest.mark.parametrize("ignored", [True, False])
async def test_other_records_than_asked_for(server: Server, ignored: bool) -> None:
    """A filter that is ignored gives a page of anything: what is not on it may exist all the same."""

    async def handler(request: Request) -> Response:
        near = "a" in request.query_params["skus"].split(",")
        return JSONResponse({"items": [{"sku": "A", "v": 1}, {"sku": "b", "v": 1}] if ignored or near else []})

    server.handler = handler
    found = source(server, read_many={"path": "/many", "params": SKUS, "items": "items"})
    if ignored:
        failure = await failure_of(found.read_many(["a", "b"]))
        assert failure.kind is Failure.PERMANENT
        assert "the filter of 'read_many' (GET /many) is ignored" in failure.detail
    else:
        assert [(row.key, row.problem) for row in await found.read_many(["a", "b"])] == [
            ("b", None),
            ("a", "the source knows this record as 'A', not 'a': notifications and other parts must use its spelling"),
        ]
    assert [query["skus"] for _, _, query in server.seen] == ["a,b", "sync-orchestrator-no-such-key"]
    await found.close()


async def test_a_comma_where_only_lists_can_be_read(server: Server) -> None:
    found = source(server, read=None, read_many={"path": "/many", "params": {"skus": "{{ keys | join(',') }}"}})
    assert (await failure_of(found.read_many(["a,b"]))).kind is Failure.PERMANENT
    assert (await failure_of(found.read("a,b"))).kind is Failure.PERMANENT
    await found.close()


async def test_reads_side_by_side_keep_to_the_concurrency(server: Server) -> None:
    under_way = [0, 0]

    async def handler(request: Request) -> Response:
        under_way[0] += 1
        under_way[1] = max(under_way)
        await asyncio.sleep(0)
        under_way[0] -= 1
        return JSONResponse({}, 404)

    server.handler = handler
    found = source(server, concurrency=3)
    assert await found.read_many([str(n) for n in range(30)]) == []
    assert under_way[1] <= 3
    await found.close()


# Listings.


def keyset(server: Server, keys: list[str]) -> RestSource:
    async def handler(request: Request) -> Response:
        at = keys.index(request.query_params["after"]) + 1 if "after" in request.query_params else 0
        return JSONResponse({"items": [{"sku": key, "v": 1} for key in keys[at : at + 2]]})

    server.handler = handler
    return source(
        server, list={"path": "/items", "params": {"after": "{{ after }}"}, "items": "items", "paging": "after"}
    )


async def test_paging_by_key_can_go_on(server: Server) -> None:
    """The order is the source's own: 9 before 10, or any other."""
    found = keyset(server, ["8", "9", "10", "B", "a"])
    assert found.keyset_listing
    assert await listed(found) == [(["8", "9"], "9"), (["10", "B"], "B"), (["a"], "a")]
    assert await listed(found, after="B") == [(["a"], "a")]
    await found.close()


@pytest.mark.parametrize(
    ("listing", "answer"),
    [
        ({"paging": "after", "params": {"p": "{{ after }}"}}, {"items": [{"sku": "a", "v": 1}]}),
        (
            {"paging": "cursor", "params": {"p": "{{ cursor }}"}, "next": "next"},
            {"items": [{"sku": "a", "v": 1}], "next": "x"},
        ),
        ({"paging": "cursor", "params": {"p": "{{ cursor }}"}, "next": "next"}, {"items": [], "next": "x"}),
        ({"paging": "page", "params": {"p": "{{ page }}"}}, {"items": [{"sku": "a", "v": 1}]}),
    ],
)
async def test_a_listing_without_end_is_a_failure(server: Server, listing: dict[str, Any], answer: Any) -> None:
    server.respond_with(answer)
    found = source(server, list={"path": "/items", "items": "items", **listing})
    failure = await failure_of(asyncio.wait_for(listed(found), 5))
    assert failure.kind is Failure.TRANSIENT
    assert len(server.seen) == 2
    await found.close()


async def test_cursors_that_go_in_a_circle(server: Server) -> None:
    following = {"": "x", "x": "y", "y": "x"}

    async def handler(request: Request) -> Response:
        return JSONResponse({"items": [], "next": following[request.query_params.get("c", "")]})

    server.handler = handler
    found = source(
        server,
        list={"path": "/items", "params": {"c": "{{ cursor }}"}, "items": "items", "paging": "cursor", "next": "next"},
    )
    assert (await failure_of(asyncio.wait_for(listed(found), 5))).kind is Failure.TRANSIENT
    await found.close()


@pytest.mark.parametrize(
    ("listing", "queries"),
    [
        (
            {"paging": "cursor", "params": {"p": "{{ cursor }}", "g": "{{ group }}"}, "next": "next"},
            [{"g": "g"}, {"g": "g", "p": "2"}, {"g": "g", "p": "3"}],
        ),
        ({"paging": "page", "params": {"p": "{{ page }}"}}, [{"p": "1"}, {"p": "2"}, {"p": "3"}, {"p": "4"}]),
        (
            {"paging": "page", "params": {"p": "{{ page }}"}, "first_page": 0},
            [{"p": "0"}, {"p": "1"}, {"p": "2"}, {"p": "3"}, {"p": "4"}],
        ),
    ],
)
async def test_paging_by_cursor_and_by_page(
    server: Server, listing: dict[str, Any], queries: list[dict[str, str]]
) -> None:
    """Every page once, no position to go on from."""
    pages = {"0": ["z"], "1": ["a", "b"], "2": ["c"], "3": ["d"]}

    async def handler(request: Request) -> Response:
        page = request.query_params.get("p", "1")
        following = str(int(page) + 1)
        items = [{"sku": key, "v": 1} for key in pages.get(page, [])]
        return JSONResponse({"items": items, "next": following if following in pages else None})

    server.handler = handler
    found = source(server, list={"path": "/items", "items": "items", **listing})
    expected = [(["z"], None)] if listing.get("first_page") == 0 else []
    assert await listed(found) == [*expected, (["a", "b"], None), (["c"], None), (["d"], None)]
    assert not found.keyset_listing
    assert [query for _, _, query in server.seen] == queries
    await found.close()


@pytest.mark.parametrize("content", [{"error": "x"}, {"items": {}}, {"items": ["text"]}])
async def test_a_listing_of_another_shape(server: Server, content: Any) -> None:
    """It is not an empty listing: that would delete the group."""
    server.respond_with(content)
    found = source(server)
    assert (await failure_of(listed(found))).kind is Failure.TRANSIENT
    await found.close()


# Counts and groups.


@pytest.mark.parametrize(("content", "expected"), [({"n": 5}, 5), ({"n": 0}, 0)])
async def test_count(server: Server, content: Any, expected: int) -> None:
    server.respond_with(content)
    found = source(server, count={"path": "/count/{{ group }}", "number": "n"})
    assert await found.count("a/b") == expected
    assert server.seen[0][1] == "/count/a%2Fb"
    await found.close()


@pytest.mark.parametrize("content", [{"n": "5"}, {"n": True}, {"n": None}, {"n": -1}, {}, {"n": 1.5}])
async def test_a_count_that_is_none(server: Server, content: Any) -> None:
    server.respond_with(content)
    found = source(server, count={"path": "/count", "number": "n"})
    assert (await failure_of(found.count("g"))).kind is Failure.TRANSIENT
    await found.close()


async def test_groups(server: Server) -> None:
    server.respond_with({"stores": ["A", 7, None]})
    found = source(server, groups={"path": "/stores", "record": "stores"})
    assert await found.groups() == ["A", "7"]
    server.respond_with({"stores": {}})
    assert (await failure_of(found.groups())).kind is Failure.TRANSIENT
    server.respond_with({"stores": [{"name": "A"}]})
    assert "'record' has to find a list of names, such as 'items[].name'" in (await failure_of(found.groups())).detail
    await found.close()


async def test_what_is_not_configured_is_none(server: Server) -> None:
    found = source(server)
    assert (await found.count("g"), await found.groups()) == (None, None)
    assert source(server, read=None).can_read is False
    await found.close()


# What has changed.


@pytest.mark.parametrize(
    ("kind", "since", "asked"),
    [
        ("time", BASE + 1_500_000, {"after": "2026-01-01T00:00:01.500000Z", "seconds": "1767225601"}),
        ("time", BASE, {"after": "2026-01-01T00:00:00Z", "seconds": "1767225600"}),
        ("number", 12, {"number": "12"}),
    ],
)
async def test_changes(server: Server, kind: str, since: int, asked: dict[str, str]) -> None:
    """Page by page, deletes too, each with its group."""

    async def handler(request: Request) -> Response:
        if "cursor" in request.query_params:
            return JSONResponse({"items": [{"sku": "b", "v": 3, "store": "B", "gone": True}]})
        return JSONResponse({"items": [{"sku": "a", "v": 2, "store": "A"}], "next": "2"})

    server.handler = handler
    names = (
        {"number": "{{ since_number }}"}
        if kind == "number"
        else {"after": "{{ since }}", "seconds": "{{ since_number // 1000000 }}"}
    )
    found = source(
        server,
        version={"path": "v", "kind": kind},
        group="store",
        deleted_when="gone",
        changes={
            "path": "/changes",
            "params": {**names, "cursor": "{{ cursor }}"},
            "items": "items",
            "paging": "cursor",
            "next": "next",
        },
    )
    assert found.can_poll
    pages = [[(row.key, row.group, row.deleted) for row in rows] async for rows in found.changes(since)]
    assert pages == [[("a", "A", False)], [("b", "B", True)]]
    assert [query for _, _, query in server.seen] == [asked, {**asked, "cursor": "2"}]
    assert not source(server).can_poll
    await found.close()


def test_a_number_has_no_time() -> None:
    with pytest.raises(ValidationError, match="nothing fills in 'since'"):
        PartSettings.model_validate(
            {
                "key": "sku",
                "version": {"path": "v", "kind": "number"},
                "changes": {"path": "/changes", "params": {"after": "{{ since }}"}},
            }
        )


# Versions.


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        ("2026-01-01T00:00:00Z", "time", BASE),
        ("2026-01-01T00:00:00", "time", BASE),
        ("2026-01-01T02:00:00+02:00", "time", BASE),
        ("2026-01-01 00:00:00.000001Z", "time", BASE + 1),
        ("2026-01-01t00:00:00z", "time", BASE),
        ("2026-01-01T00:00:00.123456789Z", "time", BASE + 123_456),
        (1_767_225_600, "time", BASE),
        (1_767_225_600.5, "time", BASE + 500_000),
        (-1, "time", -1_000_000),
        (12, "number", 12),
        ("12", "number", 12),
        (12.0, "number", 12),
        (2**63 - 1, "number", 2**63 - 1),
    ],
)
def test_versions(value: Any, kind: Any, expected: int) -> None:
    assert version_of(value, kind) == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (None, "time"),
        (True, "time"),
        ("", "time"),
        ("yesterday", "time"),
        ({}, "time"),
        (float("nan"), "time"),
        (float("inf"), "time"),
        (1e30, "time"),
        (None, "number"),
        ("x", "number"),
        (1.5, "number"),
        (2**63, "number"),
        (json.loads("1" + "0" * 300), "number"),
        ("1" * 5000, "number"),
    ],
)
def test_no_versions(value: Any, kind: Any) -> None:
    with pytest.raises(ValueError, match=r"."):
        version_of(value, kind)


# Keys and versions alone.


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ({"keys": {"path": "/keys", "items": "keys[].{sku: id, v: rev}", "params": {"shop": "{{ group }}"}}}, "/keys"),
        ({}, "/items"),
    ],
)
async def test_keys_come_from_their_own_call_where_there_is_one(
    server: Server, keys: dict[str, Any], asked: str
) -> None:
    async def answer(request: Request) -> Response:
        if request.url.path == "/keys":
            assert request.query_params["shop"] == "g"
            return JSONResponse({"keys": [{"id": "a", "rev": 3}, {"id": "b", "rev": 4}]})
        return JSONResponse({"items": [{"sku": "a", "v": 3, "name": "x"}, {"sku": "b", "v": 4}]})

    server.handler = answer
    found = source(server, **keys)
    assert [[(row.key, row.version) for row in rows] async for rows in found.keys("g")] == [[("a", 3), ("b", 4)]]
    assert (found.can_list_keys, server.seen[0][1]) == (bool(keys), asked)
    await found.close()


async def test_keys_that_are_of_no_group_are_refused(server: Server) -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse([{"sku": "a", "v": 3}])

    server.handler = answer
    found = source(server, group="shop", keys={"path": "/keys"})
    failure = await failure_of(anext(found.keys("g")))
    assert "'keys' does not ask for one with {{ group }}" in failure.detail
    await found.close()

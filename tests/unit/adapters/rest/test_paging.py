"""Listings page by page: each way that servers have of going on and of ending, and each in which they go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest
from http_server import Server, failure_of
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.link_header import next_link
from sync_orchestrator.adapters.rest import paging
from sync_orchestrator.adapters.rest.paging import list_pages
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import ListCallSettings
from sync_orchestrator.errors import Failure

LIMIT = {"limit": "{{ limit }}"}
BY_PAGE = {"paging": "page", "params": {"page": "{{ page }}", **LIMIT}}
BY_OFFSET = {"paging": "offset", "params": {"at": "{{ offset }}", **LIMIT}}
BY_CURSOR = {"paging": "cursor", "params": {"at": "{{ cursor }}", **LIMIT}, "next": "next"}
BY_KEY = {"paging": "after", "params": {"after": "{{ after }}", **LIMIT}}

KINDS: dict[str, dict[str, Any]] = {
    "last key": BY_KEY,
    "cursor in the body": BY_CURSOR,
    "cursor in a header": {**BY_CURSOR, "next": None, "next_header": "X-Next"},
    "cursor that is a list": {
        "paging": "cursor",
        "method": "POST",
        "body": {"at": "{{ cursor }}", "limit": "{{ limit }}"},
        "next": "marks",
    },
    "page": BY_PAGE,
    "page from 0": {"paging": "page", "params": {"page": "{{ page + 1 }}", **LIMIT}, "first_page": 0},
    "offset": BY_OFFSET,
    "offset with a total": {**BY_OFFSET, "total": "total"},
    "Link header": {"paging": "link", "params": LIMIT},
    "absolute next link": {"paging": "next_url", "params": LIMIT, "next": "links.absolute"},
    "relative next link": {"paging": "next_url", "params": LIMIT, "next": "links.relative"},
    "next-page header": {"paging": "next_url", "params": LIMIT, "next_header": "x-next-page"},
}


class Shelf:
    """Keys as a server lists them, which tells of the next page in every way at once.

    ``cuts``: at most so many items a page, page by page and then again from the first, whatever was asked for; where
    pages are numbered, the first counts for all. ``end``: the answer behind the last page.
    """

    def __init__(self, server: Server, keys: Sequence[str], cuts: Sequence[int] = (1000,), end: int = 200) -> None:
        self.keys, self.cuts, self.end = list(keys), cuts, end
        self.calls: list[dict[str, Any]] = []
        server.handler = self._answer

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        asked: dict[str, Any] = json.loads(body) if body else dict(request.query_params)
        self.calls.append(asked)
        limit = int(asked["limit"])
        if "page" in asked:
            size = min(limit, self.cuts[0])
            at = (int(asked["page"]) - 1) * size
        else:
            size = min(limit, self.cuts[(len(self.calls) - 1) % len(self.cuts)])
            mark = asked.get("at")
            at = (
                self.keys.index(asked["after"]) + 1
                if "after" in asked
                else int((mark[0] if isinstance(mark, list) else mark) or 0)
            )
        if at >= len(self.keys) and self.calls[1:]:
            return JSONResponse({"items": [], "total": len(self.keys)}, self.end)
        end = at + size
        items = [{"key": key} for key in self.keys[at:end]]
        if end >= len(self.keys):
            return JSONResponse({"items": items, "total": len(self.keys), "next": None, "marks": None, "links": {}})
        url = request.url.replace(query="")
        query = f"at={end}&limit={limit}"
        links = {"absolute": f"{url}?{query}", "relative": f"{request.url.path}?{query}"}
        headers = {
            "X-Next": str(end),
            "X-Next-Page": links["relative"],
            "Link": f'<{url}?at=0>; rel="first", <{links["absolute"]}>; rel="next"',
        }
        return JSONResponse(
            {"items": items, "total": len(self.keys), "next": end, "marks": [end], "links": links}, headers=headers
        )


def key_of(item: Any) -> str:
    return str(item["key"])


async def listed(
    server: Server,
    listing: dict[str, Any],
    *,
    into: list[list[str]] | None = None,
    after: str | None = None,
    **values: Any,
) -> list[list[str]]:
    """The keys of each page; ``into``: kept there also where the listing fails."""
    found: list[list[str]] = [] if into is None else into
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    call = ListCallSettings.model_validate({"path": "/items", "items": "items", **listing})
    try:
        async for items, _ in list_pages(client, call, values, key_of=key_of, after=after):
            found.append([item["key"] for item in items])
    finally:
        await client.close()
    return found


def flat(found: list[list[str]]) -> list[str]:
    return [key for page in found for key in page]


# Every way to page.


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 23), size=st.integers(1, 9), cuts=st.lists(st.integers(1, 9), min_size=1, max_size=4))
@example(number=6, size=3, cuts=[3])
@example(number=6, size=5, cuts=[2])
async def test_each_item_comes_once_and_in_order(
    server: Server, kind: str, number: int, size: int, cuts: list[int]
) -> None:
    """Whatever is asked for, and however few come at a time."""
    keys = [f"k{n}" for n in range(number)]
    Shelf(server, keys, cuts)
    found = await listed(server, {**KINDS[kind], "size": size})
    assert flat(found) == keys
    assert [] not in found


@pytest.mark.parametrize(
    ("kind", "asked"),
    [
        pytest.param(BY_OFFSET, [0, 2, 4, 5], id="offset goes on by what came"),
        pytest.param(BY_PAGE, [1, 2, 3, 4], id="a short page is not the last"),
    ],
)
async def test_page_sizes_cut_silently(server: Server, kind: dict[str, Any], asked: list[int]) -> None:
    shelf = Shelf(server, "abcde", cuts=[2])
    assert await listed(server, {**kind, "size": 4}) == [["a", "b"], ["c", "d"], ["e"]]
    assert [int(call.get("at") or call["page"]) for call in shelf.calls] == asked


@pytest.mark.parametrize("kind", [BY_PAGE, BY_OFFSET, BY_KEY], ids=["page", "offset", "last key"])
@pytest.mark.parametrize(("number", "calls"), [(5, 3), (4, 3), (1, 1), (0, 1)])
async def test_short_page_ends(server: Server, kind: dict[str, Any], number: int, calls: int) -> None:
    shelf = Shelf(server, "abcde"[:number])
    assert flat(await listed(server, {**kind, "size": 2, "short_page_ends": True})) == list("abcde"[:number])
    assert len(shelf.calls) == calls


@pytest.mark.parametrize("kind", [BY_PAGE, BY_OFFSET], ids=["page", "offset"])
@pytest.mark.parametrize("number", [4, 3, 0])
async def test_a_total_ends_the_listing(server: Server, kind: dict[str, Any], number: int) -> None:
    """Without a call for an empty page, which some servers would answer with the last page again."""
    shelf = Shelf(server, "abcd"[:number], end=500)
    assert flat(await listed(server, {**kind, "size": 2, "total": "total"})) == list("abcd"[:number])
    assert len(shelf.calls) == max(1, (number + 1) // 2)


@pytest.mark.parametrize("kind", [BY_PAGE, BY_OFFSET, BY_KEY], ids=["page", "offset", "last key"])
@pytest.mark.parametrize("status", [400, 404])
async def test_the_end_may_be_a_status(server: Server, kind: dict[str, Any], status: int) -> None:
    Shelf(server, "abcd", end=status)
    assert flat(await listed(server, {**kind, "size": 2, "end_status": [status]})) == list("abcd")
    failure = await failure_of(listed(server, {**kind, "size": 2}))
    assert failure.status == status


async def test_the_end_status_is_no_end_of_what_has_not_begun(server: Server) -> None:
    """It would be an empty listing: a group that is gone."""
    failure = await failure_of(listed(server, {**BY_PAGE, "end_status": [404]}))
    assert (failure.status, failure.kind, failure.about_system) == (404, TRANSIENT, True)


async def test_a_listing_that_goes_on_behind_its_end(server: Server) -> None:
    assert await listed(server, {**BY_KEY, "end_status": [404]}, after="z") == []


@pytest.mark.parametrize("end", [{}, {"next": None}, {"next": ""}, {"next": []}], ids=["absent", "null", "empty", "[]"])
async def test_no_next_cursor_is_the_end(server: Server, end: dict[str, Any]) -> None:
    server.respond_with({"items": [{"key": "a"}], **end})
    assert await listed(server, BY_CURSOR) == [["a"]]


async def test_an_empty_page_before_the_end(server: Server) -> None:
    """A server that filters after cutting pages has some with nothing on them."""
    answers(server, [{"items": [], "next": "2"}, {"items": [{"key": "a"}], "next": "3"}, {"items": []}])
    assert await listed(server, BY_CURSOR) == [["a"]]


async def test_a_204_is_an_empty_page(server: Server) -> None:
    async def handler(request: Request) -> Response:
        return Response(status_code=204)

    server.handler = handler
    assert await listed(server, BY_OFFSET) == []


# Addresses of next pages.


@pytest.mark.parametrize(
    "address",
    [
        "?at=2",
        "items?at=2",
        "/v1/items?at=2",
        "./items?at=2",
        "{url}/v1/items?at=2",
        "//{host}/v1/items?at=2",
    ],
)
async def test_a_next_link_is_relative_to_its_page(server: Server, address: str) -> None:
    link = address.format(url=server.url, host=server.url.removeprefix("http://"))
    answers(server, [{"items": [{"key": "a"}], "next": link}, {"items": [{"key": "b"}]}])
    assert await listed(server, {"path": "/v1/items", "paging": "next_url", "next": "next"}) == [["a"], ["b"]]
    assert server.seen[1] == ("GET", "/v1/items", {"at": "2"})


async def test_headers_and_body_are_sent_with_every_page(server: Server) -> None:
    """Also those that values fill in; the query is the address's own."""
    heard: list[tuple[str | None, bytes, dict[str, str]]] = []

    async def handler(request: Request) -> Response:
        heard.append((request.headers.get("x-store"), await request.body(), dict(request.query_params)))
        return JSONResponse(
            {"items": [{"key": str(len(heard))}]}, headers={} if heard[1:] else {"Link": "</items?p=2>; rel=next"}
        )

    server.handler = handler
    listing = {
        "paging": "link",
        "method": "POST",
        "headers": {"X-Store": "{{ group }}"},
        "body": {"s": "{{ group }}"},
        "params": {"store": "{{ group }}"},
    }
    assert await listed(server, listing, group="A") == [["1"], ["2"]]
    assert heard == [("A", b'{"s":"A"}', {"store": "A"}), ("A", b'{"s":"A"}', {"p": "2"})]


@pytest.mark.parametrize(
    ("header", "address"),
    [
        ('<https://x/2>; rel="next"', "https://x/2"),
        ("<https://x/2>; rel=next", "https://x/2"),
        ('<https://x/2>; REL="NEXT"', "https://x/2"),
        ('<https://x/2>;rel="last next"', "https://x/2"),
        ('<https://x/1>; rel="prev", <https://x/2>; rel="next", <https://x/9>; rel="last"', "https://x/2"),
        ('<https://x/a,b;c?d=1,2>; title="a, <b>; rel=next"; rel="next"', "https://x/a,b;c?d=1,2"),
        ('<https://x/1>; title="rel=\\"next\\""; rel=prev', None),
        ('<https://x/2> ; rel = "next"', "https://x/2"),
        ("<https://x/1>; rel=prev; rel=next", None),
        ('<https://x/1>; rel=next; anchor="#part"', None),
        ('<https://x/1>; rel="nextish"', None),
        ("<https://x/1>", None),
        ("<?page=2>; crossorigin; rel=next", "?page=2"),
        ("https://x/2; rel=next", None),
        ("", None),
    ],
)
def test_link_headers(header: str, address: str | None) -> None:
    assert next_link(header) == address


# What must not be taken for a listing.


def answers(server: Server, documents: Sequence[Any]) -> None:
    """One answer after the other, the last one again and again."""
    left = list(documents)

    async def handler(request: Request) -> Response:
        document = left.pop(0) if left[1:] else left[0]
        if callable(document):
            made: Response = document()
            return made
        return JSONResponse(document)

    server.handler = handler


def half_a_page() -> Response:
    return Response(b'{"items": [{"key": "b"}, {"ke', media_type="application/json")


def cut_off() -> Response:
    async def halves() -> Any:
        yield b'{"items": [{"key": "b"}, {"ke'

    return StreamingResponse(halves(), headers={"content-length": "100"}, media_type="application/json")


def html() -> Response:
    return Response("<html><body>Down for <b>maintenance</b></body></html>", media_type="text/html")


def redirect() -> Response:
    return Response(status_code=302, headers={"location": "https://login.example/"})


def a(**more: Any) -> dict[str, Any]:
    return {"items": [{"key": "a"}], **more}


def b(**more: Any) -> dict[str, Any]:
    return {"items": [{"key": "b"}], **more}


BY_URL = {"paging": "next_url", "next": "next"}
TRANSIENT, PERMANENT = Failure.TRANSIENT, Failure.PERMANENT


@pytest.mark.parametrize(
    ("listing", "documents", "kind", "says"),
    [
        pytest.param(BY_CURSOR, [a(next="x"), b(next="x")], TRANSIENT, "move on from: x", id="the same cursor again"),
        pytest.param(
            BY_CURSOR,
            [a(next="x"), b(next="y"), {"items": [{"key": "c"}], "next": "x"}],
            TRANSIENT,
            "page 3 of GET /items: the listing does not move on from: x",
            id="cursors in a circle",
        ),
        pytest.param(
            BY_CURSOR,
            [a(next="x"), a(next="y")],
            TRANSIENT,
            "same page again: [{'key': 'a'}]",
            id="the same page under another cursor",
        ),
        pytest.param(
            BY_URL,
            [a(next="/items?p=2"), b(next="?p=2")],
            TRANSIENT,
            "move on from: http://",
            id="the same address again",
        ),
        pytest.param(
            BY_PAGE,
            [a()],
            TRANSIENT,
            "page 2 of GET /items: the listing gives the same page again",
            id="page is ignored",
        ),
        pytest.param(BY_OFFSET, [a()], TRANSIENT, "same page again", id="offset is ignored"),
        pytest.param(BY_KEY, [a()], TRANSIENT, "does not move on from: a", id="last key is ignored"),
        pytest.param(
            BY_PAGE,
            [a(), b(), a()],
            TRANSIENT,
            "page 3 of GET /items: the listing gives the same page again",
            id="pages in a circle",
        ),
        pytest.param(
            BY_KEY,
            [a(), {"items": [{"key": "a"}, {"key": "b"}]}],
            TRANSIENT,
            "overlaps",
            id="a page that overlaps where it cannot",
        ),
        pytest.param(
            BY_PAGE,
            [a(), half_a_page],
            TRANSIENT,
            'page 2 of GET /items: the answer is not JSON: {"items": [{',
            id="half a page",
        ),
        pytest.param(BY_PAGE, [a(), cut_off], TRANSIENT, "no answer", id="a page cut off"),
        pytest.param(
            BY_PAGE, [a(), html], TRANSIENT, "not JSON: an HTML page: Down for maintenance", id="an HTML page"
        ),
        pytest.param(BY_PAGE, [a(), redirect], TRANSIENT, "redirects to https://login.example/", id="a redirect"),
        pytest.param(
            BY_PAGE, [a(), {"items": {"key": "b"}}], TRANSIENT, "no list at 'items'", id="an object for a list"
        ),
        pytest.param(BY_PAGE, [a(), {"items": None}], TRANSIENT, "no list at 'items'", id="null for a list"),
        pytest.param(
            BY_PAGE,
            [a(), {"error": "later"}],
            TRANSIENT,
            'no list at \'items\': {"error":"later"}',
            id="an error in a 200",
        ),
        pytest.param(BY_PAGE, [a(), []], TRANSIENT, "no list at 'items': []", id="a list for an object"),
        pytest.param(
            BY_CURSOR, [a(next="x"), b(next=True)], TRANSIENT, "no cursor at 'next'", id="a truth value for a cursor"
        ),
        pytest.param(
            BY_CURSOR,
            [a(next="x"), b(next={"at": 1})],
            TRANSIENT,
            "no cursor at 'next'",
            id="an object for a cursor in the query",
        ),
        pytest.param(
            BY_URL,
            [a(next="/items?p=2"), b(next=3)],
            TRANSIENT,
            "no address of the next page: 3",
            id="a number for an address",
        ),
        pytest.param(
            BY_URL,
            [a(next="/items?p=2"), b(next="http://[x/")],
            TRANSIENT,
            "no address of the next page",
            id="no address",
        ),
        pytest.param(
            BY_URL,
            [a(next="/items?p=2"), b(next="https://other.example/items")],
            TRANSIENT,
            "Set 'next_origins: {\"https://other.example\": rewrite}' of this system",
            id="another host",
        ),
        pytest.param(
            {**BY_PAGE, "total": "n"},
            [a(n=3), b(n=3), {"items": [], "n": 3}],
            TRANSIENT,
            "ends after 2 items, of which it says that they are: 3",
            id="it ends before its total",
        ),
        pytest.param(
            {**BY_PAGE, "total": "n", "end_status": [404]},
            [a(n=3), lambda: Response(status_code=404)],
            TRANSIENT,
            "ends after 1 items",
            id="a status ends it before its total",
        ),
        pytest.param(
            {**BY_PAGE, "total": "n"},
            [a(n=2), b(n="2")],
            TRANSIENT,
            "no number at 'n', but a text of digits (write to_number(n))",
            id="text for a total",
        ),
    ],
)
async def test_a_listing_that_goes_wrong(
    server: Server, listing: dict[str, Any], documents: list[Any], kind: Failure, says: str
) -> None:
    """A classed failure with what came and where; the page that shows it is not passed on."""
    answers(server, documents)
    found: list[list[str]] = []
    failure = await failure_of(asyncio.wait_for(listed(server, listing, into=found), 10))
    assert failure.kind is kind
    assert says in failure.detail
    assert len(found) <= 2
    assert flat(found) == ["a", "b"][: len(found)]


@pytest.mark.parametrize(
    ("document", "listing", "says"),
    [
        pytest.param({"items": [], "total": 3}, {**BY_OFFSET, "total": "total"}, "ends after 0 items", id="empty"),
        pytest.param(a(total=3), {"total": "total"}, "ends after 1 items", id="paging none"),
    ],
)
async def test_a_first_page_that_is_less_than_its_total(
    server: Server, document: Any, listing: dict[str, Any], says: str
) -> None:
    server.respond_with(document)
    failure = await failure_of(listed(server, listing))
    assert says in failure.detail


async def test_more_pages_than_the_one_that_is_expected(server: Server) -> None:
    """A default page size unknown to the configuration would hide all that comes after."""
    answers(server, [lambda: JSONResponse(a(), headers={"Link": '</items?page=2>; rel="next"'})])
    failure = await failure_of(listed(server, {}))
    assert "there is a next page, and 'paging' is none: /items?page=2" in failure.detail


async def test_a_listing_that_never_ends(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Always another cursor, and nothing with it."""
    monkeypatch.setattr(paging, "MAX_EMPTY_PAGES", 20)

    async def handler(request: Request) -> Response:
        return JSONResponse({"items": [], "next": int(request.query_params.get("at", 0)) + 1})

    server.handler = handler
    failure = await failure_of(asyncio.wait_for(listed(server, BY_CURSOR), 10))
    assert "the listing does not end: 20 pages without an item" in failure.detail


@pytest.mark.parametrize("listing", [BY_PAGE, BY_OFFSET, BY_CURSOR], ids=["page", "offset", "cursor"])
async def test_what_a_page_repeats_of_the_one_before_is_left_out(server: Server, listing: dict[str, Any]) -> None:
    """Rows were added above while it was listed: that is no fault of the server's."""
    answers(
        server,
        [
            {"items": [{"key": "a"}, {"key": "b"}], "next": 1},
            {"items": [{"key": "b"}, {"key": "c"}], "next": 2},
            {"items": []},
        ],
    )
    assert await listed(server, listing) == [["a", "b"], ["c"]]


class Inclusive(Shelf):
    """A server that begins a page with the key that it is requested after."""

    async def _answer(self, request: Request) -> Response:
        self.calls.append(dict(request.query_params))
        after, limit = request.query_params.get("after", ""), int(request.query_params["limit"])
        return JSONResponse({"items": [{"key": key} for key in self.keys if key >= after][:limit]})


FROM_KEY = {**BY_KEY, "includes_after": True}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 23), size=st.integers(2, 9), short=st.booleans())
async def test_an_inclusive_start_gives_each_item_once(server: Server, number: int, size: int, short: bool) -> None:
    keys = [f"k{n:02}" for n in range(number)]
    shelf = Inclusive(server, keys)
    found = await listed(server, {**FROM_KEY, "size": size, "short_page_ends": short})
    assert flat(found) == keys
    assert [] not in found
    assert len(shelf.calls) <= 2 + number // (size - 1)


async def test_an_inclusive_start_goes_on_where_a_listing_broke_off(server: Server) -> None:
    Inclusive(server, "abcde")
    assert await listed(server, {**FROM_KEY, "size": 3}, after="b") == [["c", "d"], ["e"]]


async def test_an_item_that_was_deleted_between_two_pages_hides_no_other(server: Server) -> None:
    answers(server, [{"items": [{"key": "a"}, {"key": "b"}]}, {"items": [{"key": "c"}]}, {"items": [{"key": "c"}]}])
    assert await listed(server, {**FROM_KEY, "size": 2}) == [["a", "b"], ["c"]]


@pytest.mark.parametrize(("size", "keys"), [(3, "abcde"), (1, "abc"), (3, "a")])
async def test_an_inclusive_start_that_is_not_configured_is_named(server: Server, size: int, keys: str) -> None:
    Inclusive(server, keys)
    failure = await failure_of(listed(server, {**BY_KEY, "size": size}))
    assert "page 2 of GET /items: the page begins with the key that it was requested after" in failure.detail
    assert "set 'includes_after: true', or let the server skip that item (such as 'skip: 1'" in failure.detail


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        pytest.param([("ab", 4), ("bc", 5), ("d", 5)], "abcd", id="a row was added above"),
        pytest.param([("ab", 4), ("d", 3)], "abd", id="a row was removed above"),
    ],
)
async def test_a_total_that_changes_meanwhile(server: Server, documents: list[tuple[str, int]], expected: str) -> None:
    """The least of what it says must have come."""
    answers(server, [{"items": [{"key": key} for key in keys], "total": total} for keys, total in documents])
    assert flat(await listed(server, {**BY_OFFSET, "total": "total"})) == list(expected)
    assert len(server.seen) == len(documents)


# The configuration.


@pytest.mark.parametrize(
    ("listing", "says"),
    [
        ({"paging": "offset"}, r"needs {{ offset }}"),
        ({"paging": "cursor", "params": {"c": "{{ cursor }}"}}, "needs 'next' or 'next_header'"),
        ({"paging": "next_url", "next": "a", "next_header": "b"}, "one of them"),
        ({"paging": "link", "next": "a"}, "belong to paging 'cursor' and 'next_url'"),
        ({"paging": "link", "total": "a"}, "'total' belongs to"),
        ({**BY_CURSOR, "includes_after": True}, "'includes_after' belongs to paging 'after'"),
        ({**BY_KEY, "includes_after": True, "size": 1}, "includes_after needs a 'size' of 2 or more"),
        ({**BY_CURSOR, "short_page_ends": True}, "'short_page_ends' belongs to"),
        ({"paging": "page", "params": {"p": "{{ page }}"}, "short_page_ends": True}, "short_page_ends needs"),
    ],
)
def test_what_does_not_go_together(listing: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ListCallSettings.model_validate({"path": "/items", **listing})


def test_a_page_size_that_is_the_servers_own() -> None:
    """It needs not be asked for."""
    assert ListCallSettings.model_validate(
        {"path": "/items", "paging": "page", "params": {"p": "{{ page }}"}, "size": 50, "short_page_ends": True}
    )

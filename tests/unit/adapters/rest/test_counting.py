"""Counts, in each way that servers give them, and filters that a server ignores: then nothing it says is believed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from http_server import Server, failure_of
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.filter_check import KEEP, Filters
from sync_orchestrator.adapters.rest.paging import get_count
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import (
    CountCallSettings,
    FilterCheckSettings,
    ListCallSettings,
    PartSettings,
    TargetSettings,
)
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.errors import CallFailed, Failure, Refusal

NOBODY = FilterCheckSettings().group
NOTHING = FilterCheckSettings().key


async def counted(server: Server, count: dict[str, Any], answer: Callable[[], Response] | None = None) -> int:
    if answer is not None:

        async def handler(request: Request) -> Response:
            return answer()

        server.handler = handler
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    try:
        return await get_count(client, CountCallSettings.model_validate({"path": "/count", **count}), {"group": "A"})
    finally:
        await client.close()


def told(header: str, text: str) -> Callable[[], Response]:
    return lambda: JSONResponse([], headers={header: text})


@pytest.mark.parametrize(
    ("count", "answer"),
    [
        pytest.param({"method": "HEAD", "header": "X-Total-Count"}, told("x-total-count", "5"), id="header of HEAD"),
        pytest.param({"header": "x-total-count"}, told("X-Total-Count", " 5 "), id="header of GET"),
        pytest.param(
            {"method": "HEAD", "header": "Content-Range"}, told("content-range", "items 0-1/5"), id="Content-Range"
        ),
        pytest.param({"header": "Content-Range"}, told("content-range", "*/5"), id="Content-Range of nothing"),
        pytest.param({"number": "meta.total"}, lambda: JSONResponse({"meta": {"total": 5}}), id="body field"),
        pytest.param({"number": "length(@)"}, lambda: JSONResponse([1, 2, 3, 4, 5]), id="computed from the body"),
        pytest.param({"number": "to_number(n)"}, lambda: JSONResponse({"n": "5"}), id="text in the body, said so"),
        pytest.param({"number": "n"}, lambda: JSONResponse({"n": 5.0}), id="whole number with a fraction of nothing"),
        pytest.param({}, lambda: JSONResponse(5), id="the body itself"),
        pytest.param({}, lambda: PlainTextResponse("5\n"), id="plain text"),
        pytest.param({}, lambda: PlainTextResponse("005"), id="plain text with zeros"),
        pytest.param({}, lambda: PlainTextResponse('"5"'), id="plain text in quotes"),
        pytest.param({}, lambda: PlainTextResponse("\ufeff5"), id="plain text with a byte order mark"),
    ],
)
async def test_count(server: Server, count: dict[str, Any], answer: Callable[[], Response]) -> None:
    assert await counted(server, count, answer) == 5


@pytest.mark.parametrize(
    ("count", "query", "body", "answer"),
    [
        pytest.param(
            {"params": {"store": "{{ group }}", "limit": "0"}, "number": "total"},
            {"store": "A", "limit": "0"},
            None,
            {"items": [], "total": 5},
            id="limit 0",
        ),
        pytest.param(
            {
                "method": "POST",
                "body": {"where": {"store": "{{ group }}"}, "aggregate": {"n": {"count": "*"}}},
                "number": "[0].n",
            },
            {},
            {"where": {"store": "A"}, "aggregate": {"n": {"count": "*"}}},
            [{"n": 5}],
            id="aggregate",
        ),
        pytest.param(
            {
                "method": "POST",
                "body": {
                    "jsonrpc": "2.0",
                    "id": 1,
                    "method": "search_count",
                    "params": [[["store", "=", "{{ group }}"]]],
                },
                "number": "result",
            },
            {},
            {"jsonrpc": "2.0", "id": 1, "method": "search_count", "params": [[["store", "=", "A"]]]},
            {"jsonrpc": "2.0", "id": 1, "result": 5},
            id="RPC",
        ),
    ],
)
async def test_count_by_a_question(
    server: Server, count: dict[str, Any], query: dict[str, str], body: Any, answer: Any
) -> None:
    heard: list[Any] = []

    async def handler(request: Request) -> Response:
        came = await request.body()
        heard.append(json.loads(came) if came else None)
        return JSONResponse(answer)

    server.handler = handler
    assert await counted(server, count) == 5
    assert (server.seen[0][2], heard) == (query, [body])


@pytest.mark.parametrize(
    ("count", "answer", "says"),
    [
        pytest.param(
            {"header": "X-Total"},
            told("X-Other", "5"),
            "no number in the header 'X-Total' of the answer to GET /count: nothing",
            id="no such header",
        ),
        pytest.param({"header": "X-Total"}, told("X-Total", "many"), ": many", id="a header that is no number"),
        pytest.param({"header": "X-Total"}, told("X-Total", "-1"), ": -1", id="a header below zero"),
        pytest.param(
            {"header": "Content-Range"},
            told("Content-Range", "items 0-9/*"),
            ": items 0-9/*",
            id="a range of unknown length",
        ),
        pytest.param(
            {"number": "n"},
            lambda: JSONResponse({"n": "5"}),
            'no number at \'n\' in the answer to GET /count, but a text of digits (write to_number(n)): {"n":"5"}',
            id="text in a JSON body",
        ),
        pytest.param({}, lambda: JSONResponse("5"), "no number", id="a JSON body that is text"),
        pytest.param({}, lambda: PlainTextResponse("5 items"), ": 5 items", id="plain text with words"),
        pytest.param({}, lambda: PlainTextResponse(""), "no number", id="empty text"),
        pytest.param({}, lambda: PlainTextResponse("5" * 5000), "no number", id="more digits than can be"),
        pytest.param({"number": "n"}, lambda: JSONResponse({"error": "later"}), "later", id="an error in a 200"),
    ],
)
async def test_a_count_that_is_none(
    server: Server, count: dict[str, Any], answer: Callable[[], Response], says: str
) -> None:
    failure = await failure_of(counted(server, count, answer))
    assert failure.kind is Failure.TRANSIENT
    assert says in failure.detail


def test_a_head_has_no_body() -> None:
    with pytest.raises(ValidationError, match="say 'header'"):
        CountCallSettings.model_validate({"method": "HEAD", "path": "/count"})


# Filters.


class Store:
    """Records with a key and a group; it knows those of the filters ``key`` and ``group`` that are in ``obeyed``.

    ``refusal``: the status for a filter's value of which it has nothing, None for an empty answer.
    """

    def __init__(self, server: Server, *obeyed: str, refusal: int | None = None) -> None:
        self.records = [{"id": f"i{n}", "key": f"k{n}", "group": "AB"[n % 2], "v": 1} for n in range(6)]
        self.told = ["id", "key", "group", "v"]
        self.obeyed = obeyed
        self.refusal = refusal
        server.handler = self._answer

    async def _answer(self, request: Request) -> Response:
        found = self.records
        for name in self.obeyed:
            if (value := request.query_params.get(name)) is not None:
                found = [record for record in found if record[name] == value]
                if not found and self.refusal:
                    return JSONResponse({"fault": "no such thing"}, self.refusal)
        if request.url.path == "/count":
            return JSONResponse({"n": len(found)})
        return JSONResponse({"items": [{name: record[name] for name in self.told} for record in found]})


TARGET: dict[str, Any] = {
    "system": "erp",
    "key_field": "key",
    "group": "group",
    "create": {"path": "/items"},
    "update": {"method": "PUT", "path": "/items/{{ id }}"},
    "delete": {"path": "/items/{{ id }}"},
    "read": {"path": "/items/{{ id }}"},
    "lookup": {"path": "/items", "params": {"key": "{{ key }}"}, "items": "items"},
    "list": {"path": "/items", "params": {"group": "{{ group }}"}, "items": "items"},
    "count": {"path": "/count", "params": {"group": "{{ group }}"}, "number": "n"},
}
BY_GROUP_AND_KEY = {"path": "/items", "params": {"key": "{{ key }}", "group": "{{ group }}"}, "items": "items"}


def third_party(server: Server, **changes: Any) -> RestThirdParty:
    client = HttpClient(HttpSettings(base_url=server.url, timeout=5))
    return RestThirdParty(client, TargetSettings.model_validate({**TARGET, **changes}), ("key",))


async def asked(erp: RestThirdParty, call: str) -> Any:
    """What a call finds: a number, or ids."""
    match call:
        case "count":
            return await erp.count("A")
        case "lookup":
            return [found.external_id for found in await erp.lookup("k2", "A")]
    return [found.external_id async for page in erp.pages("A") for found in page]


FOUND = [("count", 3), ("lookup", ["i2"]), ("list", ["i0", "i2", "i4"])]


@pytest.mark.parametrize("refusal", [None, 400, 404, 410, 403, 422])
@pytest.mark.parametrize(("call", "found"), FOUND)
async def test_a_filter_that_is_obeyed(server: Server, call: str, found: Any, refusal: int | None) -> None:
    """Something impossible brings nothing, or is refused; that is asked once, an address that is missing four times."""
    Store(server, "key", "group", refusal=refusal)
    erp = third_party(server)
    for _ in range(3):
        assert await asked(erp, call) == found
    impossible = [query for _, _, query in server.seen if {NOBODY, NOTHING} & set(query.values())]
    times = 4 if refusal in (404, 410) else 1
    assert impossible == [{"key": NOTHING} if call == "lookup" else {"group": NOBODY}] * times
    assert len(server.seen) == 3 + times
    await erp.close()


@pytest.mark.parametrize("call", ["count", "lookup", "list"])
async def test_a_filter_that_is_ignored(server: Server, call: str) -> None:
    """Everything comes back: no count, nothing to adopt, nothing to delete; and so it stays until it is fixed."""
    store = Store(server)
    erp = third_party(server)
    for _ in range(2):
        failure = await failure_of(asked(erp, call))
        assert failure.kind is Failure.PERMANENT
        assert f"the filter of '{call}' (GET /{'count' if call == 'count' else 'items'}) is ignored" in failure.detail
        assert ("a count of 6" if call == "count" else "6 items") in failure.detail
        assert failure.refusal is not Refusal.MISSING
    store.obeyed = ("key", "group")
    assert await asked(erp, call) == dict(FOUND)[call]
    await erp.close()


async def test_a_search_by_key_that_the_filter_by_group_hides(server: Server) -> None:
    """Each filter is tried by itself."""
    Store(server, "group")
    erp = third_party(server, lookup=BY_GROUP_AND_KEY)
    failure = await failure_of(asked(erp, "lookup"))
    assert f"asked for key '{NOTHING}'" in failure.detail
    await erp.close()


async def test_nothing_found_needs_no_proof(server: Server) -> None:
    """Whether the filter is obeyed or ignored, there is nothing; and it would prove nothing."""
    store = Store(server)
    store.records.clear()
    erp = third_party(server)
    assert [await asked(erp, call) for call in ("count", "lookup", "list")] == [0, [], []]
    assert len(server.seen) == 3
    await erp.close()


@pytest.mark.parametrize("status", [500, 401, 302])
async def test_a_check_that_fails_proves_nothing(server: Server, status: int) -> None:
    Store(server, "key", "group", refusal=status)
    erp = third_party(server)
    failure = await failure_of(asked(erp, "count"))
    assert failure.status == status
    assert f"the filter of 'count' (GET /count) cannot be checked, asked for group '{NOBODY}': " in failure.detail
    await erp.close()


async def test_a_filter_is_checked_again_after_a_while(server: Server) -> None:
    now = [0.0]
    store = Store(server, "group")
    client = HttpClient(HttpSettings(base_url=server.url))
    filters = Filters(client, FilterCheckSettings(), lambda: now[0])
    count = CountCallSettings.model_validate(TARGET["count"])
    for at, calls in [(0.0, 1), (KEEP - 1, 1), (KEEP, 2)]:
        now[0] = at
        await filters.prove_filters("count", count, {"group": "A"}, "group")
        assert len(server.seen) == calls
    store.obeyed = ()
    now[0] = KEEP * 2
    with pytest.raises(CallFailed, match="is ignored"):
        await filters.prove_filters("count", count, {"group": "A"}, "group")
    await client.close()


@pytest.mark.parametrize(
    ("check", "filters"),
    [
        pytest.param({"off": True}, ["group"], id="off"),
        pytest.param({}, ["key"], id="a name that the call does not use"),
    ],
)
async def test_what_is_not_checked(server: Server, check: dict[str, Any], filters: list[str]) -> None:
    client = HttpClient(HttpSettings(base_url=server.url))
    count = CountCallSettings.model_validate(TARGET["count"])
    await Filters(client, FilterCheckSettings.model_validate(check)).prove_filters(
        "count", count, {"group": "A"}, *filters
    )
    assert server.seen == []
    await client.close()


async def test_a_reference_stands_for_the_group(server: Server) -> None:
    """Where the filter is by what was looked up for the group, that is what cannot exist."""
    Store(server)
    client = HttpClient(HttpSettings(base_url=server.url))
    listing = ListCallSettings.model_validate(
        {"path": "/items", "params": {"store": "{{ store_id }}"}, "items": "items"}
    )
    failure = await failure_of(
        Filters(client, FilterCheckSettings(group="-1")).prove_filters(
            "list", listing, {"store_id": 7}, "group", "store_id"
        )
    )
    assert server.seen[0][2] == {"store": "-1"}
    assert "asked for store_id '-1'" in failure.detail
    await client.close()


# The owner's listing.


def source(server: Server, **changes: Any) -> RestSource:
    version = {"path": "v", "kind": "number"}
    part = {"key": "key", "version": version, "group": "group", "list": TARGET["list"], **changes}
    return RestSource(HttpClient(HttpSettings(base_url=server.url)), PartSettings.model_validate(part))


async def groups_listed(shop: RestSource) -> list[tuple[str, str | None]]:
    try:
        return [(row.key, row.group) async for rows, _ in shop.pages("A") for row in rows]
    finally:
        await shop.close()


async def test_items_that_tell_their_group_need_no_filter(server: Server) -> None:
    """What each says counts, whatever was asked for."""
    Store(server)
    assert await groups_listed(source(server)) == [(f"k{n}", "AB"[n % 2]) for n in range(6)]
    assert len(server.seen) == 1


async def test_items_without_a_group_need_a_filter_that_is_obeyed(server: Server) -> None:
    Store(server, "group").told = ["key", "v"]
    assert await groups_listed(source(server)) == [("k0", None), ("k2", None), ("k4", None)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param({}, "the filter of 'list' (GET /items) is ignored", id="ignored"),
        pytest.param(
            {"list": {"path": "/items", "items": "items"}}, "'list' does not ask for one with {{ group }}", id="absent"
        ),
    ],
)
async def test_items_without_a_group_that_come_for_any(server: Server, changes: dict[str, Any], says: str) -> None:
    """Everything would land in every group."""
    Store(server).told = ["key", "v"]
    failure = await failure_of(groups_listed(source(server, **changes)))
    assert failure.kind is Failure.PERMANENT
    assert says in failure.detail

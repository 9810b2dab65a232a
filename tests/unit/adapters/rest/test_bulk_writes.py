"""Many records in one call: what is gathered, how results find their records, and what becomes of bad ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from bulk_store import BULK, MAPPED, TARGET, BulkStore, item, third_party
from bulk_store import http as http
from bulk_store import store as store
from http_server import Server, failure_of
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.config import TargetSettings
from sync_orchestrator.core.ports import Item
from sync_orchestrator.errors import CallFailed, Failure


async def created(erp: RestThirdParty, keys: str) -> dict[str, Any]:
    """What came of creating these records at once: ids or failures by key."""
    results = await asyncio.gather(*(erp.create(item(key)) for key in keys), return_exceptions=True)
    return dict(zip(keys, results, strict=True))


# What goes together ---------------------------------------------------------------------------------------------------


async def test_writes_that_are_under_way_at_once_go_in_one_call(store: BulkStore, http: HttpClient) -> None:
    assert await created(third_party(http), "abc") == {key: f"i-{key}" for key in "abc"}
    assert [[each["key"] for each in call] for call in store.calls] == [["a", "b", "c"]]


async def test_creates_updates_and_deletes_go_in_one_call(store: BulkStore, http: HttpClient) -> None:
    erp = third_party(http)
    await created(erp, "ab")
    results = await asyncio.gather(erp.create(item("c")), erp.update(item("a", "i-a")), erp.delete(item("b", "i-b")))
    assert list(results) == ["i-c", "i-a", None]
    assert [sorted(each["op"] for each in call) for call in store.calls] == [
        ["create"] * 2,
        ["create", "delete", "update"],
    ]
    assert sorted(store.items) == ["i-a", "i-c"]


@pytest.mark.parametrize("match", ["key", "position"])
async def test_two_writes_of_one_record_do_not_go_in_one_call(store: BulkStore, http: HttpClient, match: str) -> None:
    erp = third_party(http, match=match, result_key="key")
    await created(erp, "ab")
    results = await asyncio.gather(*(erp.update(item(key, f"i-{key}")) for key in "aab"))
    assert results == ["i-a", "i-a", "i-b"]
    assert sorted([each["key"] for each in call] for call in store.calls[1:]) == [["a"], ["a", "b"]]


async def test_verbs_that_are_set_up_differently_do_not_go_together(store: BulkStore, http: HttpClient) -> None:
    erp = RestThirdParty(
        http,
        TargetSettings.model_validate(
            {**TARGET, "bulk_create": BULK, "bulk_update": {**BULK, "size": 9}, "bulk_delete": BULK}
        ),
        MAPPED,
    )
    await created(erp, "a")
    await asyncio.gather(erp.create(item("c")), erp.update(item("a", "i-a")))
    assert sorted(len(call) for call in store.calls) == [1, 1, 1]


async def test_items_stand_in_a_call_in_their_own_shape(server: Server, store: BulkStore, http: HttpClient) -> None:
    """As sub-requests, each with a path of its own; where nothing is around them, they are the list that is sent."""
    names = {name: f"{{{{ {name} }}}}" for name in ("op", "key", "id", "payload")}
    erp = third_party(http, item={**names, "path": "/items{{ '/' ~ id | urlencode if id }}"})
    await created(erp, "a")
    await asyncio.gather(erp.create(item("c")), erp.delete(item("a", "i-a")))
    assert [each["path"] for call in store.calls for each in call] == ["/items", "/items", "/items/i-a"]
    assert store.calls[1][1]["payload"] is None
    assert store.items == {"i-c": {"id": "i-c", "code": "c", "name": "name of c"}}
    heard: list[Any] = []

    async def handler(request: Request) -> Response:
        heard.append(await request.json())
        return JSONResponse({})

    server.handler = handler
    await third_party(http, request={"path": "/bulk"}, item={"drop": "{{ id }}"}, results=None).delete(item("a", "i-a"))
    assert heard == [[{"drop": "i-a"}]]


async def test_an_item_whose_shape_cannot_be_made_spoils_no_other(store: BulkStore, http: HttpClient) -> None:
    erp = third_party(
        http, item={"key": "{{ {'a': 'a', 'c': 'c'}[key] }}", "op": "{{ op }}", "id": None, "payload": "{{ payload }}"}
    )
    results = await created(erp, "abc")
    assert (results["a"], results["c"]) == ("i-a", "i-c")
    assert (results["b"].kind, results["b"].unknown) == (Failure.PERMANENT, False)
    assert [[each["key"] for each in call] for call in store.calls] == [["a", "c"]]


async def test_no_call_holds_more_than_its_size(store: BulkStore, http: HttpClient) -> None:
    keys = "abcdefghijklmnopqrstuvwxy"
    assert set((await created(third_party(http), keys)).values()) == {f"i-{key}" for key in keys}
    assert sorted(len(call) for call in store.calls) == [5, 10, 10]


async def test_no_call_is_larger_than_its_bytes_but_for_a_single_item(store: BulkStore, http: HttpClient) -> None:
    erp = third_party(http, bytes=700)
    big = Item("big", "A", {"code": "big", "name": "x" * 900})
    await asyncio.gather(erp.create(big), *(erp.create(item(key)) for key in "abcdef"))
    assert len(store.items) == 7
    assert all(len(body) < 900 or len(call) == 1 for body, call in zip(store.bodies, store.calls, strict=True))


async def test_a_call_holds_one_business_group_where_its_address_names_it(
    store: BulkStore, http: HttpClient, server: Server
) -> None:
    erp = third_party(http, by_group=True, request={**BULK["request"], "path": "/stores/{{ group }}/bulk"})
    await asyncio.gather(*(erp.create(item(key, group="AB"[key > "b"])) for key in "abcd"))
    assert sorted(path for method, path, _ in server.seen if method == "POST") == ["/stores/A/bulk", "/stores/B/bulk"]
    assert sorted(len(call) for call in store.calls) == [2, 2]


async def test_what_waited_too_long_is_not_sent_and_says_so(store: BulkStore, http: HttpClient) -> None:
    erp = third_party(http)
    late, _ = await asyncio.gather(
        failure_of(erp.create(item("a", deadline=time.monotonic() - 1))), erp.create(item("b"))
    )
    assert (late.kind, late.unknown) == (Failure.THROTTLED, False)
    assert [[each["key"] for each in call] for call in store.calls] == [["b"]]


async def test_without_a_body_of_its_own_a_list_of_the_payloads_is_sent(http: HttpClient, server: Server) -> None:
    bodies: list[Any] = []

    async def taken(request: Request) -> Response:
        bodies.append(await request.json())
        return JSONResponse({"results": [{"id": each["code"], "status": 201} for each in bodies[-1]]})

    server.handler = taken
    erp = third_party(http, request={"path": "/bulk", "method": "POST"})
    assert await created(erp, "ab") == {"a": "a", "b": "b"}
    assert bodies == [[dict(item(key).payload) for key in "ab"]]


# Results ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("match", "says"),
    [
        pytest.param("position", lambda results: results, id="by position"),
        pytest.param("key", lambda results: results[::-1], id="by key, in another order"),
        pytest.param(
            "key", lambda results: {each["key"]: each for each in results}, id="by key, as names of an object"
        ),
    ],
)
async def test_results_find_their_records(
    store: BulkStore, http: HttpClient, match: str, says: Callable[[list[Any]], Any]
) -> None:
    store.bad = {"b"}
    store.says = lambda results: JSONResponse({"results": says(results)}, 207)
    results = await created(third_party(http, match=match, result_key="key"), "abc")
    assert (results["a"], results["c"]) == ("i-a", "i-c")
    assert isinstance(results["b"], CallFailed)
    assert (results["b"].kind, results["b"].unknown) == (Failure.PERMANENT, False)


async def test_results_are_matched_by_id(store: BulkStore, http: HttpClient) -> None:
    erp = third_party(http)
    await created(erp, "abc")
    store.says = lambda results: JSONResponse({"results": results[::-1]}, 207)
    by_id = RestThirdParty(
        http,
        TargetSettings.model_validate(
            {
                **TARGET,
                "create": {"path": "/items"},
                "delete": {"path": "/items/{{ id }}"},
                "bulk_update": {**BULK, "match": "id", "result_key": "id"},
            }
        ),
        MAPPED,
    )
    store.bad = {"b"}
    answers = await asyncio.gather(*(by_id.update(item(key, f"i-{key}")) for key in "abc"), return_exceptions=True)
    assert (answers[0], answers[2]) == ("i-a", "i-c")
    assert isinstance(answers[1], CallFailed)


@pytest.mark.parametrize("match", ["position", "key"])
async def test_items_that_are_dropped_silently_count_as_unknown(store: BulkStore, http: HttpClient, match: str) -> None:
    store.says = lambda results: JSONResponse({"results": results[:-1]}, 200)
    results = await created(third_party(http, match=match, result_key="key"), "abc")
    assert isinstance(results["c"], CallFailed)
    assert (results["c"].kind, results["c"].unknown) == (Failure.TRANSIENT, True)
    known = [key for key in "ab" if isinstance(results[key], str)]
    assert known == (["a", "b"] if match == "key" else [])  # by position nobody knows which one is missing


async def test_an_item_that_is_missing_there_is_told_apart(store: BulkStore, http: HttpClient) -> None:
    erp = third_party(http)
    await created(erp, "a")
    results = await asyncio.gather(erp.update(item("a", "i-a")), erp.update(item("z", "i-z")))
    assert list(results) == ["i-a", None]


async def test_rules_say_what_a_result_means(store: BulkStore, http: HttpClient) -> None:
    store.says = lambda results: JSONResponse(
        {
            "results": [
                {**each, "error": {"code": "rolled_back"}} if each["key"] != "b" else {**each, "error": {"code": "no"}}
                for each in results
            ]
        }
    )
    erp = third_party(
        http,
        outcomes=[
            {"when": "body.error.code == 'rolled_back'", "means": "transient"},
            {"when": "body.error", "means": "invalid", "message": "body.error.code"},
        ],
    )
    results = await created(erp, "abc")
    assert [results[key].kind for key in "abc"] == [Failure.TRANSIENT, Failure.PERMANENT, Failure.TRANSIENT]
    assert "no" in results["b"].detail


@pytest.mark.parametrize("answer", [{"results": "none"}, {"other": []}, [1, 2], "a text"])
async def test_garbage_is_taken_for_no_success(store: BulkStore, http: HttpClient, answer: Any) -> None:
    store.says = lambda results: JSONResponse(answer)
    results = await created(third_party(http), "ab")
    assert all(isinstance(end, CallFailed) and end.unknown for end in results.values())


async def test_what_was_made_without_a_result_is_looked_up(store: BulkStore, http: HttpClient) -> None:
    store.says = lambda results: JSONResponse(None)
    assert await created(third_party(http, results=None, result_id=None), "ab") == {"a": "i-a", "b": "i-b"}


# Calls that fail ------------------------------------------------------------------------------------------------------


async def test_a_call_that_is_all_or_nothing_is_halved_until_the_bad_one_is_alone(
    store: BulkStore, http: HttpClient
) -> None:
    store.atomic, store.bad = True, {"f"}
    results = await created(third_party(http, atomic=True), "abcdefgh")
    assert {key for key, end in results.items() if isinstance(end, CallFailed)} == {"f"}
    assert results["f"].kind is Failure.PERMANENT
    assert len(store.calls) == 7
    assert sorted(store.items) == [f"i-{key}" for key in "abcdegh"]


async def test_a_call_that_is_too_large_is_halved_though_it_is_answered_by_a_429(
    store: BulkStore, http: HttpClient
) -> None:
    store.most = 3
    erp = RestThirdParty(
        http,
        TargetSettings.model_validate(
            {
                **TARGET,
                "bulk_update": BULK,
                "bulk_delete": BULK,
                "bulk_create": {
                    **BULK,
                    "request": {
                        **BULK["request"],
                        "outcomes": [{"when": "body.error == 'too many'", "means": "too_large"}],
                    },
                },
            }
        ),
        MAPPED,
    )
    assert set((await created(erp, "abcdefgh")).values()) == {f"i-{key}" for key in "abcdefgh"}
    assert max(len(call) for call in store.calls[1:]) == 4
    assert len(store.items) == 8


async def test_a_refused_call_that_may_have_written_a_part_is_unknown_and_each_goes_alone_then(
    store: BulkStore, http: HttpClient
) -> None:
    store.atomic, store.bad = True, {"b"}
    erp = third_party(http)
    first = await created(erp, "abc")
    assert all(isinstance(end, CallFailed) and end.kind is Failure.TRANSIENT and end.unknown for end in first.values())
    second = await created(erp, "abc")
    assert [isinstance(second[key], CallFailed) for key in "abc"] == [False, True, False]
    assert second["b"].kind is Failure.PERMANENT
    assert [len(call) for call in store.calls] == [3, 1, 1, 1]


@pytest.mark.parametrize(("status", "unknown"), [(500, True), (502, True), (429, False)])
async def test_what_fails_for_all_fails_for_each(
    store: BulkStore, http: HttpClient, status: int, unknown: bool
) -> None:
    store.says = lambda results: JSONResponse({}, status)
    results = await created(third_party(http), "ab")
    assert [(end.kind is not Failure.PERMANENT, end.unknown) for end in results.values()] == [(True, unknown)] * 2


# In a drain -----------------------------------------------------------------------------------------------------------


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bulk_create": {**BULK, "match": "id"}}, "match by position or key"),
        ({"bulk_create": {**BULK, "result_id": None}, "lookup": None}, "needs 'result_id', or 'lookup'"),
        ({"bulk_update": {**BULK, "request": {"path": "/{{ group }}/bulk"}}}, "needs by_group: true"),
        ({"bulk_update": {**BULK, "request": {"path": "/bulk/{{ key }}"}}}, "nothing fills in 'key'"),
        ({"bulk_update": {**BULK, "item": {"x": "{{ items }}"}}}, "bulk_update.item: nothing fills in 'items'"),
    ],
)
def test_what_cannot_work_is_refused_at_load(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        TargetSettings.model_validate(
            {**TARGET, "bulk_create": BULK, "bulk_update": BULK, "bulk_delete": BULK, **changes}
        )

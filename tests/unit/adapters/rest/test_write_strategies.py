"""How records are written at third parties that differ: upserts, linked calls, ids, answers, idempotency keys.

Each against a server that behaves that way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from http_server import Server, failure_of
from record_store import OURS, THEIRS, Store, adapter, item
from starlette.responses import JSONResponse, Response
from write_requests import CREATE_FIRST, LINKED, PATCH, POST_ITEMS, PUT_ITEMS, PUT_STOCK, UPDATE_FIRST

from sync_orchestrator.errors import CallFailed, Failure

EMPTY_IS_MISSING = {"when": "status == `204`", "means": "missing"}


# 1. Upserts with our ids.


async def test_put_by_id_makes_what_is_missing_and_overwrites_what_is_there(server: Server) -> None:
    store = Store(server, our_ids=True)
    erp = adapter(server, OURS)
    assert [await erp.create(item()), await erp.update(item(name="next"))] == ["k1", "k1"]
    assert (store.items["k1"]["name"], store.calls[PUT_ITEMS], store.calls[POST_ITEMS]) == ("next", 2, 0)
    await erp.close()


async def test_post_then_patch_when_it_exists_already(server: Server) -> None:
    store = Store(server, our_ids=True, unique=True)
    erp = adapter(server, CREATE_FIRST)
    assert await erp.update(item()) == "k1"
    assert store.calls == {POST_ITEMS: 1}
    assert await erp.update(item(name="next")) == "k1"
    assert store.calls == {POST_ITEMS: 2, "PATCH items": 1}
    assert store.items["k1"]["name"] == "next"
    await erp.close()


async def test_post_then_patch_then_post_again_where_it_was_deleted_in_between(server: Server) -> None:
    store = Store(server, our_ids=True)
    store.instead[POST_ITEMS] = [409]
    erp = adapter(server, CREATE_FIRST)
    assert await erp.update(item()) == "k1"
    assert store.calls == {POST_ITEMS: 2, "PATCH items": 1}
    await erp.close()


@pytest.mark.parametrize("told_by", ["404", "empty 204"])
async def test_patch_then_post_when_it_is_missing(server: Server, told_by: str) -> None:
    """Told by a 404, or by an empty 204 that wrote nothing."""
    store = Store(server, our_ids=True, unique=True)
    update = PATCH
    if told_by == "empty 204":
        store.missing = lambda: Response(status_code=204)
        update = {**PATCH, "outcomes": [EMPTY_IS_MISSING]}
    erp = adapter(server, {**UPDATE_FIRST, "update": update})
    assert await erp.update(item()) == "k1"
    assert store.calls == {"PATCH items": 1, POST_ITEMS: 1}
    assert await erp.update(item(name="next")) == "k1"
    assert store.calls == {"PATCH items": 2, POST_ITEMS: 1}
    assert store.items["k1"]["name"] == "next"
    await erp.close()


async def test_patch_then_post_then_patch_again_where_another_made_it_in_between(server: Server) -> None:
    store = Store(server, our_ids=True, unique=True)
    store.by_hand(code="k1", name="theirs")
    store.instead["PATCH items"] = [404]
    erp = adapter(server, UPDATE_FIRST)
    assert await erp.update(item()) == "k1"
    assert store.items["k1"]["name"] == "n"
    await erp.close()


@pytest.mark.parametrize("target", [CREATE_FIRST, UPDATE_FIRST])
async def test_what_is_neither_there_nor_can_be_made_is_no_success(server: Server, target: dict[str, Any]) -> None:
    store = Store(server, our_ids=True)
    store.instead[POST_ITEMS] = [409, 409]
    erp = adapter(server, target)
    failure = await failure_of(erp.create(item()))
    assert (failure.kind, failure.about_system, store.items) == (Failure.TRANSIENT, True, {})
    await erp.close()


@pytest.mark.parametrize("target", [CREATE_FIRST, UPDATE_FIRST])
@pytest.mark.parametrize("status", [400, 401, 429, 500])
async def test_only_a_duplicate_or_a_missing_record_leads_to_the_other_call(
    server: Server, target: dict[str, Any], status: int
) -> None:
    store = Store(server, our_ids=True)
    store.instead[POST_ITEMS], store.instead["PATCH items"] = [status], [status]
    erp = adapter(server, target)
    assert (await failure_of(erp.update(item()))).status == status
    assert store.calls.total() == 1
    await erp.close()


# 1. Upserts with their ids.


# 1. Two linked calls in order: the product, then its stock level.


@pytest.mark.parametrize("status", [504, 503, 422])
async def test_a_second_call_that_fails_says_what_the_first_has_made_and_whether_it_may_still_land(
    server: Server, status: int
) -> None:
    store = Store(server)
    store.instead[PUT_STOCK] = [status, status]
    erp = adapter(server, LINKED, "store", "count")
    record = item(store="A", count=5)
    failures = [await failure_of(erp.create(record)), await failure_of(erp.update(replace(record, external_id="x1")))]
    assert {failure.external_id for failure in failures} == {"x1"}
    assert {failure.unknown for failure in failures} == {status != 422}
    assert all("PUT /stock/" in failure.detail for failure in failures)
    await erp.close()


# 2. The id map.


async def test_the_servers_own_id_is_kept_beside_our_key(server: Server) -> None:
    store = Store(server)
    erp = adapter(server, THEIRS)
    external_id = await erp.create(item())
    assert external_id == "x1"
    assert await erp.update(item(external_id=external_id, name="next")) == "x1"
    found = await erp.read(item(external_id=external_id))
    assert found is not None
    assert (found.key, found.external_id, store.items["x1"]["name"]) == ("k1", "x1", "next")
    await erp.close()


NARROW = {"key_pattern": "[A-Za-z0-9_-]{1,8}"}


@pytest.mark.parametrize("key", ["a b", "a/b", "é", "123456789", "", "k1\n"])
async def test_a_key_outside_the_id_character_set_is_refused_before_any_call(server: Server, key: str) -> None:
    erp = adapter(server, {**OURS, **NARROW})
    failure = await failure_of(erp.update(item(key)))
    assert (failure.kind, server.seen) == (Failure.PERMANENT, [])
    assert "key_pattern" in failure.detail
    await erp.close()


async def test_a_key_outside_the_id_character_set_needs_no_deletion(server: Server) -> None:
    """It cannot have been written; a deletion that is refused for good would be told to a person for nothing."""
    erp = adapter(server, {**OURS, **NARROW})
    await erp.delete(item("a b"))
    assert server.seen == []
    await erp.close()


# 5. Envelopes of writes.


@pytest.mark.parametrize(
    ("answer", "changes"),
    [
        ({"id": 7}, {}),
        ({"id": "7", "code": "k1"}, {}),
        ({"data": {"item": {"uid": 7}}}, {"id": "uid", "record": "data.item"}),
        ({"made": {"id": 7}}, {"create": {"path": "/items", "record": "made"}}),
        ({"data": [{"id": 7}]}, {"record": "data"}),
        ([{"id": 7}], {}),
    ],
)
async def test_the_id_stands_at_a_path_or_in_a_single_record_of_a_list(
    server: Server, answer: Any, changes: dict[str, Any]
) -> None:
    server.respond_with(answer, 201)
    erp = adapter(server, {**THEIRS, **changes})
    assert await erp.create(item()) == "7"
    await erp.close()


@pytest.mark.parametrize("answer", [[{"id": 7}, {"id": 8}], []])
async def test_several_records_in_the_answer_to_a_create_name_no_id(server: Server, answer: Any) -> None:
    server.respond_with(answer)
    erp = adapter(server, {**THEIRS, "lookup": None})
    assert (await failure_of(erp.create(item()))).unknown
    await erp.close()


@pytest.mark.parametrize(
    ("location", "pattern", "external_id"),
    [
        ("/items/7", None, "7"),
        ("http://elsewhere/api/items/a%2Fb?v=1", None, "a/b"),
        ("/items/7/", None, "7"),
        ("/Items('a''b')", r"\('(.*)'\)", "a''b"),
        ("urn:item:7", r"urn:item:(\d+)", "7"),
    ],
)
async def test_an_answer_without_the_record_names_its_id_in_the_location_header(
    server: Server, location: str, pattern: str | None, external_id: str
) -> None:
    Store(server).says = lambda store, made: Response(status_code=201, headers={"Location": location})
    source = {"header": "Location", **({"pattern": pattern} if pattern else {})}
    erp = adapter(server, {**THEIRS, "id_from": source})
    assert await erp.create(item()) == external_id
    await erp.close()


@pytest.mark.parametrize("changes", [{}, {"id_from": {"header": "Location"}}])
async def test_an_answer_without_the_record_and_its_id_is_followed_by_a_read_back(
    server: Server, changes: dict[str, Any]
) -> None:
    store = Store(server)
    store.says = lambda store, made: Response(status_code=204)
    erp = adapter(server, {**THEIRS, **changes})
    assert await erp.create(item()) == "x1"
    assert store.calls[POST_ITEMS] == 1
    await erp.close()


@pytest.mark.parametrize("there", [[], [{"code": "k1", "name": "another's"}]])
async def test_a_read_back_that_shows_nothing_like_it_leaves_the_create_unknown(
    server: Server, there: list[dict[str, Any]]
) -> None:
    """The answer may have been a fault's; what is there already is not taken for what was sent."""
    store = Store(server)
    for fields in there:
        store.by_hand(**fields)
    store.instead[POST_ITEMS] = [200]
    erp = adapter(server, THEIRS)
    failure = await failure_of(erp.create(item()))
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)
    await erp.close()


@pytest.mark.parametrize(
    "said",
    [
        lambda store, made: Response(status_code=204),
        lambda store, made: JSONResponse(None),
        lambda store, made: JSONResponse([made]),
        lambda store, made: JSONResponse({"ok": True}),
    ],
)
async def test_an_update_needs_no_record_in_its_answer(server: Server, said: Callable[..., Response]) -> None:
    store = Store(server)
    store.by_hand(code="k1")
    store.says = said
    erp = adapter(server, THEIRS)
    assert await erp.update(item(external_id="x1")) == "x1"
    await erp.close()


# 5, 8. A listing of ids alone.


@pytest.mark.parametrize(("our_ids", "items"), [(False, "[].{id: id}"), (True, "[].{code: id}")])
async def test_where_a_listing_shows_ids_alone_each_record_is_read_by_its_id(
    server: Server, our_ids: bool, items: str
) -> None:
    store = Store(server, our_ids=our_ids)
    for key in ("k1", "k2"):
        store.by_hand(code=key, name=f"name of {key}", store="A")
    target = {**(OURS if our_ids else THEIRS), "list_shows": "ids", "filter_check": {"off": True}}
    erp = adapter(server, {**target, "list": {**THEIRS["list"], "items": items}})
    listed = [found async for page in erp.pages("A") for found in page]
    assert [(found.key, found.group, found.fields["name"]) for found in listed] == [
        ("k1", "A", "name of k1"),
        ("k2", "A", "name of k2"),
    ]
    await erp.close()


async def test_a_listing_of_ids_goes_on_after_the_last_id(server: Server) -> None:
    async def handler(request: Any) -> Response:
        if request.url.path != "/items":
            return JSONResponse({"id": request.url.path.split("/")[2], "code": "k"})
        after = request.query_params.get("after", "")
        return JSONResponse([item_id for item_id in ("x1", "x2", "x3") if item_id > after][:2])

    server.handler = handler
    listing = {"path": "/items", "params": {"after": "{{ after }}"}, "items": "[].{id: @}", "paging": "after"}
    erp = adapter(server, {**THEIRS, "list_shows": "ids", "list": listing})
    assert [[found.external_id for found in page] async for page in erp.pages("A")] == [["x1", "x2"], ["x3"]]
    await erp.close()


async def test_what_goes_while_ids_are_listed_is_left_out(server: Server) -> None:
    async def handler(request: Any) -> Response:
        if request.url.path == "/items":
            return JSONResponse([{"id": "x1"}, {"id": "x2"}])
        return JSONResponse(
            {"id": "x1", "code": "k1"} if request.url.path.endswith("x1") else {},
            200 if request.url.path.endswith("x1") else 404,
        )

    server.handler = handler
    erp = adapter(server, {**THEIRS, "list_shows": "ids", "filter_check": {"off": True}})
    assert [[found.external_id for found in page] async for page in erp.pages("A")] == [["x1"]]
    await erp.close()


async def test_a_record_that_fails_to_be_read_by_its_id_fails_the_listing(server: Server) -> None:
    """Left out, it would count as deleted."""
    store = Store(server)
    store.by_hand(code="k1", store="A")
    erp = adapter(server, {**THEIRS, "list_shows": "ids", "filter_check": {"off": True}})
    store.shown = lambda item: JSONResponse({"error": "no rights"}, 403)
    with pytest.raises(CallFailed):
        [page async for page in erp.pages("A")]
    await erp.close()


# 15. The idempotency key.


async def keys_sent(server: Server, idempotency: dict[str, Any], *names: str) -> list[str]:
    store = Store(server)
    erp = adapter(server, {**THEIRS, "idempotency": idempotency})
    for name in names:
        await erp.create(item(name=name))
    await erp.close()
    return [headers.get("idempotency-key", "") for headers in store.headers]


async def test_the_idempotency_key_is_the_same_for_all_attempts_at_one_creation(server: Server) -> None:
    assert await keys_sent(server, {}, "n", "next") == ["thing/k1/A/0"] * 2


async def test_the_idempotency_key_is_a_template(server: Server) -> None:
    sent = await keys_sent(server, {"value": "{{ group }}:{{ idempotency_key | uuid }}"}, "n", "next")
    assert len(set(sent)) == 1
    assert sent[0].startswith("A:")
    assert len(sent[0]) == 2 + 36


async def test_the_idempotency_key_changes_with_the_content_where_that_is_wanted(server: Server) -> None:
    first, second, again = await keys_sent(server, {"value": "{{ idempotency_key }}/{{ digest }}"}, "n", "next", "n")
    assert first == again != second
    assert not adapter(
        server, {**THEIRS, "idempotency": {"value": "{{ idempotency_key }}/{{ digest }}"}}
    ).capabilities.idempotent_create


async def test_the_idempotency_key_stands_in_the_body(server: Server) -> None:
    store = Store(server, remembers=True)
    create = {"path": "/items", "body": "{{ payload | plus(request_id=idempotency_key) }}"}
    erp = adapter(server, {**THEIRS, "create": create, "idempotency": {"header": None}})
    assert [await erp.create(item()), await erp.create(item())] == ["x1", "x1"]
    assert (len(store.items), store.bodies[0]["request_id"]) == (1, "thing/k1/A/0")
    assert "idempotency-key" not in store.headers[0]
    await erp.close()


async def test_a_duplicate_that_a_search_does_not_show_stays_one(server: Server) -> None:
    store = Store(server, unique=True)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, "lookup": None})
    assert (await failure_of(erp.create(replace(item(), external_id=None)))).may_be_duplicate
    await erp.close()

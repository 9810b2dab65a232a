"""How records are written at third parties that differ: upserts, linked calls, ids, answers, idempotency keys.

Each against a server that behaves that way. Not here: revisions (``test_revisions.py``), deleting
(``test_tombstones.py``), the addresses of ordinary calls (``test_rest_third_party.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from http_server import Server, failure_of
from record_store import OURS, THEIRS, HttpWorld, Store, adapter, http_world, item
from sqlalchemy import Engine
from starlette.responses import JSONResponse, Response
from world import Killed

from sync_orchestrator.adapters.rest.writes import Writes
from sync_orchestrator.errors import CallFailed, Failure

POST_ITEMS, PUT_ITEMS, PUT_STOCK = "POST items", "PUT items", "PUT stock"
PATCH: dict[str, Any] = {"method": "PATCH", "path": "/items/{{ key }}"}
EMPTY_IS_MISSING = {"when": "status == `204`", "means": "missing"}


# 1. Upserts with our ids.


async def test_put_by_id_makes_what_is_missing_and_overwrites_what_is_there(server: Server) -> None:
    store = Store(server, our_ids=True)
    erp = adapter(server, OURS)
    assert [await erp.create(item()), await erp.update(item(name="next"))] == ["k1", "k1"]
    assert (store.items["k1"]["name"], store.calls[PUT_ITEMS], store.calls[POST_ITEMS]) == ("next", 2, 0)
    await erp.close()


CREATE_FIRST = {**OURS, "upsert": "create_first", "create": THEIRS["create"], "update": PATCH}
UPDATE_FIRST = {**CREATE_FIRST, "upsert": "update_first"}


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


@pytest.mark.parametrize("target", [CREATE_FIRST, UPDATE_FIRST])
@pytest.mark.parametrize("lost", ["POST items", "PATCH items"])
def test_an_upsert_whose_answer_is_lost_ends_in_step(
    engine: Engine, server: Server, target: dict[str, Any], lost: str
) -> None:
    store = Store(server, our_ids=True, unique=True)
    world = http_world(engine, server, target)
    store.after[lost] = [504]
    world.put("a")
    world.settled()
    world.put("a", name="next")
    world.settled()
    assert (store.items["a"]["name"], len(store.items), world.states()) == ("next", 1, {"done": 4})
    world.close()


# 1. Upserts with their ids.


@pytest.fixture
def shared(engine: Engine, server: Server) -> tuple[Store, HttpWorld]:
    """A server that others use, too, and that is searched before every create."""
    return Store(server), http_world(engine, server, {**THEIRS, "search_first": True})


def test_search_by_external_key_then_create(shared: tuple[Store, HttpWorld]) -> None:
    store, world = shared
    world.put("a")
    world.drain()
    assert (store.of("a"), world.row("a").external_id) == (["x1"], "x1")
    assert (store.calls["GET items"], store.calls[POST_ITEMS]) == (1, 1)
    world.put("a", name="next")
    world.drain()
    assert (store.calls["GET items"], store.calls[PUT_ITEMS]) == (2, 1)  # the second one looks whose the id is
    world.close()


def test_search_by_external_key_then_update(shared: tuple[Store, HttpWorld]) -> None:
    """What others have made is taken over, and not made a second time."""
    store, world = shared
    theirs = store.by_hand(code="a", name="theirs", store="A")
    world.put("a")
    world.drain()
    assert (store.of("a"), store.items[theirs]["name"], world.row("a").external_id) == ([theirs], "n", theirs)
    assert (store.calls[POST_ITEMS], world.states()) == (0, {"done": 2})
    world.close()


def test_post_then_put_where_the_external_key_is_taken(engine: Engine, server: Server) -> None:
    store = Store(server, unique=True)
    world = http_world(engine, server, THEIRS)
    theirs = store.by_hand(code="a", name="theirs", store="A")
    world.put("a")
    world.drain()
    assert (store.items[theirs]["name"], len(store.items), world.states()) == ("n", 1, {"done": 2})
    world.close()


def test_put_then_post_where_the_known_id_leads_nowhere(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, THEIRS)
    world.put("a")
    world.drain()
    store.items.clear()
    world.put("a", name="next")
    world.drain()
    assert [record["name"] for record in store.items.values()] == ["next"]
    world.close()


# 1. Two linked calls in order: the product, then its stock level.

STOCK: dict[str, Any] = {"method": "PUT", "path": "/stock/{{ answer.id }}", "body": {"level": "{{ payload.count }}"}}
PRODUCT = {"code": "{{ payload.code }}", "name": "{{ payload.name }}", "store": "{{ payload.store }}"}
LINKED: dict[str, Any] = {
    **THEIRS,
    "create": {"path": "/items", "body": PRODUCT, "then": [STOCK]},
    "update": {"method": "PUT", "path": "/items/{{ id }}", "body": PRODUCT, "then": [STOCK]},
    "also": {"stock": {"path": "/stock/{{ id }}"}},
    "fields": {"count": {"read": "stock.level"}},
}
LINKED_BY_KEY: dict[str, Any] = {
    **LINKED,
    "ids": "ours",
    "create": None,
    "lookup": None,
    "update": {**LINKED["update"], "then": [{**STOCK, "path": "/stock/{{ id }}"}]},
}
linked = pytest.mark.parametrize(("target", "our_ids"), [(LINKED, False), (LINKED_BY_KEY, True)])


@linked
def test_two_linked_calls_go_in_order_and_are_read_back_together(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool
) -> None:
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)
    world.put("a", count=5)
    world.drain()
    world.put("a", count=6)
    world.drain()
    writes = [(method, path.split("/")[1]) for method, path, _ in server.seen if method != "GET"]
    first = "PUT" if our_ids else "POST"
    assert writes == [(first, "items"), ("PUT", "stock"), ("PUT", "items"), ("PUT", "stock")]
    assert list(store.stock.values()) == [6]
    assert "level" not in next(iter(store.items.values()))
    world.close()


@linked
@pytest.mark.parametrize("status", [503, 429, 404, 401])
def test_the_first_of_two_linked_calls_is_not_repeated_as_a_create_when_the_second_failed(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool, status: int
) -> None:
    """The id that it gave is kept; the next attempt makes both calls again."""
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)
    store.instead[PUT_STOCK] = [status]
    world.put("a", count=5)
    world.drain()
    assert (len(store.items), store.stock, world.states()) == (1, {}, {"dead": 2} if status == 404 else {"waiting": 2})
    world.put("a", name="next", count=6)
    world.settled()
    assert (len(store.items), list(store.stock.values())) == (1, [6])
    assert world.row("a").applied_revision == world.row("a").revision
    world.close()


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


@linked
@pytest.mark.parametrize("lost", [POST_ITEMS, PUT_ITEMS, PUT_STOCK])
@pytest.mark.parametrize("landed", [True, False])
def test_two_linked_calls_of_which_an_answer_is_lost_end_in_step(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool, lost: str, landed: bool
) -> None:
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)
    (store.after if landed else store.instead)[lost] = [504]
    world.put("a", count=5)
    world.settled()
    world.put("a", count=6)
    world.settled()
    assert (len(store.items), list(store.stock.values()), world.states()) == (1, [6], {"done": 4})
    world.close()


@linked
def test_a_process_that_dies_between_two_linked_calls_leaves_the_second_to_the_next(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product alone is there; what it is read back with shows that its stock level is not."""
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)

    def die(*_: object) -> None:
        world.dead = True
        raise Killed

    world.put("a", count=5)
    with monkeypatch.context() as between_the_calls:
        between_the_calls.setattr(Writes, "_follow", die)
        assert world.killed(world.drain, "there and nowhere else", 1)
    assert (len(store.items), store.stock) == (1, {})
    world.settled()
    assert (len(store.items), list(store.stock.values()), world.states()) == (1, [5], {"done": 2})
    world.close()


def test_drift_in_the_second_of_two_linked_calls_is_found_and_repaired(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, LINKED)
    for key in "abc":
        world.put(key, count=5)
    world.full_sync()
    assert world.validate().verdict == "in_step"
    store.stock["x2"] = 7
    del store.stock["x3"]
    world.validate(repair="auto")
    world.drain()
    assert (list(store.stock.values()), world.validate().verdict) == ([5, 5, 5], "in_step")
    world.close()


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


def test_twins_are_noticed_where_the_external_key_is_not_unique(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, THEIRS)
    world.put("a")
    world.full_sync()
    twin = store.by_hand(code="a", name="n", store="A", count=1)
    assert world.validate().verdict == "drift"
    assert world.row("a").external_id in store.items
    assert twin in store.items
    world.close()


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/items/{{ id }}", "/items/a%2Fb%27c%20%C3%A9"),
        ("/items({{ id | odata }})", "/items(%27a%2Fb%27%27c%20%C3%A9%27)"),
        ("/items/{{ id | tilde }}", "/items/a~2Fb~27c+~C3~A9"),
        ("/items/{{ id | base64 }}", "/items/YS9iJ2Mgw6k%3D"),
    ],
)
async def test_path_encodings(server: Server, template: str, path: str) -> None:
    """Percent, OData quotes, tilde; and one that fits any character set."""
    server.answers({"code": "a/b'c é"})
    calls = {"update": {"method": "PUT", "path": template}, "delete": {"path": template}, "read": {"path": template}}
    erp = adapter(server, {**OURS, **calls})
    strange = item("a/b'c é")
    await erp.update(strange)
    await erp.read(strange)
    await erp.delete(strange)
    assert [sent for _, sent, _ in server.seen] == [path] * 3
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
    server.answers(answer, 201)
    erp = adapter(server, {**THEIRS, **changes})
    assert await erp.create(item()) == "7"
    await erp.close()


@pytest.mark.parametrize("answer", [[{"id": 7}, {"id": 8}], []])
async def test_several_records_in_the_answer_to_a_create_name_no_id(server: Server, answer: Any) -> None:
    server.answers(answer)
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
    ).traits.idempotent_create


async def test_the_idempotency_key_stands_in_the_body(server: Server) -> None:
    store = Store(server, remembers=True)
    create = {"path": "/items", "body": "{{ payload | plus(request_id=idempotency_key) }}"}
    erp = adapter(server, {**THEIRS, "create": create, "idempotency": {"header": None}})
    assert [await erp.create(item()), await erp.create(item())] == ["x1", "x1"]
    assert (len(store.items), store.bodies[0]["request_id"]) == (1, "thing/k1/A/0")
    assert "idempotency-key" not in store.headers[0]
    await erp.close()


def test_a_create_whose_answer_is_lost_is_repeated_under_its_idempotency_key(engine: Engine, server: Server) -> None:
    store = Store(server, remembers=True)
    world = http_world(engine, server, {**THEIRS, "lookup": None, "idempotency": {}})
    store.after[POST_ITEMS] = [504]
    world.put("a")
    world.drain()
    world.put("a", name="next")
    world.settled()
    assert [record["name"] for record in store.items.values()] == ["next"]
    world.close()


def test_a_record_made_again_after_it_was_deleted_has_another_idempotency_key(engine: Engine, server: Server) -> None:
    store = Store(server, remembers=True)
    world = http_world(engine, server, {**THEIRS, "idempotency": {}})
    world.put("a")
    world.drain()
    world.remove("a")
    world.drain()
    assert store.items == {}
    world.put("a")
    world.drain()
    assert len(store.of("a")) == 1
    world.close()


async def test_a_duplicate_that_a_search_does_not_show_stays_one(server: Server) -> None:
    store = Store(server, unique=True)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, "lookup": None})
    assert (await failure_of(erp.create(replace(item(), external_id=None)))).duplicate
    await erp.close()

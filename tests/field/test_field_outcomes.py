"""What a response means: what may have been done, what says nothing of the record, what cannot be read."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeThirdParty, answer
from http_server import Server, failure_of
from record_store import OURS, THEIRS, Store, adapter, http_world, item
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from world import World

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.http.responses import failure_of as meant
from sync_orchestrator.adapters.rest.source import RestSource
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import PartSettings
from sync_orchestrator.errors import CallFailed, Failure

PAGE = "<!doctype html><html><body>Service unavailable</body></html>"
Says = Callable[[], Response]

# Rule 24: what may have been done.


def unavailable() -> Response:
    return HTMLResponse(PAGE, 503, {"Retry-After": "2"})


def answering_once(store: Store, method: str, says: Says, *, done: bool = True) -> None:
    """The next call of a verb is answered otherwise, after it was carried out or instead of it."""
    whole, left = store._handle, [says]

    async def handler(request: Request) -> Response:
        if request.method != method or not left:
            return await whole(request)
        says = left.pop()
        if done:
            await whole(request)
        return says()

    store.handler = handler  # type: ignore[attr-defined]


@pytest.mark.parametrize("unique", [False, True])
@pytest.mark.parametrize(
    "says",
    [
        unavailable,
        lambda: Response(status_code=503, headers={"Retry-After": "2"}),
        lambda: Response(status_code=500),
        lambda: Response(status_code=408),
        lambda: RedirectResponse("/items/1", 303),
        lambda: HTMLResponse(PAGE, 200),
        lambda: HTMLResponse(PAGE, 404),
        lambda: HTMLResponse(PAGE, 403),
        lambda: JSONResponse({}, 200),
        lambda: Response(status_code=204),
        lambda: JSONResponse({"data": None, "errors": [{"message": "no"}]}),
        lambda: JSONResponse({"id": True}),
        lambda: JSONResponse({"id": {"of": "it"}}),
    ],
)
def test_case_r01_a_create_that_was_carried_out_is_not_made_twice(
    engine: Engine, server: Server, says: Says, unique: bool
) -> None:
    store = Store(server, unique=unique)
    world = http_world(engine, server, THEIRS)
    answering_once(store, "POST", says)
    server.handler = store.handler  # type: ignore[attr-defined]
    world.put_record("a")
    world.run_until_settled(4)
    assert (len(store.items), store.calls["POST items"], world.count_events_by_state()) == (1, 1, {"done": 2})
    assert world.read_record_row("a").external_id == store.of("a")[0]
    world.close()


def test_case_r01_a_409_to_the_second_create_adopts_what_the_first_one_made(engine: Engine, server: Server) -> None:
    """Its search did not show it yet."""
    store = Store(server, unique=True)
    world = http_world(engine, server, THEIRS)
    store.after["POST items"] = [503]
    hidden = [2]
    whole = store._list

    def lagging(request: Request) -> Response:
        hidden[0] -= 1
        return JSONResponse([]) if hidden[0] >= 0 else whole(request)

    store._list = lagging  # type: ignore[method-assign]
    world.put_record("a")
    world.run_until_settled(5)
    assert (len(store.items), world.count_events_by_state()) == (1, {"done": 2})
    world.close()


def test_case_r01_the_same_for_an_update(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, THEIRS)
    world.put_record("a")
    world.run_drain()
    answering_once(store, "PUT", unavailable)
    server.handler = store.handler  # type: ignore[attr-defined]
    world.put_record("a", name="next")
    world.run_drain()
    assert world.read_record_row("a").outcome_unknown_until is not None
    world.run_until_settled()
    assert ([record["name"] for record in store.items.values()], store.calls["PUT items"]) == (["next"], 1)
    world.close()


@pytest.mark.parametrize(
    ("status", "unknown"),
    [
        (400, False),
        (401, False),
        (403, False),
        (404, False),
        (405, False),
        (409, False),
        (421, False),
        (422, False),
        (423, False),
        (425, False),
        (429, False),
        (408, True),
        (500, True),
        (501, True),
        (502, True),
        (503, True),
        (504, True),
        (530, True),
        (302, True),
        (303, True),
        (307, True),
    ],
)
@pytest.mark.parametrize("retry_after", [None, 2.0])
def test_rule_24_only_a_refusal_says_that_nothing_was_done(
    status: int, unknown: bool, retry_after: float | None
) -> None:
    failure = meant(Answer(status, {}, b"{}"), [], write=True, retry_after=retry_after)
    assert failure is not None
    assert failure.unknown is unknown
    read = meant(Answer(status, {}, b"{}"), [], write=False, retry_after=retry_after)
    assert read is not None
    assert not read.unknown


def test_rule_24_what_a_fake_says_of_503() -> None:
    assert answer(503).unknown


async def test_rule_24_a_call_with_many_and_one_that_belongs_to_a_write(server: Server) -> None:
    async def handler(request: Request) -> Response:
        if request.method == "PUT" or request.url.path == "/bulk":
            return Response(status_code=503, headers={"Retry-After": "1"})
        return JSONResponse({"id": "7", "code": "k1"})

    server.handler = handler
    bulk = adapter(server, {**THEIRS, "bulk_create": {"request": {"path": "/bulk"}, "results": "@", "result_id": "id"}})
    assert (await failure_of(bulk.create(item()))).unknown
    stock = {"method": "PUT", "path": "/stock/{{ id }}"}
    linked = adapter(
        server,
        {**THEIRS, "create": {"path": "/items", "then": [stock]}, "update": {**THEIRS["update"], "then": [stock]}},
    )
    failure = await failure_of(linked.create(item()))
    assert (failure.unknown, failure.external_id, failure.about_system) == (True, "7", True)
    await bulk.close()
    await linked.close()


# Rule 26: what says nothing of the record.

SYSTEM: dict[str, Says] = {
    "302 to a login": lambda: RedirectResponse("/login", 302),
    "404 page of a platform": lambda: HTMLResponse("<html><h1>No such app</h1></html>", 404),
    "403 page of a firewall": lambda: HTMLResponse(PAGE, 403),
    "404 XML of a gateway": lambda: Response("<?xml version='1.0'?><Error/>", 404, media_type="application/xml"),
    "400 page": lambda: HTMLResponse(PAGE, 400),
    "503": lambda: Response(status_code=503),
    "200 page": lambda: HTMLResponse(PAGE),
    "401": lambda: JSONResponse({"error": "no"}, 401),
}
system = pytest.mark.parametrize("says", SYSTEM.values(), ids=SYSTEM.keys())


@system
@pytest.mark.parametrize("target", [THEIRS, OURS], ids=["theirs", "ours"])
async def test_rule_26_a_state_of_the_system_is_no_refusal_and_no_absence(
    server: Server, says: Says, target: dict[str, Any]
) -> None:
    async def handler(request: Request) -> Response:
        return says()

    server.handler = handler
    third_party = adapter(server, {**target, "count": {"path": "/count"}})
    one = item("k1", "7")
    calls = [
        third_party.create(item()),
        third_party.update(one),
        third_party.delete(one),
        third_party.read(one),
        third_party.count("A"),
        anext(aiter(third_party.pages("A"))),
    ]
    if third_party.capabilities.can_lookup:
        calls.append(third_party.lookup("k1", "A"))
    for call in calls:
        failure = await failure_of(call)
        assert failure.kind in (Failure.TRANSIENT, Failure.AUTH)
        assert (failure.refusal, failure.about_system) == (None, True)
    await third_party.close()


@system
async def test_rule_26_a_page_of_a_gateway_is_no_absence_at_a_source(server: Server, says: Says) -> None:
    async def handler(request: Request) -> Response:
        return says()

    server.handler = handler
    part = PartSettings.model_validate(
        {
            "key": "sku",
            "version": {"path": "v", "kind": "number"},
            "list": {"path": "/items", "items": "items"},
            "read": {"path": "/items/{{ key }}"},
            "count": {"path": "/count"},
            "groups": {"path": "/groups"},
            "changes": {"path": "/changes"},
        }
    )
    source = RestSource(HttpClient(HttpSettings(base_url=server.url, timeout=5)), part)
    for call in (
        source.read("P1"),
        source.count("g"),
        source.groups(),
        anext(aiter(source.pages("g"))),
        anext(aiter(source.changes(0))),
    ):
        failure = await failure_of(call)
        assert failure.kind in (Failure.TRANSIENT, Failure.AUTH)
        assert (failure.refusal, failure.about_system) == (None, True)
    await source.close()


@pytest.mark.parametrize(
    "says",
    [
        lambda: JSONResponse({"error": "no such item"}, 404),
        lambda: Response(status_code=404),
        lambda: PlainTextResponse("not found", 404),
        lambda: Response("", 410, media_type="text/html"),
        lambda: Response('{"error": "gone"}', 410, media_type="text/html"),
    ],
)
async def test_rule_26_a_404_of_one_record_is_still_missing(server: Server, says: Says) -> None:
    """But the same of the collection, to a create or a listing, is not."""

    async def handler(request: Request) -> Response:
        return says()

    server.handler = handler
    third_party = adapter(server, THEIRS)
    one = item("k1", "7")
    assert await third_party.read(one) is None
    assert await third_party.update(one) is None
    await third_party.delete(one)
    for call in (third_party.create(item()), third_party.lookup("k1", "A"), anext(aiter(third_party.pages("A")))):
        failure = await failure_of(call)
        assert (failure.kind, failure.refusal, failure.about_system, failure.unknown) == (
            Failure.TRANSIENT,
            None,
            True,
            False,
        )
    await third_party.close()


async def test_rule_26_rules_of_the_configuration_come_first(server: Server) -> None:
    """An API that speaks HTML says what its pages mean."""

    async def handler(request: Request) -> Response:
        return HTMLResponse("<h1>No such item</h1>", 404)

    server.handler = handler
    rule = {"when": "status == `404` && contains(text, 'No such item')", "means": "missing"}
    third_party = adapter(server, {**THEIRS, "outcomes": [rule]})
    assert await third_party.read(item("k1", "7")) is None
    await third_party.close()


async def test_rule_26_a_gateways_page_is_not_the_end_of_a_listing(server: Server) -> None:
    async def handler(request: Request) -> Response:
        if request.query_params["page"] == "1":
            return JSONResponse([{"id": "1", "code": "k1"}])
        return HTMLResponse(PAGE, 404)

    server.handler = handler
    listing = {"path": "/items", "params": {"page": "{{ page }}"}, "paging": "page", "end_status": [404]}
    third_party = adapter(server, {**THEIRS, "list": listing, "filter_check": {"off": True}})

    async def listed() -> list[Any]:
        return [page async for page in third_party.pages("A")]

    failure = await failure_of(listed())
    assert (failure.status, failure.about_system) == (404, True)
    await third_party.close()


async def test_rule_26_an_unanswered_call_is_about_the_system(server: Server) -> None:
    client = HttpClient(HttpSettings(base_url="http://127.0.0.1:9", timeout=1))
    from sync_orchestrator.config import RequestSettings as Call

    failure = await failure_of(client.read(Call(path="/x"), {}))
    assert (failure.about_system, failure.unknown) == (True, False)
    await client.close()


@pytest.mark.parametrize("name", ["302 to a login", "404 page of a platform", "403 page of a firewall"])
def test_case_r16_all_arrive_by_themselves_once_the_system_is_back(engine: Engine, server: Server, name: str) -> None:
    """Three changes in two minutes in which every call is answered so: none is refused for good."""
    store = Store(server)
    world = http_world(engine, server, THEIRS)
    world.put_record("known")
    world.run_drain()
    whole = server.handler

    async def handler(request: Request) -> Response:
        return SYSTEM[name]()

    server.handler = handler
    world.put_record("known", name="next")
    world.put_record("new")
    world.run_drain()
    rows = [world.read_record_row(key) for key in ("known", "new")]
    assert [(row.stopped, row.rejected_digest) for row in rows] == [(None, None)] * 2
    server.handler = whole
    world.run_until_settled(4)
    assert {record["code"]: record["name"] for record in store.items.values()} == {"known": "next", "new": "n"}
    assert len(store.items) == 2
    world.close()


def test_rule_26_a_404_to_a_write_that_makes_what_is_missing_is_no_refusal(engine: Engine, server: Server) -> None:
    """With our ids the PUT of a record is its create, too."""
    store = Store(server, our_ids=True)
    world = http_world(engine, server, OURS)
    store.instead["PUT items"] = [404]
    world.put_record("a")
    world.run_drain()
    assert (world.read_record_row("a").stopped, world.read_record_row("a").rejected_digest) == (None, None)
    world.run_until_settled()
    assert store.of("a") == ["a"]
    world.close()


async def test_rule_26_a_405_to_an_update_is_no_refusal(server: Server) -> None:
    server.respond_with({"error": "read only for now"}, 405)
    third_party = adapter(server, THEIRS)
    failure = await failure_of(third_party.update(item("k1", "7")))
    assert (failure.kind, failure.about_system) == (Failure.TRANSIENT, True)
    await third_party.close()


# Rule 25: what cannot be read is no success.


@pytest.mark.parametrize("body", [{}, {"data": None}, {"id": None}, {"id": ""}, {"id": True}, {"id": [7]}, [], None, 7])
async def test_rule_25_a_create_that_names_no_id(server: Server, body: Any) -> None:
    server.respond_with(body)
    third_party = adapter(server, {**THEIRS, "lookup": None})
    failure = await failure_of(third_party.create(item()))
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)
    await third_party.close()


@pytest.mark.parametrize(
    ("says", "there", "good"),
    [
        (lambda: JSONResponse({"data": {"id": "7", "code": "k1"}}), "n", True),
        (lambda: Response(status_code=204), "n", True),
        (lambda: Response(status_code=204), "before", False),
        (lambda: Response(status_code=200), "before", False),
        (lambda: JSONResponse({"data": None}), "before", False),
        (lambda: JSONResponse({"data": []}), "before", False),
        (lambda: JSONResponse({"data": None, "errors": [{"message": "locked"}]}), "before", False),
        (lambda: JSONResponse({"ok": True}), "n", True),
    ],
)
async def test_rule_25_an_update_whose_record_does_not_come_is_read_back(
    server: Server, says: Says, there: str, good: bool
) -> None:
    async def handler(request: Request) -> Response:
        return says() if request.method == "PUT" else JSONResponse({"id": "7", "code": "k1", "name": there})

    server.handler = handler
    third_party = adapter(server, {**THEIRS, "update": {**THEIRS["update"], "record": "data"}})
    if good:
        assert await third_party.update(item("k1", "7")) == "7"
    else:
        failure = await failure_of(third_party.update(item("k1", "7")))
        assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)
    await third_party.close()


@pytest.mark.parametrize(
    ("body", "good"),
    [
        ({"errors": [{"message": "no"}], "data": None}, False),
        ({"error": {"code": 1}}, False),
        ({"errors": True}, False),
        ({"errors": []}, True),
        ({"error": None, "ok": True}, True),
        ({"ok": True}, True),
    ],
)
@pytest.mark.parametrize("verb", ["update", "delete"])
async def test_rule_25_a_200_that_names_errors_is_no_success(
    server: Server, body: dict[str, Any], good: bool, verb: str
) -> None:
    server.respond_with(body)
    third_party = adapter(server, THEIRS)
    call = getattr(third_party, verb)(item("k1", "7"))
    if good:
        await call
    else:
        assert (await failure_of(call)).unknown
    await third_party.close()


async def test_rule_25_a_rule_says_that_named_errors_do_not_matter(server: Server) -> None:
    server.respond_with({"errors": ["deprecated field"]})
    rule = {"when": "body.errors[0] == 'deprecated field'", "means": "ok"}
    third_party = adapter(server, {**THEIRS, "outcomes": [rule]})
    assert await third_party.update(item("k1", "7")) == "7"
    await third_party.close()


def bulk(**more: Any) -> dict[str, Any]:
    call = {
        "request": {"path": "/bulk"},
        "item": {"key": "{{ key }}"},
        "results": "results",
        "status": "status",
        "gather": 0.01,
        **more,
    }
    return {
        **THEIRS,
        "create": None,
        "update": None,
        "lookup": None,
        "bulk_create": {**call, "result_id": "id"},
        "bulk_update": call,
    }


@pytest.mark.parametrize("status", ["200", "422", 200.0, True, None, [200], {"code": 200}, 0, 2000])
@pytest.mark.parametrize("verb", ["create", "update"])
async def test_rule_25_a_status_of_another_type_is_no_success(server: Server, status: Any, verb: str) -> None:
    server.respond_with({"results": [{"id": "7", "status": status}]})
    third_party = adapter(server, bulk())
    failure = await failure_of(getattr(third_party, verb)(item("k1", None if verb == "create" else "7")))
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)
    assert "no status at 'status'" in failure.detail
    await third_party.close()


@pytest.mark.parametrize(
    "results",
    [
        None,
        {},
        "ok",
        [],
        [None],
        [{"id": "7"}],
        [{"id": "7", "status": 200}, {"id": "8", "status": 200}],
        [{"status": 201}],
        [{"status": 201, "id": True}],
        [7],
    ],
)
async def test_rule_25_results_that_cannot_be_read_are_no_success(server: Server, results: Any) -> None:
    server.respond_with({"results": results})
    third_party = adapter(server, bulk())
    failure = await failure_of(third_party.create(item()))
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, True)
    await third_party.close()


@pytest.mark.parametrize(
    ("results", "unknown"),
    [
        ([{"code": "other", "status": 200}], True),
        ([{"code": "k1", "status": 200}, {"code": "k1", "status": 422}], True),
        ([{"code": "k1", "status": 200}, {"code": "k1", "status": 200}], False),
        ([{"code": "k1", "status": 200}, {"code": "other", "status": 422}], False),
    ],
)
async def test_rule_25_an_item_that_is_not_in_the_answer_or_twice_in_it(
    server: Server, results: list[Any], unknown: bool
) -> None:
    server.respond_with({"results": results})
    third_party = adapter(server, bulk(match="key", result_key="code"))
    call = third_party.update(item("k1", "7"))
    if unknown:
        assert (await failure_of(call)).unknown
    else:
        assert await call == "7"
    await third_party.close()


async def test_rule_25_an_expression_that_fails_leaves_nobody_waiting(server: Server) -> None:
    """A result on which the status expression cannot work: its record fails, and the call ends."""
    server.respond_with({"results": [{"status": {}}]})
    third_party = adapter(server, bulk(status="abs(status)"))
    assert (await failure_of(third_party.update(item("k1", "7")))).unknown
    await third_party.close()


@pytest.mark.parametrize("says", [lambda: HTMLResponse(PAGE), lambda: JSONResponse({"errors": [1]})])
async def test_rule_25_a_call_of_many_without_results(server: Server, says: Says) -> None:
    async def handler(request: Request) -> Response:
        return says()

    server.handler = handler
    third_party = adapter(
        server, {**THEIRS, "update": None, "bulk_update": {"request": {"path": "/bulk"}, "gather": 0.01}}
    )
    assert (await failure_of(third_party.update(item("k1", "7")))).unknown
    await third_party.close()


async def test_rule_25_a_truth_value_is_no_reference(server: Server) -> None:
    async def handler(request: Request) -> Response:
        return JSONResponse({"id": False})

    server.handler = handler
    third_party = adapter(
        server,
        {
            **THEIRS,
            "references": {"store_id": {"path": "/stores", "record": "id"}},
            "update": {"method": "PUT", "path": "/stores/{{ store_id }}/items/{{ id }}"},
        },
    )
    failure = await failure_of(third_party.update(item("k1", "7")))
    assert (failure.kind, [method for method, *_ in server.seen][-1]) == (Failure.TRANSIENT, "GET")
    await third_party.close()


# Rule 27: what belongs to one attempt ends with it.


class _Remembering(FakeThirdParty):
    """Answers a known idempotency key as it did before, with the refusal, too."""

    def __init__(self, **capabilities: Any) -> None:
        super().__init__(idempotent_create=True, **capabilities)
        self.keys: list[str] = []
        self.refused: dict[str, CallFailed] = {}

    async def create(self, made: Any) -> str:
        key = made.idempotency_key
        self.keys.append(key)
        if key in self.refused:
            raise self.refused[key]
        try:
            return await super().create(made)
        except CallFailed as failure:
            if failure.kind is Failure.PERMANENT:
                self.refused[key] = failure
            raise


@pytest.mark.parametrize("can_lookup", [True, False])
def test_rule_27_a_create_that_was_refused_has_a_new_key_the_next_time(
    make_world: Callable[..., World], can_lookup: bool
) -> None:
    world = make_world(erp=_Remembering(can_lookup=can_lookup))
    erp: Any = world.erp
    erp.before = lambda verb, key: answer(422) if verb == "create" and len(erp.keys) == 1 else None
    world.put_record("a", name="too long")
    world.run_drain()
    assert world.read_record_row("a").stopped == "dead"
    world.put_record("a", name="short")
    world.run_drain()
    assert [record["name"] for record in erp.of_key("a")] == ["short"]
    assert len(set(erp.keys)) == 2


def test_rule_27_while_the_outcome_is_unknown_the_key_stays(make_world: Callable[..., World]) -> None:
    """Also if the repeated create is refused: the first one may have been carried out."""
    world = make_world(erp=_Remembering(can_lookup=False))
    erp: Any = world.erp
    ends = iter([answer(500), answer(500), answer(422)])
    erp.before = lambda verb, key: next(ends, None) if verb == "create" else None
    world.put_record("a")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(61)
    world.put_record("a", name="next")
    world.run_drain()
    assert len(erp.keys) == 4
    assert len(set(erp.keys)) == 1


# R18: a refusal that may pass.


def test_case_r18_a_refusal_that_may_pass_is_said_by_a_rule(engine: Engine, server: Server) -> None:
    """A unique name is handed over: the taker is refused until the giver has let go of it."""
    store = Store(server)
    names: dict[str, str] = {}

    def name_taken(request: Request, body: Any, record: dict[str, Any]) -> Response | None:
        if any(other["name"] == body["name"] and other is not record for other in store.items.values()):
            return JSONResponse({"error": "name taken"}, 409)
        return None

    world = http_world(
        engine,
        server,
        {**THEIRS, "outcomes": [{"when": "status == `409` && body.error == 'name taken'", "means": "transient"}]},
    )
    world.put_record("P1", name="Lamp")
    world.put_record("P2", name="Desk")
    world.run_drain()
    store.precondition = name_taken
    world.put_record("P2", name="Lamp")
    world.run_drain()
    assert world.read_record_row("P2").stopped is None
    world.put_record("P1", name="Lamp (old)")
    world.run_until_settled()
    names = {record["code"]: record["name"] for record in store.items.values()}
    assert names == {"P1": "Lamp (old)", "P2": "Lamp"}
    world.close()


def test_answers_know_markup_when_they_see_it() -> None:
    html = {"content-type": "text/html; charset=utf-8"}
    assert Answer(404, html, b"Not here").is_markup
    assert Answer(404, {}, PAGE.encode()).is_html
    assert not Answer(404, html, b"").is_markup
    assert not Answer(404, html, json.dumps({"error": "none"}).encode()).is_markup
    assert not Answer(404, {"content-type": "text/plain"}, b"nothing here").is_markup
    assert Answer(404, {"content-type": "application/problem+xml"}, b"<problem/>").is_markup
    assert not Answer(404, {"content-type": "application/problem+xml"}, b"<problem/>").is_html

"""The proxy's routes: what goes out, what comes back, and what never does."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from api_client import key_for
from http_server import Server
from hypothesis import given
from hypothesis import strategies as st
from proxies import SECRET, dumped, proxy_client, proxy_config, proxy_key, proxy_service, route, until_gone
from pydantic import ValidationError
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from world import World

from sync_orchestrator.api.problems import Refused
from sync_orchestrator.api.proxy.paths import join_path, split_path
from sync_orchestrator.core.db.session import run

Serve = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def serve(engine: Engine, server: Server) -> AsyncIterator[Serve]:
    """Serves routes, and gives a client with a key for them; ``server`` is the third party."""
    async with AsyncExitStack() as stack:

        async def made(routes: dict[str, Any] | None = None, **changes: Any) -> httpx.AsyncClient:
            app = proxy_service(engine, proxy_config(server, routes or {"stone": route()}, **changes))
            await stack.enter_async_context(app.router.lifespan_context(app))
            return await stack.enter_async_context(proxy_client(app, proxy_key(engine)))

        yield made


def records(server: Server, answer: Any = None, status: int = 200) -> list[dict[str, Any]]:
    """Has every call answered so, and returns where they are noted."""
    calls: list[dict[str, Any]] = []

    async def handler(request: Request) -> Response:
        calls.append({"method": request.method, "headers": dict(request.headers), "body": await request.body()})
        return JSONResponse({} if answer is None else answer, status)

    server.handler = handler
    return calls


# What goes out and what comes back ----------------------------------------------------------------------------------


async def test_a_read_is_answered_in_friendlier_words(serve: Serve, server: Server) -> None:
    calls = records(server, {"item": {"code": "a/b", "qty": 3}})
    stone = route(
        query=["lang"],
        headers=["X-Merchant"],
        answer="{data: {sku: body.item.code, stock: body.item.qty}}",
        call={
            "path": "/items/{{ sku }}",
            "params": {"l": "{{ query.lang }}", "p": "{{ query.lang }}"},
            "headers": {"X-Shop": "{{ headers['x-merchant'] }}"},
        },
    )
    client = await serve({"stone": stone})
    answer = await client.get("/proxy/stones/a%20b?lang=de", headers={"X-Merchant": "berlin"})
    assert (answer.status_code, answer.json()) == (200, {"data": {"sku": "a/b", "stock": 3}})
    assert server.seen == [("GET", "/items/a%20b", {"l": "de", "p": "de"})]
    assert (calls[0]["headers"]["x-shop"], calls[0]["headers"]["x-api-key"]) == ("berlin", SECRET)


async def test_nothing_of_the_caller_goes_out_that_no_template_names(serve: Serve, server: Server) -> None:
    calls = records(server)
    client = await serve()
    sent = {"Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "Accept-Language": "de", "X-Merchant": "berlin"}
    assert (await client.get("/proxy/stones/p1", headers=sent)).status_code == 200
    assert not {name.lower() for name in sent} & calls[0]["headers"].keys()
    assert "authorization" not in calls[0]["headers"]


async def test_a_write_sends_its_body_and_is_made_once(serve: Serve, server: Server) -> None:
    calls = records(server, {"id": 7}, 500)
    order = {
        "method": "POST",
        "path": "/orders",
        "third_party": "erp",
        "allow_writes": True,
        "answer": "{no: body.id}",
        "call": {
            "method": "POST",
            "path": "/v2/orders",
            "body": {"order": {"sku": "{{ body.sku }}", "n": "{{ body.n }}"}},
        },
    }
    client = await serve({"order": order})
    answer = await client.post("/proxy/orders", json={"sku": "{{ 7 * 7 }}", "n": 2})
    assert (answer.status_code, len(calls)) == (502, 1)
    assert "may have been done" in answer.json()["detail"]
    assert json.loads(calls[0]["body"]) == {"order": {"sku": "{{ 7 * 7 }}", "n": 2}}
    records(server, {"id": 7}, 201)
    answer = await client.post("/proxy/orders", json={"sku": "p1", "n": 2})
    assert (answer.status_code, answer.json()) == (201, {"no": 7})


async def test_a_read_is_tried_once_more(serve: Serve, server: Server) -> None:
    answers = iter(
        [
            Response(status_code=500),
            JSONResponse({"n": 1}),
            Response(status_code=500),
            Response(status_code=502),
            JSONResponse({"n": 2}),
        ]
    )

    async def handler(request: Request) -> Response:
        return next(answers)

    server.handler = handler
    client = await serve()
    assert (await client.get("/proxy/stones/p1")).json() == {"n": 1}
    assert (await client.get("/proxy/stones/p1")).status_code == 502
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, {"secret": "x"}, 404),
        (409, {}, 409),
        (400, {}, 422),
        (413, {}, 413),
        (401, {}, 502),
        (403, {}, 502),
        (429, {}, 503),
        (500, {}, 502),
        (302, {}, 502),
        (200, {"error": "E17"}, 409),
        (200, {"error": "E99"}, 404),
        (400, {"error": "E18"}, 451),
    ],
)
async def test_what_is_no_success_becomes_problem_details_with_a_constant_text(
    serve: Serve, server: Server, status: int, body: dict[str, Any], expected: int
) -> None:
    records(server, {**body, "echo": "what they say"}, status)
    stone = route(
        call={
            "path": "/items",
            "outcomes": [
                {"when": "body.error == 'E17'", "means": "conflict"},
                {"when": "body.error == 'E99'", "means": "missing"},
            ],
        },
        errors=[{"when": "body.error == 'E18'", "status": 451, "detail": "Not sold there.", "code": "not_sold"}],
    )
    answer = await (await serve({"stone": stone})).get("/proxy/stones/p1")
    assert (answer.status_code, answer.headers["content-type"]) == (expected, "application/problem+json")
    assert "what they say" not in answer.text
    assert expected != 451 or (answer.json()["code"], answer.json()["detail"]) == ("not_sold", "Not sold there.")


async def test_an_answer_that_is_no_json_is_not_passed_on(serve: Serve, server: Server) -> None:
    async def page(request: Request) -> Response:
        return PlainTextResponse("<html>")

    server.handler = page
    client = await serve({"stone": route(), "size": route(path="/sizes/{sku}", answer="length(body.a)")})
    assert [(await client.get(path)).status_code for path in ("/proxy/stones/p1", "/proxy/sizes/p1")] == [502, 502]


# Limits -------------------------------------------------------------------------------------------------------------


async def test_bodies_are_capped_in_and_out(serve: Serve, server: Server) -> None:
    records(server, {"x": "x" * 3000})
    order = {
        "method": "POST",
        "path": "/orders",
        "third_party": "erp",
        "allow_writes": True,
        "request_bytes": 100,
        "answer_bytes": 1000,
        "call": {"method": "POST", "path": "/orders"},
    }
    client = await serve({"order": order})
    assert (await client.post("/proxy/orders", json={"x": "x" * 100})).status_code == 413
    bomb = gzip.compress(b'"' + b"x" * 100_000 + b'"')
    sent = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert (await client.post("/proxy/orders", content=bomb, headers=sent)).status_code == 413
    assert server.seen == []
    assert (await client.post("/proxy/orders", json={})).status_code == 502


async def test_a_third_party_that_hangs_is_given_up(serve: Serve, server: Server) -> None:
    server.handler = until_gone
    client = await serve({"stone": route(timeout="200ms")})
    assert (await client.get("/proxy/stones/p1")).status_code == 504


async def test_an_open_breaker_lets_no_call_out(serve: Serve, server: Server, engine: Engine) -> None:
    client = await serve()
    with engine.begin() as connection:
        run(connection, "UPDATE sync.systems SET open_since = sync.clock() WHERE name = 'erp'")
    answer = await client.get("/proxy/stones/p1")
    assert (answer.status_code, answer.headers["retry-after"], server.seen) == (503, "2", [])


async def test_a_third_party_that_asks_to_be_left_alone_is(serve: Serve, server: Server, engine: Engine) -> None:
    async def busy(request: Request) -> Response:
        return Response(status_code=429, headers={"Retry-After": "120"})

    server.handler = busy
    client = await serve()
    first, second = await client.get("/proxy/stones/p1"), await client.get("/proxy/stones/p1")
    assert (first.status_code, first.headers["retry-after"], second.status_code, len(server.seen)) == (
        503,
        "120",
        503,
        1,
    )
    with engine.begin() as connection:
        assert run(connection, "SELECT not_before > sync.clock() AS told FROM sync.systems WHERE name = 'erp'")[0].told


async def test_the_rate_is_that_of_the_sync(serve: Serve, server: Server, engine: Engine) -> None:
    records(server)
    client = await serve(system={"rate": 40})
    for _ in range(3):
        assert (await client.get("/proxy/stones/p1")).status_code == 200
    with engine.begin() as connection:
        [row] = run(connection, "SELECT next_call FROM sync.systems WHERE name = 'erp'")
    assert row.next_call is not None


async def test_a_login_is_that_of_the_sync(serve: Serve, server: Server, engine: Engine) -> None:
    async def handler(request: Request) -> Response:
        if request.url.path == "/login":
            return JSONResponse({"token": "t0ken-of-the-login"})
        return JSONResponse({}, 200 if request.headers.get("authorization") == "Bearer t0ken-of-the-login" else 401)

    server.handler = handler
    login = {"kind": "login", "request": {"method": "POST", "path": "/login"}}
    for _ in range(2):
        client = await serve(system={"auth": login})
        assert (await client.get("/proxy/stones/p1")).status_code == 200
    assert [call[1] for call in server.seen].count("/login") == 1


DOCUMENTS = [
    None,
    0,
    -1.5,
    12345678901234567890,
    "ü\n\u2028",
    [],
    {},
    {"a": [{"b": None}, True]},
    [1.1, "x"] * 50,
    {"": {" ": "\\"}},
]


async def test_the_answer_is_the_direct_answer(serve: Serve, server: Server) -> None:
    client = await serve()
    for document in DOCUMENTS:
        server.respond_with(document, 203)
        direct = await asyncio.to_thread(httpx.get, server.url + "/items/p1")
        answer = await client.get("/proxy/stones/p1")
        assert (answer.status_code, answer.json()) == (direct.status_code, direct.json())


async def test_redirects_are_not_followed(serve: Serve, server: Server) -> None:
    async def elsewhere(request: Request) -> Response:
        return RedirectResponse(server.url + "/private")

    server.handler = elsewhere
    answer = await (await serve()).get("/proxy/stones/p1")
    assert (answer.status_code, len(server.seen), server.url in answer.text) == (502, 1, False)


# Paths and parameters -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "/proxy/stones/..",
        "/proxy/stones/%2e%2e",
        "/proxy/stones/.",
        "/proxy//stones/p1",
        "/proxy/stones/a%2Fb",
        "/proxy/stones/%2e%2e%2fadmin",
        "/proxy/stones/a%5cb",
        "/proxy/stones/%00",
        "/proxy/stones/%252e%252e",
        "/proxy/stones/a%252fb",
        "/proxy/stones/..;x",
        "/proxy/stones/%ff",
        "/proxy/stones/%zz",
        "/proxy/stones/p1/",
        "/proxy/stones/" + "x" * 9000,
    ],
)
async def test_paths_that_may_be_read_in_two_ways_are_refused(serve: Serve, server: Server, path: str) -> None:
    client = await serve()
    answer = await client.get("/proxy/x", extensions={"as_sent": path})
    assert (answer.status_code, server.seen) == (400, [])


@given(
    st.lists(st.text(), max_size=4).map(lambda pieces: "/" + "/".join(pieces)).map(str.encode)
    | st.binary().map(lambda raw: b"/" + raw)
)
def test_a_path_that_is_taken_has_one_spelling_and_stays_below_its_root(raw: bytes) -> None:
    try:
        pieces = split_path(raw)
    except (Refused, UnicodeEncodeError):
        return
    assert split_path(join_path(pieces).encode()) == pieces
    assert not {"", ".", ".."} & set(pieces)


async def test_the_route_that_names_more_is_taken(serve: Serve, server: Server) -> None:
    records(server)
    client = await serve({"one": route(), "all": route(path="/stones/all", call={"path": "/everything"})})
    await client.get("/proxy/stones/all")
    await client.get("/proxy/stones/p1")
    assert [call[1] for call in server.seen] == ["/everything", "/items/p1"]


async def test_what_is_no_route_is_told(serve: Serve) -> None:
    client = await serve()
    assert (await client.get("/proxy/rocks")).status_code == 404
    wrong = await client.delete("/proxy/stones/p1")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "GET")


@pytest.mark.parametrize("query", ["?b=1", "?a=1&a=2", "?a=1&B=2"])
async def test_parameters_that_there_are_not_are_refused(serve: Serve, server: Server, query: str) -> None:
    client = await serve({"stone": route(query=["a"])})
    assert ((await client.get("/proxy/stones/p1" + query)).status_code, server.seen) == (400, [])


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b'{"a": NaN}', "application/json", 400),
        (b"a=b", "text/plain", 415),
        (b'{"a": 1, "a": 2}', "application/json", 400),
        (b"[" * 5000, "application/json", 400),
    ],
)
async def test_bodies_that_are_no_json_are_refused(
    serve: Serve, server: Server, body: bytes, kind: str, status: int
) -> None:
    order = {
        "method": "POST",
        "path": "/orders",
        "third_party": "erp",
        "allow_writes": True,
        "call": {"method": "POST", "path": "/orders"},
    }
    client = await serve({"order": order})
    answer = await client.post("/proxy/orders", content=body, headers={"Content-Type": kind})
    assert (answer.status_code, server.seen) == (status, [])


@pytest.mark.parametrize("scope", ["metrics", "events:*"])
async def test_only_keys_for_it_are_let_in(serve: Serve, server: Server, engine: Engine, scope: str) -> None:
    client = await serve()
    sent = {"Authorization": f"Bearer {key_for(engine, scope)}"}
    assert (await client.get("/proxy/stones/p1", headers=sent)).status_code == 403
    assert (await client.get("/proxy/nothing", headers={"Authorization": ""})).status_code == 401
    assert server.seen == []


# The archive --------------------------------------------------------------------------------------------------------

ARCHIVED = {"entity": "item", "read_from": {"key": "{{ sku }}", "answer": "{name: payload.name, n: payload.count}"}}


@pytest.mark.parametrize("failure", [500, 503, "breaker", "hangs"])
async def test_the_archive_answers_while_the_third_party_is_down(
    serve: Serve, server: Server, world: World, failure: Any
) -> None:
    world.put_record("k1", name="Mug", count=4)
    await asyncio.to_thread(world.run_drain)
    client = await serve({"stone": route(timeout="300ms", **ARCHIVED)})

    async def handler(request: Request) -> Response:
        return await until_gone(request) if failure == "hangs" else Response(status_code=failure)

    server.handler = handler
    if failure == "breaker":
        world.query("UPDATE sync.systems SET open_since = sync.clock()")
    answer = await client.get("/proxy/stones/k1")
    assert (answer.status_code, answer.json()) == (200, {"name": "Mug", "n": 4})
    assert answer.headers["x-served-from"] == "archive"
    assert answer.headers["x-archive-revision"] == str(world.read_record_row("k1").revision)
    assert answer.headers["x-archive-applied-at"] == world.read_record_row("k1").applied_at.isoformat()
    unknown = await client.get("/proxy/stones/k2")
    assert unknown.status_code >= 500
    assert "x-served-from" not in unknown.headers


async def test_the_archive_says_nothing_where_the_third_party_answers(
    serve: Serve, server: Server, world: World
) -> None:
    world.put_record("k1")
    await asyncio.to_thread(world.run_drain)
    records(server, {}, 404)
    answer = await (await serve({"stone": route(**ARCHIVED)})).get("/proxy/stones/k1")
    assert (answer.status_code, "x-served-from" in answer.headers) == (404, False)


async def test_the_archive_may_answer_always(serve: Serve, server: Server, world: World) -> None:
    world.put_record("k1")
    world.put_record("k2")
    await asyncio.to_thread(world.run_drain)
    world.delete_record("k2")
    await asyncio.to_thread(world.run_drain)
    always = {"entity": "item", "read_from": {"archive": "always", "key": "{{ sku }}"}}
    client = await serve({"stone": route(**always)})
    assert (await client.get("/proxy/stones/k1")).json() == world.expected_mirror()["k1"]
    gone = await client.get("/proxy/stones/k2")
    assert (gone.status_code, gone.headers["x-served-from"], server.seen) == (404, "archive", [])


# Secrets, the description, the configuration ------------------------------------------------------------------------


async def test_the_third_partys_secret_is_shown_to_nobody(
    serve: Serve, server: Server, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def echo(request: Request) -> Response:
        return JSONResponse({"you sent": dict(request.headers)}, int(request.url.path.rpartition("/")[2]))

    server.handler = echo
    client = await serve({"stone": route(answer="body.nothing")})
    with caplog.at_level(logging.DEBUG):
        told = [await client.get(f"/proxy/stones/{status}") for status in (200, 400, 401, 404, 409, 500)]
    assert [answer.status_code for answer in told] == [200, 422, 502, 404, 409, 502]
    assert not any(SECRET in answer.text + str(answer.headers) for answer in told)
    assert SECRET not in caplog.text
    assert SECRET not in dumped(engine)


async def test_routes_stand_in_the_description(serve: Serve) -> None:
    paths = (await (await serve({"stone": route(query=["lang"])})).get("/openapi.json")).json()["paths"]
    operation = paths["/proxy/stones/{sku}"]["get"]
    assert operation["operationId"] == "proxy_stone"
    assert [(told["name"], told["in"], told["required"]) for told in operation["parameters"]] == [
        ("sku", "path", True),
        ("lang", "query", False),
    ]


WRITE = {"method": "POST", "call": {"method": "POST", "path": "/items"}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (WRITE, "say allow_writes: true"),
        ({"third_party": "crm"}, "no third party 'crm'"),
        ({"entity": "thing"}, "no entity 'thing'"),
        ({"path": "/stones/../x"}, "'.' and '..' cannot stand"),
        ({"path": "/{a}/{a}", "call": {"path": "/"}}, "a name of its own"),
        ({"call": {"path": "/{{ skq }}"}}, "nothing fills in 'skq'"),
        ({"call": {"path": "/x", "method": "DELETE"}}, "a read does not call by DELETE"),
        ({"headers": ["Cookie"]}, "never handed on"),
        ({"reads": False}, "a GET changes nothing"),
        ({"read_from": {"key": "{{ sku }}"}}, "say which 'entity'"),
        ({"legacy": {"base_url": "http://127.0.0.1:1"}}, "belong together"),
        ({"legacy": {"base_url": "http://127.0.0.1:1"}, "rollout": {"by_part": "x"}}, "the path has no part 'x'"),
        ({"legacy": {"base_url": "http://127.0.0.1:1"}, "rollout": {}}, "by_header"),
    ],
)
def test_what_cannot_be_served_is_refused_at_load(server: Server, changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match="(?s)" + complaint):
        proxy_config(server, {"stone": route(**changes)})


def test_two_routes_of_one_shape_are_refused_at_load(server: Server) -> None:
    with pytest.raises(ValidationError, match="the route a has the same"):
        proxy_config(server, {"a": route(), "b": route(path="/stones/{key}", call={"path": "/"})})

"""Proving who we are, to a server that checks it: each way of doing so, what expires, and what must not be told."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from auth_servers import LOGIN, LOGIN_BODY, READ, REFRESH, Guard, called, client
from auth_servers import guard as guard
from auth_servers import store as store
from http_server import Server, failure_of
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sync_orchestrator.adapters.http import auth
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import RequestSettings as Call
from sync_orchestrator.core.systems.login_sessions import LoginResponse, LoginStore, ProcessLogins
from sync_orchestrator.errors import Failure

# What does not change.


@pytest.mark.parametrize(
    ("settings", "header", "value"),
    [
        pytest.param(
            {"auth": {"kind": "basic", "user": "me", "password": "p:ä"}},
            "authorization",
            "Basic " + base64.b64encode("me:p:ä".encode()).decode(),
            id="HTTP Basic",
        ),
        pytest.param({"auth": {"kind": "bearer", "token": "abcd"}}, "authorization", "Bearer abcd", id="static bearer"),
        pytest.param({"headers": {"X-Api-Key": "k1", "X-Shop": "s"}}, "x-api-key", "k1", id="custom headers"),
    ],
)
async def test_what_does_not_change(
    server: Server, guard: Guard, settings: dict[str, Any], header: str, value: str
) -> None:
    http = client(server, **{"login": None, **settings}) if "auth" not in settings else client(server, settings["auth"])
    failure = await failure_of(http.read(READ, {}))
    assert guard.headers[0][header] == value
    assert (failure.kind, failure.status, len(guard.calls)) == (Failure.AUTH, 401, 1)
    await http.close()


# Logins.


@pytest.mark.parametrize(
    ("changes", "header", "value"),
    [
        pytest.param({}, "authorization", "Bearer token-1-tok", id="token from the body"),
        pytest.param({"token": 'headers."x-token"'}, "authorization", "Bearer token-1-tok", id="token from a header"),
        pytest.param(
            {"headers": {"X-Auth": "{{ shop }}:{{ token }}"}, "values": {"shop": "body.shop.id"}},
            "x-auth",
            "shop-1:token-1-tok",
            id="composed token: several values in one header",
        ),
        pytest.param(
            {
                "headers": {"Authorization": "Token {{ token }}", "X-Shop": "{{ shop }}"},
                "values": {"shop": "body.shop.id"},
            },
            "x-shop",
            "shop-1",
            id="composed token: several headers",
        ),
        pytest.param(
            {"headers": {"Authorization": "Basic {{ (token ~ ':x') | base64 }}", "X-T": "{{ token }}"}},
            "authorization",
            "Basic " + base64.b64encode(b"token-1-tok:x").decode(),
            id="composed token: encoded",
        ),
    ],
)
async def test_login_call(server: Server, guard: Guard, changes: dict[str, Any], header: str, value: str) -> None:
    http = client(server, {**LOGIN, **changes})
    assert await called(http, 2) == [{"ok": True}] * 2
    assert guard.calls == ["/login", "/things", "/things"]
    assert json.loads(guard.bodies[0]) == LOGIN_BODY
    assert "authorization" not in guard.headers[0]
    assert guard.headers[1][header] == value
    await http.close()


async def test_a_login_may_be_elsewhere(server: Server, guard: Guard) -> None:
    http = client(server, {**LOGIN, "base_url": server.url}, base_url=f"{server.url}/api/v2")
    await called(http)
    assert guard.calls == ["/login", "/api/v2/things"]
    await http.close()


async def test_concurrent_calls_make_one_login(server: Server, guard: Guard) -> None:
    http = client(server, LOGIN)
    await asyncio.gather(*(called(http) for _ in range(20)))
    assert (guard.made("/login"), guard.made("/things")) == (1, 20)
    guard.expire()
    await asyncio.gather(*(called(http) for _ in range(20)))
    assert guard.made("/login") == 2
    await http.close()


# Log in again on expiry.


@pytest.mark.parametrize(
    ("refused", "outcomes"),
    [
        pytest.param(lambda: JSONResponse({}, 401), [], id="log in again on expiry: 401"),
        pytest.param(
            lambda: JSONResponse({"error": {"code": 100}}),
            [{"when": "body.error.code == `100`", "means": "auth"}],
            id="log in again on expiry: told inside a 200",
        ),
        pytest.param(
            lambda: JSONResponse({"session": "expired"}, 403),
            [{"when": "body.session == 'expired'", "means": "auth"}],
            id="log in again on expiry: a 403 that a rule names",
        ),
        pytest.param(
            lambda: PlainTextResponse("<html>Please log in</html>"),
            [{"when": "contains(text, 'Please log in')", "means": "auth"}],
            id="log in again on expiry: a login page instead of an answer",
        ),
    ],
)
@pytest.mark.parametrize("write", [False, True])
async def test_log_in_again(
    server: Server, guard: Guard, refused: Callable[[], Response], outcomes: list[dict[str, str]], write: bool
) -> None:
    http = client(server, LOGIN, outcomes=outcomes)
    guard.refused = refused
    await called(http)
    guard.expire()
    answer = await http.send(Call(method="POST", path="/things", body={"a": 1}), {}, write=write)
    assert answer.body == {"ok": True}
    assert guard.calls == ["/login", "/things", "/things", "/login", "/things"]
    assert guard.bodies[2] == guard.bodies[4] == b'{"a":1}'
    await http.close()


async def test_once_a_call_then_it_is_an_auth_failure(server: Server, guard: Guard) -> None:
    """And a token refused though it is fresh makes no login a call: the login is left alone for a while."""
    http = client(server, LOGIN)
    await called(http)
    guard.give = lambda request, body: JSONResponse({"token": "never-accepted"})  # type: ignore[method-assign]
    guard.login = guard.give
    guard.expire()
    failure = await failure_of(http.read(READ, {}))
    assert (failure.kind, failure.status, failure.unknown) == (Failure.AUTH, 401, False)
    assert guard.calls == ["/login", "/things", "/things", "/login", "/things"]
    for _ in range(3):
        assert (await failure_of(http.read(READ, {}))).kind is Failure.AUTH
    assert guard.made("/login") == 2
    await http.close()


async def test_a_matter_of_rights_is_no_expiry(server: Server, guard: Guard) -> None:
    http = client(server, LOGIN)
    guard.refused = lambda: JSONResponse({}, 403)
    await called(http)
    guard.expire()
    assert (await failure_of(http.read(READ, {}))).status == 403
    assert guard.made("/login") == 1
    await http.close()


@pytest.mark.parametrize(
    ("told", "logins"),
    [
        (0.001, 2),
        ("0.001", 2),
        (3600, 1),
        ("3600", 1),
        (None, 1),
        (0, 1),
        (-5, 1),
        ("soon", 1),
        ({}, 1),
        ("2001-01-01T00:00:00Z", 1),
    ],
    ids=lambda value: f"expires_in {value!r}",
)
async def test_a_token_is_renewed_before_it_is_refused(server: Server, guard: Guard, told: Any, logins: int) -> None:
    http = client(server, {**LOGIN, "expires_in": "body.expires_in"})
    guard.lifetime = told
    await called(http)
    guard.lifetime = 3600
    await asyncio.sleep(0.002)  # what is short has to be over
    await called(http, 2)
    assert guard.made("/login") == logins
    assert guard.made("/things") == 3
    await http.close()


@pytest.mark.parametrize(("lifetime", "renew_in"), [(3600, 3540), (100, 90), (1, 0.9)])
async def test_a_token_is_renewed_a_little_earlier(
    server: Server, guard: Guard, lifetime: float, renew_in: float
) -> None:
    kept: list[LoginResponse] = []

    class Store(ProcessLogins):
        def store_login(self, mark: bytes, lease: int, given: LoginResponse) -> Any:
            kept.append(given)
            return super().store_login(mark, lease, given)

    http = client(server, {**LOGIN, "expires_in": "body.expires_in"}, store=Store())
    guard.lifetime = lifetime
    await called(http)
    assert kept[0].renew_in == pytest.approx(renew_in)
    await http.close()


# Rotating refresh.


async def test_rotating_refresh(server: Server, guard: Guard) -> None:
    """Each refresh token is used once; no password is sent while there is one."""
    http = client(server, {**LOGIN, **REFRESH})
    for _ in range(3):
        await called(http)
        guard.expire()
    assert guard.calls == ["/login", "/things", *["/things", "/refresh", "/things"] * 2]
    assert [body for body in guard.bodies if body.startswith(b"refresh=")] == [
        b"refresh=refresh-1-ref",
        b"refresh=refresh-2-ref",
    ]
    await http.close()


async def test_rotating_refresh_that_is_refused_is_followed_by_a_login(server: Server, guard: Guard) -> None:
    http = client(server, {**LOGIN, **REFRESH})
    await called(http)
    guard.expire()
    guard.refreshes.clear()
    assert await called(http) == [{"ok": True}]
    assert guard.calls[-3:] == ["/refresh", "/login", "/things"]
    await http.close()


async def test_rotating_refresh_within_the_login_itself(server: Server, guard: Guard) -> None:
    """With the first refresh token in the settings; an answer without another one leaves the old one good."""
    told = iter([{"token": "token-1-tok", "refresh": "r2"}, {"token": "token-2-tok"}, {"token": "token-3-tok"}])
    request = {"method": "POST", "path": "/login", "body": {"refresh": "{{ refresh or 'r1' }}"}}

    def give(request: Request, body: bytes) -> Response:
        given = next(told)
        guard.valid = {given["token"]}
        return JSONResponse(given)

    guard.login = give
    http = client(server, {"kind": "login", "request": request, "refresh": "body.refresh"})
    for _ in range(3):
        await called(http)
        guard.expire()
    assert [json.loads(body)["refresh"] for body in guard.bodies if body] == ["r1", "r2", "r2"]
    await http.close()


def test_one_at_a_time_logs_in(store: LoginStore) -> None:
    first = store.acquire_login(b"m", None, 60)
    assert first.lease is not None
    assert store.acquire_login(b"m", None, 60) == type(first)()
    session = store.store_login(b"m", first.lease, LoginResponse("t", "r", {"a": "b"}, 60))
    assert session is not None
    taken = store.acquire_login(b"m", None, 60)
    assert (taken.lease, taken.session is not None and taken.session.number) == (None, session.number)
    again = store.acquire_login(b"m", session.number, 60)
    assert again.lease is not None
    assert again.session is not None
    assert (again.session.given.refresh, again.session.given.values) == ("r", {"a": "b"})
    store.release_lease(again.lease)
    assert store.acquire_login(b"m", session.number, 60).lease is not None


def test_a_login_that_outlived_its_lease_changes_nothing(store: LoginStore) -> None:
    late = store.acquire_login(b"m", None, 0)
    first = store.acquire_login(b"m", None, 60)
    assert late.lease is not None
    assert first.lease is not None
    assert store.store_login(b"m", late.lease, LoginResponse("late")) is None
    store.release_lease(late.lease)
    kept = store.store_login(b"m", first.lease, LoginResponse("first"))
    assert kept is not None
    assert kept.given.token == "first"
    session = store.acquire_login(b"m", None, 60).session
    assert session is not None
    assert session.given.token == "first"


# Logins that fail.


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
async def test_a_wrong_password_does_not_hammer_the_login(
    server: Server, guard: Guard, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    http = client(server, LOGIN)
    guard.wrong(status)
    failures = await asyncio.gather(*(failure_of(http.read(READ, {})) for _ in range(10)))
    failures += [await failure_of(http.send(Call(method="PUT", path="/things"), {}, write=True)) for _ in range(5)]
    assert guard.calls == ["/login"]
    for failure in failures:
        assert (failure.kind, failure.refusal, failure.unknown) == (Failure.AUTH, None, False)
        assert failure.detail.startswith(f"the login failed: answer {status}: no such login: ")
        assert "hunter" not in str(failure)
    monkeypatch.setattr(auth, "_REMEMBERED", 0.0)
    fresh = client(server, LOGIN)
    await failure_of(fresh.read(READ, {}))
    guard.login = guard.give
    assert await called(fresh) == [{"ok": True}]
    await http.close()
    await fresh.close()


async def test_a_login_that_is_down_is_tried_again(server: Server, guard: Guard) -> None:
    http = client(server, LOGIN)
    answers = iter([JSONResponse({}, 503), JSONResponse({}, 500)])
    guard.login = lambda request, body: next(answers, None) or guard.give(request, body)
    assert await called(http) == [{"ok": True}]
    guard.login = lambda request, body: JSONResponse({}, 500)
    guard.expire()
    failure = await failure_of(http.send(Call(method="PUT", path="/things"), {}, write=True))
    assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, False)
    await http.close()


async def test_a_slow_login_leaves_no_write_of_unknown_outcome(server: Server, guard: Guard) -> None:
    http = client(server, LOGIN, timeout=0.2)
    usual, never = server.handler, asyncio.Event()

    async def slow(request: Request) -> Response:
        if request.url.path == "/login":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(never.wait(), 0.5)
        return await usual(request)

    server.handler = slow
    failure = await failure_of(http.send(Call(method="PUT", path="/things"), {}, write=True))
    assert (failure.kind, failure.unknown, guard.made("/things")) == (Failure.TRANSIENT, False, 0)
    assert failure.detail == "the login failed: no answer within 0.2 s"
    await http.close()


async def test_a_caller_that_gives_up_does_not_cut_off_the_login_of_all(server: Server, guard: Guard) -> None:
    http = client(server, LOGIN)
    usual, begun, go_on = server.handler, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    async def slow(request: Request) -> Response:
        if request.url.path == "/login":
            loop.call_soon_threadsafe(begun.set)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go_on.wait(), loop))
        return await usual(request)

    server.handler = slow
    hasty, patient = asyncio.create_task(called(http)), asyncio.create_task(called(http))
    await begun.wait()
    hasty.cancel()
    go_on.set()
    assert await patient == [{"ok": True}]
    assert guard.made("/login") == 1
    await http.close()


GARBAGE = [
    (JSONResponse({"access_token": "tok-somewhere-else", "id": 1}), "an object with access_token, id"),
    (JSONResponse(["tok-somewhere-else"]), "a list"),
    (JSONResponse("tok-somewhere-else"), "a text"),
    (JSONResponse({"token": {"value": "tok-somewhere-else"}}), "an object with token"),
    (JSONResponse({"token": None, "x": "tok-somewhere-else"}), "an object with token, x"),
    (JSONResponse({"token": "tok-somewhere-else\r\nX-Evil: 1"}), "an object with token"),
    (JSONResponse({"token": "tok-somewhere-else-é"}), "an object with token"),
    (JSONResponse({"token": True}), "an object with token"),
    (PlainTextResponse("<html>tok-somewhere-else</html>", media_type="text/html"), "no JSON (text/html)"),
    (PlainTextResponse('{"token": "tok-somewhere-el'), "no JSON (text/plain)"),
    (Response(status_code=204), "an empty body"),
]


@pytest.mark.parametrize(("answer", "shape"), GARBAGE, ids=[shape for _, shape in GARBAGE])
async def test_a_login_that_answers_garbage(server: Server, guard: Guard, answer: Response, shape: str) -> None:
    http = client(server, LOGIN)
    guard.login = lambda request, body: answer
    failure = await failure_of(http.read(READ, {}))
    assert failure.kind is Failure.AUTH
    assert failure.detail == (
        f"the login failed: nothing usable as 'token' at 'body.token' in answer {answer.status_code}: {shape}"
    )
    assert guard.calls == ["/login"]
    await http.close()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"values": {"cell": "body.cell"}, "headers": {"A": "{{ token }}{{ cell }}"}}, "values.cell"),
        ({"refresh": "body.shop"}, "refresh"),
    ],
)
async def test_a_login_that_answers_garbage_beside_the_token(
    server: Server, guard: Guard, changes: dict[str, Any], name: str
) -> None:
    http = client(server, {**LOGIN, **changes})
    failure = await failure_of(http.read(READ, {}))
    assert failure.kind is Failure.AUTH
    assert f"nothing usable as '{name}' at" in failure.detail
    assert "token-1" not in failure.detail
    await http.close()


async def test_a_login_that_redirects(server: Server, guard: Guard) -> None:
    http = client(server, LOGIN)
    guard.login = lambda request, body: Response(status_code=302, headers={"Location": "/sso?p=hunter-2-secret"})
    failure = await failure_of(http.read(READ, {}))
    assert failure.kind is Failure.AUTH
    assert failure.detail == "the login failed: answer 302: redirects to /sso?p=***, which is not followed"
    await http.close()


async def test_a_login_that_is_refused_inside_a_200(server: Server, guard: Guard) -> None:
    http = client(
        server,
        {
            **LOGIN,
            "request": {
                **LOGIN["request"],
                "outcomes": [{"when": "body.error", "means": "auth", "message": "body.error"}],
            },
        },
    )
    guard.login = lambda request, body: JSONResponse({"error": "wrong: hunter-2-secret"})
    failure = await failure_of(http.read(READ, {}))
    assert failure.detail == "the login failed: auth, answer 200: wrong: ***"
    await http.close()


# Secrets.

SECRETS = ["hunter-2-secret", "token-1-tok", "token-2-tok", "refresh-1-ref", "refresh-2-ref", "shop-1", "api-key-9"]


async def test_secrets_are_not_in_errors_logs_or_reprs(
    server: Server, guard: Guard, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither those of the settings nor those got at run time, however the answer spells them."""
    caplog.set_level(logging.DEBUG)
    login = {
        **LOGIN,
        **REFRESH,
        "values": {"shop": "body.shop.id"},
        "headers": {"Authorization": "Basic {{ (shop ~ ':' ~ token) | base64 }}", "X-T": "{{ token }}"},
    }
    login["request"] = {**LOGIN["request"], "params": {"secret": "hunter-2-secret"}}
    http = client(server, login, headers={"X-Key": "api-key-9"})
    await called(http)
    usual = server.handler

    async def telling(request: Request) -> Response:
        if request.url.path != "/things":
            return await usual(request)
        composed = request.headers["authorization"]
        return JSONResponse({"echo": [*SECRETS[:3], *SECRETS[3:], composed]}, 500)

    guard.expire()
    await called(http)
    server.handler = telling
    failures = [await failure_of(http.read(READ, {})), http.build_unusable_failure("odd", {"came": SECRETS})]
    told = " ".join(
        [
            *(f"{failure} {failure!r}" for failure in failures),
            repr(http),
            repr(vars(http)["_settings"]),
            repr(vars(vars(http)["_auth"])["_session"]),
            repr(await vars(http)["_auth"].get_proof()),
            caplog.text,
        ]
    )
    assert [secret for secret in SECRETS if secret in told] == []
    composed = base64.b64encode(b"shop-2:token-2-tok").decode()
    assert composed not in told
    assert "***" in str(failures[0])
    await http.close()


@pytest.mark.parametrize("secret", ['a"b\\c-quoted', "ü-umlaut-ü", "a&b<c>d-html", "with space inside", "a/b+c=d%"])
async def test_secrets_are_found_however_they_are_spelt(server: Server, guard: Guard, secret: str) -> None:
    http = client(server, {**LOGIN, "request": {"method": "POST", "path": "/login", "body": {"password": secret}}})
    guard.login = lambda request, body: Response(body, 401)
    shown = [str(await failure_of(http.read(READ, {}))), str(http.build_unusable_failure("odd", [secret]))]
    for text in shown:
        assert secret not in text
        assert json.dumps(secret)[1:-1] not in text
        assert "***" in text
    await http.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "basic", "user": "me", "password": "hunter-2-secret"},
        {"kind": "bearer", "token": "hunter-2-secret"},
        {**LOGIN, "headers": {"X-Key": "hunter-2-secret"}},
    ],
    ids=lambda settings: settings["kind"],
)
def test_secrets_are_not_in_the_repr_of_the_settings(settings: dict[str, Any]) -> None:
    http = HttpSettings.model_validate(
        {"base_url": "http://x", "auth": settings, "headers": {"X-Api-Key": "hunter-2-secret"}}
    )
    assert "hunter" not in repr(http) + str(http)


# Settings.


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"headers": {"A": "{{ tok }}"}}, "headers: nothing fills in 'tok'"),
        ({"request": {"path": "/{{ user }}"}}, "request: nothing fills in 'user'"),
        ({"refresh_request": {"path": "/r"}}, "refresh_request needs 'refresh'"),
    ],
)
def test_a_login_that_cannot_work_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        HttpSettings.model_validate({"base_url": "http://x", "auth": {**LOGIN, **changes}})


@pytest.mark.parametrize(
    "settings",
    [{"auth": {"kind": "bearer", "token": "abc\n"}}, {"headers": {"X-Key": "abc\n"}}, {"headers": {"X-Key": "é"}}],
)
def test_a_header_that_cannot_be_sent_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpSettings.model_validate({"base_url": "http://x", **settings})


async def test_a_header_made_of_a_key_that_cannot_be_sent(server: Server) -> None:
    http = client(server, None)
    failure = await failure_of(http.send(Call(path="/x", headers={"X-Key": "{{ key }}"}), {"key": "a\nb"}, write=True))
    assert (failure.kind, server.seen) == (Failure.PERMANENT, [])
    await http.close()

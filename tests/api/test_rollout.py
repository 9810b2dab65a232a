"""Traffic that moves to the new path: who goes which way, what callers never notice, and the fall back to 0."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
from api_client import key_for
from fakes import two_part_config
from http_server import Handler, Server
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from proxies import SECRET, dumped, proxy_client, proxy_config, proxy_key, proxy_service, route, until_gone
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.service import rollout
from sync_orchestrator.core.service.rollout import RolloutChange, RolloutState, compute_place
from sync_orchestrator.core.systems.rate_limit import SharedHoldOff
from sync_orchestrator.errors import NotFound, NotYet

VALUES = [f"merchant-{number}" for number in range(200)]


# Who goes which way -------------------------------------------------------------------------------------------------


@given(st.text(), st.text(), st.floats(0, 100), st.floats(0, 100))
def test_whoever_is_in_stays_in_when_the_share_grows(name: str, value: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert not RolloutState(name, percent=low).is_new(value) or RolloutState(name, percent=high).is_new(value)
    assert not RolloutState(name, percent=0).is_new(value)
    assert RolloutState(name, percent=100).is_new(value)


@given(st.text(), st.floats(0, 100), st.booleans())
def test_lists_go_before_the_share_and_deny_before_allow(value: str, percent: float, halted: bool) -> None:
    allowed, denied = frozenset([value]), frozenset([value])
    assert RolloutState("r", percent=percent, allow=allowed, halted=halted).is_new(value) is not halted
    assert not RolloutState("r", percent=percent, allow=allowed, deny=denied).is_new(value)


def test_the_share_is_that_of_the_values_and_the_same_on_every_route() -> None:
    """A merchant that reads the new way and writes the old one would not find what it wrote."""
    values = [str(number) for number in range(20_000)]
    chosen = {name: {value for value in values if RolloutState(name, percent=10).is_new(value)} for name in ("a", "b")}
    assert chosen["a"] == chosen["b"]
    assert abs(len(chosen["a"]) / len(values) - 0.1) < 0.01
    assert round(compute_place("berlin"), 6) == 98.133333  # it must be the same in every version of the program


def test_a_call_without_a_value_waits_for_the_whole_share() -> None:
    assert [RolloutState("r", percent=percent).is_new(None) for percent in (0, 99.9, 100)] == [False, False, True]


# A route with both ways ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_legacy() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def legacy(one_legacy: Server) -> Server:
    one_legacy.seen.clear()
    one_legacy.respond_with({"from": "legacy"})
    return one_legacy


class Both:
    """A service whose route goes two ways."""

    def __init__(self, engine: Engine, app: Starlette, config: Config, client: httpx.AsyncClient) -> None:
        self.engine, self.app, self.config, self.client = engine, app, config, client

    async def change(self, **changes: Any) -> None:
        """Without a look at validation; the service knows at once."""

        def work() -> None:
            with self.engine.begin() as connection:
                rollout.change_rollout(
                    connection,
                    self.config,
                    "stone",
                    RolloutChange(**changes),
                    who="a test",
                    why="because",
                    override=True,
                )

        await asyncio.to_thread(work)
        self.app.state.proxy._known.expire_snapshot()

    async def get(self, merchant: str = "m1", path: str = "/proxy/stones/p1", **headers: str) -> httpx.Response:
        return await self.client.get(path, headers={"X-Merchant": merchant, **headers})

    async def totals(self) -> dict[str, int]:
        """What was counted, once what goes on in the background has ended."""
        await asyncio.gather(*self.app.state.proxy._canaries["stone"]._shadows)
        await self.app.state.proxy.tally.write_counts()
        return {row.what: row.n for row in self.rows("SELECT what, n FROM sync.rollout_totals")}

    def rows(self, statement: str) -> Any:
        with self.engine.begin() as connection:
            return run(connection, statement)


Serve = Callable[..., Awaitable[Both]]


@pytest.fixture
async def serve(engine: Engine, server: Server, legacy: Server) -> AsyncIterator[Serve]:
    """Serves ``stone`` both ways, by the header ``X-Merchant``."""
    server.respond_with({"from": "new"})
    async with AsyncExitStack() as stack:

        async def made(**changes: Any) -> Both:
            rules = {"by_header": "X-Merchant", "patience": 5, "min_calls": 5, **changes.pop("rollout", {})}
            settings = route(
                rollout=rules,
                **{"legacy": {"base_url": legacy.url + "/old", "headers": {"X-Old-Key": "old"}}, **changes},
            )
            config = proxy_config(server, {"stone": settings})
            app = proxy_service(engine, config)
            await stack.enter_async_context(app.router.lifespan_context(app))
            client = await stack.enter_async_context(proxy_client(app, proxy_key(engine)))
            return Both(engine, app, config, client)

        yield made


async def test_at_first_all_goes_the_way_that_it_went_before(serve: Serve, server: Server, legacy: Server) -> None:
    both = await serve()
    assert [(await both.get(merchant)).json() for merchant in VALUES[:5]] == [{"from": "legacy"}] * 5
    assert (server.seen, await both.totals()) == ([], {"legacy": 5})


async def test_a_merchant_always_goes_the_same_way(serve: Serve) -> None:
    both = await serve()
    await both.change(percent=30)
    first = [(await both.get(merchant)).json()["from"] for merchant in VALUES[:40]]
    again = [(await both.get(merchant)).json()["from"] for merchant in VALUES[:40]]
    assert first == again == ["new" if compute_place(merchant) < 30 else "legacy" for merchant in VALUES[:40]]
    assert set(first) == {"new", "legacy"}


async def test_a_part_of_the_path_may_decide(serve: Serve) -> None:
    both = await serve(rollout={"by_header": None, "by_part": "sku"})
    await both.change(allow=frozenset(["p1"]))
    assert [(await both.get(path=f"/proxy/stones/{sku}")).json()["from"] for sku in ("p1", "p2")] == ["new", "legacy"]


async def test_every_replica_learns_of_a_change(serve: Serve) -> None:
    one, other = await serve(), await serve()
    assert (await other.get()).json() == {"from": "legacy"}
    await one.change(percent=100)
    async with asyncio.timeout(30):
        while (await other.get()).json() != {"from": "new"}:
            pass


# Legacy is passed through -------------------------------------------------------------------------------------------


async def test_legacy_gets_the_call_as_it_is_and_the_caller_its_answer(serve: Serve, legacy: Server) -> None:
    calls: list[tuple[dict[str, str], bytes]] = []

    async def handler(request: Request) -> Response:
        calls.append((dict(request.headers), await request.body()))
        return Response(
            b"\xff\x00 no JSON",
            207,
            {"Content-Type": "x/y", "X-Theirs": "1", "Connection": "X-Gone", "X-Gone": "1", "Set-Cookie": "a=b"},
        )

    legacy.handler = handler
    both = await serve(method="POST", allow_writes=True, call={"method": "POST", "path": "/"})
    headers = {
        "X-Merchant": "m1",
        "Accept-Language": "de",
        "Content-Type": "a/b",
        "X-Forwarded-For": "1.2.3.4",
        "Forwarded": "for=1.2.3.4",
        "X-Real-IP": "1.2.3.4",
        "Via": "x",
        "Connection": "keep-alive, X-Hop",
        "X-Hop": "1",
        "TE": "trailers",
        "Upgrade": "x",
        "Proxy-Authorization": "Basic x",
        "X-Old-Key": "mine",
    }
    answer = await both.client.post("/proxy/stones/a%20b?x=1&x=2&y=%C3%A4", content=b"\x00\x01", headers=headers)
    assert (answer.status_code, answer.content) == (207, b"\xff\x00 no JSON")
    assert (answer.headers["x-theirs"], answer.headers["set-cookie"], "x-gone" in answer.headers) == ("1", "a=b", False)
    assert (legacy.seen[0][:2], calls[0][1]) == (("POST", "/old/stones/a%20b"), b"\x00\x01")
    sent = calls[0][0]
    kept = {"x-merchant": "m1", "accept-language": "de", "content-type": "a/b", "x-old-key": "old"}
    assert kept.items() <= sent.items()
    assert (
        not {
            "x-forwarded-for",
            "forwarded",
            "x-real-ip",
            "via",
            "x-hop",
            "te",
            "upgrade",
            "proxy-authorization",
            "authorization",
        }
        & sent.keys()
    )
    assert sent["host"] == legacy.url.removeprefix("http://")


async def test_legacys_redirects_are_not_followed(serve: Serve, legacy: Server) -> None:
    async def elsewhere(request: Request) -> Response:
        return RedirectResponse(legacy.url + "/private")

    legacy.handler = elsewhere
    assert ((await (await serve()).get()).status_code, len(legacy.seen)) == (307, 1)


async def test_legacys_answers_are_capped_and_its_silence_is_told(serve: Serve, legacy: Server) -> None:
    both = await serve(answer_bytes=10)
    legacy.respond_with({"x": "x" * 100})
    assert (await both.get()).status_code == 502
    legacy.handler = until_gone
    both = await serve(legacy={"base_url": legacy.url, "timeout": "200ms"})
    assert (await both.get()).status_code == 504


@pytest.mark.parametrize("path", ["/proxy/stones/..", "/proxy/stones/%2e%2e%2fadmin", "/proxy//stones/p1"])
async def test_no_path_leads_out_of_legacy(serve: Serve, legacy: Server, path: str) -> None:
    both = await serve()
    answer = await both.client.get("/proxy/x", extensions={"as_sent": path})
    assert (answer.status_code, legacy.seen) == (400, [])


# A failing canary never reaches the caller --------------------------------------------------------------------------


async def failing(request: Request) -> Response:
    return Response(status_code=500)


async def refusing(request: Request) -> Response:
    return JSONResponse({"secret": SECRET}, 403)


async def missing(request: Request) -> Response:
    return JSONResponse({}, 404)


async def garbage(request: Request) -> Response:
    return Response(b"<html>")


@pytest.mark.parametrize("handler", [failing, refusing, missing, garbage, until_gone])
async def test_a_read_that_fails_on_the_new_path_is_answered_by_legacy(
    serve: Serve, server: Server, handler: Handler
) -> None:
    both = await serve(rollout={"patience": "300ms"})
    await both.change(percent=100)
    server.handler = handler
    answer = await both.get()
    assert (answer.status_code, answer.json()) == (200, {"from": "legacy"})
    found = await both.totals()
    assert (found["fell_back"], found["tried"]) == (1, 1)
    assert found.get("different" if handler is missing else "failed") == 1


async def test_a_bug_in_the_new_path_is_no_reason_to_fail_the_caller(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = await serve()
    await both.change(percent=100)

    async def broken(asked: Any) -> Response:
        raise ZeroDivisionError

    monkeypatch.setattr(both.app.state.proxy._canaries["stone"]._third_party_path, "answer_request", broken)
    assert (await both.get()).json() == {"from": "legacy"}


@pytest.mark.parametrize(
    "says",
    [
        lambda: Response(status_code=503, headers={"Retry-After": "2"}),
        lambda: Response(status_code=408),
        lambda: Response("<html>", 404, media_type="text/html"),
        lambda: RedirectResponse("/done", 303),
    ],
)
async def test_rule_24_a_write_that_may_have_been_done_is_not_sent_to_legacy_again(
    serve: Serve, server: Server, legacy: Server, says: Callable[[], Response]
) -> None:
    both = await serve(method="POST", allow_writes=True, call={"method": "POST", "path": "/orders"})
    await both.change(percent=100)

    async def done(request: Request) -> Response:
        return says()

    server.handler = done
    assert (await both.client.post("/proxy/stones/p1", json={}, headers={"X-Merchant": "m1"})).status_code == 502
    assert (len(server.seen), legacy.seen) == (1, [])


async def test_rule_24_a_wait_that_cannot_be_noted_does_not_make_a_write_undone(
    serve: Serve, server: Server, legacy: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database fails between the response and the note of how long the third party asks to be left alone."""
    both = await serve(method="POST", allow_writes=True, call={"method": "POST", "path": "/orders"})
    await both.change(percent=100)

    async def done(request: Request) -> Response:
        return Response(status_code=503, headers={"Retry-After": "2"})

    async def gone(self: Any, seconds: float) -> None:
        raise OperationalError("SELECT 1", {}, Exception("gone"))

    monkeypatch.setattr(SharedHoldOff, "hold_off_calls", gone)
    server.handler = done
    answer = await both.client.post("/proxy/stones/p1", json={}, headers={"X-Merchant": "m1"})
    assert (answer.status_code, len(server.seen), legacy.seen) == (502, 1, [])


async def test_both_ways_down_is_told(serve: Serve, server: Server, legacy: Server) -> None:
    both = await serve()
    await both.change(percent=100)
    server.handler = failing
    legacy.respond_with({}, 503)
    assert (await both.get()).status_code == 503


async def test_a_write_goes_to_legacy_only_where_nothing_was_done(serve: Serve, server: Server, legacy: Server) -> None:
    both = await serve(method="POST", allow_writes=True, call={"method": "POST", "path": "/orders"})
    await both.change(percent=100)
    server.respond_with({}, 500)
    assert ((await both.client.post("/proxy/stones/p1", json={})).status_code, legacy.seen) == (502, [])
    both.rows("UPDATE sync.systems SET open_since = sync.clock() RETURNING 1")
    both.app.state.proxy._known.expire_snapshot()
    answer = await both.client.post("/proxy/stones/p1", json={})
    assert (answer.json(), len(server.seen), len(legacy.seen)) == ({"from": "legacy"}, 1, 1)


# Shadow mode --------------------------------------------------------------------------------------------------------


async def test_shadow_answers_from_legacy_and_counts_what_differs(serve: Serve, server: Server, legacy: Server) -> None:
    both = await serve(rollout={"compare": "item"})
    await both.change(shadow=True)
    for theirs, ours in (
        ({"item": {"a": 1, "b": 2}, "at": 1}, {"item": {"b": 2, "a": 1}, "at": 2}),
        ({"item": 1}, {"item": 2}),
    ):
        legacy.respond_with(theirs)
        server.respond_with(ours)
        assert (await both.get()).json() == theirs
        await both.totals()
    legacy.respond_with({}, 404)
    await both.get()
    assert await both.totals() == {"legacy": 3, "shadowed": 3, "tried": 3, "compared": 3, "different": 2}


async def test_a_shadow_that_hangs_or_fails_delays_nobody(serve: Serve, server: Server) -> None:
    both = await serve(timeout="300ms")
    await both.change(shadow=True)
    server.handler = until_gone
    answers = await asyncio.gather(*(both.get() for _ in range(20)))
    assert {answer.json()["from"] for answer in answers} == {"legacy"}
    found = await both.totals()
    assert found["shadowed"] + found.get("not_shadowed", 0) == 20
    assert found["failed"] == found["shadowed"]


async def test_shadows_are_bounded(serve: Serve, server: Server) -> None:
    both, free = await serve(timeout=60), threading.Event()

    async def held(request: Request) -> Response:
        await asyncio.to_thread(free.wait)
        return JSONResponse({"from": "legacy"})

    server.handler = held
    await both.change(shadow=True)
    for _ in range(20):
        await both.get()
    assert len(both.app.state.proxy._canaries["stone"]._shadows) == 16
    free.set()
    assert (await both.totals())["not_shadowed"] == 4


async def test_no_secret_is_told_whatever_fails(
    serve: Serve, server: Server, legacy: Server, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def echo(request: Request) -> Response:
        return JSONResponse(dict(request.headers), 500)

    server.handler = legacy.handler = echo
    key = "sync_" + "0" * 12
    both = await serve(legacy={"base_url": legacy.url, "headers": {"X-Old-Key": "old-secret-0815"}}, answer_bytes=20)
    with caplog.at_level(logging.DEBUG):
        await both.change(shadow=True)
        told = [await both.get()]
        await both.totals()
        await both.change(percent=100)
        told += [await both.get(**{"X-Api-Key": key}) for _ in range(6)]
        await both.totals()
    assert both.rows(ALERTS) != []
    texts = [answer.text + str(answer.headers) for answer in told] + [caplog.text, dumped(engine)]
    assert not any(secret in text for secret in (SECRET, "old-secret-0815", key) for text in texts)


async def test_writes_are_not_shadowed(serve: Serve, server: Server) -> None:
    both = await serve(method="POST", allow_writes=True, call={"method": "POST", "path": "/orders"})
    await both.change(shadow=True)
    await both.client.post("/proxy/stones/p1", json={})
    assert (await both.totals(), server.seen) == ({"legacy": 1}, [])


# The fall back ------------------------------------------------------------------------------------------------------

ALERTS = "SELECT kind, cause, title FROM sync.alerts WHERE resolved_at IS NULL"


async def test_the_share_falls_back_by_itself_and_says_so(serve: Serve, server: Server) -> None:
    both = await serve()
    await both.change(percent=100, allow=frozenset(["m1"]))
    server.handler = failing
    for _ in range(4):
        await both.get()
    await both.totals()
    assert both.rows(ALERTS) == []  # too few to say anything
    await both.get()
    await both.totals()
    [alert] = both.rows(ALERTS)
    assert (alert.kind, alert.cause) == ("rollout_fell_back", "stone")
    calls = len(server.seen)
    assert (await both.get("m1")).json() == {"from": "legacy"}
    assert len(server.seen) == calls
    [last, _] = both.rows("SELECT * FROM sync.rollout_changes ORDER BY id DESC")
    assert (last.percent, last.halted, last.who, last.allow) == (0, True, "the proxy", ["m1"])
    assert "5 of 5 calls of the new path failed" in last.why
    server.respond_with({"from": "new"})
    await both.change(percent=100)
    assert (both.rows(ALERTS), (await both.get()).json()) == ([], {"from": "new"})
    await both.totals()
    assert both.rows(ALERTS) == []  # what was before the change is not held against it


async def test_differences_make_it_fall_back_too(serve: Serve, server: Server) -> None:
    both = await serve()
    await both.change(percent=1, shadow=True)
    merchant = next(each for each in VALUES if compute_place(each) > 1)
    for _ in range(5):
        await both.get(merchant)
    await both.totals()
    assert "5 of 5 calls of the new path differed" in both.rows(ALERTS)[0].title


def counted(**what: int) -> dict[tuple[str, int, str], int]:
    return {("stone", 1, name): n for name, n in what.items()}


def switched_config(**rules: Any) -> Config:
    return two_part_config(
        routes={
            "stone": route(
                entity="item",
                legacy={"base_url": "http://127.0.0.1:1"},
                rollout={
                    "by_header": "X-Merchant",
                    "min_calls": 10,
                    "error_rate": 0.1,
                    "difference_rate": 0.2,
                    **rules,
                },
            )
        }
    )


@pytest.mark.parametrize(
    ("what", "falls"),
    [
        ({"tried": 9, "failed": 9}, False),
        ({"tried": 10, "failed": 1}, False),
        ({"tried": 10, "failed": 2}, True),
        ({"tried": 10, "compared": 9, "different": 9}, False),
        ({"tried": 10, "compared": 10, "different": 2}, False),
        ({"tried": 10, "compared": 10, "different": 3}, True),
    ],
)
def test_replicas_count_together(engine: Engine, what: dict[str, int], falls: bool) -> None:
    config = switched_config()
    with engine.begin() as connection:
        rollout.change_rollout(connection, config, "stone", RolloutChange(percent=50), who="x", why="y", override=True)
        half = {key: n // 2 for key, n in counted(**what).items()}
        rest = {key: n - half[key] for key, n in counted(**what).items()}
        assert rollout.record_counts(connection, config, half) == []
        assert rollout.record_counts(connection, config, rest) == (["stone"] if falls else [])


def test_what_is_older_than_the_window_is_forgiven(engine: Engine) -> None:
    config = switched_config(window=60)
    with engine.begin() as connection:
        rollout.change_rollout(connection, config, "stone", RolloutChange(percent=50), who="x", why="y", override=True)
        rollout.record_counts(connection, config, counted(tried=9, failed=9))
        run(connection, "SET LOCAL sync.clock_offset = '70 s'")
        assert rollout.record_counts(connection, config, counted(tried=9)) == []


# Changes ------------------------------------------------------------------------------------------------------------


def validated(engine: Engine, verdict: str | None, ago: float = 0, group: str = "A") -> None:
    with engine.begin() as connection:
        run(
            connection,
            "INSERT INTO sync.groups (entity, group_key, first_completed_at) "
            "VALUES ('item', %(group)s, sync.clock()) ON CONFLICT DO NOTHING",
            group=group,
        )
        if verdict is not None:
            run(
                connection,
                "INSERT INTO sync.validations (entity, group_key, verdict, at) VALUES "
                "('item', %(group)s, %(verdict)s, sync.clock() - make_interval(secs => %(ago)s))",
                group=group,
                verdict=verdict,
                ago=ago,
            )


def step(engine: Engine, override: bool = False, **changes: Any) -> RolloutState:
    with engine.begin() as connection:
        return rollout.change_rollout(
            connection, switched_config(), "stone", RolloutChange(**changes), who="ada", why="a step", override=override
        )


@pytest.mark.parametrize(
    ("verdicts", "complaint"),
    [
        ([], "was ever validated"),
        ([("A", None, 0)], "1 of 1"),
        ([("A", "drift", 0)], "not in sync"),
        ([("A", "in_sync", 0), ("B", "not_validated", 0)], "such as 'B'"),
        ([("A", "in_sync", 0), ("A", "drift", 0)], "not in sync"),
        ([("A", "in_sync", 1801)], "for more than 1800 s"),
    ],
)
def test_steps_up_need_a_clean_validation(engine: Engine, verdicts: list[Any], complaint: str) -> None:
    for group, verdict, ago in verdicts:
        validated(engine, verdict, ago, group)
    for change in ({"percent": 1.0}, {"allow": frozenset(["m1"])}):
        with pytest.raises(NotYet, match=complaint):
            step(engine, **change)
    assert step(engine, shadow=True).shadow
    assert step(engine, override=True, percent=5.0).percent == 5
    with engine.begin() as connection:
        last, first = rollout.list_rollout_changes(connection, "stone")
    assert (last.who, last.why, first.overrode) == ("ada", "a step", None)
    assert complaint in last.overrode


def test_steps_down_need_nothing_and_steps_up_a_validation_that_was_clean_lately(engine: Engine) -> None:
    validated(engine, "drift", 100)
    validated(engine, "in_sync")
    step(engine, percent=50.0, deny=frozenset(["m1"]))
    validated(engine, "drift")
    with pytest.raises(NotYet):
        step(engine, deny=frozenset())
    assert step(engine, percent=10.0).percent == 10
    assert step(engine, deny=frozenset(["m1", "m2"])).deny == {"m1", "m2"}


def test_going_on_after_a_fall_back_is_a_step_up_for_those_who_are_allowed(engine: Engine) -> None:
    step(engine, override=True, allow=frozenset(["m1"]))
    with engine.begin() as connection:
        assert rollout.record_counts(connection, switched_config(), counted(tried=10, failed=10)) == ["stone"]
    assert step(engine, deny=frozenset(["m2"])).halted
    with pytest.raises(NotYet):
        step(engine, percent=0.0)


@pytest.mark.parametrize(
    "wrong", [{"percent": 101.0}, {"percent": float("nan")}, {"allow": frozenset([""])}, {"deny": frozenset(["a\0b"])}]
)
def test_values_that_cannot_be_are_refused(engine: Engine, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        step(engine, override=True, **wrong)


def test_a_route_without_legacy_has_no_share(engine: Engine) -> None:
    with engine.begin() as connection, pytest.raises(NotFound, match="there is none"):
        rollout.change_rollout(
            connection, two_part_config(routes={"r": route()}), "r", RolloutChange(percent=1), who="x", why="y"
        )


# The API ------------------------------------------------------------------------------------------------------------


async def test_rollouts_are_changed_by_the_api(serve: Serve, engine: Engine) -> None:
    both = await serve(entity="item")
    admin = {"Authorization": f"Bearer {key_for(engine, 'admin')}"}
    refused = await both.client.put("/v1/rollouts/stone", headers=admin, json={"percent": 5, "why": "go"})
    assert (refused.status_code, "validated" in refused.json()["errors"][0]["reason"]) == (409, True)
    body = {"percent": 100, "why": "go", "override": True, "deny": ["m2"]}
    changed = await both.client.put("/v1/rollouts/stone", headers=admin, json=body)
    assert (changed.status_code, changed.json()["percent"]) == (200, 100)
    assert [(await both.get(merchant)).json()["from"] for merchant in ("m1", "m2")] == ["new", "legacy"]
    shown = (await both.client.get("/v1/rollouts/stone", headers=admin)).json()
    assert (shown["deny"], shown["changes"][0]["who"], shown["changes"][0]["why"]) == (["m2"], "the key 'a test'", "go")
    [listed] = (await both.client.get("/v1/rollouts", headers=admin)).json()["rollouts"]
    assert listed["version"] == 1
    for wrong, status in (({"percent": 5}, 422), ({"why": "x", "percent": 500}, 422), ({"why": "x", "share": 1}, 422)):
        answer = await both.client.put("/v1/rollouts/stone", headers=admin, json=wrong)
        assert answer.status_code == status
    assert (await both.client.get("/v1/rollouts/rock", headers=admin)).status_code == 404
    assert (await both.client.put("/v1/rollouts/stone", json=body)).status_code == 403


async def test_shares_stand_in_the_figures(serve: Serve, engine: Engine) -> None:
    both = await serve()
    await both.change(percent=40)
    await both.get(next(each for each in VALUES if compute_place(each) < 40))
    await both.totals()
    text = (await both.client.get("/metrics", headers={"Authorization": f"Bearer {key_for(engine, 'metrics')}"})).text
    figures = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert figures["sync_rollout_share", "stone"] == 40
    assert figures["sync_rollout_calls_total", "new", "stone"] == 1

"""Rule 27 of the field: what is remembered from one call to the next has an end, a switch and a line in ``status``."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from http_server import Server, failure_of
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from typer.testing import CliRunner
from world import World

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.passthrough import Upstream
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.http.retry_after import MAX_WAIT_BY_HEADER_SECONDS, MAX_WAIT_SECONDS, pause_of, wait_of
from sync_orchestrator.adapters.rest.third_party import RestThirdParty
from sync_orchestrator.brokers.webhook import WebhookReceiver
from sync_orchestrator.cli import status as command
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import OutcomeReceiverSettings, ReadCallSettings, TargetSettings
from sync_orchestrator.config import RequestSettings as Call
from sync_orchestrator.config.http_access import ThrottleSettings
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.notifications.outcomes import OutcomeMessage
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.pauses import set_paused
from sync_orchestrator.core.systems.rate_limit import HoldOff, SharedHoldOff
from sync_orchestrator.errors import CallFailed, Failure

READ = ReadCallSettings(path="/things")
WRITE = Call(method="PUT", path="/things", body={"a": 1})
ZERO = {"X-RateLimit-Limit": "1", "X-RateLimit-Remaining": "0"}


class Clock:
    """Waits of the code under test pass at once, and are counted; the server's go on as they are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept = 0.0
        sleep, ours = asyncio.sleep, threading.get_ident()

        async def slept(seconds: float, *rest: Any) -> None:
            if threading.get_ident() != ours or not seconds:
                await sleep(seconds)
            else:
                self.slept += seconds

        monkeypatch.setattr("asyncio.sleep", slept)
        for module in (
            "sync_orchestrator.adapters.http.call_room",
            "sync_orchestrator.adapters.http.client",
            "sync_orchestrator.core.systems.rate_limit",
            "tenacity",
        ):
            monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=self.now, sleep=time.sleep))

    def now(self) -> float:
        return time.monotonic() + self.slept


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def client(server: Server, hold_off: HoldOff | None = None, **settings: Any) -> HttpClient:
    return HttpClient(
        HttpSettings.model_validate({"base_url": server.url, "timeout": 70, **settings}), hold_off=hold_off
    )


class Limited:
    """A server whose every answer has the same headers; ``refuses`` says which calls get a 429."""

    def __init__(
        self, server: Server, headers: dict[str, str], refuses: Callable[[int], bool] = lambda n: False
    ) -> None:
        self.calls = 0
        self.headers = headers
        self.refuses = refuses
        server.handler = self.answer

    async def answer(self, request: Request) -> Response:
        self.calls += 1
        return JSONResponse({}, 429 if self.refuses(self.calls) else 200, headers=self.headers)


# R41: a header that means nothing.


@pytest.mark.parametrize("reset", ["3000", "86400", "end of day", "30"])
@pytest.mark.parametrize("at_once", [1, 32])
async def test_case_r41_a_zero_that_good_answers_contradict_is_not_believed(
    server: Server, clock: Clock, reset: str, at_once: int
) -> None:
    """Milliseconds, a day, the end of the day as seconds since 1970, half a minute; one after the other or together."""
    reset = str(int(time.time()) + 40_000) if reset == "end of day" else reset
    limited = Limited(server, {**ZERO, "X-RateLimit-Reset": reset})
    http = client(server, concurrency=at_once)
    for _ in range(100 // at_once):
        await asyncio.gather(*(http.send(WRITE, {}, write=True) for _ in range(at_once)))
    assert limited.calls == 100 // at_once * at_once
    assert clock.slept <= 5.1 * at_once  # each of those that waited slept five seconds
    await http.close()


async def test_case_r41_a_limit_that_is_enforced_is_obeyed(server: Server, clock: Clock) -> None:
    """The first refusal confirms the header: from then on it is obeyed before anything is refused again."""
    limited = Limited(server, {**ZERO, "X-RateLimit-Reset": "30"}, lambda number: number == 2)
    hold_off = HoldOff()
    http = client(server, hold_off)
    await http.read(READ, {})
    assert await hold_off.seconds_left() == pytest.approx(5, abs=1)
    await http.read(READ, {})  # refused once, and after 30 seconds carried out
    assert limited.calls == 3
    assert await hold_off.seconds_left() == pytest.approx(30, abs=1)
    await http.close()


async def test_rule_27_calls_under_way_contradict_nothing(clock: Clock) -> None:
    hold_off, began = HoldOff(), clock.now()
    await hold_off.ask_by_header(60, 3000, "zero")
    hold_off.note_served(began)
    clock.slept += 6
    await hold_off.ask_by_header(60, 3000, "zero")
    assert await hold_off.seconds_left() > 4
    clock.slept += 6
    hold_off.note_served(clock.now() - 1)
    await hold_off.ask_by_header(60, 3000, "zero")
    assert await hold_off.seconds_left() < 0
    await hold_off.note_refused()
    await hold_off.ask_by_header(60, 3000, "zero")
    assert await hold_off.seconds_left() == pytest.approx(60, abs=1)
    clock.slept += 3601  # a refusal confirms for an hour
    await hold_off.ask_by_header(60, 3000, "zero")
    assert await hold_off.seconds_left() == pytest.approx(5, abs=1)


async def test_rule_27_a_refusal_confirms_for_all_runs(engine: Engine) -> None:
    with engine.begin() as connection:
        run(connection, systems_queries.REGISTER_SYSTEM, name="erp")
    one, other = SharedHoldOff(engine, "erp"), SharedHoldOff(engine, "erp")
    await one.note_refused()
    await other.seconds_left()
    await other.ask_by_header(60, 3000, "zero")
    assert await other.seconds_left() == pytest.approx(60, abs=1)
    assert await one.seconds_left() == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    ("status", "headers", "seconds", "claimed"),
    [
        (429, {"x-ratelimit-reset": "3000"}, MAX_WAIT_BY_HEADER_SECONDS, 3000),
        (429, {"retry-after": "3000"}, 3000, 3000),
        (429, {"retry-after": "86400"}, MAX_WAIT_SECONDS, 86400),
        (429, {"retry-after-ms": "1500"}, 1.5, 1.5),
        (429, {"x-ratelimit-reset-ms": "1500"}, 1.5, 1.5),
        (429, {"x-ratelimit-reset-after": "1.5"}, 1.5, 1.5),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "3000"}, MAX_WAIT_BY_HEADER_SECONDS, 3000),
    ],
)
def test_rule_27_what_a_header_may_ask_for(
    status: int, headers: dict[str, str], seconds: float, claimed: float
) -> None:
    asked = (wait_of if status == 429 else pause_of)(Answer(status, headers, b""), ThrottleSettings())
    assert asked is not None
    assert (asked.seconds, asked.claimed) == (seconds, claimed)
    assert next(iter(headers)) in asked.why


async def test_rule_27_the_headers_can_be_switched_off(server: Server, clock: Clock) -> None:
    limited = Limited(server, {**ZERO, "X-RateLimit-Reset": "30"}, lambda number: number == 1)
    http = client(server, throttle={"headers": False})
    failure = await failure_of(http.read(READ, {}))
    assert (failure.kind, failure.retry_after) == (Failure.THROTTLED, None)
    for _ in range(5):
        await http.read(READ, {})
    assert (limited.calls, clock.slept) == (6, 0)
    await http.close()


async def test_case_r41_retry_after_zero_makes_no_storm(server: Server, clock: Clock) -> None:
    limited = Limited(server, {"Retry-After": "0"}, lambda number: True)
    http = client(server)
    failure = await failure_of(http.send(WRITE, {}, write=True))
    assert (failure.kind, failure.retry_after, limited.calls) == (Failure.THROTTLED, 0, 1)
    await http.close()


# What status says.


def test_rule_27_status_says_who_is_held_off_and_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hold_off = SharedHoldOff(world.engine, "erp")
    assert collect_status(world.engine)["systems"]["erp"] | {"epoch": 0} == {
        "paused": False,
        "epoch": 0,
        "breaker": "closed",
        "open_since": None,
        "held_off_seconds": 0,
        "held_off_because": None,
        "rate_share": 1.0,
        "account": None,
        "suspended_since": None,
        "suspended_reason": None,
        "call_limit": None,
    }
    asyncio.run(hold_off.hold_off_calls(120, "x-ratelimit-remaining: 0, x-ratelimit-reset: 120"))
    asyncio.run(hold_off.hold_off_calls(20, "another, which is over earlier"))
    asyncio.run(hold_off.note_refused())
    found = collect_status(world.engine)["systems"]["erp"]
    assert found["held_off_seconds"] == pytest.approx(120, abs=3)
    assert found["held_off_because"] == "x-ratelimit-remaining: 0, x-ratelimit-reset: 120"
    assert found["rate_share"] == pytest.approx(0.7, abs=0.05)
    monkeypatch.setattr(command, "existing_database_to_read", lambda: world.engine)
    shown = CliRunner().invoke(command.commands, []).stdout
    assert "erp: calls are held off for 1" in shown
    assert "s more: x-ratelimit-remaining: 0, x-ratelimit-reset: 120." in shown
    assert re.search(r"erp: calls were refused as too fast, so 7\d% of its rate is used for now\.", shown)
    set_paused(world.engine, "erp", {"item"}, paused=False)
    assert collect_status(world.engine)["systems"]["erp"]["held_off_seconds"] == 0


def test_rule_27_a_hold_off_that_a_failed_push_asked_for_has_a_reason(world: World) -> None:
    world.erp.before = lambda verb, key: CallFailed(Failure.THROTTLED, "answer 429: slow down", retry_after=60)
    world.put_record("a")
    world.run_drain()
    found = collect_status(world.engine)["systems"]["erp"]
    assert found["held_off_because"] == "answer 429: slow down"
    assert found["held_off_seconds"] > 50


async def test_rule_27_a_call_that_is_held_off_says_why(server: Server) -> None:
    hold_off = HoldOff()
    http = client(server, hold_off, timeout=1)
    await hold_off.hold_off_calls(40, "retry-after: 40 (answer 503)")
    assert (await failure_of(http.read(READ, {}))).detail == (
        "asked to stay away for 40 s more: retry-after: 40 (answer 503)"
    )
    await http.close()


# Cookies.


class Baker:
    """A server that gives a cookie with each answer."""

    def __init__(self, server: Server) -> None:
        self.came: list[str | None] = []
        server.handler = self.answer
        self.url = server.url.replace("127.0.0.1", "localhost")

    async def answer(self, request: Request) -> Response:
        self.came.append(request.headers.get("cookie"))
        response = JSONResponse({"id": 1, "code": "a"})
        response.set_cookie("session", f"of {len(self.came)}")
        return response


async def test_rule_27_no_client_keeps_cookies(server: Server) -> None:
    """Of a source or third party, of the proxy, of a receiver of outcomes; by a host name, for which jars keep them."""
    baker = Baker(server)
    http = HttpClient(HttpSettings(base_url=baker.url))
    upstream = Upstream(baker.url, {}, 5, ())
    for _ in range(3):
        await http.read(READ, {})
        await http.send(WRITE, {}, write=True)
        await upstream.pass_request("GET", "/", [], b"", 1000)
    await http.close()
    await upstream.close()
    receiver = WebhookReceiver(OutcomeReceiverSettings.model_validate({"url": f"{baker.url}/hook"}))
    told = [OutcomeMessage(n, f"e{n}", "mirrored", "item", "a", {}, datetime.now(UTC)) for n in range(3)]
    await asyncio.to_thread(receiver.deliver, told)
    assert baker.came == [None] * len(baker.came)
    assert len(baker.came) >= 10


# References that changed.


async def test_rule_27_a_kept_reference_that_turns_out_wrong_is_dropped(server: Server) -> None:
    """The store was made anew under another id: a refused write makes it looked up again."""
    store, seen = {"id": 7}, []

    async def handler(request: Request) -> Response:
        if request.url.path == "/stores":
            return JSONResponse({"items": [store]})
        body = await request.json()
        seen.append(body["store"])
        if body["store"] != store["id"]:
            return JSONResponse({"error": "no such store"}, 404 if request.method == "PUT" else 422)
        return JSONResponse({"id": len(seen), "code": "a"})

    server.handler = handler
    body = {"store": "{{ store }}", "code": "{{ key }}"}
    http = HttpClient(HttpSettings(base_url=server.url))
    third_party = RestThirdParty(
        http,
        TargetSettings.model_validate(
            {
                "system": "erp",
                "key_field": "code",
                "create": {"method": "POST", "path": "/items", "body": body},
                "update": {"method": "PUT", "path": "/items/{{ id }}", "body": body},
                "delete": {"path": "/items/{{ id }}"},
                "read": {"path": "/items/{{ id }}"},
                "list": {"path": "/items"},
                "references": {"store": {"path": "/stores", "record": "items[].id"}},
            }
        ),
        ("code",),
    )
    item = Item("a", "A", {"code": "a"})
    assert await third_party.create(item) == "1"
    for number, call in enumerate((third_party.create, third_party.update)):
        store["id"] = 8 + number
        failure = await failure_of(call(Item("a", "A", {"code": "a"}, "1")))
        assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, False)
        assert failure.detail.startswith("a reference has changed meanwhile")
        await call(Item("a", "A", {"code": "a"}, "1"))
    assert seen == [7, 7, 8, 8, 9]
    await http.close()

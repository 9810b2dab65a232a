"""What a system says of waiting, in each of the ways they do, and that it is kept: by reads, by writes, by all runs."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from http_server import Server, failure_of
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import JSONResponse
from throttling_servers import CONFIG, READ, Slept, answering, client
from throttling_servers import slept as slept

from sync_orchestrator.adapters.factory import build_third_parties
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.http.retry_after import MAX_WAIT_SECONDS, pause_after, requested_wait_seconds
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import RequestSettings as Call
from sync_orchestrator.config.http_access import ThrottleSettings
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.errors import Failure

WRITE = Call(method="PUT", path="/things", body={"a": 1})
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
"""The other side's clock, years behind ours; 1445412480 seconds since 1970."""
AT = 1445412480
WAIT = ThrottleSettings(wait="body.at")
GARBAGE: tuple[Any, ...] = ("soon", None, True, [], {}, 1e300, "nan", "")


def answer(status: int, headers: dict[str, Any] | None = None, body: Any = None) -> Answer:
    return Answer(status, {"date": DATE, **(headers or {})}, json.dumps(body).encode())


# What is told.


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        pytest.param({"retry-after": "7"}, None, 7, id="Retry-After: seconds"),
        pytest.param({"retry-after": "1.5"}, None, 1.5, id="Retry-After: parts of a second"),
        pytest.param(
            {"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, None, 30, id="Retry-After: a date, by their clock"
        ),
        pytest.param({"retry-after": "Wed, 21 Oct 2015 07:27:30 GMT"}, None, 0, id="Retry-After: a date that is over"),
        pytest.param({"retry-after": "86400"}, None, MAX_WAIT_SECONDS, id="Retry-After: at most an hour"),
        pytest.param({"retry-after": "-3"}, None, None, id="Retry-After: garbage"),
        pytest.param({}, {"at": 12}, 12, id="reset time in the body: seconds"),
        pytest.param({}, {"at": "12.5"}, 12.5, id="reset time in the body: seconds as text"),
        pytest.param({}, {"at": AT + 40}, 40, id="reset time in the body: seconds since 1970"),
        pytest.param({}, {"at": str(AT + 40)}, 40, id="reset time in the body: seconds since 1970 as text"),
        pytest.param({}, {"at": (AT + 40) * 1000}, 40, id="reset time in the body: milliseconds since 1970"),
        pytest.param({}, {"at": "2015-10-21T07:28:20Z"}, 20, id="reset time in the body: ISO date"),
        pytest.param({}, {"at": "2015-10-21T09:28:20+02:00"}, 20, id="reset time in the body: ISO date with a zone"),
        pytest.param({}, {"at": "2015-10-21 07:28:20"}, 20, id="reset time in the body: ISO date without a zone"),
        pytest.param({}, {"at": "Wed, 21 Oct 2015 07:28:50 GMT"}, 50, id="reset time in the body: HTTP date"),
        pytest.param({}, {"at": AT - 40}, 0, id="reset time in the body: over"),
        pytest.param({}, {"at": -1}, 0, id="reset time in the body: negative"),
        pytest.param({}, {"at": AT + 10**6}, MAX_WAIT_SECONDS, id="reset time in the body: at most an hour"),
        *(
            pytest.param({}, {"at": garbage}, None, id=f"reset time in the body: garbage {garbage!r}")
            for garbage in GARBAGE
        ),
        pytest.param({"retry-after": "7"}, {"at": 3}, 3, id="reset time in the body: before Retry-After"),
        pytest.param({"retry-after": "7"}, {"at": "soon"}, 7, id="reset time in the body: garbage before Retry-After"),
        pytest.param({"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"}, None, 9, id="X-RateLimit: seconds"),
        pytest.param(
            {"x-ratelimit-remaining": "0", "x-ratelimit-reset": str(AT + 9)},
            None,
            9,
            id="X-RateLimit: seconds since 1970, by their clock",
        ),
        pytest.param({"x-ratelimit-reset": "9"}, None, 9, id="X-RateLimit: without Remaining"),
        pytest.param({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "9"}, None, None, id="X-RateLimit: some left"),
        pytest.param(
            {"x-rate-limit-remaining": "0", "x-rate-limit-reset": "9"}, None, 9, id="X-RateLimit: X-Rate-Limit"
        ),
        pytest.param(
            {"ratelimit-limit": "5", "ratelimit-remaining": "0", "ratelimit-reset": "8"},
            None,
            8,
            id="RateLimit: three headers",
        ),
        pytest.param({"ratelimit": "limit=5, remaining=0, reset=8"}, None, 8, id="RateLimit: one header of three"),
        pytest.param({"ratelimit": '"default";r=0;t=30'}, None, 30, id="RateLimit: structured"),
        pytest.param(
            {"ratelimit": '"hour";r=40;t=900, "a;r=0,b\\"";r=0;t=30'},
            None,
            30,
            id="RateLimit: structured, several policies",
        ),
        pytest.param({"ratelimit": '"default";r=4;t=30'}, None, None, id="RateLimit: structured, some left"),
        pytest.param({"ratelimit": '"default";r=0;t=soon'}, None, None, id="RateLimit: garbage"),
        pytest.param(
            {"retry-after": "7", "ratelimit": '"default";r=0;t=30'}, None, 7, id="RateLimit: after Retry-After"
        ),
    ],
)
def test_wait_asked(headers: dict[str, str], body: Any, seconds: float | None) -> None:
    assert requested_wait_seconds(answer(429, headers, body), WAIT) == seconds


def test_without_their_clock_ours_counts() -> None:
    told = Answer(429, {"x-ratelimit-reset": str(int(time.time()) + 40)}, b"")
    assert requested_wait_seconds(told, WAIT) == pytest.approx(40, abs=3)


def test_a_limit_told_beside_a_fault_does_not_say_that_nothing_was_done() -> None:
    """A 503 that names a time did nothing; rate limit headers stand on every answer."""
    used_up = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"}
    assert requested_wait_seconds(answer(503, used_up), WAIT) is None
    assert pause_after(answer(503, used_up), WAIT) is None


SLOW = ThrottleSettings(slow_down="body.backoff || headers.backoff")


@pytest.mark.parametrize(
    ("status", "headers", "body", "seconds"),
    [
        pytest.param(200, {}, {"backoff": 10}, 10, id="Backoff on good answers: in the body"),
        pytest.param(200, {"backoff": "10"}, {}, 10, id="Backoff on good answers: in a header"),
        pytest.param(200, {}, {"backoff": 1e6}, MAX_WAIT_SECONDS, id="Backoff on good answers: at most an hour"),
        pytest.param(200, {}, {"backoff": 0}, None, id="Backoff on good answers: none"),
        pytest.param(200, {}, {"backoff": "much"}, None, id="Backoff on good answers: garbage"),
        pytest.param(404, {}, {"backoff": 10}, None, id="Backoff on good answers: not on others"),
        pytest.param(200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"}, {}, 9, id="X-RateLimit: used up"),
        pytest.param(404, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9"}, {}, 9, id="X-RateLimit: by a 404"),
        pytest.param(
            200, {"x-ratelimit-remaining": "1", "x-ratelimit-reset": "9"}, {}, None, id="X-RateLimit: some left"
        ),
        pytest.param(200, {"x-ratelimit-reset": "9"}, {}, None, id="X-RateLimit: without Remaining"),
        pytest.param(200, {"ratelimit": '"default";r=0;t=30'}, {}, 30, id="RateLimit: used up"),
        pytest.param(200, {"ratelimit": '"default";r=0;t=30'}, {"backoff": 40}, 40, id="the longest of all"),
        pytest.param(200, {"retry-after": "9"}, {}, None, id="Retry-After: of a good answer is for what was asked"),
    ],
)
def test_pause_after(status: int, headers: dict[str, str], body: Any, seconds: float | None) -> None:
    assert pause_after(answer(status, headers, body), SLOW) == seconds


@given(
    st.dictionaries(
        st.sampled_from(
            ["date", "retry-after", "ratelimit", "x-ratelimit-reset", "ratelimit-reset", "ratelimit-remaining"]
        ),
        st.text(max_size=40) | st.integers().map(str) | st.datetimes().map(str),
    ),
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda part: st.lists(part)),
    st.sampled_from([200, 404, 429, 503]),
)
def test_whatever_is_told_is_a_time_within_bounds_or_none(headers: dict[str, str], told: Any, status: int) -> None:
    came = Answer(status, headers, json.dumps({"at": told, "backoff": told}).encode())
    for seconds in (requested_wait_seconds(came, WAIT), pause_after(came, SLOW)):
        assert seconds is None or 0 <= seconds <= MAX_WAIT_SECONDS


# What is kept, by one process.


TOLD = [
    pytest.param({"Retry-After": "4"}, {}, {}, id="Retry-After"),
    pytest.param({}, {"error": {"again": 4}}, {"wait": "body.error.again"}, id="reset time in the body"),
    pytest.param({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4"}, {}, {}, id="X-RateLimit"),
    pytest.param({"RateLimit-Remaining": "0", "RateLimit-Reset": "4"}, {}, {}, id="RateLimit: three headers"),
    pytest.param({"RateLimit": '"default";r=0;t=4'}, {}, {}, id="RateLimit: structured"),
]


@pytest.mark.parametrize(("headers", "body", "throttle"), TOLD)
async def test_a_read_comes_back_when_it_is_told(
    server: Server, slept: Slept, headers: dict[str, str], body: Any, throttle: dict[str, str]
) -> None:
    http = client(server, throttle=throttle)
    answering(server, JSONResponse(body, 429, headers=headers))
    assert (await http.read(READ, {})).body == {"ok": True}
    assert len(server.seen) == 2
    assert slept.whole == [4]
    await http.close()


@pytest.mark.parametrize(("headers", "body", "throttle"), TOLD)
async def test_a_read_leaves_a_long_wait_to_its_caller(
    server: Server, slept: Slept, headers: dict[str, str], body: Any, throttle: dict[str, str]
) -> None:
    http = client(server, throttle=throttle, timeout=3)
    answering(server, JSONResponse(body, 429, headers=headers))
    failure = await failure_of(http.read(READ, {}))
    assert (failure.kind, failure.retry_after, len(server.seen)) == (Failure.THROTTLED, 4, 1)
    assert slept.waits == []
    await http.close()


async def test_throttled_inside_a_200(server: Server, slept: Slept) -> None:
    http = client(server, throttle={"wait": "body.again"}, outcomes=[{"when": "body.busy", "means": "throttled"}])
    answering(server, JSONResponse({"busy": True, "again": 4}))
    assert (await http.read(READ, {})).body == {"ok": True}
    assert slept.whole == [4]
    await http.close()


async def test_a_429_without_a_time_is_left_to_the_caller(server: Server, slept: Slept) -> None:
    http = client(server)
    answering(server, JSONResponse({}, 429))
    assert (await failure_of(http.read(READ, {}))).kind is Failure.THROTTLED
    assert (len(server.seen), slept.waits) == (1, [])
    await http.close()


async def test_reads_end_however_often_they_are_put_off(server: Server, slept: Slept) -> None:
    http = client(server)
    answering(server, *(JSONResponse({}, 429, headers={"Retry-After": "4"}) for _ in range(9)))
    failure = await failure_of(http.read(READ, {}))
    assert (failure.kind, len(server.seen), slept.whole) == (Failure.THROTTLED, 3, [4, 4])
    await http.close()


GOOD = [
    pytest.param({}, {"backoff": 4}, id="Backoff on good answers"),
    pytest.param({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4"}, {}, id="X-RateLimit: nothing remains"),
    pytest.param({"RateLimit": '"default";r=0;t=4'}, {}, id="RateLimit: nothing remains"),
]


@pytest.mark.parametrize(("headers", "body"), GOOD)
@pytest.mark.parametrize("timeout", [10, 3], ids=["a short pause", "a long pause"])
async def test_a_good_answer_holds_off_all_calls(
    server: Server, slept: Slept, headers: dict[str, str], body: Any, timeout: float
) -> None:
    """For a short time they wait; for a long one they fail as throttled, which costs no attempt."""
    http = client(server, throttle={"slow_down": "body.backoff"}, timeout=timeout)
    answering(server, JSONResponse(body, headers=headers))
    assert (await http.read(READ, {})).body == body
    if timeout == 10:
        await http.send(WRITE, {}, write=True)
        assert (len(server.seen), slept.whole) == (2, [4])
    else:
        for call in (http.read(READ, {}), http.send(WRITE, {}, write=True)):
            failure = await failure_of(call)
            assert (failure.kind, failure.unknown, round(failure.retry_after or 0)) == (Failure.THROTTLED, False, 4)
        assert (len(server.seen), slept.waits) == (1, [])
    await http.close()


async def test_a_write_is_not_held_off_past_its_deadline(server: Server, slept: Slept) -> None:
    answering(server)
    hold_off = HoldOff()
    http = client(server, hold_off)
    await hold_off.hold_off_calls(4)
    failure = await failure_of(http.send(WRITE, {}, write=True, deadline=slept.now() + 3))
    assert (failure.kind, server.seen, slept.waits) == (Failure.THROTTLED, [], [])
    await http.send(WRITE, {}, write=True, deadline=slept.now() + 5)
    assert slept.whole == [4]
    await http.close()


async def test_what_is_asked_while_a_call_waits_for_the_shared_rate_is_kept(server: Server, slept: Slept) -> None:
    hold_off, rate = HoldOff(), []

    async def before_call() -> None:
        rate.append(1)
        if len(rate) == 1:
            await hold_off.hold_off_calls(4)

    answering(server)
    http = HttpClient(HttpSettings(base_url=server.url), before_call, hold_off=hold_off)
    await http.read(READ, {})
    assert (slept.whole, len(rate)) == ([4], 2)
    await http.close()


async def test_the_longest_pause_counts(slept: Slept) -> None:
    hold_off = HoldOff()
    await hold_off.hold_off_calls(40)
    await hold_off.hold_off_calls(4)
    assert await hold_off.seconds_left() == pytest.approx(40, abs=1)


# What is kept, by all runs on all machines.


async def test_the_third_party_is_built_with_the_shared_hold_off(server: Server) -> None:
    hold_off = HoldOff()
    await hold_off.hold_off_calls(40)
    third_party = build_third_parties(CONFIG, {}, {"erp": hold_off})["thing"]
    assert (await failure_of(third_party.update(Item("k", "A", {})))).kind is Failure.THROTTLED
    await third_party.close()

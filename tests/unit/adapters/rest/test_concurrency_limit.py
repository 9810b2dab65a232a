"""A slow third party gets fewer requests at once and smaller batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from http_server import Server
from lost_batches import FULL, LOST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.lost_batches import LostBatches
from sync_orchestrator.config import Config
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import RequestSettings as Call
from sync_orchestrator.core.ports import Capabilities, Found
from sync_orchestrator.core.push.decision import PushStep, Situation, plan_step
from sync_orchestrator.core.systems.call_limit import CallLimit, Limit, ease_limit, lower_limit, raise_limit
from sync_orchestrator.errors import CallFailed, Failure

WRITE = Call(method="PUT", path="/things", body={"a": 1})


def test_a_lost_call_halves_the_calls_and_total_silence_quarters_them() -> None:
    assert lower_limit(FULL, LOST).calls == 16
    assert lower_limit(FULL, LOST, losses=1).calls == 8


def test_batches_are_halved_when_single_calls_are_lost_again_and_again() -> None:
    one = Limit(1.0, is_known=True, was_lowered=True)
    assert lower_limit(one, LOST, losses=1).batch == 1.0
    assert lower_limit(one, LOST, losses=2).batch == 0.5


def test_quick_answers_raise_the_limit_by_a_sixteenth_up_to_the_configured_number() -> None:
    limit = lower_limit(FULL, LOST)
    assert raise_limit(limit, 32, slowest=0.1, timeout=2).calls == 18
    for _ in range(20):
        limit = raise_limit(limit, 32, slowest=0.1, timeout=2)
    assert (limit.calls, limit.batch) == (32, 1)


def test_slow_answers_do_not_raise_the_limit_and_late_ones_lower_it() -> None:
    limit = lower_limit(FULL, LOST)
    assert raise_limit(limit, 32, slowest=1.6, timeout=2).calls == limit.calls
    assert ease_limit(limit, "late").calls < limit.calls
    assert ease_limit(Limit(1.0, 0.5), "late").batch < 0.5


def test_a_batch_that_is_slow_for_its_size_grows_while_its_latency_is_far_from_the_timeout() -> None:
    small = Limit(1.0, 0.1, is_known=True, was_lowered=True)
    assert raise_limit(small, 32, slowest=1.2, timeout=2).batch > 0.1
    assert raise_limit(small, 32, slowest=1.6, timeout=2).batch == 0.1


def client(server: Server, limit: CallLimit | None, timeout: float = 0.2) -> HttpClient:
    return HttpClient(HttpSettings.model_validate({"base_url": server.url, "timeout": timeout}), limit=limit)


async def put(http: HttpClient) -> CallFailed | None:
    try:
        await http.send(WRITE, {}, write=True)
    except CallFailed as failure:
        return failure
    return None


def answers(server: Server, status: int = 200, after: float = 0.0) -> None:
    async def handler(request: Request) -> Response:
        await asyncio.sleep(after)
        return JSONResponse({"ok": True}, status)

    server.handler = handler


@pytest.mark.parametrize(("status", "after"), [(200, 0.4), (502, 0), (503, 0), (504, 0)])
async def test_a_call_without_an_answer_lowers_the_number_of_calls(server: Server, status: int, after: float) -> None:
    limit = CallLimit(32, 0.2)
    http = client(server, limit)
    answers(server, status, after)
    assert await put(http) is not None
    assert limit.calls == 2  # of the four that an unknown system gets first
    await http.close()


async def test_a_refusal_is_an_answer(server: Server) -> None:
    limit = CallLimit(32, 2)
    http = client(server, limit, 2)
    answers(server, 422)
    assert await put(http) is not None
    assert limit.calls >= 4
    await http.close()


async def test_calls_beyond_the_limit_wait_for_those_under_way() -> None:
    limit, most, now = CallLimit(2, 5), 0, 0

    async def call() -> None:
        nonlocal most, now
        async with limit.reserve_call(time.monotonic() + 5):
            now += 1
            most = max(most, now)
            await asyncio.sleep(0)
            now -= 1

    await asyncio.gather(*(call() for _ in range(20)))
    assert (most, limit.has_room()) == (2, True)


async def test_a_call_that_finds_no_room_in_time_costs_no_attempt() -> None:
    limit = CallLimit(1, 5)
    async with limit.reserve_call(time.monotonic() + 5):
        with pytest.raises(CallFailed) as caught:
            async with limit.reserve_call(time.monotonic()):
                raise AssertionError
    assert caught.value.kind is Failure.THROTTLED
    assert limit.has_room()


def test_a_pusher_has_no_more_records_under_way_than_the_limited_calls_can_carry() -> None:
    limit = CallLimit(32, 2)
    limit._apply_limit(Limit(2.0, 0.4, is_known=True, was_lowered=True))
    assert limit.limit_records(25, 800) == 20
    limit.pushers = 4
    assert limit.limit_records(25, 800) == 5
    limit._apply_limit(FULL)
    assert limit.limit_records(25, 800) == 800


@pytest.mark.parametrize("ours", [True, False])
def test_an_update_of_a_lost_batch_is_repeated_with_others_instead_of_being_read_back_alone(ours: bool) -> None:
    lost = Situation(
        deleted=False,
        digest=b"new",
        applied_digest=b"old",
        rejected_digest=None,
        external_id=None if ours else "7",
        ever_applied=True,
        moved=False,
        outcome_unknown_for=-1.0,
    )
    capabilities: dict[str, Any] = {
        "assigns_ids": not ours,
        "can_lookup": True,
        "idempotent_create": False,
        "group_in_address": False,
    }
    assert plan_step(lost, Capabilities(**capabilities)) is PushStep.READ_BACK
    assert plan_step(lost, Capabilities(**capabilities, bulk_update=True)) is PushStep.UPDATE


class Listing:
    """A group of some records, in pages; counts the pages that were read."""

    def __init__(self, shown: int, size: int = 10) -> None:
        self.records = [Found(f"k{number}", f"id{number}", "A", {}) for number in range(shown)]
        self.size = size
        self.read = 0

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        for start in range(0, len(self.records), self.size):
            self.read += 1
            yield self.records[start : start + self.size]


@pytest.mark.parametrize(
    ("keys", "shown", "found", "pages"),
    [
        pytest.param(25, 25, 25, 3, id="all of it is there"),
        pytest.param(25, 20, 20, 2, id="what is not shown is searched by key"),
        pytest.param(25, 1000, 25, 3, id="no page is read once all are found"),
        pytest.param(4, 25, 0, 0, id="few are searched by key at once"),
        pytest.param(25, 0, 0, 0, id="nothing was carried out"),
    ],
)
async def test_records_of_a_lost_batch_are_found_by_one_listing(keys: int, shown: int, found: int, pages: int) -> None:
    listing = Listing(shown)
    lost = LostBatches(listing.pages)
    names = [f"k{number}" for number in range(keys)]
    lost.add_keys(names)
    came = await asyncio.gather(*(lost.find_records(name, "A") for name in names))
    assert (sum(map(bool, came)), listing.read) == (found, pages)
    assert all([record.key for record in records] in ([], [name]) for name, records in zip(names, came, strict=True))
    assert await lost.find_records("k0", "A") == []  # once: what follows is searched by key


async def test_a_listing_of_a_large_group_ends_before_it_costs_more_than_the_searches() -> None:
    listing = Listing(1000)
    lost = LostBatches(listing.pages)
    names = [f"k{number}" for number in range(900, 920)]
    lost.add_keys(names)
    assert not any(await asyncio.gather(*(lost.find_records(name, "A") for name in names)))
    assert listing.read == 10


async def test_keys_that_were_in_no_lost_batch_are_searched_at_once() -> None:
    listing = Listing(100)
    lost = LostBatches(listing.pages)
    assert await asyncio.gather(*(lost.find_records(f"k{number}", "A") for number in range(20))) == [[]] * 20
    assert listing.read == 0


def test_as_many_records_are_pushed_at_once_as_fill_the_connections_or_two_bulk_calls() -> None:
    from fakes import two_part_config

    config: Config = two_part_config()
    assert (config.records_at_once("erp"), config.largest_batch("erp")) == (32, 1)

"""Sources that notify nobody: they are asked what has changed, and none of it is lost or taken twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeSource
from world import World

from sync_orchestrator.core.intake.polling import Polled, poll_due
from sync_orchestrator.errors import CallFailed

NUMBER: dict[str, Any] = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}}
TIME: dict[str, Any] = {**NUMBER, "version": {"path": "v"}}
SECOND = 1_000_000


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world whose two sources are asked; the owner's versions are times."""
    changes = {"changes": {"path": "/changes"}, "poll_every": 30, "overlap": 60}
    parts = {"shop": {**TIME, **changes, "group": "store"}, "stock": {**NUMBER, **changes}}
    world = make_world(entity={"parts": parts})
    for source in (world.shop, world.stock):
        source.can_poll = True
    return world


def polled(world: World, seconds: float = 31) -> list[tuple[int, int]]:
    """Asks all whose turn it is, after a while: how much each showed, and how much of it was new."""
    world.advance_clock(seconds)
    ends = asyncio.run(poll_due(world.context))
    assert all(isinstance(end, Polled) for end in ends), ends
    return [(end.shown, end.new) for end in ends if isinstance(end, Polled)]


def now(world: World) -> int:
    return int((time.time() + world.clock_offset_seconds) * SECOND)


def changed(world: World, key: str, name: str = "n", *, ago: float = 1, count: int = 1) -> None:
    """A change that nobody tells of."""
    world.shop.put(key, {"key": key, "name": name, "store": "A"}, group="A", version=now(world) - int(ago * SECOND))
    world.stock.put(key, {"key": key, "count": count, "v": 0})


def test_what_changed_is_mirrored_without_a_notification(world: World) -> None:
    assert polled(world) == [(0, 0), (0, 0)]
    changed(world, "a")
    assert polled(world) == [(1, 1), (1, 1)]
    world.run_drain()
    assert (world.mirror_by_key(), world.count_events_by_state()) == (world.expected_mirror(), {"done": 2})


def test_what_is_shown_again_is_recorded_once(world: World) -> None:
    polled(world)
    changed(world, "a")
    polled(world)
    world.run_drain()
    received = world.read_conservation().received
    assert polled(world, 40)[0] == (1, 0)
    assert (world.read_conservation().received, world.read_conservation().duplicates) == (received, 0)


def test_what_is_on_its_way_is_known_by_its_id(world: World) -> None:
    polled(world)
    changed(world, "a")
    polled(world)
    assert polled(world)[0] == (1, 0)
    assert (world.read_conservation().received, world.read_conservation().balanced) == (2, True)


def test_what_is_committed_late_is_found_by_the_overlap(world: World) -> None:
    polled(world)
    changed(world, "a")
    polled(world)
    changed(world, "late", ago=45)
    assert polled(world, 31)[0][1] == 1
    world.run_drain()
    assert sorted(world.mirror_by_key()) == ["a", "late"]


def test_the_same_version_with_other_content_is_new(world: World) -> None:
    polled(world)
    changed(world, "a")
    polled(world)
    world.run_drain()
    row = world.shop.rows["a"]
    world.shop.rows["a"] = replace(row, data={**row.data, "name": "same tick"})
    assert polled(world)[0] == (1, 1)
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "same tick"


def test_what_the_source_shows_as_deleted_is_deleted(world: World) -> None:
    polled(world)
    changed(world, "a")
    polled(world)
    world.run_drain()
    world.shop.rows["a"] = replace(world.shop.rows["a"], version=now(world), deleted=True)
    polled(world)
    world.run_drain()
    assert (world.mirror_by_key(), world.read_record_row("a").deleted) == ({}, True)


def test_a_version_in_the_future_hides_nothing_that_follows(world: World) -> None:
    polled(world)
    changed(world, "ahead", ago=-7 * 86_400)
    polled(world)
    changed(world, "a")
    polled(world)
    world.run_drain()
    assert sorted(world.mirror_by_key()) == ["a"]


def test_it_is_asked_as_often_as_configured(world: World) -> None:
    assert [len(polled(world, seconds)) for seconds in (1, 10, 10, 11)] == [2, 0, 0, 2]


def test_numbers_begin_at_the_newest_that_is_known_here(world: World) -> None:
    for key in "abc":
        changed(world, key)
    world.run_full_sync()
    world.stock.put("d", {"key": "d", "count": 4, "v": 0}, version=world.stock.version + 100)
    assert polled(world)[1][1] == 1
    world.run_drain()
    assert world.count_events_by_state() == {"waiting": 1}


def test_a_source_that_is_down_keeps_no_other_from_being_asked_and_is_told_of(world: World) -> None:
    polled(world)
    changed(world, "a")
    world.shop.down = True
    for seconds, told in ((31, []), (900, ["item shop"])):
        world.advance_clock(seconds)
        ends = asyncio.run(poll_due(world.context))
        assert [type(end) for end in ends] == [CallFailed, Polled]
        assert [row.cause for row in world.query("SELECT cause FROM sync.alerts WHERE kind = 'poll_failing'")] == told
    world.shop.down = False
    assert polled(world)[0] == (1, 1)
    assert world.query("SELECT FROM sync.alerts WHERE kind = 'poll_failing' AND resolved_at IS NULL") == []


def test_what_cannot_be_used_is_told_of_and_the_rest_is_taken(world: World) -> None:
    polled(world)
    changed(world, "a")
    changed(world, "bad\x00")
    assert polled(world)[0] == (2, 1)
    assert [
        row.cause
        for row in world.query("SELECT cause FROM sync.alerts WHERE kind = 'invalid_source_records' ORDER BY cause")
    ] == ["item shop: changes", "item stock: changes"]


def test_a_poll_that_dies_half_way_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    polled(world)
    world.shop.page = 2
    for key in "abcde":
        changed(world, key)
    whole = FakeSource.changes

    async def breaks_off(self: FakeSource, since: int) -> Any:
        async for rows in whole(self, since):
            yield rows
            if self is world.shop:
                self.down = True
                self._answer()

    with monkeypatch.context() as patch:
        patch.setattr(FakeSource, "changes", breaks_off)
        world.advance_clock(31)
        asyncio.run(poll_due(world.context))
    world.shop.down = False
    polled(world)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


# Several pollers at once --------------------------------------------------------------------------------------------


def received(world: World) -> int:
    return world.read_conservation().received


def test_two_pollers_at_once_ask_each_source_once(world: World) -> None:
    polled(world)
    changed(world, "a")
    world.advance_clock(31)

    async def both() -> list[Any]:
        return [*await asyncio.gather(poll_due(world.context), poll_due(world.context))]

    one, other = asyncio.run(both())
    assert sorted((end.part, end.new) for end in [*one, *other]) == [("shop", 1), ("stock", 1)]
    assert received(world) == 2


def test_the_source_of_a_poller_that_is_gone_is_polled_when_its_lease_has_ended(world: World) -> None:
    polled(world)
    world.query("UPDATE sync.polls SET lease_until = sync.clock() + interval '30 s' WHERE part = 'shop' RETURNING 1")
    changed(world, "a")
    assert polled(world, 29) == []
    assert polled(world, 2) == [(1, 1), (1, 1)]


def test_a_poller_that_lost_its_lease_records_nothing_more(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    polled(world)
    world.shop.page = 1
    for key in "abc":
        changed(world, key)
    whole = FakeSource.changes

    async def slow(self: FakeSource, since: int) -> Any:
        async for rows in whole(self, since):
            yield rows
            if self is world.shop:  # another worker took over meanwhile
                world.query("UPDATE sync.polls SET lease_token = lease_token + 1 WHERE part = 'shop' RETURNING 1")

    with monkeypatch.context() as patch:
        patch.setattr(FakeSource, "changes", slow)
        assert [shown for shown, _ in polled(world)] == [3]  # of the other source
    assert [row.n for row in world.query("SELECT count(*) AS n FROM sync.events WHERE source = 'shop'")] == [1]
    world.advance_clock(31)  # the lease of the one that took over
    assert polled(world, 31)[0] == (3, 2)


async def test_a_poll_that_is_canceled_lets_others_poll_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = asyncio.Event()

    async def hangs(self: FakeSource, since: int) -> Any:
        begun.set()
        await asyncio.Event().wait()
        yield []

    with monkeypatch.context() as patch:
        patch.setattr(FakeSource, "changes", hangs)
        task = asyncio.create_task(poll_due(world.context))
        await begun.wait()
        task.cancel()
        await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})
    ends = await poll_due(world.context)
    assert [type(end) for end in ends] == [Polled, Polled]

"""Full syncs of a business group beside live changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fakes import answer
from scenes import fill_sources
from world import World

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.push_group import StepReport
from sync_orchestrator.core.operations.events import redrive_events
from sync_orchestrator.core.operations.records import refresh_record
from sync_orchestrator.errors import CallFailed, DeletionsHeld, Failure


def test_fills_the_archive_and_brings_the_third_party_in_sync(world: World) -> None:
    fill_sources(world, 250)
    report = world.run_full_sync(patience=30)
    assert world.mirror_by_key() == world.expected_mirror()
    assert (report.acknowledged, report.open, report.stopped) == (250, 0, 0)


def test_a_second_one_of_unchanged_data_pushes_and_writes_nothing(world: World) -> None:
    fill_sources(world, 50)
    world.run_full_sync(patience=60)
    world.erp.calls.clear()
    before = world.query("SELECT sum(revision) AS n FROM sync.records")[0].n
    report = world.run_full_sync()
    assert report.calls == 0
    assert sum(world.erp.calls.values()) == 0
    assert world.query("SELECT sum(revision) AS n FROM sync.records")[0].n == before


def test_pushes_a_page_while_the_next_is_being_read(world: World) -> None:
    """The listing's second page waits until the first one's records are being pushed."""
    fill_sources(world, 250)
    pages, pushed = world.shop.pages, told_of_pushes(world)

    def waiting(group: str, after: str | None = None) -> AsyncIterator[Any]:
        async def stream() -> AsyncIterator[Any]:
            async for page in pages(group, after):
                yield page
                await pushed.wait()

        return stream()

    world.shop.pages = waiting  # type: ignore[method-assign]
    report = asyncio.run(asyncio.wait_for(in_time(world), 60))
    assert report.acknowledged == 250
    assert world.mirror_by_key() == world.expected_mirror()


async def in_time(world: World) -> StepReport:
    return (await full_sync(world.context, world.entity, "A", patience=30))[1]


def told_of_pushes(world: World) -> asyncio.Event:
    """Is set once a push is under way."""
    pushed = asyncio.Event()

    def note(verb: str, key: str) -> None:
        pushed.set()

    world.erp.before = note
    return pushed


def test_patience_begins_when_all_is_read(world: World) -> None:
    """However long the reading takes, it is pushed beside it and after it."""
    fill_sources(world, 250)
    pages = world.shop.pages

    def slow(group: str, after: str | None = None) -> AsyncIterator[Any]:
        async def stream() -> AsyncIterator[Any]:
            async for page in pages(group, after):
                await asyncio.sleep(0.2)
                yield page

        return stream()

    world.shop.pages = slow  # type: ignore[method-assign]
    assert world.run_full_sync(patience=0.3).open == 0
    assert world.mirror_by_key() == world.expected_mirror()


def test_a_listing_that_breaks_off_leaves_nothing_half_pushed(world: World) -> None:
    fill_sources(world, 250)
    pages, pushed = world.shop.pages, told_of_pushes(world)

    def broken(group: str, after: str | None = None) -> AsyncIterator[Any]:
        async def stream() -> AsyncIterator[Any]:
            async for page in pages(group, after):
                yield page
                await pushed.wait()
                raise CallFailed(Failure.TRANSIENT, "gone")

        return stream()

    world.shop.pages = broken  # type: ignore[method-assign]
    with pytest.raises(CallFailed, match="gone"):
        world.run_full_sync()
    [row] = world.query(
        "SELECT count(*) AS n, count(lease_token) AS leased, "
        "count(*) FILTER (WHERE out_of_sync) AS left FROM sync.records"
    )
    assert (row.n, row.leased) == (100, 0)
    assert len(world.erp.store) == row.n - row.left > 0
    assert [row.lease_token for row in world.query("SELECT lease_token FROM sync.groups")] == [None]


def test_what_is_archived_already_is_not_even_locked(world: World) -> None:
    fill_sources(world, 50)
    world.run_full_sync(patience=60)
    with world.engine.connect() as other:
        run(other, "SELECT FROM sync.records FOR UPDATE")
        report = asyncio.run(asyncio.wait_for(full_sync(world.context, world.entity, "A"), 30))
        other.rollback()
    assert (report[0].listed, report[0].changed) == (50, 0)


def test_what_events_told_is_confirmed_by_a_read(world: World) -> None:
    """From then on later events of the same version do not overrule it: the read's read sequence is kept."""
    fill_sources(world, 1)
    world.run_full_sync()
    world.put_record("k000", name="told")
    world.run_drain()
    assert (
        world.query("SELECT read_sequence FROM sync.parts WHERE key = 'k000' AND part = 'shop'")[0].read_sequence == 0
    )
    world.run_full_sync()
    assert world.query("SELECT read_sequence FROM sync.parts WHERE key = 'k000' AND part = 'shop'")[0].read_sequence > 0


def test_finds_what_the_owner_no_longer_has(world: World) -> None:
    fill_sources(world, 50)
    world.run_full_sync()
    world.shop.remove("k003")
    world.shop.remove("k004")
    world.run_full_sync()
    assert world.mirror_by_key() == world.expected_mirror()
    assert len(world.erp.store) == 48


def test_more_deletions_than_the_cap_stop_it_and_alert(world: World) -> None:
    fill_sources(world, 50)
    world.run_full_sync()
    for number in range(10):
        world.shop.remove(f"k{number:03}")
    with pytest.raises(DeletionsHeld, match="10 of 50 records"):
        world.run_full_sync()
    assert len(world.erp.store) == 50
    assert [row.kind for row in world.query("SELECT kind FROM sync.alerts")] == ["delete_cap"]
    world.run_full_sync(allow_deletions=10)
    assert len(world.erp.store) == 40


def test_an_unlisted_record_that_can_be_read_is_not_deleted(world: World) -> None:
    fill_sources(world, 20)
    world.run_full_sync()
    listed = world.shop.rows["k005"]
    world.put_record("k005", count=5, group="B", notify=False)
    assert listed.group == "A"
    world.run_full_sync()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.read_record_row("k005").group_key == "B"


def test_goes_on_where_an_interrupted_one_stopped(world: World) -> None:
    fill_sources(world, 250)
    seen: list[str | None] = []
    pages = world.shop.pages

    def interrupted(group: str, after: str | None = None) -> AsyncIterator[Any]:
        seen.append(after)

        async def stream() -> AsyncIterator[Any]:
            number = 0
            async for page in pages(group, after):
                number += 1
                if number == 2 and len(seen) == 1:
                    raise CallFailed(Failure.TRANSIENT, "gone")
                yield page

        return stream()

    world.shop.pages = interrupted  # type: ignore[method-assign]
    with pytest.raises(CallFailed):
        world.run_full_sync()
    world.run_full_sync(patience=30)
    assert seen == [None, "k099"]
    assert world.mirror_by_key() == world.expected_mirror()


def test_a_change_during_the_sync_is_not_taken_back(world: World) -> None:
    fill_sources(world, 30)
    pages = world.shop.pages

    def late(group: str, after: str | None = None) -> AsyncIterator[Any]:
        async def stream() -> AsyncIterator[Any]:
            async for page in pages(group, after):
                world.put_record("k001", name="live")
                world.delete_record("k002")
                yield page

        return stream()

    world.shop.pages = late  # type: ignore[method-assign]
    world.run_drain()
    world.run_full_sync()
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.mirror_by_key()["k001"]["name"] == "live"


def test_going_live_compensates_by_itself_what_failed_before(world: World) -> None:
    fill_sources(world, 20)
    world.put_record("k001", name="changed before the full sync")
    world.post_event("shop", "never", "update", 5, {"name": "x", "store": "A"}, group="A")
    world.run_drain()
    for _ in range(5):
        world.advance_clock(100)
        world.run_drain()
    assert world.count_events_by_state() == {"waiting": 3}
    assert world.query("SELECT max(attempts) AS n FROM sync.events")[0].n == 0
    world.run_full_sync()
    world.run_drain()
    world.advance_clock(11)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.count_events_by_state() == {"done": 2, "waiting": 1}  # a replica may lag behind the notification
    world.advance_clock(1000)
    world.run_drain()
    assert world.count_events_by_state() == {"done": 2, "superseded": 1}


def test_a_full_sync_of_a_busy_group_is_refused(world: World) -> None:
    from sync_orchestrator.errors import GroupBusy

    fill_sources(world, 3)
    world.query(
        "INSERT INTO sync.groups (entity, group_key, lease_token, lease_until) "
        "VALUES ('item', 'A', 1, now() + interval '1 minute')"
    )
    with pytest.raises(GroupBusy):
        world.run_full_sync()


def test_rule_26_what_the_third_party_refuses_is_sent_once_more_by_each_full_sync_or_when_it_changes(
    world: World,
) -> None:
    fill_sources(world, 20)
    world.erp.before = lambda verb, key: answer(422) if key == "k007" else None
    report = world.run_full_sync()
    assert report.stopped == 1
    calls = world.erp.calls["create"]
    world.run_full_sync()
    assert world.erp.calls["create"] == calls + 1
    world.run_drain()
    assert world.erp.calls["create"] == calls + 1
    world.erp.before = lambda verb, key: None
    world.put_record("k007", name="fixed")
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


def refused_once(world: World, key: str = "a") -> None:
    """A record whose payload the third party refused for good, before its first full sync; by now it would take it."""
    world.erp.before = lambda verb, k: answer(422) if k == key else None
    world.put_record(key)
    world.run_drain()
    assert world.read_record_row(key).stopped == "dead"
    world.erp.before = lambda verb, k: None
    world.erp.calls.clear()


def test_rule_26_a_full_sync_tries_a_refused_payload_again(world: World) -> None:
    refused_once(world)
    world.erp.before = lambda verb, key: answer(422)
    assert (world.run_full_sync().calls, world.run_full_sync().calls, world.read_record_row("a").stopped) == (
        1,
        1,
        "dead",
    )
    assert [(row.cause, row.n) for row in world.query("SELECT cause, n FROM sync.alerts")] == [("item: answer 422", 1)]
    world.erp.before = lambda verb, key: None
    world.run_full_sync()
    assert world.mirror_by_key() == world.expected_mirror()


def test_a_full_sync_that_brings_another_payload_pushes_it(world: World) -> None:
    refused_once(world)
    world.put_record("a", name="fixed", notify=False)
    world.run_full_sync()
    assert world.mirror_by_key() == world.expected_mirror()


def test_a_refused_payload_that_comes_in_a_new_revision_is_not_pushed_by_a_drain(world: World) -> None:
    refused_once(world)
    row = world.shop.put("a", {**world.shop.rows["a"].data, "unmapped": "new"}, group="A")
    world.post_event("shop", "a", "update", row.version, row.data)
    world.run_drain()
    assert (world.read_record_row("a").stopped, world.read_record_row("a").revision > 1, dict(world.erp.calls)) == (
        "dead",
        True,
        {},
    )


def test_a_full_sync_tries_again_what_died_of_something_else_after_a_refusal(world: World) -> None:
    refused_once(world)
    world.erp.before = lambda verb, key: answer(500)
    world.put_record("a", name="fixed")
    for _ in range(4):
        world.run_drain()
        world.advance_clock(100)
    assert world.read_record_row("a").stopped == "dead"
    world.erp.before = lambda verb, key: None
    world.run_full_sync(patience=5)
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize(
    "again",
    [
        lambda world: redrive_events(world.engine),
        lambda world: asyncio.run(refresh_record(world.context, world.entity, "a")),
    ],
    ids=["redrive", "refresh"],
)
def test_a_person_has_a_refused_payload_tried_again(world: World, again: Callable[[World], object]) -> None:
    refused_once(world)
    world.run_full_sync()
    again(world)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()

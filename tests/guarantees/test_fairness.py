"""Where more is due than can be pushed, no business group and no priority waits for the end of another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from world import World

from sync_orchestrator.core.drain import push_pace, record_claimer
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.drain.event_batch import work_off
from sync_orchestrator.core.full_sync.full_sync import fill_archive, full_sync
from sync_orchestrator.core.push import claims
from sync_orchestrator.core.push.claims import PushClaim

CROWD = 300


@pytest.fixture
def order(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> tuple[World, list[str]]:
    """A world whose drains claim few records at a time, and the keys in the order in which they are pushed."""
    monkeypatch.setattr(push_pace, "MAX_RECORDS_AHEAD", 8)
    world = make_world(system={"concurrency": 4})
    pushed: list[str] = []

    def note(verb: str, key: str) -> None:
        pushed.append(key)

    world.erp.before = note
    return world, pushed


def live(world: World, group: str, count: int) -> None:
    """Changes that somebody told of, archived and not pushed yet."""
    for number in range(count):
        world.put_record(f"{group}{number:03}", group=group)
    asyncio.run(work_off(world.context, 10_000, set()))


def backfilled(world: World, group: str, count: int) -> None:
    """Records that a full sync has read, archived and not pushed yet."""
    for number in range(count):
        world.put_record(f"{group}{number:03}", group=group, notify=False)
    asyncio.run(fill_archive(world.context, world.entity, group))


def ended(pushed: list[str], group: str) -> int:
    """How many pushes were begun before the last one of a group was."""
    return max(place for place, key in enumerate(pushed) if key.startswith(group))


def at_once(world: World, drains: int) -> None:
    """So many drains at once, in one process."""

    async def all_of_them() -> None:
        await asyncio.gather(*(drain(world.context, linger=0, most_seconds=60) for _ in range(drains)))

    asyncio.run(all_of_them())


@pytest.mark.parametrize("drains", [1, 3])
def test_a_group_with_few_changes_does_not_wait_for_one_with_many(order: tuple[World, list[str]], drains: int) -> None:
    world, pushed = order
    live(world, "crowd", CROWD)
    live(world, "few", 5)
    at_once(world, drains)
    assert ended(pushed, "few") < CROWD / 3
    assert world.mirror_by_key() == world.expected_mirror()


def test_a_backfill_does_not_wait_for_the_end_of_live_changes(order: tuple[World, list[str]]) -> None:
    world, pushed = order
    backfilled(world, "filled", 5)
    live(world, "crowd", CROWD)
    at_once(world, 1)
    assert ended(pushed, "filled") < CROWD / 3


def test_live_changes_come_before_a_backfill(order: tuple[World, list[str]]) -> None:
    world, pushed = order
    backfilled(world, "crowd", CROWD)
    live(world, "few", 5)
    at_once(world, 1)
    assert ended(pushed, "few") < 5 + 2 * 8


def test_a_live_change_is_pushed_in_the_midst_of_a_full_sync(order: tuple[World, list[str]]) -> None:
    """The third party takes two calls at once, from the full sync and from the drain alike."""
    world, pushed = order
    for number in range(CROWD):
        world.put_record(f"crowd{number:03}", group="crowd", notify=False)
    room, begun, arrived, over = asyncio.Semaphore(2), asyncio.Event(), asyncio.Event(), False

    async def gate(verb: str, key: str) -> None:
        async with room:
            await asyncio.sleep(0.002)
            (arrived if key.startswith("few") else begun).set()

    world.erp.gate = gate

    async def scene() -> int:
        nonlocal over
        syncing = asyncio.create_task(full_sync(world.context, world.entity, "crowd", patience=60))
        draining = asyncio.create_task(drain(world.context, linger=60, most_seconds=60, asked_to_end=lambda: over))
        await begun.wait()
        world.put_record("few000", group="few")
        before = len(pushed)
        await arrived.wait()
        meanwhile = len(pushed) - before
        await syncing
        over = True
        await draining
        return meanwhile

    assert asyncio.run(asyncio.wait_for(scene(), 120)) < CROWD / 2
    assert world.mirror_by_key() == world.expected_mirror()


def test_of_many_groups_each_has_its_turn(order: tuple[World, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    world, pushed = order
    monkeypatch.setattr("sync_orchestrator.core.push.claims._PLACES_IN_TURN", 3)
    live(world, "crowd", CROWD)
    for number in range(12):
        live(world, f"one{number:02}x", 2)
    at_once(world, 1)
    assert max(ended(pushed, f"one{number:02}x") for number in range(12)) < CROWD


def test_a_group_without_a_name_is_served_too(order: tuple[World, list[str]]) -> None:
    world, _ = order
    live(world, "crowd", CROWD)
    world.query(
        "INSERT INTO sync.records (entity, key, revision, deleted, ready) VALUES ('item', 'nowhere', 1, true, true)"
    )
    at_once(world, 1)
    assert not world.read_record_row("nowhere").out_of_sync


def test_without_turns_the_wait_would_be_noticed(
    order: tuple[World, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, pushed = order
    in_order = claims.claim_due_records

    def by_age(connection, entities, after, **terms) -> tuple[list[PushClaim], tuple[str, str]]:  # type: ignore[no-untyped-def]
        return in_order(connection, entities, **terms), after

    monkeypatch.setattr(record_claimer, "claim_in_turn", by_age)
    live(world, "crowd", CROWD)
    live(world, "few", 5)
    at_once(world, 1)
    assert ended(pushed, "few") > CROWD - 10

"""Records that change their business group, and the places they are in meanwhile (rule 12)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from fakes import FakeThirdParty
from scenes import fill_sources
from world import World

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.systems.pauses import set_paused

THIRD_PARTIES = {
    "a field": lambda: FakeThirdParty(),
    "a field, our ids": lambda: FakeThirdParty(assigns_ids=False),
    "the address": lambda: FakeThirdParty(group_in_address=True),
    "the address, our ids": lambda: FakeThirdParty(assigns_ids=False, group_in_address=True),
}


@pytest.fixture
def world(make_world: Callable[..., World], group_is: str) -> World:
    return make_world(erp=THIRD_PARTIES[group_is]())


def paused(world: World, *, paused: bool) -> None:
    set_paused(world.engine, "erp", {"item"}, paused=paused)


def move(world: World, key: str, *, tell: bool = True) -> None:
    """The owner moves a record from A to B."""
    row = world.shop.put(key, {"key": key, "name": "n", "store": "B"}, group="B")
    if tell:
        world.post_event("shop", key, "update", row.version, row.data)


def looks(world: World) -> dict[str, tuple[str, int]]:
    """What a full validation says of both groups, and how much it sends to repair."""
    results = {group: world.run_validation(group, full=True) for group in "AB"}
    return {group: (result.verdict, result.repaired + result.unmanaged) for group, result in results.items()}


@pytest.mark.parametrize("group_is", THIRD_PARTIES)
def test_a_move_is_one_revision_whose_push_owns_both_places(world: World, group_is: str) -> None:
    world.put_record("a", group="A")
    world.put_record("neighbour", group="A")
    world.run_drain()
    revision = world.read_record_row("a").revision
    move(world, "a")
    world.erp.calls.clear()
    report = world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert len(world.erp.store) == 2
    assert (world.read_record_row("a").revision, world.read_record_row("a").applied_group, report.calls) == (
        revision + 1,
        "B",
        1,
    )
    assert report.settled.groups == {("item", "A"): 1, ("item", "B"): 1}
    left_behind = "the address" in group_is
    assert world.erp.calls["delete"] == (1 if left_behind else 0)
    assert sum(world.erp.calls.values()) - world.erp.calls["read"] == (2 if left_behind else 1)


@pytest.mark.parametrize("group_is", ["a field", "the address"])
def test_validation_of_either_group_leaves_a_move_that_is_on_alone(world: World) -> None:
    fill_sources(world, 3, "A")
    fill_sources(world, 3, "B", "b")
    for group in "AB":
        world.run_full_sync(group)
    paused(world, paused=True)
    move(world, "k001")
    world.run_drain()
    paused(world, paused=False)
    world.advance_clock(1)
    world.erp.calls.clear()
    assert looks(world) == {"A": ("in_sync", 0), "B": ("in_sync", 0)}
    assert not {"create", "update", "delete"} & set(world.erp.calls)
    world.run_drain()
    world.advance_clock(1)
    assert looks(world) == {"A": ("in_sync", 0), "B": ("in_sync", 0)}
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("group_is", ["a field", "the address"])
def test_a_move_that_is_pushed_between_the_listing_and_the_look_at_ours_is_no_drift(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_sources(world, 3, "A")
    for group in "AB":
        world.run_full_sync(group)
    world.advance_clock(1)
    whole = world.erp.pages

    def moved_afterwards(group: str) -> Any:
        async def pages() -> Any:
            async for page in whole(group):
                yield page
            if world.shop.rows["k001"].group == "A":
                move(world, "k001")
                await drain(world.context, linger=0, most_seconds=20)

        return pages()

    monkeypatch.setattr(world.erp, "pages", moved_afterwards)
    assert looks(world) == {"A": ("in_sync", 0), "B": ("in_sync", 0)}
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("group_is", ["a field", "the address"])
def test_what_is_left_at_the_old_place_after_a_move_is_found(world: World) -> None:
    fill_sources(world, 3, "A")
    for group in "AB":
        world.run_full_sync(group)
    old = dict(world.mirror_by_key()["k001"])
    move(world, "k001")
    world.run_drain()
    world.erp.by_hand(old, "A")
    world.advance_clock(1)
    assert [drift.key for drift in world.run_validation("A", full=True).drift] == ["k001"]


@pytest.mark.parametrize("group_is", ["a field", "the address"])
def test_what_comes_back_of_a_deleted_record_where_it_once_was_is_cleared(world: World) -> None:
    fill_sources(world, 3, "A")
    for group in "AB":
        world.run_full_sync(group)
    old = dict(world.mirror_by_key()["k001"])
    move(world, "k001")
    world.run_drain()
    world.delete_record("k001")
    world.run_drain()
    world.erp.by_hand(old, "A")
    world.advance_clock(1)
    assert [(drift.key, drift.kind) for drift in world.run_validation("A", full=True).drift] == [("k001", "extra")]
    world.run_drain()
    assert sorted(world.mirror_by_key()) == ["k000", "k002"]
    world.advance_clock(1)
    assert world.run_validation("A", full=True).verdict == "in_sync"


@pytest.mark.parametrize(("group_is", "first"), [("a field", "A"), ("the address", "B")])
def test_a_move_that_no_event_told_of_is_found_by_the_full_sync_of_either_group(world: World, first: str) -> None:
    fill_sources(world, 20, "A")
    for group in "AB":
        world.run_full_sync(group)
    move(world, "k001", tell=False)
    revision = world.read_record_row("k001").revision
    world.erp.calls.clear()
    for group in (first, "A", "B"):
        world.run_full_sync(group)
    assert world.mirror_by_key() == world.expected_mirror()
    assert (world.read_record_row("k001").revision, world.read_record_row("k001").group_key) == (revision + 1, "B")
    assert world.erp.calls["create"] + world.erp.calls["update"] == 1


@pytest.mark.parametrize("group_is", ["a field, our ids"])
@pytest.mark.parametrize("moment", ["list", "read", "delete"])
def test_before_an_unmanaged_record_is_deleted_it_is_looked_up_whether_it_is_ours_by_now(
    make_world: Callable[..., World], moment: str, group_is: str
) -> None:
    world = make_world(
        erp=THIRD_PARTIES[group_is](), entity={"validation": {"confirm_after": 0, "unmanaged": "delete"}}
    )
    fill_sources(world, 3)
    world.run_full_sync()
    world.erp.store["z"] = {"code": "z", "store": "A", "name": "by hand"}
    world.advance_clock(1)

    def becomes_ours(verb: str, key: str) -> Coroutine[Any, Any, None]:
        async def work() -> None:
            if verb == moment and "z" not in world.shop.rows:
                world.put_record("z")
                await drain(world.context, linger=0, most_seconds=20)

        return work()

    world.erp.gate = becomes_ours
    world.run_validation(full=True)
    world.erp.gate = None
    for _ in range(2):
        world.advance_clock(61)
        world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("group_is", ["the address"])
def test_a_deletion_clears_the_place_the_record_is_in_by_now(world: World) -> None:
    """The owner deletes it while its move waits to be pushed."""
    world.put_record("a", group="A")
    world.run_drain()
    paused(world, paused=True)
    move(world, "a")
    world.run_drain()
    world.delete_record("a")
    world.run_drain()
    paused(world, paused=False)
    asyncio.run(drain(world.context, linger=0, most_seconds=20))
    assert (world.erp.store, world.read_record_row("a").applied_group, world.count_events_by_state()) == (
        {},
        None,
        {"done": 4},
    )

"""One record as a person asks for it: its biography, its rereading, and a source's new epoch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.core.operations.records import begin_epoch, read_biography, refresh_record
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import CallFailed, NotFound


def reread(world: World, key: str) -> dict[str, str]:
    return asyncio.run(refresh_record(world.context, world.entity, key))


def biography(world: World, key: str) -> dict[str, Any]:
    with world.engine.begin() as connection:
        return read_biography(connection, "item", key)


def test_biography_tells_events_versions_pushes_and_drift_in_order(world: World) -> None:
    world.put_record("a", name="first")
    world.run_full_sync()
    world.put_record("a", name="second")
    world.run_drain()
    external_id = world.read_record_row("a").external_id
    world.erp.store[external_id]["name"] = "spoilt"
    world.run_validation(full=True, repair="off")
    told = biography(world, "a")
    assert (told["record"]["revision"], told["record"]["group_key"]) == (world.read_record_row("a").revision, "A")
    assert [(part["part"], part["data"].get("name")) for part in told["parts"]] == [("shop", "second"), ("stock", None)]
    assert [event["action"] for event in told["events"]] == ["create", "create", "update", "update"]
    assert [push["outcome"] for push in told["pushes"]] == ["acknowledged", "acknowledged"]
    assert [(drift["kind"], drift["status"]) for drift in told["drift"]] == [("different", "found")]


def test_biography_of_an_event_whose_record_never_came(world: World) -> None:
    world.post_event("shop", "a", "update", 7, {"name": "n", "store": "A"})
    told = biography(world, "a")
    assert (told["record"], len(told["events"])) == (None, 1)


def test_biography_of_nothing(world: World) -> None:
    with pytest.raises(NotFound, match="nothing is known"):
        biography(world, "a")


def test_refresh_takes_back_a_version_that_was_too_large(world: World) -> None:
    world.put_record("a", name="right")
    world.post_event("shop", "a", "update", 2**50, {"name": "wrong", "store": "A"})
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "wrong"
    world.put_record("a", name="righter")
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "wrong"  # everything after it was superseded
    assert reread(world, "a") == {"shop": f"version {world.shop.version}", "stock": f"version {world.stock.version}"}
    world.put_record("a", name="live again")
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "live again"


def test_refresh_supersedes_what_waits_for_its_own_future(make_world: Callable[..., World]) -> None:
    timed = {"key": "key", "version": {"path": "v"}, "list": {"path": "/"}}
    world = make_world(entity={"parts": {"shop": {**timed, "group": "store"}, "stock": timed}})
    world.put_record("a")
    world.post_event("shop", "a", "update", int((time.time() + 86_400) * 1e6), {"name": "tomorrow", "store": "A"})
    world.run_drain()
    assert world.count_events_by_state() == {"done": 2, "waiting": 1}
    assert [row.kind for row in world.query("SELECT kind FROM sync.alerts WHERE resolved_at IS NULL")] == [
        "version_in_future"
    ]
    reread(world, "a")
    world.run_drain()
    assert world.count_events_by_state() == {"done": 2, "superseded": 1}
    assert world.read_conservation().balanced
    assert world.query("SELECT kind FROM sync.alerts WHERE resolved_at IS NULL") == []


def test_refresh_of_what_the_owner_does_not_have_makes_a_tombstone(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    world.shop.rows.clear()
    world.shop.reads = 0
    assert reread(world, "a")["shop"] == "absent"
    assert world.shop.reads == 2
    world.run_drain()
    assert (world.mirror_by_key(), world.read_record_row("a").deleted) == ({}, True)


def test_refresh_believes_a_404_only_when_it_is_said_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put_record("a")
    world.run_drain()
    first, whole = iter([None]), world.shop.read

    async def flickering(key: str) -> PartRead | None:
        return next(first, await whole(key))

    monkeypatch.setattr(world.shop, "read", flickering)
    reread(world, "a")
    assert not world.read_record_row("a").deleted


def test_refresh_of_another_parts_absence_empties_only_that_part(world: World) -> None:
    world.put_record("a", count=5)
    world.run_drain()
    world.stock.rows.clear()
    reread(world, "a")
    world.run_drain()
    assert world.mirror_by_key()["a"]["count"] is None


def test_refresh_brings_a_record_that_no_event_told_of(world: World) -> None:
    world.put_record("a", notify=False)
    reread(world, "a")
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


def test_refresh_of_a_key_that_nobody_knows(world: World) -> None:
    assert reread(world, "a") == {"shop": "absent", "stock": "absent"}
    assert world.query("SELECT * FROM sync.records") == []


def test_refresh_does_not_overwrite_a_change_that_comes_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put_record("a", name="old")
    world.run_drain()
    whole = world.shop.read

    async def overtaken(key: str) -> PartRead | None:
        found = await whole(key)
        world.put_record("a", name="new")
        await asyncio.to_thread(world.run_drain)
        return found

    monkeypatch.setattr(world.shop, "read", overtaken)
    reread(world, "a")
    monkeypatch.undo()
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "new"


def test_refresh_puts_a_dead_record_back(world: World) -> None:
    world.erp.before = lambda verb, key: answer(422)
    world.put_record("a")
    world.run_drain()
    assert (world.read_record_row("a").stopped, world.count_events_by_state()) == ("dead", {"dead": 2})
    world.erp.before = lambda verb, key: None
    reread(world, "a")
    world.run_drain()
    assert (world.mirror_by_key(), world.count_events_by_state()) == (world.expected_mirror(), {"done": 2})
    assert world.query("SELECT kind FROM sync.alerts WHERE resolved_at IS NULL") == []


def test_refresh_lets_a_held_record_go(make_world: Callable[..., World]) -> None:
    """A person has looked: there is no such record at the third party."""
    world = make_world(erp=FakeThirdParty(can_lookup=False))
    world.put_record("a")
    world.erp.before = lambda verb, key: lost_answer() if verb == "create" else None
    world.run_drain()
    world.advance_clock(60)
    world.run_drain()
    assert world.read_record_row("a").stopped == "on_hold"
    world.erp.before = lambda verb, key: None
    reread(world, "a")
    assert world.read_record_row("a").stopped is None


def test_refresh_tries_events_again_that_died_before_they_were_archived(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    nowhere = world.shop.put("b", {"name": "no store"})
    world.post_event("shop", "b", "create", nowhere.version, nowhere.data)
    world.run_drain()
    assert world.count_events_by_state() == {"done": 2, "dead": 1}
    world.put_record("b", notify=False)
    reread(world, "b")
    world.run_drain()
    assert world.count_events_by_state() == {"done": 3}


def test_refresh_changes_nothing_when_a_source_does_not_answer(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    before = tuple(world.read_record_row("a"))
    world.stock.down = True
    with pytest.raises(CallFailed):
        reread(world, "a")
    assert tuple(world.read_record_row("a")) == before


def test_new_epoch_lets_lower_versions_in(world: World) -> None:
    world.put_record("a", name="from before the crash")
    world.run_drain()
    assert begin_epoch(world.engine, "shop") == 1
    world.post_event("shop", "a", "update", 3, {"name": "restored", "store": "A"})
    world.shop.rows["a"] = PartRead("a", 3, {"name": "restored", "store": "A"}, "A")
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "restored"


def test_new_epoch_of_an_unknown_source(world: World) -> None:
    with pytest.raises(NotFound, match="no source system"):
        begin_epoch(world.engine, "nobody")

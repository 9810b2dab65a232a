"""Repair that a person starts, of what validation and the check of the sources found and left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from command_line import Command
from command_line import command as command
from fakes import FakeThirdParty, answer
from scenes import alter_copy, fill_sources, find_external_id, sync_and_wait_a_second
from world import World

from sync_orchestrator.core.operations.records import push_again
from sync_orchestrator.core.operations.repair import Repaired, repair
from sync_orchestrator.errors import NotFound

ASK = {"validation": {"confirm_after": 0, "repair": "ask"}, "source_check": {"confirm_after": 0, "repair": "ask"}}


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(entity=ASK)


def repaired(world: World, **options: Any) -> Repaired:
    world.advance_clock(1)
    return asyncio.run(repair(world.context, world.entity, "A", **options))


def verdict(result: Repaired) -> str:
    assert result.validation is not None
    return result.validation.verdict


def damage(world: World) -> None:
    """A record that differs, one that is missing, one that is there though it was deleted; found by a validation."""
    sync_and_wait_a_second(world, 10)
    alter_copy(world, "k001", name="altered")
    world.erp.store.pop(find_external_id(world, "k002"))
    left = dict(world.erp.store[find_external_id(world, "k003")])
    world.delete_record("k003")
    world.run_drain()
    world.erp.by_hand(left)
    world.advance_clock(1)
    found = world.run_validation(full=True)
    assert {(drift.key, drift.kind, drift.status) for drift in found.drift} == {
        ("k001", "different", "found"),
        ("k002", "missing", "found"),
        ("k003", "extra", "found"),
    }


def test_all_kinds_of_drift_are_repaired_and_the_group_is_in_sync(world: World) -> None:
    damage(world)
    result = repaired(world)
    assert (result.sent, result.overtaken, verdict(result)) == (3, 0, "in_sync")
    assert world.mirror_by_key() == world.expected_mirror()
    assert {row.status for row in world.query("SELECT status FROM sync.drift")} == {"repaired"}
    assert not world.query("SELECT FROM sync.alerts WHERE kind = 'drift' AND resolved_at IS NULL")


def test_one_record_alone_is_repaired(world: World) -> None:
    damage(world)
    result = repaired(world, key="k001")
    assert (result.sent, verdict(result), world.mirror_by_key()["k001"]["name"]) == (1, "drift", "n")
    assert "k002" not in world.mirror_by_key()


def test_what_changed_since_it_was_found_is_left_alone(world: World) -> None:
    damage(world)
    world.put_record("k001", name="newer")
    world.run_drain()
    result = repaired(world)
    assert (result.sent, result.overtaken) == (2, 1)
    assert (world.mirror_by_key(), verdict(result)) == (world.expected_mirror(), "in_sync")


def test_what_somebody_fixed_there_meanwhile_gets_no_duplicate(world: World) -> None:
    damage(world)
    world.erp.by_hand({"code": "k002", "store": "A", "name": "n", "count": 2})
    repaired(world)
    assert (world.mirror_by_key(), len(world.erp.of_key("k002"))) == (world.expected_mirror(), 1)


def test_what_repair_does_not_remove_is_persistent(world: World) -> None:
    damage(world)

    def alters(verb: str, key: str) -> None:
        if verb == "update":
            alter_copy(world, key, name="altered")

    world.erp.after = alters
    assert [repaired(world).sent for _ in range(3)] == [3, 0, 0]
    assert [row.status for row in world.query("SELECT status FROM sync.drift WHERE status <> 'repaired'")] == [
        "persistent"
    ]


def extras(world: World, count: int) -> None:
    fill_sources(world, 20)
    world.run_full_sync(patience=30)
    left = [dict(world.erp.store[find_external_id(world, f"k{number:03}")]) for number in range(count)]
    for number in range(count):
        world.delete_record(f"k{number:03}")
    world.run_drain()
    for fields in left:
        world.erp.by_hand(fields)
    world.advance_clock(1)
    assert len(world.run_validation(full=True).drift) == count


def test_more_extra_records_than_the_cap_need_leave(world: World) -> None:
    extras(world, 8)
    result = repaired(world)
    assert (result.sent, result.held) == (0, "8 extra records would be deleted, more than the cap of 5")
    assert repaired(world, key="k001").sent == 1  # who names it, means it
    assert (repaired(world, allow_deletions=8).sent, world.mirror_by_key()) == (7, world.expected_mirror())


def test_with_the_breaker_open_nothing_is_sent_and_nothing_is_forgotten(world: World) -> None:
    damage(world)
    world.query("UPDATE sync.systems SET open_since = now(), probe_at = now() + interval '1 hour' WHERE name = 'erp'")
    result = repaired(world)
    assert (result.sent, verdict(result)) == (0, "not_validated")
    world.query("UPDATE sync.systems SET open_since = NULL")
    assert verdict(repaired(world)) == "in_sync"


def test_lost_notifications_of_the_group_are_made_up_for(world: World, command: Command) -> None:
    sync_and_wait_a_second(world)
    world.put_record("new", notify=False)
    world.put_record("newer", notify=False)
    assert command("validate", "--sources").exit_code == 1
    assert repaired(world, key="k001").sources is None
    alone = repaired(world, key="new")
    assert alone.sources is not None
    assert (alone.sources.repaired, world.mirror_by_key().keys() & {"new", "newer"}) == (1, {"new"})
    repaired(world)
    assert world.mirror_by_key() == world.expected_mirror()


# From the shell -------------------------------------------------------------------------------------------------------


def test_repair_tells_by_exit_status(world: World, command: Command) -> None:
    assert command("repair", "item").stdout == "nothing was found that waits for a repair\n"
    damage(world)
    world.advance_clock(1)
    result = command("repair", "item", "--json")
    assert (result.exit_code, json.loads(result.stdout)["sent"], result.stderr) == (0, 3, "A: 3 sent to repair\n")
    alter_copy(world, "k005", name="altered")
    world.advance_clock(1)
    world.run_validation(full=True)
    world.advance_clock(1)
    world.erp.before = lambda verb, key: answer(422) if verb == "update" else None
    result = command("repair", "item", "--group", "A", "--key", "k005")
    assert (result.exit_code, "k005" in result.stdout or "not known to be repaired" in result.stdout) == (1, True)


@pytest.mark.parametrize("assigns_ids", [True, False])
def test_a_record_is_pushed_once_more(make_world: Callable[..., World], assigns_ids: bool) -> None:
    """What is there as it should be is not written again."""
    world = sync_and_wait_a_second(make_world(entity=ASK, erp=FakeThirdParty(assigns_ids=assigns_ids)))
    world.erp.calls.clear()

    def pushed() -> int:
        with world.engine.begin() as connection:
            assert push_again(connection, "item", "k001") == "A"
        world.run_drain()
        return world.erp.calls["create"] + world.erp.calls["update"]

    assert (pushed(), world.erp.calls["read"]) == (0, 1)
    world.erp.store.pop(world.read_record_row("k001").external_id)
    assert (pushed(), world.mirror_by_key()) == (1, world.expected_mirror())


def test_a_refused_record_is_pushed_once_more(world: World, command: Command) -> None:
    world.erp.before = lambda verb, key: answer(422)
    world.put_record("a")
    world.run_drain()
    result = command("records", "push", "item", "a")
    assert (result.exit_code, result.stdout) == (1, "not acknowledged yet: answer 422\n")
    world.erp.before = lambda verb, key: None
    assert command("records", "push", "item", "a").exit_code == 0
    assert (world.mirror_by_key(), world.count_events_by_state()) == (world.expected_mirror(), {"done": 2})
    assert not world.query("SELECT FROM sync.alerts WHERE resolved_at IS NULL")


def test_what_cannot_be_pushed_is_said_in_a_line(world: World, command: Command) -> None:
    row = world.shop.put("half", {"key": "half", "name": "n", "store": "A", "v": 0}, group="A")
    world.post_event("shop", "half", "create", row.version, row.data)
    world.run_drain()
    assert "item 'half' lacks a required part" in command("records", "push", "item", "half").stderr
    assert "item 'none' is not archived" in command("records", "push", "item", "none").stderr
    world.put_record("a")
    world.run_drain()
    world.query("UPDATE sync.records SET lease_token = 1, lease_until = now() + interval '1 hour' WHERE key = 'a'")
    with world.engine.begin() as connection, pytest.raises(NotFound, match="is being pushed now"):
        push_again(connection, "item", "a")

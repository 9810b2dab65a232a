"""How long a difference is open, and what else validation may take for one or miss (rules 12, 13, 15, 18)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeThirdParty, lost_answer
from scenes import alter_copy, fill_sources, find_external_id, sync_and_wait_a_second
from world import World

from sync_orchestrator.assets.mirror_check_report import summarize_validation
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.validation import validate as validating
from sync_orchestrator.core.validation.confirmation import confirm_suspects
from sync_orchestrator.core.validation.validate import GroupValidation, groups_due, validate


def persistent_alerts(world: World) -> int:
    told = world.query("SELECT cause FROM sync.alerts WHERE kind = 'drift'")
    return sum(1 for row in told if row.cause.endswith("persistent"))


# Until it is known to be gone ----------------------------------------------------------------------------------------


def test_a_repair_that_the_third_party_may_not_show_yet_is_not_called_good(make_world: Callable[..., World]) -> None:
    world = sync_and_wait_a_second(make_world(system={"search_lag": 30}))
    world.advance_clock(60)
    alter_copy(world, "k001", name="altered")
    world.run_validation(full=True)
    world.run_drain()
    world.advance_clock(5)
    assert world.run_validation(full=True).verdict == "drift"
    world.advance_clock(60)
    assert world.run_validation(full=True).verdict == "in_sync"


def test_drift_is_persistent_though_a_look_comes_within_the_search_lag(make_world: Callable[..., World]) -> None:
    world = sync_and_wait_a_second(make_world(system={"search_lag": 30}))
    for _ in range(3):
        world.advance_clock(60)
        alter_copy(world, "k001", count=1.5)
        result = world.run_validation(full=True)
        world.run_drain()
        world.advance_clock(5)
        world.run_validation(full=True)
    assert [drift.status for drift in result.drift] == ["persistent"]


def test_what_the_third_party_rounds_is_persistent_after_one_repair(world: World) -> None:
    """It is different at first, and stale once a repair has put it right in vain."""
    sync_and_wait_a_second(world)
    found = []
    for _ in range(3):
        world.advance_clock(1)
        alter_copy(world, "k001", count=1.5)
        [drift] = world.run_validation(full=True).drift
        found.append((drift.kind, drift.status))
        world.run_drain()
    assert found == [("different", "repairing"), ("stale", "persistent"), ("stale", "persistent")]
    assert persistent_alerts(world) == 1
    assert [row.kind for row in world.query("SELECT kind FROM sync.drift WHERE status <> 'repaired'")] == ["stale"]


def test_a_record_that_vanishes_after_each_repair_is_persistent_whatever_its_new_id(world: World) -> None:
    sync_and_wait_a_second(world)
    for _ in range(5):
        for record in world.erp.of_key("k001"):
            del world.erp.store[find_external_id(world, record["code"])]
        world.advance_clock(1)
        result = world.run_validation(full=True)
        world.run_drain()
    assert [(drift.kind, drift.status) for drift in result.drift] == [("missing", "persistent")]
    assert (world.erp.calls["create"], persistent_alerts(world)) == (7, 1)


def test_drift_of_a_hot_record_is_over_when_a_newer_revision_has_landed(make_world: Callable[..., World]) -> None:
    world = sync_and_wait_a_second(make_world(system={"search_lag": 30}))
    world.advance_clock(60)
    alter_copy(world, "k001", name="altered")
    world.run_validation(full=True)
    world.put_record("k001", name="newer")
    world.run_drain()
    world.advance_clock(5)
    assert world.run_validation(full=True).verdict == "in_sync"


def test_a_check_says_that_it_fails_for_what_was_found_earlier(world: World) -> None:
    sync_and_wait_a_second(world)
    alter_copy(world, "k001", name="altered")
    world.run_validation(full=True)
    world.advance_clock(1)
    assert summarize_validation(world.run_validation()) == (
        "drift, compared 5; 1 difference found earlier is not known to be repaired yet"
    )


def test_two_validations_at_once_do_not_call_each_others_repair_persistent(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync_and_wait_a_second(world)
    alter_copy(world, "k001", name="altered")
    confirm = confirm_suspects
    others: list[GroupValidation] = []

    async def another_ends_first(scope: Any, found: Any) -> Any:
        confirmed = await confirm(scope, found)
        monkeypatch.setattr(validating, "confirm_suspects", confirm)
        others.append(await validate(world.context, world.entity, "A", full=True))
        return confirmed

    monkeypatch.setattr(validating, "confirm_suspects", another_ends_first)
    result = world.run_validation(full=True)
    assert [drift.status for drift in others[0].drift] == ["repairing"]
    assert (result.drift, result.verdict, persistent_alerts(world)) == ([], "drift", 0)


def test_drift_that_repair_does_not_fix_is_looked_at_no_more_often_than_other_groups(world: World) -> None:
    sync_and_wait_a_second(world)
    for _ in range(3):
        alter_copy(world, "k001", count=1.5)
        world.advance_clock(1)
        result = world.run_validation(full=True)
        world.run_drain()
    assert result.persistent == 1

    def due() -> list[str]:
        with world.engine.begin() as connection:
            return groups_due(connection, "item", 900, 10)

    world.advance_clock(60)
    assert due() == []
    world.advance_clock(900)
    assert due() == ["A"]
    assert world.run_validation().compared == 5


def test_a_group_under_repair_is_looked_at_again_at_once(world: World) -> None:
    sync_and_wait_a_second(world)
    alter_copy(world, "k001", name="altered")
    world.run_validation(full=True)
    with world.engine.begin() as connection:
        assert groups_due(connection, "item", 900, 10) == ["A"]


# What is wrong and does not look so ----------------------------------------------------------------------------------


@pytest.mark.parametrize("looked_at", ["A", "B"])
def test_a_record_that_somebody_moved_at_the_third_party_is_brought_home(world: World, looked_at: str) -> None:
    sync_and_wait_a_second(world)
    fill_sources(world, 2, "B", "b")
    world.run_full_sync("B")
    alter_copy(world, "k001", store="B")
    world.advance_clock(1)
    verdicts = {group: world.run_validation(group, full=True) for group in "AB"}
    assert [(drift.key, drift.kind) for drift in verdicts["A"].drift] == [("k001", "different")]
    assert verdicts["B"].drift == []
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    world.advance_clock(1)
    assert world.run_validation(looked_at, full=True).verdict == "in_sync"


@pytest.mark.parametrize("can_lookup", [True, False])
def test_a_record_replaced_by_an_equal_one_under_another_id_gets_no_duplicate(
    make_world: Callable[..., World], can_lookup: bool
) -> None:
    world = sync_and_wait_a_second(make_world(erp=FakeThirdParty(can_lookup=can_lookup)))
    world.erp.by_hand(world.erp.store.pop(find_external_id(world, "k001")), "A")
    world.advance_clock(1)
    assert [(drift.key, drift.kind) for drift in world.run_validation(full=True).drift] == [("k001", "different")]
    world.run_drain()
    world.put_record("k001", name="newer")
    world.run_drain()
    assert (world.mirror_by_key(), len(world.erp.of_key("k001"))) == (world.expected_mirror(), 1)


# Deletions of unmanaged records --------------------------------------------------------------------------------------


def test_our_record_whose_key_and_group_somebody_changed_is_not_deleted_as_unmanaged(
    make_world: Callable[..., World],
) -> None:
    world = make_world(entity={"validation": {"confirm_after": 0, "unmanaged": "delete"}})
    sync_and_wait_a_second(world)
    fill_sources(world, 2, "B", "b")
    world.run_full_sync("B")
    kept = find_external_id(world, "k001")
    alter_copy(world, "k001", code="changed by hand", store="B")
    world.advance_clock(1)
    world.run_validation("B", full=True)
    assert kept in world.erp.store


def test_what_becomes_ours_while_the_answer_to_its_deletion_is_lost_is_there_in_the_end(
    make_world: Callable[..., World],
) -> None:
    world = make_world(
        erp=FakeThirdParty(assigns_ids=False), entity={"validation": {"confirm_after": 0, "unmanaged": "delete"}}
    )
    sync_and_wait_a_second(world, 3)
    world.erp.store["z"] = {"code": "z", "store": "A", "name": "by hand"}
    world.advance_clock(1)

    async def becomes_ours(verb: str, key: str) -> None:
        if verb == "delete" and "z" not in world.shop.rows:
            world.put_record("z")
            await drain(world.context, linger=0, most_seconds=20)

    world.erp.gate = becomes_ours
    world.erp.after = lambda verb, key: lost_answer() if verb == "delete" else None
    result = world.run_validation(full=True)
    assert result.reason is not None
    world.erp.gate = None
    world.erp.after = lambda verb, key: None
    for _ in range(2):
        world.advance_clock(61)
        world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


# The breaker ---------------------------------------------------------------------------------------------------------


def test_a_breaker_that_opens_while_suspects_are_looked_at_leaves_the_group_not_validated(world: World) -> None:
    sync_and_wait_a_second(world)
    alter_copy(world, "k001", name="altered")

    async def opens(verb: str, key: str) -> None:
        if verb == "read":
            world.query("UPDATE sync.systems SET open_since = now(), probe_at = now() WHERE name = 'erp'")

    world.erp.gate = opens
    result = world.run_validation(full=True)
    assert (result.verdict, result.drift, result.repaired) == ("not_validated", [], 0)

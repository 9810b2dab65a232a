"""Rules 20 to 22 from the field: absence is a claim, inferred tombstones lose, deletions are capped over time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from fakes import FakeSource
from scenes import check_group_sources, list_open_alerts, plan_full_sync, sync_new_records
from world import World

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.full_sync.plan import ungrouped_notes
from sync_orchestrator.core.intake.polling import poll_due
from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.core.ports import PartRead, Ungrouped
from sync_orchestrator.errors import CannotPlan, DeletionsHeld

# Rule 20: absence ----------


@pytest.mark.parametrize("seconds", [8, 25, 60, 800])
def test_case_r10_the_notification_is_faster_than_the_replica(world: World, seconds: float) -> None:
    """A thin notification of a record that the source shows later: it arrives, and spends no attempts until then."""
    sync_new_records(world)
    world.post_event("shop", "new", "create", 5_000_000)
    count = world.stock.put("new", {"key": "new", "count": 1})
    world.post_event("stock", "new", "create", count.version, count.data)
    for _ in range(int(seconds // 20) + 1):
        world.run_drain()
        world.advance_clock(20)
    assert [row.attempts for row in world.query("SELECT attempts FROM sync.events WHERE source = 'shop'")] == [0]
    world.shop.put("new", {"key": "new", "name": "there", "store": "A"}, group="A", version=5_000_000)
    world.advance_clock(300)
    world.run_drain()
    assert world.mirror_by_key()["new"]["name"] == "there"
    assert set(world.count_events_by_state()) == {"done"}


def test_case_r10_a_known_record_that_the_source_lacks_for_a_while_is_not_deleted(world: World) -> None:
    """Forty at once, as when a replica is rebuilt."""
    sync_new_records(world, 40)
    rows = dict(world.shop.rows)
    for key, row in rows.items():
        world.post_event("shop", key, "update", row.version)
    world.shop.rows.clear()
    for _ in range(12):
        world.run_drain()
        world.advance_clock(300)
    assert len(world.mirror_by_key()) == 40
    assert world.erp.calls["delete"] == 0
    assert list_open_alerts(world) == [("source_behind", "item: its source has no such record")]
    world.shop.rows |= rows
    world.advance_clock(300)
    world.run_drain()
    assert set(world.count_events_by_state()) == {"done"}
    in_transaction(world.engine, partial(watch_backlog, settings=world.config.alerts))
    assert list_open_alerts(world) == [], "the alert ends by itself"


def test_case_r10_an_older_version_for_three_minutes_is_waited_for(world: World) -> None:
    sync_new_records(world)
    row = world.shop.rows["k001"]
    world.post_event("shop", "k001", "update", row.version + 10_000)
    for _ in range(18):
        world.run_drain()
        world.advance_clock(10)
    assert world.count_events_by_state() == {"waiting": 1}
    assert list_open_alerts(world) == []
    world.shop.put("k001", {**row.data, "name": "new"}, group="A", version=row.version + 10_000)
    world.advance_clock(300)
    world.run_drain()
    assert (world.mirror_by_key()["k001"]["name"], world.count_events_by_state()) == ("new", {"done": 1})


def test_rule_20_what_lasts_is_alerted_and_ends_dead_after_a_day(world: World) -> None:
    sync_new_records(world)
    world.post_event("shop", "ghost", "create", 5_000_000)
    world.run_drain()
    world.advance_clock(901)
    world.run_drain()
    assert list_open_alerts(world) == [("source_behind", "item: its source has no such record")]
    assert world.count_events_by_state() == {"waiting": 1}
    world.advance_clock(86_400)
    world.run_drain()
    assert world.count_events_by_state() == {"dead": 1}


def test_rule_20_a_delete_event_deletes_at_once(world: World) -> None:
    sync_new_records(world)
    row = world.shop.rows.pop("k001")
    world.post_event("shop", "k001", "delete", row.version)  # a tie: the source is read, and confirms it
    world.run_drain()
    assert "k001" not in world.mirror_by_key()
    assert world.count_events_by_state() == {"done": 1}


def test_rule_20_an_update_that_is_older_than_a_deletion_does_not_wait_for_its_source(world: World) -> None:
    sync_new_records(world)
    version = world.shop.remove("k001")
    world.post_event("shop", "k001", "delete", version)
    world.run_drain()
    world.post_event("shop", "k001", "update", version - 1)
    world.run_drain()
    assert world.count_events_by_state() == {"done": 1, "superseded": 1}


def test_rule_20_a_full_sync_that_does_not_list_it_ends_what_waits_for_a_record_that_never_was(world: World) -> None:
    sync_new_records(world)
    world.post_event("shop", "ghost", "update", 5, group="A")
    world.run_drain()
    world.run_full_sync()
    world.run_drain()
    assert world.count_events_by_state() == {"waiting": 1}, "a replica may lag behind the listing, too"
    world.advance_clock(1000)
    world.run_drain()
    assert world.count_events_by_state() == {"superseded": 1}


def test_rule_37_a_source_that_is_down_costs_no_attempts(world: World) -> None:
    sync_new_records(world)
    world.shop.down = True
    world.put_record("k001", name="new", notify=False)
    world.post_event("shop", "k001", "update", world.shop.rows["k001"].version)
    for _ in range(20):
        world.run_drain()
        world.advance_clock(60)
    assert world.count_events_by_state() == {"waiting": 1}
    assert world.query("SELECT max(attempts) AS n FROM sync.events")[0].n == 0
    assert list_open_alerts(world) == [("source_behind", "item: 'shop' cannot be read")]
    world.shop.down = False
    world.advance_clock(300)
    world.run_drain()
    assert world.mirror_by_key()["k001"]["name"] == "new"


def test_rule_37_whatever_a_source_raises_is_one_events_trouble(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sync_new_records(world)

    async def odd(key: str) -> PartRead | None:
        raise NotImplementedError("can't parse timestamptz with DateStyle")

    monkeypatch.setattr(world.stock, "read", odd)
    world.post_event("stock", "k001", "update", 5_000_000)
    world.put_record("k002", name="healthy", notify=False)
    world.post_event("shop", "k002", "update", world.shop.rows["k002"].version, world.shop.rows["k002"].data)
    world.run_drain()
    assert world.mirror_by_key()["k002"]["name"] == "healthy"
    assert world.count_events_by_state() == {"done": 1, "waiting": 1}
    assert "NotImplementedError" in world.query("SELECT error FROM sync.events")[0].error


# Rule 21: inferred tombstones
# -------------------------------------------------------------------------------------------


def test_rule_21_a_row_at_the_source_and_a_tombstone_here_is_a_lost_notification(world: World) -> None:
    """Whatever the versions: the table was empty for a while, and is back with the same rows."""
    sync_new_records(world, 20)
    row = world.shop.rows.pop("k003")
    world.run_full_sync()
    assert "k003" not in world.mirror_by_key()
    world.shop.rows["k003"] = row
    result = check_group_sources(world)
    assert [(lost.key, lost.kind) for lost in result.lost if lost.part == "shop"] == [("k003", "missing")]
    world.run_drain()
    assert "k003" in world.mirror_by_key()


def test_rule_21_an_event_at_the_version_of_an_inferred_tombstone_has_the_source_read(world: World) -> None:
    sync_new_records(world, 20)
    row = world.shop.rows.pop("k003")
    world.run_full_sync()
    world.shop.rows["k003"] = row
    world.post_event("shop", "k003", "create", row.version, row.data)
    world.run_drain()
    assert "k003" in world.mirror_by_key()


def test_rule_21_a_tombstone_that_a_delete_event_asked_for_is_not_revived_by_late_events(world: World) -> None:
    sync_new_records(world, 20)
    row = world.shop.rows["k003"]
    world.delete_record("k003")
    world.run_drain()
    world.post_event("shop", "k003", "update", row.version, {**row.data, "name": "late"})
    world.run_drain()
    assert "k003" not in world.mirror_by_key()


# Rule 22: caps
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def stores(world: World) -> World:
    """Ten stores of four products."""
    for number in range(10):
        sync_new_records(world, 4, f"S{number}", f"s{number}-")
    return world


def held_full_syncs(world: World, **options: Any) -> int:
    held = 0
    for number in range(10):
        try:
            world.run_full_sync(f"S{number}", **options)
        except DeletionsHeld:
            held += 1
    return held


def test_case_r19_a_table_that_is_emptied_for_a_while_deletes_nothing(stores: World) -> None:
    rows = dict(stores.shop.rows)
    stores.shop.rows.clear()
    assert held_full_syncs(stores) == 10
    results = [check_group_sources(stores, f"S{number}") for number in range(10)]
    assert {result.repaired for result in results} == {0}
    stores.run_drain()
    assert (stores.erp.calls["delete"], len(stores.mirror_by_key())) == (0, 40)
    assert {kind for kind, _ in list_open_alerts(stores)} == {"delete_cap"}
    assert "deletions are held: 'shop' listed nothing" in plan_full_sync(stores, "S0").notes[0]
    stores.shop.rows |= rows
    assert held_full_syncs(stores) == 0
    assert stores.mirror_by_key() == stores.expected_mirror()
    assert stores.erp.calls["create"] == 40, "the ids are the same"
    for number in range(10):
        check_group_sources(stores, f"S{number}")
    assert list_open_alerts(stores) == []


def test_case_r19_one_store_that_lists_nothing_is_held_until_an_operator_allows_it(stores: World) -> None:
    for key in [key for key, row in stores.shop.rows.items() if row.group == "S3"]:
        stores.shop.rows.pop(key)
    assert held_full_syncs(stores) == 1
    assert len(stores.mirror_by_key()) == 40
    stores.run_full_sync("S3", allow_deletions=4)
    assert len(stores.mirror_by_key()) == 36


def test_rule_22_small_deletions_in_many_groups_add_up_to_the_cap_of_the_entity(stores: World) -> None:
    """One of four vanishes in each store: each is below its group's cap, ten of forty are not below the entity's."""
    for number in range(10):
        stores.shop.rows.pop(f"s{number}-000")
    assert held_full_syncs(stores) == 5
    assert len(stores.mirror_by_key()) == 35
    stores.advance_clock(86_401)
    assert held_full_syncs(stores) == 0
    assert len(stores.mirror_by_key()) == 30


def test_rule_22_a_flag_counts_like_an_absence(world: World) -> None:
    """The rows are listed, and called deleted."""
    sync_new_records(world, 20)
    flags = {key: PartRead(key, row.version + 1, row.data, "A", deleted=True) for key, row in world.shop.rows.items()}
    world.shop.rows |= flags
    assert plan_full_sync(world).counts == {"over_cap": 20, "unchanged": 20}
    with pytest.raises(DeletionsHeld, match="20 of 20 records would be deleted, more than the cap of 5"):
        world.run_full_sync()
    check_group_sources(world)
    for key, row in flags.items():
        world.post_event("shop", key, "update", row.version)
    world.run_drain()
    assert len(world.mirror_by_key()) == 20
    assert ("delete_cap", "item A: flagged") in list_open_alerts(world)
    world.run_full_sync(allow_deletions=20)
    world.run_drain()
    assert world.mirror_by_key() == {}
    world.advance_clock(400)
    world.run_drain()
    assert set(world.count_events_by_state()) <= {"done", "superseded"}


def test_rule_22_few_flags_are_believed(world: World) -> None:
    sync_new_records(world, 20)
    row = world.shop.rows["k003"]
    world.shop.rows["k003"] = PartRead("k003", row.version + 1, row.data, "A", deleted=True)
    world.post_event("shop", "k003", "update", row.version + 1)
    world.run_drain()
    assert sorted(set(world.shop.rows) - set(world.mirror_by_key())) == ["k003"]
    assert [tuple(row) for row in world.query("SELECT reason, n FROM sync.inferred_deletions")] == [("flagged", 1)]


def test_rule_22_polled_deletions_are_capped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    sync_new_records(world, 20)
    monkeypatch.setattr(world.shop, "can_poll", True)
    asyncio.run(poll_due(world.context))
    world.shop.rows |= {
        key: PartRead(key, row.version + 100, row.data, "A", deleted=True) for key, row in world.shop.rows.items()
    }
    world.advance_clock(60)
    asyncio.run(poll_due(world.context))
    world.run_drain()
    assert len(world.mirror_by_key()) == 20
    assert world.count_events_by_state() == {"waiting": 20}


def test_rule_22_a_part_of_another_source_that_is_emptied_is_held_as_well(world: World) -> None:
    sync_new_records(world, 4)
    world.stock.rows.clear()
    with pytest.raises(DeletionsHeld, match="'stock' listed nothing"):
        world.run_full_sync()
    assert {record["count"] for record in world.mirror_by_key().values()} == {0, 1, 2, 3}


# Rule 39: what no listing shows
# -------------------------------------------------------------------------------------------


class WithoutGroup(FakeSource):
    """Some rows name no business group."""

    async def ungrouped(self) -> Ungrouped | None:
        some = sorted(key for key, row in self.rows.items() if not row.group)
        return Ungrouped(len(some), tuple(some[:10]))

    async def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        async for rows, position in super().pages(group, after):
            yield [row for row in rows if row.group], position


@pytest.fixture
def ungrouped(make_world: Callable[..., World]) -> World:
    made = make_world()
    made.close()
    return sync_new_records(World(made.engine, made.config, WithoutGroup(), made.stock, made.erp), 6)


def test_case_a1_rows_without_a_business_group_are_counted_and_reported(ungrouped: World) -> None:
    ungrouped.shop.put("nowhere", {"key": "nowhere", "name": "x"}, group=None)
    assert len(asyncio.run(ungrouped_notes(ungrouped.entity))) == 1
    ungrouped.run_full_sync()
    assert list_open_alerts(ungrouped) == [("invalid_source_records", "item: without a business group")]
    assert check_group_sources(ungrouped).ungrouped == 1


def test_case_a1_a_record_whose_group_becomes_null_is_not_gone_and_its_change_is_found(ungrouped: World) -> None:
    row = ungrouped.shop.rows["k002"]
    ungrouped.shop.put("k002", {**row.data, "name": "changed", "store": None}, group=None)
    result = check_group_sources(ungrouped)
    assert [(lost.key, lost.kind) for lost in result.lost] == [("k002", "newer")]
    ungrouped.run_drain()
    assert ungrouped.mirror_by_key()["k002"]["name"] == "changed"


def test_rule_20_a_plan_says_that_a_source_cannot_be_read(world: World) -> None:
    sync_new_records(world)
    world.shop.down = True
    with pytest.raises(CannotPlan):
        plan_full_sync(world)

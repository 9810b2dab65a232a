"""Rules 30 to 32 from the field: equal versions, requests to look, older versions that are the truth."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fakes import FakeSource, two_part_config
from scenes import check_group_sources, list_open_alerts, plan_full_sync, sync_new_records
from sqlalchemy import Engine
from world import World

from sync_orchestrator.config import Config
from sync_orchestrator.core.intake.polling import poll_due
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.operations import records
from sync_orchestrator.core.version_guard import Action
from sync_orchestrator.event_formats.custom_events import change_event_of

DAY = 5_000_000
"""A version that all changes of a day have."""


def product(name: str, **more: Any) -> dict[str, Any]:
    return {"key": "p", "name": name, "store": "A", "v": DAY, **more}


def set_at_source(world: World, name: str, version: int = DAY, key: str = "p") -> dict[str, Any]:
    """Changes the owner's row without a notification; its version stays the same unless given."""
    data = product(name) | {"key": key, "v": version}
    world.shop.put(key, data, group="A", version=version)
    world.shop.rows[key] = world.shop.rows[key]
    if key not in world.stock.rows:
        world.stock.put(key, {"key": key, "count": 1})
    return data


def name_there(world: World, key: str = "p") -> str:
    return str(world.mirror_by_key()[key]["name"])


@pytest.fixture
def polled(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A source of days, with a full sync behind it."""
    monkeypatch.setattr(world.shop, "can_poll", True)
    set_at_source(world, "A")
    world.run_full_sync(patience=30)
    assert name_there(world) == "A"
    poll(world)
    return world


def poll(world: World) -> None:
    world.advance_clock(31)
    asyncio.run(poll_due(world.context))
    world.run_drain()


# Rule 30: equal versions --------------------------------------------------------------------------------------------


def test_case_r04_versions_that_are_days_are_polled(polled: World) -> None:
    """A poll is a read: each state arrives with the next poll, also one that was there before."""
    for name in ("B", "A", "C", "A", "B"):
        set_at_source(polled, name)
        poll(polled)
        assert name_there(polled) == name
    assert set(polled.count_events_by_state()) == {"done"}


def test_case_r04_a_poll_before_any_full_sync_brings_each_state(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world.shop, "can_poll", True)
    for name in ("A", "B", "A", "C"):
        set_at_source(world, name)
        poll(world)
        assert name_there(world) == name


def test_a_poll_that_shows_what_is_on_its_way_records_it_once(polled: World) -> None:
    set_at_source(polled, "B")
    for _ in range(3):
        polled.advance_clock(31)
        asyncio.run(poll_due(polled.context))
    assert polled.read_conservation().received == 1


@pytest.mark.parametrize("names", [("B", "C"), ("B", "A", "C"), ("B", "C", "B")])
def test_case_r04_events_with_data_at_one_version_have_the_source_read_however_often(
    world: World, names: tuple[str, ...]
) -> None:
    """5, 4, 3 within one second of a source whose clock shows seconds."""
    set_at_source(world, "A")
    world.run_full_sync(patience=30)
    for name in names:
        world.post_event("shop", "p", "update", DAY, set_at_source(world, name))
        world.run_drain()
        assert name_there(world) == name
    assert set(world.count_events_by_state()) == {"done"}


CHANGES: list[tuple[str, list[tuple[Action, str | None]], str | None]] = [
    ("p1", [("update", "A"), ("update", "B")], "B"),
    ("p2", [("update", "B"), ("update", "A")], "A"),
    ("p3", [("delete", None), ("create", "New")], "New"),
    ("p4", [("create", "x"), ("delete", None)], None),
]


@pytest.mark.parametrize("batches", ["one by one", "one batch", "one batch, in two drains"])
def test_case_r21_changes_with_one_time_stamp_end_as_they_were_told(engine: Engine, batches: str) -> None:
    """A source that captures changes and cannot be read: its order of telling is all there is."""
    shop = FakeSource()
    shop.can_read = False
    world = World(engine, two_part_config(entity={"on_missing": "upsert"}), shop=shop)
    for key in ("p1", "p2", "p3"):
        world.post_event("shop", key, "create", DAY - 1, product("old"), group="A")
    for key, _, _ in CHANGES:
        world.post_event("stock", key, "create", 1, {"count": 1})
    world.run_drain()
    events = [
        ChangeEvent(
            "shop",
            f"{key} {number}",
            "item",
            key,
            action,
            DAY,
            None if name is None else product(name),
            "A",
        )
        for key, changes, _ in CHANGES
        for number, (action, name) in enumerate(changes)
    ]
    for some in [[event] for event in events] if batches == "one by one" else [events]:
        record_events(engine, some)
        world.run_drain()
    assert {key: record["name"] for key, record in world.mirror_by_key().items()} == {
        key: name for key, _, name in CHANGES if name is not None
    }
    assert set(world.count_events_by_state()) <= {"done", "superseded"}


# Rule 31: requests to look ------------------------------------------------------------------------------------------


def test_rule_31_a_thin_notification_is_a_new_one_once_its_source_was_read(world: World) -> None:
    """The source's ids are made of the record and the day."""
    for name in ("A", "B", "A"):
        set_at_source(world, name)
        world.post_event("shop", "p", "create", DAY, event_id="p 2026-05-01")
        world.run_drain()
        assert name_there(world) == name
    assert world.read_conservation().received == 3


def test_rule_31_a_thin_notification_that_nobody_has_looked_for_is_a_duplicate(world: World) -> None:
    set_at_source(world, "A")
    for _ in range(3):
        world.post_event("shop", "p", "create", DAY, event_id="p 2026-05-01")
    assert (world.read_conservation().received, world.read_conservation().duplicates) == (1, 2)


def own_shape() -> Config:
    return two_part_config(
        shop={"events": {"key": "body.key", "action": "'updated'", "version": "body.v", "data": "body"}}
    )


def told_by_content(world: World, config: Config, *names: str) -> None:
    record_events(world.engine, [change_event_of(product(name), {}, "shop", config) for name in names])


def test_rule_31_ids_made_of_content_end_with_what_they_stand_for(engine: Engine) -> None:
    """A, B, A of one version, without ids of their own, in one batch and one after the other."""
    shop = FakeSource()
    shop.can_read = False
    config = own_shape()
    world = World(engine, config, shop=shop)
    world.post_event("shop", "p", "create", DAY - 1, product("old"))
    world.post_event("stock", "p", "create", 1, {"count": 1})
    told_by_content(world, config, "A", "B", "A")
    world.run_drain()
    assert name_there(world) == "A"
    for name in ("B", "A"):
        told_by_content(world, config, name)
        told_by_content(world, config, name)  # delivered twice
    world.run_drain()
    assert name_there(world) == "A"
    assert world.read_conservation().duplicates == 2
    told_by_content(world, config, "B")
    world.run_drain()
    assert name_there(world) == "B"


# Rule 32: older versions that a read shows --------------------------------------------------------------------------


@pytest.fixture
def older(world: World) -> World:
    """The later commit carries the earlier time: the archive has B, the source shows C at an older version."""
    set_at_source(world, "B", 12_000_010)
    world.run_full_sync(patience=30)
    set_at_source(world, "C", 12_000_000)
    return world


def test_case_r11_a_thin_event_of_the_later_commit_waits_until_no_replica_can_lag(older: World) -> None:
    older.post_event("shop", "p", "update", 12_000_000)
    older.run_drain()
    assert (name_there(older), older.count_events_by_state()) == ("B", {"waiting": 1})
    for _ in range(20):
        older.advance_clock(60)
        older.run_drain()
    assert (name_there(older), older.count_events_by_state()) == ("C", {"done": 1})


def test_case_r11_an_older_version_is_never_in_sync(older: World) -> None:
    """Said by the check of the sources, the full sync and the plan; taken over once it is no lag."""
    assert plan_full_sync(older).counts["behind"] == 1
    older.run_full_sync()
    assert ("source_behind", "item A") in list_open_alerts(older)
    result = check_group_sources(older)
    assert (result.verdict, [(lost.key, lost.kind) for lost in result.lost]) == ("lost", [("p", "older")])
    assert name_there(older) == "B"
    older.advance_clock(1000)
    assert plan_full_sync(older).counts == {"update": 1}
    older.run_full_sync(patience=30)
    assert name_there(older) == "C"
    older.run_drain()
    check_group_sources(older)
    older.advance_clock(400)
    older.run_drain()
    assert check_group_sources(older).verdict == "in_sync"
    assert list_open_alerts(older) == []


def test_rule_32_the_check_of_the_sources_has_it_taken_over_by_itself(older: World) -> None:
    check_group_sources(older)
    for _ in range(20):
        older.run_drain()
        older.advance_clock(60)
    assert name_there(older) == "C"
    assert check_group_sources(older).verdict == "in_sync"


def test_rule_32_a_source_that_can_only_be_listed_is_taken_over_as_well(engine: Engine) -> None:
    shop = FakeSource()
    shop.can_read = False
    world = World(engine, two_part_config(), shop=shop)
    set_at_source(world, "B", 12_000_010)
    world.run_full_sync(patience=30)
    set_at_source(world, "C", 12_000_000)
    check_group_sources(world)
    for _ in range(20):
        world.run_drain()
        world.advance_clock(60)
    assert name_there(world) == "C"


def test_rule_32_a_replica_that_lags_takes_nothing_back(world: World) -> None:
    """The event is ahead of what a full sync reads."""
    set_at_source(world, "A", 1000)
    world.run_full_sync(patience=30)
    world.advance_clock(2000)
    world.post_event("shop", "p", "update", 2000, product("B", v=2000))
    world.run_drain()
    world.run_full_sync()
    check_group_sources(world)
    world.run_drain()
    assert name_there(world) == "B"
    set_at_source(world, "B", 2000)
    world.advance_clock(301)
    world.run_drain()
    assert (name_there(world), check_group_sources(world).verdict) == ("B", "in_sync")


def test_rule_32_an_operators_refresh_takes_it_over_at_once(older: World) -> None:
    older.post_event("shop", "p", "update", 12_000_000)
    older.run_drain()
    asyncio.run(records.refresh_record(older.context, older.entity, "p"))
    older.run_drain()
    assert name_there(older) == "C"
    assert set(older.count_events_by_state()) <= {"done", "superseded"}


# Rule 39: contents --------------------------------------------------------------------------------------------------


class KeysOnly(FakeSource):
    """A listing of keys costs less than one of whole rows."""

    can_list_keys = True

    async def keys(self, group: str):  # type: ignore[no-untyped-def]
        async for rows, _ in self.pages(group):
            yield [type(row)(row.key, row.version, {}, row.group, row.deleted) for row in rows]


@pytest.mark.parametrize("source", [FakeSource, KeysOnly])
def test_rule_39_the_check_of_the_sources_compares_contents_as_well(engine: Engine, source: type[FakeSource]) -> None:
    """A row that was corrected by hand keeps its modification time."""
    world = sync_new_records(World(engine, two_part_config(), shop=source()), 6)
    world.advance_clock(1)
    row = world.shop.rows["k003"]
    world.shop.rows["k003"] = type(row)("k003", row.version, {**row.data, "name": "by hand"}, "A")
    result = check_group_sources(world)
    assert [(lost.key, lost.kind) for lost in result.lost] == [("k003", "different")]
    assert result.contents >= 6
    world.run_drain()
    assert name_there(world, "k003") == "by hand"
    assert check_group_sources(world).verdict == "in_sync"


def test_rule_39_where_only_keys_are_listed_contents_are_compared_in_turn(engine: Engine) -> None:
    config = two_part_config(entity={"source_check": {"contents": 3, "confirm_after": 0, "repair": "off"}})
    world = sync_new_records(World(engine, config, shop=KeysOnly()), 8)
    world.advance_clock(1)
    for key in ("k000", "k004", "k007"):
        row = world.shop.rows[key]
        world.shop.rows[key] = type(row)(key, row.version, {**row.data, "name": "by hand"}, "A")
    found = [[lost.key for lost in check_group_sources(world).lost if lost.part == "shop"] for _ in range(4)]
    assert found == [["k000"], ["k004"], ["k007"], ["k000"]]


# A2: findings that died ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("discarded", [True, False])
def test_case_a2_a_finding_that_died_or_was_discarded_is_found_and_made_up_for_again(
    world: World, discarded: bool
) -> None:
    from fakes import answer

    from sync_orchestrator.core.operations.events import discard_events

    sync_new_records(world, 6)
    world.put_record("k001", name="silent", notify=False)
    world.put_record("k009", notify=False)
    world.run_full_sync("B")
    check_group_sources(world)
    world.shop.refusal = answer(400)
    world.run_drain()
    assert world.count_events_by_state()["dead"] == 2
    if discarded:
        discard_events(
            world.engine,
            [row.seq for row in world.query("SELECT seq FROM sync.events WHERE state = 'dead'")],
            "not now",
        )
    world.shop.refusal = None
    world.advance_clock(86_400)
    result = check_group_sources(world)
    assert (result.on_the_way, result.repaired > 0) == (0, True)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    world.advance_clock(86_400)
    assert check_group_sources(world).verdict == "in_sync"
    assert "dead" not in world.count_events_by_state()
    assert list_open_alerts(world) in ([], [("dead", "item: answer 400")])

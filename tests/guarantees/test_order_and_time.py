"""Versions that tie, run ahead or lag behind, ids used twice, mappings that change (rules 1, 3, 6, 7, 8 and 9)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeSource, answer, two_part_config
from sqlalchemy import Engine
from world import World

from sync_orchestrator.config import AlertSettings
from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.core.operations.records import begin_epoch
from sync_orchestrator.core.version_guard import Action

TIMED = {"key": "key", "version": {"path": "v"}, "list": {"path": "/"}}
HOUR = 3600.0


def named(name: str) -> dict[str, Any]:
    return {"name": name, "store": "A"}


def open_alerts(world: World) -> list[str]:
    return [row.kind for row in world.query("SELECT kind FROM sync.alerts WHERE resolved_at IS NULL ORDER BY kind")]


@pytest.fixture
def timed(make_world: Callable[..., World]) -> World:
    """A world whose owner counts its versions in microseconds since 1970."""
    return make_world(
        entity={
            "parts": {
                "shop": {**TIMED, "group": "store"},
                "stock": {**TIMED, "version": {"path": "v", "kind": "number"}},
            }
        }
    )


def in_future(world: World, seconds: float) -> int:
    return int((time.time() + world.clock_offset_seconds + seconds) * 1e6)


# Ids -----------------------------------------------------------------------------------------------------------------


def test_the_same_id_with_other_content_is_kept_and_flagged(world: World) -> None:
    world.put_record("a", notify=False)
    world.post_event("shop", "a", "create", 1, named("first"), event_id="e")
    world.run_drain()
    world.post_event("shop", "a", "update", 2, named("second"), event_id="e")
    world.post_event("shop", "a", "update", 2, named("second"), event_id="e")
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "second"
    assert [row.conflicting for row in world.query("SELECT conflicting FROM sync.event_history ORDER BY seq")] == [
        False,
        True,
    ]
    assert (
        world.read_conservation().received,
        world.read_conservation().duplicates,
        world.read_conservation().balanced,
    ) == (2, 1, True)


def test_equal_version_and_content_is_a_duplicate_that_is_done_only_when_applied_reaches_it(world: World) -> None:
    world.erp.before = lambda verb, key: answer(503)
    world.put_record("a")
    world.run_drain()
    row, revision = world.shop.rows["a"], world.read_record_row("a").revision
    world.post_event("shop", "a", "update", row.version, row.data)
    world.run_drain()
    assert (
        world.read_record_row("a").revision,
        "done" in world.count_events_by_state(),
        world.read_conservation().received,
    ) == (revision, False, 3)
    world.erp.before = lambda verb, key: None
    world.advance_clock(11)
    world.run_drain()
    assert (world.count_events_by_state(), world.erp.calls["create"]) == ({"done": 3}, 2)


# Ties ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("right", "wrong"), ("wrong", "right")])
@pytest.mark.parametrize("together", [True, False])
def test_a_tie_is_settled_by_reading_the_source(world: World, names: Sequence[str], together: bool) -> None:
    world.put_record("a", notify=False)
    world.shop.put("a", {"key": "a", **named("right")}, group="A", version=world.shop.version)
    for name in names:
        world.post_event("shop", "a", "create", world.shop.version, named(name))
        if not together:
            world.run_drain()
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "right"
    assert set(world.count_events_by_state()) <= {"done", "superseded"}


def test_rule_30_a_tie_is_settled_by_arrival_where_the_source_cannot_be_read(engine: Engine) -> None:
    shop = FakeSource()
    shop.can_read = False
    world = World(engine, two_part_config(), shop=shop)
    for key, names in (("ab", ("a", "b")), ("ba", ("b", "a"))):
        world.post_event("stock", key, "create", 1, {"count": 1})
        for name in names:
            world.post_event("shop", key, "create", 5, named(name))
            world.run_drain()
    orders: dict[str, tuple[Action, ...]] = {"ud": ("create", "delete"), "du": ("delete", "create")}
    for key, actions in orders.items():
        for action in actions:
            world.post_event("shop", key, action, 5, named("n") if action == "create" else None)
            world.run_drain()
    mirrored = world.mirror_by_key()
    assert sorted(mirrored) == ["ab", "ba"]
    assert (mirrored["ab"]["name"], mirrored["ba"]["name"]) == ("b", "a")
    assert (world.read_record_row("ud").deleted, world.read_record_row("du").deleted) == (True, False)


@pytest.mark.parametrize("read_first", [True, False])
def test_a_part_read_from_the_source_outranks_events_of_the_same_version(world: World, read_first: bool) -> None:
    world.put_record("a", name="as read", notify=False)

    def told() -> None:
        world.shop.down = True
        for name in ("told", "told otherwise"):
            world.post_event("shop", "a", "create", world.shop.version, named(name))
            world.run_drain()
        world.shop.down = False

    for step in (world.run_full_sync, told) if read_first else (told, world.run_full_sync):
        step()
    world.advance_clock(11)
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "as read"
    assert set(world.count_events_by_state()) <= {"done", "superseded"}


# The future ----------------------------------------------------------------------------------------------------------


def test_a_version_too_far_ahead_waits_for_its_time_and_alerts_while_others_go_on(timed: World) -> None:
    timed.put_record("a")
    timed.run_drain()
    version = in_future(timed, 3 * HOUR)
    timed.post_event("shop", "a", "update", version, named("from the future"))
    timed.run_drain()
    assert (timed.count_events_by_state(), open_alerts(timed)) == ({"done": 2, "waiting": 1}, ["version_in_future"])
    timed.put_record("a", name="of now")
    timed.run_drain()
    assert timed.mirror_by_key()["a"]["name"] == "of now"
    assert timed.query("SELECT attempts FROM sync.events")[0].attempts == 0
    timed.advance_clock(2 * HOUR + 10)
    timed.run_drain()
    assert timed.mirror_by_key()["a"]["name"] == "from the future"
    with timed.engine.begin() as connection:
        watch_backlog(connection, AlertSettings())
    assert open_alerts(timed) == []


def test_a_version_a_little_ahead_is_taken(timed: World) -> None:
    timed.put_record("a", notify=False)
    timed.post_event("shop", "a", "create", in_future(timed, 0.9 * HOUR), named("clocks differ"))
    timed.run_drain()
    assert (timed.mirror_by_key()["a"]["name"], open_alerts(timed)) == ("clocks differ", [])


@pytest.mark.parametrize(
    ("way", "told"), [("full sync", "invalid_source_records"), ("thin event", "version_in_future")]
)
def test_a_version_too_far_ahead_that_is_read_does_not_supersede_what_follows_unnoticed(
    timed: World, way: str, told: str
) -> None:
    timed.put_record("a", notify=False)
    right = timed.shop.rows["a"]
    timed.shop.rows["a"] = replace(right, version=in_future(timed, 1000 * HOUR), data={**right.data, "name": "ahead"})
    if way == "full sync":
        timed.run_full_sync()
    else:
        timed.post_event("shop", "a", "create", right.version)
        timed.run_drain()
    timed.shop.rows["a"] = replace(right, version=right.version + 1, data={**right.data, "name": "fixed"})
    assert open_alerts(timed) == [told]
    timed.post_event("shop", "a", "create", right.version + 1, timed.shop.rows["a"].data)
    timed.run_drain()
    assert timed.mirror_by_key()["a"]["name"] == "fixed"
    timed.run_full_sync()
    with timed.engine.begin() as connection:
        watch_backlog(connection, AlertSettings())
    assert open_alerts(timed) == []
    assert timed.count_events_by_state() == ({"done": 1} if way == "full sync" else {"done": 1, "superseded": 1})


def test_a_source_whose_version_was_fixed_without_a_word_is_asked_again_within_the_hour(timed: World) -> None:
    timed.put_record("a", notify=False)
    right = timed.shop.rows["a"]
    timed.shop.rows["a"] = replace(right, version=in_future(timed, 1000 * HOUR))
    timed.post_event("shop", "a", "create", right.version)
    timed.run_drain()
    timed.shop.rows["a"] = right
    timed.advance_clock(HOUR + 10)
    timed.run_drain()
    assert (sorted(timed.mirror_by_key()), timed.count_events_by_state()) == (["a"], {"done": 1})


def test_what_came_before_a_new_epoch_loses_to_what_comes_in_it(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    world.post_event("shop", "a", "update", world.shop.version + 9, named("lost with the restored backup"))
    begin_epoch(world.engine, "shop")
    world.post_event("shop", "a", "update", 3, named("restored"))
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "restored"


# Sources that lag ----------------------------------------------------------------------------------------------------


def test_a_read_that_is_older_than_its_event_is_tried_again(world: World) -> None:
    world.put_record("a", name="old")
    world.run_drain()
    replica = world.shop.rows["a"]
    world.put_record("a", name="new", notify=False)
    newest = world.shop.rows["a"]
    world.post_event("shop", "a", "update", newest.version)
    world.shop.rows["a"] = replica
    world.run_drain()
    assert (world.mirror_by_key()["a"]["name"], world.count_events_by_state()) == ("old", {"done": 2, "waiting": 1})
    world.shop.rows["a"] = newest
    world.advance_clock(11)
    world.run_drain()
    assert (world.mirror_by_key()["a"]["name"], world.count_events_by_state()) == ("new", {"done": 3})


@pytest.mark.parametrize("source", ["shop", "stock"])
def test_rule_20_a_source_that_has_no_such_record_contradicts_what_was_announced(world: World, source: str) -> None:
    """Absence never becomes a deletion by itself, however often the source is asked."""
    system = {"shop": world.shop, "stock": world.stock}[source]
    for key in ("gone", "flickers"):
        world.put_record(key, count=3)
    world.run_drain()
    here = dict(system.rows)
    system.rows.clear()
    for key, row in here.items():
        world.post_event(source, key, "update", row.version)
    world.run_drain()
    assert sorted(world.mirror_by_key()) == ["flickers", "gone"]
    assert (world.count_events_by_state()["waiting"], world.mirror_by_key()["gone"]["count"]) == (2, 3)
    world.run_drain()
    assert world.count_events_by_state()["waiting"] == 2
    system.rows["flickers"] = here["flickers"]
    for _ in range(10):
        world.advance_clock(301)
        world.run_drain()
    assert world.count_events_by_state() == {"done": 5, "waiting": 1}
    assert {key: record["count"] for key, record in world.mirror_by_key().items()} == {"flickers": 3, "gone": 3}
    alerts = world.query("SELECT kind, cause, n, examples FROM sync.alerts WHERE resolved_at IS NULL")
    assert [(row.kind, row.cause, row.n, row.examples) for row in alerts] == [
        ("source_behind", "item: its source has no such record", 1, ["gone"])
    ]
    system.rows["gone"] = here["gone"]
    world.advance_clock(301)
    world.run_drain()
    assert set(world.count_events_by_state()) <= {"done"}


# The mapping ---------------------------------------------------------------------------------------------------------


def remapped(world: World, make_world: Callable[..., World], **fields: str) -> World:
    """The same world, started again with another mapping."""
    world.close()
    mapping = {"code": "key", "store": "group", "name": "shop.name", "count": "stock.count", **fields}
    again = make_world(erp=world.erp, entity={"mapping": mapping})
    again.advance_clock(world.clock_offset_seconds)
    again.erp.calls.clear()
    return again


def test_a_changed_mapping_pushes_the_records_whose_payload_it_changes(
    world: World, make_world: Callable[..., World]
) -> None:
    for number in range(4):
        world.put_record(f"k{number}", count=number)
    world.run_drain()
    again = remapped(world, make_world, count="stock.count > `1` && `2` || stock.count")
    assert [row.key for row in again.query("SELECT key FROM sync.records WHERE out_of_sync")] == ["k3"]
    again.run_drain()
    assert again.mirror_by_key()["k3"]["count"] == 2
    assert again.erp.calls == {"read": 1, "update": 1}  # looked at first
    assert remapped(again, make_world, count="stock.count > `1` && `2` || stock.count").run_drain().calls == 0


def test_a_refused_payload_is_not_pushed_again_until_it_changes(world: World, make_world: Callable[..., World]) -> None:
    world.erp.before = lambda verb, key: answer(422)
    world.put_record("a", name="bad")
    world.run_drain()
    assert world.erp.calls == {"create": 1}
    world.post_event("shop", "a", "update", world.shop.version + 1, {**named("bad"), "not mapped": 1})
    world.run_drain()
    assert (world.erp.calls, world.count_events_by_state()) == ({"create": 1}, {"dead": 3})
    world.run_full_sync()
    assert (world.erp.calls, world.count_events_by_state()) == ({"create": 2}, {"dead": 3})
    same = remapped(world, make_world, name="join('', [shop.name, ''])")
    same.run_drain()
    assert (same.erp.calls, same.count_events_by_state()) == ({}, {"dead": 3})
    same.erp.before = lambda verb, key: None
    fixed = remapped(same, make_world, name="join(' ', [shop.name, 'fixed'])")
    fixed.run_drain()
    assert (fixed.mirror_by_key()["a"]["name"], fixed.count_events_by_state()) == ("bad fixed", {"done": 3})


def test_an_owners_change_that_names_no_group_is_completed_from_its_source(world: World) -> None:
    """Whatever order they come in: the group it had before is not taken for the one that it has."""
    for key, order in (("a", (2, 3)), ("b", (3, 2))):
        world.put_record(key)
        world.run_drain()
        first = world.shop.rows[key]
        world.put_record(key, name="moved", group="B", notify=False)
        for step in order:
            data = {"name": "moved", "store": "B"} if step == 2 else {"name": "moved"}
            version = world.shop.rows[key].version if step == 3 else first.version
            world.post_event("shop", key, "update", version, data)
            world.run_drain()
        world.advance_clock(100)
        world.run_drain()
    assert {world.read_record_row(key).group_key for key in "ab"} == {"B"}
    assert world.mirror_by_key() == world.expected_mirror()

"""Versions that tie, run ahead or lag behind, ids used twice, mappings that change (rules 1, 3, 6, 7, 8 and 9).

Not here: the guard as a table (``test_version_guard.py``), what a person rereads (``test_record_operations.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeSource, answer, two_part_config
from sqlalchemy import Engine
from world import World

from sync_orchestrator.config import Alerts
from sync_orchestrator.core.operations.maintenance import watch
from sync_orchestrator.core.operations.records import step_epoch

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
    return int((time.time() + world.offset + seconds) * 1e6)


# Ids -----------------------------------------------------------------------------------------------------------------


def test_the_same_id_with_other_content_is_kept_and_flagged(world: World) -> None:
    world.put("a", tell=False)
    world.tell("shop", "a", "create", 1, named("first"), event_id="e")
    world.drain()
    world.tell("shop", "a", "update", 2, named("second"), event_id="e")
    world.tell("shop", "a", "update", 2, named("second"), event_id="e")
    world.drain()
    assert world.mirrored()["a"]["name"] == "second"
    assert [row.conflicting for row in world.query("SELECT conflicting FROM sync.event_history ORDER BY seq")] == [
        False,
        True,
    ]
    assert (world.totals().received, world.totals().duplicates, world.totals().balanced) == (2, 1, True)


def test_equal_version_and_content_is_a_duplicate_that_is_done_only_when_applied_reaches_it(world: World) -> None:
    world.erp.before = lambda verb, key: answer(503)
    world.put("a")
    world.drain()
    row, revision = world.shop.rows["a"], world.row("a").revision
    world.tell("shop", "a", "update", row.version, row.data)
    world.drain()
    assert (world.row("a").revision, "done" in world.states(), world.totals().received) == (revision, False, 3)
    world.erp.before = lambda verb, key: None
    world.later(11)
    world.drain()
    assert (world.states(), world.erp.calls["create"]) == ({"done": 3}, 2)


# Ties ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("right", "wrong"), ("wrong", "right")])
@pytest.mark.parametrize("together", [True, False])
def test_a_tie_is_settled_by_reading_the_source(world: World, names: Sequence[str], together: bool) -> None:
    world.put("a", tell=False)
    world.shop.put("a", {"key": "a", **named("right")}, group="A", version=world.shop.version)
    for name in names:
        world.tell("shop", "a", "create", world.shop.version, named(name))
        if not together:
            world.drain()
    world.drain()
    assert world.mirrored()["a"]["name"] == "right"
    assert set(world.states()) <= {"done", "superseded"}


def test_rule_30_a_tie_is_settled_by_arrival_where_the_source_cannot_be_read(engine: Engine) -> None:
    shop = FakeSource()
    shop.can_read = False
    world = World(engine, two_part_config(), shop=shop)
    for key, names in (("ab", ("a", "b")), ("ba", ("b", "a"))):
        world.tell("stock", key, "create", 1, {"count": 1})
        for name in names:
            world.tell("shop", key, "create", 5, named(name))
            world.drain()
    for key, actions in (("ud", ("create", "delete")), ("du", ("delete", "create"))):
        for action in actions:
            world.tell("shop", key, action, 5, named("n") if action == "create" else None)
            world.drain()
    mirrored = world.mirrored()
    assert sorted(mirrored) == ["ab", "ba"]
    assert (mirrored["ab"]["name"], mirrored["ba"]["name"]) == ("b", "a")
    assert (world.row("ud").deleted, world.row("du").deleted) == (True, False)


@pytest.mark.parametrize("read_first", [True, False])
def test_a_part_read_from_the_source_outranks_events_of_the_same_version(world: World, read_first: bool) -> None:
    world.put("a", name="as read", tell=False)

    def told() -> None:
        world.shop.down = True
        for name in ("told", "told otherwise"):
            world.tell("shop", "a", "create", world.shop.version, named(name))
            world.drain()
        world.shop.down = False

    for step in (world.full_sync, told) if read_first else (told, world.full_sync):
        step()
    world.later(11)
    world.drain()
    assert world.mirrored()["a"]["name"] == "as read"
    assert set(world.states()) <= {"done", "superseded"}


# The future ----------------------------------------------------------------------------------------------------------


def test_a_version_too_far_ahead_waits_for_its_time_and_alerts_while_others_go_on(timed: World) -> None:
    timed.put("a")
    timed.drain()
    version = in_future(timed, 3 * HOUR)
    timed.tell("shop", "a", "update", version, named("from the future"))
    timed.drain()
    assert (timed.states(), open_alerts(timed)) == ({"done": 2, "waiting": 1}, ["ahead"])
    timed.put("a", name="of now")
    timed.drain()
    assert timed.mirrored()["a"]["name"] == "of now"
    assert timed.query("SELECT attempts FROM sync.events")[0].attempts == 0
    timed.later(2 * HOUR + 10)
    timed.drain()
    assert timed.mirrored()["a"]["name"] == "from the future"
    with timed.engine.begin() as connection:
        watch(connection, Alerts())
    assert open_alerts(timed) == []


def test_a_version_a_little_ahead_is_taken(timed: World) -> None:
    timed.put("a", tell=False)
    timed.tell("shop", "a", "create", in_future(timed, 0.9 * HOUR), named("clocks differ"))
    timed.drain()
    assert (timed.mirrored()["a"]["name"], open_alerts(timed)) == ("clocks differ", [])


@pytest.mark.parametrize(("way", "told"), [("full sync", "unusable"), ("thin event", "ahead")])
def test_a_version_too_far_ahead_that_is_read_does_not_supersede_what_follows_unnoticed(
    timed: World, way: str, told: str
) -> None:
    timed.put("a", tell=False)
    right = timed.shop.rows["a"]
    timed.shop.rows["a"] = replace(right, version=in_future(timed, 1000 * HOUR), data={**right.data, "name": "ahead"})
    if way == "full sync":
        timed.full_sync()
    else:
        timed.tell("shop", "a", "create", right.version)
        timed.drain()
    timed.shop.rows["a"] = replace(right, version=right.version + 1, data={**right.data, "name": "mended"})
    assert open_alerts(timed) == [told]
    timed.tell("shop", "a", "create", right.version + 1, timed.shop.rows["a"].data)
    timed.drain()
    assert timed.mirrored()["a"]["name"] == "mended"
    timed.full_sync()
    with timed.engine.begin() as connection:
        watch(connection, Alerts())
    assert open_alerts(timed) == []
    assert timed.states() == ({"done": 1} if way == "full sync" else {"done": 1, "superseded": 1})


def test_a_source_whose_version_was_mended_without_a_word_is_asked_again_within_the_hour(timed: World) -> None:
    timed.put("a", tell=False)
    right = timed.shop.rows["a"]
    timed.shop.rows["a"] = replace(right, version=in_future(timed, 1000 * HOUR))
    timed.tell("shop", "a", "create", right.version)
    timed.drain()
    timed.shop.rows["a"] = right
    timed.later(HOUR + 10)
    timed.drain()
    assert (sorted(timed.mirrored()), timed.states()) == (["a"], {"done": 1})


def test_what_came_before_a_new_epoch_loses_to_what_comes_in_it(world: World) -> None:
    world.put("a")
    world.drain()
    world.tell("shop", "a", "update", world.shop.version + 9, named("lost with the restored backup"))
    step_epoch(world.engine, "shop")
    world.tell("shop", "a", "update", 3, named("restored"))
    world.drain()
    assert world.mirrored()["a"]["name"] == "restored"


# Sources that lag ----------------------------------------------------------------------------------------------------


def test_a_read_that_is_older_than_its_event_is_tried_again(world: World) -> None:
    world.put("a", name="old")
    world.drain()
    replica = world.shop.rows["a"]
    world.put("a", name="new", tell=False)
    newest = world.shop.rows["a"]
    world.tell("shop", "a", "update", newest.version)
    world.shop.rows["a"] = replica
    world.drain()
    assert (world.mirrored()["a"]["name"], world.states()) == ("old", {"done": 2, "waiting": 1})
    world.shop.rows["a"] = newest
    world.later(11)
    world.drain()
    assert (world.mirrored()["a"]["name"], world.states()) == ("new", {"done": 3})


@pytest.mark.parametrize("source", ["shop", "stock"])
def test_rule_20_a_source_that_has_no_such_record_contradicts_what_was_announced(world: World, source: str) -> None:
    """Absence never becomes a deletion by itself, however often the source is asked."""
    system = {"shop": world.shop, "stock": world.stock}[source]
    for key in ("gone", "flickers"):
        world.put(key, count=3)
    world.drain()
    here = dict(system.rows)
    system.rows.clear()
    for key, row in here.items():
        world.tell(source, key, "update", row.version)
    world.drain()
    assert sorted(world.mirrored()) == ["flickers", "gone"]
    assert (world.states()["waiting"], world.mirrored()["gone"]["count"]) == (2, 3)
    world.drain()
    assert world.states()["waiting"] == 2
    system.rows["flickers"] = here["flickers"]
    for _ in range(10):
        world.later(301)
        world.drain()
    assert world.states() == {"done": 5, "waiting": 1}
    assert {key: record["count"] for key, record in world.mirrored().items()} == {"flickers": 3, "gone": 3}
    alerts = world.query("SELECT kind, cause, n, examples FROM sync.alerts WHERE resolved_at IS NULL")
    assert [(row.kind, row.cause, row.n, row.examples) for row in alerts] == [
        ("source_behind", "item: its source has no such record", 1, ["gone"])
    ]
    system.rows["gone"] = here["gone"]
    world.later(301)
    world.drain()
    assert set(world.states()) <= {"done"}


# The mapping ---------------------------------------------------------------------------------------------------------


def remapped(world: World, make_world: Callable[..., World], **fields: str) -> World:
    """The same world, started again with another mapping."""
    world.close()
    mapping = {"code": "key", "store": "group", "name": "shop.name", "count": "stock.count", **fields}
    again = make_world(erp=world.erp, entity={"mapping": mapping})
    again.later(world.offset)
    again.erp.calls.clear()
    return again


def test_a_changed_mapping_pushes_the_records_whose_payload_it_changes(
    world: World, make_world: Callable[..., World]
) -> None:
    for number in range(4):
        world.put(f"k{number}", count=number)
    world.drain()
    again = remapped(world, make_world, count="stock.count > `1` && `2` || stock.count")
    assert [row.key for row in again.query("SELECT key FROM sync.records WHERE out_of_step")] == ["k3"]
    again.drain()
    assert again.mirrored()["k3"]["count"] == 2
    assert again.erp.calls == {"read": 1, "update": 1}  # looked at first
    assert remapped(again, make_world, count="stock.count > `1` && `2` || stock.count").drain().calls == 0


def test_a_refused_payload_is_not_pushed_again_until_it_changes(world: World, make_world: Callable[..., World]) -> None:
    world.erp.before = lambda verb, key: answer(422)
    world.put("a", name="bad")
    world.drain()
    assert world.erp.calls == {"create": 1}
    world.tell("shop", "a", "update", world.shop.version + 1, {**named("bad"), "not mapped": 1})
    world.drain()
    assert (world.erp.calls, world.states()) == ({"create": 1}, {"dead": 3})
    world.full_sync()
    assert (world.erp.calls, world.states()) == ({"create": 2}, {"dead": 3})
    same = remapped(world, make_world, name="join('', [shop.name, ''])")
    same.drain()
    assert (same.erp.calls, same.states()) == ({}, {"dead": 3})
    same.erp.before = lambda verb, key: None
    mended = remapped(same, make_world, name="join(' ', [shop.name, 'mended'])")
    mended.drain()
    assert (mended.mirrored()["a"]["name"], mended.states()) == ("bad mended", {"done": 3})


def test_an_owners_change_that_names_no_group_is_completed_from_its_source(world: World) -> None:
    """Whatever order they come in: the group it had before is not taken for the one that it has."""
    for key, order in (("a", (2, 3)), ("b", (3, 2))):
        world.put(key)
        world.drain()
        first = world.shop.rows[key]
        world.put(key, name="moved", group="B", tell=False)
        for step in order:
            data = {"name": "moved", "store": "B"} if step == 2 else {"name": "moved"}
            version = world.shop.rows[key].version if step == 3 else first.version
            world.tell("shop", key, "update", version, data)
            world.drain()
        world.later(100)
        world.drain()
    assert {world.row(key).group_key for key in "ab"} == {"B"}
    assert world.mirrored() == world.truth()

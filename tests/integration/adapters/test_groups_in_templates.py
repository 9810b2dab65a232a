"""The business group belongs to what is compared, also where templates send it and no mapped field holds it."""

from __future__ import annotations

from typing import Any

import pytest
from catalog_server import CARRIERS, TARGET, Catalog, catalog_world
from http_server import Server
from record_store import HttpWorld
from sqlalchemy import Engine

from sync_orchestrator.core.full_sync.plan import plan_group
from sync_orchestrator.core.operations.repair import repair
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.core.values.places import GROUP_FIELD, ID_FIELD

SHOWN = {**CARRIERS["body"], "group": "store"}
HIDDEN = CARRIERS["body"]
either_way = pytest.mark.parametrize("target", [SHOWN, HIDDEN], ids=["shown", "not shown"])


def make_in_sync(world: HttpWorld, keys: str = "abc", **more: Any) -> None:
    """Records in A, with both groups synced."""
    for key in keys:
        world.put_record(key, **more)
    world.run_drain()
    for group in "AB":
        world.run_full_sync(group)
    world.advance_clock(1)


def looks(world: HttpWorld) -> dict[str, tuple[str, int, int | None, str | None]]:
    """What a full validation says of each group."""
    found = {group: world.run_validation(group, full=True) for group in "AB"}
    return {group: (each.verdict, each.expected, each.counted, each.reason) for group, each in found.items()}


# Pushes.


@pytest.mark.parametrize(
    ("carrier", "group_is"),
    [*((carrier, "not shown") for carrier in CARRIERS), ("body", "shown"), ("linked call", "shown")],
)
def test_an_event_that_changes_only_the_group_moves_the_record(
    engine: Engine, server: Server, carrier: str, group_is: str
) -> None:
    catalog = Catalog(server)
    world = catalog_world(engine, server, {**CARRIERS[carrier], **({"group": "store"} if group_is == "shown" else {})})
    make_in_sync(world)
    assert {item["store"] for item in catalog.items.values()} == {"A"}
    world.put_record("b", group="B")
    world.run_drain()
    assert (catalog.of("b")["store"], world.read_record_row("b").applied_group, len(catalog.items)) == ("B", "B", 3)
    world.advance_clock(1)
    assert looks(world) == {"A": ("in_sync", 2, 2, None), "B": ("in_sync", 1, 1, None)}
    world.close()


def test_an_event_that_changes_only_the_group_makes_no_call_where_no_write_sends_it(
    engine: Engine, server: Server
) -> None:
    catalog = Catalog(server)
    world = catalog_world(engine, server, {**TARGET, "list": {"path": "/items"}, "filter_check": {"off": True}})
    make_in_sync(world)
    before = dict(catalog.calls)
    world.put_record("b", group="B")
    world.run_drain()
    assert dict(catalog.calls) == before
    assert world.count_events_by_state()["done"] == 8
    world.close()


@either_way
def test_a_group_that_a_lost_call_may_have_changed_is_written_again(
    engine: Engine, server: Server, target: dict[str, Any]
) -> None:
    """The fields are the same in both groups, so only the group tells that the late call took effect."""
    catalog = Catalog(server)
    world = catalog_world(engine, server, target)
    make_in_sync(world)
    catalog.lost = [504]
    world.put_record("b", group="B")
    world.run_drain()
    assert catalog.of("b")["store"] == "B"
    world.put_record("b", group="A")
    world.run_until_settled()
    assert (catalog.of("b")["store"], world.read_record_row("b").outcome_unknown_until) == ("A", None)
    world.close()


def test_what_was_refused_in_one_group_is_sent_in_another(engine: Engine, server: Server) -> None:
    catalog = Catalog(server)
    catalog.refused = {"A"}
    world = catalog_world(engine, server, SHOWN)
    world.put_record("a")
    world.run_drain()
    assert (world.count_events_by_state(), catalog.items) == ({"dead": 2}, {})
    world.put_record("a", group="B")
    world.run_drain()
    assert catalog.of("a")["store"] == "B"
    world.put_record("a", group="A")
    world.run_drain()
    refused = catalog.calls["PUT items"]
    world.put_record("a", group="A")
    world.run_drain()
    assert catalog.calls["PUT items"] == refused, "the same payload in the same group is not sent again"
    world.close()


@either_way
def test_a_plan_shows_an_update_for_a_record_that_changed_its_group_alone(
    engine: Engine, server: Server, target: dict[str, Any]
) -> None:
    Catalog(server)
    world = catalog_world(engine, server, target)
    make_in_sync(world)
    world.put_record("b", group="B", notify=False)
    plan = perform(world.context, plan_group(world.context, world.entity, "B"))
    assert plan.counts == {"update": 1}
    assert plan.samples[0].fields == [{"field": GROUP_FIELD, "ours": "B", "theirs": "A"}]
    world.run_full_sync("B")
    assert perform(world.context, plan_group(world.context, world.entity, "B")).counts == {"unchanged": 1}
    world.close()


# Validation.


@pytest.mark.parametrize(
    ("other", "count"), [("B", None), (None, {"path": "/count", "params": {"store": "{{ group }}"}, "number": "n"})]
)
@either_way
def test_a_record_that_is_in_another_group_there_or_in_none_is_found_and_repaired(
    engine: Engine, server: Server, target: dict[str, Any], other: str | None, count: Any
) -> None:
    catalog = Catalog(server)
    world = catalog_world(engine, server, {**target, "count": count})
    make_in_sync(world)
    catalog.of("b")["store"] = other
    found = world.run_validation("A", full=count is None)
    [drift] = found.drift
    assert (found.verdict, drift.key, drift.kind, drift.status) == ("drift", "b", "different", "repairing")
    shown = other if target is SHOWN else None
    assert drift.sample == [{"field": GROUP_FIELD, "ours": "A", "theirs": shown}]
    [alert] = world.query("SELECT examples FROM sync.alerts WHERE kind = 'drift'")
    assert alert.examples == [f"b (different: business group {shown or 'none'} there, A expected)"]
    world.run_drain()
    assert catalog.of("b")["store"] == "A"
    world.advance_clock(1)
    assert looks(world) == {"A": ("in_sync", 3, 3, None), "B": ("in_sync", 0, 0, None)}
    world.close()


@either_way
def test_a_record_that_was_moved_here_and_not_there_is_drift_in_its_old_group(
    engine: Engine, server: Server, target: dict[str, Any]
) -> None:
    """As after an update whose move the third party passed over."""
    catalog = Catalog(server)
    world = catalog_world(engine, server, target)
    make_in_sync(world)
    world.put_record("b", group="B")
    world.run_drain()
    catalog.of("b")["store"] = "A"
    world.advance_clock(1)
    found = world.run_validation("A")
    assert (found.verdict, found.expected, found.counted) == ("drift", 2, 3)
    assert [(drift.key, drift.kind, drift.sample) for drift in found.drift] == [
        ("b", "different", [{"field": GROUP_FIELD, "ours": "B", "theirs": "A"}])
    ]
    world.run_drain()
    assert catalog.of("b")["store"] == "B"
    world.advance_clock(1)
    assert looks(world) == {"A": ("in_sync", 2, 2, None), "B": ("in_sync", 1, 1, None)}
    assert world.query("SELECT count(*) FROM sync.drift WHERE status <> 'repaired'")[0][0] == 0
    world.close()


@either_way
def test_a_repair_that_an_operator_starts_moves_the_record(
    engine: Engine, server: Server, target: dict[str, Any]
) -> None:
    catalog = Catalog(server)
    world = catalog_world(engine, server, target, validation={"confirm_after": 0, "repair": "ask"})
    make_in_sync(world)
    catalog.of("b")["store"] = "B"
    assert [drift.status for drift in world.run_validation("A", full=True).drift] == ["found"]
    repaired = perform(world.context, repair(world.context, world.entity, "A"))
    assert (repaired.sent, catalog.of("b")["store"]) == (1, "A")
    world.close()


def test_a_listing_that_shows_all_groups_and_names_none_is_no_drift_but_says_why_the_count_differs(
    engine: Engine, server: Server
) -> None:
    Catalog(server)
    world = catalog_world(engine, server, {**HIDDEN, "list": {"path": "/items"}, "filter_check": {"off": True}})
    make_in_sync(world)
    world.put_record("b", group="B")
    world.run_drain()
    world.advance_clock(1)
    assert looks(world) == {
        "A": ("in_sync", 2, 3, "3 counted, 2 expected: 1 of other business groups"),
        "B": ("in_sync", 1, 3, "3 counted, 1 expected: 2 of other business groups"),
    }
    world.close()


def test_a_listing_that_shows_all_groups_and_names_them_is_compared_by_what_it_names(
    engine: Engine, server: Server
) -> None:
    catalog = Catalog(server)
    world = catalog_world(engine, server, {**SHOWN, "list": {"path": "/items"}, "filter_check": {"off": True}})
    make_in_sync(world)
    world.put_record("b", group="B")
    world.run_drain()
    world.advance_clock(1)
    before = catalog.calls["GET items"]
    assert {group: look[0] for group, look in looks(world).items()} == {"A": "in_sync", "B": "in_sync"}
    assert catalog.calls["GET items"] - before == 2, "one listing a group, and no record is looked at again"
    catalog.of("c")["store"] = None
    world.advance_clock(1)
    assert [drift.key for drift in world.run_validation("A", full=True).drift] == ["c"]
    world.close()


def test_a_count_that_does_not_fit_has_a_reason(engine: Engine, server: Server) -> None:
    catalog = Catalog(server)
    world = catalog_world(
        engine, server, {**SHOWN, "count": {"path": "/count", "params": {"store": "{{ group }}"}, "number": "n"}}
    )
    make_in_sync(world)
    catalog.by_hand(code="z", name="theirs", store="A")
    found = world.run_validation("A")
    assert (found.verdict, found.unmanaged, found.reason) == ("in_sync", 1, "4 counted, 3 expected: 1 unmanaged")
    world.advance_clock(1)
    again = world.run_validation("A")
    assert (again.compared, again.reason) == (None, "4 counted, 3 expected: 1 unmanaged")
    world.close()


def test_a_count_that_contradicts_the_listing_has_a_reason(engine: Engine, server: Server) -> None:
    Catalog(server)
    world = catalog_world(
        engine, server, {**SHOWN, "count": {"path": "/count", "number": "n"}, "filter_check": {"off": True}}
    )
    make_in_sync(world)
    world.put_record("b", group="B")
    world.run_drain()
    world.advance_clock(1)
    assert world.run_validation("A", full=True).reason is None
    found = world.run_validation("A")
    assert (found.verdict, found.expected, found.counted, found.reason) == (
        "in_sync",
        2,
        2,
        "'count' says 3, and the listing shows 2",
    )
    world.close()


def test_a_sample_shows_the_id_under_which_a_copy_was_made(engine: Engine, server: Server) -> None:
    catalog = Catalog(server)
    world = catalog_world(engine, server, SHOWN)
    make_in_sync(world)
    copy = catalog.by_hand(**{**catalog.of("b"), "id": "x9"})
    catalog.items["x9"] = catalog.items.pop(copy)
    [drift] = world.run_validation("A", full=True).drift
    assert (drift.kind, drift.sample) == (
        "duplicate",
        [{"field": ID_FIELD, "ours": world.read_record_row("b").external_id, "theirs": "x9"}],
    )
    world.close()


# References in the items of bulk calls.


# Conformance.

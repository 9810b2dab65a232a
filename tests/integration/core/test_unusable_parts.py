"""Parts that a source has and that cannot be used: they stop nobody else, delete nothing, and are told of."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from world import World

from sync_orchestrator.core.operations.records import refresh_record
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.storable import find_storage_problem
from sync_orchestrator.errors import CallFailed

UNUSABLE = [{"name": "a\x00b"}, {"name": "\ud800"}, {"na\x00me": 1}, {"deep": [{"x": ["\udfff"]}]}]


def spoil(world: World, key: str, data: dict[str, object]) -> None:
    row = world.shop.rows[key]
    world.shop.rows[key] = replace(row, data={**row.data, **data}, version=row.version + 1)


@pytest.mark.parametrize("value", [*UNUSABLE, "\x00", float("nan")])
def test_a_value_that_postgres_would_refuse(value: object) -> None:
    assert find_storage_problem(value) is not None


@pytest.mark.parametrize("value", [{"name": "\\u0000"}, "\u0001 \u2028", {"a": [1.5, None, True, "é 😀"]}, "\\\\u0000"])
def test_a_value_that_only_looks_like_it(world: World, value: object) -> None:
    assert find_storage_problem(value) is None
    world.put_record("a", notify=False)
    spoil(world, "a", {"more": value})
    world.run_full_sync()
    assert world.query("SELECT data->'more' AS more FROM sync.parts WHERE part = 'shop'")[0].more == value


@pytest.mark.parametrize("data", UNUSABLE)
def test_in_a_full_sync_the_others_go_on_and_nothing_is_deleted(world: World, data: dict[str, object]) -> None:
    for number in range(5):
        world.put_record(f"k{number}", notify=False)
    world.run_full_sync()
    for number in range(5):
        world.put_record(f"k{number}", name="next", notify=False)
    good = world.shop.rows["k3"]
    spoil(world, "k3", data)
    world.run_full_sync()
    assert {key: row["name"] for key, row in world.mirror_by_key().items()} == {
        "k0": "next",
        "k1": "next",
        "k2": "next",
        "k3": "n",
        "k4": "next",
    }
    told = world.query("SELECT kind, examples FROM sync.alerts WHERE resolved_at IS NULL")
    assert [row.kind for row in told] == ["invalid_source_records"]
    assert "k3" in told[0].examples[0]
    world.shop.rows["k3"] = replace(good, version=good.version + 2)
    world.run_full_sync()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.query("SELECT FROM sync.alerts WHERE resolved_at IS NULL") == []


def test_a_key_that_cannot_be_stored_stops_nobody(world: World) -> None:
    world.put_record("a", notify=False)
    world.shop.rows["b\x00"] = PartRead("b\x00", 5, {"name": "n"}, "A")
    world.run_full_sync()
    assert sorted(world.mirror_by_key()) == ["a"]
    assert world.query("SELECT examples FROM sync.alerts")[0].examples == ["'b\\x00': a text holds NUL"]


def test_an_event_that_leads_to_one_is_dead_and_told_of(world: World) -> None:
    world.put_record("a", notify=False)
    spoil(world, "a", {"name": "\x00"})
    world.post_event("shop", "a", "create", world.shop.rows["a"].version)
    world.run_drain()
    assert world.count_events_by_state() == {"dead": 1}
    assert world.query("SELECT error FROM sync.events")[0].error == "a text holds NUL"
    assert [row.kind for row in world.query("SELECT kind FROM sync.alerts")] == ["dead"]


def test_a_person_who_rereads_one_is_told(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    spoil(world, "a", {"name": "\x00"})
    with pytest.raises(CallFailed, match="NUL"):
        asyncio.run(refresh_record(world.context, world.entity, "a"))
    assert world.mirror_by_key()["a"]["name"] == "n"

"""What becomes of a record after each outcome of a request, with a database and a real server."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from world import World

from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.errors import CallFailed, Failure


def store_missing(world: World) -> None:
    world.erp.before = lambda verb, key: (
        CallFailed(Failure.REFERENCE, "reference 'store' is not there yet: answer 200: {}")
        if verb in ("create", "update")
        else None
    )


def waits(world: World, rounds: int) -> list[float]:
    """So many fruitless pushes of the record ``a``, and how long it was made to wait after each."""
    told = []
    for _ in range(rounds):
        world.run_drain()
        told.append(
            (world.read_record_row("a").due_at - world.query("SELECT sync.clock() AS now")[0].now).total_seconds()
        )
        world.advance_clock(told[-1])
    return told


def test_reference_missing_waits_is_not_dead_and_goes_on_when_it_is_there(world: World) -> None:
    world.put_record("a")
    store_missing(world)
    told = waits(world, 14)
    assert [round(wait, -1) for wait in told[:6]] == [10, 10, 20, 40, 80, 160]
    assert max(told) == pytest.approx(3600, abs=5)
    assert (world.read_record_row("a").stopped, world.read_record_row("a").attempts, world.count_events_by_state()) == (
        None,
        0,
        {"waiting": 2},
    )
    world.erp.before = lambda verb, key: None
    world.run_drain()
    assert (world.mirror_by_key(), world.count_events_by_state(), world.read_record_row("a").waiting_since) == (
        world.expected_mirror(),
        {"done": 2},
        None,
    )


def test_reference_missing_leaves_all_attempts_for_other_failures(world: World) -> None:
    world.put_record("a")
    store_missing(world)
    waits(world, 6)
    world.erp.before = lambda verb, key: CallFailed(Failure.TRANSIENT, "answer 500", status=500)
    waits(world, 3)
    assert (world.read_record_row("a").stopped, world.read_record_row("a").attempts) == (None, 3)
    world.run_drain()
    assert world.read_record_row("a").stopped == "dead"


def test_reference_missing_opens_no_breaker(world: World) -> None:
    for n in range(20):
        world.put_record(f"k{n}")
    store_missing(world)
    world.run_drain()
    assert world.erp.calls["create"] == 20
    assert world.query("SELECT open_since FROM sync.systems WHERE name = 'erp'")[0].open_since is None
    assert world.query("SELECT count(*) AS n FROM sync.breaker_failures")[0].n == 0


def alerts(world: World) -> list[tuple[str, str, int, list[str], bool]]:
    with world.engine.begin() as connection:
        watch_backlog(connection, world.config.alerts)
    rows = world.query("SELECT * FROM sync.alerts WHERE kind = 'stuck_waiting' ORDER BY id")
    return [(row.kind, row.cause, row.n, row.examples, row.resolved_at is not None) for row in rows]


def test_reference_missing_for_long_is_told_of_once_and_when_it_is_over(world: World) -> None:
    world.put_record("a")
    world.put_record("b")
    store_missing(world)
    waits(world, 3)
    assert alerts(world) == []
    world.advance_clock(world.config.alerts.waiting_after)
    world.put_record("b", name="changed")
    world.put_record("c")
    world.run_drain()
    told = ("stuck_waiting", "item: waits for what it refers to", 2, ["a", "b"])
    assert alerts(world) == alerts(world) == [(*told, False)]
    world.erp.before = lambda verb, key: None
    world.advance_clock(3600)
    world.run_drain()
    assert alerts(world) == [(*told, True)]


def test_an_event_that_waits_for_its_record_is_told_of_as_such(world: World) -> None:
    world.post_event("stock", "a", "update", 5, {"key": "a", "count": 1, "v": 5})
    world.run_drain()
    assert world.count_events_by_state() == {"waiting": 1}
    world.advance_clock(world.config.alerts.waiting_after + 1)
    told = ("stuck_waiting", "item: waits for its record", 1, ["a"])
    assert alerts(world) == [(*told, False)]
    world.put_record("a")
    world.run_drain()
    assert alerts(world) == [(*told, True)]


def test_a_full_sync_of_its_group_tries_a_waiting_record_at_once(world: World) -> None:
    world.put_record("a")
    store_missing(world)
    waits(world, 6)
    world.run_drain()
    world.erp.before = lambda verb, key: None
    world.run_full_sync("A")
    assert world.mirror_by_key() == world.expected_mirror()


def test_a_probe_that_finds_a_reference_missing_neither_closes_the_breaker_nor_loops(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    for n in range(6):
        world.put_record(f"k{n}")
    world.erp.before = lambda verb, key: CallFailed(Failure.TRANSIENT, "answer 500", status=500)
    world.run_drain()
    assert world.query("SELECT open_since FROM sync.systems WHERE name = 'erp'")[0].open_since is not None
    store_missing(world)
    world.advance_clock(world.config.third_parties["erp"].breaker.probe_after + 1)
    before = world.erp.calls["create"] + world.erp.calls["lookup"]
    world.run_drain()
    assert world.erp.calls["create"] + world.erp.calls["lookup"] - before <= 2
    assert world.query("SELECT open_since FROM sync.systems WHERE name = 'erp'")[0].open_since is not None
    assert set(world.count_events_by_state()) <= {"pending", "waiting"}

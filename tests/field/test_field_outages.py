"""Outages in which little happens, refusals that pass, and settlements of mixed failures (rules 26 and 27)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fakes import answer
from scenes import fill_sources, list_open_alerts
from world import World

from sync_orchestrator.config import Config, RetrySettings
from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.errors import CallFailed, Failure, Refusal

pytestmark = pytest.mark.slow

REFUSED_CONNECTION = CallFailed(Failure.TRANSIENT, "no connection", about_system=True)
NO_ANSWER = CallFailed(Failure.TRANSIENT, "no answer within 10 s", unknown=True, about_system=True)
REDIRECT = CallFailed(Failure.TRANSIENT, "answer 302: redirects to /login", status=302, about_system=True)
FORBIDDEN = CallFailed(Failure.AUTH, "answer 403: an HTML page", status=403)


def drain_for(world: World, seconds: float, step: float = 5.0) -> None:
    for _ in range(int(seconds // step)):
        world.run_drain()
        world.advance_clock(step)


@pytest.mark.parametrize("failure", [REFUSED_CONNECTION, NO_ANSWER, REDIRECT, FORBIDDEN])
@pytest.mark.parametrize("retries", [3, 0])
@pytest.mark.parametrize("count", [1, 4])
def test_case_r16_an_outage_in_which_little_changes_costs_nothing(
    make_world: Callable[..., World], failure: CallFailed, retries: int, count: int
) -> None:
    """Four changed records are fewer than the breaker counts; none of them dies, and one alert says why they wait."""
    world = make_world(entity={"retry": {"retries": retries, "first_wait": 10, "jitter": 0}})
    fill_sources(world, 8)
    world.run_full_sync(patience=30)
    world.advance_clock(300)
    world.erp.before = lambda verb, key: failure
    for number in range(count):
        world.put_record(f"k{number:03}", name="changed")
    drain_for(world, 300)
    assert "dead" not in world.count_events_by_state()
    assert list_open_alerts(world) == [("breaker_open", "erp")]
    world.erp.before = lambda verb, key: None
    drain_for(world, 130)
    assert world.mirror_by_key() == world.expected_mirror()
    assert (set(world.count_events_by_state()), list_open_alerts(world)) == ({"done"}, [])


def test_a_third_party_that_stops_responding_counts_as_down_after_twice_its_timeout(
    make_world: Callable[..., World],
) -> None:
    """Calls become few and pause, so that fewer records fail than the breaker counts; the operator is alerted."""
    world = make_world(entity={"retry": {"retries": 8, "first_wait": 60, "jitter": 0}})
    fill_sources(world, 8)
    world.run_full_sync(patience=30)
    world.erp.before = lambda verb, key: NO_ANSWER
    for number, expected in enumerate([[], [], [("breaker_open", "erp")]]):
        world.put_record(f"k{number:03}", name="changed")
        world.run_drain()
        assert list_open_alerts(world) == expected
        world.advance_clock(world.context.config.third_parties["erp"].timeout)
    world.erp.before = lambda verb, key: None
    drain_for(world, 130)
    assert world.mirror_by_key() == world.expected_mirror()
    assert list_open_alerts(world) == []


def test_refusals_over_a_long_time_do_not_count_as_silence(make_world: Callable[..., World]) -> None:
    """A 500 is a response: two records that fail by it for a minute do not stop all others."""
    world = make_world(entity={"retry": {"retries": 8, "first_wait": 10, "jitter": 0}})
    world.erp.before = lambda verb, key: answer(500) if key in ("one", "two") else None
    world.put_record("one")
    world.run_drain()
    world.advance_clock(60)
    world.put_record("two")
    world.run_drain()
    assert list_open_alerts(world) == []


def test_a_record_that_alone_is_not_answered_dies_while_others_are_served(world: World) -> None:
    """A heavy record whose calls time out: the third party is well, as the others show."""
    world.erp.before = lambda verb, key: NO_ANSWER if key == "heavy" else None
    world.put_record("heavy")
    for number in range(30):
        world.put_record("fine", name=f"n{number}")
        drain_for(world, 10)
    assert world.read_record_row("heavy").stopped == "dead"
    assert [kind for kind, _ in list_open_alerts(world)] == ["dead"]


def test_a_5xx_of_one_record_is_that_records_trouble(world: World) -> None:
    world.erp.before = lambda verb, key: answer(500) if key == "poison" else None
    world.put_record("poison")
    drain_for(world, 120)
    assert world.read_record_row("poison").stopped == "dead"


def test_a_5xx_of_all_that_is_under_way_is_an_outage(world: World) -> None:
    world.erp.before = lambda verb, key: answer(500)
    world.put_record("a")
    world.put_record("b")
    drain_for(world, 300)
    assert "dead" not in world.count_events_by_state()
    assert list_open_alerts(world) == [("breaker_open", "erp")]


def test_an_outage_during_a_full_sync_leaves_nothing_dead(world: World) -> None:
    world.shop.put("a", {"key": "a", "name": "n", "store": "A"}, group="A")
    world.stock.put("a", {"key": "a", "count": 1})
    world.erp.before = lambda verb, key: REFUSED_CONNECTION
    for _ in range(8):
        world.run_full_sync(patience=0.1)
        world.advance_clock(30)
    assert world.read_record_row("a").stopped is None
    world.erp.before = lambda verb, key: None
    world.advance_clock(61)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


OUTAGES_TRIED_ALWAYS = {("drain", 300, 1), ("full_sync", 1, 4), ("both", 300, 4)}
"""The others belong to `make test-long`: each takes seconds."""


@pytest.mark.parametrize(
    ("way", "seconds_of_success_ago", "count"),
    [
        pytest.param(
            way, seconds, count, marks=() if (way, seconds, count) in OUTAGES_TRIED_ALWAYS else pytest.mark.long
        )
        for way in ("drain", "full_sync", "both")
        for seconds in (1, 300)
        for count in (1, 4)
    ],
)
def test_an_outage_in_which_reads_fail_too_spends_no_attempts_on_any_path(
    make_world: Callable[..., World], way: str, seconds_of_success_ago: float, count: int
) -> None:
    """Each call, and each second look, times out. A full sync gives fresh attempts, which puts off no breaker."""
    world = make_world(
        entity={"retry": {"retries": 3, "first_wait": 1, "jitter": 0}},
        system={"breaker": {"failures": 10}, "timeout": 2},
    )
    fill_sources(world, 8)
    world.run_full_sync(patience=30)
    world.advance_clock(seconds_of_success_ago)
    world.erp.before = lambda verb, key: NO_ANSWER
    for number in range(count):
        world.put_record(f"k{number:03}", name="changed", notify=way == "drain")
    for _ in range(30):
        if way != "full_sync":
            world.run_drain()
        if way != "drain":
            world.run_full_sync(patience=0.01)
        assert not world.query("SELECT key FROM sync.records WHERE stopped IS NOT NULL")
        world.advance_clock(1)
    assert list_open_alerts(world) == [("breaker_open", "erp")]
    world.erp.before = lambda verb, key: None
    drain_for(world, 130)
    assert (world.mirror_by_key(), list_open_alerts(world)) == (world.expected_mirror(), [])


def test_a_record_that_changes_all_the_time_does_not_hide_an_outage(world: World) -> None:
    world.put_record("hot")
    world.run_drain()
    world.erp.before = lambda verb, key: NO_ANSWER
    for number in range(8):
        world.put_record("hot", name=f"n{number}")
        drain_for(world, 10)
    assert list_open_alerts(world) == [("breaker_open", "erp")]


# Refusals that pass -------------------------------------------------------------------------------------------------


class UniqueNames:
    """The third party refuses a name that another record has; its updates of some records are slow."""

    def __init__(self, world: World, slow: Callable[[str], bool] = lambda key: False) -> None:
        self._world = world
        self._slow = slow
        world.erp.gate = self

    async def __call__(self, verb: str, key: str) -> None:
        if verb not in ("create", "update"):
            return
        await asyncio.sleep(0.05 if self._slow(key) else 0)
        wanted = self._world.shop.rows[key].data["name"]
        if any(record["name"] == wanted for record in self._world.erp.store.values() if record["code"] != key):
            raise CallFailed(
                Failure.PERMANENT, "answer 409: name taken", status=409, refusal=Refusal.DUPLICATE_OR_CONFLICT
            )


@pytest.mark.parametrize("pairs", [1, 20])
@pytest.mark.parametrize("status", [409, 422])
def test_case_r18_a_unique_value_is_handed_over_without_an_operator(world: World, pairs: int, status: int) -> None:
    for number in range(pairs):
        world.put_record(f"giver{number}", name=f"lamp {number}")
        world.put_record(f"taker{number}", name=f"desk {number}")
    world.run_drain()
    names = UniqueNames(world, lambda key: key.startswith("giver"))
    if status == 422:
        strict = names.__call__

        async def as_422(verb: str, key: str) -> None:
            try:
                await strict(verb, key)
            except CallFailed:
                raise CallFailed(Failure.PERMANENT, "answer 422: name taken", status=422) from None

        world.erp.gate = as_422
    for number in range(pairs):
        world.put_record(f"taker{number}", name=f"lamp {number}")
        world.put_record(f"giver{number}", name=f"lamp (old) {number}")
    drain_for(world, 100)
    assert world.mirror_by_key() == world.expected_mirror()
    with world.engine.begin() as connection:
        watch_backlog(connection, world.config.alerts)
    assert (set(world.count_events_by_state()), list_open_alerts(world)) == ({"done"}, [])


def test_case_r18_a_swap_is_reported_once_and_ends_when_the_tie_is_broken(world: World) -> None:
    world.put_record("p3", name="three")
    world.put_record("p4", name="four")
    world.run_drain()
    UniqueNames(world)
    world.put_record("p3", name="four")
    world.put_record("p4", name="three")
    drain_for(world, 200)
    assert world.count_events_by_state()["dead"] == 4
    assert [
        (kind, world.query("SELECT n FROM sync.alerts WHERE kind = 'dead'")[0].n) for kind, _ in list_open_alerts(world)
    ] == [("dead", 2)]
    next(record for record in world.erp.store.values() if record["code"] == "p3")["name"] = "between"
    world.run_full_sync(patience=30)
    drain_for(world, 30)
    assert world.mirror_by_key() == world.expected_mirror()


def test_rule_26_a_refusal_that_is_about_the_payload_is_not_sent_again_and_again(world: World) -> None:
    """Under steady traffic: once at first, and once when what was under way beside it was acknowledged."""
    world.erp.before = lambda verb, key: answer(422) if key == "bad" else None
    world.put_record("bad")
    for number in range(30):
        world.put_record(f"fine{number % 3}", name=f"n{number}")
        drain_for(world, 10)
    attempts = world.query("SELECT count(*) AS n FROM sync.push_attempts WHERE key = 'bad'")[0].n
    assert attempts <= 2
    assert world.read_record_row("bad").stopped == "dead"


# Settlements --------------------------------------------------------------------------------------------------------


def test_a_throttled_and_another_failure_are_settled_together(make_world: Callable[..., World]) -> None:
    """With the default retry rule: half of the calls are answered 429 without a time, half 500."""
    config: dict[str, Any] = {"entity": {"retry": None}}
    world = make_world(**config)
    fill_sources(world, 20)
    world.erp.before = lambda verb, key: (
        answer(500)
        if key.endswith(("0", "2", "4", "6", "8"))
        else CallFailed(Failure.THROTTLED, "answer 429", status=429)
    )
    world.run_full_sync()
    world.run_drain()
    world.erp.before = lambda verb, key: None
    drain_for(world, 200)
    world.run_full_sync(patience=30)
    assert world.mirror_by_key() == world.expected_mirror()


def test_defaults_are_what_their_types_say() -> None:
    """A duration that is a whole number in the code is a float in the configuration."""
    retry = RetrySettings()
    assert [type(value) for value in (retry.first_wait, retry.max_wait, retry.factor, retry.jitter)] == [float] * 4
    for name, field in Config.model_fields.items():
        if not field.is_required() and name in ("limits", "alerts"):
            section = field.get_default(call_default_factory=True)
            for each, value in section:
                if type(section).model_fields[each].annotation is float:
                    assert type(value) is float, f"{name}.{each}"

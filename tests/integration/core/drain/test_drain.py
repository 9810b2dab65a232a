"""Change events from the ledger to the third party."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.shutdown import ending


def test_changes_come_in_and_the_third_party_is_in_step(world: World) -> None:
    for number in range(20):
        world.put(f"k{number}", name=f"name {number}", count=number)
    world.drain()
    assert world.mirrored() == world.truth()
    assert world.states() == {"done": 40}


def test_out_of_order_never_overwrites_newer(world: World) -> None:
    world.put("a", tell=False)
    world.tell("shop", "a", "create", 1, {"name": "old", "store": "A"})
    world.tell("stock", "a", "create", 1, {"count": 1})
    world.drain()
    world.tell("shop", "a", "update", 9, {"name": "new", "store": "A"})
    world.drain()
    world.tell("shop", "a", "update", 5, {"name": "stale", "store": "A"})
    world.drain()
    assert world.mirrored()["a"]["name"] == "new"
    assert world.states() == {"done": 3, "superseded": 1}


def test_ten_changes_of_a_hot_record_cost_one_call(world: World) -> None:
    world.put("a")
    for number in range(10):
        world.put("a", name=f"n{number}")
    world.drain()
    assert world.erp.calls == {"create": 1}
    assert world.states() == {"done": 22}


def test_an_update_before_its_create_fails_and_is_woken_by_the_create(world: World) -> None:
    world.put("a", tell=False)
    world.full_sync()
    world.tell("shop", "b", "update", 7, {"name": "second", "store": "A"})
    world.drain()
    assert world.states() == {"waiting": 1}
    world.tell("shop", "b", "create", 3, {"name": "first", "store": "A"})
    world.tell("stock", "b", "create", 3, {"count": 4})
    world.drain()
    world.drain()
    assert world.mirrored()["b"]["name"] == "second"
    assert world.states() == {"done": 3}


def test_retries_wait_ten_twenty_forty_seconds_then_a_person_is_told(world: World) -> None:
    world.erp.before = lambda verb, key: answer(503) if key == "a" else None
    world.put("a")
    for number, wait in enumerate((10, 20, 40)):
        world.put("b", name=f"other {number}")
        world.drain()
        assert world.states()["waiting"] == 2
        assert world.row("a").attempts == number + 1
        world.later(wait + 0.5)
    world.put("b", name="last")
    world.drain()
    assert world.states()["dead"] == 2
    assert [row.kind for row in world.query("SELECT kind FROM sync.alerts")] == ["dead"]


def test_an_outage_opens_the_breaker_and_spends_no_attempt(world: World) -> None:
    for number in range(30):
        world.put(f"k{number}")
    world.erp.before = lambda verb, key: answer(502)
    for _ in range(12):
        world.drain()
        world.later(15)
    assert world.states().get("dead", 0) == 0
    assert world.query("SELECT max(attempts) AS n FROM sync.records")[0].n == 0
    world.erp.before = lambda verb, key: None
    for _ in range(4):
        world.later(70)
        world.drain()
    assert world.mirrored() == world.truth()
    assert world.states() == {"done": 60}
    assert len(world.erp.store) == 30


def test_a_lost_answer_makes_no_twin(world: World) -> None:
    lost = {"a", "b"}

    def after(verb: str, key: str) -> Exception | None:
        if verb == "create" and key in lost:
            lost.discard(key)
            return lost_answer()
        return None

    world.erp.after = after
    for key in "abc":
        world.put(key)
    world.drain()
    for _ in range(3):
        world.later(11)
        world.drain()
    assert world.mirrored() == world.truth()
    assert len(world.erp.store) == 3
    assert world.states() == {"done": 6}


def test_what_a_read_shows_after_a_lost_answer_is_kept_with_its_id(make_world: Callable[..., World]) -> None:
    """Without it a validation would call the record another one than ours."""
    world = make_world(erp=FakeThirdParty(own_ids=False))
    world.full_sync()
    world.erp.after = lambda verb, key: lost_answer() if verb == "update" else None
    world.put("a")
    world.drain()
    world.later(300)
    world.drain()
    assert (world.erp.calls["update"], world.row("a").external_id) == (1, "a")
    validation = world.validate(full=True)
    assert (validation.verdict, validation.drift) == ("in_step", [])


def test_a_deletion_leaves_a_tombstone_that_an_older_update_does_not_revive(world: World) -> None:
    world.put("a")
    world.drain()
    version = world.shop.rows["a"].version
    world.remove("a")
    world.drain()
    world.tell("shop", "a", "update", version, {"name": "late", "store": "A"})
    world.drain()
    assert world.erp.store == {}
    world.put("a", name="again")
    world.drain()
    assert world.mirrored()["a"]["name"] == "again"


def test_parts_that_nobody_notifies_of_are_read_from_their_source(world: World) -> None:
    world.put("a", tell=False)
    row = world.shop.rows["a"]
    world.tell("shop", "a", "create", row.version, row.data)
    world.drain()
    assert world.mirrored() == world.truth()
    assert world.states() == {"done": 1}


def test_an_update_whose_create_never_comes_ends_at_the_source(world: World) -> None:
    """A record that moved into a synced group while its old group was not listed yet is in no listing."""
    world.put("a", tell=False)
    world.full_sync()
    world.put("late", tell=False)
    row = world.shop.rows["late"]
    world.tell("shop", "late", "update", row.version, row.data)
    for _ in range(5):
        world.drain()
        world.later(50)
    assert world.mirrored() == world.truth()
    assert world.states() == {"done": 1}


@pytest.fixture
def requested_end() -> Iterator[Callable[[], None]]:
    """Requests the end of this process as an interrupt does; no cancellation follows."""
    yield ending.request
    ending.withdraw()


@pytest.mark.parametrize("calls_before", [0, 1, 4])
def test_once_the_end_is_requested_no_push_is_begun_and_the_claims_are_given_back(
    make_world: Callable[..., World], requested_end: Callable[[], None], calls_before: int
) -> None:
    """Also before the drain is cancelled for it, as pushes end and make room for others meanwhile."""
    world = make_world(system={"concurrency": 2})
    for number in range(20):
        world.put(f"k{number:02}")
    before = world.erp.before

    def call(verb: str, key: str) -> object:
        if sum(world.erp.calls.values()) >= calls_before:
            requested_end()
        return before(verb, key)

    async def work() -> None:
        if not calls_before:
            requested_end()
        await drain(world.context, linger=0)

    world.erp.before = call  # type: ignore[assignment]
    asyncio.run(work())
    begun = sum(world.erp.calls.values())
    assert calls_before <= begun <= (calls_before + 1 if calls_before else 0)  # one may have been begun beside
    assert not world.query("SELECT FROM sync.records WHERE lease_until IS NOT NULL")
    assert not world.query("SELECT FROM sync.events WHERE state = 'leased' AND revision IS NULL")
    ending.withdraw()
    world.erp.before = before
    world.drain()
    assert world.mirrored() == world.truth()
    assert world.erp.calls == {"create": 20}

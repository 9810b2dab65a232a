"""Change events from the ledger to the third party."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.shutdown import ending


def test_changes_come_in_and_the_third_party_is_in_sync(world: World) -> None:
    for number in range(20):
        world.put_record(f"k{number}", name=f"name {number}", count=number)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.count_events_by_state() == {"done": 40}


def test_out_of_order_never_overwrites_newer(world: World) -> None:
    world.put_record("a", notify=False)
    world.post_event("shop", "a", "create", 1, {"name": "old", "store": "A"})
    world.post_event("stock", "a", "create", 1, {"count": 1})
    world.run_drain()
    world.post_event("shop", "a", "update", 9, {"name": "new", "store": "A"})
    world.run_drain()
    world.post_event("shop", "a", "update", 5, {"name": "stale", "store": "A"})
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "new"
    assert world.count_events_by_state() == {"done": 3, "superseded": 1}


def test_ten_changes_of_a_hot_record_cost_one_call(world: World) -> None:
    world.put_record("a")
    for number in range(10):
        world.put_record("a", name=f"n{number}")
    world.run_drain()
    assert world.erp.calls == {"create": 1}
    assert world.count_events_by_state() == {"done": 22}


def test_an_update_before_its_create_fails_and_is_woken_by_the_create(world: World) -> None:
    world.put_record("a", notify=False)
    world.run_full_sync()
    world.post_event("shop", "b", "update", 7, {"name": "second", "store": "A"})
    world.run_drain()
    assert world.count_events_by_state() == {"waiting": 1}
    world.post_event("shop", "b", "create", 3, {"name": "first", "store": "A"})
    world.post_event("stock", "b", "create", 3, {"count": 4})
    world.run_drain()
    world.run_drain()
    assert world.mirror_by_key()["b"]["name"] == "second"
    assert world.count_events_by_state() == {"done": 3}


def test_retries_wait_ten_twenty_forty_seconds_then_a_person_is_told(world: World) -> None:
    """Another record succeeds after each failure: with nothing to show the third party to be well, the breaker opens.

    It does so in a drain of its own: which of two pushes of one drain is settled first depends on the machine's load.
    """
    world.erp.before = lambda verb, key: answer(503) if key == "a" else None
    world.put_record("a")
    world.run_drain()
    for number, wait in enumerate((10, 20, 40), start=1):
        assert world.count_events_by_state()["waiting"] == 2
        assert world.read_record_row("a").attempts == number
        world.put_record("b", name=f"other {number}")
        world.run_drain()
        assert world.read_record_row("a").attempts == number
        world.advance_clock(wait + 0.5)
        world.run_drain()
    assert world.count_events_by_state()["dead"] == 2
    assert [row.kind for row in world.query("SELECT kind FROM sync.alerts")] == ["dead"]


def test_an_outage_opens_the_breaker_and_spends_no_attempt(world: World) -> None:
    for number in range(30):
        world.put_record(f"k{number}")
    world.erp.before = lambda verb, key: answer(502)
    for _ in range(12):
        world.run_drain()
        world.advance_clock(15)
    assert world.count_events_by_state().get("dead", 0) == 0
    assert world.query("SELECT max(attempts) AS n FROM sync.records")[0].n == 0
    world.erp.before = lambda verb, key: None
    for _ in range(4):
        world.advance_clock(70)
        world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.count_events_by_state() == {"done": 60}
    assert len(world.erp.store) == 30


def test_a_lost_answer_makes_no_duplicate(world: World) -> None:
    lost = {"a", "b"}

    def after(verb: str, key: str) -> Exception | None:
        if verb == "create" and key in lost:
            lost.discard(key)
            return lost_answer()
        return None

    world.erp.after = after
    for key in "abc":
        world.put_record(key)
    world.run_drain()
    for _ in range(3):
        world.advance_clock(11)
        world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert len(world.erp.store) == 3
    assert world.count_events_by_state() == {"done": 6}


def test_what_a_read_shows_after_a_lost_answer_is_kept_with_its_id(make_world: Callable[..., World]) -> None:
    """Without it a validation would call the record another one than ours."""
    world = make_world(erp=FakeThirdParty(assigns_ids=False))
    world.run_full_sync()
    world.erp.after = lambda verb, key: lost_answer() if verb == "update" else None
    world.put_record("a")
    world.run_drain()
    world.advance_clock(300)
    world.run_drain()
    assert (world.erp.calls["update"], world.read_record_row("a").external_id) == (1, "a")
    validation = world.run_validation(full=True)
    assert (validation.verdict, validation.drift) == ("in_sync", [])


def test_a_deletion_leaves_a_tombstone_that_an_older_update_does_not_revive(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    version = world.shop.rows["a"].version
    world.delete_record("a")
    world.run_drain()
    world.post_event("shop", "a", "update", version, {"name": "late", "store": "A"})
    world.run_drain()
    assert world.erp.store == {}
    world.put_record("a", name="again")
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "again"


def test_parts_that_nobody_notifies_of_are_read_from_their_source(world: World) -> None:
    world.put_record("a", notify=False)
    row = world.shop.rows["a"]
    world.post_event("shop", "a", "create", row.version, row.data)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.count_events_by_state() == {"done": 1}


def test_an_update_whose_create_never_comes_ends_at_the_source(world: World) -> None:
    """A record that moved into a synced group while its old group was not listed yet is in no listing."""
    world.put_record("a", notify=False)
    world.run_full_sync()
    world.put_record("late", notify=False)
    row = world.shop.rows["late"]
    world.post_event("shop", "late", "update", row.version, row.data)
    for _ in range(5):
        world.run_drain()
        world.advance_clock(50)
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.count_events_by_state() == {"done": 1}


@pytest.fixture
def requested_end() -> Iterator[Callable[[], None]]:
    """Requests the end of this process as an interrupt does; no cancellation follows."""
    yield ending.request_end
    ending.withdraw_request()


@pytest.mark.parametrize("calls_before", [0, 1, 4])
def test_once_the_end_is_requested_no_push_is_begun_and_the_claims_are_given_back(
    make_world: Callable[..., World], requested_end: Callable[[], None], calls_before: int
) -> None:
    """Also before the drain is cancelled for it, as pushes end and make room for others meanwhile."""
    world = make_world(system={"concurrency": 2})
    for number in range(20):
        world.put_record(f"k{number:02}")
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
    ending.withdraw_request()
    world.erp.before = before
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert world.erp.calls == {"create": 20}

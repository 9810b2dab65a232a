"""Calls of unknown outcome: nothing is created twice, nothing stale stays (rules 5 and 13)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.drain.event_batch import work_off
from sync_orchestrator.core.operations.events import redrive_events
from sync_orchestrator.core.ports import Found
from sync_orchestrator.core.push.attempt import push_record
from sync_orchestrator.core.push.claims import claim_due_records
from sync_orchestrator.core.push.settlement import settle_pushes
from sync_orchestrator.errors import CallFailed, Failure, Refusal


class SlowToSearch(FakeThirdParty):
    """Its search shows a record only when the test says that its index has caught up."""

    indexed = False

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        found = await super().lookup(key, group)
        return found if self.indexed else []


def once(failure: Exception, verb: str) -> Callable[[str, str], Exception | None]:
    """Fails the first call of this kind."""
    failures = iter([failure])
    return lambda called, key: next(failures, None) if called == verb else None


def archived(world: World) -> None:
    """What was told is in the archive before anything is pushed."""
    asyncio.run(work_off(world.context, 10, set()))


def settled_by(world: World, seconds: float = 11, times: int = 2) -> None:
    for _ in range(times):
        world.run_drain()
        world.advance_clock(seconds)


def test_their_id_is_kept_and_addressed_until_the_record_is_deleted(world: World) -> None:
    world.put_record("a")
    world.put_record("b")
    world.run_drain()
    ids = {record["code"]: external_id for external_id, record in world.erp.store.items()}
    assert {key: world.read_record_row(key).external_id for key in "ab"} == ids
    world.put_record("a", name="next")
    world.delete_record("b")
    world.run_drain()
    assert world.erp.calls == {"create": 2, "read": 2, "update": 1, "delete": 1}  # each is looked at first
    assert (world.mirror_by_key(), world.read_record_row("a").external_id, world.read_record_row("b").external_id) == (
        world.expected_mirror(),
        ids["a"],
        None,
    )


@pytest.mark.parametrize("failure", [lost_answer(), answer(504)])
@pytest.mark.parametrize("landed", [True, False])
def test_a_create_of_unknown_outcome_is_searched_for_and_made_once(
    world: World, failure: Exception, landed: bool
) -> None:
    setattr(world.erp, "after" if landed else "before", once(failure, "create"))
    world.put_record("a")
    settled_by(world)
    assert world.mirror_by_key() == world.expected_mirror()
    assert (len(world.erp.store), world.erp.calls["create"], world.count_events_by_state()) == (
        1,
        1 if landed else 2,
        {"done": 2},
    )


@pytest.mark.parametrize("change", ["none", "deleted"])
def test_an_empty_search_is_believed_only_after_search_lag(make_world: Callable[..., World], change: str) -> None:
    erp = SlowToSearch()
    world = make_world(erp=erp, system={"search_lag": 30, "in_flight_window": 5})
    erp.after = once(lost_answer(), "create")
    world.put_record("a")
    world.run_drain()
    if change == "deleted":
        world.delete_record("a")
    world.advance_clock(11)
    world.run_drain()
    erp.indexed = True
    settled_by(world, 31)
    assert len(erp.store) == (0 if change == "deleted" else 1)
    assert world.mirror_by_key() == world.expected_mirror()


def test_a_search_that_finds_nothing_while_the_create_can_still_land_waits(make_world: Callable[..., World]) -> None:
    world = make_world(system={"in_flight_window": 40}, entity={"retry": {"first_wait": 10, "jitter": 0}})
    world.erp.before = once(lost_answer(), "create")
    world.put_record("a")
    world.run_drain()
    attempts = world.read_record_row("a").attempts
    world.advance_clock(11)
    world.run_drain()
    assert (world.erp.calls["create"], world.read_record_row("a").attempts, world.count_events_by_state()) == (
        1,
        attempts,
        {"waiting": 2},
    )
    world.advance_clock(30)
    world.run_drain()
    assert (world.mirror_by_key(), world.count_events_by_state()) == (world.expected_mirror(), {"done": 2})


def test_a_process_that_dies_after_its_create_landed_leaves_no_duplicate(world: World) -> None:
    world.put_record("a")
    assert world.run_until_crash(world.run_drain, "push.after_call", 1)
    assert len(world.erp.store) == 1
    assert world.read_record_row("a").applied_revision == 0
    settled_by(world, 61, times=3)
    assert (world.mirror_by_key(), len(world.erp.store), world.count_events_by_state()) == (
        world.expected_mirror(),
        1,
        {"done": 2},
    )


def test_a_create_that_lands_after_another_was_made_is_taken_back(world: World) -> None:
    """The request was on its way when its lease ran out; a token that is refused does not recall it."""
    world.put_record("a")
    asleep, woken = asyncio.Event(), asyncio.Event()

    async def sleep_once(verb: str, key: str) -> None:
        if verb == "create" and not asleep.is_set():
            asleep.set()
            await woken.wait()

    async def scene() -> None:
        world.erp.gate = sleep_once
        late = asyncio.create_task(drain(world.context, linger=0, most_seconds=60))
        await asleep.wait()
        for _ in range(3):
            world.advance_clock(61)
            await drain(world.context, linger=0, most_seconds=20)
        assert len(world.erp.store) == 1
        woken.set()
        await late
        for _ in range(2):
            world.advance_clock(61)
            await drain(world.context, linger=0, most_seconds=20)

    asyncio.run(scene())
    assert world.erp.calls["create"] == 2
    assert (world.mirror_by_key(), len(world.erp.store)) == (world.expected_mirror(), 1)
    assert world.read_record_row("a").external_id in world.erp.store
    assert not world.read_record_row("a").out_of_sync


def test_a_create_repeated_under_its_key_after_a_change_does_not_leave_the_older_payload(
    make_world: Callable[..., World],
) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False, idempotent_create=True))
    world.erp.after = once(lost_answer(), "create")
    world.put_record("a", name="old")
    world.run_drain()
    world.advance_clock(11)
    world.put_record("a", name="new")
    archived(world)
    settled_by(world, times=3)
    assert len(world.erp.store) == 1
    assert world.mirror_by_key() == world.expected_mirror()


def test_what_can_be_neither_searched_nor_repeated_is_held_for_a_person_and_not_made_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False))
    world.erp.after = once(lost_answer(), "create")
    world.put_record("a")
    world.put_record("b")
    settled_by(world)
    assert (world.read_record_row("a").stopped or world.read_record_row("b").stopped) == "on_hold"
    assert [(row.kind, row.n) for row in world.query("SELECT kind, n FROM sync.alerts")] == [("on_hold", 1)]
    held = "a" if world.read_record_row("a").stopped else "b"
    world.put_record(held, name="changed meanwhile")
    settled_by(world)
    redrive_events(world.engine)
    settled_by(world)
    world.run_full_sync()
    settled_by(world)
    world.delete_record(held)
    settled_by(world)
    assert (world.erp.calls["create"], world.read_record_row(held).stopped) == (2, "on_hold")
    assert [row.n for row in world.query("SELECT n FROM sync.alerts WHERE resolved_at IS NULL")] == [1]


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("assigns_ids", [True, False])
def test_an_update_of_unknown_outcome_is_read_back_and_sent_again_only_if_it_did_not_land(
    make_world: Callable[..., World], landed: bool, assigns_ids: bool
) -> None:
    world = make_world(erp=FakeThirdParty(assigns_ids=assigns_ids))
    world.put_record("a")
    world.run_drain()
    world.erp.calls.clear()
    setattr(world.erp, "after" if landed else "before", once(lost_answer(), "update"))
    world.put_record("a", name="next")
    settled_by(world)
    assert (world.mirror_by_key(), world.count_events_by_state()) == (world.expected_mirror(), {"done": 4})
    assert world.erp.calls == {"read": 2 if assigns_ids else 1, "update": 1 if landed else 2}  # looked at first


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_a_refused_settle_makes_the_outcome_unknown(world: World, verb: str) -> None:
    """Whoever holds the record by then may have been overwritten, so their push is looked after as well."""
    world.put_record("a")
    world.run_drain()
    if verb == "delete":
        world.delete_record("a")
    else:
        world.put_record("a", name="late")
    system = world.config.third_parties["erp"]

    async def scene() -> None:
        await work_off(world.context, 10, set())
        late = in_transaction(
            world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5)
        )[0]
        world.advance_clock(61)
        world.put_record("a", name="newest")
        await work_off(world.context, 10, set())
        await drain(world.context, linger=0, most_seconds=20)
        world.advance_clock(61)
        await drain(world.context, linger=0, most_seconds=20)
        assert not world.read_record_row("a").out_of_sync
        ended = await push_record(world.entity, late)
        in_transaction(world.engine, lambda c: settle_pushes(c, "erp", system, world.context.entities, [ended]))

    asyncio.run(scene())
    assert world.mirror_by_key() != world.expected_mirror()
    assert world.read_record_row("a").out_of_sync
    settled_by(world, 61, times=3)
    assert (world.mirror_by_key(), len(world.erp.store)) == (world.expected_mirror(), 1)


def test_a_third_party_that_refuses_a_second_of_the_same_key_has_its_own_taken_over(world: World) -> None:
    made_there = world.erp.by_hand({"code": "a", "name": "by hand"})
    world.erp.before = once(
        CallFailed(Failure.PERMANENT, "answer 409", status=409, refusal=Refusal.DUPLICATE), "create"
    )
    world.put_record("a")
    world.run_drain()
    assert (world.mirror_by_key(), world.read_record_row("a").external_id, world.count_events_by_state()) == (
        world.expected_mirror(),
        made_there,
        {"done": 2},
    )
    assert len(world.erp.store) == 1


def test_a_record_that_vanished_there_is_made_again_once(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    world.erp.store.clear()
    world.put_record("a", name="next")
    world.run_drain()
    assert (world.mirror_by_key(), len(world.erp.store), world.count_events_by_state()) == (
        world.expected_mirror(),
        1,
        {"done": 4},
    )

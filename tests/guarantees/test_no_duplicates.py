"""Calls of unknown outcome: nothing is created twice, nothing stale stays (rules 5 and 13).

Not here: the next step as a table (``test_push_decision.py``), late workers (``test_planted_bugs.py``), moves and
deletions that fail half way (``test_push.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.drain.event_batch import work_off
from sync_orchestrator.core.ledger.recording import redrive
from sync_orchestrator.core.ports import Found
from sync_orchestrator.core.push.attempt import claim, push
from sync_orchestrator.core.push.settlement import settle
from sync_orchestrator.errors import CallFailed, Failure


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
        world.drain()
        world.later(seconds)


def test_their_id_is_kept_and_addressed_until_the_record_is_deleted(world: World) -> None:
    world.put("a")
    world.put("b")
    world.drain()
    ids = {record["code"]: external_id for external_id, record in world.erp.store.items()}
    assert {key: world.row(key).external_id for key in "ab"} == ids
    world.put("a", name="next")
    world.remove("b")
    world.drain()
    assert world.erp.calls == {"create": 2, "read": 2, "update": 1, "delete": 1}  # each is looked at first
    assert (world.mirrored(), world.row("a").external_id, world.row("b").external_id) == (world.truth(), ids["a"], None)


@pytest.mark.parametrize("failure", [lost_answer(), answer(504)])
@pytest.mark.parametrize("landed", [True, False])
def test_a_create_of_unknown_outcome_is_searched_for_and_made_once(
    world: World, failure: Exception, landed: bool
) -> None:
    setattr(world.erp, "after" if landed else "before", once(failure, "create"))
    world.put("a")
    settled_by(world)
    assert world.mirrored() == world.truth()
    assert (len(world.erp.store), world.erp.calls["create"], world.states()) == (1, 1 if landed else 2, {"done": 2})


@pytest.mark.parametrize("change", ["none", "deleted"])
def test_an_empty_search_is_believed_only_after_search_lag(make_world: Callable[..., World], change: str) -> None:
    erp = SlowToSearch()
    world = make_world(erp=erp, system={"search_lag": 30, "landing": 5})
    erp.after = once(lost_answer(), "create")
    world.put("a")
    world.drain()
    if change == "deleted":
        world.remove("a")
    world.later(11)
    world.drain()
    erp.indexed = True
    settled_by(world, 31)
    assert len(erp.store) == (0 if change == "deleted" else 1)
    assert world.mirrored() == world.truth()


def test_a_search_that_finds_nothing_while_the_create_can_still_land_waits(make_world: Callable[..., World]) -> None:
    world = make_world(system={"landing": 40}, entity={"retry": {"first_wait": 10, "jitter": 0}})
    world.erp.before = once(lost_answer(), "create")
    world.put("a")
    world.drain()
    attempts = world.row("a").attempts
    world.later(11)
    world.drain()
    assert (world.erp.calls["create"], world.row("a").attempts, world.states()) == (1, attempts, {"waiting": 2})
    world.later(30)
    world.drain()
    assert (world.mirrored(), world.states()) == (world.truth(), {"done": 2})


def test_a_process_that_dies_after_its_create_landed_leaves_no_twin(world: World) -> None:
    world.put("a")
    assert world.killed(world.drain, "push.after_call", 1)
    assert len(world.erp.store) == 1
    assert world.row("a").applied_revision == 0
    settled_by(world, 61, times=3)
    assert (world.mirrored(), len(world.erp.store), world.states()) == (world.truth(), 1, {"done": 2})


def test_a_create_that_lands_after_another_was_made_is_taken_back(world: World) -> None:
    """The request was on its way when its lease ran out; a token that is refused does not recall it."""
    world.put("a")
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
            world.later(61)
            await drain(world.context, linger=0, most_seconds=20)
        assert len(world.erp.store) == 1
        woken.set()
        await late
        for _ in range(2):
            world.later(61)
            await drain(world.context, linger=0, most_seconds=20)

    asyncio.run(scene())
    assert world.erp.calls["create"] == 2
    assert (world.mirrored(), len(world.erp.store)) == (world.truth(), 1)
    assert world.row("a").external_id in world.erp.store
    assert not world.row("a").out_of_step


def test_a_create_repeated_under_its_key_after_a_change_does_not_leave_the_older_payload(
    make_world: Callable[..., World],
) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False, idempotent_create=True))
    world.erp.after = once(lost_answer(), "create")
    world.put("a", name="old")
    world.drain()
    world.later(11)
    world.put("a", name="new")
    archived(world)
    settled_by(world, times=3)
    assert len(world.erp.store) == 1
    assert world.mirrored() == world.truth()


def test_what_can_be_neither_searched_nor_repeated_is_held_for_a_person_and_not_made_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False))
    world.erp.after = once(lost_answer(), "create")
    world.put("a")
    world.put("b")
    settled_by(world)
    assert (world.row("a").parked or world.row("b").parked) == "held"
    assert [(row.kind, row.n) for row in world.query("SELECT kind, n FROM sync.alerts")] == [("held", 1)]
    held = "a" if world.row("a").parked else "b"
    world.put(held, name="changed meanwhile")
    settled_by(world)
    redrive(world.engine)
    settled_by(world)
    world.full_sync()
    settled_by(world)
    world.remove(held)
    settled_by(world)
    assert (world.erp.calls["create"], world.row(held).parked) == (2, "held")
    assert [row.n for row in world.query("SELECT n FROM sync.alerts WHERE resolved_at IS NULL")] == [1]


@pytest.mark.parametrize("landed", [True, False])
@pytest.mark.parametrize("own_ids", [True, False])
def test_an_update_of_unknown_outcome_is_read_back_and_sent_again_only_if_it_did_not_land(
    make_world: Callable[..., World], landed: bool, own_ids: bool
) -> None:
    world = make_world(erp=FakeThirdParty(own_ids=own_ids))
    world.put("a")
    world.drain()
    world.erp.calls.clear()
    setattr(world.erp, "after" if landed else "before", once(lost_answer(), "update"))
    world.put("a", name="next")
    settled_by(world)
    assert (world.mirrored(), world.states()) == (world.truth(), {"done": 4})
    assert world.erp.calls == {"read": 2 if own_ids else 1, "update": 1 if landed else 2}  # looked at first


@pytest.mark.parametrize("verb", ["update", "delete"])
def test_a_refused_settle_makes_the_outcome_unknown(world: World, verb: str) -> None:
    """Whoever holds the record by then may have been overwritten, so their push is looked after as well."""
    world.put("a")
    world.drain()
    if verb == "delete":
        world.remove("a")
    else:
        world.put("a", name="late")
    system = world.config.third_parties["erp"]

    async def scene() -> None:
        await work_off(world.context, 10, set())
        late = in_transaction(world.engine, lambda c: claim(c, ["item"], most=1, lease=20, landing=5))[0]
        world.later(61)
        world.put("a", name="newest")
        await work_off(world.context, 10, set())
        await drain(world.context, linger=0, most_seconds=20)
        world.later(61)
        await drain(world.context, linger=0, most_seconds=20)
        assert not world.row("a").out_of_step
        ended = await push(world.entity, late)
        in_transaction(world.engine, lambda c: settle(c, "erp", system, world.context.entities, [ended]))

    asyncio.run(scene())
    assert world.mirrored() != world.truth()
    assert world.row("a").out_of_step
    settled_by(world, 61, times=3)
    assert (world.mirrored(), len(world.erp.store)) == (world.truth(), 1)


def test_a_third_party_that_refuses_a_second_of_the_same_key_has_its_own_taken_over(world: World) -> None:
    made_there = world.erp.by_hand({"code": "a", "name": "by hand"})
    world.erp.before = once(CallFailed(Failure.PERMANENT, "answer 409", status=409, duplicate=True), "create")
    world.put("a")
    world.drain()
    assert (world.mirrored(), world.row("a").external_id, world.states()) == (world.truth(), made_there, {"done": 2})
    assert len(world.erp.store) == 1


def test_a_record_that_vanished_there_is_made_again_once(world: World) -> None:
    world.put("a")
    world.drain()
    world.erp.store.clear()
    world.put("a", name="next")
    world.drain()
    assert (world.mirrored(), len(world.erp.store), world.states()) == (world.truth(), 1, {"done": 4})

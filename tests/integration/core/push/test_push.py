"""One push, call by call: what is sent under an ageing lease, after a deletion, to a new place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.drain.event_batch import work_off
from sync_orchestrator.core.operations.events import redrive_events
from sync_orchestrator.core.ports import TOO_OLD, Found, Item
from sync_orchestrator.core.push.attempt import push_record
from sync_orchestrator.core.push.claims import PushClaim, claim_due_records
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.errors import CallFailed, Failure, Refusal


def claimed_one(world: World) -> PushClaim:
    asyncio.run(work_off(world.context, 10, set()))
    return in_transaction(world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5))[
        0
    ]


def aged_at(world: World, monkeypatch: pytest.MonkeyPatch, verb: str) -> Pushed:
    """A push whose lease grows too old while the given call is under way."""
    claimed = claimed_one(world)
    times = iter([0.0])

    def aged(called: str, key: str) -> None:
        if called == verb:
            clock = "sync_orchestrator.core.systems.claim_holders.time.monotonic"
            monkeypatch.setattr(
                clock,
                lambda: claimed.deadline + next(times, 1.0),
            )
            next(times, None)

    world.erp.before = aged
    return asyncio.run(push_record(world.entity, claimed))


def test_nothing_is_created_once_the_lease_grew_too_old_during_the_look_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put_record("a")
    world.query("UPDATE sync.records SET outcome_unknown_until = now() - interval '1 s'")
    asyncio.run(work_off(world.context, 10, set()))
    world.query("UPDATE sync.records SET outcome_unknown_until = now() - interval '1 s', due_at = now()")
    ended = aged_at(world, monkeypatch, "lookup")
    assert world.erp.calls == {"lookup": 1}
    assert ended.failure is not None
    assert (ended.failure.kind, ended.failure.detail, ended.failure.unknown) == (Failure.THROTTLED, TOO_OLD, False)


def test_nothing_is_created_once_the_lease_grew_too_old_during_an_update_of_what_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put_record("a")
    world.run_drain()
    world.erp.store.clear()
    world.erp.calls.clear()
    world.put_record("a", name="next")
    ended = aged_at(world, monkeypatch, "update")
    assert world.erp.calls == {"read": 1, "update": 1, "lookup": 1}
    assert ended.failure is not None
    assert ended.failure.detail == TOO_OLD


def test_a_record_made_again_after_its_deletion_does_not_get_the_deleted_id(make_world: Callable[..., World]) -> None:
    """A third party that remembers idempotency keys would answer the second create as it did the first."""
    world = make_world(erp=FakeThirdParty(can_lookup=False, idempotent_create=True))
    for _ in range(3):
        world.put_record("a")
        world.run_drain()
        assert world.mirror_by_key() == world.expected_mirror()
        world.delete_record("a")
        world.run_drain()
        assert world.erp.store == {}


def test_a_record_that_validation_misses_is_made_again_under_another_key(make_world: Callable[..., World]) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False, idempotent_create=True))
    world.put_record("a")
    world.run_full_sync()
    world.erp.store.clear()
    world.run_validation(full=True)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


def test_attempts_at_one_creation_use_one_key(make_world: Callable[..., World]) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False, idempotent_create=True))
    failures = iter([lost_answer(), lost_answer()])
    world.erp.after = lambda verb, key: next(failures, None)
    world.put_record("a")
    for _ in range(4):
        world.run_drain()
        world.advance_clock(45)
    assert len(world.erp.store) == 1
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("verb", ["delete", "create"])
@pytest.mark.parametrize(
    ("moment", "failure"),
    [("before", answer(422)), ("before", answer(500)), ("after", answer(500)), ("after", lost_answer())],
)
def test_a_move_between_places_that_fails_half_way_leaves_no_duplicate(
    make_world: Callable[..., World], verb: str, moment: str, failure: Exception
) -> None:
    world = make_world(erp=FakeThirdParty(group_in_address=True))
    world.put_record("a", group="A")
    world.run_drain()
    failures = iter([failure])
    setattr(world.erp, moment, lambda called, key: next(failures, None) if called == verb else None)
    world.put_record("a", group="B")
    for _ in range(4):
        world.run_drain()
        redrive_events(world.engine)
        world.advance_clock(45)
    assert world.mirror_by_key() == world.expected_mirror()
    assert len(world.erp.store) == 1


def test_a_deletion_clears_what_a_create_of_unknown_outcome_left_beside_the_known_id(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    gone = world.read_record_row("a").external_id
    del world.erp.store[gone]
    world.erp.after = lambda verb, key: lost_answer() if verb == "create" else None
    world.put_record("a", name="made anew, answer lost")
    world.run_drain()
    assert world.read_record_row("a").external_id == gone
    assert len(world.erp.store) == 1
    world.erp.after = lambda verb, key: None
    world.delete_record("a")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(45)
    assert world.erp.store == {}
    assert world.read_record_row("a").out_of_sync is False


def test_a_deletion_clears_both_places_of_a_move_of_unknown_outcome(make_world: Callable[..., World]) -> None:
    world = make_world(erp=FakeThirdParty(group_in_address=True))
    world.put_record("a", group="A")
    world.run_drain()
    world.erp.after = lambda verb, key: lost_answer() if verb == "create" else None
    world.put_record("a", group="B")
    world.run_drain()
    world.erp.after = lambda verb, key: None
    world.delete_record("a")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(45)
    assert world.erp.store == {}


def test_a_deletion_whose_search_finds_nothing_yet_waits_until_the_create_can_no_longer_land(world: World) -> None:
    world.erp.after = lambda verb, key: lost_answer() if verb == "create" else None
    world.put_record("a")
    world.run_drain()
    world.erp.after = lambda verb, key: None
    world.delete_record("a")
    late = dict(world.erp.store)
    world.erp.store.clear()  # the search does not show it yet
    world.run_drain()
    assert world.read_record_row("a").out_of_sync
    world.erp.store.update(late)
    for _ in range(3):
        world.advance_clock(45)
        world.run_drain()
    assert world.erp.store == {}


def test_a_duplicate_found_by_the_search_of_a_deletion_goes_as_well(world: World) -> None:
    world.erp.after = lambda verb, key: lost_answer() if verb == "create" else None
    world.put_record("a")
    world.run_drain()
    world.erp.after = lambda verb, key: None
    world.erp.by_hand({"code": "a"})
    found: list[Found] = asyncio.run(world.erp.lookup("a", None))
    assert len(found) == 2
    world.delete_record("a")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(45)
    assert world.erp.store == {}


def test_the_deadline_goes_with_every_write(world: World) -> None:
    """An adapter may have to wait before it sends: for the shared rate, for a connection."""
    deadlines: list[float | None] = []
    whole = world.erp.create

    async def seen(item: Item) -> str:
        deadlines.append(item.deadline)
        return await whole(item)

    world.erp.create = seen  # type: ignore[method-assign]
    world.put_record("a")
    claimed = claimed_one(world)
    asyncio.run(push_record(world.entity, replace(claimed)))
    assert deadlines == [claimed.deadline]


def test_a_deletion_that_clears_what_a_search_shows_is_told_as_a_deletion(world: World) -> None:
    world.erp.after = lambda verb, key: lost_answer() if verb == "create" else None
    world.put_record("a")
    world.run_drain()
    world.erp.after = lambda verb, key: None
    world.delete_record("a")
    asyncio.run(work_off(world.context, 10, set()))
    world.advance_clock(45)
    world.run_drain()
    steps = world.query("SELECT step, outcome FROM sync.push_attempts ORDER BY at")
    assert [tuple(row) for row in steps] == [("create", "unknown"), ("delete", "acknowledged")]


def test_an_answer_of_duplicate_whose_record_the_search_does_not_show_yet_is_tried_again(
    make_world: Callable[..., World],
) -> None:
    world = make_world(system={"search_lag": 5})
    made = world.erp.by_hand({"code": "a"})
    hidden = world.erp.store.pop(made)
    duplicate = CallFailed(Failure.PERMANENT, "answer 409", status=409, refusal=Refusal.DUPLICATE)
    world.erp.before = lambda verb, key: duplicate if verb == "create" else None
    world.put_record("a")
    world.run_drain()
    world.erp.store[made] = hidden
    world.advance_clock(11)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert (len(world.erp.store), world.read_record_row("a").stopped, world.read_record_row("a").external_id) == (
        1,
        None,
        made,
    )


@pytest.mark.parametrize("verb", ["update", "read"])
def test_an_adapter_that_raises_what_it_should_not_harms_its_own_record_only(world: World, verb: str) -> None:
    world.put_record("poison")
    world.put_record("other")
    world.run_drain()
    if verb == "read":
        world.query("UPDATE sync.records SET outcome_unknown_until = sync.clock() WHERE key = 'poison'")
    world.erp.before = lambda called, key: KeyError("x") if (called, key) == (verb, "poison") else None
    world.put_record("poison", name="next")
    world.put_record("other", name="next")
    world.run_drain()
    assert world.mirror_by_key()["other"]["name"] == "next"
    row = world.read_record_row("poison")
    assert (row.lease_token, row.attempts, row.stopped, row.error) == (None, 1, None, "KeyError: 'x'")
    assert row.outcome_unknown_until is not None
    world.erp.before = lambda called, key: None
    for _ in range(3):
        world.advance_clock(45)
        world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()

"""What calls of unknown outcome, half moves and late creates leave behind: it is cleared, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.drain.event_batch import work_off
from sync_orchestrator.core.ports import Found, Item
from sync_orchestrator.core.push.attempt import push_record
from sync_orchestrator.core.push.claims import PushClaim, claim_due_records
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.core.push.settlement import Settled, settle_pushes
from sync_orchestrator.errors import CallFailed, Failure


class Placed(FakeThirdParty):
    """Finds a record only where it is: its group is part of its address, also where it gives its own ids."""

    def __init__(self, *, assigns_ids: bool = True, can_lookup: bool = True, idempotent_create: bool = False) -> None:
        super().__init__(
            assigns_ids=assigns_ids, can_lookup=can_lookup, idempotent_create=idempotent_create, group_in_address=True
        )

    def _address(self, item: Item) -> str:
        address = super()._address(item)
        return address if self.places.get(address, item.group) == item.group else "elsewhere"


class SlowToSearch(Placed):
    """Its search shows a record only when the test says that its index has caught up."""

    indexed = True

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        found = await super().lookup(key, group)
        return found if self.indexed else []


def archive(world: World) -> None:
    asyncio.run(work_off(world.context, 10, set()))


def fail_once(world: World, verb: str, failure: Exception, *, landed: bool = False) -> None:
    failures = iter([failure])
    setattr(
        world.erp, "after" if landed else "before", lambda called, key: next(failures, None) if called == verb else None
    )


def settled(world: World, seconds: float = 45, times: int = 5) -> None:
    for _ in range(times):
        world.run_drain()
        world.advance_clock(seconds)


def assert_in_sync(world: World) -> None:
    assert world.mirror_by_key() == world.expected_mirror()
    assert len(world.erp.store) == len(world.expected_mirror())
    for record in world.erp.store.values():
        assert world.erp.places[next(id_ for id_, r in world.erp.store.items() if r is record)] == record["store"]
    assert not any(row.out_of_sync for row in world.query("SELECT out_of_sync FROM sync.records"))


def writes(assigns_ids: bool) -> str:
    return "create" if assigns_ids else "update"


# Half moves -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("assigns_ids", [True, False])
@pytest.mark.parametrize("failure", [answer(503), answer(422), lost_answer()])
def test_a_move_that_fails_half_way_and_is_taken_back_is_not_thought_to_be_still_there(
    make_world: Callable[..., World], assigns_ids: bool, failure: Exception
) -> None:
    """The record is as it was acknowledged before, but the old place has been cleared."""
    world = make_world(erp=Placed(assigns_ids=assigns_ids))
    world.put_record("a", group="A")
    world.run_drain()
    fail_once(world, writes(assigns_ids), failure)
    world.put_record("a", group="B")
    world.run_drain()
    assert world.erp.store == {}
    world.put_record("a", group="A")
    settled(world)
    assert_in_sync(world)


def test_where_nothing_can_be_searched_a_move_whose_create_was_refused_goes_on(
    make_world: Callable[..., World],
) -> None:
    """The refusal left nothing unknown: no person is asked."""
    world = make_world(erp=Placed(can_lookup=False))
    world.put_record("a", group="A")
    world.run_drain()
    fail_once(world, "create", CallFailed(Failure.TRANSIENT, "no connection"))
    world.put_record("a", group="B")
    settled(world)
    assert_in_sync(world)


def test_the_id_at_the_old_place_is_not_forgotten_for_one_that_is_found_at_the_new(
    make_world: Callable[..., World],
) -> None:
    world = make_world(erp=Placed())
    world.put_record("a", group="A")
    world.run_drain()
    fail_once(world, "update", lost_answer())
    world.put_record("a", name="answer lost", group="A")
    world.run_drain()
    world.erp.by_hand({"code": "a"}, "B")
    fail_once(world, "delete", answer(503))
    world.put_record("a", group="B")
    settled(world)
    assert_in_sync(world)


# Places where a call of unknown outcome was sent ---------------------------------------------------------------------


@pytest.mark.parametrize("assigns_ids", [True, False])
@pytest.mark.parametrize("then", ["moved", "moved twice", "deleted", "moved and deleted"])
def test_what_a_lost_first_write_left_is_cleared_wherever_the_record_is_by_then(
    make_world: Callable[..., World], assigns_ids: bool, then: str
) -> None:
    world = make_world(erp=Placed(assigns_ids=assigns_ids))
    fail_once(world, writes(assigns_ids), lost_answer(), landed=True)
    world.put_record("a", group="A")
    world.run_drain()
    assert len(world.erp.store) == 1
    if "moved" in then:
        world.put_record("a", group="B")
    if "twice" in then:
        archive(world)
        world.put_record("a", group="C")
    if "deleted" in then:
        archive(world)
        world.delete_record("a")
    settled(world)
    assert_in_sync(world)


@pytest.mark.parametrize("assigns_ids", [True, False])
@pytest.mark.parametrize("then", ["deleted", "moved back", "moved on"])
def test_what_a_lost_move_left_is_cleared_wherever_the_record_is_by_then(
    make_world: Callable[..., World], assigns_ids: bool, then: str
) -> None:
    world = make_world(erp=Placed(assigns_ids=assigns_ids))
    world.put_record("a", group="A")
    world.run_drain()
    fail_once(world, writes(assigns_ids), lost_answer(), landed=True)
    world.put_record("a", group="B")
    world.run_drain()
    if then == "deleted":
        world.delete_record("a")
    else:
        world.put_record("a", group="A" if then == "moved back" else "C")
    settled(world)
    assert_in_sync(world)


def test_an_older_write_that_lands_at_the_old_place_after_the_move_is_cleared(make_world: Callable[..., World]) -> None:
    """With our ids a late update makes the record anew."""
    world = make_world(erp=Placed(assigns_ids=False))
    world.put_record("a", group="A")
    world.run_drain()
    fail_once(world, "update", lost_answer())
    world.put_record("a", name="under way", group="A")
    world.run_drain()
    world.put_record("a", group="B")
    world.run_drain()
    asyncio.run(world.erp.update(Item("a", "A", {"code": "a", "store": "A", "name": "under way"})))
    settled(world)
    assert_in_sync(world)


def test_an_empty_search_at_an_older_place_is_believed_only_after_search_lag(make_world: Callable[..., World]) -> None:
    erp = SlowToSearch()
    world = make_world(erp=erp, system={"search_lag": 30, "in_flight_window": 5})
    fail_once(world, "create", lost_answer(), landed=True)
    world.put_record("a", group="A")
    world.run_drain()
    left = set(erp.store)
    erp.indexed = False
    world.put_record("a", group="B")
    archive(world)
    world.advance_clock(15)
    world.run_drain()
    erp.store = {"made-in-B": {**world.expected_mirror()["a"]}} | erp.store
    erp.places["made-in-B"] = "B"
    world.query("UPDATE sync.records SET external_id = 'made-in-B'")
    world.run_drain()
    calls = erp.calls.total()
    world.run_drain()
    assert erp.calls.total() == calls, "it is looked at again only when there can be more to see"
    assert left <= set(erp.store)
    erp.indexed = True
    settled(world)
    assert_in_sync(world)


def test_where_nothing_can_be_searched_a_lost_create_at_another_place_is_held_for_a_person(
    make_world: Callable[..., World],
) -> None:
    """Its idempotency key is of no use at the new place."""
    world = make_world(erp=Placed(can_lookup=False, idempotent_create=True))
    fail_once(world, "create", lost_answer(), landed=True)
    world.put_record("a", group="A")
    world.run_drain()
    world.put_record("a", group="B")
    settled(world)
    assert (world.erp.calls["create"], world.read_record_row("a").stopped) == (1, "on_hold")


# Late workers --------------------------------------------------------------------------------------------------------


def leased(world: World) -> PushClaim:
    return in_transaction(world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5))[
        0
    ]


def settle_one(world: World, end: Pushed) -> Settled:
    system = world.config.third_parties["erp"]
    return in_transaction(world.engine, lambda c: settle_pushes(c, "erp", system, world.context.entities, [end]))


def pushed(world: World, claimed: PushClaim) -> Pushed:
    return asyncio.run(push_record(world.entity, claimed))


def late_and_holder(world: World) -> tuple[PushClaim, PushClaim]:
    """A lease that ran out, and the one that followed it, which has found nothing there and may create."""
    world.put_record("a")
    archive(world)
    late = leased(world)
    world.advance_clock(30)
    leased(world)
    world.advance_clock(30)
    world.query("UPDATE sync.records SET lease_until = sync.clock(), outcome_unknown_until = NULL, lease_token = NULL")
    return late, leased(world)


def test_what_a_late_create_made_while_another_push_was_under_way_goes(world: World) -> None:
    late, holder = late_and_holder(world)
    made_by_holder, made_late = pushed(world, holder), pushed(world, late)
    assert not settle_one(world, made_late).duplicates, "the holder may be adopting it"
    settle_one(world, made_by_holder)
    settled(world)
    assert_in_sync(world)
    assert world.read_record_row("a").external_id == made_by_holder.external_id


def test_what_a_late_create_made_stays_where_the_holder_has_adopted_it(world: World) -> None:
    late, holder = late_and_holder(world)
    made_late = pushed(world, late)
    world.query("UPDATE sync.records SET outcome_unknown_until = sync.clock()")
    adopted = pushed(
        world,
        holder.__class__(**{**{name: getattr(holder, name) for name in holder.__slots__}, "outcome_unknown_for": 0.0}),
    )
    assert adopted.external_id == made_late.external_id
    settle_one(world, made_late)
    settle_one(world, adopted)
    settled(world)
    assert_in_sync(world)
    assert world.erp.calls["delete"] == 0


def test_what_a_late_create_made_goes_even_if_the_process_dies_before_it_takes_it_back(world: World) -> None:
    late, holder = late_and_holder(world)
    settle_one(world, pushed(world, holder))
    assert settle_one(world, pushed(world, late)).duplicates  # and nobody removes them
    assert len(world.erp.store) == 2
    settled(world)
    assert_in_sync(world)


def test_a_late_create_that_failed_after_it_had_made_the_record_leaves_nothing(world: World) -> None:
    late, holder = late_and_holder(world)
    settle_one(world, pushed(world, holder))
    made = world.erp.by_hand({"code": "a", "store": "A"}, "A")
    fail_once(world, "create", CallFailed(Failure.TRANSIENT, "its second call failed", external_id=made))
    settle_one(world, pushed(world, late))
    settled(world)
    assert_in_sync(world)


def test_what_a_late_create_made_of_a_record_that_is_deleted_by_then_goes_from_where_it_was_made(
    make_world: Callable[..., World],
) -> None:
    world = make_world(erp=Placed(can_lookup=False))
    world.put_record("a", group="A")
    archive(world)
    late = leased(world)
    world.advance_clock(30)
    world.query("UPDATE sync.records SET lease_token = NULL, lease_until = NULL")
    world.put_record("a", group="B")
    world.run_drain()
    world.delete_record("a")
    world.run_drain()
    assert world.erp.store == {}
    settle_one(world, pushed(world, late))
    assert len(world.erp.store) == 1
    settled(world)
    assert world.erp.store == {}


def test_a_late_create_that_was_answered_with_the_record_that_is_there_takes_nothing_back(
    make_world: Callable[..., World],
) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False, idempotent_create=True))
    late, holder = late_and_holder(world)
    made_by_holder, made_late = pushed(world, holder), pushed(world, late)
    assert made_by_holder.external_id == made_late.external_id
    settle_one(world, made_late)
    settle_one(world, made_by_holder)
    settled(world)
    assert world.erp.calls["delete"] == 0
    assert_in_sync(world)

"""Two scenes in which a push leaves its plan."""

from __future__ import annotations

from collections.abc import Callable

from fakes import FakeThirdParty, lost_answer
from world import World


def test_no_second_create_follows_a_lost_one_where_nothing_can_be_searched(make_world: Callable[..., World]) -> None:
    """Rule 13: with neither a search nor idempotency keys a person decides."""
    world = make_world(erp=FakeThirdParty(can_lookup=False))
    world.put_record("a")
    world.run_drain()
    world.erp.store.clear()
    lost = iter([lost_answer()])
    world.erp.after = lambda verb, key: next(lost, None) if verb == "create" else None
    world.put_record("a", name="made anew, answer lost")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(45)
    assert len(world.erp.store) == 1


def test_no_second_create_is_sent_while_a_lost_one_may_still_land(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    world.erp.store.clear()
    lost = iter([lost_answer()])
    world.erp.before = lambda verb, key: next(lost, None) if verb == "create" else None
    world.put_record("a", name="made anew, still under way")
    world.run_drain()
    world.put_record("a", name="newer")
    world.run_drain()
    world.erp.by_hand({"code": "a", "store": "A", "name": "made anew, still under way", "count": 1}, "A")
    for _ in range(3):
        world.advance_clock(45)
        world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert len(world.erp.store) == 1

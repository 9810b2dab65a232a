"""Who is under an id: ids that are given again, restores, ids that lead nowhere, and what is left alone then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from fakes import FakeThirdParty
from http_server import Server, failure_of
from record_store import THEIRS, Store, adapter, http_world, item
from sqlalchemy import Engine
from starlette.responses import JSONResponse
from world import World

from sync_orchestrator.conformance.report import Differs
from sync_orchestrator.conformance.third_party.records import ids_that_are_given_again_are_noticed
from sync_orchestrator.core.ports import Capabilities, Found
from sync_orchestrator.core.push.decision import PushStep, Situation, after_lookup, plan_step
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.core.push.settlement import settle_pushes
from sync_orchestrator.core.values.identity import StrayId, may_be_given_again, other_key

GIFT = {"code": "GC", "name": "Gift card", "store": "A", "count": 5}


def given_again(store: Store, key: str) -> str:
    """Somebody deletes our record there, and makes another one, which gets its id."""
    external_id = store.of(key)[0]
    del store.items[external_id]
    store.items[external_id] = {"id": external_id, "v": 1, **GIFT}
    return external_id


def gift_is_whole(store: Store, external_id: str) -> bool:
    return {name: store.items[external_id][name] for name in GIFT} == GIFT


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Pushed]:
    """How pushes ended."""
    from sync_orchestrator.core.drain import pusher

    ended: list[Pushed] = []

    def noting(connection: Any, name: str, system: Any, entities: Any, pushed: Any) -> Any:
        ended.extend(pushed)
        return settle_pushes(connection, name, system, entities, pushed)

    monkeypatch.setattr(pusher, "settle_pushes", noting)
    return ended


WAYS: dict[str, dict[str, Any]] = {
    "lookup": {},
    "no lookup": {"lookup": None},
    "revision": {
        "revision": {"path": "v"},
        "update": {"method": "PUT", "path": "/items/{{ id }}", "headers": {"If-Match": "{{ revision }}"}},
    },
}


@pytest.mark.parametrize("way", ["lookup", "no lookup", "revision"])
def test_case_r15_an_update_does_not_overwrite_what_got_our_id(
    engine: Engine, server: Server, seen: list[Pushed], way: str
) -> None:
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, **WAYS[way]})
    world.put_record("a")
    world.run_drain()
    taken = given_again(store, "a")
    world.put_record("a", name="next")
    world.run_until_settled()
    assert gift_is_whole(store, taken)
    assert [store.items[external_id]["name"] for external_id in store.of("a")] == ["next"]
    assert world.read_record_row("a").external_id == store.of("a")[0] != taken
    assert next(end.calls.stray for end in seen if end.calls.stray) == StrayId(taken, "GC")
    world.close()


@pytest.mark.parametrize("way", ["lookup", "no lookup", "revision"])
def test_case_r15_a_delete_does_not_delete_what_got_our_id(engine: Engine, server: Server, way: str) -> None:
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, **WAYS[way]})
    world.put_record("a")
    world.run_drain()
    taken = given_again(store, "a")
    world.delete_record("a")
    world.run_until_settled()
    assert (gift_is_whole(store, taken), store.calls["DELETE items"]) == (True, 0)
    assert (world.read_record_row("a").external_id, world.read_record_row("a").out_of_sync) == (None, False)
    world.close()


def test_a_delete_finds_our_record_under_its_new_id(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, THEIRS)
    world.put_record("a")
    world.run_drain()
    taken = given_again(store, "a")
    store.by_hand(code="a", name="n", store="A")  # brought back there, under another id
    world.delete_record("a")
    world.run_until_settled()
    assert (store.of("a"), gift_is_whole(store, taken)) == ([], True)
    world.close()


@pytest.mark.parametrize("way", ["lookup", "no lookup", "revision"])
def test_case_r15_validation_and_its_repair_leave_alone_what_got_our_id(
    engine: Engine, server: Server, seen: list[Pushed], way: str
) -> None:
    """The source does not change at all: ours is missing, the other is unmanaged, and each is reported once."""
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, **WAYS[way]})
    world.put_record("a")
    world.run_full_sync()
    world.run_drain()
    taken = given_again(store, "a")
    found = world.run_validation(full=True)
    assert sorted((drift.key, drift.kind) for drift in found.drift) == [("GC", "unmanaged"), ("a", "missing")]
    world.run_until_settled()
    assert gift_is_whole(store, taken)
    assert [store.items[external_id]["name"] for external_id in store.of("a")] == ["n"]
    after = world.run_validation(full=True)
    assert [(drift.key, drift.kind) for drift in after.drift] == [("GC", "unmanaged")]
    assert any(end.calls.stray and end.calls.stray.external_id == taken for end in seen)
    world.close()


@pytest.mark.parametrize("can_lookup", [True, False])
def test_case_r27_a_third_party_restored_from_a_backup(engine: Engine, server: Server, can_lookup: bool) -> None:
    """The clerk's records survive a rename and a delete of those whose ids they got."""
    store = Store(server)
    world = http_world(engine, server, THEIRS if can_lookup else {**THEIRS, "lookup": None})
    for number in range(1, 4):
        world.put_record(f"P{number}")
    world.run_full_sync()
    world.run_drain()
    snapshot = copy.deepcopy(store.items)
    world.put_record("P21")
    world.put_record("P22")
    world.put_record("P2", name="renamed")
    world.run_drain()
    ids = [store.of("P21")[0], store.of("P22")[0]]
    store.items.clear()
    store.items.update(snapshot)
    clerks: list[dict[str, Any]] = [
        {"id": external_id, "v": 1, "code": f"CLERK-{number}", "name": "clerk's", "store": "A", "count": 1}
        for number, external_id in enumerate(ids)
    ]
    store.items.update({each["id"]: dict(each) for each in clerks})

    world.put_record("P21", name="renamed, too")
    world.delete_record("P22")
    world.run_until_settled(5)
    world.run_validation(full=True)
    world.run_until_settled(5)
    after = world.run_validation(full=True)

    assert [store.items[external_id] for external_id in ids] == clerks
    names = {record["code"]: record["name"] for record in store.items.values()}
    assert names == {
        "P1": "n",
        "P2": "renamed",
        "P3": "n",
        "P21": "renamed, too",
        "CLERK-0": "clerk's",
        "CLERK-1": "clerk's",
    }
    assert sorted((drift.key, drift.kind) for drift in after.drift) == [
        ("CLERK-0", "unmanaged"),
        ("CLERK-1", "unmanaged"),
    ]
    world.close()


def test_rule_28_the_response_to_an_update_shows_whose_record_it_was(engine: Engine, server: Server) -> None:
    """Where nothing is looked at first: at least the id is forgotten, and ours is made anew."""
    store = Store(server)
    world = http_world(
        engine,
        server,
        {
            **THEIRS,
            "look_first": "never",
            "update": {"method": "PUT", "path": "/items/{{ id }}", "body": {"name": "{{ payload.name }}"}},
        },
    )
    world.put_record("a")
    world.run_drain()
    taken = given_again(store, "a")
    world.put_record("a", name="next")
    world.run_until_settled()
    assert store.items[taken]["code"] == "GC"
    assert [store.items[external_id]["name"] for external_id in store.of("a")] == ["next"]
    world.close()


def test_rule_28_an_id_is_not_adopted_from_the_response_to_a_create_that_shows_another_record(
    engine: Engine, server: Server
) -> None:
    """A third party that merges records by their name would have us overwrite another one with each change."""
    store = Store(server)
    other = store.by_hand(code="other", name="n", store="A")
    store.says = lambda store, made: JSONResponse(store.items[other])
    world = http_world(engine, server, THEIRS)
    world.put_record("a")
    world.run_drain()
    row = world.read_record_row("a")
    assert (row.external_id, row.stopped, row.rejected_digest) == (None, "dead", None)
    assert "shows another record: other" in row.error
    world.close()


def test_rule_28_a_read_back_that_shows_another_record(world: World) -> None:
    """An update's answer was lost, and the id has been given again by the time it is read back."""
    from fakes import lost_answer

    world.put_record("a")
    world.run_drain()
    external_id = world.read_record_row("a").external_id
    failures = iter([lost_answer()])
    world.erp.before = lambda verb, key: next(failures, None) if verb == "update" else None
    world.put_record("a", name="next")
    world.run_drain()
    world.erp.store[external_id] = dict(GIFT)
    for _ in range(3):
        world.advance_clock(61)
        world.run_drain()
    assert world.erp.store[external_id] == GIFT
    assert [record["name"] for record in world.erp.of_key("a")] == ["next"]


def test_rule_28_a_search_whose_index_lags_gives_no_record_of_others_away(world: World) -> None:
    """The search still shows our key under an id that another record has by now: it is looked at all the same."""
    world.put_record("a")
    world.run_drain()
    external_id = world.read_record_row("a").external_id
    world.erp.store[external_id] = dict(GIFT)

    async def stale(key: str, group: str | None) -> list[Found]:
        return [Found("a", external_id, "A", {"code": "a"})]

    fresh, world.erp.lookup = world.erp.lookup, stale  # type: ignore[method-assign]
    world.put_record("a", name="next")
    world.run_drain()
    assert (world.erp.store[external_id], world.count_events_by_state()["waiting"]) == (GIFT, 2)
    world.erp.lookup = fresh  # type: ignore[method-assign]
    world.advance_clock(61)
    world.run_drain()
    assert (world.erp.store[external_id], world.erp.of_key("a")[0]["name"]) == (GIFT, "next")


def test_rule_28_the_old_place_of_a_move_is_not_deleted_if_it_is_anothers(make_world: Callable[..., World]) -> None:
    world = make_world(erp=FakeThirdParty(group_in_address=True))
    world.put_record("a", group="A")
    world.run_drain()
    external_id = world.read_record_row("a").external_id
    world.erp.store[external_id] = dict(GIFT)
    world.put_record("a", group="B")
    world.run_drain()
    assert world.erp.store[external_id] == GIFT
    assert [record["store"] for record in world.erp.of_key("a")] == ["B"]


def test_rule_28_an_unmanaged_record_is_deleted_only_if_it_is_still_there(make_world: Callable[..., World]) -> None:
    """With ``unmanaged: delete``: its id may be another record's by the time it is deleted."""
    world = make_world(entity={"validation": {"confirm_after": 0, "unmanaged": "delete"}})
    world.put_record("a")
    world.run_full_sync()
    world.run_drain()
    stranger = world.erp.by_hand({"code": "stranger", "store": "A"})
    reads = iter([None])

    def given(verb: str, key: str) -> None:
        if verb == "read" and key == "stranger" and next(reads, "again") == "again":
            world.erp.store[stranger] = dict(GIFT)

    world.erp.before = given
    world.run_validation(full=True)
    assert (world.erp.store[stranger], world.erp.calls["delete"]) == (GIFT, 0)


def test_a_random_id_is_not_looked_at(make_world: Callable[..., World]) -> None:
    """``look_first: auto``: a UUID is given once, so its record is written without a look."""
    world = make_world()
    world.put_record("a")
    world.run_drain()
    old = world.read_record_row("a").external_id
    random = "3f0e1c5e-7f3b-4c1c-9a53-0d6f2a1b9c77"
    world.erp.store[random] = world.erp.store.pop(old)
    world.erp.places[random] = "A"
    world.query("UPDATE sync.records SET external_id = %(id)s", id=random)
    world.put_record("a", name="next")
    world.run_drain()
    assert (world.erp.store[random]["name"], world.erp.calls["read"]) == ("next", 0)


@pytest.mark.parametrize(("setting", "reads"), [("auto", 1), ("always", 1), ("never", 0)])
def test_the_switch_for_the_look(engine: Engine, server: Server, setting: str, reads: int) -> None:
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, "look_first": setting})
    world.put_record("a")
    world.run_drain()
    world.put_record("a", name="next")
    world.run_drain()
    assert (store.calls["GET items"], store.calls["PUT items"]) == (reads, 1)
    world.close()


@pytest.mark.parametrize(
    ("external_id", "may"),
    [
        ("7", True),
        ("id-7", True),
        ("1234567890123456789012345678901234567890", True),
        ("abc", True),
        ("3f0e1c5e-7f3b-4c1c-9a53-0d6f2a1b9c77", False),
        ("3F0E1C5E7F3B4C1C9A530D6F2A1B9C77", False),
        ("507f1f77bcf86cd799439011", False),
        ("01ARZ3NDEKTSV4RRFFQ69G5FAV", False),
        ("507f1f77bcf86cd79943901", True),
    ],
)
def test_which_ids_may_be_given_again(external_id: str, may: bool) -> None:
    assert may_be_given_again(external_id) is may


@pytest.mark.parametrize(
    ("shown", "other"),
    [
        ("P1", None),
        ("p1", None),
        (" P1 ", None),
        (None, None),
        ("", None),
        ("P2", "P2"),
        ("P11", "P11"),
    ],
)
def test_whose_key_is_shown(shown: str | None, other: str | None) -> None:
    """A changed spelling of our key is ours; no key at all says nothing."""
    assert other_key("P1", shown) == other


# Rule 23: an id that leads to nothing is no proof.

SEARCHED = Capabilities(assigns_ids=True, can_lookup=True, idempotent_create=False, group_in_address=False)
BLIND = Capabilities(assigns_ids=True, can_lookup=False, idempotent_create=False, group_in_address=False)
LOST = Situation(False, b"now", None, None, None, True, False, None, lost=True, acknowledged_ago=0.5)


def test_rule_23_a_lost_id_is_searched_or_waited_for() -> None:
    assert plan_step(LOST, SEARCHED) is PushStep.LOOK_UP
    assert plan_step(LOST, BLIND) is PushStep.WAIT
    assert plan_step(Situation(False, b"now", None, None, None, True, False, 3.0, lost=True), BLIND) is PushStep.WAIT
    assert plan_step(Situation(False, b"now", None, None, None, True, False, -1.0, lost=True), BLIND) is PushStep.FORGET
    assert after_lookup(LOST, None, 1.0) is None, "its search may not show it yet"
    assert after_lookup(LOST, None, 0.2) is PushStep.CREATE
    assert after_lookup(LOST, "7", 1.0) is PushStep.UPDATE


def test_rule_23_without_a_search_the_in_flight_window_passes_before_a_record_is_made_again(
    make_world: Callable[..., World],
) -> None:
    """For a while its reads and updates answer "not found", and its record is there all the same."""
    world = make_world(erp=FakeThirdParty(can_lookup=False))
    world.put_record("a")
    world.run_drain()
    hidden = dict(world.erp.store)
    world.erp.store.clear()
    world.put_record("a", name="next")
    world.run_drain()
    assert (world.erp.calls["create"], world.read_record_row("a").external_id) == (1, next(iter(hidden)))
    world.erp.store.update(hidden)
    world.advance_clock(20)
    world.run_drain()
    assert [record["name"] for record in world.erp.of_key("a")] == ["next"]
    assert (world.erp.calls["create"], world.read_record_row("a").attempts) == (1, 0)


def test_rule_23_without_a_search_a_record_that_stays_away_is_made_again(make_world: Callable[..., World]) -> None:
    world = make_world(erp=FakeThirdParty(can_lookup=False))
    world.put_record("a")
    world.run_drain()
    world.erp.store.clear()
    world.put_record("a", name="next")
    for _ in range(3):
        world.run_drain()
        world.advance_clock(20)
    assert [record["name"] for record in world.erp.of_key("a")] == ["next"]
    assert not world.read_record_row("a").out_of_sync


def test_rule_23_the_key_is_searched_though_search_first_is_off(world: World) -> None:
    """The record was brought back there under another id."""
    world.put_record("a")
    world.run_drain()
    record = world.erp.store.pop(world.read_record_row("a").external_id)
    other = world.erp.by_hand(record, "A")
    world.put_record("a", name="next")
    world.run_drain()
    assert (world.erp.calls["create"], world.read_record_row("a").external_id) == (1, other)
    assert world.erp.store[other]["name"] == "next"


def test_rule_23_a_search_that_lags_is_waited_for(make_world: Callable[..., World]) -> None:
    world = make_world(system={"search_lag": 30})
    world.put_record("a")
    world.run_drain()
    world.erp.store.clear()
    world.put_record("a", name="next")
    world.run_drain()
    assert world.erp.calls["create"] == 1
    world.advance_clock(31)
    world.run_drain()
    assert (world.erp.calls["create"], world.erp.of_key("a")[0]["name"]) == (2, "next")


# Bulk results, and the conformance suite.

BULK = {
    **THEIRS,
    "update": None,
    "look_first": "never",
    "bulk_update": {
        "request": {"path": "/bulk"},
        "item": {"id": "{{ id }}"},
        "results": "results",
        "status": "status",
        "result_id": "id",
        "gather": 0.01,
    },
}


@pytest.mark.parametrize(
    ("result", "not_ours", "unknown"),
    [
        ({"status": 200, "id": "7", "code": "GC"}, "GC", False),
        ({"status": 200, "id": "8"}, None, True),
    ],
)
async def test_rule_28_a_bulk_result_that_is_another_records(
    server: Server, result: dict[str, Any], not_ours: str | None, unknown: bool
) -> None:
    server.respond_with({"results": [result]})
    third_party = adapter(server, BULK)
    failure = await failure_of(third_party.update(item("k1", "7")))
    assert (failure.not_ours, failure.unknown) == (not_ours, unknown)
    await third_party.close()


class _Recycling(FakeThirdParty):
    """Gives an id again as soon as its record is deleted."""

    def by_hand(self, fields: dict[str, Any], group: str | None = None) -> str:
        self._next = len(self.store)
        return super().by_hand(fields, group)


class _Bench:
    def __init__(self, third_party: FakeThirdParty) -> None:
        self.third_party = third_party
        self.capabilities = third_party.capabilities
        self._numbers = iter(range(100))

    def make_item(self) -> Any:
        return item(f"k{next(self._numbers)}")

    async def create_record(self, made: Any) -> Any:
        from dataclasses import replace

        return replace(made, external_id=await self.third_party.create(made))

    async def poll_until(self, look: Callable[[], Any], fits: Callable[[Any], object]) -> Any:
        return await look()

    def point_to_fix(self, section: str, method: str) -> str:
        return f"see {section}"


async def test_the_conformance_suite_notices_ids_that_are_given_again() -> None:
    await ids_that_are_given_again_are_noticed(_Bench(FakeThirdParty()))
    await ids_that_are_given_again_are_noticed(_Bench(_Recycling()))
    careless = _Recycling()
    careless.capabilities = Capabilities(True, True, False, False, look_first="never")
    with pytest.raises(Differs, match="given again") as caught:
        await ids_that_are_given_again_are_noticed(_Bench(careless))
    assert "look_first to auto" in caught.value.hint

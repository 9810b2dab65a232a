"""What fails spends little, tells once, and holds up nobody else (rules 16 to 19 and 2)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from fakes import FakeSource, FakeThirdParty, answer, lost_answer, two_part_config
from scenes import fill_sources, watch_for_alerts
from sqlalchemy import Engine
from world import World

from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.connections import build_arguments
from sync_orchestrator.core.drain import drain as draining
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.drain.wakeup import CHANNEL, wait_for_work
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.ports import PartRead, SourceSystem
from sync_orchestrator.core.systems import rate_limit
from sync_orchestrator.core.systems.pauses import set_paused
from sync_orchestrator.core.systems.rate_limit import shared_rate
from sync_orchestrator.errors import CallFailed, Failure

HOUR = 3600.0


# Before a group's first full sync (16) -------------------------------------------------------------------------------


def test_an_update_before_the_first_full_sync_costs_nothing_and_is_told_of_after_a_day(world: World) -> None:
    for version in (5, 6):
        world.post_event("shop", "a", "update", version, {"name": "n", "store": "A"}, group="A")
    world.run_drain()
    for _ in range(3):
        world.advance_clock(7.8 * HOUR)
        assert world.run_drain().events == 0
        assert watch_for_alerts(world) == []
    world.advance_clock(HOUR)
    assert watch_for_alerts(world) == watch_for_alerts(world) == [("stuck_waiting", 1)]
    assert [row.attempts for row in world.query("SELECT attempts FROM sync.events")] == [0, 0]
    assert world.count_events_by_state() == {"waiting": 2}


def test_an_alert_of_changes_that_wait_long_ends_when_their_record_came(world: World) -> None:
    world.post_event("shop", "a", "update", 5, {"name": "n", "store": "A"}, group="A")
    world.run_drain()
    world.advance_clock(25 * HOUR)
    assert watch_for_alerts(world) == [("stuck_waiting", 1)]
    world.put_record("a", notify=False)
    world.run_full_sync()
    world.run_drain()
    assert set(world.count_events_by_state()) <= {"done", "superseded"}
    assert watch_for_alerts(world) == []


def test_a_full_sync_tries_again_what_waits_or_is_dead_in_what_it_covered_and_nothing_else(world: World) -> None:
    for key, group in (("a", "A"), ("b", "B")):
        world.put_record(key, group=group, notify=False)
        world.post_event("shop", key, "update", 5, {"name": "n", "store": group}, group=group)
    world.erp.before = lambda verb, key: answer(422) if key == "refused" else None
    world.put_record("refused", group="A")
    world.run_drain()
    assert world.count_events_by_state() == {"waiting": 2, "dead": 2}
    world.erp.before = lambda verb, key: None
    world.query("UPDATE sync.records SET rejected_digest = NULL")
    world.run_full_sync("A")
    world.run_drain()
    assert sorted(world.mirror_by_key()) == ["a", "refused"]
    assert [(row.key, row.state) for row in world.query("SELECT key, state FROM sync.events")] == [("b", "waiting")]


def test_a_full_sync_tries_again_what_died_of_something_else_than_its_payload(world: World) -> None:
    """Its payload was refused once, has changed since, and then ended with another error each time."""
    world.erp.before = lambda verb, key: answer(422)
    world.put_record("a")
    world.run_drain()
    world.erp.before = lambda verb, key: answer(500)
    world.put_record("a", name="other")
    for _ in range(4):
        world.run_drain()
        world.advance_clock(100)
    assert world.read_record_row("a").stopped == "dead"
    world.erp.before = lambda verb, key: None
    world.run_full_sync()
    assert (world.mirror_by_key()["a"]["name"], watch_for_alerts(world)) == ("other", [])


# Ends and alerts (17) ------------------------------------------------------------------------------------------------


def test_waiting_and_dead_events_finish_when_applied_passes_them(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    world.shop.down = True
    world.post_event("shop", "a", "update", world.shop.version + 1)  # waits for its source
    world.run_drain()
    world.erp.before = lambda verb, key: answer(422)
    world.post_event("shop", "a", "update", world.shop.version + 2, {"name": "refused", "store": "A"})
    world.run_drain()
    assert world.count_events_by_state() == {"done": 2, "waiting": 1, "dead": 1}
    world.erp.before = lambda verb, key: None
    world.post_event("shop", "a", "update", world.shop.version + 3, {"name": "accepted", "store": "A"})
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "accepted"
    assert world.count_events_by_state() == {"done": 4, "superseded": 1}
    assert watch_for_alerts(world) == []


def test_one_alert_for_a_cause_in_which_a_record_counts_once(world: World) -> None:
    statuses = {"a": 422, "b": 422, "c": 400, "d": 422}
    world.erp.before = lambda verb, key: answer(statuses[key]) if key in statuses else None
    for key in "abc":
        world.put_record(key)
    world.put_record("fine")
    world.run_drain()
    assert watch_for_alerts(world) == [("dead", 1), ("dead", 2)]
    world.put_record("a", name="no better")
    world.put_record("d")
    world.put_record("fine", name="so that the breaker stays closed")
    world.run_drain()
    assert watch_for_alerts(world) == [("dead", 1), ("dead", 3)]
    assert world.query("SELECT examples FROM sync.alerts WHERE n = 3")[0].examples in (["a", "b", "d"], ["b", "a", "d"])


# Validation (18) -----------------------------------------------------------------------------------------------------


def test_a_third_party_that_cannot_be_asked_makes_no_verdict_and_no_alert(world: World) -> None:
    fill_sources(world, 3)
    world.run_full_sync()
    assert world.run_validation().verdict == "in_sync"
    world.erp.before = lambda verb, key: answer(503) if verb in ("count", "list") else None
    assert world.run_validation().verdict == world.run_validation(full=True).verdict == "not_validated"
    set_paused(world.engine, "erp", {"item"}, paused=True)
    assert world.run_validation().verdict == "not_validated"
    assert watch_for_alerts(world) == []


def test_an_unmanaged_record_that_cannot_be_deleted_now_does_not_end_the_validation(
    make_world: Callable[..., World],
) -> None:
    world = make_world(entity={"validation": {"confirm_after": 0, "unmanaged": "delete"}})
    fill_sources(world, 3)
    world.run_full_sync()
    world.erp.by_hand({"code": "z", "store": "A"})
    world.advance_clock(1)
    world.erp.before = lambda verb, key: answer(503) if verb == "delete" else None
    assert world.run_validation(full=True).unmanaged == 1


# Nobody is held up (19) ----------------------------------------------------------------------------------------------


def test_a_poison_record_opens_no_breaker_and_holds_up_nobody(world: World) -> None:
    world.erp.before = lambda verb, key: answer(500) if key == "poison" else None
    for round_ in range(4):
        world.put_record("poison", name=f"still poison {round_}")
        for number in range(5):
            world.put_record(f"k{number}", name=f"round {round_}")
        world.run_drain()
        world.advance_clock(11)
        assert world.query("SELECT open_since FROM sync.systems WHERE name = 'erp'")[0].open_since is None
        assert [record["name"] for record in world.mirror_by_key().values()] == [f"round {round_}"] * 5


def test_a_hot_record_that_changes_at_every_push_holds_up_nobody(make_world: Callable[..., World]) -> None:
    world = make_world(system={"concurrency": 1})
    order: list[str] = []

    async def changes_again(verb: str, key: str) -> None:
        if verb == "read":  # the look before the write
            return
        order.append(key)
        if key == "hot" and order.count("hot") < 20:
            await asyncio.to_thread(world.put_record, "hot", name=f"change {len(order)}")

    world.erp.gate = changes_again
    world.put_record("hot")
    for number in range(20):
        world.put_record(f"k{number}")
    asyncio.run(drain(world.context, linger=0.4, most_seconds=20))
    assert world.mirror_by_key() == world.expected_mirror()
    assert order.count("hot") == 20
    last = max(order.index(f"k{number}") for number in range(20))
    assert order[:last].count("hot") <= 2


def test_live_changes_go_before_what_a_full_sync_of_a_large_group_filled_in(make_world: Callable[..., World]) -> None:
    world = make_world(system={"concurrency": 1})
    set_paused(world.engine, "erp", {"item"}, paused=True)
    fill_sources(world, 40)
    world.run_full_sync(patience=0)
    world.put_record("live", group="B")
    world.run_drain()
    order: list[str] = []
    world.erp.before = lambda verb, key: order.append(key)
    set_paused(world.engine, "erp", {"item"}, paused=False)
    world.run_drain()
    assert (order[0], len(order)) == ("live", 41)


@dataclass
class TwoThirdParties(World):
    """The same, and orders, which are kept at a third party of their own."""

    crm: FakeThirdParty = field(default_factory=FakeThirdParty)

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.config.model_dump()
        both["third_parties"]["crm"] = both["third_parties"]["erp"]
        item = both["entities"]["item"]
        both["entities"]["order"] = {**item, "third_party": {**item["third_party"], "system": "crm"}}
        notes = {
            name: {**call, "path": f"/notes{call['path']}"} if isinstance(call, dict) and "path" in call else call
            for name, call in item["third_party"].items()
        }
        both["entities"]["note"] = {**item, "third_party": notes}
        self.config = Config.model_validate(both)
        sources: dict[str, dict[str, SourceSystem]] = {
            name: {"shop": FakeSource(), "stock": FakeSource()} for name in both["entities"]
        }
        self.context = build_context(
            self.engine,
            self.config,
            sources,
            {
                "item": self.erp,
                "note": self.erp,
                "order": self.crm,
            },
        )

    def create(self, entity: str, *keys: str) -> None:
        record_events(
            self.engine,
            [
                ChangeEvent(source, f"{entity} {source} {key}", entity, key, "create", 1, {"name": key, "store": "A"})
                for key in keys
                for source in ("shop", "stock")
            ],
        )

    def in_sync(self, entity: str) -> int:
        return int(
            self.query(
                "SELECT count(*) FROM sync.records WHERE entity = %(entity)s AND ready AND NOT out_of_sync",
                entity=entity,
            )[0][0]
        )


@pytest.fixture
def two(engine: Engine) -> TwoThirdParties:
    return TwoThirdParties(engine, two_part_config())


KEYS = tuple("abcdefgh")


def test_a_paused_third_party_or_entity_holds_up_nobody_else_and_goes_on_when_resumed(two: TwoThirdParties) -> None:
    set_paused(two.engine, "erp", set(two.context.entities), paused=True)
    set_paused(two.engine, "note", set(two.context.entities), paused=True)
    for entity in ("item", "order", "note"):
        two.create(entity, *KEYS)
    two.run_drain()
    assert {entity: two.in_sync(entity) for entity in two.context.entities} == {"item": 0, "note": 0, "order": 8}
    set_paused(two.engine, "erp", set(two.context.entities), paused=False)
    two.run_drain()
    assert {entity: two.in_sync(entity) for entity in two.context.entities} == {"item": 8, "note": 0, "order": 8}
    set_paused(two.engine, "note", set(two.context.entities), paused=False)
    two.run_drain()
    assert two.count_events_by_state() == {"done": 48}


def test_a_source_that_does_not_answer_holds_up_no_other_entity(
    two: TwoThirdParties, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both() -> None:
        answers, mirrored = asyncio.Event(), asyncio.Event()
        two.crm.after = lambda verb, key: mirrored.set() if len(two.crm.store) == len(KEYS) else None

        async def read(key: str) -> PartRead | None:
            await answers.wait()
            return None

        monkeypatch.setattr(two.context.entities["item"].sources["shop"], "read", read)
        two.post_event("shop", "a", "create", 1)
        two.create("order", *KEYS)
        task = asyncio.create_task(drain(two.context, linger=0, most_seconds=60))
        await asyncio.wait_for(mirrored.wait(), 30)
        answers.set()
        await task

    asyncio.run(both())


def test_a_dead_third_party_holds_up_nobody_else(two: TwoThirdParties) -> None:
    two.erp.before = lambda verb, key: lost_answer()
    for entity in ("item", "order"):
        two.create(entity, *KEYS)
    two.run_drain()
    assert (two.in_sync("item"), two.in_sync("order")) == (0, 8)
    breakers = {row.name: row.open_since is not None for row in two.query("SELECT name, open_since FROM sync.systems")}
    assert (breakers["erp"], breakers["crm"]) == (True, False)


def test_a_third_party_that_does_not_answer_holds_up_nobody_else(two: TwoThirdParties) -> None:
    """Its calls hang until the other has everything; were one to wait for the other, this would time out."""
    other_has_all = asyncio.Event()

    async def hangs(verb: str, key: str) -> None:
        await asyncio.wait_for(other_has_all.wait(), 20)

    async def counts(verb: str, key: str) -> None:
        if two.crm.calls["create"] == 8:
            other_has_all.set()

    two.erp.gate, two.crm.gate = hangs, counts
    for entity in ("item", "order"):
        two.create(entity, *KEYS)
    two.run_drain()
    assert (two.in_sync("item"), two.in_sync("order")) == (8, 8)


# Rates (19) ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Failure.THROTTLED, Failure.TRANSIENT])
def test_retry_after_is_obeyed_by_every_run(world: World, make_world: Callable[..., World], kind: Failure) -> None:
    asked = iter([CallFailed(kind, "answer 429", status=429, retry_after=120)])
    world.erp.before = lambda verb, key: next(asked, None)
    world.put_record("a")
    world.run_drain()
    assert world.read_record_row("a").attempts == (0 if kind is Failure.THROTTLED else 1)
    world.put_record("b")
    world.put_record("c", notify=False)
    calls = world.erp.calls.copy()
    for _ in range(2):
        world.advance_clock(55)
        world.run_drain()
        world.run_full_sync()
    assert world.erp.calls == calls
    world.advance_clock(11)
    world.run_drain()
    assert (world.mirror_by_key(), world.count_events_by_state()) == (world.expected_mirror(), {"done": 4})


def test_retry_after_is_believed_for_an_hour_at_most(world: World) -> None:
    asked = iter([CallFailed(Failure.THROTTLED, "answer 429", status=429, retry_after=1e9)])
    world.erp.before = lambda verb, key: next(asked, None)
    world.put_record("a")
    world.run_drain()
    world.put_record("b")
    world.advance_clock(HOUR + 1)
    world.run_drain()
    assert "b" in world.mirror_by_key()


def test_a_rate_is_shared_by_all_who_use_the_database(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    async def no_sleep(seconds: float) -> None:
        waits.append(seconds)

    async def calls() -> None:
        for one in (shared_rate(world.engine, "erp", 0.1), shared_rate(world.engine, "erp", 0.1)) * 3:
            await one()

    before = world.query("SELECT clock_timestamp() AS now")[0].now
    monkeypatch.setattr(rate_limit.asyncio, "sleep", no_sleep)  # type: ignore[attr-defined]
    asyncio.run(calls())
    reserved = world.query("SELECT next_call FROM sync.systems WHERE name = 'erp'")[0].next_call
    assert (reserved - before).total_seconds() >= 50  # six calls, ten seconds apart, the first at once
    assert len(waits) == 5
    assert waits == sorted(waits)


# Waits (2) -----------------------------------------------------------------------------------------------------------


@contextmanager
def deaf(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No announcement reaches a drain."""

    def nothing(*_: Any) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    with monkeypatch.context() as patch:
        patch.setattr(draining, "listen_for_work", nothing)
        yield


def test_a_drain_that_lingers_ends_every_wait_by_the_next_due_time_though_nothing_is_announced(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(entity={"retry": {"first_wait": 0.3, "jitter": 0}})
    failures = iter([CallFailed(Failure.TRANSIENT, "no connection")])
    world.erp.before = lambda verb, key: next(failures, None)
    world.put_record("a")
    world.put_record("b", notify=False)
    world.shop.down = True
    row = world.shop.rows["b"]
    world.post_event("shop", "b", "create", row.version)
    whole = world.stock.read

    async def hints(key: str) -> Any:
        world.shop.down = False
        return await whole(key)

    monkeypatch.setattr(world.stock, "read", hints)
    world.put_record("c", notify=False)
    world.post_event("shop", "c", "create", world.shop.rows["c"].version, world.shop.rows["c"].data)
    with deaf(monkeypatch):
        asyncio.run(drain(world.context, linger=1.2, most_seconds=20))
    assert (world.mirror_by_key(), world.count_events_by_state()) == (world.expected_mirror(), {"done": 4})


def test_work_that_nobody_announced_is_found_by_who_waits_for_it(world: World) -> None:
    found: list[bool] = []
    waiting = threading.Thread(
        target=lambda: found.append(wait_for_work(world.engine, {"item": "erp", "other": "erp"}, 10))
    )
    waiting.start()
    with world.engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO sync.events (source, event_id, entity, key, action, version, thin, content_hash) "
            "VALUES ('shop', 'e', 'item', 'a', 'create', 1, true, '')"
        )
    waiting.join(5)
    assert found == [True]


def test_a_group_of_events_is_announced_once(world: World) -> None:
    with psycopg.connect(**build_arguments(world.engine.url), autocommit=True) as listener:
        listener.execute(f"LISTEN {CHANNEL}")
        record_events(
            world.engine, [ChangeEvent("shop", f"e{n}", "item", f"k{n}", "create", 1, {}) for n in range(200)]
        )
        assert len(list(listener.notifies(timeout=0.2))) == 1

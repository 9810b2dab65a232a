"""Random histories over the real database: invariants 1 to 8 hold after every step, and at the end all is in step.

A history is changes, deliveries (late, twice, out of order), drains, faults, time passing, full syncs, re-drives, and
deaths at the crash points of all of these. Real processes are killed in ``test_crashes.py``; planted bugs are in
``test_planted_bugs.py``.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, ClassVar, TypeVar

import pytest
from conftest import World
from fakes import answer, lost_answer
from hypothesis import HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from sync_orchestrator.core.crash_points import REGISTERED
from sync_orchestrator.core.errors import GroupBusy
from sync_orchestrator.core.ledger import redrive
from sync_orchestrator.core.statements import push as push_statements

HISTORIES = int(os.environ.get("SYNC_TEST_HISTORIES", "100"))
STEPS = int(os.environ.get("SYNC_TEST_STEPS", "50"))

KEYS = ("a", "b", "c")
GROUPS = ("A", "B")
FAULTS = ("none", "none", "lost", "before", "after", "down", "refuse a")

WEIGHTS = {"change": 6, "deliver": 10, "drain": 6, "time_passes": 4, "change_stock": 2, "delete": 2, "deliver_again": 2,
           "third_party_turns": 2, "full_sync": 2, "will_die": 3, "redrive": 1, "lease_is_lost": 1}
POINTS = sorted(name for name in set(REGISTERED) if name.startswith(("events.", "drain.", "push.", "full_sync.")))

T = TypeVar("T")

TABLES = ("events", "event_history", "event_ids", "tallies", "parts", "records", "push_attempts", "breaker_failures",
          "groups", "full_sync_keys", "validations", "drift", "alerts", "alert_receivers", "alert_records",
          "systems", "entities")


class Histories(RuleBasedStateMachine):
    """One history; ``make_world`` is set by the test."""

    make_world: Callable[..., World]
    deaths: ClassVar[Counter[str]] = Counter()
    events = 0
    number = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).make_world(system={"breaker": {"failures": 4, "probe_after": 5}})
        self.sent: list[tuple[str, str, str, int, Any, str]] = []
        self.held: list[tuple[str, str, str, int, Any, str]] = []
        self.ids: set[tuple[str, str]] = set()
        self.versions: dict[tuple[str, str], tuple[int, int]] = {}
        self.fault = "none"
        self.calls = 0
        self.refused = False
        self.random = Random(0)
        self.steps = 0
        self.deadly: tuple[str, int] | None = None

    @initialize()
    def begin(self) -> None:
        self.world.query("TRUNCATE " + ", ".join(f"sync.{table}" for table in TABLES))
        for name in ("erp", "shop", "stock"):
            self.world.query(push_statements.REGISTER_SYSTEM, name=name)
        self.world.erp.before = self._before
        self.world.erp.after = self._after

    def _before(self, verb: str, key: str) -> Exception | None:
        self.calls += 1
        if self.fault == "down":
            return answer(503)
        if self.fault == "refuse a" and key == "a" and verb in ("create", "update"):
            self.refused = True
            return answer(422)
        return answer(500) if self.fault == "before" and self.calls % 3 == 0 else None

    def _after(self, verb: str, key: str) -> Exception | None:
        if verb in ("create", "update", "delete"):
            if self.fault == "lost" and self.calls % 2 == 0:
                return lost_answer()
            if self.fault == "after" and self.calls % 3 == 0:
                return answer(500)
        return None

    def _notify(self, source: str, key: str, action: str, version: int, data: Any) -> None:
        self.held.append((source, key, action, version, data, f"e{len(self.sent) + len(self.held)}"))

    @rule(entropy=st.integers(0, 2**64 - 1))
    def step(self, entropy: int) -> None:
        """One rule for all, so that each history has much of everything.

        The history's number is what tells histories apart: Hypothesis' own are mostly variants of a few.
        """
        self.steps += 1
        self.random = Random(f"{self.number} {self.steps} {entropy}")
        command, = self.random.choices(list(WEIGHTS), list(WEIGHTS.values()))
        note(command)
        getattr(self, f"_{command}")()

    def _any(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def _change(self) -> None:
        """The owner creates, updates or moves; the other part comes with a create."""
        world, key, group, name = self.world, self._any(KEYS), self._any(GROUPS), self._any(range(4))
        action = "update" if key in world.shop.rows else "create"
        row = world.shop.put(key, {"key": key, "name": f"n{name}", "store": group, "v": 0}, group=group)
        self._notify("shop", key, action, row.version, row.data)
        if key not in world.stock.rows:
            stock = world.stock.put(key, {"key": key, "count": name, "v": 0})
            self._notify("stock", key, "create", stock.version, stock.data)

    def _change_stock(self) -> None:
        key = self._any(KEYS)
        if key in self.world.stock.rows:
            row = self.world.stock.put(key, {"key": key, "count": self._any(range(10)), "v": 0})
            self._notify("stock", key, "update", row.version, row.data)

    def _delete(self) -> None:
        key = self._any(KEYS)
        if key in self.world.shop.rows:
            self._notify("shop", key, "delete", self.world.shop.remove(key), None)

    def _deliver(self) -> None:
        """Any of the notifications not sent yet, so in any order; whole or only the key."""
        if self.held:
            source, key, action, version, part, event_id = self.held.pop(self._any(range(len(self.held))))
            thin = self._any((False, True)) and action != "delete"
            self.sent.append((source, key, action, version, None if thin else part, event_id))
            self._send(self.sent[-1])

    def _deliver_again(self) -> None:
        if self.sent:
            self._send(self._any(self.sent))

    def _send(self, event: tuple[str, str, str, int, Any, str]) -> None:
        source, key, action, version, part, event_id = event
        self.world.tell(source, key, action, version, part, event_id=event_id)
        self.ids.add((source, event_id))

    def _drain(self) -> None:
        self._run(self.world.drain)

    def _time_passes(self) -> None:
        self.world.later(self._any((1, 6, 11, 45, 70)))

    def _third_party_turns(self) -> None:
        self.fault = self._any(FAULTS)

    def _full_sync(self) -> None:
        group = self._any(GROUPS)
        with suppress(GroupBusy):
            self._run(lambda: self.world.full_sync(group, allow_deletions=10))

    def _will_die(self) -> None:
        """The next process to reach a crash point so often dies there; its leases run out later."""
        self.deadly = self._any(POINTS), self._any((1, 2, 3))

    def _run(self, work: Callable[[], object]) -> None:
        if self.deadly is None:
            work()
        elif self.world.killed(work, *self.deadly):
            self.deaths[self.deadly[0]] += 1
            self.deadly = None

    def _redrive(self) -> None:
        redrive(self.world.engine)
        redrive(self.world.engine)

    def _lease_is_lost(self) -> None:
        """As after a crash between claim and push: events and records are left leased."""
        self.world.query("UPDATE sync.events SET state = 'leased', lease_until = sync.clock(), lease_token = 1 "
                         "WHERE state = 'pending'")
        self.world.query("UPDATE sync.records SET lease_token = 1, lease_until = sync.clock() "
                         "WHERE out_of_step AND lease_token IS NULL AND parked IS NULL")
        self.world.later(0.1)

    @invariant()
    def each_event_is_in_one_state_and_none_is_lost(self) -> None:
        totals = self.world.totals()
        assert totals.received == len(self.ids), "a delivered event is not counted once"
        assert totals.balanced, totals
        rows = self.world.query("SELECT source, event_id FROM sync.events UNION ALL "
                                "SELECT source, event_id FROM sync.event_history")
        assert sorted((row.source, row.event_id) for row in rows) == sorted(self.ids)

    @invariant()
    def versions_never_go_down(self) -> None:
        for row in self.world.query("SELECT key, part, epoch, version FROM sync.parts"):
            now = (row.epoch, row.version)
            assert now >= self.versions.get((row.key, row.part), now)
            self.versions[row.key, row.part] = now

    @invariant()
    def one_push_at_most_is_under_way_for_a_record(self) -> None:
        assert self.world.erp.most_under_way <= 1

    @invariant()
    def what_is_not_finished_will_be_picked_up(self) -> None:
        """An event that waits for a push has a record that is out of step, or one whose parts are not all here."""
        lost = self.world.query(
            "SELECT e.seq FROM sync.events e JOIN sync.records r USING (entity, key) "
            "WHERE e.revision IS NOT NULL AND e.state <> 'dead' AND r.ready AND NOT r.out_of_step")
        assert not lost

    def teardown(self) -> None:
        """Faults stop, everything is delivered: the third party equals the sources."""
        self.fault = "none"
        while self.held:
            event = self.held.pop()
            self.sent.append(event)
            self._send(event)
        for group in ("A", "B"):
            self.world.later(70)
            self.world.drain()
            self.world.full_sync(group, allow_deletions=10)
        if self.refused:
            self.world.query("UPDATE sync.records SET rejected_digest = NULL")
        redrive(self.world.engine)
        for _ in range(6):
            self.world.later(70)
            redrive(self.world.engine)
            self.world.query("UPDATE sync.records SET parked = NULL, due_at = sync.clock() WHERE out_of_step")
            self.world.drain()
        self.each_event_is_in_one_state_and_none_is_lost()
        self.what_is_not_finished_will_be_picked_up()
        assert self.world.mirrored() == self.world.truth()
        assert len(self.world.erp.store) == len(self.world.truth()), "twins"
        states = self.world.states()
        type(self).events += len(self.ids)
        self.world.close()
        assert set(states) <= {"done", "superseded", "waiting"}, states


def play(make_world: Callable[..., World], histories: int, steps: int) -> None:
    class Played(Histories):
        deaths: ClassVar[Counter[str]] = Counter()

    Played.make_world = staticmethod(make_world)  # type: ignore[assignment]
    for Played.number in range(histories):
        run_state_machine_as_test(Played, settings=settings(
            max_examples=1, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck)))
    assert Played.events > histories * steps / 8, f"hardly anything happened: {Played.events} events"
    assert len(Played.deaths) >= min(histories // 10, 12), f"hardly anything died: {Played.deaths}"


@pytest.mark.timeout(3600)
def test_invariants_hold_in_random_histories(make_world: Callable[..., World]) -> None:
    play(make_world, HISTORIES, STEPS)

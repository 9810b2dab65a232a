"""Random histories over the real database: invariants 1 to 8 hold after every step, and at the end all is in step.

A history is changes, deliveries (late, twice, out of order), drains, faults, time passing, full syncs, re-drives.
Planted bugs: ``test_planted_bugs.py``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from conftest import World
from fakes import answer, lost_answer
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from sync_orchestrator.core.ledger import redrive
from sync_orchestrator.core.statements import push as push_statements

HISTORIES = int(os.environ.get("SYNC_TEST_HISTORIES", "100"))
STEPS = int(os.environ.get("SYNC_TEST_STEPS", "50"))

KEYS = st.sampled_from(["a", "b", "c"])
GROUPS = st.sampled_from(["A", "B"])
FAULTS = st.sampled_from(["none", "lost", "before", "after", "down", "refuse a"])

TABLES = ("events", "event_history", "event_ids", "tallies", "parts", "records", "push_attempts", "breaker_failures",
          "groups", "full_sync_keys", "validations", "drift", "alerts", "alert_records", "systems", "entities")


class Histories(RuleBasedStateMachine):
    """One history; ``make_world`` is set by the test."""

    make_world: Callable[..., World]

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

    @rule(key=KEYS, group=GROUPS, name=st.integers(0, 3))
    def change(self, key: str, group: str, name: int) -> None:
        """The owner creates, updates or moves; the other part comes with a create."""
        world = self.world
        action = "update" if key in world.shop.rows else "create"
        row = world.shop.put(key, {"key": key, "name": f"n{name}", "store": group, "v": 0}, group=group)
        self._notify("shop", key, action, row.version, row.data)
        if key not in world.stock.rows:
            stock = world.stock.put(key, {"key": key, "count": name, "v": 0})
            self._notify("stock", key, "create", stock.version, stock.data)

    @rule(key=KEYS, count=st.integers(0, 9))
    def change_stock(self, key: str, count: int) -> None:
        if key in self.world.stock.rows:
            row = self.world.stock.put(key, {"key": key, "count": count, "v": 0})
            self._notify("stock", key, "update", row.version, row.data)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        if key in self.world.shop.rows:
            self._notify("shop", key, "delete", self.world.shop.remove(key), None)

    @rule(data=st.data(), thin=st.booleans())
    @precondition(lambda self: self.held)
    def deliver(self, data: st.DataObject, thin: bool) -> None:
        """Any of the notifications not sent yet, so in any order; whole or only the key."""
        event = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        source, key, action, version, part, event_id = event
        sent = (source, key, action, version, None if thin and action != "delete" else part, event_id)
        self.sent.append(sent)
        self._send(sent)

    @rule(data=st.data())
    @precondition(lambda self: self.sent)
    def deliver_again(self, data: st.DataObject) -> None:
        self._send(data.draw(st.sampled_from(self.sent)))

    def _send(self, event: tuple[str, str, str, int, Any, str]) -> None:
        source, key, action, version, part, event_id = event
        self.world.tell(source, key, action, version, part, event_id=event_id)
        self.ids.add((source, event_id))

    @rule()
    def drain(self) -> None:
        self.world.drain()

    @rule(seconds=st.sampled_from([1, 6, 11, 45]))
    def time_passes(self, seconds: int) -> None:
        self.world.later(seconds)

    @rule(fault=FAULTS)
    def third_party_turns(self, fault: str) -> None:
        self.fault = fault

    @rule(group=GROUPS)
    @precondition(lambda self: self.fault not in ("down",))
    def full_sync(self, group: str) -> None:
        self.world.full_sync(group, allow_deletions=10)

    @rule()
    def redrive(self) -> None:
        redrive(self.world.engine)
        redrive(self.world.engine)

    @rule()
    def lease_is_lost(self) -> None:
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
        self.world.close()
        assert set(states) <= {"done", "superseded", "waiting"}, states


def play(make_world: Callable[..., World], histories: int, steps: int) -> None:
    class Played(Histories):
        pass

    Played.make_world = staticmethod(make_world)  # type: ignore[assignment]
    run_state_machine_as_test(Played, settings=settings(
        max_examples=histories, stateful_step_count=steps, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck)))


@pytest.mark.timeout(3600)
def test_invariants_hold_in_random_histories(make_world: Callable[..., World]) -> None:
    play(make_world, HISTORIES, STEPS)

"""Random histories over the real database: what can happen, and what must hold after every step."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random
from typing import Any, ClassVar, TypeVar

from field_systems import FieldWorld
from hypothesis import note
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from sync_orchestrator.core.crash_points import REGISTERED
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.operations.adoption import adopt
from sync_orchestrator.core.operations.events import redrive_events
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.core.version_guard import Action
from sync_orchestrator.errors import CallFailed, CannotPlan, DeletionsHeld, GroupBusy

KEYS = ("a", "b", "7")


GROUPS = ("A", "B")


FAULTS = (
    "none",
    "none",
    "none",
    "lost",
    "before",
    "after",
    "after",
    "down",
    "refuse a",
    "gone",
    "html",
    "moved",
    "empty",
    "texts",
)


SOURCE_FAULTS = ("none", "none", "lags", "empty", "gone", "html", "down")


MAX_FAULT_SECONDS = 300
"""Sources lie for less than ``absent_after``: a source that lies for longer is believed."""


WEIGHTS: dict[str, float] = {
    "change": 6,
    "deliver": 10,
    "drain": 6,
    "time_passes": 4,
    "change_stock": 2,
    "delete": 2,
    "deliver_again": 2,
    "third_party_turns": 2,
    "full_sync": 2,
    "will_die": 3,
    "redrive": 1,
    "lease_is_lost": 1,
    "source_turns": 2,
    "changes_within_a_version": 1,
    "goes_back": 1,
    "hand_name_over": 1,
    "id_is_given_again": 1,
    "third_party_is_restored": 0.3,
    "add_for_others": 0.5,
    "validate": 1,
    "adopt": 0.5,
}


POINTS = sorted(name for name in set(REGISTERED) if name.startswith(("events.", "drain.", "push.", "full_sync.")))


T = TypeVar("T")


TABLES = (
    "events",
    "event_history",
    "event_ids",
    "tallies",
    "parts",
    "records",
    "push_attempts",
    "breaker_failures",
    "groups",
    "full_sync_keys",
    "validations",
    "drift",
    "alerts",
    "alert_receivers",
    "alert_records",
    "stray_ids",
    "inferred_deletions",
    "adoption_listing",
    "push_tallies",
    "latencies",
    "lost_notifications",
    "lost_tallies",
    "polls",
    "rejected",
    "systems",
    "entities",
)


LOOKS = {
    "events": "SELECT source, event_id, origin FROM sync.events UNION ALL "
    "SELECT source, event_id, origin FROM sync.event_history",
    "parts": "SELECT key, part, epoch, version FROM sync.parts",
    "applied": "SELECT key, applied_digest FROM sync.records WHERE applied_digest IS NOT NULL "
    "AND applied_group IS NOT NULL",
    "lost": "SELECT e.seq FROM sync.events e JOIN sync.records r USING (entity, key) "
    "WHERE e.revision IS NOT NULL AND e.state <> 'dead' AND r.ready AND NOT r.out_of_sync",
}


class Histories(RuleBasedStateMachine):
    """One history; ``make_world`` is set by the test."""

    make_world: Callable[[], FieldWorld]
    faults: ClassVar[Sequence[str]] = FAULTS
    weights: ClassVar[dict[str, float]] = WEIGHTS
    deaths: ClassVar[Counter[str]] = Counter()
    played: ClassVar[Counter[str]] = Counter()
    events = 0
    number = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = type(self).make_world()
        self.sent: list[tuple[str, str, Action, int, Any, str]] = []
        self.held: list[tuple[str, str, Action, int, Any, str]] = []
        self.deliveries: Counter[tuple[str, str]] = Counter()
        self.versions: dict[tuple[str, str], tuple[int, int]] = {}
        self.went_back: set[str] = set()
        self.deleted_at: dict[str, int] = {}
        self.created_at: dict[str, int] = {}
        self.unasked: list[str] = []
        self.names = 0
        self.lies_for = 0.0
        self.random = Random(0)
        self.steps = 0
        self.deadly: tuple[str, int] | None = None
        self.commands: list[str] = []
        self._looked_at: dict[str, Any] = {}

    @initialize()
    def begin(self) -> None:
        world = self.world
        world.query("TRUNCATE " + ", ".join(f"sync.{table}" for table in TABLES))
        for name in ("erp", "shop", "stock"):
            world.query(systems_queries.REGISTER_SYSTEM, name=name)
        world.erp.on_create = lambda external_id: self.created_at.__setitem__(external_id, self.steps)
        world.erp.on_delete = self._note_delete
        self.backups = [world.erp.backup()]

    def _note_delete(self, external_id: str, code: str) -> None:
        """A delete is asked for by a delete at the source since the record was made, or by a duplicate that stays."""
        asked = self.deleted_at.get(code, -1) >= self.created_at.get(external_id, 0)
        duplicate = any(record["code"] == code for record in self.world.own_mirror_by_key().values())
        if code in self.world.shop.rows and not asked and not duplicate:
            self.unasked.append(f"{external_id}: {code}")

    def _notify(self, source: str, key: str, action: Action, version: int, data: Any) -> None:
        self.held.append((source, key, action, version, data, f"e{len(self.sent) + len(self.held)}"))

    @rule(entropy=st.integers(0, 2**64 - 1))
    def step(self, entropy: int) -> None:
        """One rule for all, so that each history has much of everything.

        The history's number is what tells histories apart: Hypothesis' own are mostly variants of a few.
        """
        self.steps += 1
        self._looked_at = {}
        self.random = Random(f"{self.number} {self.steps} {entropy}")
        (command,) = self.random.choices(list(self.weights), list(self.weights.values()))
        self.commands.append(command)
        self.played[command] += 1
        getattr(self, f"_{command}")()

    def _any(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def _unused_name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    # The sources ----------

    def _change(self) -> None:
        """The owner creates, updates or moves; the other part comes with a create."""
        world, key, group = self.world, self._any(KEYS), self._any(GROUPS)
        action: Action = "update" if key in world.shop.rows else "create"
        row = world.shop.put(key, {"name": self._unused_name(), "store": group}, group=group)
        self._notify("shop", key, action, row.version, row.data)
        if key not in world.stock.rows:
            stock = world.stock.put(key, {"count": self._any(range(4))})
            self._notify("stock", key, "create", stock.version, stock.data)

    def _change_stock(self) -> None:
        key = self._any(KEYS)
        if key in self.world.stock.rows:
            row = self.world.stock.put(key, {"count": self._any(range(10))})
            self._notify("stock", key, "update", row.version, row.data)

    def _delete(self) -> None:
        key = self._any(KEYS)
        if key in self.world.shop.rows:
            self.deleted_at[key] = self.steps
            self._notify("shop", key, "delete", self.world.shop.remove(key), None)

    def _changes_within_a_version(self) -> None:
        """Two changes of one second; the second one is announced, or not."""
        self._rewrite(self._any(KEYS), 0)

    def _goes_back(self) -> None:
        """A row is restored, or a clock went back: other content under an older version."""
        key = self._any(KEYS)
        self.went_back.add(key)
        self._rewrite(key, -1)

    def _rewrite(self, key: str, by: int) -> None:
        row = self.world.shop.rows.get(key)
        if row is None:
            return
        new = self.world.shop.put(
            key, {**row.data, "name": self._unused_name()}, group=row.group, version=row.version + by
        )
        if self._any((True, True, False)):
            self._notify("shop", key, "update", new.version, new.data)

    def _hand_name_over(self) -> None:
        """One record takes the name that another gives up: the third party refuses it until then."""
        rows = self.world.shop.rows
        if len(rows) < 2:
            return
        giver, taker = self.random.sample(sorted(rows), 2)
        given = rows[giver].data["name"]
        for key, name in ((giver, self._unused_name()), (taker, given)):
            row = self.world.shop.put(key, {**rows[key].data, "name": name}, group=rows[key].group)
            self._notify("shop", key, "update", row.version, row.data)

    def _source_turns(self) -> None:
        self._any((self.world.shop, self.world.shop, self.world.stock)).turn(self._any(SOURCE_FAULTS))
        self.lies_for = 0.0

    def _sources_tell_the_truth(self) -> None:
        self.world.shop.turn("none")
        self.world.stock.turn("none")

    # The third party ----------

    def _third_party_turns(self) -> None:
        self.backups.append(self.world.erp.backup())
        self.world.erp.fault = self._any(self.faults)

    def _id_is_given_again(self) -> None:
        """Somebody deletes a record of ours there, and another one comes to stand under its id."""
        ours = self.world.own_mirror_by_key()
        if ours:
            external_id = self._any(sorted(ours))
            self.world.erp.store.pop(external_id)
            self.world.erp.add_for_others(f"x{self.steps}", self._any(GROUPS), external_id)

    def _add_for_others(self) -> None:
        self.world.erp.add_for_others(f"x{self.steps}", self._any(GROUPS))

    def _third_party_is_restored(self) -> None:
        self.world.erp.restore(self._any(self.backups))

    # What we do ----------

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

    def _send(self, event: tuple[str, str, Action, int, Any, str]) -> None:
        source, key, action, version, part, event_id = event
        self.world.post_event(source, key, action, version, part, event_id=event_id)
        self.deliveries[source, event_id] += 1

    def _drain(self) -> None:
        self._run(self.world.run_drain)

    def _time_passes(self) -> None:
        seconds = self._any((1, 6, 11, 45, 70))
        self.world.advance_clock(seconds)
        self.lies_for += seconds
        if self.lies_for > MAX_FAULT_SECONDS:
            self._sources_tell_the_truth()

    def _full_sync(self) -> None:
        group = self._any(GROUPS)
        self._run(lambda: self.world.run_full_sync(group))

    def _validate(self) -> None:
        group, full = self._any(GROUPS), self._any((True, False))
        if self._any((True, False)):
            self._run(lambda: self.world.run_validation(group, full=full))
        else:
            self._run(lambda: asyncio.run(check_sources(self.world.context, self.world.entity, group)))

    def _adopt(self) -> None:
        """An operator adopts, where pushes are suspended."""
        if self.world.query("SELECT FROM sync.systems WHERE suspended_at IS NOT NULL"):
            self._run(lambda: asyncio.run(adopt(self.world.context, [self.world.entity], recreate_missing=True)))

    def _will_die(self) -> None:
        """The next process to reach a crash point so often dies there; its leases run out later."""
        self.deadly = self._any(POINTS), self._any((1, 2, 3))

    def _run(self, work: Callable[[], object]) -> None:
        with suppress(GroupBusy, DeletionsHeld, CannotPlan, CallFailed):
            if self.deadly is None:
                work()
            elif self.world.run_until_crash(work, *self.deadly):
                self.deaths[self.deadly[0]] += 1
                self.deadly = None

    def _redrive(self) -> None:
        redrive_events(self.world.engine)
        redrive_events(self.world.engine)

    def _lease_is_lost(self) -> None:
        """As after a crash between claim and push: events and records are left leased."""
        self.world.query(
            "UPDATE sync.events SET state = 'leased', lease_until = sync.clock(), lease_token = 1 "
            "WHERE state = 'pending'"
        )
        self.world.query(
            "UPDATE sync.records SET lease_token = 1, lease_until = sync.clock() "
            "WHERE out_of_sync AND lease_token IS NULL AND stopped IS NULL"
        )
        self.world.advance_clock(0.1)

    # What always holds ----------

    def _seen(self, what: str) -> Any:
        """What the database holds after this step, read once for all invariants."""
        if not self._looked_at:
            with self.world.engine.begin() as connection:
                self._looked_at = {name: run(connection, statement) for name, statement in LOOKS.items()}
                self._looked_at["totals"] = count_conservation(connection)
        return self._looked_at[what]

    @invariant()
    def each_event_is_in_one_state_and_none_is_lost(self) -> None:
        """A key that is announced again under the same id counts again, once the first one was looked at."""
        totals, rows = self._seen("totals"), self._seen("events")
        assert totals.balanced, totals
        assert totals.received == len(rows), "an event is lost"
        found = Counter((row.source, row.event_id) for row in rows if row.origin == "notification")
        assert found.keys() == self.deliveries.keys(), "a delivered event is lost"
        assert found <= self.deliveries, "an event is there more often than it was delivered"

    @invariant()
    def versions_never_go_down(self) -> None:
        """Unless they do at the source."""
        for row in self._seen("parts"):
            now = (row.epoch, row.version)
            assert now >= self.versions.get((row.key, row.part), now) or row.key in self.went_back, row
            self.versions[row.key, row.part] = now

    @invariant()
    def one_push_at_most_is_under_way_for_a_record(self) -> None:
        assert self.world.erp.most_under_way <= 1

    @invariant()
    def nothing_is_deleted_that_nobody_asked_for(self) -> None:
        assert not self.unasked

    @invariant()
    def records_of_others_are_left_alone(self) -> None:
        assert {each: self.world.erp.store.get(each) for each in self.world.erp.others} == self.world.erp.others

    @invariant()
    def no_key_is_there_twice(self) -> None:
        codes = Counter(each["code"] for each in self.world.own_mirror_by_key().values())
        assert not [code for code, n in codes.items() if n > 1], "duplicates"

    @invariant()
    def what_is_acknowledged_was_done(self) -> None:
        """Each payload that the archive believes to be there was written there once."""
        digests = {self.world.entity.mapping.digest_of_theirs(record) for record in self.world.erp.written}
        for row in self._seen("applied"):
            assert row.applied_digest in digests, f"{row.key} was never written"

    @invariant()
    def what_is_not_finished_will_be_picked_up(self) -> None:
        """An event that waits for a push has a record that is out of sync, or one whose parts are not all here."""
        assert not self._seen("lost")

    # The end ----------

    def teardown(self) -> None:
        """At the end all is in sync, and what was not so before was named."""
        try:
            with suppress(InvalidArgument):  # outside of Hypothesis
                note(" ".join(self.commands))
            if self.commands:
                self._come_to_rest()
        finally:
            self.world.close()

    def _come_to_rest(self) -> None:
        """Faults stop, everything is delivered: what differs is named; then the third party equals the sources."""
        self.deadly = None
        self.world.erp.fault = "none"
        self._sources_tell_the_truth()
        while self.held:
            event = self.held.pop()
            self.sent.append(event)
            self._send(event)
        for _ in range(4):
            self.world.advance_clock(301)
            self.world.run_drain()
        self._adopt()
        self._what_differs_is_named()
        for _ in range(2):  # what lies within absent_after of a change is believed by the second one
            self.world.advance_clock(1000)
            for group in GROUPS:
                self.world.run_drain()
                self.world.run_full_sync(group, allow_deletions=10)
        for _ in range(3):
            self._settle_down()
        self._looked_at = {}
        self.each_event_is_in_one_state_and_none_is_lost()
        self.what_is_not_finished_will_be_picked_up()
        self.nothing_is_deleted_that_nobody_asked_for()
        self.records_of_others_are_left_alone()
        assert self.world.mirror_by_key() == self.world.expected_mirror()
        self.no_key_is_there_twice()
        states = self.world.count_events_by_state()
        type(self).events += self.deliveries.total()
        assert set(states) <= {"done", "superseded", "waiting"}, states

    def _settle_down(self) -> None:
        """As in the hours after an outage: re-drives, drains, validation with repair, adoption where asked for."""
        world = self.world
        for _ in range(3):
            world.advance_clock(70)
            redrive_events(world.engine)
            world.query(
                "UPDATE sync.records SET stopped = NULL, rejected_digest = NULL, due_at = sync.clock() "
                "WHERE out_of_sync"
            )
            world.run_drain()
        self._adopt()
        for group in GROUPS:
            world.run_validation(group, full=True)
        world.run_drain()

    def _what_differs_is_named(self) -> None:
        """By validation, by the check of the sources, or as what is still to do."""
        world = self.world
        truth, mirrored = world.expected_mirror(), world.mirror_by_key()
        wrong = {key for key in truth.keys() | mirrored.keys() if truth.get(key) != mirrored.get(key)}
        named = {
            row.key
            for row in world.query(
                "SELECT key FROM sync.events WHERE state <> 'superseded' UNION "
                "SELECT key FROM sync.records WHERE out_of_sync OR stopped IS NOT NULL OR NOT ready"
            )
        }
        for group in GROUPS:
            found = world.run_validation(group, full=True, repair="off")
            checked = asyncio.run(check_sources(world.context, world.entity, group, repair="off"))
            if found.verdict == "not_validated" or checked.verdict == "not_checked":
                return  # said, too: no full sync of it has completed
            named |= {drift.key for drift in found.drift} | {lost.key for lost in checked.lost}
        assert wrong <= named, f"{wrong - named} differ, and nothing says so: {mirrored}, not {truth}"


INVARIANTS = [value for value in vars(Histories).values() if hasattr(value, "hypothesis_stateful_invariant")]


def replay(
    make_world: Callable[[], FieldWorld],
    number: int,
    steps: int,
    third_party_faults: Sequence[str] = FAULTS,
    more: str = "change",
) -> None:
    """A history without Hypothesis, with ``more`` of a command. Raises AssertionError where it breaks an invariant."""

    class Played(Histories):
        faults: ClassVar[Sequence[str]] = third_party_faults
        weights: ClassVar[dict[str, float]] = {**WEIGHTS, more: 6}
        deaths: ClassVar[Counter[str]] = Counter()
        played: ClassVar[Counter[str]] = Counter()

    Played.make_world, Played.number = staticmethod(make_world), number
    history = Played()
    try:
        history.begin()
        for _ in range(steps):
            history.step(0)
            for holds in INVARIANTS:
                holds(history)
        history.teardown()
    finally:
        history.world.close()

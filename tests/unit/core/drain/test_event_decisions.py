"""What becomes of an event, as tables: when it is received, when its source was read, when its change was merged."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sync_orchestrator.config.entities import RetrySettings
from sync_orchestrator.core.archive.merge import Merged
from sync_orchestrator.core.drain.event_decisions import (
    BEHIND,
    NO_RECORD,
    NOT_THERE,
    Archive,
    Die,
    EventDecider,
    Merge,
    ReadSource,
    SourceRead,
    Supersede,
    Wait,
)
from sync_orchestrator.core.ledger.event_rows import DueEvent
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Change, Rules, Stamp, Verdict
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.selectors import compile_selector

NOW = datetime(2026, 3, 1, tzinfo=UTC)
LAG = 900.0
DAY = 86_400.0
SECOND = 1_000_000
PAST = int(NOW.timestamp() - 100) * SECOND
RULES = Rules("shop", frozenset({"shop"}), "wait", frozenset({"shop", "stock"}), LAG)
RETRY = RetrySettings(retries=2, first_wait=10, factor=2, max_wait=3600, jitter=0)


def decider(retry: RetrySettings = RETRY, **rules: Any) -> EventDecider:
    kinds: dict[str, Any] = {"shop": "time", "stock": "time"}
    return EventDecider(replace(RULES, **rules), retry, kinds, 3600, compile_selector("place"), lambda: 0.0)


def event(**changes: Any) -> DueEvent:
    """An update that the owner's source announced with its data."""
    usual = DueEvent(
        seq=7,
        source="shop",
        entity="item",
        key="a",
        group=None,
        action="update",
        epoch=0,
        version=PAST,
        is_thin=False,
        data={"place": "A"},
        attempts=0,
        absent_at=None,
        ask_source=False,
        origin="notification",
        read_sequence=0,
        received_at=NOW,
        now=NOW.timestamp(),
    )
    return replace(usual, **changes)


THIN: dict[str, Any] = {"is_thin": True, "data": None}
ASKED: dict[str, Any] = {"ask_source": True}
UNREADABLE: dict[str, Any] = {"readable": frozenset()}


def since(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def part(version: int = PAST, *, deleted: bool = False) -> PartRead:
    return PartRead("a", version, {} if deleted else {"place": "A"}, "A", deleted)


def read(of: DueEvent, parts: dict[str, PartRead | None], failure: CallFailed | None = None, **more: Any) -> SourceRead:
    return SourceRead(ReadSource(of, frozenset(parts), **more), parts, failure, 50, {"shop": 3})


def merged(of: DueEvent, verdict: Verdict, *, lacks: frozenset[str] = frozenset()) -> Merged:
    revision = 4 if verdict in (Verdict.ACCEPTED, Verdict.KEPT, Verdict.DUPLICATE) else None
    change = Change(of.key, of.source, of.action, Stamp(0, of.version, 0, b"", of.seq), of.data, "A", of.seq)
    return Merged(change, verdict, revision, lacks)


# When it is received -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "rules", "vanished", "expected"),
    [
        ({}, {}, None, Merge),
        ({"source": "stock", "data": {}}, {}, None, Merge),
        (THIN, {}, None, ReadSource),
        ({"action": "delete", "data": None}, {}, None, Merge),
        # its source contradicted it, or a check of the sources inferred it
        ({"absent_at": since(5)}, {}, None, ReadSource),
        ({"action": "delete", "data": None, "origin": "audit"}, {}, None, ReadSource),
        # the whole part of the owner does not name the business group
        ({"data": {}}, {}, None, ReadSource),
        ({"data": {}, "group": "A"}, {}, None, Merge),
        ({"data": {}}, UNREADABLE, None, Merge),
        # mapped fields are absent
        ({}, {}, "mapped field absent", ReadSource),
        ({}, UNREADABLE, "mapped field absent", Die),
        # nothing can be read
        (THIN, UNREADABLE, None, Die),
        # the future comes first
        ({"version": PAST + 4000 * SECOND}, {}, None, Wait),
        ({"version": PAST + 4000 * SECOND} | THIN, {}, None, Wait),
    ],
)
def test_a_received_event(changes: dict[str, Any], rules: dict[str, Any], vanished: str | None, expected: type) -> None:
    assert type(decider(**rules).decide_received(event(**changes), vanished)) is expected


@pytest.mark.parametrize(
    ("changes", "on_missing", "parts"),
    [
        (THIN, "wait", {"shop"}),
        (THIN | {"source": "stock"}, "wait", {"stock"}),
        (THIN | {"source": "stock"}, "fetch", {"shop", "stock"}),
        (THIN | {"source": "stock"} | ASKED, "wait", {"shop", "stock"}),
    ],
)
def test_which_sources_are_read(changes: dict[str, Any], on_missing: str, parts: set[str]) -> None:
    request = decider(on_missing=on_missing).decide_received(event(**changes), None)
    assert request == ReadSource(event(**changes), frozenset(parts))


def test_an_event_of_the_future_waits_until_its_version_is_in_reach() -> None:
    decision = decider().decide_received(event(version=PAST + 4000 * SECOND), None)
    assert isinstance(decision, Wait)
    assert decision.seconds == pytest.approx(301)
    assert (decision.attempts, decision.awaiting) == (0, "clock")


@pytest.mark.parametrize(
    ("changes", "action", "group", "is_inferred"),
    [
        ({}, "update", "A", False),
        ({"data": {"place": "B"}, "group": "A"}, "update", "B", False),
        ({"source": "stock", "data": {"place": "B"}, "group": "A"}, "update", "A", False),
        ({"action": "delete", "data": None}, "delete", None, False),
        ({"action": "delete", "data": None, "origin": "poll"}, "delete", None, True),
    ],
)
def test_the_change_of_an_event(changes: dict[str, Any], action: str, group: str | None, is_inferred: bool) -> None:
    decision = decider().decide_received(event(**changes), None)
    assert isinstance(decision, Merge)
    assert decision.archived is None
    (change,) = decision.changes
    assert (change.seq, change.action, change.group, change.stamp.inferred) == (7, action, group, is_inferred)
    assert (change.stamp.content_hash == TOMBSTONE_HASH) == (action == "delete")


# When its source was read --------------------------------------------------------------------------------------------

NEWER_STAMP = {("a", "shop"): Stamp(0, PAST + 1, 0, b"")}
OLDER_STAMP = {("a", "shop"): Stamp(0, PAST - 1, 0, b"")}


@pytest.mark.parametrize(
    ("changes", "parts", "stamps", "expected"),
    [
        (THIN, {"shop": part()}, {}, Merge),
        (THIN, {"shop": part(PAST + 1)}, {}, Merge),
        (THIN, {"shop": part(PAST + 4000 * SECOND)}, {}, Wait),
        # the source has no such record
        (THIN, {"shop": None}, {}, Wait),
        (THIN, {"shop": None}, OLDER_STAMP, Wait),
        (THIN, {"shop": None}, NEWER_STAMP, Supersede),
        (THIN | ASKED, {"shop": None}, {}, Wait),
        (THIN | ASKED | {"absent_at": since(LAG)}, {"shop": None}, {}, Supersede),
        (THIN | {"absent_at": since(LAG)}, {"shop": None}, {}, Wait),
        (THIN | {"absent_at": since(DAY)}, {"shop": None}, {}, Die),
        ({"action": "delete", "data": None}, {"shop": None}, {}, Merge),
        ({"source": "stock", "action": "delete", "data": None} | ASKED, {"shop": None, "stock": part()}, {}, Wait),
        # the source shows an older version
        (THIN, {"shop": part(PAST - 1)}, {}, Wait),
        (THIN | ASKED | {"absent_at": since(LAG)}, {"shop": part(PAST - 1)}, {}, Supersede),
        (THIN | {"absent_at": since(DAY)}, {"shop": part(PAST - 1)}, {}, Die),
    ],
)
def test_an_event_whose_source_was_read(
    changes: dict[str, Any], parts: dict[str, PartRead | None], stamps: dict[tuple[str, str], Stamp], expected: type
) -> None:
    assert type(decider().decide_read(read(event(**changes), parts), stamps)) is expected


@pytest.mark.parametrize(
    ("elapsed", "seconds", "is_overdue"),
    [
        (None, 10, False),
        (30, 30, False),
        (400, 60, False),  # a replica may still catch up: no long pauses
        (895, 10, False),
        (900, 300, True),
        (5000, 300, True),
    ],
)
def test_pauses_while_the_source_contradicts(elapsed: float | None, seconds: float, is_overdue: bool) -> None:
    waiting = event(absent_at=None if elapsed is None else since(elapsed))
    decision = decider().decide_read(read(waiting, {"shop": None}), {})
    alert = NOT_THERE if is_overdue else None
    assert isinstance(decision, Wait)
    assert decision.seconds == pytest.approx(seconds)
    assert replace(decision, seconds=seconds) == Wait(waiting, NOT_THERE, seconds, 0, "source", True, alert)


@pytest.mark.parametrize(
    ("kind", "waited", "expected"),
    [
        (Failure.TRANSIENT, 0, Wait(event(**THIN), "no connection", 10, 0, "source")),
        (Failure.AUTH, 100, Wait(event(**THIN), "no connection", 100, 0, "source")),
        (
            Failure.TRANSIENT,
            LAG,
            Wait(event(**THIN), "no connection", 300, 0, "source", alert_cause="'shop' cannot be read"),
        ),
        (Failure.TRANSIENT, DAY + 300, Die(event(**THIN), "no connection", 1, "no connection")),
        (Failure.PERMANENT, 0, Die(event(**THIN), "no connection", 1, "no connection")),
    ],
)
def test_a_source_that_cannot_be_read_costs_no_attempt(kind: Failure, waited: float, expected: Wait | Die) -> None:
    waiting = event(**THIN, received_at=since(waited))
    decision = decider().decide_read(read(waiting, {}, CallFailed(kind, "no connection")), {})
    assert decision == replace(expected, event=waiting)


def test_the_source_says_when_it_may_be_read_again() -> None:
    failure = CallFailed(Failure.THROTTLED, "answer 429", retry_after=77)
    decision = decider().decide_read(read(event(), {}, failure), {})
    assert isinstance(decision, Wait)
    assert decision.seconds == 77


def test_only_the_part_of_the_event_decides_it() -> None:
    thin = event(**THIN, source="stock")
    decision = decider().decide_read(read(thin, {"shop": part(), "stock": part()}), {})
    assert isinstance(decision, Merge)
    assert [(each.part, each.seq, each.stamp.epoch, each.stamp.read_sequence) for each in decision.changes] == [
        ("shop", None, 3, 50),
        ("stock", 7, 0, 50),
    ]


def test_the_event_is_merged_beside_the_owner_that_was_read_for_it() -> None:
    decision = decider().decide_read(read(event(source="stock"), {"shop": part()}), {})
    assert isinstance(decision, Merge)
    assert [(each.part, each.seq) for each in decision.changes] == [("stock", 7), ("shop", None)]


@pytest.mark.parametrize(
    ("changes", "is_inferred"),
    [({}, True), ({"action": "delete", "data": None}, False), (THIN | {"action": "create"}, True)],
)
def test_a_deletion_that_the_source_shows_is_inferred_unless_the_event_asks_for_it(
    changes: dict[str, Any], is_inferred: bool
) -> None:
    decision = decider().decide_read(read(event(**changes), {"shop": part(deleted=True)}), {})
    assert isinstance(decision, Merge)
    assert [each.stamp.inferred for each in decision.changes] == [is_inferred]


def test_an_archived_event_whose_record_lacked_parts_stays_archived_whatever_they_bring() -> None:
    decision = decider().decide_read(read(event(), {"stock": part(), "shop": None}, archived_revision=4), {})
    assert isinstance(decision, Merge)
    assert decision.archived == Archive(event(), 4)
    assert [(each.part, each.seq) for each in decision.changes] == [("stock", None)]


# When its change was merged ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict.ACCEPTED, Archive),
        (Verdict.KEPT, Archive),
        (Verdict.DUPLICATE, Archive),
        (Verdict.SUPERSEDED, Supersede),
        (Verdict.BEHIND, Wait),
        (Verdict.NO_GROUP, Die),
        (Verdict.TIE, ReadSource),
        (Verdict.FETCH, ReadSource),
        (Verdict.MISSING, Wait),
    ],
)
def test_an_event_whose_change_was_merged(verdict: Verdict, expected: type) -> None:
    assert type(decider().decide_merged(event(), merged(event(), verdict), None, {})) is expected


def test_parts_that_the_record_lacks_are_read() -> None:
    end = merged(event(), Verdict.ACCEPTED, lacks=frozenset({"stock", "unreadable"}))
    expected = ReadSource(event(), frozenset({"stock"}), archived_revision=4)
    assert decider().decide_merged(event(), end, None, {}) == expected
    nothing_readable = decider(readable=frozenset({"shop"})).decide_merged(event(), end, None, {})
    assert nothing_readable == Archive(event(), 4)


def test_a_source_that_shows_an_older_version_than_the_archive_is_waited_for() -> None:
    decision = decider().decide_merged(event(), merged(event(), Verdict.BEHIND), None, {})
    assert decision == Wait(event(), BEHIND, 10, 0, "source", True)


@pytest.mark.parametrize(
    ("group", "covered", "is_covered"),
    [
        (None, {}, False),
        (None, {"A": True, "B": False}, False),
        (None, {"A": True, "B": True}, True),
        ("A", {"A": True, "B": False}, True),
        ("B", {"A": True, "B": False}, False),
        ("C", {"A": True}, False),
    ],
)
def test_an_event_waits_for_its_record_at_no_cost_until_its_group_was_filled(
    group: str | None, covered: dict[str, bool], is_covered: bool
) -> None:
    missing = event(group=group)
    decision = decider().decide_merged(missing, merged(missing, Verdict.MISSING), None, covered)
    attempts, seconds = (1, 10) if is_covered else (0, None)
    assert decision == Wait(missing, NO_RECORD, seconds, attempts, "record")


@pytest.mark.parametrize(
    ("attempts", "readable", "last_resort", "expected"),
    [
        (1, {"shop"}, False, Wait),
        (2, {"shop"}, False, ReadSource),  # before it dies, the owner's source is read
        (2, {"shop"}, True, Die),
        (2, {"stock"}, False, Die),
    ],
)
def test_the_owner_is_read_before_an_event_without_record_dies(
    attempts: int, readable: set[str], last_resort: bool, expected: type
) -> None:
    missing = event(attempts=attempts, group="A")
    request = read(missing, {"shop": None}, is_last_resort=True).request if last_resort else None
    rules = decider(readable=frozenset(readable))
    decision = rules.decide_merged(missing, merged(missing, Verdict.MISSING), request, {"A": True})
    assert type(decision) is expected
    if isinstance(decision, Die):
        assert decision == Die(missing, NO_RECORD, 3, NO_RECORD, "record")
    if isinstance(decision, ReadSource):
        assert decision == ReadSource(missing, frozenset({"shop"}), is_last_resort=True)


@pytest.mark.parametrize(
    ("verdict", "asked", "was_read", "is_missing"),
    [
        (Verdict.MISSING, False, False, True),
        (Verdict.MISSING, True, False, False),  # read first
        (Verdict.MISSING, True, True, True),
        (Verdict.FETCH, False, False, False),
        (Verdict.FETCH, False, True, True),
        (Verdict.TIE, False, True, True),
        (Verdict.ACCEPTED, False, True, False),
    ],
)
def test_when_business_groups_matter(verdict: Verdict, asked: bool, was_read: bool, is_missing: bool) -> None:
    some = event(ask_source=asked)
    request = read(some, {"shop": part()}).request if was_read else None
    assert decider().is_missing(some, verdict, request) is is_missing


def test_a_deletion_over_the_cap_waits_at_no_cost() -> None:
    decision = decider().decide_over_cap(event(attempts=1))
    assert (decision.attempts, decision.awaiting, decision.is_contradicted) == (1, "deletions", False)

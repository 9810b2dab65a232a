"""Which change wins: the version guard and the verdicts as tables, and the archive that does not depend on order."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from version_cases import (
    HIGH,
    LOW,
    OnMissing,
    change,
    rules,
    stamp,
)

from sync_orchestrator.core.version_guard import (
    TOMBSTONE_HASH,
    Change,
    RecordState,
    Rules,
    Stamp,
    StateComparison,
    Verdict,
    compare_states,
    decide,
)

NEWER, SAME, OLDER, TIE, BEHIND = (
    StateComparison.NEWER,
    StateComparison.SAME,
    StateComparison.OLDER,
    StateComparison.TIE,
    StateComparison.BEHIND,
)
GONE = TOMBSTONE_HASH


@pytest.mark.parametrize("can_read", [True, False])
@pytest.mark.parametrize(
    ("present", "offered", "expected"),
    [
        (None, stamp(-5), NEWER),
        # versions
        (stamp(3), stamp(4), NEWER),
        (stamp(3), stamp(2), OLDER),
        (stamp(3), stamp(4, TOMBSTONE_HASH), NEWER),
        (stamp(3, TOMBSTONE_HASH), stamp(2), OLDER),
        (stamp(3, TOMBSTONE_HASH), stamp(4), NEWER),
        # epochs rank before versions
        (stamp(9), stamp(1, epoch=1), NEWER),
        (stamp(1, epoch=1), stamp(9), OLDER),
        (stamp(9, read_sequence=7), stamp(1, epoch=1), NEWER),
        # versions rank before read sequences
        (stamp(3, read_sequence=7), stamp(4), NEWER),
        (stamp(4), stamp(3, read_sequence=7), OLDER),  # of the same content
        # equal version, equal content
        (stamp(3), stamp(3), SAME),
        (stamp(3, read_sequence=7), stamp(3), SAME),
        (stamp(3, TOMBSTONE_HASH), stamp(3, TOMBSTONE_HASH), SAME),
        # equal version, other content: of a read and an event, or of two reads, the later one
        (stamp(3, HIGH), stamp(3, LOW, read_sequence=7), NEWER),
        (stamp(3, TOMBSTONE_HASH), stamp(3, LOW, read_sequence=7), NEWER),
        (stamp(3, HIGH, seq=8), stamp(3, LOW, read_sequence=7), OLDER),
        (stamp(3, HIGH, read_sequence=7), stamp(3, LOW, read_sequence=8), NEWER),
        (stamp(3, LOW, read_sequence=8), stamp(3, HIGH, read_sequence=7), OLDER),
        # of one read (a row listed twice) the content decides
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, read_sequence=7), NEWER),
        (stamp(3, HIGH, read_sequence=7), stamp(3, LOW, read_sequence=7), OLDER),
    ],
)
def test_the_guard_without_ties(
    present: Stamp | None, offered: Stamp, expected: StateComparison, can_read: bool
) -> None:
    assert compare_states(present, offered, can_read=can_read) is expected


@pytest.mark.parametrize(
    ("present", "offered", "can_read", "expected"),
    [
        (stamp(3, LOW), stamp(3, HIGH), True, TIE),
        (stamp(3, HIGH, seq=9), stamp(3, LOW, seq=8), True, TIE),
        (stamp(3, LOW), stamp(3, GONE), True, TIE),
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, seq=8), True, TIE),  # read once, and told something else since
        (stamp(3, LOW, read_sequence=7), stamp(3, GONE, seq=8), True, TIE),
        (stamp(3, HIGH, seq=1), stamp(3, LOW, seq=2), False, NEWER),
        (stamp(3, LOW, seq=2), stamp(3, HIGH, seq=1), False, OLDER),
        (stamp(3, HIGH, seq=1), stamp(3, GONE, seq=2), False, NEWER),
        (stamp(3, GONE, seq=1), stamp(3, HIGH, seq=2), False, NEWER),
        (stamp(3, GONE, seq=2), stamp(3, HIGH, seq=1), False, OLDER),
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, seq=8), False, NEWER),
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, seq=6), False, OLDER),
    ],
)
def test_rule_30_a_tie_is_read_again_where_it_can_be_and_else_decided_by_arrival(
    present: Stamp, offered: Stamp, can_read: bool, expected: StateComparison
) -> None:
    assert compare_states(present, offered, can_read=can_read) is expected


@pytest.mark.parametrize("can_read", [True, False])
@pytest.mark.parametrize(
    ("present", "offered", "settled", "expected"),
    [
        (stamp(4, HIGH, seq=1), stamp(3, LOW, read_sequence=7), False, BEHIND),
        (stamp(4, HIGH, seq=1), stamp(3, LOW, read_sequence=7), True, NEWER),
        (stamp(4, HIGH, read_sequence=6), stamp(3, GONE, read_sequence=7), True, NEWER),
        (stamp(4, GONE, seq=1), stamp(3, LOW, read_sequence=7), False, BEHIND),
        (stamp(4, HIGH, seq=1), stamp(3, HIGH, read_sequence=7), True, OLDER),  # the same content
        (stamp(4, HIGH, seq=8), stamp(3, LOW, read_sequence=7), True, OLDER),  # the read began before the event came
        (stamp(4, HIGH, read_sequence=8), stamp(3, LOW, read_sequence=7), True, OLDER),
        (stamp(4, HIGH, seq=1), stamp(3, LOW, seq=7), True, OLDER),  # an event that comes late
        (stamp(4, HIGH, seq=1, epoch=1), stamp(3, LOW, read_sequence=7), True, OLDER),
    ],
)
def test_rule_32_an_older_version_that_a_read_shows_is_the_truth_once_no_replica_can_lag(
    present: Stamp, offered: Stamp, settled: bool, expected: StateComparison, can_read: bool
) -> None:
    assert compare_states(present, offered, can_read=can_read, settled=settled) is expected


@pytest.mark.parametrize(
    ("offered", "can_read", "expected"),
    [
        (stamp(5, LOW, read_sequence=8), True, NEWER),
        (stamp(4, LOW, read_sequence=8), True, NEWER),  # whatever its version
        (stamp(4, LOW, read_sequence=6), True, OLDER),
        (stamp(5, LOW, seq=8), True, TIE),
        (stamp(4, LOW, seq=8), True, TIE),
        (stamp(6, LOW, seq=8), True, NEWER),
        (stamp(5, LOW, seq=8), False, NEWER),
        (stamp(5, LOW, seq=6), False, OLDER),
        (stamp(4, LOW, seq=8), False, OLDER),
        (stamp(5, GONE, seq=8), True, SAME),
    ],
)
def test_rule_21_what_finds_a_record_again_wins_over_an_inferred_tombstone(
    offered: Stamp, can_read: bool, expected: StateComparison
) -> None:
    assert compare_states(stamp(5, GONE, read_sequence=7, inferred=True), offered, can_read=can_read) is expected


def record(*changes: Change, by: Rules | None = None) -> RecordState:
    """A record to which these were merged before."""
    state = RecordState()
    for each in changes:
        assert decide(state, each, by or rules()) in (Verdict.ACCEPTED, Verdict.KEPT)
    return state


CREATED = (change("shop", "create", 3), change("stock", "create", 3))
DELETED = (*CREATED, change("shop", "delete", 5))


@pytest.mark.parametrize(
    ("before", "offered", "verdict"),
    [
        # a record that is not here
        ((), change("shop", "create", 1), Verdict.ACCEPTED),
        ((), change("shop", "delete", 1), Verdict.ACCEPTED),
        ((), change("shop", "update", 1), Verdict.MISSING),
        ((), change("stock", "create", 1), Verdict.MISSING),
        ((), change("stock", "update", 1), Verdict.MISSING),
        ((), change("stock", "delete", 1), Verdict.ACCEPTED),
        # a read says what is: it needs no create before it
        ((), change("shop", "update", 1, read_sequence=7), Verdict.ACCEPTED),
        ((), change("stock", "update", 1, read_sequence=7), Verdict.ACCEPTED),
        # another source's part does not make the record
        ((change("stock", "update", 1, read_sequence=7),), change("stock", "update", 2), Verdict.MISSING),
        ((change("stock", "delete", 1),), change("shop", "update", 2), Verdict.MISSING),
        # a record that is here: each part has versions of its own
        (CREATED, change("shop", "update", 4), Verdict.ACCEPTED),
        (CREATED, change("shop", "create", 4), Verdict.ACCEPTED),
        (CREATED, change("shop", "update", 2), Verdict.SUPERSEDED),
        (CREATED, change("shop", "delete", 2), Verdict.SUPERSEDED),
        (CREATED, change("shop", "create", 3), Verdict.DUPLICATE),
        (CREATED, change("shop", "update", 3), Verdict.DUPLICATE),
        ((*CREATED, change("shop", "update", 9)), change("stock", "update", 4), Verdict.ACCEPTED),
        ((*CREATED, change("stock", "update", 9)), change("shop", "update", 4), Verdict.ACCEPTED),
        (CREATED, change("price", "create", 1), Verdict.ACCEPTED),
        # ties
        (CREATED, change("shop", "update", 3, HIGH), Verdict.TIE),
        (CREATED, change("shop", "delete", 3), Verdict.TIE),
        (CREATED, change("shop", "update", 3, HIGH, read_sequence=7), Verdict.ACCEPTED),
        (CREATED, change("price", "create", 3, HIGH), Verdict.ACCEPTED),
        # a source restored from a backup counts anew
        (CREATED, change("shop", "update", 1, epoch=1), Verdict.ACCEPTED),
        ((*CREATED, change("shop", "update", 1, epoch=1)), change("shop", "update", 9), Verdict.SUPERSEDED),
        # a tombstone
        (DELETED, change("shop", "delete", 5), Verdict.DUPLICATE),
        (DELETED, change("shop", "delete", 6), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 4), Verdict.SUPERSEDED),
        (DELETED, change("shop", "update", 6), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 6), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 5), Verdict.TIE),
        (DELETED, change("shop", "create", 5, read_sequence=7), Verdict.ACCEPTED),
        (DELETED, change("stock", "update", 99), Verdict.KEPT),
        (DELETED, change("stock", "update", 99, read_sequence=7), Verdict.KEPT),
        (DELETED, change("stock", "delete", 99), Verdict.KEPT),
        (DELETED, change("price", "create", 1), Verdict.KEPT),
        (DELETED, change("stock", "update", 2), Verdict.SUPERSEDED),
        (DELETED, change("stock", "update", 3), Verdict.DUPLICATE),
        # the owner's part needs a business group, from itself or from before
        ((), change("shop", "create", 1, group=None), Verdict.NO_GROUP),
        ((), change("shop", "update", 1, read_sequence=7, group=None), Verdict.NO_GROUP),
        ((), change("shop", "delete", 1, group=None), Verdict.ACCEPTED),
        (CREATED, change("shop", "update", 4, group=None), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 6, group=None), Verdict.ACCEPTED),
        ((change("shop", "delete", 1, group=None),), change("shop", "create", 2, group=None), Verdict.NO_GROUP),
        ((change("shop", "delete", 3, group=None),), change("shop", "create", 2, group=None), Verdict.SUPERSEDED),
    ],
)
def test_what_becomes_of_a_change(before: Sequence[Change], offered: Change, verdict: Verdict) -> None:
    assert decide(record(*before), offered, rules()) is verdict


@pytest.mark.parametrize(
    ("offered", "waits", "fetches", "upserts"),
    [
        (change("shop", "update", 1), Verdict.MISSING, Verdict.FETCH, Verdict.ACCEPTED),
        (change("shop", "update", 1, group=None), Verdict.MISSING, Verdict.FETCH, Verdict.NO_GROUP),
        (change("stock", "create", 1), Verdict.MISSING, Verdict.FETCH, Verdict.ACCEPTED),
        (change("stock", "update", 1), Verdict.MISSING, Verdict.FETCH, Verdict.ACCEPTED),
        (change("shop", "create", 1), Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED),
        (change("stock", "delete", 1), Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED),
        (change("shop", "update", 1, read_sequence=7), Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED),
    ],
)
def test_on_missing_says_what_happens_to_a_change_whose_record_is_not_here(
    offered: Change, waits: Verdict, fetches: Verdict, upserts: Verdict
) -> None:
    verdicts = [decide(RecordState(), offered, rules(on_missing)) for on_missing in ("wait", "fetch", "upsert")]
    assert verdicts == [waits, fetches, upserts]


@pytest.mark.parametrize(
    "offered",
    [
        change("shop", "update", 2),
        change("shop", "update", 3),
        change("shop", "update", 3, HIGH),
    ],
)
@pytest.mark.parametrize("on_missing", ["wait", "fetch", "upsert"])
def test_a_change_that_is_not_accepted_changes_nothing(offered: Change, on_missing: OnMissing) -> None:
    state, untouched = record(*CREATED), record(*CREATED)
    assert decide(state, offered, rules(on_missing)) not in (Verdict.ACCEPTED, Verdict.KEPT)
    assert state == untouched


@pytest.mark.parametrize(("seq", "verdict"), [(9, Verdict.ACCEPTED), (3, Verdict.SUPERSEDED)])
def test_a_tie_of_a_source_that_cannot_be_read_is_settled_by_arrival(seq: int, verdict: Verdict) -> None:
    state = record(change("shop", "create", 3, seq=5), change("stock", "create", 3, seq=6))
    offered = change("shop", "update", 3, HIGH, seq=seq)
    assert decide(state, offered, rules(readable=frozenset({"stock"}))) is verdict


def test_a_state_that_is_told_again_later_is_the_later_one() -> None:
    """A, then A once more; B came in between and is late: it is not the last word."""
    blind = rules(readable=frozenset())
    state = record(change("shop", "create", 3, LOW, seq=1), by=blind)
    assert decide(state, change("shop", "update", 3, LOW, seq=3), blind) is Verdict.DUPLICATE
    assert decide(state, change("shop", "update", 3, HIGH, seq=2), blind) is Verdict.SUPERSEDED


def test_an_owners_deletion_leaves_a_tombstone_that_keeps_version_group_and_parts() -> None:
    state = record(*DELETED)
    assert (state.deleted, state.group, state.revision, state.ready) == (True, "A", 3, True)
    assert state.parts == {"shop": stamp(5, TOMBSTONE_HASH), "stock": stamp(3)}


def test_another_sources_deletion_empties_its_part_alone() -> None:
    state = record(*CREATED, change("stock", "delete", 4))
    assert (state.deleted, state.group, state.revision, state.ready) == (False, "A", 3, True)
    assert state.parts == {"shop": stamp(3), "stock": stamp(4, TOMBSTONE_HASH)}


def test_parts_kept_under_a_tombstone_revive_nothing_and_count_when_the_record_is_made_again() -> None:
    state = record(change("shop", "create", 3), change("shop", "delete", 5))
    assert decide(state, change("stock", "create", 4), rules()) is Verdict.KEPT
    assert (state.deleted, state.revision) == (True, 2)
    assert decide(state, change("shop", "create", 6, group="B"), rules()) is Verdict.ACCEPTED
    assert (state.deleted, state.revision, state.group, state.ready) == (False, 3, "B", True)
    assert state.parts["stock"] == stamp(4)


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ([change("shop", "create", 1)], False),
        ([change("shop", "create", 1), change("price", "create", 1)], False),
        ([change("shop", "create", 1), change("stock", "create", 1)], True),
        ([change("stock", "update", 1, read_sequence=7)], False),
        ([change("stock", "update", 1, read_sequence=7), change("shop", "create", 1)], True),
        ([change("stock", "delete", 1), change("shop", "create", 1)], True),
        ([change("shop", "delete", 1)], True),
        ([change("shop", "delete", 1), change("shop", "create", 2)], False),
    ],
)
def test_a_record_is_ready_with_all_required_parts_or_as_a_tombstone(changes: list[Change], ready: bool) -> None:
    assert record(*changes).ready is ready


def test_a_change_that_moves_the_record_sets_its_group() -> None:
    assert record(*CREATED, change("shop", "update", 4, group="B")).group == "B"


# The archive ------------------------------------------------------------------------------------------------------

"""People change records on both sides, in random histories: both end equal, and no change is lost unseen.

A history is changes by people on either side or both, records made and deleted, notifications late and out of order,
writes that are lost, land late, are refused or find the other side down, reads that lag, deaths at all crash points,
full syncs, validations, and people who decide conflicts.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import Engine
from two_sides import BookTarget, TwoSides, build_document
from two_way_histories import TwoWayHistories, replay

from sync_orchestrator.core.ports import Item, WriteGuard
from sync_orchestrator.core.push import attempt, shared_writes
from sync_orchestrator.core.two_way import merge_linked, shared_calls, three_way
from sync_orchestrator.core.two_way.conflict_log import ConflictLog, NewConflict
from sync_orchestrator.core.two_way.known_state import SharedCall
from sync_orchestrator.core.two_way.rules import OWN, SEEN
from sync_orchestrator.core.two_way.three_way import FieldState, Policy, Winner

HISTORIES = int(os.environ.get("SYNC_TEST_TWO_WAY_HISTORIES", "60"))
FIRST = int(os.environ.get("SYNC_TEST_FIRST_HISTORY", "0"))
STEPS = int(os.environ.get("SYNC_TEST_TWO_WAY_STEPS", "50"))
MOST_HISTORIES = 60
"""So many histories find each planted bug."""


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("keys", ["same", "ids"])
def test_both_sides_end_equal_and_no_change_is_lost(engine: Engine, keys: str) -> None:
    class Played(TwoWayHistories):
        deaths: ClassVar[Counter[str]] = Counter()
        played: ClassVar[Counter[str]] = Counter()

    document = build_document(keys=keys)
    Played.make = staticmethod(lambda: TwoSides(engine, document))
    for Played.number in range(FIRST, FIRST + HISTORIES // 2):
        run_state_machine_as_test(
            Played,
            settings=settings(
                max_examples=1,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


# Planted bugs -------------------------------------------------------------------------------------------------------


def believe_reads_from_before_a_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(merge_linked, "find_current_values", lambda shown, *others: dict(shown))


def agree_on_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(merge_linked, "_read_state", lambda stored: FieldState())


def write_without_a_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(attempt, "build_guard", lambda *arguments: None)


def write_whole_records(patch: pytest.MonkeyPatch) -> None:
    """With a look at what is to change alone."""
    build = shared_writes.build_guard

    def build_half(*arguments: Any) -> WriteGuard | None:
        guard = build(*arguments)
        return guard and WriteGuard(guard.expected, guard.fields - guard.unchanged, frozenset())

    patch.setattr(attempt, "build_guard", build_half)


def create_without_a_search(patch: pytest.MonkeyPatch) -> None:
    async def find_nothing(self: BookTarget, item: Item) -> list[Any]:
        return []

    patch.setattr(BookTarget, "find_same", find_nothing)


def keep_nothing_that_a_policy_overrules(patch: pytest.MonkeyPatch) -> None:
    note = ConflictLog.note

    def note_open(self: ConflictLog, conflict: NewConflict) -> None:
        if conflict.winner is None:
            note(self, conflict)

    patch.setattr(ConflictLog, "note", note_open)


def agree_on_all_that_was_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Also on what the other side did not have."""

    def owned(row: Any) -> SharedCall:
        return SharedCall(
            row.token, row.carried, row.before, row.carried, row.acknowledged, row.acknowledged_at, row.merged
        )

    patch.setattr("sync_orchestrator.core.two_way.records.call_of_row", owned)


def carry_what_is_held(patch: pytest.MonkeyPatch) -> None:
    """A value that is held on its side counts as one that was sent there."""

    def carry_all(agreed: dict[str, Any], known: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {name: value for name, value in agreed.items() if name not in (SEEN, OWN)}

    patch.setattr(shared_calls, "find_carried_values", carry_all)
    agree_on_all_that_was_acknowledged(patch)


def delete_what_was_changed(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(merge_linked._Merge, "_has_changed", lambda *arguments: False)


def let_our_side_win(patch: pytest.MonkeyPatch) -> None:
    find = three_way._find_winner

    def find_ours(ours: Any, theirs: Any, policy: Policy, skew: int) -> Winner | None:
        return Winner.OURS if policy is Policy.NEWEST else find(ours, theirs, policy, skew)

    patch.setattr(three_way, "_find_winner", find_ours)


BUGS: dict[Callable[[pytest.MonkeyPatch], None], str] = {
    believe_reads_from_before_a_write: "same",
    agree_on_nothing: "same",
    write_without_a_look: "same",
    write_whole_records: "same",
    create_without_a_search: "ids",
    keep_nothing_that_a_policy_overrules: "same",
    agree_on_all_that_was_acknowledged: "same",
    carry_what_is_held: "same",
    delete_what_was_changed: "same",
    let_our_side_win: "same",
}


FIRST_HISTORY: dict[Callable[[pytest.MonkeyPatch], None], int] = {agree_on_all_that_was_acknowledged: 38}
"""Where the first one that notices a bug is known, those before it are left out."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_random_histories_catch(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]
) -> None:
    class Played(TwoWayHistories):
        deaths: ClassVar[Counter[str]] = Counter()
        played: ClassVar[Counter[str]] = Counter()

    document = build_document(keys=BUGS[bug])
    Played.make = staticmethod(lambda: TwoSides(engine, document))
    bug(monkeypatch)
    for number in range(FIRST_HISTORY.get(bug, 0), MOST_HISTORIES):
        try:
            replay(Played, number, STEPS)
        except AssertionError:
            return
    pytest.fail(f"{MOST_HISTORIES} histories did not notice it")

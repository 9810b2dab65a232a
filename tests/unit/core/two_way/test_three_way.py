"""The three-way merge of one field, a case a row."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

import pytest

from sync_orchestrator.core.two_way.three_way import (
    Conflict,
    FieldDecision,
    FieldMerge,
    FieldState,
    Policy,
    SideValue,
    Winner,
    merge_field,
    same,
)

OURS, THEIRS, NEWEST, ASK = Policy.OURS, Policy.THEIRS, Policy.NEWEST, Policy.ASK
FRESH = FieldState()
AGREED = FieldState(True, "a")
SKEW = 2_000_000


def merge(
    ours: SideValue | str, theirs: SideValue | str, state: FieldState, policy: Policy, *, first: Policy = ASK
) -> FieldMerge:
    """Merges values, or sides."""
    one, other = (each if isinstance(each, SideValue) else SideValue(each) for each in (ours, theirs))
    return merge_field(one, other, state, policy, first=first, skew=SKEW)


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("state", [FRESH, AGREED, FieldState(True, "a", FieldDecision("x", "y", "x"))])
def test_equal_sides_are_agreed_and_end_a_decision(policy: Policy, state: FieldState) -> None:
    assert merge("n", "n", state, policy) == FieldMerge("n", "n", FieldState(True, "n"))


@dataclass(frozen=True)
class Case:
    """Both values with ``a`` agreed: what both are to have, and who wins a conflict; ``held``: a person decides."""

    policy: Policy
    ours: str
    theirs: str
    wanted: str = ""
    winner: Winner | None = None
    has_conflict: bool = field(default=False)


@pytest.mark.parametrize(
    "case",
    [
        Case(OURS, "o", "a", "o"),
        Case(OURS, "a", "t", "a", Winner.OURS, True),  # put back
        Case(OURS, "o", "t", "o", Winner.OURS, True),
        Case(THEIRS, "o", "a", "a", Winner.THEIRS, True),  # put back
        Case(THEIRS, "a", "t", "t"),
        Case(THEIRS, "o", "t", "t", Winner.THEIRS, True),
        Case(NEWEST, "o", "a", "o"),
        Case(NEWEST, "a", "t", "t"),
        Case(NEWEST, "o", "t", "", None, True),  # neither says when
        Case(ASK, "o", "a", "o"),
        Case(ASK, "a", "t", "t"),
        Case(ASK, "o", "t", "", None, True),
    ],
)
def test_what_changed_goes_over_or_is_put_back_or_is_a_conflict(case: Case) -> None:
    merged = merge(case.ours, case.theirs, AGREED, case.policy)
    expected = (case.ours, case.theirs) if not case.wanted else (case.wanted, case.wanted)
    assert (merged.to_ours, merged.to_theirs) == expected
    conflict = Conflict(case.ours, case.theirs, "a", case.winner) if case.has_conflict else None
    assert merged.conflict == conflict
    assert merged.state.is_agreed
    assert merged.state.agreed == "a"
    decided = FieldDecision(case.ours, case.theirs, case.wanted) if case.winner is not None else None
    assert merged.state.decision == decided


@pytest.mark.parametrize(
    ("policy", "first", "wanted", "winner"),
    [
        (OURS, THEIRS, "o", Winner.OURS),  # an owner's policy goes before ``first``
        (THEIRS, OURS, "t", Winner.THEIRS),
        (NEWEST, OURS, "o", Winner.OURS),
        (NEWEST, THEIRS, "t", Winner.THEIRS),
        (ASK, OURS, "o", Winner.OURS),
        (ASK, THEIRS, "t", Winner.THEIRS),
        (ASK, ASK, None, None),
        (NEWEST, ASK, None, None),
    ],
)
def test_a_fresh_link_whose_sides_differ_follows_the_owner_or_first(
    policy: Policy, first: Policy, wanted: str | None, winner: Winner | None
) -> None:
    merged = merge("o", "t", FRESH, policy, first=first)
    assert (merged.to_ours, merged.to_theirs) == (wanted or "o", wanted or "t")
    assert merged.conflict == Conflict("o", "t", None, winner)
    assert not merged.state.is_agreed


@pytest.mark.parametrize(
    ("ours_at", "theirs_at", "winner"),
    [
        (10_000_001, 8_000_000, Winner.OURS),
        (8_000_000, 10_000_001, Winner.THEIRS),
        (10_000_000, 8_000_000, None),  # no more apart than the skew
        (8_000_000, 8_000_000, None),
        (None, 8_000_000, None),
        (8_000_000, None, None),
        (None, None, None),
    ],
)
def test_the_newest_wins_where_the_times_tell(
    ours_at: int | None, theirs_at: int | None, winner: Winner | None
) -> None:
    merged = merge(SideValue("o", (), ours_at), SideValue("t", (), theirs_at), AGREED, NEWEST)
    assert merged.conflict is not None
    assert merged.conflict.winner is winner
    wanted = {Winner.OURS: ("o", "o"), Winner.THEIRS: ("t", "t"), None: ("o", "t")}[winner]
    assert (merged.to_ours, merged.to_theirs) == wanted


@pytest.mark.parametrize("policy", Policy)
def test_a_value_that_was_sent_is_nobodys_change(policy: Policy) -> None:
    merged = merge("a", SideValue("s", ("s",)), AGREED, policy)
    assert merged == FieldMerge("a", "a", AGREED)
    both = merge(SideValue("r", ("r",)), SideValue("s", ("s",)), AGREED, policy)
    assert both == FieldMerge("a", "a", AGREED)


DECIDED = FieldState(True, "a", FieldDecision("o", "t", "d"))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("o", "t"),  # nothing is there yet
        ("d", "t"),
        ("o", "d"),
        (SideValue("s", ("s",)), "t"),  # an older write has landed meanwhile
    ],
)
@pytest.mark.parametrize("policy", Policy)
def test_a_decision_holds_while_it_is_on_its_way(
    ours: SideValue | str, theirs: SideValue | str, policy: Policy
) -> None:
    assert merge(ours, theirs, DECIDED, policy) == FieldMerge("d", "d", DECIDED)


def test_a_newer_edit_beside_a_value_that_was_overruled_is_no_conflict() -> None:
    state = FieldState(True, "a", FieldDecision("o", "t", "o"))
    merged = merge("n", "t", state, ASK)
    assert (merged.to_ours, merged.to_theirs, merged.conflict) == ("n", "n", None)


def test_a_newer_edit_against_the_decided_value_is_a_conflict_of_its_own() -> None:
    state = FieldState(True, "a", FieldDecision("o", "t", "o"))
    merged = merge("o", "n", state, ASK)
    assert merged.conflict == Conflict("o", "n", "a", None)
    assert (merged.to_ours, merged.to_theirs) == ("o", "n")


def test_once_the_decided_value_is_agreed_a_newer_edit_is_one_sides_alone() -> None:
    state = FieldState(True, "a", FieldDecision("o", "t", "o")).note_agreed("o")
    merged = merge("o", "n", state, ASK)
    assert (merged.to_ours, merged.to_theirs, merged.conflict) == ("n", "n", None)


def test_what_was_put_back_is_noted_once_and_a_newer_edit_again() -> None:
    first = merge("a", "t", AGREED, OURS)
    again = merge("a", "t", first.state, OURS)
    assert first.conflict is not None
    assert again == FieldMerge("a", "a", first.state)
    newer = merge("a", "n", again.state, OURS)
    assert newer.conflict == Conflict("a", "n", "a", Winner.OURS)


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        (1, 1.0, True),
        (Decimal("1.0"), 1, True),
        (True, 1, False),
        (False, 0, False),
        (None, "", False),
        (None, None, True),
        ("1", 1, False),
        ({"a": 1, "b": [1.0]}, {"b": [1], "a": 1}, True),
        ([1, 2], [2, 1], False),
    ],
)
def test_values_are_the_same_as_json(one: object, other: object, are_same: bool) -> None:
    assert same(one, other) is are_same
    merged = merge_field(SideValue(one), SideValue(other), FRESH, ASK, first=ASK, skew=0)
    assert (merged.conflict is None) is are_same

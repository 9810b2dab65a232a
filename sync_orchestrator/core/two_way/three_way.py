"""The three-way merge of one shared field against the value that both sides last agreed on. Pure.

A value counts as the change of a person where it differs from the agreed one and is none that we have sent to that
side. What only one side has changed goes to the other; what both have changed is a conflict, which a policy decides or
leaves to a person. Nothing that a policy overrules is forgotten: it is in the ``Conflict``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from sync_orchestrator.core.values.mapping import compute_digest


class Policy(StrEnum):
    """Who may change a field, and who wins where both sides have changed it."""

    OURS = "ours"
    """Our side owns the field: what they change is put back."""
    THEIRS = "theirs"
    """Their side owns the field."""
    NEWEST = "newest"
    """Both may change it, and the newer change wins; where the times are too close or unknown, a person decides."""
    ASK = "ask"
    """Both may change it, and a person decides a conflict."""


class Winner(StrEnum):
    """The side whose value goes to both."""

    OURS = "ours"
    THEIRS = "theirs"


@dataclass(frozen=True, slots=True)
class SideValue:
    """What one side shows of a field.

    Attributes:
        value: The value, as JSON.
        sent: Values of calls to this side that may still land, so that they are no change of a person's.
        at: When the side changed its record, in microseconds since 1970; None where it does not say.
    """

    value: object
    sent: Sequence[object] = ()
    at: int | None = None


@dataclass(frozen=True, slots=True)
class FieldDecision:
    """A decided conflict: these two values were seen, and ``value`` goes to both sides."""

    ours: object
    theirs: object
    value: object


@dataclass(frozen=True, slots=True)
class FieldState:
    """What is known of a field from before.

    Attributes:
        is_agreed: Both sides have once had the same value.
        agreed: The last value that both sides had.
        decision: How the last conflict was decided.
    """

    is_agreed: bool = False
    agreed: object = None
    decision: FieldDecision | None = None

    def note_agreed(self, value: object) -> FieldState:
        """The state once both sides have had a value; what was decided before stays known."""
        return replace(self, is_agreed=True, agreed=value)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Both sides have changed a field, or one side has changed a field that it may not change.

    Attributes:
        ours: Our side's value.
        theirs: Their side's value.
        agreed: The value from which both have departed; None, too, where none was agreed on.
        winner: The side whose value goes to both; None where a person decides.
    """

    ours: object
    theirs: object
    agreed: object
    winner: Winner | None


@dataclass(frozen=True, slots=True)
class FieldMerge:
    """What becomes of a field.

    Attributes:
        to_ours: The value that our side is to have.
        to_theirs: The value that their side is to have.
        state: What is known of the field from now on.
        conflict: Both sides departed from what was agreed; None where one side alone did.
    """

    to_ours: object
    to_theirs: object
    state: FieldState
    conflict: Conflict | None = None


def same(one: object, other: object) -> bool:
    """Whether two values are the same JSON: numbers by their value, and true is not 1."""
    return one is other or compute_digest([one]) == compute_digest([other])


def merge_field(
    ours: SideValue, theirs: SideValue, state: FieldState, policy: Policy, *, first: Policy, skew: int
) -> FieldMerge:
    """Merges one field.

    Args:
        ours: What our side shows.
        theirs: What their side shows.
        state: What is known from before.
        policy: The policy of the field.
        first: The policy for a fresh link whose sides differ, where neither side owns the field.
        skew: In microseconds; changes that lie closer together are not ordered by their times.
    """
    if same(ours.value, theirs.value):
        return FieldMerge(ours.value, theirs.value, FieldState(True, ours.value))
    decision = state.decision
    if decision is not None and _still_holds(decision, ours, theirs):
        return FieldMerge(decision.value, decision.value, state)
    if not state.is_agreed:
        rule = policy if policy in (Policy.OURS, Policy.THEIRS) else first
        return _decide(ours, theirs, state, rule, skew)
    has_ours_changed = _has_changed(ours, state, None if decision is None else decision.ours)
    has_theirs_changed = _has_changed(theirs, state, None if decision is None else decision.theirs)
    if has_ours_changed and has_theirs_changed:
        return _decide(ours, theirs, state, policy, skew)
    if has_ours_changed:
        if policy is Policy.THEIRS:
            return _put_back(ours, theirs, state, Winner.THEIRS)
        return FieldMerge(ours.value, ours.value, state)
    if has_theirs_changed:
        if policy is Policy.OURS:
            return _put_back(ours, theirs, state, Winner.OURS)
        return FieldMerge(theirs.value, theirs.value, state)
    return FieldMerge(state.agreed, state.agreed, state)


def _still_holds(decision: FieldDecision, ours: SideValue, theirs: SideValue) -> bool:
    """Whether the sides still show what was decided on, or what was decided, or an older write of ours."""
    return all(
        same(side.value, known) or same(side.value, decision.value) or any(same(side.value, sent) for sent in side.sent)
        for side, known in ((ours, decision.ours), (theirs, decision.theirs))
    )


def _has_changed(side: SideValue, state: FieldState, decided_on: object) -> bool:
    """Whether a person has changed the field on this side since both agreed, and nothing was decided about it yet."""
    if same(side.value, state.agreed) or any(same(side.value, sent) for sent in side.sent):
        return False
    decision = state.decision
    was_overruled = decision is not None and not same(decided_on, decision.value) and same(side.value, decided_on)
    return not was_overruled


def _decide(ours: SideValue, theirs: SideValue, state: FieldState, policy: Policy, skew: int) -> FieldMerge:
    winner = _find_winner(ours, theirs, policy, skew)
    conflict = Conflict(ours.value, theirs.value, state.agreed, winner)
    if winner is None:
        return FieldMerge(ours.value, theirs.value, state, conflict)
    value = ours.value if winner is Winner.OURS else theirs.value
    return FieldMerge(value, value, replace(state, decision=FieldDecision(ours.value, theirs.value, value)), conflict)


def _find_winner(ours: SideValue, theirs: SideValue, policy: Policy, skew: int) -> Winner | None:
    if policy is Policy.OURS:
        return Winner.OURS
    if policy is Policy.THEIRS:
        return Winner.THEIRS
    if policy is Policy.NEWEST and ours.at is not None and theirs.at is not None and abs(ours.at - theirs.at) > skew:
        return Winner.OURS if ours.at > theirs.at else Winner.THEIRS
    return None


def _put_back(ours: SideValue, theirs: SideValue, state: FieldState, winner: Winner) -> FieldMerge:
    """A side has changed a field that the other one owns: the agreed value goes there again; the change is noted."""
    conflict = Conflict(ours.value, theirs.value, state.agreed, winner)
    decision = FieldDecision(ours.value, theirs.value, state.agreed)
    return FieldMerge(state.agreed, state.agreed, replace(state, decision=decision), conflict)

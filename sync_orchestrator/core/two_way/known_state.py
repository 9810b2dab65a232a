"""What a side holds by all that is known: what it showed last, and what calls of ours have changed since. Pure.

A read that began before a write of ours was acknowledged says nothing of what came after it, and a read from a replica
may show the state before the write for a while.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sync_orchestrator.core.two_way.three_way import same

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class SharedCall:
    """A push of a record with shared fields.

    Attributes:
        token: The token of the push.
        carried: The values of shared fields that it carries, by field.
        before: Those that the side had before, as far as was known.
        own: Those that the record's own side had by then.
        acknowledged: The read sequence at which it was acknowledged; None where its outcome is not known.
        seconds_since: Seconds since it was acknowledged.
        is_merged: The merge has noted already that both sides had these values.
    """

    token: int
    carried: Values
    before: Values
    own: Values
    acknowledged: int | None = None
    seconds_since: float = 0.0
    is_merged: bool = False


def list_acknowledged(calls: Sequence[SharedCall]) -> list[SharedCall]:
    """The calls that were acknowledged, in the order in which they were."""
    return sorted((call for call in calls if call.acknowledged is not None), key=lambda call: call.acknowledged or 0)


def find_current_values(
    shown: Values, read_sequence: int, calls: Sequence[SharedCall], read_lag: float
) -> dict[str, object]:
    """The values of the shared fields that a side has now.

    Args:
        shown: The values that it showed, by field.
        read_sequence: The sequence of the read that showed them, drawn before that began.
        calls: Calls of ours to this record.
        read_lag: For how many seconds after a write a read may show the state before it.
    """
    current = dict(shown)
    for call in list_acknowledged(calls):
        assert call.acknowledged is not None
        is_older = read_sequence < call.acknowledged
        may_lag = call.seconds_since < read_lag
        for field, value in call.carried.items():
            if field in current and (is_older or (may_lag and same(shown[field], call.before.get(field)))):
                current[field] = value
    return current


def list_sent_values(field: str, calls: Sequence[SharedCall]) -> list[object]:
    """The values of a field that calls of ours may still bring to a side.

    A value that the side had by itself, and that a call only sends again, is none of ours.
    """
    return [
        call.carried[field]
        for call in calls
        if call.acknowledged is None
        and field in call.carried
        and not (field in call.before and same(call.before[field], call.carried[field]))
    ]


def is_obsolete(call: SharedCall, read_sequence: int, read_lag: float) -> bool:
    """Whether a call says nothing any more that a later read has not shown."""
    return (
        call.acknowledged is not None
        and call.is_merged
        and read_sequence >= call.acknowledged
        and call.seconds_since >= read_lag
    )

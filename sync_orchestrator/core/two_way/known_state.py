"""What a side holds by all that is known: what it showed last, and what calls of ours have changed since. Pure.

A read that began before a write of ours was acknowledged says nothing of what came after it, and a read from a replica
may show the state before the write for a while. How old a read is counts, not when it is merged: what it showed stays
as it is until the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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
        acknowledged_at: When it was, in seconds since 1970.
        is_merged: The merge has noted already that both sides had these values.
    """

    token: int
    carried: Values
    before: Values
    own: Values
    acknowledged: int | None = None
    acknowledged_at: float = 0.0
    is_merged: bool = False


@dataclass(frozen=True, slots=True)
class SideRead:
    """A read of a side.

    Attributes:
        sequence: Its sequence, drawn before it began.
        at: When it was made, in seconds since 1970.
    """

    sequence: int
    at: float


def list_acknowledged(calls: Sequence[SharedCall]) -> list[SharedCall]:
    """The calls that were acknowledged, in the order in which they were."""
    return sorted((call for call in calls if call.acknowledged is not None), key=lambda call: call.acknowledged or 0)


def list_agreed_values(one: Sequence[SharedCall], other: Sequence[SharedCall]) -> list[tuple[str, object]]:
    """What both sides have had by calls that were acknowledged and not merged yet, in the order of acknowledgement.

    A value is agreed where the side that it came from had it, or where a call has brought it to that side, too, as with
    a value that a person has chosen for both.

    Args:
        one: Calls to one side.
        other: Calls to the other side.

    Returns:
        Fields with their values.
    """
    calls = [(call, others) for own, others in ((one, other), (other, one)) for call in list_acknowledged(own)]
    calls.sort(key=lambda each: each[0].acknowledged or 0)
    return [
        (field, value)
        for call, others in calls
        if not call.is_merged
        for field, value in call.carried.items()
        if (field in call.own and same(call.own[field], value)) or _has_brought(field, value, others, call)
    ]


def _has_brought(field: str, value: object, calls: Sequence[SharedCall], before: SharedCall) -> bool:
    """Whether a call that was acknowledged before another one has carried a value."""
    return any(
        same(call.carried[field], value)
        for call in list_acknowledged(calls)
        if field in call.carried and (call.acknowledged or 0) < (before.acknowledged or 0)
    )


def find_current_values(
    shown: Values, read: SideRead, calls: Sequence[SharedCall], read_lag: float
) -> dict[str, object]:
    """The values of the shared fields that a side has now.

    A read that may lag is not believed where it shows what the side had before a write of ours. Of several writes in a
    row it may show what was before the first one, so that each is compared with what those before it have made.

    Args:
        shown: The values that it showed, by field.
        read: The read that showed them.
        calls: Calls of ours to this record.
        read_lag: For how many seconds after a write a read may show the state before it.
    """
    current = dict(shown)
    for call in list_acknowledged(calls):
        assert call.acknowledged is not None
        is_older = read.sequence < call.acknowledged
        may_lag = read.at - call.acknowledged_at < read_lag
        for field, value in call.carried.items():
            if field in current and (is_older or (may_lag and same(current[field], call.before.get(field)))):
                current[field] = value
    return current


def list_sent_values(field: str, calls: Sequence[SharedCall]) -> list[object]:
    """The values of a field that calls of ours may still bring to a side.

    A value that only that side had, and that a call sends there again, is none of ours. One that both sides had is: it
    may land once both have another one.
    """
    return [
        call.carried[field]
        for call in calls
        if call.acknowledged is None and field in call.carried and not _is_sent_back(field, call)
    ]


def _is_sent_back(field: str, call: SharedCall) -> bool:
    """Whether the side that a call goes to had its value, and the other one had not."""
    had, own_had = (field in values and same(values[field], call.carried[field]) for values in (call.before, call.own))
    return had and not own_had


def is_obsolete(call: SharedCall, read: SideRead, read_lag: float) -> bool:
    """Whether a call says nothing any more that a later read has not shown."""
    return (
        call.acknowledged is not None
        and call.is_merged
        and read.sequence >= call.acknowledged
        and read.at - call.acknowledged_at >= read_lag
    )


def list_ended_calls(
    calls: Sequence[SharedCall], read: SideRead, read_lag: float, *, in_flight: Collection[int]
) -> list[SharedCall]:
    """The calls of which everything has been seen.

    One of unknown outcome is remembered for as long as a read may show what was there before an acknowledged one: that
    may be what it has brought.

    Args:
        calls: Calls of ours to this record.
        read: The last read of it.
        read_lag: For how many seconds after a write a read may show the state before it.
        in_flight: The tokens of calls that may still land, or that no read has followed that would show them.
    """
    obsolete = [call for call in calls if is_obsolete(call, read, read_lag)]
    if len(obsolete) < len(list_acknowledged(calls)):
        return obsolete
    return obsolete + [call for call in calls if call.acknowledged is None and call.token not in in_flight]

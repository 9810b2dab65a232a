"""What people do about conflicts and links: look at them, decide, link and separate records.

A decision goes out like a change of a person's: by the merge, guarded by what was shown when it was made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.two_way import queries
from sync_orchestrator.core.two_way.conflict_log import resolve_alerts
from sync_orchestrator.core.two_way.merge_linked import decide_deletion, merge_linked
from sync_orchestrator.core.two_way.rules import TwoWay
from sync_orchestrator.core.two_way.three_way import Winner
from sync_orchestrator.errors import SyncError

if TYPE_CHECKING:
    from sqlalchemy import Connection

OPEN = ("open",)
STATES = ("open", "decided", "resolved", "overtaken", "over")


class CannotResolve(SyncError):
    """A conflict cannot be resolved as asked; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person decides: one side's value, or another one.

    Attributes:
        winner: The side whose value goes to both; None for a value of its own.
        value: That value, where ``winner`` is None.
    """

    winner: Winner | None
    value: object = None


@dataclass(frozen=True, slots=True)
class LinkCounts:
    """How many records are linked, and how many are not.

    Attributes:
        linked: Pairs that follow each other.
        ended: Pairs that do not any more.
        only_ours: Records of our side without a link.
        only_theirs: Records of their side without a link.
        ambiguous: Those of them that wait because several have the same natural key.
        not_yet: Those of them that wait for another reason.
        conflicts: Conflicts that wait for a person.
    """

    linked: int
    ended: int
    only_ours: int
    only_theirs: int
    ambiguous: int
    not_yet: int
    conflicts: int


def list_conflicts(
    connection: Connection,
    *,
    entity: str | None = None,
    group: str | None = None,
    field: str | None = None,
    key: str | None = None,
    states: Sequence[str] = OPEN,
    most: int = 100,
) -> list[dict[str, Any]]:
    """Lists conflicts, the newest first.

    Args:
        connection: A connection.
        entity: Only those of the entity that has ``two_way``.
        group: Only those of a business group.
        field: Only those about a shared field.
        key: Only those of one record of ours.
        states: ``open`` (a person has to decide), ``decided`` (by the policy), ``resolved`` (by a person),
            ``overtaken`` (by a newer change), ``over`` (both sides came to the same, or are not linked any more).
        most: At most so many.
    """
    rows = run(
        connection,
        queries.LIST_CONFLICTS,
        entity=entity,
        group=group,
        field=field,
        key=key,
        states=list(states),
        most=most,
    )
    return [describe_conflict(row) for row in rows]


def read_conflict(connection: Connection, conflict_id: int) -> dict[str, Any]:
    """Reads one conflict. Raises CannotResolve where there is none of this number."""
    rows = run(connection, queries.SELECT_CONFLICT, id=conflict_id)
    if not rows:
        raise CannotResolve(f"there is no conflict {conflict_id}")
    return describe_conflict(rows[0])


def describe_conflict(row: Any) -> dict[str, Any]:
    """A conflict as people are shown it. ``field`` None: one side has deleted the record."""
    return {
        "id": row.id,
        "entity": row.entity,
        "group": row.group_key,
        "key": row.key,
        "theirs_key": row.theirs_key,
        "field": row.field,
        "agreed": row.agreed,
        "ours": row.ours,
        "theirs": row.theirs,
        "ours_at": None if row.ours_at is None else row.ours_at.isoformat(),
        "theirs_at": None if row.theirs_at is None else row.theirs_at.isoformat(),
        "policy": row.policy,
        "state": row.state,
        "winner": row.winner,
        "resolved_by": row.resolved_by,
        "reason": row.reason,
        "since": row.at.isoformat(),
        "ended": None if row.ended_at is None else row.ended_at.isoformat(),
    }


def count_links(connection: Connection, two_way: TwoWay) -> LinkCounts:
    """Counts linked records, and those that are on one side only."""
    row = run(connection, queries.COUNT_LINKS, ours=two_way.ours.entity, theirs=two_way.theirs.entity)[0]
    return LinkCounts(row.linked, row.ended, row.only_ours, row.only_theirs, row.ambiguous, row.not_yet, row.conflicts)


def list_waiting_records(
    connection: Connection, two_way: TwoWay, *, reason: str | None = None, most: int = 100
) -> list[dict[str, Any]]:
    """Lists records that are neither linked nor made on the other side, those that wait longest first."""
    rows = run(
        connection,
        queries.LIST_WAITS,
        entities=[two_way.ours.entity, two_way.theirs.entity],
        reason=reason,
        most=most,
    )
    return [
        {
            "entity": row.entity,
            "key": row.key,
            "reason": row.reason,
            "detail": row.detail,
            "since": row.since.isoformat(),
        }
        for row in rows
    ]


def resolve_conflict(
    connection: Connection,
    two_ways: Mapping[str, TwoWay],
    conflict_id: int,
    choice: Choice,
    *,
    by: str | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """Decides an open conflict, in the caller's transaction.

    Args:
        connection: The transaction.
        two_ways: The rules, by the entity that has ``two_way``.
        conflict_id: The number of the conflict.
        choice: What is decided. Of a deletion: the side that has deleted the record, which is followed, or the other
            side, from which the record is made again.
        by: Who decides.
        reason: Why.

    Returns:
        The conflict as it is now.

    Raises:
        CannotResolve: There is no such conflict, it is over, or the choice does not fit it.
    """
    resolved = _resolve(connection, two_ways, conflict_id, choice, by, reason)
    resolve_alerts(connection, resolved["entity"])
    notify_work(connection)
    return resolved


def _resolve(
    connection: Connection,
    two_ways: Mapping[str, TwoWay],
    conflict_id: int,
    choice: Choice,
    by: str | None,
    reason: str | None,
) -> dict[str, Any]:
    found = run(connection, queries.SELECT_CONFLICT, id=conflict_id)
    if not found:
        raise CannotResolve(f"there is no conflict {conflict_id}")
    two_way = two_ways.get(found[0].entity)
    if two_way is None:
        raise CannotResolve(f"conflict {conflict_id}: entity '{found[0].entity}' has no two_way any more")
    acquire_lock(connection, AdvisoryLock.TWO_WAY, two_way.ours.entity)
    row = run(connection, queries.LOCK_CONFLICT, id=conflict_id)[0]
    if row.state != "open":
        raise CannotResolve(_why_over(row))
    if row.field is None:
        if choice.winner is None:
            raise CannotResolve(f"conflict {conflict_id} is about a deletion: choose ours or theirs, not a value")
        decide_deletion(connection, two_way, row.key, choice.winner)
    else:
        value = row.ours if choice.winner is Winner.OURS else row.theirs if choice.winner else choice.value
        decision = {"ours": row.ours, "theirs": row.theirs, "value": value}
        run(
            connection,
            queries.DECIDE_FIELD,
            entity=row.entity,
            key=row.key,
            path=[row.field, "decision"],
            field=row.field,
            decision=to_jsonb(decision),
        )
    run(
        connection,
        queries.RESOLVE_CONFLICT,
        id=conflict_id,
        winner="value" if choice.winner is None else str(choice.winner),
        by=by,
        reason=reason,
    )
    merge_linked(connection, two_way, two_way.ours.entity, [row.key])
    return describe_conflict(run(connection, queries.SELECT_CONFLICT, id=conflict_id)[0])


def resolve_alike(
    connection: Connection,
    two_ways: Mapping[str, TwoWay],
    conflict_id: int,
    choice: Choice,
    *,
    by: str | None = None,
    reason: str | None = None,
    most: int = 1000,
) -> int:
    """Decides an open conflict and all open ones about the same field of the same entity; returns how many.

    Raises CannotResolve as ``resolve_conflict`` does.
    """
    first = _resolve(connection, two_ways, conflict_id, choice, by, reason)
    rows = run(connection, queries.LIST_ALIKE, entity=first["entity"], field=first["field"], most=most)
    for row in rows:
        _resolve(connection, two_ways, row.id, choice, by, reason)
    resolve_alerts(connection, first["entity"])
    notify_work(connection)
    return 1 + len(rows)


def make_link(connection: Connection, two_way: TwoWay, key: str, theirs_key: str) -> None:
    """Links two records by hand, and merges them, also two whose link was ended.

    Raises CannotResolve where one of them is linked or not here.
    """
    acquire_lock(connection, AdvisoryLock.TWO_WAY, two_way.ours.entity)
    for side, record in ((two_way.ours, key), (two_way.theirs, theirs_key)):
        if not run(connection, queries.LIST_PRESENT_KEYS, entity=side.entity, keys=[record]):
            raise CannotResolve(f"{side.entity} has no record {record!r}")
    run(connection, queries.DELETE_ENDED_LINKS, entity=two_way.ours.entity, key=key, theirs_key=theirs_key)
    made = run(
        connection,
        queries.INSERT_LINKS,
        entity=two_way.ours.entity,
        key=[key],
        theirs_key=[theirs_key],
        made_by=["person"],
    )
    if not made:
        raise CannotResolve(f"{key!r} or {theirs_key!r} is linked already. Break that link first: links break")
    for side, record in ((two_way.ours, key), (two_way.theirs, theirs_key)):
        run(connection, queries.DELETE_WAITS, entity=side.entity, keys=[record])
    merge_linked(connection, two_way, two_way.ours.entity, [key])
    notify_work(connection)


def break_link(connection: Connection, two_way: TwoWay, key: str) -> str:
    """Ends a link: neither record follows the other any more. Returns the key of the other record.

    Raises CannotResolve where the record is not linked.
    """
    acquire_lock(connection, AdvisoryLock.TWO_WAY, two_way.ours.entity)
    rows = run(connection, queries.END_LINK, entity=two_way.ours.entity, key=key, reason="separated by a person")
    if not rows:
        raise CannotResolve(f"{two_way.ours.entity} {key!r} is not linked")
    merge_linked(connection, two_way, two_way.ours.entity, [key])
    return str(rows[0].theirs_key)


def _why_over(row: Any) -> str:
    why = {
        "decided": f"the policy '{row.policy}' has decided it",
        "resolved": f"{row.resolved_by or 'somebody'} has resolved it",
        "overtaken": "a newer change has overtaken it: list the conflicts again",
        "over": "both sides have come to the same, or are not linked any more",
    }[row.state]
    return f"conflict {row.id} is not open any more: {why}"

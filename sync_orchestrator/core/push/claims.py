"""Claims records for pushes: which records are due, who has claimed them, and when the next one is due.

A claim is a lease on a record. It is committed before anything is sent, so that a call whose answer is lost is known
to have been possible. The SQL is in ``claim_queries.py``.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol, cast

from sync_orchestrator.core.db.fragments import HOLDER_VALID_SECONDS
from sync_orchestrator.core.db.session import as_bytes, force_index_scans, run
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.push import claim_queries as queries
from sync_orchestrator.core.systems.claim_holders import Deadline, Hold
from sync_orchestrator.core.two_way.shared_calls import SharedWrite, announce_shared_calls

if TYPE_CHECKING:
    from sqlalchemy import Connection

Place = tuple[str, str]
"""An entity and one of its business groups."""

RecordKey = tuple[str, str]
"""An entity and the key of one of its records."""

Parts = dict[str, Json]
"""The data of a record's parts by the name of the part."""

FIRST_PLACE: Place = ("", "")

_PLACES_IN_TURN = 50


class ClaimRow(Protocol):
    """A row that a claim of ``claim_queries.py`` returns."""

    entity: str
    key: str
    group_key: str | None
    revision: int
    deleted: bool
    applied_revision: int
    applied_digest: bytes | memoryview | None
    applied_group: str | None
    external_id: str | None
    attempts: int
    rejected_digest: bytes | memoryview | None
    lease_token: int
    ever_applied: bool
    outcome_unknown_until: datetime | None
    outcome_unknown_for: float | None
    outcome_unknown_groups: Sequence[str]
    late_creates: list[list[str]]
    priority: int
    due_at: datetime
    refusal_retried: bool
    turn: int
    trace: str | None
    acknowledged_at: int
    acknowledged_ago: float | None
    refused_at: int
    waiting_for: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PushClaim:
    """A record leased for one push, as it stood when it was claimed."""

    entity: str
    key: str
    group: str | None
    revision: int
    deleted: bool
    applied_digest: bytes | None
    applied_group: str | None
    external_id: str | None
    attempts: int
    rejected_digest: bytes | None
    token: int
    ever_applied: bool
    outcome_unknown_until: datetime | None
    outcome_unknown_for: float | None
    deadline: float
    """Monotonic time after which no call may be begun under this lease, a ``Deadline`` where its holder has a
    heartbeat."""
    acknowledged_at: int
    """When the third party last acknowledged the record, in microseconds since 1970; 0 for never."""
    waiting_for: float
    """For how many seconds it has been waiting for something that it refers to."""
    parts: Parts
    outcome_unknown_groups: tuple[str, ...] = ()
    """Business groups under which calls may have been sent whose outcome is unknown, and the present one."""
    late_creates: list[list[str]] = field(default_factory=list)
    """Group and id of what creates made that came too late."""
    applied_revision: int = 0
    """The revision that the third party acknowledged last; 0 where none holds."""
    trace: str | None = None
    """The trace context of the newest event that is waiting for this push."""
    refusal_retried: bool = False
    """Whether its refused payload was tried again since what it could depend on was acknowledged."""
    acknowledged_ago: float | None = None
    """Seconds since the third party last acknowledged the record; None for never."""
    refused_at: int = 0
    """When a write was last definitely refused, in microseconds since 1970; 0 for never."""
    shared: SharedWrite | None = None
    """What is known of its shared fields, where people change its records on both sides."""

    @classmethod
    def from_row(cls, row: ClaimRow, parts: Parts, deadline: float, shared: SharedWrite | None = None) -> PushClaim:
        """The claim of a row; ``parts`` is the archived data of its record."""
        return cls(
            entity=row.entity,
            key=row.key,
            group=row.group_key,
            revision=row.revision,
            deleted=row.deleted,
            applied_digest=as_bytes(row.applied_digest),
            applied_group=row.applied_group,
            external_id=row.external_id,
            attempts=row.attempts,
            rejected_digest=as_bytes(row.rejected_digest),
            token=row.lease_token,
            ever_applied=row.ever_applied,
            outcome_unknown_until=row.outcome_unknown_until,
            outcome_unknown_for=row.outcome_unknown_for,
            deadline=deadline,
            acknowledged_at=row.acknowledged_at,
            waiting_for=row.waiting_for,
            parts=parts,
            outcome_unknown_groups=tuple(row.outcome_unknown_groups),
            late_creates=row.late_creates,
            applied_revision=row.applied_revision,
            trace=row.trace,
            refusal_retried=row.refusal_retried,
            acknowledged_ago=row.acknowledged_ago,
            refused_at=row.refused_at,
            shared=shared,
        )


def claim_due_records(
    connection: Connection,
    entities: Sequence[str],
    *,
    most: int,
    lease: float,
    in_flight_window: float,
    group: str | None = None,
    probe: bool = False,
    hold: Hold | None = None,
    timeout: float = 0.0,
) -> list[PushClaim]:
    """Leases records that are out of sync and due, live changes first, and announces the intent to push them.

    The caller commits before anything is sent.

    Args:
        connection: A connection within a transaction.
        entities: The entities whose records are claimed.
        most: The maximum number of claims.
        lease: The duration of the leases in seconds.
        in_flight_window: For how many seconds a call of unknown outcome may still be carried out.
        group: Only records of this business group of the one entity.
        probe: Claims a single record, due or not.
        hold: The holder whose heartbeat the claims depend on; without one they end with their lease.
        timeout: The timeout of a call: a holder that is gone has given up its calls that much later.
    """
    deadline = Deadline(time.monotonic() + lease / 2, hold)
    terms = _lease_terms(lease, in_flight_window, hold, timeout)
    force_index_scans(connection, in_order=True)
    if probe:
        rows = run(connection, queries.CLAIM_ONE_RECORD, entities=list(entities), group=group, **terms)
    elif group is None:
        rows = run(connection, queries.CLAIM_DUE_RECORDS, entities=list(entities), most=most, **terms)
    else:
        rows = run(connection, queries.CLAIM_DUE_RECORDS_OF_GROUP, entity=entities[0], group=group, most=most, **terms)
    return _claims_of_rows(connection, cast(Sequence[ClaimRow], rows), deadline)


def claim_in_turn(
    connection: Connection,
    entities: Sequence[str],
    after: Place,
    *,
    most: int,
    lease: float,
    in_flight_window: float,
    hold: Hold | None = None,
    timeout: float = 0.0,
) -> tuple[list[PushClaim], Place]:
    """Leases due records of some business groups that have work, from the first behind ``after``, of both priorities.

    Returns the claims and the last of these groups; behind the last one of all it begins anew. The other arguments are
    those of ``claim``.
    """
    deadline = Deadline(time.monotonic() + lease / 2, hold)
    force_index_scans(connection, in_order=True)
    rows: Sequence[ClaimRow] = ()
    for entity, group in dict.fromkeys((after, FIRST_PLACE)):
        rows = rows or cast(
            Sequence[ClaimRow],
            run(
                connection,
                queries.CLAIM_DUE_RECORDS_IN_TURN,
                entities=list(entities),
                most=most,
                after_entity=entity,
                after_group=group,
                places=_PLACES_IN_TURN,
                **_lease_terms(lease, in_flight_window, hold, timeout),
            ),
        )
    if not rows:
        return [], FIRST_PLACE
    last = max(rows, key=lambda row: row.turn)
    return _claims_of_rows(connection, rows, deadline), (last.entity, last.group_key or "")


def next_due(connection: Connection, entities: Sequence[str], group: str | None = None) -> float | None:
    """Seconds until the next record is due for a push; None where none is."""
    if group is None:
        rows = run(connection, queries.SECONDS_UNTIL_NEXT_PUSH, entities=list(entities))
    else:
        rows = run(connection, queries.SECONDS_UNTIL_NEXT_PUSH_OF_GROUP, entity=entities[0], group=group)
    return None if rows[0].seconds is None else float(rows[0].seconds)


def release_claims(connection: Connection, claims: Collection[PushClaim]) -> None:
    """Gives back records that were claimed and for which nothing was sent."""
    run(connection, queries.RELEASE_UNSENT_CLAIMS, **claim_columns(claims))


def claim_columns(claims: Collection[PushClaim]) -> dict[str, list[str] | list[int]]:
    """The columns by which a statement finds the records of claims that are still valid."""
    return {
        "entity": [claimed.entity for claimed in claims],
        "key": [claimed.key for claimed in claims],
        "token": [claimed.token for claimed in claims],
    }


def read_parts(connection: Connection, entities: Sequence[str], keys: Sequence[str]) -> dict[RecordKey, Parts]:
    """The archived data of records by entity and key, and of each by part.

    Args:
        connection: A connection within a transaction.
        entities: The entity of each record.
        keys: The key of each record, as many as ``entities``.
    """
    found: dict[RecordKey, Parts] = {}
    for row in run(connection, queries.SELECT_PARTS, entity=list(entities), key=list(keys)):
        found.setdefault((row.entity, row.key), {})[row.part] = row.data
    return found


def _lease_terms(
    lease: float, in_flight_window: float, hold: Hold | None, timeout: float
) -> dict[str, float | int | None]:
    return {
        "lease": lease,
        "in_flight_window": in_flight_window,
        "holder": None if hold is None else hold.id,
        "gives_up": HOLDER_VALID_SECONDS + timeout,
    }


def _claims_of_rows(connection: Connection, rows: Sequence[ClaimRow], deadline: float) -> list[PushClaim]:
    if not rows:
        return []
    parts = read_parts(connection, [row.entity for row in rows], [row.key for row in rows])
    shared = announce_shared_calls(
        connection, [(row.entity, row.key, row.lease_token, parts.get((row.entity, row.key), {})) for row in rows]
    )
    return [
        PushClaim.from_row(row, parts.get((row.entity, row.key), {}), deadline, shared.get((row.entity, row.key)))
        for row in sorted(rows, key=lambda row: (row.priority, row.due_at))
    ]

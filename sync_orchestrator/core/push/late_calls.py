"""Calls whose outcome is unknown, since the answer was lost or came after the lease of the record had ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.push import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.core.push.result import Pushed


def mark_outcome_unknown(
    connection: Connection, entities: Sequence[str], keys: Sequence[str], in_flight_seconds: float
) -> None:
    """Marks records at the third party as unknown until no call can be carried out late any more.

    Args:
        connection: A connection within a transaction.
        entities: The entity of each record.
        keys: The key of each record, as many as ``entities``.
        in_flight_seconds: For how long a call may still be carried out.
    """
    run(
        connection,
        queries.MARK_OUTCOME_UNKNOWN,
        entity=list(entities),
        key=list(keys),
        in_flight_window=in_flight_seconds,
    )


def note_late_calls(connection: Connection, late: Sequence[Pushed], in_flight_seconds: float) -> list[Pushed]:
    """Notes pushes whose lease had gone to somebody else before they ended; returns those that made a duplicate.

    Such a push may have overwritten what the holder of the lease has written, so what the third party has is unknown
    from here on. What its create made is the record where nobody has made another, and is never forgotten.
    """
    if not late:
        return []
    entities, keys = [end.claim.entity for end in late], [end.claim.key for end in late]
    mark_outcome_unknown(connection, entities, keys, in_flight_seconds)
    rows = run(
        connection,
        queries.REMEMBER_LATE_CREATE,
        entity=entities,
        key=keys,
        group=[end.claim.group for end in late],
        external_id=[end.external_id if end.calls.created else None for end in late],
    )
    made = {(end.claim.entity, end.claim.key): end for end in late if end.calls.created}
    duplicates = []
    for row in rows:
        end = made.get((row.entity, row.key))
        another = row.external_id is not None and end is not None and row.external_id != end.external_id
        if end is not None and another and row.lease_token is None:  # whoever holds it may be adopting this one
            duplicates.append(end)
    return duplicates

"""Makes records due for a push again, because the third party has something else than it acknowledged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.validation import queries


@dataclass(frozen=True, slots=True)
class RepairTarget:
    """A record to be pushed again.

    ``theirs``: the digest of what the third party has, None for nothing. ``place``: the business group under which it
    counts as acknowledged, None where that stays as it is.
    """

    key: str
    revision: int
    theirs: bytes | None
    external_id: str | None
    place: str | None


def queue_repairs(connection: Connection, entity: str, targets: Sequence[RepairTarget]) -> set[str]:
    """Makes records due, unless they changed or are being pushed since they were seen.

    Returns:
        The keys of the records that are due now.
    """
    if not targets:
        return set()
    chosen = sorted(targets, key=lambda target: target.key)
    rows = run(
        connection,
        queries.MARK_DUE_FOR_REPAIR,
        entity=entity,
        keys=[target.key for target in chosen],
        revisions=[target.revision for target in chosen],
        theirs=[target.theirs for target in chosen],
        external_ids=[target.external_id for target in chosen],
        places=[target.place for target in chosen],
    )
    notify_work(connection)
    return {row.key for row in rows}

"""Deletions that no delete event asked for: counted towards caps, per business group and per entity (rule 22).

A record that a listing lacks, that a flag of its source marks as deleted, or that is extra at the third party is
deleted only while few are: a replica that is being rebuilt or a flag that is read wrongly looks like many deletions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import Connection

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.version_guard import Change

Reason = Literal["unlisted", "flagged", "extra", "unmanaged"]

FLAGGED = ": flagged"
"""The end of the cause of the alert for events whose deletions are held back."""


def reserve_deletions(
    connection: Connection, entity: EntityContext, group: str, n: int, reason: Reason, *, allowed: int | None = None
) -> str | None:
    """Counts deletions that no delete event asked for, in the transaction that makes them.

    Args:
        connection: The transaction that makes the deletions.
        entity: The entity whose records are deleted.
        group: Their business group.
        n: How many records are deleted.
        reason: Why they are deleted.
        allowed: How many deletions an operator allowed for this time; these do not count towards later ones.

    Returns:
        Why the deletions may not be made, or None where they may; then they are counted.
    """
    if not n or (allowed is not None and n <= allowed):
        return None
    caps = entity.settings.validation.deletions
    acquire_lock(connection, AdvisoryLock.DELETION_CAP, entity.name)
    used = run(connection, queries.SUM_DELETIONS, entity=entity.name, group=group, window=caps.window)[0]
    sizes = run(connection, queries.COUNT_LIVE_RECORDS, entity=entity.name, group=group)[0]
    group_cap = caps.group_cap(sizes.of_group + used.of_group)
    if used.of_group + n > group_cap:
        return _describe_excess(n, used.of_group, "the business group", group_cap, caps.window)
    entity_cap = caps.entity_cap(sizes.of_entity + used.of_entity)
    if used.of_entity + n > entity_cap:
        return _describe_excess(n, used.of_entity, f"all of {entity.name}", entity_cap, caps.window)
    run(connection, queries.DELETE_OLD_DELETION_COUNTS, entity=entity.name, window=caps.window)
    run(connection, queries.ADD_DELETION, entity=entity.name, group=group, reason=reason, n=n)
    return None


def held_back(connection: Connection, entity: EntityContext, changes: Sequence[Change]) -> list[Change]:
    """Those of some inferred deletions that exceed the caps; the others are counted and may be merged.

    An alert says which records are held back.
    """
    alive = alive_groups(connection, entity, changes)
    by_group: dict[str, list[Change]] = defaultdict(list)
    for change in changes:
        if (change.key, change.part) in alive:
            by_group[alive[change.key, change.part]].append(change)
    held: list[Change] = []
    for group, some in sorted(by_group.items()):
        if (why := reserve_deletions(connection, entity, group, len(some), "flagged")) is not None:
            held += some
            place = f"{entity.name} {group}"
            alerts.raise_alert(
                connection,
                "delete_cap",
                f"{place}{FLAGGED}",
                f"{place}: {why}",
                entity=entity.name,
                examples=sorted(change.key for change in some)[:10],
            )
    return held


def alive_groups(
    connection: Connection, entity: EntityContext, changes: Sequence[Change]
) -> dict[tuple[str, str], str]:
    """The business groups of those of some parts, by key and part, that are archived and not deleted."""
    if not changes:
        return {}
    rows = run(
        connection,
        queries.SELECT_LIVE_KEYS,
        entity=entity.name,
        key=[change.key for change in changes],
        part=[change.part for change in changes],
    )
    return {(row.key, row.part): row.group_key for row in rows}


def _describe_excess(n: int, used: int, what: str, cap: int, window: float) -> str:
    earlier = f" after {used} within {window / 3600:.0f} h" if used else ""
    return f"{n} records would be deleted without a delete event{earlier}, more than the cap of {cap} for {what}"

"""Validates a business group by count, then by comparison. Confirms suspects, repairs drift, deletes unmanaged records.

Records with open or unknown pushes are left out of judgement, so changes may flow. The algorithm is that of consistent
comparison under load: a bracket for the count, a shadow of what was acknowledged, a second look at each suspect.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.push.account_check import RECHECK_SECONDS, is_same_account
from sync_orchestrator.core.systems.breaker import closed_reason
from sync_orchestrator.core.systems.installation import LOOK_INTERVAL_SECONDS
from sync_orchestrator.core.systems.suspension import note_stray_ids
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.confirmation import Confirmation, confirm_suspects
from sync_orchestrator.core.validation.count_check import RecordCounts, count_records
from sync_orchestrator.core.validation.diff import diff_group
from sync_orchestrator.core.validation.drift import Drift, DriftKind
from sync_orchestrator.core.validation.drift_alerts import report_drift
from sync_orchestrator.core.validation.drift_recorder import record_drift, wait_for_absent
from sync_orchestrator.core.validation.scope import ValidationScope, begin_validation
from sync_orchestrator.core.validation.unmanaged_cleanup import delete_unmanaged
from sync_orchestrator.core.validation.verdict import (
    GroupValidation,
    conclude_by_count,
    conclude_by_diff,
    conclude_not_validated,
)
from sync_orchestrator.errors import CallFailed

if TYPE_CHECKING:
    from sync_orchestrator.config.entities import Repair

__all__ = ["Drift", "GroupValidation", "groups_due", "groups_with_drift", "validate"]


def groups_due(connection: Connection, entity: str, every: float, most: int) -> list[str]:
    """Business groups whose validation is due, the longest unseen first; ``every`` in seconds."""
    return [
        row.group_key
        for row in run(connection, queries.LIST_GROUPS_DUE_FOR_VALIDATION, entity=entity, every=every, most=most)
    ]


def groups_with_drift(connection: Connection, entity: str) -> dict[str, bool]:
    """Business groups with drift that is not known to be gone, each with whether all of it is unmanaged records.

    Unmanaged records are left where they are, so such a group stays here until a full comparison finds them gone.
    """
    return {row.group_key: row.only_unmanaged for row in run(connection, queries.LIST_GROUPS_WITH_DRIFT, entity=entity)}


async def validate(
    context: Context, entity: EntityContext, group: str, *, full: bool = False, repair: Repair | None = None
) -> GroupValidation:
    """Validates one group, and sends drift to repair.

    Args:
        context: The running system.
        entity: The entity of the group.
        group: The business group.
        full: Whether to compare record by record, whatever the count says.
        repair: What to do about drift; as configured by default.

    Returns:
        The verdict. It is ``not_validated`` where the third party gives no usable response; nothing is raised for it.
    """
    await _check_installation(context, entity)
    scope, obstacle = await begin_validation(
        context, entity, group, full=full, repair=repair or entity.settings.validation.repair
    )
    counts = RecordCounts()
    if obstacle is not None:
        return await _end_not_validated(scope, counts, obstacle)
    try:
        if not scope.is_full:
            counts = await count_records(scope)
            if counts.fit:
                return await scope.run_in_transaction(partial(conclude_by_count, scope=scope, counts=counts))
        diff = await diff_group(context, entity, group, scope.since)
        counts = counts.with_diff(diff)
        confirmation = await confirm_suspects(scope, diff.suspects)
    except CallFailed as failure:
        reason = f"third party {entity.system_name} gave no usable response: {failure}"
        return await _end_not_validated(scope, counts, reason)
    result = await scope.run_in_transaction(
        partial(_conclude_validation, scope=scope, counts=counts, confirmation=confirmation)
    )
    if result.verdict != "not_validated":
        problem = await delete_unmanaged(scope, confirmation.confirmed, result.expected)
        result.reason = problem or result.reason
    return result


async def _check_installation(context: Context, entity: EntityContext) -> None:
    """Notices a restored database and another account at the third party; either suspends it."""
    if context.installation is not None:
        await asyncio.to_thread(context.installation.check_if_due, at_most_every=LOOK_INTERVAL_SECONDS)
    await is_same_account(context, entity.system_name, at_most_every=RECHECK_SECONDS)


async def _end_not_validated(scope: ValidationScope, counts: RecordCounts, reason: str) -> GroupValidation:
    return await scope.run_in_transaction(partial(conclude_not_validated, scope=scope, counts=counts, reason=reason))


def _conclude_validation(
    connection: Connection, scope: ValidationScope, counts: RecordCounts, confirmation: Confirmation
) -> GroupValidation:
    """Records what was confirmed and sends it to repair, unless the third party is closed to us by now."""
    if (reason := _closed_reason(connection, scope, confirmation)) is not None:
        return conclude_not_validated(connection, scope, counts, reason)
    recorded = record_drift(connection, scope, confirmation.confirmed)
    report_drift(connection, scope, recorded)
    absent = wait_for_absent(connection, scope, confirmation.absent)
    counts = replace(counts, unmanaged=recorded.count_kind(DriftKind.UNMANAGED), absent=absent)
    return conclude_by_diff(connection, scope, counts, recorded)


def _closed_reason(connection: Connection, scope: ValidationScope, confirmation: Confirmation) -> str | None:
    """Why the third party is closed to us. Many ids that show other keys close it, too."""
    system = scope.entity.system_name
    if (reason := closed_reason(connection, system)) is not None:
        return reason
    if confirmation.strays and note_stray_ids(connection, system, confirmation.strays):
        return closed_reason(connection, system) or ""
    return None

"""Deletes unmanaged records at the third party, where that is configured."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.push.late_calls import mark_outcome_unknown
from sync_orchestrator.core.shutdown import ended_in_order
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.compare import Suspect
from sync_orchestrator.core.validation.confirmation import ConfirmedSuspect, other_record_key
from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.drift_alerts import report_deletion_cap
from sync_orchestrator.core.validation.scope import ValidationScope
from sync_orchestrator.errors import CallFailed


async def delete_unmanaged(scope: ValidationScope, confirmed: Sequence[ConfirmedSuspect], expected: int) -> str | None:
    """Deletes the unmanaged records among the confirmed, unless there are more than may be deleted at once.

    Args:
        scope: The validation.
        confirmed: What it confirmed.
        expected: How many records the group should have, which the cap depends on.

    Returns:
        Why some could not be deleted now, None where nothing failed.
    """
    settings = scope.entity.settings.validation
    if settings.unmanaged != "delete" or scope.repair != "auto":
        return None
    unmanaged = [each.suspect for each in confirmed if each.suspect.kind is DriftKind.UNMANAGED]
    cap = settings.deletions.group_cap(expected)
    exceeds_cap = await scope.run_in_transaction(
        lambda connection: report_deletion_cap(connection, scope, DriftKind.UNMANAGED, len(unmanaged), cap)
    )
    if exceeds_cap:
        return None
    problem: str | None = None
    for suspect in unmanaged:
        try:
            await ended_in_order(_delete_record(scope, suspect))
        except CallFailed as failure:
            problem = f"unmanaged records could not be deleted now: {failure}"
    return problem


async def _delete_record(scope: ValidationScope, suspect: Suspect) -> None:
    """Deletes a record unless it is ours by now. A push looks after what becomes ours during the call."""
    if await scope.run_in_transaction(lambda connection: _is_ours(connection, scope, suspect)):
        return
    third_party = scope.entity.third_party
    item = Item(suspect.key, scope.group, {}, suspect.external_id)
    found = await third_party.read(item)
    if found is None or other_record_key(scope.entity, suspect, found) is not None:
        return
    try:
        await third_party.delete(item)
    finally:  # a delete whose response is lost can still land
        await scope.run_in_transaction(
            lambda connection: mark_outcome_unknown(
                connection, [scope.entity.name], [suspect.key], scope.entity.system.in_flight_seconds
            )
        )


def _is_ours(connection: Connection, scope: ValidationScope, suspect: Suspect) -> bool:
    row = run(
        connection,
        queries.SELECT_OURS_BY_NOW,
        entity=scope.entity.name,
        key=suspect.key,
        group=scope.group,
        grouped=scope.entity.third_party.capabilities.group_in_address,
        external_id=suspect.external_id,
    )[0]
    return bool(row.ours)

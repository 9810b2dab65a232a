"""The verdict on a business group: how it is made from what was found, and how it is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sqlalchemy import Connection

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.push.dead_records import (
    DeadRecord,
    DeadSelection,
    count_dead_of_group,
    describe_count,
    list_dead_records,
)
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.count_check import RecordCounts
from sync_orchestrator.core.validation.drift import Drift, DriftKind, DriftStatus, RecordedDrift
from sync_orchestrator.core.validation.scope import ValidationScope

_MAX_DEAD_EXAMPLES = 50

GroupVerdict = Literal["in_sync", "drift", "not_validated"]


@dataclass(slots=True)
class GroupValidation:
    """What a validation found. ``compared`` None: the count sufficed. ``repaired``: sent to repair.

    ``dead`` counts keys: records that were refused, are out of attempts or on hold, and changes that died before the
    archive had them; ``dead_records`` has the oldest of them. They are a difference, and not ``ambiguous`` (in flight).
    ``unmanaged``: records that are in ``counted`` and were never put there by us, found now or known from before.
    ``discarded``: records that an operator gave up. ``dead_without_group``: dead changes of the entity that belong to
    no known business group; they are in no group's verdict.
    """

    entity: str
    group: str
    verdict: GroupVerdict = "in_sync"
    reason: str | None = None
    expected: int = 0
    counted: int | None = None
    ambiguous: int = 0
    compared: int | None = None
    drift: list[Drift] = field(default_factory=list)
    repaired: int = 0
    unmanaged: int = 0
    persistent: int = 0
    dead: int = 0
    discarded: int = 0
    dead_without_group: int = 0
    dead_records: list[DeadRecord] = field(default_factory=list)


def conclude_not_validated(
    connection: Connection, scope: ValidationScope, counts: RecordCounts, reason: str
) -> GroupValidation:
    """Writes that the group could not be validated, and why."""
    result = _build_result(scope, counts)
    result.verdict, result.reason = "not_validated", reason
    _name_dead(connection, result)
    _insert_validation(connection, result)
    return result


def conclude_by_count(connection: Connection, scope: ValidationScope, counts: RecordCounts) -> GroupValidation:
    """Writes the verdict on a group whose count fits."""
    result = _build_result(scope, counts)
    _write_verdict(connection, scope, counts, result, compared_fully=False)
    return result


def conclude_by_diff(
    connection: Connection, scope: ValidationScope, counts: RecordCounts, recorded: RecordedDrift
) -> GroupValidation:
    """Writes the verdict on a group whose records were compared one by one."""
    result = _build_result(scope, counts)
    result.drift = list(recorded.drift)
    result.repaired = recorded.repaired
    result.unmanaged = recorded.count_kind(DriftKind.UNMANAGED)
    result.persistent = len(recorded.with_status(DriftStatus.PERSISTENT))
    result.verdict = "drift" if recorded.wrong else "in_sync"
    _write_verdict(connection, scope, counts, result, compared_fully=True)
    return result


def _build_result(scope: ValidationScope, counts: RecordCounts) -> GroupValidation:
    return GroupValidation(
        scope.entity.name,
        scope.group,
        expected=counts.expected,
        counted=counts.counted,
        ambiguous=counts.ambiguous,
        compared=counts.compared,
        unmanaged=counts.unmanaged,
    )


def _write_verdict(
    connection: Connection,
    scope: ValidationScope,
    counts: RecordCounts,
    result: GroupValidation,
    *,
    compared_fully: bool,
) -> None:
    open_drift = run(connection, queries.COUNT_OPEN_DRIFT, entity=result.entity, group=result.group)[0][0]
    if result.verdict == "in_sync" and open_drift:
        result.verdict, result.reason = "drift", _open_drift_text(open_drift)
    if result.verdict == "in_sync":
        result.reason = counts.mismatch_text()
    has_drift = result.verdict == "drift"  # dead records alone ask for no full comparison
    _name_dead(connection, result)
    _insert_validation(connection, result)
    run(
        connection,
        queries.MARK_GROUP_VALIDATED,
        entity=result.entity,
        group=result.group,
        compared_fully=compared_fully,
        drift=has_drift,
        every=scope.entity.settings.validation.every,
    )


def _open_drift_text(count: int) -> str:
    if count == 1:
        return "1 difference found earlier is not known to be repaired yet"
    return f"{count} differences found earlier are not known to be repaired yet"


def _name_dead(connection: Connection, result: GroupValidation) -> None:
    """Names dead records in the verdict.

    They have an alert of their own, and comparing contents says nothing new about them, so they ask for no audit.
    """
    counts = count_dead_of_group(connection, result.entity, result.group)
    result.ambiguous = max(0, result.ambiguous - counts.records)
    result.dead, result.discarded = counts.dead, counts.discarded
    result.dead_without_group = counts.without_group
    reasons = [result.reason] if result.reason else []
    if counts.dead:
        result.dead_records = list_dead_records(
            connection, DeadSelection(result.entity, group=result.group), _MAX_DEAD_EXAMPLES
        )
        on_hold = f", {counts.on_hold} of them on hold" if counts.on_hold else ""
        reasons.append(f"{describe_count(counts.dead)}{on_hold}")
    if counts.without_group:
        reasons.append(f"{describe_count(counts.without_group)} without a known business group")
    if result.verdict != "not_validated":
        result.verdict = "drift" if counts.dead else result.verdict
        result.reason = "; ".join(reasons) or None


def _insert_validation(connection: Connection, result: GroupValidation) -> None:
    run(
        connection,
        queries.INSERT_VALIDATION,
        entity=result.entity,
        group=result.group,
        verdict=result.verdict,
        reason=result.reason,
        expected=result.expected,
        counted=result.counted,
        ambiguous=result.ambiguous,
        compared=result.compared,
        drift=len(result.drift),
    )

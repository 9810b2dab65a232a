"""Records confirmed drift, decides what becomes of it, and makes records due for repair. One transaction."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Connection

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.groups.registry import count_group_records
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.confirmation import ConfirmedSuspect
from sync_orchestrator.core.validation.drift import (
    Drift,
    DriftIdentity,
    DriftKind,
    DriftStatus,
    OpenDrift,
    RecordedDrift,
    drift_identity,
)
from sync_orchestrator.core.validation.drift_alerts import report_deletion_cap
from sync_orchestrator.core.validation.drift_samples import sample_drift
from sync_orchestrator.core.validation.repair_queue import RepairTarget, queue_repairs
from sync_orchestrator.core.validation.scope import ValidationScope

_before_repair_commit = CrashPoint("validation.before_repair_commit")


def record_drift(
    connection: Connection, scope: ValidationScope, confirmed: Sequence[ConfirmedSuspect]
) -> RecordedDrift:
    """Records what a full comparison confirmed, ends what it did not find again, and makes records due for repair."""
    open_before = [
        OpenDrift.from_row(row)
        for row in run(connection, queries.SELECT_OPEN_DRIFT, entity=scope.entity.name, group=scope.group)
    ]
    # After ``open_before``: a repair that it shows is seen here, too.
    confirmed = _keep_unchanged(connection, scope, confirmed)
    drift = _judge_drift(connection, scope, confirmed, open_before)
    _insert_drift(connection, scope, confirmed, drift)
    run(connection, queries.MARK_DRIFT_REPAIRED, **scope.parameters)
    targets = [
        _repair_target(scope, each)
        for each, found in zip(confirmed, drift, strict=True)
        if found.status is DriftStatus.REPAIRING
    ]
    repaired = len(queue_repairs(connection, scope.entity.name, targets))
    _before_repair_commit()
    return RecordedDrift(drift, repaired, open_before)


def wait_for_absent(connection: Connection, scope: ValidationScope, absent: Sequence[ConfirmedSuspect]) -> int:
    """Makes records due that are not there and that only others make: their pushes wait until they are there.

    Returns:
        The number of records that are due now.
    """
    return len(queue_repairs(connection, scope.entity.name, [_repair_target(scope, each) for each in absent]))


def _keep_unchanged(
    connection: Connection, scope: ValidationScope, confirmed: Sequence[ConfirmedSuspect]
) -> list[ConfirmedSuspect]:
    """Those that nobody changed, pushed or sent to repair since they were listed."""
    known = [each.suspect for each in confirmed if each.suspect.revision]
    rows = run(
        connection,
        queries.SELECT_UNCHANGED,
        entity=scope.entity.name,
        keys=[suspect.key for suspect in known],
        revisions=[suspect.revision for suspect in known],
        applied_at=[suspect.applied_at for suspect in known],
    )
    unchanged = {row.key for row in rows}
    return [each for each in confirmed if each.suspect.kind is DriftKind.UNMANAGED or each.suspect.key in unchanged]


def _judge_drift(
    connection: Connection,
    scope: ValidationScope,
    confirmed: Sequence[ConfirmedSuspect],
    open_before: Sequence[OpenDrift],
) -> list[Drift]:
    before = {drift.identity: drift for drift in open_before}
    samples = sample_drift(connection, scope, confirmed)
    ids = _recorded_ids(confirmed, before)
    exceeds_cap = _exceeds_cap(connection, scope, sum(1 for each in confirmed if each.suspect.kind is DriftKind.EXTRA))
    return [
        Drift(
            each.suspect.key,
            each.kind,
            external_id,
            sample,
            _decide_status(
                scope, each, before.get(drift_identity(each.suspect.key, each.kind, external_id)), exceeds_cap
            ),
        )
        for each, external_id, sample in zip(confirmed, ids, samples, strict=True)
    ]


def _exceeds_cap(connection: Connection, scope: ValidationScope, extra: int) -> bool:
    """Whether a repair would delete more extra records than may be deleted at once; an alert says so."""
    cap = 0
    if extra:
        size = count_group_records(connection, scope.entity.name, scope.group)
        cap = scope.entity.settings.validation.deletions.group_cap(size)
    return report_deletion_cap(connection, scope, DriftKind.EXTRA, extra, cap)


def _decide_status(
    scope: ValidationScope, confirmed: ConfirmedSuspect, earlier: OpenDrift | None, exceeds_cap: bool
) -> DriftStatus:
    suspect = confirmed.suspect
    if suspect.kind in (DriftKind.UNMANAGED, DriftKind.DUPLICATE):
        return DriftStatus.LEFT
    if (
        earlier is not None
        and earlier.status in (DriftStatus.REPAIRING, DriftStatus.PERSISTENT)
        and (earlier.ours, earlier.theirs) == (suspect.ours, confirmed.digest_there(scope))
    ):
        return DriftStatus.PERSISTENT
    waits = scope.repair != "auto" or (exceeds_cap and suspect.kind is DriftKind.EXTRA)
    return DriftStatus.FOUND if waits else DriftStatus.REPAIRING


def _recorded_ids(confirmed: Sequence[ConfirmedSuspect], before: Collection[DriftIdentity]) -> list[str | None]:
    """The ids under which differences are recorded.

    A record that is missing again after it was made again has another id each time. It is recorded without one, so that
    a record that vanishes after every repair is known to have come back.
    """
    missing_before = {key for key, kind, _ in before if kind is DriftKind.MISSING}

    def recorded_id(each: ConfirmedSuspect) -> str | None:
        if each.found is not None:
            return each.found.external_id
        key, external_id = each.suspect.key, each.suspect.external_id
        is_known = key not in missing_before or (key, DriftKind.MISSING, external_id) in before
        return external_id if is_known else None

    return [recorded_id(each) for each in confirmed]


def _insert_drift(
    connection: Connection, scope: ValidationScope, confirmed: Sequence[ConfirmedSuspect], drift: Sequence[Drift]
) -> None:
    if not drift:
        return
    run(
        connection,
        queries.INSERT_DRIFT,
        entity=scope.entity.name,
        group=scope.group,
        key=[found.key for found in drift],
        kind=[found.kind.value for found in drift],
        revision=[each.suspect.revision for each in confirmed],
        ours=[each.suspect.ours for each in confirmed],
        theirs=[each.digest_there(scope) for each in confirmed],
        external_id=[found.external_id for found in drift],
        sample=[to_jsonb(found.sample) for found in drift],
        status=[found.status.value for found in drift],
    )


def _repair_target(scope: ValidationScope, confirmed: ConfirmedSuspect) -> RepairTarget:
    found, place = confirmed.found, None
    if found is not None:
        is_group_in_address = scope.entity.third_party.capabilities.group_in_address
        place = scope.group if is_group_in_address else found.group or scope.group
    return RepairTarget(
        key=confirmed.suspect.key,
        revision=confirmed.suspect.revision,
        theirs=confirmed.digest_there(scope),
        external_id=None if found is None else found.external_id,
        place=place,
    )

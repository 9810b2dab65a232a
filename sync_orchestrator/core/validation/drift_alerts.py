"""Alerts and outcomes of drift, written in the transaction that records it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sqlalchemy import Connection

from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.validation.drift import Drift, DriftKind, DriftStatus, RecordedDrift
from sync_orchestrator.core.validation.scope import ValidationScope
from sync_orchestrator.core.values.places import what_differs

_MAX_EXAMPLES = 10


def report_drift(connection: Connection, scope: ValidationScope, recorded: RecordedDrift) -> None:
    """Raises or ends the alerts of a group's drift, and writes the outcomes of what is new."""
    before = {drift.identity: drift for drift in recorded.open_before}
    new = [drift for drift in recorded.drift if drift.identity not in before]
    _record_outcomes(connection, scope, new)
    cause = scope.place
    if new:
        kinds = Counter(drift.kind.value for drift in recorded.drift)
        counts = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        _raise_alert(connection, scope, cause, f"{cause}: {counts}", recorded.drift)
    elif not recorded.wrong:
        alerts.resolve_alert(connection, "drift", cause)
    persistent = recorded.with_status(DriftStatus.PERSISTENT)
    if any(before[drift.identity].status is not DriftStatus.PERSISTENT for drift in persistent):
        title = f"{cause}: {len(persistent)} persistent, repair does not fix it"
        _raise_alert(connection, scope, f"{cause}: persistent", title, persistent)
    elif not persistent:
        alerts.resolve_alert(connection, "drift", f"{cause}: persistent")


def report_deletion_cap(connection: Connection, scope: ValidationScope, kind: DriftKind, count: int, cap: int) -> bool:
    """Raises or ends the alert for more records of a kind than may be deleted at once.

    Returns:
        Whether there are more than that.
    """
    cause = f"{scope.place}: {kind}"
    if count > cap:
        alerts.raise_alert(
            connection,
            "delete_cap",
            cause,
            entity=scope.entity.name,
            title=f"{scope.place}: {count} {kind} records at the third party, more than the cap of {cap}",
        )
    else:
        alerts.resolve_alert(connection, "delete_cap", cause)
    return count > cap


def _record_outcomes(connection: Connection, scope: ValidationScope, drift: Sequence[Drift]) -> None:
    outcomes.record_outcomes(
        connection,
        scope.entity.outcomes,
        "drift",
        [
            (
                found.key,
                {
                    "group": scope.group,
                    "drift": found.kind.value,
                    "status": found.status.value,
                    "external_id": found.external_id,
                    "sample": found.sample,
                },
            )
            for found in drift
        ],
    )


def _raise_alert(
    connection: Connection, scope: ValidationScope, cause: str, title: str, drift: Sequence[Drift]
) -> None:
    alerts.raise_alert(
        connection,
        "drift",
        cause,
        title,
        entity=scope.entity.name,
        examples=[_example_text(found) for found in drift[:_MAX_EXAMPLES]],
    )


def _example_text(drift: Drift) -> str:
    """A difference in a few words: its key, its kind, and what differs, where the record is there."""
    shows_fields = drift.kind in (DriftKind.DIFFERENT, DriftKind.STALE, DriftKind.DUPLICATE)
    what = what_differs(drift.sample) if shows_fields else ""
    return f"{drift.key} ({drift.kind}: {what})" if what else f"{drift.key} ({drift.kind})"

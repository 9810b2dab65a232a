"""Alerts about workers: none is heard of, or one of their tasks stands still.

A worker watches its own tasks. Where none runs, the API service and the sensor ``worker`` notice it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.operations.maintenance import WATCH_SECONDS
from sync_orchestrator.core.systems.heartbeats import claim_round
from sync_orchestrator.core.systems.worker_presence import WorkerReport, expect_worker, read_workers

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

KIND = "worker_stalled"
_CAUSE = "worker"


def watch_workers(engine: Engine, after: float) -> WorkerReport:
    """Reads how the workers fare; each minute, raises or ends the alert about them.

    Args:
        engine: The database.
        after: The silence in seconds that is an alert (``alerts.silent_after``).
    """

    def update_alert(connection: Connection) -> WorkerReport:
        expect_worker(connection)
        found = read_workers(connection)
        is_stalled = found.is_silent(after) or bool(found.stalled_tasks(after))
        # its beginning and its end at once, and between them each minute
        if is_stalled and claim_round(connection, "expected worker alert", WATCH_SECONDS):
            _raise_alert(connection, found, after)
        elif not is_stalled:
            alerts.resolve_alert(connection, KIND, _CAUSE)
        return found

    return in_transaction(engine, update_alert)


def _raise_alert(connection: Connection, found: WorkerReport, after: float) -> None:
    stalled = found.stalled_tasks(after)
    if found.is_silent(after):
        title = f"no worker was heard of for {(found.seconds or 0) / 60:.0f} minutes"
    else:
        longest = max(task.quiet_seconds for task in stalled)
        title = f"the worker does not get on with {', '.join(task.name for task in stalled)} for {longest / 60:.0f} min"
    alerts.raise_alert(connection, KIND, _CAUSE, title, examples=[task.error for task in stalled if task.error])

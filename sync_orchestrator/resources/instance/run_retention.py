"""Dagster's own records of what is over: runs that work off changes come by the thousand, and are forgotten in time.

Only runs of jobs by which no partition of an asset is shown as filled or checked: what a full sync or a validation left
stays. Not here: our own tables (``core/operations/retention.py``).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from sync_orchestrator.config import Retention

FORGOTTEN = ("incremental_sync", "maintenance", "show_record", "report_alerts")
_KEEPS_NEWEST = "report_alerts"
"""Its last run holds what the check `open_alerts` shows, however long nothing has changed since."""

_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_MOST = 5_000
_AT_ONCE = 100


def forget_runs(instance: dg.DagsterInstance, settings: Retention, now: datetime | None = None) -> int:
    """Deletes such runs with their events, the oldest first; returns how many."""
    if settings.runs_days is None:
        return 0
    before = (now or datetime.now(UTC)) - timedelta(days=settings.runs_days)
    forgotten = 0
    kept = {
        run.dagster_run.run_id
        for run in instance.get_run_records(
            dg.RunsFilter(job_name=_KEEPS_NEWEST, statuses=[dg.DagsterRunStatus.SUCCESS]), limit=1
        )
    }
    for job in FORGOTTEN:
        over = dg.RunsFilter(job_name=job, statuses=_OVER, created_before=before)
        while forgotten < _MOST:
            found = instance.get_run_records(over, limit=_AT_ONCE, ascending=True)
            runs = [run for run in found if run.dagster_run.run_id not in kept]
            if not runs:
                break
            for run in runs:
                instance.delete_run(run.dagster_run.run_id)
            forgotten += len(runs)
    return forgotten

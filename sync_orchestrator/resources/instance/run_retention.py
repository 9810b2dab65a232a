"""Dagster's own records of what is over: runs that work off changes come by the thousand, and are forgotten in time.

Only runs of jobs by which no partition of an asset is shown as filled or checked: what a full sync or a validation left
stays.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

# Tell the runs of this code location from others. Unnecessary once runs have retention rules of their own:
# https://github.com/dagster-io/dagster/issues/4100
from dagster._core.remote_origin import RemoteJobOrigin
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG

from sync_orchestrator.config import RetentionSettings
from sync_orchestrator.resources.job_names import INCREMENTAL_SYNC, MAINTENANCE, REPORT_ALERTS, SHOW_RECORD

FORGOTTEN = (INCREMENTAL_SYNC, MAINTENANCE, SHOW_RECORD, REPORT_ALERTS)
_KEEPS_NEWEST = REPORT_ALERTS
"""Its last run holds what the check `open_alerts` shows, however long nothing has changed since."""

_OVER = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
_MAX_RUNS = 5_000
_RUNS_PER_DELETE = 100


def delete_old_runs(
    instance: dg.DagsterInstance,
    settings: RetentionSettings,
    now: datetime | None = None,
    origin: RemoteJobOrigin | None = None,
) -> int:
    """Deletes such runs with their events, the oldest first.

    Args:
        instance: Dagster's instance, which other projects may share.
        settings: How long runs are kept.
        now: The time; by default the present.
        origin: The origin of a run of ours: jobs of other code locations may have the same names.

    Returns:
        The number of deleted runs.
    """
    if settings.runs_days is None:
        return 0
    before = (now or datetime.now(UTC)) - timedelta(days=settings.runs_days)
    tags = {} if origin is None else {REPOSITORY_LABEL_TAG: origin.repository_origin.get_label()}
    forgotten = 0
    kept = {
        run.dagster_run.run_id
        for run in instance.get_run_records(
            dg.RunsFilter(job_name=_KEEPS_NEWEST, statuses=[dg.DagsterRunStatus.SUCCESS], tags=tags), limit=1
        )
    }
    for job in FORGOTTEN:
        over = dg.RunsFilter(job_name=job, statuses=_OVER, created_before=before, tags=tags)
        while forgotten < _MAX_RUNS:
            found = instance.get_run_records(over, limit=_RUNS_PER_DELETE, ascending=True)
            runs = [run for run in found if run.dagster_run.run_id not in kept]
            if not runs:
                break
            for run in runs:
                instance.delete_run(run.dagster_run.run_id)
            forgotten += len(runs)
    return forgotten

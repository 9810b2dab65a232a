"""The sensors that write alerts about runs: a run that failed becomes an alert, one that succeeds ends it.

Alerts about events, records and drift are written by the core, where it finds them. A worker sends them (``worker/``);
the sensor ``worker`` shows them.
"""

from __future__ import annotations

import dagster as dg

from sync_orchestrator.assets.jobs.incremental import incremental_sync, maintenance_job
from sync_orchestrator.assets.own_runs import is_own_run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.resources.instance.config import GONE_TAG
from sync_orchestrator.resources.system import SystemResource

_GO_ON = {incremental_sync.name, maintenance_job.name}
"""Jobs whose next run goes on where an interrupted one stopped."""


@dg.run_failure_sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes an alert for a run that failed.",
)
def failed_runs(context: dg.RunFailureSensorContext, system: SystemResource) -> None:
    """One alert for a job and what it was to work on, however often it fails; none if it goes on by itself."""
    run = context.dagster_run
    if not is_own_run(run, system.context.entities) or run.tags.get("dagster/will_retry") == "true" or goes_on(run):
        return
    cause = cause_of(run)
    with system.context.engine.begin() as connection:
        alerts.raise_alert(
            connection,
            "run_failed",
            cause,
            f"a run of {cause} failed",
            examples=[run.run_id, (context.failure_event.message or "")[:500]],
        )


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.SUCCESS,
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Ends the alert for a run that failed once another of the same has succeeded.",
)
def recovered_runs(context: dg.RunStatusSensorContext, system: SystemResource) -> None:
    """The counterpart of ``failed_runs``."""
    if not is_own_run(context.dagster_run, system.context.entities):
        return
    with system.context.engine.begin() as connection:
        alerts.resolve_alert(connection, "run_failed", cause_of(context.dagster_run))


def goes_on(run: dg.DagsterRun) -> bool:
    """Whether only the end of the system, or of its machine, ended the run, and the job's next one goes on."""
    interrupted = run.tags.get("dagster/failure_reason") == "UNEXPECTED_TERMINATION" or GONE_TAG in run.tags
    return interrupted and run.job_name in _GO_ON


def cause_of(run: dg.DagsterRun) -> str:
    """The job, and the business groups it was to work on."""
    tags = run.tags
    job = "assets" if run.job_name.startswith("__") else run.job_name
    first, last = tags.get("dagster/asset_partition_range_start"), tags.get("dagster/asset_partition_range_end")
    if tags.get("dagster/partition"):
        return f"{job} {tags['dagster/partition']}"
    return f"{job} {first} to {last}" if first is not None else job

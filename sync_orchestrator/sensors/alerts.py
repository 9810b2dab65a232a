"""The sensors that tell people: runs that failed go into the outbox, and the outbox is sent.

Not here: alerts about events, records and drift; the core writes them where it finds them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import dagster as dg

from sync_orchestrator.assets.alert_checks import read_open_alerts, report_alerts
from sync_orchestrator.assets.jobs.incremental import incremental_sync, maintenance
from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.assets.own_runs import is_own_run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.operations.maintenance import watch
from sync_orchestrator.core.operations.open_alerts import OpenAlerts
from sync_orchestrator.resources.instance.config import GONE_TAG, under_way
from sync_orchestrator.resources.system import System

WATCH_SECONDS = 60.0

FIGURES_SECONDS = 60.0
"""Where only figures changed, or a materialization made the check's status older than its asset, it waits so long."""

_GO_ON = {incremental_sync.name, maintenance.name}
"""Jobs whose next run goes on where an interrupted one stopped."""


@dg.sensor(
    job_name=report_alerts.name,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Looks each minute for work that waits too long, sends the alerts that are due, and requests "
    "the evaluation of the check `open_alerts` when alerts or pauses change.",
)
def alert_outbox(context: dg.SensorEvaluationContext, system: System) -> dg.SensorResult:
    """The cursor is when it last looked, and what the check last showed."""
    settings = system.context.config.alerts
    cursor = AlertCursor.read(context.cursor)
    if _seconds_since(cursor.looked_at) >= WATCH_SECONDS:
        cursor = replace(cursor, looked_at=_now())
        with system.context.engine.begin() as connection:
            watch(connection, settings, system.context.config.entities)
    sent = alerts.send_due(system.context.engine, settings, context.log.warning)
    found = read_open_alerts(system)
    line = f"{found.count} open, {f'{sent} messages sent' if sent else 'none due'}"
    shown = replace(cursor, alerts=found.digest(), figures=_figures(context.instance, system, found))
    if not _is_to_be_shown(cursor, shown) or under_way(context.instance, report_alerts.name):
        return dg.SensorResult(skip_reason=line, cursor=cursor.written())
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=replace(shown, shown_at=_now()).written())


@dataclass(frozen=True, slots=True)
class AlertCursor:
    """When the sensor last looked for work that waits too long, and what the check `open_alerts` shows since when.

    Times are in UTC, ``alerts`` and ``figures`` digests.
    """

    looked_at: str = ""
    alerts: str = ""
    figures: str = ""
    shown_at: str = ""

    @classmethod
    def read(cls, cursor: str | None) -> AlertCursor:
        """The cursor that was written; an empty one for none, or for one of an earlier version."""
        try:
            known = json.loads(cursor or "{}")
            return cls(**known)
        except (ValueError, TypeError):
            return cls()

    def written(self) -> str:
        """The cursor as text."""
        return json.dumps(asdict(self))


def _is_to_be_shown(before: AlertCursor, now: AlertCursor) -> bool:
    if before.alerts != now.alerts:
        return True
    return before.figures != now.figures and _seconds_since(before.shown_at) >= FIGURES_SECONDS


def _figures(instance: dg.DagsterInstance, system: System, found: OpenAlerts) -> str:
    """The counts, and the newest materialization of each mirror, after which the check's status counts as outdated."""
    keys = [mirror_key(name) for name in system.context.entities]
    newest = sorted(
        record.asset_entry.last_materialization_storage_id or 0 for record in instance.get_asset_records(keys)
    )
    return f"{found.digest_of_figures()} {' '.join(map(str, newest))}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seconds_since(at: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() if at else math.inf


@dg.run_failure_sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Writes an alert for a run that failed.",
)
def failed_runs(context: dg.RunFailureSensorContext, system: System) -> None:
    """One alert for a job and what it was to work on, however often it fails; none if it goes on by itself."""
    run = context.dagster_run
    if not is_own_run(run, system.context.entities) or run.tags.get("dagster/will_retry") == "true" or goes_on(run):
        return
    cause = cause_of(run)
    with system.context.engine.begin() as connection:
        alerts.tell(
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
def recovered_runs(context: dg.RunStatusSensorContext, system: System) -> None:
    """The counterpart of ``failed_runs``."""
    if not is_own_run(context.dagster_run, system.context.entities):
        return
    with system.context.engine.begin() as connection:
        alerts.resolve(connection, "run_failed", cause_of(context.dagster_run))


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

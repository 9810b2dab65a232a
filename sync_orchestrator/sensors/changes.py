"""The sensors that notice: new change events, new business groups, alerts to be sent, runs that failed."""

import dagster as dg

from sync_orchestrator.app import perform
from sync_orchestrator.assets.incremental import incremental_sync
from sync_orchestrator.assets.partitions import business_group, missing_partitions
from sync_orchestrator.core import alerts
from sync_orchestrator.core.errors import CallFailed
from sync_orchestrator.core.full_sync import discover_groups
from sync_orchestrator.core.ledger import conservation
from sync_orchestrator.core.status import heartbeat, seconds_since_heartbeat
from sync_orchestrator.core.wait import wait_for_work
from sync_orchestrator.resources.system import System

LONG_POLL_SECONDS = 4.0
"""How long a tick waits for work; short enough that a shutdown need not wait for it."""

DRAIN_ALIVE_SECONDS = 10.0

_COMING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]


@dg.sensor(job=incremental_sync, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING,
           description="Waits on the ledger and requests a drain when something is due.")
def change_events(context: dg.SensorEvaluationContext, system: System) -> dg.SensorResult | dg.SkipReason:
    heartbeat(system.context.engine, "sensor")
    partitions = _new_partitions(context, system)
    reason = _not_needed(context, system)
    if reason is not None:
        return dg.SensorResult(skip_reason=reason, dynamic_partitions_requests=partitions)
    return dg.SensorResult(run_requests=[dg.RunRequest()], dynamic_partitions_requests=partitions)


def _not_needed(context: dg.SensorEvaluationContext, system: System) -> str | None:
    engine = system.context.engine
    age = seconds_since_heartbeat(engine, "drain")
    if age is not None and age < DRAIN_ALIVE_SECONDS:
        return f"a drain is at work (heard {age:.0f} s ago)"
    if context.instance.get_runs_count(dg.RunsFilter(job_name=incremental_sync.name, statuses=_COMING)):
        return "a drain is about to start"
    systems = {name: entity.system_name for name, entity in system.context.entities.items()}
    if wait_for_work(engine, systems, LONG_POLL_SECONDS):
        return None
    with engine.begin() as connection:
        totals = conservation(connection)
    return f"nothing is due: {totals.received} events received, {totals.states['done']} done, " \
           f"{totals.states['waiting']} waiting, {totals.states['dead']} dead"


def _new_partitions(context: dg.SensorEvaluationContext, system: System) -> list[dg.AddDynamicPartitionsRequest]:
    missing = missing_partitions(system.context, context.instance)
    return [business_group.build_add_request(missing)] if missing else []


@dg.sensor(minimum_interval_seconds=30, default_status=dg.DefaultSensorStatus.RUNNING,
           description="Asks the source systems which business groups exist, and keeps the partitions in step.")
def business_groups(context: dg.SensorEvaluationContext, system: System) -> dg.SensorResult:
    asked = []
    for entity in system.context.entities.values():
        try:
            asked.append(f"{entity.name}: {len(perform(system.context, discover_groups(system.context, entity)))}")
        except CallFailed as failure:
            asked.append(f"{entity.name}: the owner could not be asked ({failure})")
    return dg.SensorResult(skip_reason="business groups: " + ", ".join(asked),
                           dynamic_partitions_requests=_new_partitions(context, system))


@dg.sensor(minimum_interval_seconds=5, default_status=dg.DefaultSensorStatus.RUNNING,
           description="Sends the alerts that the outbox holds.")
def alert_outbox(system: System) -> dg.SkipReason:
    sent = alerts.send_due(system.context.engine, system.context.config.alerts)
    return dg.SkipReason(f"{sent} alerts sent")


@dg.run_failure_sensor(default_status=dg.DefaultSensorStatus.RUNNING,
                       description="Writes an alert for a run that failed.")
def failed_runs(context: dg.RunFailureSensorContext, system: System) -> None:
    run = context.dagster_run
    with system.context.engine.begin() as connection:
        alerts.tell(connection, "run_failed", f"{run.job_name} {run.run_id}", f"A run of {run.job_name} failed",
                    examples=[context.failure_event.message[:300] if context.failure_event.message else ""])

"""The sensors that notice work: new change events, new business groups."""

from __future__ import annotations

import time
from collections.abc import Sequence

import dagster as dg

from sync_orchestrator.assets.jobs.incremental import incremental_sync
from sync_orchestrator.assets.partitions import new_partition_requests, unnameable_groups
from sync_orchestrator.core.drain.presence import at_work
from sync_orchestrator.core.drain.wakeup import is_due, wait_for_work
from sync_orchestrator.core.groups.registry import discover_groups
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.systems.heartbeats import AtWork, record_heartbeat
from sync_orchestrator.core.systems.pauses import pauses_of
from sync_orchestrator.errors import SyncError
from sync_orchestrator.resources.instance.config import never_started
from sync_orchestrator.resources.system import SystemResource

LONG_POLL_SECONDS = 4.0
"""How long a tick waits for work: most of the five seconds between ticks, and no longer: a tick that overran them
would miss the next, and a shutdown waits for it."""

BEHIND_SECONDS = 3.0
"""Work that has been due for so long says that the drains do not keep up."""

FIRST_BEAT_SECONDS = 30.0
"""So long a run that has started may take until its drain is heard of."""

MAX_PAUSE_SECONDS = 300.0

_COMING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING]
_LOOK_SECONDS = 0.5
_FAILURES_COUNTED = 8


@dg.sensor(
    job_name=incremental_sync.name,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Waits on the ledger and requests a drain when something is due.",
)
def change_events(context: dg.SensorEvaluationContext, system: SystemResource) -> dg.SensorResult:
    """No run key: the ledger is what tells events apart."""
    record_heartbeat(system.context.engine, "sensor")
    partitions = new_partition_requests(system.context, context.instance)
    reason = _wait_until_needed(context, system)
    if reason is not None:
        return dg.SensorResult(skip_reason=reason, dynamic_partitions_requests=partitions)
    return dg.SensorResult(run_requests=[dg.RunRequest()], dynamic_partitions_requests=partitions)


def _wait_until_needed(context: dg.SensorEvaluationContext, system: SystemResource) -> str | None:
    """Waits until a drain is needed, at most for one long poll; says why none is needed, or None."""
    systems = {name: entity.system_name for name, entity in system.context.entities.items()}
    ends = time.monotonic() + LONG_POLL_SECONDS
    while True:
        drains = at_work(system.context.engine)
        reason = _reason_for_no_drain(context.instance, system, drains, systems)
        left = ends - time.monotonic()
        if reason is None and (drains.staying or drains.leaving):
            return None
        if reason is None:
            if wait_for_work(system.context.engine, systems, max(0.0, left)):
                return None
            return _explain_idleness(system, systems)
        if left < _LOOK_SECONDS:
            return reason
        time.sleep(_LOOK_SECONDS)


def _reason_for_no_drain(
    instance: dg.DagsterInstance, system: SystemResource, drains: AtWork, systems: dict[str, str]
) -> str | None:
    """Why no further drain may be requested now, or None.

    Those at work suffice unless they are to be relieved, or do not keep up and there may be more of them.
    """
    if drains.staying and not (
        drains.staying < system.context.config.limits.drains
        and is_due(system.context.engine, systems, age=BEHIND_SECONDS)
    ):
        return f"a drain is at work, heard of {drains.age:.0f} s ago"
    runs = instance.get_run_records(dg.RunsFilter(job_name=incremental_sync.name), limit=_FAILURES_COUNTED)
    return unless_needed(
        [(run.dagster_run.status, run.start_time, run.end_time) for run in runs if not never_started(run)], time.time()
    )


def unless_needed(runs: Sequence[tuple[dg.DagsterRunStatus, float | None, float | None]], now: float) -> str | None:
    """Why runs whose drain is not heard of (status, start, end; newest first) speak against another, or None."""
    if any(status in _COMING for status, _, _ in runs):
        return "a drain is about to start"
    if any(
        status is dg.DagsterRunStatus.STARTED and start is not None and now - start < FIRST_BEAT_SECONDS
        for status, start, _ in runs
    ):
        return "a drain has just started, or is ending"
    failures = 0
    for status, _, _ in runs:
        if status is not dg.DagsterRunStatus.FAILURE:
            break
        failures += 1
    last_end = runs[0][2] if runs else None
    pause = min(MAX_PAUSE_SECONDS, 5.0 * 2**failures) if failures else 0.0
    if last_end is not None and now - last_end < pause:
        return f"the last {failures} drains failed: the next in {pause - (now - last_end):.0f} s"
    return None


def _explain_idleness(system: SystemResource, systems: dict[str, str]) -> str:
    """Why nothing is to be done: pushes that wait come first."""
    with system.context.engine.begin() as connection:
        totals = count_conservation(connection)
        pauses = pauses_of(connection, systems)
    waits = "".join(f"{pause.to_text()}; " for pause in pauses.values())
    return (
        f"{waits}nothing {'else ' if waits else ''}is due: {totals.received} events received, "
        f"{totals.states['done']} done, {totals.states['waiting']} waiting, {totals.states['dead']} dead"
    )


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks the source systems which business groups exist, and keeps the partitions in sync.",
)
def business_groups(context: dg.SensorEvaluationContext, system: SystemResource) -> dg.SensorResult:
    """A source that does not answer keeps no other from being asked."""
    asked = []
    for entity in system.context.entities.values():
        try:
            groups = system.perform(discover_groups(system.context, entity))
            asked.append(f"{entity.name}: {len(groups)}")
        except Exception as error:  # of whatever kind: it fails this entity alone (rule 37)
            if not isinstance(error, SyncError):
                context.log.exception(f"unexpected error while asking for the business groups of {entity.name}")
            asked.append(f"{entity.name}: the owner could not be asked ({error})")
    _alert_unnameable(system)
    return dg.SensorResult(
        skip_reason="business groups known: " + ", ".join(asked),
        dynamic_partitions_requests=new_partition_requests(system.context, context.instance),
    )


def _alert_unnameable(system: SystemResource) -> None:
    unnameable = unnameable_groups(system.context)
    with system.context.engine.begin() as connection:
        for entity in system.context.entities:
            if groups := unnameable.get(entity):
                alerts.raise_alert(
                    connection,
                    "invalid_partition_name",
                    entity,
                    f"{entity}: business groups that cannot be a partition",
                    entity=entity,
                    examples=[ascii(group) for group in groups[:10]],
                )
            else:
                alerts.resolve_alert(connection, "invalid_partition_name", entity)

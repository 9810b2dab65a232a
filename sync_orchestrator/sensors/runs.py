"""The sensor that ends runs whose process is gone, so that nothing waits for them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping

import dagster as dg

from sync_orchestrator.assets.own_runs import is_own_run
from sync_orchestrator.core.systems.run_heartbeats import Watched
from sync_orchestrator.resources.instance.config import end_dead_runs
from sync_orchestrator.resources.system import SystemResource


@dg.sensor(
    minimum_interval_seconds=15,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Marks runs as failed whose process is gone: their heartbeat stands still for a minute.",
)
def dead_runs(context: dg.SensorEvaluationContext, system: SystemResource) -> dg.SensorResult:
    """The cursor is what the last look found, and when that was."""
    now = time.time()
    looked, known = _read_cursor(context.cursor)
    repository, entities = context.repository_def, system.context.entities
    jobs = set(repository.job_names) if repository is not None else set()
    found, ended = end_dead_runs(
        context.instance,
        system.context.engine,
        lambda run: run.job_name in jobs and is_own_run(run, entities),
        known,
        max(0.0, now - looked),
    )
    reason = f"{len(found)} runs are at work" + (f"; ended {', '.join(ended)}" if ended else "")
    return dg.SensorResult(skip_reason=reason, cursor=_format_cursor(now, found))


def _read_cursor(cursor: str | None) -> tuple[float, dict[str, Watched]]:
    if not cursor:
        return time.time(), {}
    looked, known = json.loads(cursor)
    return looked, {run_id: Watched(beat, still) for run_id, (beat, still) in known.items()}


def _format_cursor(now: float, found: Mapping[str, Watched]) -> str:
    return json.dumps([now, {run_id: [each.beat, each.still_seconds] for run_id, each in found.items()}])

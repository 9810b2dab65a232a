"""The sensor that reports streams of captured changes. It reads the ledger alone, and no source system."""

from __future__ import annotations

import json
import time

import dagster as dg

from sync_orchestrator.assets.capture_checks import evaluate_stream, observe_stream, read_reports
from sync_orchestrator.resources.system import SystemResource

REPORT_SECONDS = 60
"""The least time between two observations of a stream."""

_TOLERANCE_SECONDS = 1.0  # ticks are not exactly a minute apart


@dg.sensor(
    minimum_interval_seconds=REPORT_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports each minute how far behind the streams of captured changes are, and evaluates the check "
    "`capture_is_current`. *Skipped* is the normal state of a tick: it requests no run.",
)
def captured_changes(context: dg.SensorEvaluationContext, system: SystemResource) -> dg.SensorResult:
    """The cursor is when the last report was, and how many change events each stream had then."""
    now = time.time()
    reported_at, events_before = _read_cursor(context.cursor)
    if 0 <= now - reported_at < REPORT_SECONDS - _TOLERANCE_SECONDS:
        return dg.SensorResult(skip_reason="reported less than a minute ago", cursor=context.cursor)
    config, reports = system.context.config, read_reports(system)
    asset_events: list[dg.AssetObservation | dg.AssetCheckEvaluation | dg.AssetMaterialization] = []
    said = []
    for source in config.captured_sources():
        report = reports.get(source)
        if report is not None:
            asset_events.append(observe_stream(report, events_before.get(source)))
        evaluation = evaluate_stream(source, config, report)
        asset_events.append(evaluation)
        said.append(f"{source}: {evaluation.description}")
    cursor = json.dumps([now, {name: report.events for name, report in reports.items()}])
    return dg.SensorResult(skip_reason="; ".join(said), asset_events=asset_events, cursor=cursor)


def _read_cursor(cursor: str | None) -> tuple[float, dict[str, int]]:
    if not cursor:
        return 0.0, {}
    reported_at, events = json.loads(cursor)
    return float(reported_at), events

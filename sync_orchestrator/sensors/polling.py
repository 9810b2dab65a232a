"""The sensor that asks sources for their changes. Not here: the asking (``core/intake/polling.py``)."""

from __future__ import annotations

import dagster as dg

from sync_orchestrator.core.intake.polling import Polled, poll_due
from sync_orchestrator.resources.system import System


@dg.sensor(
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Asks sources that notify nobody what has changed, and records it as change events.",
)
def polled_sources(context: dg.SensorEvaluationContext, system: System) -> dg.SkipReason:
    """Requests no run: what it records is work for the drain."""
    ends = system.perform(poll_due(system.context))
    told = [
        f"{end.entity} from {end.part}: {end.new} new of {end.shown}" if isinstance(end, Polled) else str(end)
        for end in ends
    ]
    return dg.SkipReason("; ".join(told) or "no source is to be asked now")

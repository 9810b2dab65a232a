"""The sensor that sends outcomes.

Not here: what is sent (``core/notifications/outcomes.py``), to whom (``brokers/receivers.py``).
"""

from __future__ import annotations

import dagster as dg

from sync_orchestrator.brokers.receivers import receivers
from sync_orchestrator.core.notifications.outcomes import send_due
from sync_orchestrator.resources.system import System


@dg.sensor(
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells the receivers of the configuration what became of changes.",
)
def outcome_outbox(context: dg.SensorEvaluationContext, system: System) -> dg.SkipReason:
    """Requests no run: sending works off an outbox."""
    config = system.context.config
    sent = send_due(system.context.engine, receivers(config), config.alerts)
    return dg.SkipReason(f"{sent} outcomes sent")

"""The sensor that reports what the worker does, and has open alerts shown. It does none of the worker's work.

A tick of Dagster is a success only where it requests a run. A tick that reports the worker is therefore *skipped*, with
the report as its reason; a tick fails while no worker runs.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime

import dagster as dg

from sync_orchestrator.assets.alert_checks import read_open_alerts, report_alerts
from sync_orchestrator.assets.entity import mirror_key
from sync_orchestrator.core.notifications.alert_messages import action_for
from sync_orchestrator.core.operations.open_alerts import OpenAlert, OpenAlerts
from sync_orchestrator.core.operations.worker_watch import watch_workers
from sync_orchestrator.core.systems.worker_presence import WorkerReport
from sync_orchestrator.resources.instance.config import under_way
from sync_orchestrator.resources.system import SystemResource

FIGURES_SECONDS = 60.0
"""How long a change of figures alone waits, or a materialization that makes the check's status look outdated."""

_MAX_LOGGED_ALERTS = 20


@dg.sensor(
    name="worker",
    job_name=report_alerts.name,
    minimum_interval_seconds=10,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Reports the worker, which sends alerts and outcomes and polls sources: when it was last heard of and "
    "what it did. *Skipped* is the normal state of a tick: it has only a report. A tick fails while no worker runs. "
    "When alerts or pauses change, it requests the evaluation of the check `open_alerts`.",
)
def worker_report(context: dg.SensorEvaluationContext, system: SystemResource) -> dg.SensorResult:
    """The cursor is what the check last showed."""
    silent_after = system.context.config.alerts.silent_after
    workers = watch_workers(system.context.engine, silent_after)
    found = read_open_alerts(system)
    cursor = AlertCursor.from_text(context.cursor)
    shown = replace(cursor, alerts=found.compute_digest(), figures=_digest_figures(context.instance, system, found))
    if _is_to_be_shown(cursor, shown) and not under_way(context.instance, report_alerts.name):
        _log_report(context, workers, found)
        return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=replace(shown, shown_at=_format_now()).to_text())
    if workers.is_silent(silent_after):
        raise dg.Failure(f"{workers.to_text()}; alerts and outcomes are not sent, and sources are not polled")
    return dg.SensorResult(skip_reason=f"{workers.to_text()}; {_format_count(found)}", cursor=cursor.to_text())


@dataclass(frozen=True, slots=True)
class AlertCursor:
    """What the check `open_alerts` shows, and since when; ``alerts`` and ``figures`` are digests, times in UTC."""

    alerts: str = ""
    figures: str = ""
    shown_at: str = ""

    @classmethod
    def from_text(cls, cursor: str | None) -> AlertCursor:
        """The cursor that was written; an empty one for none, or for one of an earlier version."""
        try:
            known = json.loads(cursor or "{}")
            return cls(**known)
        except (ValueError, TypeError):
            return cls()

    def to_text(self) -> str:
        """The cursor as text."""
        return json.dumps(asdict(self))


def _is_to_be_shown(before: AlertCursor, now: AlertCursor) -> bool:
    if before.alerts != now.alerts:
        return True
    return before.figures != now.figures and _seconds_since(before.shown_at) >= FIGURES_SECONDS


def _log_report(context: dg.SensorEvaluationContext, workers: WorkerReport, found: OpenAlerts) -> None:
    """Writes into the log of the tick what its run will show."""
    context.log.info(f"{workers.to_text()}; {_format_count(found)}")
    alerts = {_format_alert_line(alert): None for some in found.alerts.values() for alert in some}
    for line in list(alerts)[:_MAX_LOGGED_ALERTS]:
        context.log.warning(line)


def _format_alert_line(alert: OpenAlert) -> str:
    return f"ALERT {alert.title} ({alert.kind}, since {alert.since:%Y-%m-%d %H:%M}). Do: {action_for(alert.kind)}"


def _format_count(found: OpenAlerts) -> str:
    return f"{found.count} open {'alert' if found.count == 1 else 'alerts'}" if found.count else "no open alert"


def _digest_figures(instance: dg.DagsterInstance, system: SystemResource, found: OpenAlerts) -> str:
    """The counts, and the newest materialization of each mirror, after which the check's status counts as outdated."""
    keys = [mirror_key(name) for name in system.context.entities]
    newest = sorted(
        record.asset_entry.last_materialization_storage_id or 0 for record in instance.get_asset_records(keys)
    )
    return f"{found.digest_of_figures()} {' '.join(map(str, newest))}"


def _format_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _seconds_since(at: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds() if at else math.inf

"""The check of each mirror that shows open alerts and pauses, and the job that evaluates it when they change.

The check is declared without partitions, and evaluated in a run for all entities: a sensor requests it
(``sensors/worker.py``).
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import dagster as dg

from sync_orchestrator.assets.jobs.by_group import IN_ONE_RUN
from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.assets.tables import shown_table
from sync_orchestrator.assets.two_way_checks import evaluate_two_way
from sync_orchestrator.core.notifications.alert_messages import action_for
from sync_orchestrator.core.operations.open_alerts import OpenAlerts, open_alerts
from sync_orchestrator.resources.job_names import REPORT_ALERTS
from sync_orchestrator.resources.system import SystemResource

ALERTS_CHECK = "open_alerts"


def alerts_check(name: str) -> dg.AssetChecksDefinition:
    """The check of one entity's mirror that fails while an alert is open."""
    spec = dg.AssetCheckSpec(
        ALERTS_CHECK,
        asset=mirror_key(name),
        description=(
            "Fails while an alert of this entity, or one that concerns the whole system, is open; the table says "
            "what to do. It is a warning while pushes wait because they are paused or the third party does not "
            "respond. Evaluated within seconds of a change."
        ),
    )

    @dg.multi_asset_check(name=f"{name}_mirror_{ALERTS_CHECK}", specs=[spec], can_subset=True)
    def check_alerts(
        context: dg.AssetCheckExecutionContext, system: SystemResource
    ) -> Iterator[dg.AssetCheckEvaluation]:
        yield alerts_evaluation(name, read_open_alerts(system))

    return check_alerts


def read_open_alerts(system: SystemResource) -> OpenAlerts:
    """The open alerts and pauses of all entities."""
    with system.context.engine.begin() as connection:
        return open_alerts(connection, {name: entity.system_name for name, entity in system.context.entities.items()})


def alerts_evaluation(name: str, found: OpenAlerts) -> dg.AssetCheckEvaluation:
    """The check of one entity: an error while an alert is open, a warning while pushes wait."""
    alerts, pause = found.alerts[name], found.pauses.get(name)
    is_urgent = any(alert.is_urgent for alert in alerts)
    metadata: dict[str, Any] = {"open": len(alerts)}
    if pause is not None:
        metadata |= {"pushes_wait": pause.to_text(), "next": pause.next_step}
    if alerts:
        metadata["alerts"] = shown_table(
            (
                ["kind", "what", "cause", "count", "since", "what to do"],
                [
                    [
                        alert.kind,
                        alert.title,
                        alert.cause,
                        alert.count,
                        alert.since.isoformat(timespec="seconds"),
                        action_for(alert.kind),
                    ]
                    for alert in alerts
                ],
            )
        )
    return dg.AssetCheckEvaluation(
        asset_key=mirror_key(name),
        check_name=ALERTS_CHECK,
        passed=not alerts and pause is None,
        severity=dg.AssetCheckSeverity.ERROR if is_urgent else dg.AssetCheckSeverity.WARN,
        description=_summarize_alerts(name, found),
        metadata=metadata,
    )


def _summarize_alerts(name: str, found: OpenAlerts) -> str:
    kinds = Counter(alert.kind for alert in found.alerts[name])
    total = kinds.total()
    named = ", ".join(kind if n == 1 else f"{kind} ({n})" for kind, n in kinds.items())
    lines = [f"{total} alert{'s are' if total > 1 else ' is'} open: {named}"] if total else []
    if pause := found.pauses.get(name):
        lines.append(pause.to_text())
    return "; ".join(lines) or "no alert is open"


@dg.op(out=dg.Out(dg.Nothing))
def report_open_alerts(
    context: dg.OpExecutionContext, system: SystemResource
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Evaluates the check of each entity's mirror."""
    with system.keep_alive():
        found = read_open_alerts(system)
        for name in system.context.entities:
            context.log.info(f"{name}: {_summarize_alerts(name, found)}")
            yield alerts_evaluation(name, found)
            yield from evaluate_two_way(system, name)
    yield dg.Output(None, metadata={"open": found.count, "entities_paused": len(found.pauses)})


@dg.job(
    name=REPORT_ALERTS,
    **IN_ONE_RUN,
    description=(
        "Evaluates the check `open_alerts` of each mirror, and those of two-way sync. The sensor `worker` requests it "
        "when alerts or pauses change."
    ),
)
def report_alerts() -> None:
    report_open_alerts()

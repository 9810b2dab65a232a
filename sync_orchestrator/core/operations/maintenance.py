"""What is looked after from time to time: partitions ahead, totals that must add up, what waits or is due too long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.capture.streams import watch_streams
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.intake import rejected_messages
from sync_orchestrator.core.ledger import partitions
from sync_orchestrator.core.ledger.conservation import Conservation, count_conservation
from sync_orchestrator.core.ledger.lookups import seconds_oldest_is_due
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.operations.queries import maintenance as queries
from sync_orchestrator.core.service import rollout
from sync_orchestrator.core.systems.heartbeats import claim_round
from sync_orchestrator.core.systems.suspension import end_old_strays, list_suspended_systems

if TYPE_CHECKING:
    from sqlalchemy import Connection

if TYPE_CHECKING:
    from sync_orchestrator.config import AlertSettings, EntitySettings


WATCH_SECONDS = 60.0
"""The time between two rounds of ``watch_backlog``, whoever does them."""


def run_maintenance(connection: Connection) -> Conservation:
    """The daily round: makes partitions, forgets what ended long ago, counts everything; harmless to repeat."""
    partitions.ensure_partitions(connection)
    rejected_messages.delete_old_messages(connection)
    rollout.delete_old_counters(connection)
    return check_conservation(connection)


def watch_if_due(engine: Engine, settings: AlertSettings, entities: Mapping[str, EntitySettings]) -> bool:
    """Does the round of every minute unless a process has done it within the last one; returns whether it did."""

    def watch_once(connection: Connection) -> bool:
        if not claim_round(connection, "watch", WATCH_SECONDS):
            return False
        watch_backlog(connection, settings, entities)
        return True

    return in_transaction(engine, watch_once)


def watch_backlog(
    connection: Connection, settings: AlertSettings, entities: Mapping[str, EntitySettings] | None = None
) -> None:
    """The round of every minute: alerts for what waits or is due too long, and the end of alerts that are over."""
    suspended = list_suspended_systems(connection)
    alert_overdue(
        connection,
        settings.overdue_after,
        sorted(name for name, entity in (entities or {}).items() if entity.third_party.system in suspended),
    )
    alert_stalled_sensors(connection, settings.silent_after)
    for name, entity in (entities or {}).items():
        alert_not_validated(
            connection, name, entity.third_party.system, 2 * entity.validation.every + settings.silent_after
        )
    alert_stuck_waiting(connection, settings.waiting_after)
    watch_streams(connection, settings.overdue_after)
    alerts.resolve_dead_alerts(connection)
    end_old_strays(connection)


def alert_overdue(connection: Connection, after: float, suspended: Sequence[str] = ()) -> None:
    """Work that is due for more than ``after`` seconds, or the end of it.

    Records of entities in ``suspended`` wait for an adoption, which has an alert of its own.
    """
    seconds = seconds_oldest_is_due(connection, without=suspended)
    if seconds <= after:
        alerts.resolve_alert(connection, "overdue", "work")
    else:
        alerts.raise_alert(connection, "overdue", "work", f"work is due for {seconds / 60:.0f} minutes and not done")


def alert_stalled_sensors(connection: Connection, after: float) -> None:
    """A sensor that has looked for changes once, and not for more than ``after`` seconds; or the end of it."""
    seconds = run(connection, queries.SECONDS_SINCE_HEARTBEAT)[0].seconds
    if seconds is None or seconds <= after:
        alerts.resolve_alert(connection, "sensor_stalled", "sensor")
    else:
        alerts.raise_alert(
            connection,
            "sensor_stalled",
            "sensor",
            f"the sensor has not looked for changes for {seconds / 60:.0f} minutes",
        )


def alert_not_validated(connection: Connection, entity: str, system: str, after: float) -> None:
    """Groups of an entity of which nobody knows for more than ``after`` seconds whether they are in sync."""
    late = run(connection, queries.LIST_NOT_VALIDATED, entity=entity, system=system, after=after)[0]
    if not late.n:
        alerts.resolve_alert(connection, "not_validated", entity)
    else:
        alerts.raise_alert(
            connection,
            "not_validated",
            entity,
            entity=entity,
            examples=late.groups,
            title=f"{entity}: {late.n} groups could not be validated for {late.seconds / 60:.0f} minutes",
        )


def alert_stuck_waiting(connection: Connection, after: float) -> None:
    """What waits for its record, or for what it refers to, for more than ``after`` seconds; each is told of once."""
    for row in run(connection, queries.LIST_LONG_WAITING, after=after):
        alerts.raise_alert_for_records(
            connection,
            "stuck_waiting",
            f"{row.entity}: waits for its record",
            f"{row.entity}: changes wait for records that never came",
            row.entity,
            row.keys,
        )
    for row in run(connection, queries.COUNT_LONG_REFERRING, after=after):
        alerts.raise_alert_for_records(
            connection,
            "stuck_waiting",
            f"{row.entity}: {'is not at the third party' if row.is_absent else 'waits for what it refers to'}",
            f"{row.entity}: records wait, since the third party does not have them (creates: never)"
            if row.is_absent
            else f"{row.entity}: records refer to something that never came",
            row.entity,
            row.keys,
        )


def check_conservation(connection: Connection) -> Conservation:
    """Counts, and alerts where it does not add up."""
    totals = count_conservation(connection)
    if totals.balanced:
        alerts.resolve_alert(connection, "conservation")
    else:
        alerts.raise_alert(
            connection,
            "conservation",
            "events",
            f"{totals.received} events received, {sum(totals.states.values())} accounted for",
        )
    return totals

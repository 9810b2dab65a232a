"""What is looked after from time to time: partitions ahead, totals that must add up, what waits or is due too long."""

from __future__ import annotations

from sqlalchemy import Connection

from sync_orchestrator.config import Alerts
from sync_orchestrator.core import alerts, rejected, rollout
from sync_orchestrator.core.ledger import Conservation, check_conservation
from sync_orchestrator.core.sql import run
from sync_orchestrator.core.statements import alerts as alert_statements
from sync_orchestrator.core.statements import ledger as statements


def look_after(connection: Connection) -> Conservation:
    """The daily round: makes partitions, forgets what ended long ago, counts everything; harmless to repeat."""
    run(connection, statements.ENSURE_PARTITIONS)
    rejected.forget_old(connection)
    rollout.forget_old(connection)
    return check_conservation(connection)


def watch(connection: Connection, settings: Alerts) -> None:
    """The round of every minute: alerts for what waits or is due too long, and the end of alerts that are over."""
    tell_of_overdue(connection, settings.overdue_after)
    tell_of_long_waiting(connection, settings.waiting_after)
    run(connection, alert_statements.RESOLVE_DEAD)


def tell_of_overdue(connection: Connection, after: float) -> None:
    """Work that is due for more than ``after`` seconds, or the end of it."""
    seconds = float(run(connection, statements.OLDEST_DUE)[0].seconds)
    if seconds <= after:
        alerts.resolve(connection, "overdue", "work")
    else:
        alerts.tell(connection, "overdue", "work", f"work is due for {seconds / 60:.0f} minutes and not done")


def tell_of_long_waiting(connection: Connection, after: float) -> None:
    """What waits for its record, or for what it refers to, for more than ``after`` seconds; each is told of once."""
    for row in run(connection, alert_statements.LONG_WAITING, after=after):
        alerts.tell_of_records(connection, "waiting_long", f"{row.entity}: waits for its record",
                               f"{row.entity}: changes wait for records that never came", row.entity, row.keys)
    for row in run(connection, alert_statements.LONG_REFERRING, after=after):
        alerts.tell_of_records(connection, "waiting_long", f"{row.entity}: waits for what it refers to",
                               f"{row.entity}: records refer to something that never came", row.entity, row.keys)

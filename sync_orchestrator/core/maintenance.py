"""What is looked after from time to time: partitions ahead, totals that must add up, what waits too long."""

from __future__ import annotations

from sqlalchemy import Connection

from sync_orchestrator.config import Alerts
from sync_orchestrator.core import alerts
from sync_orchestrator.core.ledger import check_conservation
from sync_orchestrator.core.sql import run
from sync_orchestrator.core.statements import alerts as alert_statements
from sync_orchestrator.core.statements import ledger as statements


def look_after(connection: Connection, settings: Alerts) -> None:
    """One round; harmless to repeat."""
    run(connection, statements.ENSURE_PARTITIONS)
    check_conservation(connection)
    _overdue(connection, settings)
    for row in run(connection, alert_statements.LONG_WAITING, after=settings.waiting_after):
        alerts.tell_of_records(connection, "waiting_long", f"{row.entity}: waits for its record",
                               f"{row.entity}: changes wait for records that never came", row.entity, row.keys)
    run(connection, alert_statements.RESOLVE_DEAD)


def _overdue(connection: Connection, settings: Alerts) -> None:
    seconds = float(run(connection, statements.OLDEST_DUE)[0].seconds)
    if seconds > settings.overdue_after:
        alerts.tell(connection, "overdue", "work", f"work is due for {seconds / 60:.0f} minutes and not done")
    else:
        alerts.resolve(connection, "overdue", "work")

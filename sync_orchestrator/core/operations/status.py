"""What people and machines ask: how much is where, how old the oldest is, what is paused, who is alive."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.archive import queries as archive_queries
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.groups.registry import count_groups
from sync_orchestrator.core.intake import queries as intake_queries
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.notifications import outcomes
from sync_orchestrator.core.notifications import queries as notifications_queries
from sync_orchestrator.core.push.dead_records import summarize_dead_records
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.overview import list_systems
from sync_orchestrator.core.systems.worker_presence import read_workers
from sync_orchestrator.core.validation.lost_change_counts import count_lost_changes_by_day

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_DAYS_OF_LOST = 7


def status(engine: Engine) -> dict[str, Any]:
    """Everything at a glance, from one snapshot: events by state, records, systems, open alerts."""
    with engine.begin() as connection:
        run(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        events: dict[str, int] = dict.fromkeys(
            ("received", "pending", "leased", "waiting", "done", "superseded", "dead", "discarded", "duplicate"), 0
        )
        for row in run(connection, ledger_queries.COUNT_CONSERVATION):
            events[row.what] += row.n
        states = sum(n for what, n in events.items() if what not in ("received", "duplicate"))
        records = dict.fromkeys(
            ("archived", "in_sync", "out_of_sync", "tombstones", "incomplete", "dead", "on_hold", "discarded"), 0
        )
        for row in run(connection, archive_queries.COUNT_RECORDS):
            for what in records:
                records[what] += getattr(row, what)
        duplicates = events.pop("duplicate")
        return {
            "events": {**events, "duplicates": duplicates, "balanced": events["received"] == states},
            "records": records,
            "dead": summarize_dead_records(connection),
            "groups": {
                entity: {"known": counts.known, "synced": counts.synced}
                for entity, counts in count_groups(connection).items()
            },
            "systems": list_systems(connection),
            "oldest_due_seconds": float(run(connection, ledger_queries.SELECT_OLDEST_DUE)[0].seconds),
            "lost_notifications": [
                {"entity": lost.entity, "source": lost.source, "day": lost.day.isoformat(), "count": lost.count}
                for lost in count_lost_changes_by_day(connection, _DAYS_OF_LOST)
            ],
            "heartbeats": {row.name: round(row.age, 1) for row in run(connection, systems_queries.LIST_HEARTBEAT_AGES)},
            "worker": _worker(connection),
            "alerts": _alerts(connection),
            "rejected": {row.consumer: row.n for row in run(connection, intake_queries.COUNT_OPEN_REJECTED)},
            "outcomes": outcomes.unsent(connection),
        }


def entity_totals(connection: Connection, entity: str) -> dict[str, int]:
    """The totals of an entity over all its business groups.

    Returns:
        ``in_sync``, ``pending`` (records to push, changes to archive), ``dead``, ``on_hold``, ``drift`` and
        ``unmanaged`` (found and not known to be gone), and ``open_alerts`` (of the entity, and of no entity).
    """
    row = run(connection, archive_queries.SUM_ENTITY_TOTALS, entity=entity)[0]
    return {
        "in_sync": row.in_sync,
        "pending": row.pending_records + row.pending_events,
        "dead": row.dead_records + row.dead_events,
        "on_hold": row.on_hold,
        "drift": row.drift,
        "unmanaged": row.unmanaged,
        "open_alerts": row.open_alerts,
    }


@dataclass(frozen=True, slots=True)
class GroupTotals:
    """What a business group holds: its records, those in sync, and the time of its last validation."""

    records: int
    in_sync: int
    validated_at: datetime | None


def group_totals(connection: Connection, entity: str, group: str) -> GroupTotals:
    """The totals of one business group."""
    row = run(connection, archive_queries.SUM_GROUP_TOTALS, entity=entity, group=group)[0]
    return GroupTotals(row.records, row.in_sync, row.validated_at)


def _worker(connection: Connection) -> dict[str, Any]:
    """How many workers run, when one was last heard of, and how their tasks fare."""
    found = read_workers(connection)
    return {"running": found.count, "seconds": found.seconds, "tasks": [asdict(task) for task in found.tasks]}


def _alerts(connection: Connection) -> dict[str, Any]:
    """Those that are open, how many of them somebody has not heard of yet, and why."""
    errors = run(connection, notifications_queries.SELECT_SEND_ERROR)
    return {
        "open": [
            {
                "kind": row.kind,
                "cause": row.cause,
                "title": row.title,
                "count": row.n,
                "since": row.created_at.isoformat(),
                "sent": row.sent,
            }
            for row in run(connection, notifications_queries.COUNT_OPEN_ALERTS, most=50)
        ],
        "unsent": run(connection, notifications_queries.COUNT_UNSENT_ALERTS)[0].n,
        "send_error": errors[0].error if errors else None,
    }

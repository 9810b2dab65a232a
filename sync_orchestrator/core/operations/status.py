"""What people and machines ask: how much is where, how old the oldest is, what is paused, who is alive."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.archive.archived_records import count_records, sum_entity_totals, sum_group_totals
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.groups.registry import count_groups
from sync_orchestrator.core.intake.rejected_messages import count_open_by_consumer
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.ledger.lookups import seconds_oldest_is_due
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.operations.captured_streams import read_stream_reports
from sync_orchestrator.core.push.dead_records import summarize_dead_records
from sync_orchestrator.core.systems.heartbeats import list_heartbeat_ages
from sync_orchestrator.core.systems.overview import list_systems
from sync_orchestrator.core.systems.worker_presence import read_workers
from sync_orchestrator.core.validation.lost_change_counts import count_lost_changes_by_day

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_DAYS_OF_LOST = 7
_MAX_ALERTS = 50


def collect_status(engine: Engine) -> dict[str, Any]:
    """Everything at a glance, from one snapshot: events by state, records, systems, open alerts."""
    with engine.begin() as connection:
        run(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        events = count_conservation(connection)
        records = dict.fromkeys(
            ("archived", "in_sync", "out_of_sync", "tombstones", "incomplete", "dead", "on_hold", "discarded"), 0
        )
        for row in count_records(connection):
            for what in records:
                records[what] += getattr(row, what)
        return {
            "events": {
                "received": events.received,
                **events.states,
                "duplicates": events.duplicates,
                "balanced": events.balanced,
            },
            "records": records,
            "dead": summarize_dead_records(connection),
            "groups": {
                entity: {"known": counts.known, "synced": counts.synced}
                for entity, counts in count_groups(connection).items()
            },
            "systems": list_systems(connection),
            "oldest_due_seconds": seconds_oldest_is_due(connection),
            "lost_notifications": [
                {"entity": lost.entity, "source": lost.source, "day": lost.day.isoformat(), "count": lost.count}
                for lost in count_lost_changes_by_day(connection, _DAYS_OF_LOST)
            ],
            "heartbeats": {name: round(age, 1) for name, age in list_heartbeat_ages(connection).items()},
            "worker": _read_worker(connection),
            "alerts": alerts.summarize_open_alerts(connection, _MAX_ALERTS),
            "rejected": count_open_by_consumer(connection),
            "outcomes": outcomes.count_unsent(connection),
            "streams": {name: found.to_document() for name, found in read_stream_reports(connection).items()},
        }


def entity_totals(connection: Connection, entity: str) -> dict[str, int]:
    """The totals of an entity over all its business groups.

    Returns:
        ``in_sync``, ``pending`` (records to push, changes to archive), ``dead``, ``on_hold``, ``drift`` and
        ``unmanaged`` (found and not known to be gone), and ``open_alerts`` (of the entity, and of no entity).
    """
    row = sum_entity_totals(connection, entity)
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
    row = sum_group_totals(connection, entity, group)
    return GroupTotals(row.records, row.in_sync, row.validated_at)


def _read_worker(connection: Connection) -> dict[str, object]:
    """How many workers run, when one was last heard of, and how their tasks fare."""
    found = read_workers(connection)
    return {"running": found.count, "seconds": found.seconds, "tasks": [asdict(task) for task in found.tasks]}

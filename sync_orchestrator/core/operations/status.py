"""What people and machines ask: how much is where, how old the oldest is, what is paused, who is alive."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.archive import queries as archive_queries
from sync_orchestrator.core.db import notify
from sync_orchestrator.core.db.session import json, run
from sync_orchestrator.core.intake import queries as intake_queries
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.notifications import outcomes
from sync_orchestrator.core.notifications import queries as notifications_queries
from sync_orchestrator.core.operations.dead_records import summarize_dead_records
from sync_orchestrator.core.systems import queries as systems_queries
from sync_orchestrator.core.systems.call_limit import FORGOTTEN_AFTER_SECONDS
from sync_orchestrator.core.validation import queries as validation_queries
from sync_orchestrator.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_DAYS_OF_LOST = 7

HEARTBEAT = """
INSERT INTO sync.heartbeats (name, detail) VALUES (%(name)s, coalesce(%(detail)s, '{}'::jsonb))
ON CONFLICT (name) DO UPDATE SET at = sync.clock(), detail = excluded.detail
"""
_AGES = """
SELECT split_part(name, ' ', 1) AS name, EXTRACT(epoch FROM sync.clock() - max(at))::float8 AS age
FROM sync.heartbeats WHERE name NOT LIKE 'probe %%' GROUP BY 1
"""
_SYSTEMS = f"""
SELECT name, epoch, paused, open_since, {systems_queries.RATE_SHARE} AS rate_share,
       greatest(0, EXTRACT(epoch FROM not_before - sync.clock()))::float8 AS held_off,
       CASE WHEN not_before > sync.clock() THEN not_before_reason END AS held_off_because,
       account, suspended_at, suspended_reason, calls_at_once, calls_max, batch_share, calls_reason, calls_lost_at,
       calls_lost_at > clock_timestamp() - make_interval(secs => {FORGOTTEN_AFTER_SECONDS})
       AND (calls_at_once < calls_max OR batch_share < 1) AS is_limited
FROM sync.systems ORDER BY name
"""
_GROUPS = """
SELECT entity, count(*) AS groups, count(first_completed_at) AS synced FROM sync.groups GROUP BY entity
"""
_PAUSE_SYSTEM = """
UPDATE sync.systems SET paused = %(paused)s, not_before = CASE WHEN %(paused)s THEN not_before END,
    not_before_reason = CASE WHEN %(paused)s THEN not_before_reason END,
    calls_at_once = CASE WHEN %(paused)s THEN calls_at_once END, batch_share = CASE WHEN %(paused)s THEN batch_share
    ELSE 1 END, calls_lost_at = CASE WHEN %(paused)s THEN calls_lost_at END
WHERE name = %(name)s RETURNING name
"""
_PAUSE_ENTITY = """
INSERT INTO sync.entities (name, paused) VALUES (%(name)s, %(paused)s)
ON CONFLICT (name) DO UPDATE SET paused = excluded.paused
"""


def heartbeat(engine: Engine, name: str, detail: dict[str, Any] | None = None) -> None:
    """Says that the process or task of this name is alive now."""
    with engine.begin() as connection:
        run(connection, HEARTBEAT, name=name, detail=json(detail or {}))


def end_heartbeat(engine: Engine, name: str) -> None:
    """Says that it has ended in good order."""
    with engine.begin() as connection:
        run(connection, "DELETE FROM sync.heartbeats WHERE name = %(name)s", name=name)


def seconds_since_heartbeat(engine: Engine, name: str) -> float | None:
    """How long ago it last said so; None if never."""
    with engine.begin() as connection:
        return {row.name: float(row.age) for row in run(connection, _AGES)}.get(name)


def paused_entities(connection: Connection) -> set[str]:
    return {row.name for row in run(connection, "SELECT name FROM sync.entities WHERE paused")}


def pause(engine: Engine, name: str, entities: set[str], *, paused: bool) -> None:
    """Pauses or resumes the pushes of an entity, or of a whole third party; events go on being archived.

    Resuming a third party also ends the time for which its calls are held off, and the limit of its calls at once.

    Raises NotFound for a name that is neither.
    """
    with engine.begin() as connection:
        if name in entities:
            run(connection, _PAUSE_ENTITY, name=name, paused=paused)
        elif not run(connection, _PAUSE_SYSTEM, name=name, paused=paused):
            raise NotFound(f"neither an entity nor a third party is called '{name}'")
        run(connection, notify.NOTIFY_WORK)


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
        groups = run(connection, _GROUPS)
        duplicates = events.pop("duplicate")
        return {
            "events": {**events, "duplicates": duplicates, "balanced": events["received"] == states},
            "records": records,
            "dead": summarize_dead_records(connection),
            "groups": {row.entity: {"known": row.groups, "synced": row.synced} for row in groups},
            "systems": systems_of(connection),
            "oldest_due_seconds": float(run(connection, ledger_queries.SELECT_OLDEST_DUE)[0].seconds),
            "lost_notifications": [
                {"entity": row.entity, "source": row.source, "day": row.day.isoformat(), "count": row.n}
                for row in run(connection, validation_queries.SUM_LOST_CHANGES, days=_DAYS_OF_LOST)
            ],
            "heartbeats": {row.name: round(row.age, 1) for row in run(connection, _AGES)},
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


def find_in_sync_since(connection: Connection, entity: str, age: timedelta) -> datetime | None:
    """When the validations began that found every business group of an entity in sync.

    Args:
        connection: A connection to the database.
        entity: The entity.
        age: How old a validation may be.

    Returns:
        The time of the oldest of the groups' latest validations. None if a group that had a full sync was last found
        in drift, could not be validated, or was validated longer ago; and if there is no such group.
    """
    row = run(connection, validation_queries.SELECT_IN_SYNC_SINCE, entity=entity, seconds=age.total_seconds())[0]
    return row.since if row.all_in_sync else None


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


def systems_of(connection: Connection) -> dict[str, dict[str, Any]]:
    """Source systems and third parties by name: pauses, breakers, limits."""
    return {
        row.name: {
            "paused": row.paused,
            "epoch": row.epoch,
            "breaker": "open" if row.open_since else "closed",
            "open_since": row.open_since.isoformat() if row.open_since else None,
            "held_off_seconds": round(row.held_off or 0.0, 1),
            "held_off_because": row.held_off_because,
            "rate_share": round(row.rate_share, 2),
            "call_limit": _call_limit(row),
            "account": row.account,
            "suspended_since": row.suspended_at.isoformat() if row.suspended_at else None,
            "suspended_reason": row.suspended_reason,
        }
        for row in run(connection, _SYSTEMS)
    }


def _call_limit(row: Any) -> dict[str, Any] | None:
    """How many calls the system gets at once, and why; None where that is what is configured."""
    if not row.is_limited:
        return None
    return {
        "calls_at_once": max(1, int(row.calls_at_once)),
        "configured": row.calls_max,
        "batch_share": round(row.batch_share, 2),
        "since": row.calls_lost_at.isoformat(),
        "reason": row.calls_reason,
    }


def call_limit_text(name: str, limit: dict[str, Any]) -> str:
    """The present limit of calls to a system in one sentence; ``limit`` as ``status`` has it."""
    batches = "" if limit["batch_share"] >= 1 else f", and bulk calls have {limit['batch_share']:.0%} of their size"
    return (
        f"{name}: {limit['calls_at_once']} of {limit['configured']} calls at once are made in each process{batches}"
        f", since calls were not answered in time ({limit['since'][:19]}: {limit['reason']})"
    )


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

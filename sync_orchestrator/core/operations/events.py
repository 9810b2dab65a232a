"""What an operator does with change events: redrive them, or discard those that are dead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.ledger.finishing import discard_dead_events, find_dead_records_of_events, finish_reached
from sync_orchestrator.core.ledger.retrying import redrive_events_of
from sync_orchestrator.core.ledger.states import require_discard_reason
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.push.dead_records import discard_records_without_events
from sync_orchestrator.core.push.hold import release_from_hold
from sync_orchestrator.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def redrive_events(engine: Engine, seqs: Sequence[int] | None = None, entity: str | None = None) -> int:
    """Puts dead and waiting events back to pending with fresh attempts; returns how many. Doing it twice is harmless.

    ``seqs`` None: all of the entity (None: of every entity). Records of archived events are pushed again; those that no
    event brought are redriven by ``dead_records.redrive_dead_records``.
    """

    def redrive_rows(connection: Connection) -> int:
        rows = redrive_events_of(connection, seqs=seqs, entity=entity)
        by_entity: dict[str, list[Any]] = {}
        for row in rows:
            by_entity.setdefault(row.entity, []).append(row)
        for name, events in sorted(by_entity.items()):
            keys = [event.key for event in events]
            release_from_hold(connection, name, [event.key for event in events if event.revision is not None])
            alerts.remove_records_from_alerts(connection, name, keys)
            finish_reached(connection, name, keys)
        alerts.resolve_dead_alerts(connection)
        notify_work(connection)
        return len(rows)

    return in_transaction(engine, redrive_rows)


def discard_events(engine: Engine, seqs: Sequence[int], reason: str) -> int:
    """Ends dead events for good, with the reason kept; returns how many.

    A dead record is discarded with the last of its dead events, if its present state came by one of these. Raises
    NotFound where none of them is dead.
    """
    require_discard_reason(reason)

    def discard_rows(connection: Connection) -> int:
        archived = find_dead_records_of_events(connection, seqs)
        count = discard_dead_events(connection, seqs, reason)
        for name, keys in sorted(archived.items()):
            discard_records_without_events(connection, name, sorted(set(keys)), reason)
        alerts.resolve_dead_alerts(connection)
        return count

    count = in_transaction(engine, discard_rows)
    if not count:
        raise NotFound("none of these events is dead; `sync-orchestrator events list --state dead` shows which are")
    return count

"""Dead records: refused, out of attempts or on hold. What they are, and what an operator does about them.

A record counts whether an event or a full sync brought it. A change that died before the archive had it counts, too:
nothing else shows that it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.ledger.finishing import discard_dead_events, finish_reached
from sync_orchestrator.core.ledger.retrying import redrive_events_of
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.push.dead_records import (
    ALL_STATES,
    DEAD_STATES,
    DeadSelection,
    confirm_absent,
    discard_records,
    find_archived_events,
    lock_dead,
    resolve_alerts_of_records,
)
from sync_orchestrator.core.push.hold import release_from_hold
from sync_orchestrator.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def redrive_dead_records(engine: Engine, selection: DeadSelection, *, confirmed_absent: bool = False) -> int:
    """Has dead records pushed again with fresh attempts, and their events with them; returns how many keys.

    Records that are named by key are pushed again even if they were discarded. ``confirmed_absent``: an operator has
    seen that the third party does not have them, so those on hold are created. Doing it twice is harmless.
    """
    assert selection.entity is not None
    assert selection.keys is not None or not confirmed_absent
    return in_transaction(
        engine, lambda connection: _redrive_records(connection, str(selection.entity), selection, confirmed_absent)
    )


def discard_dead_records(engine: Engine, selection: DeadSelection, reason: str) -> int:
    """Gives dead records up, with the reason kept; returns how many keys.

    A discarded record is not pushed until a new revision of it arrives. Its dead events end as discarded. Raises
    UsageError without a reason, and where nothing that is selected is dead.
    """
    assert selection.entity is not None
    if not reason.strip():
        raise UsageError("a discard needs a reason")
    count = in_transaction(
        engine, lambda connection: _discard_records(connection, str(selection.entity), selection, reason)
    )
    if not count:
        raise NotFound(
            f"nothing of {selection.entity} that is selected is dead; "
            f"`sync-orchestrator records list {selection.entity} --dead` shows what is"
        )
    return count


def _redrive_records(connection: Connection, entity: str, selection: DeadSelection, confirmed_absent: bool) -> int:
    records, unarchived = lock_dead(connection, selection, ALL_STATES if selection.keys is not None else DEAD_STATES)
    keys = sorted({*records, *unarchived.values()})
    if not keys:
        return 0
    if confirmed_absent:
        confirm_absent(connection, entity, records)
    release_from_hold(connection, entity, records)
    redrive_events_of(connection, seqs=_find_seqs(connection, entity, records, unarchived), entity=entity)
    _end_alerts(connection, entity, keys)
    finish_reached(connection, entity, keys)
    notify_work(connection)
    return len(keys)


def _discard_records(connection: Connection, entity: str, selection: DeadSelection, reason: str) -> int:
    records, unarchived = lock_dead(connection, selection, DEAD_STATES)
    keys = sorted({*records, *unarchived.values()})
    discard_records(connection, entity, records, reason)
    discard_dead_events(connection, _find_seqs(connection, entity, records, unarchived), reason)
    _end_alerts(connection, entity, keys)
    return len(keys)


def _find_seqs(connection: Connection, entity: str, records: list[str], unarchived: dict[int, str]) -> list[int]:
    return sorted({*find_archived_events(connection, entity, records), *unarchived})


def _end_alerts(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    resolve_alerts_of_records(connection, entity, keys)
    alerts.resolve_dead_alerts(connection)

"""Dead records: refused, out of attempts or on hold. What they are, and what an operator does about them.

A record counts whether an event or a full sync brought it. A change that died before the archive had it counts, too:
nothing else shows that it is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.ledger.finishing import finish_reached
from sync_orchestrator.core.notifications import queries as notifications_queries
from sync_orchestrator.core.push import dead_record_queries
from sync_orchestrator.core.push.dead_records import ALL_STATES, DEAD_STATES, DeadSelection, State, _parameters
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
        engine, lambda connection: _redrive(connection, str(selection.entity), selection, confirmed_absent)
    )


def discard_dead_records(engine: Engine, selection: DeadSelection, reason: str) -> int:
    """Gives dead records up, with the reason kept; returns how many keys.

    A discarded record is not pushed until a new revision of it arrives. Its dead events end as discarded. Raises
    UsageError without a reason, and where nothing that is selected is dead.
    """
    assert selection.entity is not None
    if not reason.strip():
        raise UsageError("a discard needs a reason")
    count = in_transaction(engine, lambda connection: _discard(connection, str(selection.entity), selection, reason))
    if not count:
        raise NotFound(
            f"nothing of {selection.entity} that is selected is dead; "
            f"`sync-orchestrator records list {selection.entity} --dead` shows what is"
        )
    return count


def _redrive(connection: Connection, entity: str, selection: DeadSelection, confirmed_absent: bool) -> int:
    records, unarchived = _locked(connection, selection, ALL_STATES if selection.keys is not None else DEAD_STATES)
    keys = sorted({*records, *unarchived.values()})
    if not keys:
        return 0
    if confirmed_absent:
        run(connection, dead_record_queries.CONFIRM_ABSENT, entity=entity, keys=records)
    release_from_hold(connection, entity, records)
    run(connection, ledger_queries.REDRIVE_EVENTS, seqs=_seqs(connection, entity, records, unarchived), entity=entity)
    _end_alerts(connection, entity, keys)
    finish_reached(connection, entity, keys)
    notify_work(connection)
    return len(keys)


def _discard(connection: Connection, entity: str, selection: DeadSelection, reason: str) -> int:
    records, unarchived = _locked(connection, selection, DEAD_STATES)
    keys = sorted({*records, *unarchived.values()})
    run(connection, dead_record_queries.DISCARD_RECORDS, entity=entity, keys=records, reason=reason)
    run(connection, ledger_queries.DISCARD_EVENTS, seqs=_seqs(connection, entity, records, unarchived), reason=reason)
    _end_alerts(connection, entity, keys)
    return len(keys)


def _locked(
    connection: Connection, selection: DeadSelection, states: Sequence[State]
) -> tuple[list[str], dict[int, str]]:
    """Keys of selected records, and selected changes that died before they were archived, held until the end."""
    parameters = _parameters(selection, states)
    records = [row.key for row in run(connection, dead_record_queries.LOCK_DEAD_RECORDS, **parameters)]
    return records, {row.seq: row.key for row in run(connection, dead_record_queries.LOCK_DEAD_EVENTS, **parameters)}


def _seqs(connection: Connection, entity: str, records: list[str], unarchived: dict[int, str]) -> list[int]:
    archived = run(connection, dead_record_queries.SELECT_ARCHIVED_EVENTS, entity=entity, keys=records)
    return sorted({*(row.seq for row in archived), *unarchived})


def _end_alerts(connection: Connection, entity: str, keys: Sequence[str]) -> None:
    run(connection, dead_record_queries.RESOLVE_ALERTS_OF_RECORDS, entity=entity, keys=list(keys))
    run(connection, notifications_queries.RESOLVE_DEAD_ALERTS)

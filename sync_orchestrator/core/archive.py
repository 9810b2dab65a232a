"""The archive: merges changes into records under the version guard, set-wise and in key order.

Not here: which change wins (``versions.py``), where changes come from (``drain.py``, ``full_sync.py``).
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from sync_orchestrator.core.sql import json, run
from sync_orchestrator.core.statements import archive as statements
from sync_orchestrator.core.statements import ledger as ledger_statements
from sync_orchestrator.core.versions import Change, RecordState, Rules, Stamp, Verdict, decide

LIVE, BACKFILL = 0, 1
"""Lanes: live changes are pushed before what a full sync filled in."""


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of one change; ``revision`` is the one that holds it, where there is one.

    ``lacks``: required parts without which its record cannot be pushed.
    """

    change: Change
    verdict: Verdict
    revision: int | None
    lacks: frozenset[str]


@dataclass(slots=True)
class _Before:
    state: RecordState
    revision: int


def ticket(connection: Connection) -> int:
    """A number for a read that begins now: later reads get larger ones, on every machine."""
    return int(run(connection, statements.TICKET)[0][0])


def clock(connection: Connection) -> float:
    """The database's clock, in seconds since 1970."""
    return float(run(connection, statements.CLOCK)[0][0])


def merge(
    connection: Connection, entity: str, changes: Sequence[Change], rules: Rules, *, lane: int = LIVE
) -> list[Merged]:
    """Merges changes of one entity in the caller's transaction and says what became of each.

    The owner's changes come first, and those of one part oldest first, whatever order they are given in; what misses
    its record is judged again when the record comes with the others. A record's arrival wakes the events that wait
    for it.
    """
    if not changes:
        return []
    keys = sorted({change.key for change in changes})
    before = _lock(connection, entity, keys)
    arrived: set[str] = set()
    judged: list[tuple[Change, Verdict, int | None]] = []
    touched: dict[tuple[str, str], Change] = {}
    queue = deque(in_order(changes, rules))
    early: dict[str, list[Change]] = defaultdict(list)
    while queue:
        change = queue.popleft()
        known = before[change.key].state
        was_here = rules.owner in known.parts
        verdict = decide(known, change, rules)
        if known.parts.get(change.part) is change.stamp:
            touched[change.key, change.part] = change
        if not was_here and rules.owner in known.parts:
            arrived.add(change.key)
            queue.extend(early.pop(change.key, ()))
        if verdict is Verdict.MISSING:
            early[change.key].append(change)
            continue
        holds = verdict in (Verdict.ACCEPTED, Verdict.KEPT, Verdict.DUPLICATE)
        judged.append((change, verdict, known.revision if holds else None))
    judged += [(change, Verdict.MISSING, None) for waiting in early.values() for change in waiting]
    _write_parts(connection, entity, touched.values())
    _write_records(connection, entity, before, lane)
    run(connection, statements.DROP_SHELLS, entity=entity, keys=[k for k in keys if before[k].state.revision == 0])
    if arrived:
        run(connection, ledger_statements.WAKE, entity=entity, keys=sorted(arrived))
    return [Merged(*end, _lacks(before[end[0].key].state, rules)) for end in judged]


def _lacks(state: RecordState, rules: Rules) -> frozenset[str]:
    return frozenset() if state.ready or rules.owner not in state.parts else rules.required - state.parts.keys()


def in_order(changes: Iterable[Change], rules: Rules) -> list[Change]:
    """The owner's changes first, and the oldest of them first."""
    return sorted(changes, key=lambda change: (
        change.part != rules.owner, change.stamp.epoch, change.stamp.version, change.stamp.ticket,
        change.stamp.content_hash))


def _lock(connection: Connection, entity: str, keys: list[str]) -> dict[str, _Before]:
    run(connection, statements.LOCK_SHELLS, entity=entity, keys=keys)
    before = {
        row.key: _Before(RecordState(row.revision, row.group_key, row.deleted, row.ready), row.revision)
        for row in run(connection, statements.LOCK, entity=entity, keys=keys)
    }
    for row in run(connection, statements.STAMPS, entity=entity, keys=keys):
        before[row.key].state.parts[row.part] = Stamp(row.epoch, row.version, row.ticket, bytes(row.content_hash))
    return before


def _write_parts(connection: Connection, entity: str, changes: Iterable[Change]) -> None:
    rows = sorted(changes, key=lambda change: (change.key, change.part))
    if rows:
        run(
            connection,
            statements.WRITE_PARTS,
            entity=entity,
            key=[row.key for row in rows],
            part=[row.part for row in rows],
            epoch=[row.stamp.epoch for row in rows],
            version=[row.stamp.version for row in rows],
            ticket=[row.stamp.ticket for row in rows],
            content_hash=[row.stamp.content_hash for row in rows],
            deleted=[row.deleted for row in rows],
            data=[json({} if row.deleted else row.data or {}) for row in rows],
        )


def _write_records(connection: Connection, entity: str, before: dict[str, _Before], lane: int) -> None:
    rows = [(key, known.state) for key, known in before.items() if known.state.revision != known.revision]
    if not rows:
        return
    run(
        connection,
        statements.WRITE_RECORDS,
        entity=entity,
        lane=lane,
        key=[key for key, _ in rows],
        group_key=[state.group for _, state in rows],
        revision=[state.revision for _, state in rows],
        deleted=[state.deleted for _, state in rows],
        ready=[state.ready for _, state in rows],
    )
    groups = sorted({state.group for _, state in rows if state.group})
    run(connection, statements.NEW_GROUPS, entity=entity, groups=groups)

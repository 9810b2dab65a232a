"""The archive: merges changes into records under the version guard, set-wise and in key order."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.archive.archived_records import stamp_of
from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.session import force_index_scans, run, to_jsonb
from sync_orchestrator.core.ledger.event_claims import wake_waiting_events
from sync_orchestrator.core.two_way.merge_linked import merge_linked
from sync_orchestrator.core.two_way.rules import TwoWay
from sync_orchestrator.core.version_guard import Change, ReadBounds, RecordState, Rules, Verdict, decide

if TYPE_CHECKING:
    from sqlalchemy import Connection

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


def without_held(connection: Connection, entity: str, changes: Sequence[Change]) -> list[Change]:
    """The changes but those read whose very state the archive has from an earlier read: they would write nothing.

    It takes no lock: for each of them the answer is that of a merge at this moment.
    """
    if not changes:
        return []
    force_index_scans(connection)
    rows = run(
        connection,
        queries.SELECT_UNLOCKED_KEYS,
        entity=entity,
        key=[change.key for change in changes],
        part=[change.part for change in changes],
        epoch=[change.stamp.epoch for change in changes],
        version=[change.stamp.version for change in changes],
        content_hash=[change.stamp.content_hash for change in changes],
        numbered=[change.bounds is not None for change in changes],
    )
    return [changes[row.place - 1] for row in rows]


def merge(
    connection: Connection,
    entity: str,
    changes: Sequence[Change],
    rules: Rules,
    *,
    priority: int = LIVE,
    two_way: TwoWay | None = None,
) -> list[Merged]:
    """Merges changes of one entity in the caller's transaction and says what became of each.

    The owner's changes come first, and those of one part oldest first, whatever order they are given in; what misses
    its record is judged again when the record comes with the others. A record's arrival wakes the events that wait
    for it.
    """
    if not changes:
        return []
    force_index_scans(connection)
    if two_way is not None:
        acquire_lock(connection, AdvisoryLock.TWO_WAY, two_way.ours.entity)
    states = _lock_records(connection, entity, sorted({change.key for change in changes}), rules.lag)
    learn_bounds(connection, entity, changes)
    batch = _JudgedChanges(changes, rules, states)
    lost = _insert_records(connection, entity, batch, priority)
    again = []
    if lost:
        batch.forget_keys(lost)
        again = merge(
            connection,
            entity,
            [change for change in changes if change.key in lost],
            rules,
            priority=priority,
            two_way=two_way,
        )
    _write_parts(connection, entity, batch.touched.values())
    _write_records(connection, entity, batch, priority)
    if shells := [key for key in batch.absent if batch.states[key].revision == 0]:
        run(connection, queries.DELETE_EMPTY_RECORDS, entity=entity, keys=shells)
    if batch.arrived:
        wake_waiting_events(connection, entity, sorted(batch.arrived))
    if two_way is not None:
        keys = [key for key, state in batch.states.items() if state.revision > 0]
        merge_linked(connection, two_way, entity, keys, priority=priority)
    return [Merged(*end, _find_missing_parts(batch.states[end[0].key], rules)) for end in batch.ends] + again


class _JudgedChanges:
    """Changes judged by the records that are here, whose ``states`` (by key) become what they are after them.

    ``absent``: keys of records that are not here. ``arrived``: those whose owner's part came now. ``touched``: the
    changes that hold, by key and part. ``ends``: each change with its verdict and the revision that holds it.
    """

    def __init__(self, changes: Sequence[Change], rules: Rules, states: dict[str, RecordState]) -> None:
        self.states = states
        self.arrived: set[str] = set()
        self.touched: dict[tuple[str, str], Change] = {}
        self.ends: list[tuple[Change, Verdict, int | None]] = []
        self._before = {key: state.revision for key, state in states.items()}
        self.absent = sorted({change.key for change in changes} - states.keys())
        for key in self.absent:
            states[key] = RecordState()
        self._judge_changes(changes, rules)

    @property
    def changed(self) -> list[str]:
        """Keys of records that were here and have another revision now, sorted."""
        return sorted(key for key, revision in self._before.items() if self.states[key].revision != revision)

    def forget_keys(self, keys: set[str]) -> None:
        """Takes back what was judged of these keys, which were taken for absent."""
        self.absent = [key for key in self.absent if key not in keys]
        self.arrived -= keys
        self.touched = {place: change for place, change in self.touched.items() if change.key not in keys}
        self.ends = [end for end in self.ends if end[0].key not in keys]

    def _judge_changes(self, changes: Sequence[Change], rules: Rules) -> None:
        queue = deque(in_order(changes, rules))
        early: dict[str, list[Change]] = defaultdict(list)
        while queue:
            change = queue.popleft()
            state = self.states[change.key]
            was_here = rules.owner in state.parts
            verdict = decide(state, change, rules)
            if state.parts.get(change.part) is change.stamp:
                self.touched[change.key, change.part] = change
            if not was_here and rules.owner in state.parts:
                self.arrived.add(change.key)
                queue.extend(early.pop(change.key, ()))
            if verdict is Verdict.MISSING:
                early[change.key].append(change)
                continue
            holds = verdict in (Verdict.ACCEPTED, Verdict.KEPT, Verdict.DUPLICATE)
            self.ends.append((change, verdict, state.revision if holds else None))
        self.ends += [(change, Verdict.MISSING, None) for waiting in early.values() for change in waiting]


def _find_missing_parts(state: RecordState, rules: Rules) -> frozenset[str]:
    return frozenset() if state.ready or rules.owner not in state.parts else rules.required - state.parts.keys()


def in_order(changes: Iterable[Change], rules: Rules) -> list[Change]:
    """The owner's changes first, and the oldest of them first; of equal versions in the order of their arrival."""
    return sorted(
        changes,
        key=lambda change: (
            change.part != rules.owner,
            change.stamp.epoch,
            change.stamp.version,
            change.stamp.order,
            change.stamp.content_hash,
        ),
    )


def _lock_records(connection: Connection, entity: str, keys: list[str], lag: float) -> dict[str, RecordState]:
    """The records that are here, held until the transaction ends."""
    present = {
        row.key: RecordState(row.revision, row.group_key, row.deleted, row.ready)
        for row in run(connection, queries.LOCK_RECORDS, entity=entity, keys=keys)
    }
    if present:
        for row in run(connection, queries.SELECT_STAMPS, entity=entity, keys=sorted(present), lag=lag):
            present[row.key].parts[row.part] = stamp_of(row)
            if row.settled:
                present[row.key].settled |= {row.part}
    return present


def learn_bounds(connection: Connection, entity: str, changes: Sequence[Change]) -> None:
    """Learns what streams recorded since reads of their parts began: with the records locked, so that it stays true."""
    read = [(change, change.bounds.noted) for change in changes if change.bounds is not None]
    if not read:
        return
    rows = run(
        connection,
        queries.SELECT_READ_BOUNDS,
        entity=entity,
        key=[change.key for change, _ in read],
        part=[change.part for change, _ in read],
        noted=[noted for _, noted in read],
    )
    known = {(row.key, row.part, row.noted): row for row in rows}
    for change, noted in read:
        row = known[change.key, change.part, noted]
        change.bounds = ReadBounds(noted, row.number, row.recorded_whole, row.recorded_thin)


def _insert_records(connection: Connection, entity: str, batch: _JudgedChanges, priority: int) -> set[str]:
    """Makes the records that are not here; returns the keys of those that another transaction made meanwhile.

    A record of which nothing came is made, too, and dropped again: whoever brings it waits until then, and so learns of
    the events that wait for it.
    """
    if not batch.absent:
        return set()
    made = run(connection, queries.INSERT_RECORDS, priority=priority, **_record_columns(entity, batch, batch.absent))
    _insert_new_groups(connection, entity, batch, batch.absent)
    return set(batch.absent) - {row.key for row in made}


def _write_parts(connection: Connection, entity: str, changes: Iterable[Change]) -> None:
    rows = sorted(changes, key=lambda change: (change.key, change.part))
    if rows:
        run(
            connection,
            queries.WRITE_PARTS,
            entity=entity,
            key=[row.key for row in rows],
            part=[row.part for row in rows],
            epoch=[row.stamp.epoch for row in rows],
            version=[row.stamp.version for row in rows],
            read_sequence=[row.stamp.read_sequence for row in rows],
            seq=[row.stamp.seq for row in rows],
            inferred=[row.stamp.inferred for row in rows],
            content_hash=[row.stamp.content_hash for row in rows],
            deleted=[row.deleted for row in rows],
            data=[to_jsonb({} if row.deleted else row.data or {}) for row in rows],
        )


def _write_records(connection: Connection, entity: str, batch: _JudgedChanges, priority: int) -> None:
    if keys := batch.changed:
        run(connection, queries.WRITE_RECORDS, priority=priority, **_record_columns(entity, batch, keys))
        _insert_new_groups(connection, entity, batch, keys)


def _record_columns(entity: str, batch: _JudgedChanges, keys: Sequence[str]) -> dict[str, object]:
    states = [batch.states[key] for key in keys]
    return {
        "entity": entity,
        "key": list(keys),
        "group_key": [state.group for state in states],
        "revision": [state.revision for state in states],
        "deleted": [state.deleted for state in states],
        "ready": [state.ready for state in states],
    }


def _insert_new_groups(connection: Connection, entity: str, batch: _JudgedChanges, keys: Sequence[str]) -> None:
    groups = sorted({group for key in keys if (group := batch.states[key].group)})
    if groups:
        run(connection, queries.INSERT_NEW_GROUPS, entity=entity, groups=groups)

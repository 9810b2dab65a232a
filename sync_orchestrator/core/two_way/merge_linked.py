"""Merges the shared fields of linked records, in the transaction that archived a change of one of them.

One merge at a time of two entities, by an advisory lock: whoever links records or merges them sees all that was linked
and merged before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.two_way import queries
from sync_orchestrator.core.two_way.conflict_log import ConflictLog, NewConflict
from sync_orchestrator.core.two_way.known_state import (
    SideRead,
    find_current_values,
    list_agreed_values,
    list_ended_calls,
    list_sent_values,
)
from sync_orchestrator.core.two_way.linking import Linker
from sync_orchestrator.core.two_way.records import SideRecord, SideRecords
from sync_orchestrator.core.two_way.rules import Side, TwoWay
from sync_orchestrator.core.two_way.three_way import (
    Conflict,
    FieldDecision,
    FieldState,
    SideValue,
    Winner,
    merge_field,
    same,
)
from sync_orchestrator.errors import MappingFailed

if TYPE_CHECKING:
    from sqlalchemy import Connection

_LIVE = 0

_STAYS = "the other side's record stays as it is"

_DELETION_DECIDED = "@deleted"
"""In what is known of a link's fields: a person has decided to follow the deletion of a record with these values."""


@dataclass(slots=True)
class RecordPair:
    """A linked pair of records, and what is known of its shared fields."""

    key: str
    theirs_key: str
    ended: str | None
    fields: dict[str, FieldState]

    @classmethod
    def of_row(cls, row: Any) -> RecordPair:
        """The link of a row of ``sync.links``."""
        return cls(row.key, row.theirs_key, row.ended, {name: _read_state(state) for name, state in row.fields.items()})

    def to_stored_fields(self) -> Json:
        """What is known of the shared fields, as it is stored."""
        return {name: _write_state(state) for name, state in self.fields.items()}


def merge_linked(
    connection: Connection, two_way: TwoWay, entity: str, keys: Iterable[str], *, priority: int = _LIVE
) -> None:
    """Links records of one side where that is possible, and merges the shared fields of those that are linked.

    Args:
        connection: The transaction that has archived changes of these records, under the advisory lock.
        two_way: The rules.
        entity: The entity of the records.
        keys: Their keys.
        priority: That of the pushes that follow; by default that of live changes.
    """
    _Merge(connection, two_way, entity).run(sorted(set(keys)), priority)


def decide_deletion(connection: Connection, two_way: TwoWay, key: str, winner: Winner) -> None:
    """Carries out what a person has decided about the deletion of a linked record; the caller holds the lock.

    Args:
        connection: The transaction.
        two_way: The rules.
        key: The key of our record.
        winner: The side that has deleted the record, which the other one follows; or the other side, from which it is
            made again.
    """
    _Merge(connection, two_way, two_way.ours.entity).decide_deletion(key, winner)


class _Merge:
    """One merge: the records of both sides, the links between them, and what becomes of them."""

    def __init__(self, connection: Connection, two_way: TwoWay, entity: str) -> None:
        own, other = two_way.both_sides(entity)
        self._connection = connection
        self._two_way = two_way
        self._is_ours = own is two_way.ours
        self._own = SideRecords(connection, own)
        self._other = SideRecords(connection, other)
        self._ours, self._theirs = (self._own, self._other) if self._is_ours else (self._other, self._own)
        self._links: dict[str, RecordPair] = {}
        self._stored: dict[str, list[object]] = {}
        self._ended_links: list[str] = []
        self._log = ConflictLog(connection, two_way.ours.entity)

    def run(self, keys: Sequence[str], priority: int) -> None:
        self._own.load(keys)
        self._load_links(keys)
        self._link_new([record for key, record in self._own.found.items() if self._find_link(key) is None])
        self._other.load(link.theirs_key if self._is_ours else link.key for link in self._links.values())
        self._log.load(sorted(self._links))
        for link in self._links.values():
            ours, theirs = self._ours.found.get(link.key), self._theirs.found.get(link.theirs_key)
            if ours is None or theirs is None:
                continue
            if link.ended is None:
                self._merge_pair(link, ours, theirs)
            else:
                self._keep_apart(link, ours, theirs)
        self._write(priority)

    def _load_links(self, keys: Sequence[str]) -> None:
        query = queries.SELECT_LINKS_OF_OURS if self._is_ours else queries.SELECT_LINKS_OF_THEIRS
        for row in run(self._connection, query, entity=self._two_way.ours.entity, keys=list(keys)):
            self._links[row.key] = RecordPair.of_row(row)
            self._stored[row.key] = [row.fields, row.ended]
        self._by_theirs = {link.theirs_key: link for link in self._links.values()}

    def _find_link(self, key: str) -> RecordPair | None:
        return self._links.get(key) if self._is_ours else self._by_theirs.get(key)

    def _link_new(self, records: Sequence[SideRecord]) -> None:
        self._forget_natural_keys([record.key for record in records if record.is_deleted])
        alive = [record for record in records if not record.is_deleted and self._own.side.owner in record.parts]
        if not alive:
            return
        linker = Linker(self._connection, self._two_way, self._own.side, self._other.side)
        made = linker.link(alive)
        for new in linker.new:
            self._links[new.key] = RecordPair(new.key, new.theirs_key, None, {})
        for record in made:
            self._offer_alone(record)
        waiting = linker.waits.keys()
        for record in alive:
            if record.key in waiting:
                self._own.withhold(record)

    def _offer_alone(self, record: SideRecord) -> None:
        """A record that the other side does not have is made there with our side's values."""
        try:
            values = self._read_values(self._own.side, record)
        except MappingFailed:
            self._own.withhold(record)
            return
        self._own.offer_values(record, values, seen={}, own=values)

    def _merge_pair(self, link: RecordPair, ours: SideRecord, theirs: SideRecord) -> None:
        if not self._two_way.has_same_keys:
            self._ours.note_id(ours, link.theirs_key)
            self._theirs.note_id(theirs, link.key)
        if ours.is_deleted and theirs.is_deleted:
            self._end_link(link)
            return
        try:
            values = self._merge_fields(link, ours, theirs)
        except MappingFailed:
            self._ours.withhold(ours)
            self._theirs.withhold(theirs)
            return
        if ours.is_deleted or theirs.is_deleted:
            link.fields |= values.noted
            self._follow_deletion(link, ours, theirs, values)
            return
        for conflict in values.conflicts:
            self._log.note(conflict)
        self._log.end_others(link.key, {conflict.field for conflict in values.conflicts if conflict.winner is None})
        link.fields = values.states
        self._ours.offer_values(ours, values.to_theirs, seen=values.theirs_now, own=values.ours_now)
        self._theirs.offer_values(theirs, values.to_ours, seen=values.ours_now, own=values.theirs_now)
        for side, record in ((self._ours, ours), (self._theirs, theirs)):
            side.look_first(record)

    def _merge_fields(self, link: RecordPair, ours: SideRecord, theirs: SideRecord) -> _Values:
        two_way, states = self._two_way, dict(link.fields)
        self._note_acknowledged(states, ours, theirs)
        ours_now = self._find_current(two_way.ours, ours, theirs)
        theirs_now = self._find_current(two_way.theirs, theirs, ours)
        ours_at, theirs_at = _time_of(two_way.ours, ours), _time_of(two_way.theirs, theirs)
        values = _Values(ours_now, theirs_now, dict(states))
        for name, policy in two_way.fields.items():
            # A push of theirs carries values to our side, and one of ours to theirs.
            merged = merge_field(
                SideValue(ours_now[name], list_sent_values(name, theirs.calls), ours_at),
                SideValue(theirs_now[name], list_sent_values(name, ours.calls), theirs_at),
                states.get(name, FieldState()),
                policy,
                first=two_way.first,
                skew=two_way.skew,
            )
            values.to_ours[name], values.to_theirs[name] = merged.to_ours, merged.to_theirs
            values.states[name] = merged.state
            if merged.conflict is not None:
                values.conflicts.append(
                    _build_conflict(link, ours, name, str(policy), merged.conflict, ours_at, theirs_at)
                )
        return values

    def _note_acknowledged(self, states: dict[str, FieldState], ours: SideRecord, theirs: SideRecord) -> None:
        """What acknowledged calls carried is agreed where both sides have had it."""
        for name, value in list_agreed_values(ours.calls, theirs.calls):
            if name in self._two_way.fields:
                states[name] = states.get(name, FieldState()).note_agreed(value)
        for side, record in ((self._ours, ours), (self._theirs, theirs)):
            new = [call for call in record.calls if call.acknowledged is not None and not call.is_merged]
            side.note_merged(record, new)

    def _find_current(self, side: Side, record: SideRecord, pushed_by: SideRecord) -> dict[str, object]:
        """The values that a side has now; ``pushed_by`` is the other side's record, whose pushes change them."""
        shown = self._read_values(side, record)
        part = record.parts[side.owner]
        read = SideRead(part.read_sequence, part.archived_at)
        current = find_current_values(shown, read, pushed_by.calls, side.read_lag)
        in_flight = {call.token for call in pushed_by.calls if call.token == pushed_by.token or pushed_by.may_land}
        pushes = self._theirs if side is self._two_way.ours else self._ours
        if record.token is not None:
            return current  # what the push under way brings is agreed where a call that is known has brought it, too
        pushes.end_calls(pushed_by, list_ended_calls(pushed_by.calls, read, side.read_lag, in_flight=in_flight))
        return current

    def _read_values(self, side: Side, record: SideRecord) -> dict[str, object]:
        """The values of the shared fields that a side has shown. Raises MappingFailed."""
        if record.is_deleted:
            return dict.fromkeys(self._two_way.fields)
        parts = {name: part.data for name, part in record.parts.items()}
        return side.shared.build_payload(record.key, record.group, parts)

    # Deletions -------------------------------------------------------------------------------------------------------

    def _follow_deletion(self, link: RecordPair, ours: SideRecord, theirs: SideRecord, values: _Values) -> None:
        is_ours_gone = ours.is_deleted
        (deleted, of_deleted), (left, of_left) = self._split_by_deletion(ours, theirs)
        policy = of_deleted.side.deletes
        of_left.withhold(left)
        if policy == "ignore":
            link.ended = f"deleted on {'our' if is_ours_gone else 'their'} side; {_STAYS}"
            of_deleted.stop_deletion(deleted, "discarded", f"not followed (deletes: ignore); {_STAYS}")
            self._log.end_others(link.key, set())
            return
        if policy == "restore":
            self._log.end_others(link.key, set())
            self._restore(link, deleted, of_deleted, left, of_left)
            return
        now = values.theirs_now if is_ours_gone else values.ours_now
        decided = link.fields.pop(_DELETION_DECIDED, None)
        if decided is not None and same(decided.agreed, dict(now)):
            link.fields[_DELETION_DECIDED] = decided
            return
        if policy == "follow" and decided is None and not self._has_changed(link, now, deleted):
            of_deleted.note_seen(deleted, now)
            return
        # Nothing is left to decide about single fields. A question that is open already stays, unless the record that
        # is left has changed since: then it is asked anew, so that nobody decides about what was not shown.
        self._log.end_others(link.key, {None}, "overtaken")
        if deleted.stopped in (None, "on_hold") and deleted.revision != deleted.applied_revision:
            of_deleted.stop_deletion(deleted, "on_hold", _build_question(policy))
            self._log.note(
                NewConflict(
                    link.key, link.theirs_key, ours.group, None, None,
                    None if is_ours_gone else values.ours_now,
                    values.theirs_now if is_ours_gone else None,
                    None, None, policy, None,
                )
            )  # fmt: skip

    def _split_by_deletion(
        self, ours: SideRecord, theirs: SideRecord
    ) -> tuple[tuple[SideRecord, SideRecords], tuple[SideRecord, SideRecords]]:
        """The record that was deleted and the one that is left, each with its side."""
        pair = (ours, self._ours), (theirs, self._theirs)
        return pair if ours.is_deleted else pair[::-1]

    def decide_deletion(self, key: str, winner: Winner) -> None:
        self._own.load([key])
        self._load_links([key])
        link = self._links[key]
        self._other.load([link.theirs_key])
        self._log.load([key])
        ours, theirs = self._ours.found[key], self._theirs.found[link.theirs_key]
        is_ours_gone = ours.is_deleted
        (deleted, of_deleted), (left, of_left) = self._split_by_deletion(ours, theirs)
        if (winner is Winner.OURS) == is_ours_gone:
            now = self._find_current(of_left.side, left, deleted)
            link.fields[_DELETION_DECIDED] = FieldState(True, now)
            of_deleted.note_seen(deleted, now)
            of_deleted.release_deletion(deleted)
        else:
            self._restore(link, deleted, of_deleted, left, of_left)
        self._log.forget_open(key)
        self._write(_LIVE)

    def _restore(
        self, link: RecordPair, deleted: SideRecord, of_deleted: SideRecords, left: SideRecord, of_left: SideRecords
    ) -> None:
        """Makes the deleted record again from the other one: they are no longer linked, and that one is made anew."""
        of_deleted.stop_deletion(deleted, "discarded", "made again from the other side's record")
        self._ended_links.append(link.key)
        for side, record in ((of_deleted, deleted), (of_left, left)):
            self._run_forget(side.side.entity, [record.key])
        of_left.forget_other_side(left)
        try:
            own = self._read_values(of_left.side, left)
            of_left.offer_values(left, own, seen={}, own=own)
        except MappingFailed:
            of_left.withhold(left)

    def _keep_apart(self, link: RecordPair, ours: SideRecord, theirs: SideRecord) -> None:
        """Neither record follows the other any more: no change and no deletion of one goes to the other."""
        if ours.is_deleted and theirs.is_deleted:
            self._end_link(link)
            return
        self._log.end_others(link.key, set())
        for side, record in ((self._ours, ours), (self._theirs, theirs)):
            if not record.is_deleted:
                side.withhold(record)
            elif record.revision != record.applied_revision:
                side.stop_deletion(record, "discarded", f"not followed: {link.ended}")

    def _has_changed(self, link: RecordPair, now: Mapping[str, object], deleted: SideRecord) -> bool:
        """Whether a person has changed a shared field of the record that is left since both sides agreed."""
        return any(
            state.is_agreed
            and not same(now[name], state.agreed)
            and not any(same(now[name], sent) for sent in list_sent_values(name, deleted.calls))
            for name, state in link.fields.items()
            if name in now
        )

    def _end_link(self, link: RecordPair) -> None:
        self._ended_links.append(link.key)
        self._log.end_others(link.key, set())
        for side, key in ((self._ours, link.key), (self._theirs, link.theirs_key)):
            self._run_forget(side.side.entity, [key])

    def _forget_natural_keys(self, keys: Sequence[str]) -> None:
        if keys:
            self._run_forget(self._own.side.entity, keys)

    def _run_forget(self, entity: str, keys: Sequence[str]) -> None:
        run(self._connection, queries.DELETE_MATCH_VALUES, entity=entity, keys=list(keys), all=True)
        run(self._connection, queries.DELETE_WAITS, entity=entity, keys=list(keys))

    def _write(self, priority: int) -> None:
        ended = set(self._ended_links)
        self._log.write()
        for side in (self._ours, self._theirs):
            side.write(priority)
        entity = self._two_way.ours.entity
        kept = [(link, link.to_stored_fields()) for key, link in sorted(self._links.items()) if key not in ended]
        changed = [
            (link, fields) for link, fields in kept if not same(self._stored.get(link.key), [fields, link.ended])
        ]
        if changed:
            run(
                self._connection,
                queries.WRITE_LINKS,
                entity=entity,
                key=[link.key for link, _ in changed],
                fields=[to_jsonb(fields) for _, fields in changed],
                ended=[link.ended for link, _ in changed],
            )
        if ended:
            run(self._connection, queries.DELETE_LINKS, entity=entity, keys=sorted(ended))


class _Values:
    """The merge of one pair: what both sides have now, what each is to have, and what is known from now on."""

    def __init__(
        self, ours_now: Mapping[str, object], theirs_now: Mapping[str, object], noted: dict[str, FieldState]
    ) -> None:
        self.ours_now, self.theirs_now, self.noted = ours_now, theirs_now, noted
        self.to_ours: dict[str, object] = {}
        self.to_theirs: dict[str, object] = {}
        self.states: dict[str, FieldState] = {}
        self.conflicts: list[NewConflict] = []


def _time_of(side: Side, record: SideRecord) -> int | None:
    return record.parts[side.owner].version if side.has_times else None


def _build_conflict(
    link: RecordPair,
    ours: SideRecord,
    field: str,
    policy: str,
    conflict: Conflict,
    ours_at: int | None,
    theirs_at: int | None,
) -> NewConflict:
    return NewConflict(
        link.key,
        link.theirs_key,
        ours.group,
        field,
        conflict.agreed,
        conflict.ours,
        conflict.theirs,
        ours_at,
        theirs_at,
        policy,
        conflict.winner,
    )


def _build_question(policy: str) -> str:
    why = "a person decides about deletions (deletes: ask)" if policy == "ask" else "the other side has changed it"
    return f"its deletion waits: {why}. See `sync-orchestrator conflicts list`"


def _read_state(stored: Json) -> FieldState:
    decided = stored.get("decision")
    return FieldState(
        is_agreed="agreed" in stored,
        agreed=stored.get("agreed"),
        decision=None if decided is None else FieldDecision(decided["ours"], decided["theirs"], decided["value"]),
    )


def _write_state(state: FieldState) -> Json:
    stored: Json = {"agreed": state.agreed} if state.is_agreed else {}
    if state.decision is not None:
        decision = state.decision
        stored["decision"] = {"ours": decision.ours, "theirs": decision.theirs, "value": decision.value}
    return stored

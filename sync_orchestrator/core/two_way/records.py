"""The records of one side during a merge: what is known of each, and what the merge writes down of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.two_way import queries
from sync_orchestrator.core.two_way.known_state import SharedCall
from sync_orchestrator.core.two_way.rules import OWN, SEEN, Side
from sync_orchestrator.core.two_way.three_way import same
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.expressions.mapping_columns import AGREED

if TYPE_CHECKING:
    from sqlalchemy import Connection


@dataclass(frozen=True, slots=True)
class StoredPart:
    """One part of a record, as it is archived; ``archived_at`` in seconds since 1970."""

    version: int
    read_sequence: int
    archived_at: float
    data: Json


@dataclass(slots=True)
class SideRecord:
    """A record of one side.

    Attributes:
        is_in_sync: What the other side acknowledged is its present revision, and no call is under way.
        token: The token of the push that is under way; None where none is.
        may_land: A call of unknown outcome may still land.
        calls: Pushes of it that carried shared fields.
    """

    key: str
    group: str | None
    is_deleted: bool
    is_ready: bool
    revision: int
    applied_revision: int
    applied_digest: bytes | None
    token: int | None
    may_land: bool
    external_id: str | None
    stopped: str | None
    parts: dict[str, StoredPart] = field(default_factory=dict)
    calls: list[SharedCall] = field(default_factory=list)

    @property
    def is_in_sync(self) -> bool:
        """Whether the other side has its present revision, as far as is known."""
        is_quiet = self.token is None and not self.may_land
        return is_quiet and self.is_ready and self.revision == self.applied_revision and self.applied_digest is not None

    @property
    def agreed(self) -> Json | None:
        """The merged values that are archived, with those that the other side had; None before the first merge."""
        part = self.parts.get(AGREED)
        return None if part is None else part.data

    def document(self, agreed: Json) -> dict[str, object]:
        """Its parts as a mapping reads them, with other merged values."""
        return {**{name: part.data for name, part in self.parts.items()}, AGREED: agreed}


@dataclass(slots=True)
class _Write:
    """What is written down of one record; None and False change nothing."""

    is_ready: bool
    steps: bool = False
    is_there: bool = False
    digest: bytes | None = None
    external_id: str | None = None
    looks: bool = False
    wakes: bool = False


class SideRecords:
    """Records of one side, locked in the caller's transaction; ``write`` writes down what was decided about them."""

    def __init__(self, connection: Connection, side: Side) -> None:
        self.side = side
        self.found: dict[str, SideRecord] = {}
        self._connection = connection
        self._agreed: dict[str, Json] = {}
        self._without_agreed: set[str] = set()
        self._writes: dict[str, _Write] = {}
        self._stopped: dict[str, tuple[str, str]] = {}
        self._released: set[str] = set()
        self._forgotten: set[str] = set()
        self._merged_calls: list[tuple[str, int]] = []
        self._ended_calls: list[tuple[str, int]] = []

    def load(self, keys: Iterable[str]) -> None:
        """Locks and reads records; keys of which the archive has nothing are left out."""
        wanted = sorted(set(keys) - self.found.keys())
        if not wanted:
            return
        entity = self.side.entity
        for row in run(self._connection, queries.LOCK_RECORDS, entity=entity, keys=wanted):
            self.found[row.key] = SideRecord(
                key=row.key,
                group=row.group_key,
                is_deleted=row.deleted,
                is_ready=row.ready,
                revision=row.revision,
                applied_revision=row.applied_revision,
                applied_digest=None if row.applied_digest is None else bytes(row.applied_digest),
                token=row.lease_token,
                may_land=row.is_outcome_unknown,
                external_id=row.external_id,
                stopped=row.stopped,
            )
        here = sorted(self.found.keys() & set(wanted))
        for row in run(self._connection, queries.SELECT_PARTS, entity=entity, keys=here):
            self.found[row.key].parts[row.part] = StoredPart(row.version, row.read_sequence, row.archived_at, row.data)
        for row in run(self._connection, queries.SELECT_CALLS, entity=entity, keys=here):
            self.found[row.key].calls.append(call_of_row(row))

    def offer_values(
        self,
        record: SideRecord,
        values: Mapping[str, object],
        *,
        seen: Mapping[str, object],
        own: Mapping[str, object],
    ) -> None:
        """Notes the values of the shared fields that the other side is to have, those that it has, and this side's.

        A record that was in sync stays so where the other side has them already. Where it has others, it is out of
        sync, whatever was acknowledged before.
        """
        data = {**values, SEEN: dict(seen), OWN: dict(own)}
        before = record.agreed
        is_ready = self._has_required_parts(record)
        write = self._writes.setdefault(record.key, _Write(record.is_ready))
        write.is_ready = is_ready
        if before is None or not same(before, data):
            self._agreed[record.key] = data
        if before is None or not record.is_ready:
            write.steps = record.token is not None or record.revision == record.applied_revision
            return
        changed = [name for name, value in values.items() if name not in before or not same(before[name], value)]
        differs = bool(seen) and any(name in seen and not same(seen[name], value) for name, value in values.items())
        if record.is_in_sync and seen:
            if not changed and not differs:
                return
            there = self._digest_of(record, {**values, **seen})
            wanted = self._digest_of(record, data)
            write.digest, write.is_there = there, there == wanted
            write.steps = not write.is_there or wanted != record.applied_digest
            return
        write.wakes = record.key in self._agreed  # it may have waited for just this
        if differs and record.token is None and record.applied_digest is not None:
            write.digest = self._digest_of(record, {**values, **seen})
        if changed or differs:
            write.steps = record.token is not None or record.revision == record.applied_revision

    def note_seen(self, record: SideRecord, seen: Mapping[str, object]) -> None:
        """Notes the values that the other side has: with others, the deletion of this record is not sent."""
        if record.agreed is not None and not same(record.agreed.get(SEEN), dict(seen)):
            self._agreed[record.key] = {**record.agreed, SEEN: dict(seen)}

    def withhold(self, record: SideRecord) -> None:
        """Keeps a record from being pushed until its values are offered again."""
        if record.agreed is not None:
            self._without_agreed.add(record.key)
        self._writes.setdefault(record.key, _Write(False)).is_ready = False

    def note_id(self, record: SideRecord, external_id: str) -> None:
        """Notes under which id the other side has a record, which is looked at before it is written."""
        if record.external_id == external_id:
            return
        write = self._writes.setdefault(record.key, _Write(record.is_ready))
        write.external_id, write.looks = external_id, True

    def look_first(self, record: SideRecord) -> None:
        """Has the next push look at what the other side has before anything is written."""
        if record.applied_digest is None:
            self._writes.setdefault(record.key, _Write(record.is_ready)).looks = True

    def stop_deletion(self, record: SideRecord, stopped: str, error: str) -> None:
        """Keeps a deletion from the other side: ``on_hold`` until a person decides, ``discarded`` for good."""
        if record.stopped != stopped:
            self._stopped[record.key] = stopped, error

    def release_deletion(self, record: SideRecord) -> None:
        """Lets a deletion that was on hold go to the other side."""
        self._released.add(record.key)

    def forget_other_side(self, record: SideRecord) -> None:
        """Has a record made on the other side again."""
        self._forgotten.add(record.key)
        record.external_id, record.applied_digest = None, None

    def note_merged(self, record: SideRecord, calls: Sequence[SharedCall]) -> None:
        """Notes calls whose values both sides have had."""
        self._merged_calls += [(record.key, call.token) for call in calls]

    def end_calls(self, record: SideRecord, calls: Sequence[SharedCall]) -> None:
        """Forgets calls of which everything has been seen."""
        self._ended_calls += [(record.key, call.token) for call in calls]

    def write(self, priority: int) -> None:
        """Writes down what was decided."""
        entity, connection = self.side.entity, self._connection
        if self._without_agreed:
            run(connection, queries.DELETE_AGREED_PARTS, entity=entity, keys=sorted(self._without_agreed))
        if self._agreed:
            rows = sorted(self._agreed.items())
            run(
                connection,
                queries.WRITE_AGREED_PARTS,
                entity=entity,
                key=[key for key, _ in rows],
                content_hash=[compute_digest(data) for _, data in rows],
                data=[to_jsonb(data) for _, data in rows],
            )
        if self._forgotten:
            run(connection, queries.FORGET_OTHER_SIDE, entity=entity, keys=sorted(self._forgotten))
        self._write_records(priority)
        if self._stopped:
            stopped = sorted(self._stopped.items())
            run(
                connection,
                queries.STOP_DELETIONS,
                entity=entity,
                key=[key for key, _ in stopped],
                stopped=[state for _, (state, _) in stopped],
                error=[error for _, (_, error) in stopped],
            )
        if self._released:
            run(connection, queries.RELEASE_DELETIONS, entity=entity, keys=sorted(self._released))
        for query, calls in (
            (queries.MARK_CALLS_MERGED, self._merged_calls),
            (queries.DELETE_CALLS, self._ended_calls),
        ):
            if calls:
                run(
                    connection,
                    query,
                    entity=[entity] * len(calls),
                    key=[key for key, _ in calls],
                    token=[token for _, token in calls],
                )

    def _write_records(self, priority: int) -> None:
        rows = sorted(
            (key, write)
            for key, write in self._writes.items()
            if write.steps
            or write.is_there
            or write.looks
            or write.wakes
            or write.digest is not None
            or write.external_id is not None
            or write.is_ready != self.found[key].is_ready
        )
        if rows:
            run(
                self._connection,
                queries.WRITE_RECORDS,
                entity=self.side.entity,
                priority=priority,
                key=[key for key, _ in rows],
                ready=[write.is_ready for _, write in rows],
                steps=[write.steps for _, write in rows],
                is_there=[write.is_there for _, write in rows],
                digest=[write.digest for _, write in rows],
                external_id=[write.external_id for _, write in rows],
                looks=[write.looks for _, write in rows],
                wakes=[write.wakes for _, write in rows],
            )

    def _has_required_parts(self, record: SideRecord) -> bool:
        return record.is_deleted or self.side.required <= record.parts.keys()

    def _digest_of(self, record: SideRecord, agreed: Json) -> bytes:
        mapping = self.side.mapping
        return mapping.digest_of_ours(mapping.build_payload(record.key, record.group, record.document(agreed)))


def call_of_row(row: Any) -> SharedCall:
    """The call of a row of ``sync.shared_calls``."""
    return SharedCall(
        token=row.token,
        carried=row.carried,
        before=row.before,
        own=row.own,
        acknowledged=row.acknowledged,
        acknowledged_at=row.acknowledged_at,
        is_merged=row.merged,
    )

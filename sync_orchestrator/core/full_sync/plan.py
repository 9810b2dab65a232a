"""What a full sync of a business group would do, found out by reading alone: nothing is written anywhere.

The sources are read and merged in memory by the rules that the archive follows, mapped, and compared with the third
party's listing. Memory is bounded by a group. Not here: the full sync (``full_sync.py``), a plan's file
(``plan_file.py``), how a plan is shown.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.archive.deletion_caps import reserve
from sync_orchestrator.core.archive.merge import in_order, stamp_of
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import as_bytes, run
from sync_orchestrator.core.full_sync import queries
from sync_orchestrator.core.full_sync.fill import Progress
from sync_orchestrator.core.full_sync.full_sync import known_groups
from sync_orchestrator.core.full_sync.source_listing import EXAMPLES, GroupReads
from sync_orchestrator.core.groups.lease import busy_text
from sync_orchestrator.core.ports import Found, Item, PartRead
from sync_orchestrator.core.push.decision import Situation, Step, plan
from sync_orchestrator.core.systems.breaker import closed_reason
from sync_orchestrator.core.values.identity import other_key
from sync_orchestrator.core.values.mapping import digest
from sync_orchestrator.core.values.places import differences_of_place
from sync_orchestrator.core.version_guard import Change, RecordState, Verdict, decide
from sync_orchestrator.errors import CallFailed, CannotPlan, GroupBusy, MappingFailed
from sync_orchestrator.texts.storable_text import text_problem

COUNTS = {
    "create": "made at the third party",
    "update": "changed there",
    "delete": "deleted there",
    "unchanged": "there as they should be",
    "moved": "gone to another business group",
    "over_cap": "not deleted, since too many would be or the listing is not proven complete",
    "duplicates": "of those created, how many have a key that is there already",
    "unusable": "parts that cannot be used",
    "behind": "shown by the source at an older version, with other content than the archive",
    "unmapped": "records that the mapping cannot turn into a payload",
    "incomplete": "without a required part, so not pushed",
    "on_hold": "on hold for an operator, so not pushed",
    "discarded": "given up by an operator, so not pushed until they change",
    "drift": "other there than acknowledged, which validation looks after",
    "unmanaged": "there without ever having been put there by us, left alone",
}
"""What a plan counts."""

WORRIES = ("over_cap", "duplicates", "unusable", "behind", "unmapped", "incomplete", "on_hold")
"""Counts for which a person should look before the full sync."""

_SAMPLES = 5
_FIELDS = 10


@dataclass(frozen=True, slots=True)
class Sample:
    """One planned action; ``fields`` has rows of field, ours, theirs."""

    key: str
    action: str
    fields: list[dict[str, Any]]


@dataclass(slots=True)
class GroupPlan:
    """What a full sync of a group would do; ``digest`` tells one set of actions and contents from another.

    ``counts`` by the names of COUNTS, those that are not zero. ``notes``: what a person should know.
    """

    entity: str
    group: str
    listed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def worries(self) -> bool:
        """Whether a person should look at it before the full sync."""
        return any(name in self.counts for name in WORRIES)


async def groups_to_plan(context: Context, entity: EntityContext) -> list[str]:
    """The business groups that a full sync of the entity would go through, sorted. Raises CannotPlan."""
    try:
        told = await entity.owner.groups() or []
    except CallFailed as failure:
        raise CannotPlan(f"'{entity.settings.owner}' cannot be asked for the business groups: {failure}") from None
    with context.engine.begin() as connection:
        return sorted({*told, *known_groups(connection, entity.name)})


async def ungrouped_notes(entity: EntityContext) -> list[str]:
    """What no plan of a business group shows: rows of the owner that have no group (rule 39)."""
    owner = entity.settings.owner
    try:
        found = await entity.owner.ungrouped()
    except CallFailed as failure:
        return [f"'{owner}' could not be asked for rows without a business group: {failure}"]
    if found is None or not found.count:
        return []
    return [
        f"{found.count} rows of '{owner}' have no business group and are mirrored nowhere, such as "
        + ", ".join(found.examples)
    ]


async def plan_group(
    context: Context,
    entity: EntityContext,
    group: str,
    *,
    allow_deletions: int | None = None,
    progress: Progress | None = None,
) -> GroupPlan:
    """What a full sync of the group would do now. ``allow_deletions`` raises the cap, as for the full sync.

    Raises CannotPlan where a source or the third party cannot be read, GroupBusy where a full sync is under way.
    """
    work = _Plan(context, entity, group, allow_deletions, progress or (lambda phase, count: None))
    await asyncio.to_thread(work.begin)
    try:
        await work.read()
        await work.delete()
    except CallFailed as failure:
        raise CannotPlan(f"its sources cannot be read: {failure.named()}") from None
    try:
        await work.compare()
    except CallFailed as failure:
        raise CannotPlan(f"the third party '{entity.system_name}' cannot be read: {failure}") from None
    return work.plan


@dataclass(slots=True)
class _Record:
    """A record as it would stand after the merge; ``row`` is how the archive has it now, if it does."""

    state: RecordState
    row: Any = None
    data: dict[str, Any] = field(default_factory=dict)
    deleted_parts: set[str] = field(default_factory=set)
    moved_parts: set[str] = field(default_factory=set)
    """Parts that changed in the archive since the reading began: a listing without them proves nothing."""
    announced_parts: set[str] = field(default_factory=set)
    """Parts whose deletion a recorded delete event announces: it is left to that event."""

    @property
    def out_of_sync(self) -> bool:
        applied = 0 if self.row is None else self.row.applied_revision
        outcome_unknown = self.row is not None and self.row.outcome_unknown_for is not None
        return self.state.ready and (applied != self.state.revision or outcome_unknown)


class _Plan:
    def __init__(
        self, context: Context, entity: EntityContext, group: str, allowed: int | None, tell: Progress
    ) -> None:
        self._engine: Engine = context.engine
        self._entity = entity
        self._group = group
        self._allowed = allowed
        self._tell = tell
        self._reads = GroupReads(context.engine, entity, group)
        self._since: Any = None
        self._number = 0
        self._changes: list[Change] = []
        self._flagged: dict[str, list[Change]] = defaultdict(list)
        self._listed: dict[str, set[str]] = defaultdict(set)
        self._records: dict[str, _Record] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        self._actions: list[list[str]] = []
        self.plan = GroupPlan(entity.name, group)

    # Reading ----------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Looks whether there is anything in the way."""
        with self._engine.begin() as connection:
            if (closed := closed_reason(connection, self._entity.system_name)) is not None:
                raise CannotPlan(f"{closed}: see `sync-orchestrator status`")
            row = run(connection, queries.PLAN_BUSY_LEASE, entity=self._entity.name, group=self._group)[0]
            if row.busy:
                raise GroupBusy(busy_text(connection, self._entity.name, self._group))
            self._since = row.now
            self._reads.begin(connection)

    async def read(self) -> None:
        """Reads the group from all sources, and merges it with what the archive has."""
        owner = self._entity.rules.owner
        number = self._number = await self._reads.read_sequence()
        async with aclosing(self._entity.owner.pages(self._group)) as pages:  # type: ignore[type-var]
            async for rows, _ in pages:
                others = await self._reads.others(rows)
                self._take(rows, owner, number)
                for part, found in others.items():
                    self._take(found, part, number)
                self._tell("read", len(self._listed[owner]))
                number = await self._reads.read_sequence()
        for part in self._reads.listed_parts():
            number = await self._reads.read_sequence()
            async with aclosing(self._entity.sources[part].pages(self._group)) as pages:  # type: ignore[type-var]
                async for rows, _ in pages:
                    self._take(rows, part, number)
                    number = await self._reads.read_sequence()
        self.plan.listed = len(self._listed[owner])
        await asyncio.to_thread(self._merge)

    def _take(self, rows: Sequence[PartRead], part: str, number: int) -> None:
        self._changes += self._reads.changes(rows, part, number)
        self._listed[part].update(row.key for row in rows if text_problem(row.key) is None)

    def _merge(self) -> None:
        keys = sorted({change.key for change in self._changes})
        with self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            self._load(connection, keys)
        others: list[Change] = []
        for change in self._changes:
            (self._flagged[change.part] if change.stamp.inferred and self._is_alive(change) else others).append(change)
        self._decide(others)
        self._changes = []

    def _is_alive(self, change: Change) -> bool:
        """Whether a deletion would take something away."""
        record = self._records.get(change.key)
        return (
            record is not None
            and not record.state.deleted
            and change.part in record.state.parts
            and change.part not in record.deleted_parts
            and change.part not in record.announced_parts
        )

    def _load(self, connection: Connection, keys: list[str]) -> None:
        for row in run(connection, queries.PLAN_RECORDS, entity=self._entity.name, keys=keys, group=self._group):
            state = RecordState(row.revision, row.group_key, row.deleted, row.ready)
            self._records[row.key] = _Record(state, row)
        for part in run(
            connection,
            queries.PLAN_PARTS,
            entity=self._entity.name,
            keys=sorted(self._records),
            since=self._since,
            lag=self._entity.rules.lag,
        ):
            record = self._records[part.key]
            record.state.parts[part.part] = stamp_of(part)
            if part.settled:
                record.state.settled |= {part.part}
            record.data[part.part] = part.data
            if part.deleted:
                record.deleted_parts.add(part.part)
            if not part.unmoved:
                record.moved_parts.add(part.part)
            if part.announced:
                record.announced_parts.add(part.part)

    def _decide(self, changes: Sequence[Change]) -> None:
        """What ``archive.merge`` would do, without the writing."""
        for change in in_order(changes, self._entity.rules):
            record = self._records.setdefault(change.key, _Record(RecordState()))
            if decide(record.state, change, self._entity.rules) is Verdict.BEHIND:
                self._count("behind", change.key)
                self._note(f"{change.key!a}: '{change.part}' shows an older version with other content")
            if record.state.parts.get(change.part) is change.stamp:
                record.data[change.part] = {} if change.deleted else change.data or {}
                (record.deleted_parts.add if change.deleted else record.deleted_parts.discard)(change.part)

    # Deletions --------------------------------------------------------------------------------------------------------

    async def delete(self) -> None:
        """Finds what the sources no longer have: proven, capped, confirmed by key, as a full sync does."""
        unlisted = self._unlisted()
        size = sum(
            1 for record in self._records.values() if record.state.group == self._group and not record.state.deleted
        )
        parts = sorted(
            unlisted.keys() | {part for part, some in self._flagged.items() if some},
            key=lambda part: (part != self._entity.rules.owner, part),
        )
        confirmed: dict[str, list[Change]] = {}
        for part in parts:
            rows, flagged = unlisted.get(part, []), self._flagged[part]
            held = None
            if rows and self._reads.needs_count(part):
                held = await self._reads.incomplete(part, len(self._listed[part]), len(rows))
            held = held or self._reads.over_cap(part, len(rows) + len(flagged), size, self._allowed)
            if held is None:
                changes, _ = await self._reads.confirm(part, rows, self._number)
                confirmed[part] = [*changes, *flagged]
                gone = [
                    change for change in changes if change.stamp.inferred and change.stamp.read_sequence == self._number
                ]
                held = self._reads.outage(part, len(self._listed[part]), len(gone), size, self._allowed)
                held = held or await asyncio.to_thread(self._beyond_window, confirmed[part])
            if held is not None:
                self.plan.notes.append(f"deletions are held: {held}")
                for key in [*(key for key, _, _ in rows), *(change.key for change in flagged)]:
                    self._count("over_cap", key)
        if "over_cap" not in self._counts:
            for changes in confirmed.values():
                self._decide(changes)

    def _beyond_window(self, changes: Sequence[Change]) -> str | None:
        """Why so many deletions within the window are not made; nothing is counted by looking."""
        n = sum(1 for change in changes if change.stamp.inferred)
        with self._engine.connect() as connection, connection.begin() as looking:
            held = reserve(connection, self._entity, self._group, n, "unlisted", allowed=self._allowed)
            looking.rollback()
        return held

    def _unlisted(self) -> dict[str, list[tuple[str, int, int]]]:
        """Parts that are here and were not listed (key, epoch, version), the owner's first."""
        owner = self._entity.rules.owner
        flagged = {change.key for change in self._flagged[owner]}  # their other parts were not asked for
        found: dict[str, list[tuple[str, int, int]]] = {}
        for part in sorted(self._entity.sources, key=lambda part: (part != owner, part)):
            rows = [
                (key, record.state.parts[part].epoch, record.state.parts[part].version)
                for key, record in sorted(self._records.items())
                if record.state.group == self._group
                and not record.state.deleted
                and part in record.state.parts
                and part not in record.deleted_parts
                and part not in record.moved_parts
                and part not in record.announced_parts
                and key not in self._listed[part]
                and (part == owner or (key in self._listed[owner] and key not in flagged))
            ]
            if rows:
                found[part] = rows
        return found

    # Comparison -------------------------------------------------------------------------------------------------------

    async def compare(self) -> None:
        """Sets what would be pushed against what the third party shows."""
        there: dict[str | None, list[Found]] = defaultdict(list)
        listed = 0
        async for page in self._entity.third_party.pages(self._group):
            for found in page:
                there[found.key].append(found)
            listed += len(page)
            self._tell("compare", listed)
        await asyncio.to_thread(self._unmanaged, there)
        for key, record in sorted(self._records.items()):
            applied_here = record.row is not None and record.row.applied_group == self._group
            if record.state.group == self._group:
                self._judge(key, record, there.get(key) or await self._elsewhere(key, record))
            elif applied_here and record.out_of_sync:
                self._moves_away(key)
        self._end()

    def _unmanaged(self, there: dict[str | None, list[Found]]) -> None:
        unknown = sorted(key for key in there if key is not None and key not in self._records)
        with self._engine.begin() as connection:
            known = {
                row.key for row in run(connection, queries.PLAN_KNOWN_KEYS, entity=self._entity.name, keys=unknown)
            }
        for key in sorted({*unknown, *([None] if None in there else [])} - known, key=str):
            for found in there[key]:
                self._counts["unmanaged"] += 1
                self._sample("unmanaged", key or found.external_id, {}, found)

    async def _elsewhere(self, key: str, record: _Record) -> list[Found]:
        """A record that comes from another group, where it is under the same address there."""
        row = record.row
        if (
            row is None
            or row.applied_digest is None
            or not record.out_of_sync
            or self._moves_in(record)
            or (row.applied_group in (None, self._group))
        ):
            return []
        found = await self._entity.third_party.read(Item(key, row.applied_group, {}, row.external_id))
        return [found] if found is not None and other_key(key, found.key) is None else []

    def _moves_away(self, key: str) -> None:
        self._act("moved", key)
        if self._entity.third_party.capabilities.group_in_address:
            self._act("delete", key)

    def _judge(self, key: str, record: _Record, there: Sequence[Found]) -> None:
        """What the push of one record of the group would come to."""
        state = record.state
        if not state.ready:
            self._count("incomplete", key, not state.deleted)
            return
        try:
            payload = None if state.deleted else self._entity.mapping.payload(key, state.group, record.data)
            wanted = None if payload is None else self._entity.mapping.digest_of_ours(payload)
        except (MappingFailed, ValueError) as error:
            self._count("unmapped", key)
            self._note(f"{key!a}: {error}")
            return
        pushed = record.out_of_sync or self._mapped_otherwise(record, wanted)
        step = plan(self._situation(record, wanted), self._entity.third_party.capabilities) if pushed else None
        if step is not None and self._is_discarded(record):
            self._count("discarded", key)
        elif step is not None and self._stays_stopped(record, step):
            self._count("on_hold", key)
        elif step in (None, Step.NOTHING):
            self._in_sync(key, record, wanted, there)
        elif payload is None or wanted is None:
            if there:
                self._act("delete", key, theirs=there)
        else:
            self._written(key, record, step, payload, wanted, there)

    def _is_regrouped(self, record: _Record) -> bool:
        row, capabilities = record.row, self._entity.third_party.capabilities
        return (
            row is not None
            and capabilities.sends_group
            and not capabilities.group_in_address
            and not record.state.deleted
            and row.applied_digest is not None
            and row.applied_group is not None
            and row.applied_group != record.state.group
        )

    def _mapped_otherwise(self, record: _Record, wanted: bytes | None) -> bool:
        """By a mapping that has changed since the record was acknowledged (``remap.py``)."""
        applied = None if record.row is None else as_bytes(record.row.applied_digest)
        return applied is not None and wanted is not None and wanted != applied

    def _situation(self, record: _Record, wanted: bytes | None) -> Situation:
        row, moved = record.row, self._moves_in(record)
        known = row is not None
        return Situation(
            deleted=record.state.deleted,
            digest=wanted,
            applied_digest=as_bytes(row.applied_digest) if known else None,
            rejected_digest=None,  # a full sync tries again what was refused
            external_id=row.external_id if known and not moved else None,
            ever_applied=known and row.ever_applied,
            moved=moved,
            outcome_unknown_for=row.outcome_unknown_for if known else None,
            regrouped=self._is_regrouped(record),
        )

    def _moves_in(self, record: _Record) -> bool:
        row = record.row
        return (
            row is not None
            and self._entity.third_party.capabilities.group_in_address
            and row.applied_digest is not None
            and row.applied_group is not None
            and row.applied_group != record.state.group
        )

    def _is_discarded(self, record: _Record) -> bool:
        row = record.row
        return row is not None and row.stopped == "discarded" and row.revision == record.state.revision

    def _stays_stopped(self, record: _Record, step: Step) -> bool:
        """A full sync tries again what failed or was refused, but not what is on hold."""
        row = record.row
        unchanged = row is not None and row.revision == record.state.revision
        return step is Step.HOLD or (unchanged and row.stopped == "on_hold")

    def _in_sync(self, key: str, record: _Record, wanted: bytes | None, there: Sequence[Found]) -> None:
        """Nothing is pushed; what is otherwise there than acknowledged is validation's."""
        fits = not there if wanted is None else any(self._shown(record, found) == wanted for found in there)
        if wanted is not None or there:
            self._count("unchanged" if fits else "drift", key)

    def _written(
        self,
        key: str,
        record: _Record,
        step: Step | None,
        payload: dict[str, Any],
        wanted: bytes,
        there: Sequence[Found],
    ) -> None:
        if step is Step.CREATE and there and self._entity.third_party.capabilities.assigns_ids:
            self._count("duplicates", key)
            self._act("create", key, payload, wanted, there)
        elif not there:
            self._act("create", key, payload, wanted, there)
        elif self._shown(record, there[0]) == wanted and not self._is_regrouped(record):
            self._act("unchanged", key, payload, wanted, there)
        else:
            self._act("update", key, payload, wanted, there)

    def _shown(self, record: _Record, found: Found) -> bytes:
        return self._entity.digest_of_found(found, record.state.group)

    # Bookkeeping ------------------------------------------------------------------------------------------------------

    def _count(self, name: str, key: str, counts: bool = True) -> None:
        if counts:
            self._counts[name] += 1
            if name == "over_cap":
                self._actions.append([name, key])

    def _act(
        self,
        action: str,
        key: str,
        payload: dict[str, Any] | None = None,
        ours: bytes | None = None,
        theirs: Sequence[Found] = (),
    ) -> None:
        self._counts[action] += 1
        shown = self._entity.mapping.digest_of_theirs(theirs[0].fields) if theirs else None
        self._actions.append([action, key, (ours or b"").hex(), (shown or b"").hex()])
        if action in ("create", "update", "delete"):
            self._sample(action, key, payload or {}, theirs[0] if theirs else None)

    def _sample(self, action: str, key: str, ours: dict[str, Any], theirs: Found | None) -> None:
        if len(self._samples[action]) >= _SAMPLES:
            return
        shown = {} if theirs is None else theirs.fields
        rows = self._entity.mapping.differences(ours, shown)
        if action == "update" and theirs is not None:
            rows = [*self._differences_of_place(key, theirs), *rows]
        self._samples[action].append(Sample(key, action, rows[:_FIELDS]))

    def _differences_of_place(self, key: str, theirs: Found) -> list[dict[str, Any]]:
        record, capabilities = self._records[key], self._entity.third_party.capabilities
        if theirs.group is None and not capabilities.shows_group and self._is_regrouped(record):
            theirs = replace(theirs, group=record.row.applied_group)
        return differences_of_place(capabilities, group=record.state.group, external_id=None, found=theirs)

    def _note(self, note: str) -> None:
        if len(self.plan.notes) < EXAMPLES:
            self.plan.notes.append(note)

    def _end(self) -> None:
        if self._reads.unusable:
            self._counts["unusable"] = self._reads.unusable
        for problem in self._reads.problems:
            self._note(problem)
        if "duplicates" in self._counts:
            self._note(
                "records with these keys are there already: where the third party does not refuse a second one, "
                "creates make duplicates; third_party.lookup with search_first takes over what is there"
            )
        self.plan.counts = {name: self._counts[name] for name in COUNTS if self._counts[name]}
        self.plan.samples = [sample for samples in self._samples.values() for sample in samples]
        self.plan.digest = digest(sorted(self._actions)).hex()

"""The source side of a plan: the archive of a business group as a full sync would leave it, in memory."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextlib import aclosing
from datetime import datetime

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.archive.archived_records import stamp_of
from sync_orchestrator.core.archive.deletion_caps import reserve_deletions
from sync_orchestrator.core.archive.merge import in_order, learn_bounds
from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.full_sync import queries
from sync_orchestrator.core.full_sync.fill import Progress
from sync_orchestrator.core.full_sync.plan_draft import PlanDraft
from sync_orchestrator.core.full_sync.planned_record import ArchivedRecord, PlannedRecord
from sync_orchestrator.core.full_sync.source_listing import BegunRead, GroupReads
from sync_orchestrator.core.groups.lease import busy_text
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.systems.breaker import closed_reason
from sync_orchestrator.core.version_guard import Change, RecordState, Verdict, decide
from sync_orchestrator.errors import CannotPlan, GroupBusy
from sync_orchestrator.texts.storable_text import text_problem

_UnlistedPart = tuple[str, int, int]
"""Key, epoch and version."""


class PlannedArchive:
    """Reads a group's sources and merges them with the archive by the rules that the archive follows."""

    def __init__(
        self, engine: Engine, entity: EntityContext, group: str, draft: PlanDraft, allow_deletions: int | None
    ) -> None:
        self.records: dict[str, PlannedRecord] = {}
        self.reads = GroupReads(engine, entity, group)
        self._engine = engine
        self._entity = entity
        self._group = group
        self._draft = draft
        self._allow_deletions = allow_deletions
        self._since: datetime | None = None
        self._read_sequence = 0
        self._changes: list[Change] = []
        self._flagged: dict[str, list[Change]] = defaultdict(list)
        self._listed: dict[str, set[str]] = defaultdict(set)

    def begin_reading(self) -> None:
        """Looks whether anything is in the way. Raises CannotPlan, GroupBusy."""
        with self._engine.begin() as connection:
            if (closed := closed_reason(connection, self._entity.system_name)) is not None:
                raise CannotPlan(f"{closed}: see `sync-orchestrator status`")
            row = run(connection, queries.PLAN_BUSY_LEASE, entity=self._entity.name, group=self._group)[0]
            if row.busy:
                raise GroupBusy(busy_text(connection, self._entity.name, self._group))
            self._since = row.now
            self.reads.load_epochs(connection)

    async def read_sources(self, progress: Progress) -> None:
        """Reads the group from all sources, and merges it with what the archive has. Raises CallFailed."""
        owner = self._entity.rules.owner
        read = await self.reads.begin_read()
        self._read_sequence = read.number
        async with aclosing(self._entity.owner.pages(self._group)) as pages:  # type: ignore[type-var]
            async for rows, _ in pages:
                others = await self.reads.read_others(rows)
                self._add_rows(rows, owner, read)
                for part, found in others.items():
                    self._add_rows(found, part, read)
                progress("read", len(self._listed[owner]))
                read = await self.reads.begin_read()
        for part in self.reads.listed_parts():
            read = await self.reads.begin_read()
            async with aclosing(self._entity.sources[part].pages(self._group)) as pages:  # type: ignore[type-var]
                async for rows, _ in pages:
                    self._add_rows(rows, part, read)
                    read = await self.reads.begin_read()
        await self.reads.holds.wait(await self.reads.holds.end_read(read.noted))
        self._draft.listed = len(self._listed[owner])
        await asyncio.to_thread(self._merge_changes)

    async def find_deletions(self) -> None:
        """Finds what the sources no longer have: proven, capped, confirmed by key, as a full sync does.

        Raises CallFailed.
        """
        unlisted = self._find_unlisted()
        size = sum(
            1 for record in self.records.values() if record.state.group == self._group and not record.state.deleted
        )
        flagged_parts = {part for part, some in self._flagged.items() if some}
        confirmed: list[list[Change]] = []
        for part in sorted(unlisted.keys() | flagged_parts, key=self._owner_first):
            rows, flagged = unlisted.get(part, []), self._flagged[part]
            changes, held = await self._confirm_deletions(part, rows, flagged, size)
            confirmed.append(changes)
            if held is not None:
                self._draft.hold_deletions(held, [*(key for key, _, _ in rows), *(change.key for change in flagged)])
        if not self._draft.holds_deletions:
            for changes in confirmed:
                self._apply_changes(changes)

    def _add_rows(self, rows: Sequence[PartRead], part: str, read: BegunRead) -> None:
        self._changes += self.reads.build_changes(rows, part, read)
        self._listed[part].update(row.key for row in rows if text_problem(row.key) is None)

    def _merge_changes(self) -> None:
        keys = sorted({change.key for change in self._changes})
        with self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            self._load_records(connection, keys)
            learn_bounds(connection, self._entity.name, self._changes)
        others: list[Change] = []
        for change in self._changes:
            (self._flagged[change.part] if self._is_flagged_deletion(change) else others).append(change)
        self._apply_changes(others)
        self._changes = []

    def _load_records(self, connection: Connection, keys: list[str]) -> None:
        for row in run(connection, queries.PLAN_RECORDS, entity=self._entity.name, keys=keys, group=self._group):
            state = RecordState(row.revision, row.group_key, row.deleted, row.ready)
            self.records[row.key] = PlannedRecord(state, ArchivedRecord.from_row(row))
        for part in run(
            connection,
            queries.PLAN_PARTS,
            entity=self._entity.name,
            keys=sorted(self.records),
            since=self._since,
            lag=self._entity.rules.lag,
        ):
            record = self.records[part.key]
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

    def _is_flagged_deletion(self, change: Change) -> bool:
        """Whether a flag of the source deletes something that is there: those are judged together, at the end."""
        record = self.records.get(change.key)
        return (
            change.stamp.inferred and record is not None and not record.state.deleted and record.has_part(change.part)
        )

    def _apply_changes(self, changes: Sequence[Change]) -> None:
        """Does what ``archive.merge`` would do, without the writing."""
        for change in in_order(changes, self._entity.rules):
            record = self.records.setdefault(change.key, PlannedRecord(RecordState()))
            if decide(record.state, change, self._entity.rules) is Verdict.BEHIND:
                self._draft.add_count("behind")
                self._draft.add_note(f"{change.key!a}: '{change.part}' shows an older version with other content")
            if record.state.parts.get(change.part) is change.stamp:
                record.data[change.part] = {} if change.deleted else change.data or {}
                (record.deleted_parts.add if change.deleted else record.deleted_parts.discard)(change.part)

    async def _confirm_deletions(
        self, part: str, rows: Sequence[_UnlistedPart], flagged: Sequence[Change], size: int
    ) -> tuple[list[Change], str | None]:
        """Returns the deletions of one part, and why they are held back, None where they are not."""
        reads, listed, allowed = self.reads, len(self._listed[part]), self._allow_deletions
        held = None
        if rows and reads.needs_count(part):
            held = await reads.incomplete_reason(part, listed, len(rows))
        held = held or reads.over_cap(part, len(rows) + len(flagged), size, allowed)
        if held is not None:
            return [], held
        changes, _ = await reads.confirm_unlisted(part, rows, self._read_sequence)
        gone = [
            change for change in changes if change.stamp.inferred and change.stamp.read_sequence == self._read_sequence
        ]
        changes = [*changes, *flagged]
        held = reads.outage_reason(part, listed, len(gone), size, allowed)
        return changes, held or await asyncio.to_thread(self._exceeds_window, changes)

    def _exceeds_window(self, changes: Sequence[Change]) -> str | None:
        """Why so many deletions within the window are not made; looking counts nothing."""
        n = sum(1 for change in changes if change.stamp.inferred)
        with self._engine.connect() as connection, connection.begin() as looking:
            held = reserve_deletions(
                connection, self._entity, self._group, n, "unlisted", allowed=self._allow_deletions
            )
            looking.rollback()
        return held

    def _find_unlisted(self) -> dict[str, list[_UnlistedPart]]:
        """Parts that are here and were not listed, the owner's first."""
        owner = self._entity.rules.owner
        flagged = {change.key for change in self._flagged[owner]}  # their other parts were not asked for
        found: dict[str, list[_UnlistedPart]] = {}
        for part in sorted(self._entity.sources, key=self._owner_first):
            rows = [
                (key, record.state.parts[part].epoch, record.state.parts[part].version)
                for key, record in sorted(self.records.items())
                if record.state.group == self._group
                and not record.state.deleted
                and record.has_part(part)
                and part not in record.moved_parts
                and key not in self._listed[part]
                and (part == owner or (key in self._listed[owner] and key not in flagged))
            ]
            if rows:
                found[part] = rows
        return found

    def _owner_first(self, part: str) -> tuple[bool, str]:
        return part != self._entity.rules.owner, part

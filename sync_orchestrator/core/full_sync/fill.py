"""The first half of a full sync: fills the archive of a business group from its sources.

Pages are merged one after the other while the next one is read. Then records that the owner no longer has are found.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.core.archive.deletion_caps import Reason, alive_groups, reserve_deletions
from sync_orchestrator.core.archive.merge import BACKFILL, merge, without_held
from sync_orchestrator.core.capture.holds import ReadHold
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import force_index_scans, in_transaction, run
from sync_orchestrator.core.full_sync import queries
from sync_orchestrator.core.full_sync.prefetch import read_ahead
from sync_orchestrator.core.full_sync.source_listing import EXAMPLES, BegunRead, GroupReads
from sync_orchestrator.core.groups.lease import GroupLease
from sync_orchestrator.core.groups.registry import count_group_records
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.version_guard import Change, Verdict
from sync_orchestrator.errors import CallFailed, DeletionsHeld
from sync_orchestrator.texts.storable_text import text_problem

_page_read = CrashPoint("full_sync.page_read")
_before_page_commit = CrashPoint("full_sync.before_page_commit")
_page_merged = CrashPoint("full_sync.page_merged")
_before_deletions_commit = CrashPoint("full_sync.before_deletions_commit")

Progress = Callable[[str, int], None]
"""Called with the phase and how many records it has dealt with."""


@dataclass(slots=True)
class FillReport:
    """What reading a group brought: ``listed`` by the owner, ``changed`` and ``deleted`` in the archive.

    ``emptied``: other parts that their sources no longer have. ``behind``: parts that the source shows at an older
    version and with other content than the archive. ``ungrouped``: rows of the owner that name no business group.
    ``unusable``: parts that were passed over, and told of by an alert; ``problems``: what is wrong with the first of
    them.
    """

    entity: str
    group: str
    listed: int = 0
    changed: int = 0
    deleted: int = 0
    emptied: int = 0
    moved: int = 0
    unusable: int = 0
    behind: int = 0
    ungrouped: int = 0
    problems: list[str] = field(default_factory=list)
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class _SourcePage:
    """The owner's rows, the position behind them, the other parts of the same keys, and the read that brought them."""

    rows: Sequence[PartRead]
    position: str | None
    others: dict[str, Sequence[PartRead]]
    read: BegunRead
    hold: ReadHold


class Fill:
    """Filling one group's archive under its lease; ``merged`` is called after each page that may have brought news."""

    def __init__(
        self,
        context: Context,
        entity: EntityContext,
        lease: GroupLease,
        progress: Progress | None,
        merged: Callable[[], None] = lambda: None,
    ) -> None:
        self._context = context
        self._entity = entity
        self._lease = lease
        self._progress = progress
        self._merged = merged
        self._sync_id = 0
        self._reads = GroupReads(context.engine, entity, lease.group)
        self._flagged: dict[str, list[Change]] = defaultdict(list)
        self._behind: list[str] = []
        self.report = FillReport(entity.name, lease.group, problems=self._reads.problems)

    async def stream_pages(self) -> None:
        """Streams the owner's pages with the other parts of the same keys, and merges page by page."""
        cursor = await asyncio.to_thread(in_transaction, self._context.engine, self._begin_sync)
        async with aclosing(read_ahead(self._read_pages(cursor))) as pages:  # type: ignore[type-var]
            async for page in pages:
                _page_read()
                await self._reads.holds.wait(page.hold)
                known = self.report.changed
                await asyncio.to_thread(in_transaction, self._context.engine, partial(self._merge_page, page=page))
                _page_merged()
                if self.report.changed > known:
                    self._merged()
                if self._progress is not None:
                    self._progress("read", self.report.listed)
                    self._progress("changed", self.report.changed)
        await self._merge_parts_by_group()

    async def _read_pages(self, cursor: str | None) -> AsyncGenerator[_SourcePage, None]:
        read = await self._reads.begin_read()
        async with aclosing(self._entity.owner.pages(self._lease.group, cursor)) as pages:  # type: ignore[type-var]
            async for rows, position in pages:
                others = await self._reads.read_others(rows)
                yield _SourcePage(rows, position, others, read, await self._reads.holds.end_read(read.noted))
                read = await self._reads.begin_read()

    def _begin_sync(self, connection: Connection) -> str | None:
        self._reads.load_epochs(connection)
        found = self._lease.found
        can_resume = found.sync_phase == "list" and found.is_sync_recent and self._entity.owner.keyset_listing
        if can_resume and found.sync_id is not None and found.sync_cursor is not None:
            self._sync_id = found.sync_id
            self.report.listed = found.sync_listed
            self.report.resumed = True
            return found.sync_cursor
        self._sync_id = self._lease.run_fenced(connection, queries.BEGIN_FULL_SYNC).sync_id
        return None

    def _merge_page(self, connection: Connection, *, page: _SourcePage) -> None:
        rows, position, owner = page.rows, page.position, self._entity.rules.owner
        changes = self._reads.build_changes(rows, owner, page.read)
        for part, found in page.others.items():
            changes += self._reads.build_changes(found, part, page.read)
            self._note_listed(connection, part, found)
        self._merge_changes(connection, self._set_flagged_aside(connection, changes))
        resumable = position is not None and text_problem(position) is None and not self._flagged
        done = self._lease.run_fenced(
            connection,
            queries.NOTE_PAGE_DONE,
            sync_id=self._sync_id,
            cursor=position if resumable else None,
            n=self._note_listed(connection, owner, rows),
            lease=self._lease.seconds,
        )
        self.report.listed = done.sync_listed
        _before_page_commit()

    def _set_flagged_aside(self, connection: Connection, changes: Sequence[Change]) -> Sequence[Change]:
        """The changes without the deletions that a flag of the source shows: those are judged together, at the end.

        A listing that holds some back begins anew after a crash.
        """
        flagged = [change for change in changes if change.stamp.inferred]
        alive = alive_groups(connection, self._entity, flagged)
        for change in flagged:
            if (change.key, change.part) in alive:
                self._flagged[change.part].append(change)
        return [change for change in changes if not change.stamp.inferred or (change.key, change.part) not in alive]

    def _note_listed(self, connection: Connection, part: str, rows: Sequence[PartRead]) -> int:
        """Remembers what a source listed; returns how many keys of it were new."""
        keys = [row.key for row in rows if text_problem(row.key) is None]
        return len(run(connection, queries.INSERT_LISTED_KEYS, sync_id=self._sync_id, part=part, keys=keys))

    def _merge_changes(self, connection: Connection, changes: Sequence[Change]) -> int:
        news = without_held(connection, self._entity.name, changes) if self._lease.filled_before else changes
        entity = self._entity
        merged = merge(connection, entity.name, news, entity.rules, priority=BACKFILL, two_way=entity.two_way)
        accepted = {end.change.key for end in merged if end.verdict in (Verdict.ACCEPTED, Verdict.KEPT)}
        self._behind += [end.change.key for end in merged if end.verdict is Verdict.BEHIND]
        self.report.changed += len(accepted)
        return len(accepted)

    async def _merge_parts_by_group(self) -> None:
        """Parts whose source cannot be read by key are listed by group."""
        for part in self._reads.listed_parts():
            read = await self._reads.begin_read()
            async with aclosing(self._entity.sources[part].pages(self._lease.group)) as pages:  # type: ignore[type-var]
                async for rows, _ in pages:
                    if part in read.noted.numbers:
                        await self._reads.holds.wait(await self._reads.holds.end_read(read.noted))
                    await asyncio.to_thread(
                        in_transaction,
                        self._context.engine,
                        partial(self._merge_listed, part=part, rows=rows, read=read),
                    )
                    read = await self._reads.begin_read()

    def _merge_listed(self, connection: Connection, *, part: str, rows: Sequence[PartRead], read: BegunRead) -> None:
        self._merge_changes(
            connection, self._set_flagged_aside(connection, self._reads.build_changes(rows, part, read))
        )
        self._note_listed(connection, part, rows)

    async def delete_missing(self, allowed: int | None) -> None:
        """Makes tombstones of what the sources no longer have: proven, capped, confirmed by key."""
        unlisted, size = await asyncio.to_thread(in_transaction, self._context.engine, self._find_unlisted)
        owner = self._entity.rules.owner
        parts = sorted(unlisted.keys() | self._flagged.keys(), key=lambda part: (part != owner, part))
        for part in parts:
            rows, flagged = unlisted.get(part, []), self._flagged[part]
            if rows:
                await self._check_listing(part, len(rows))
            if held := self._reads.over_cap(part, len(rows) + len(flagged), size, allowed):
                self._hold_deletions(held, [row.key for row in [*rows, *flagged][:EXAMPLES]])
        for part in parts:
            await self._delete_confirmed(part, unlisted.get(part, []), size, allowed)
        self.report.ungrouped = await report_ungrouped(self._context, self._entity)
        await asyncio.to_thread(in_transaction, self._context.engine, self._finish_listing)

    def _find_unlisted(self, connection: Connection) -> tuple[dict[str, list[Any]], int]:
        """What is here and was not listed, by part, the owner's first; and how many records the group has."""
        self._lease.set_phase(connection, "delete")
        force_index_scans(connection)
        rows = run(
            connection,
            queries.SELECT_UNLISTED_KEYS,
            entity=self._entity.name,
            group=self._lease.group,
            owner=self._entity.rules.owner,
            parts=sorted(self._entity.sources),
        )
        size = count_group_records(connection, self._entity.name, self._lease.group)
        owner = self._entity.rules.owner
        flagged = {change.key for change in self._flagged[owner]}  # their other parts were not asked for
        found = [row for row in rows if row.part == owner or row.key not in flagged]
        return {part: list(some) for part, some in groupby(found, key=lambda row: row.part)}, size

    def _finish_listing(self, connection: Connection) -> None:
        self.report.unusable = self._reads.unusable
        self.report.behind = len(self._behind)
        run(connection, queries.DELETE_LISTED_KEYS, sync_id=self._sync_id)
        place = f"{self._entity.name} {self._lease.group}"
        alerts.resolve_alert(connection, "delete_cap", place)
        if self._behind:
            alerts.raise_alert(
                connection,
                "source_behind",
                place,
                examples=self._behind[:EXAMPLES],
                entity=self._entity.name,
                title=f"{place}: the source shows {len(self._behind)} records at an older version",
            )
        else:
            alerts.resolve_alert(connection, "source_behind", place)
        if self.report.unusable:
            alerts.raise_alert(
                connection,
                "invalid_source_records",
                place,
                f"{place}: its sources have parts that cannot be used",
                entity=self._entity.name,
                examples=self.report.problems,
            )
        else:
            alerts.resolve_alert(connection, "invalid_source_records", place)

    async def _check_listing(self, part: str, unlisted: int) -> None:
        if not self._reads.needs_count(part):
            return
        with self._context.engine.begin() as connection:
            listed = run(connection, queries.COUNT_LISTED_KEYS, sync_id=self._sync_id, part=part)[0].n
        if held := await self._reads.incomplete_reason(part, listed, unlisted):
            self._hold_deletions(held, [])

    def _hold_deletions(self, reason: str, examples: Sequence[str]) -> None:
        place = f"{self._entity.name} {self._lease.group}"
        in_transaction(
            self._context.engine,
            lambda connection: alerts.raise_alert(
                connection, "delete_cap", place, f"{place}: {reason}", entity=self._entity.name, examples=examples
            ),
        )
        raise DeletionsHeld(
            f"{place}: {reason}; nothing was deleted. Look at the source, then allow it for once with --allow-deletions"
        )

    async def _delete_confirmed(self, part: str, unlisted: Sequence[Any], size: int, allowed: int | None) -> None:
        changes, here = await self._reads.confirm_unlisted(
            part, [(row.key, row.epoch, row.version) for row in unlisted], self._sync_id
        )
        gone = [change for change in changes if change.stamp.inferred and change.stamp.read_sequence == self._sync_id]
        inferred = [change for change in changes if change.stamp.inferred and change not in gone]
        flagged = [*self._flagged[part], *inferred]
        if held := self._reads.outage_reason(part, await self._count_listed(part), len(gone), size, allowed):
            self._hold_deletions(held, [change.key for change in gone[:EXAMPLES]])

        def merge_deletions(connection: Connection) -> None:
            self._lease.renew_within(connection)
            for some, reason in _by_reason(gone, flagged):
                why = reserve_deletions(connection, self._entity, self._lease.group, len(some), reason, allowed=allowed)
                if why is not None:
                    raise DeletionsHeld(why)
            merged = merge(
                connection,
                self._entity.name,
                [*changes, *self._flagged[part]],
                self._entity.rules,
                priority=BACKFILL,
                two_way=self._entity.two_way,
            )
            deleted = sum(1 for end in merged if end.change.deleted and end.verdict is Verdict.ACCEPTED)
            if part == self._entity.rules.owner:
                self.report.deleted += deleted
                self.report.moved += here
            else:
                self.report.emptied += deleted
            _before_deletions_commit()

        try:
            await asyncio.to_thread(in_transaction, self._context.engine, merge_deletions)
        except DeletionsHeld as held_back:
            self._hold_deletions(str(held_back), [change.key for change in [*gone, *flagged][:EXAMPLES]])

    async def _count_listed(self, part: str) -> int:
        def count_keys(connection: Connection) -> int:
            return int(run(connection, queries.COUNT_LISTED_KEYS, sync_id=self._sync_id, part=part)[0].n)

        return await asyncio.to_thread(in_transaction, self._context.engine, count_keys)


def _by_reason(unlisted: Sequence[Change], flagged: Sequence[Change]) -> tuple[tuple[Sequence[Change], Reason], ...]:
    return (unlisted, "unlisted"), (flagged, "flagged")


async def report_ungrouped(context: Context, entity: EntityContext) -> int:
    """Counts the owner's rows that name no business group, which no listing shows, and alerts while there are any."""
    try:
        found = await entity.owner.ungrouped()
    except CallFailed:  # the listings are what matters here; `check --live` reports why they cannot be counted
        return 0
    cause = f"{entity.name}: without a business group"

    def write_alert(connection: Connection) -> int:
        if found is None or not found.count:
            alerts.resolve_alert(connection, "invalid_source_records", cause)
            return 0
        alerts.raise_alert(
            connection,
            "invalid_source_records",
            cause,
            entity=entity.name,
            examples=list(found.examples),
            title=f"{entity.name}: {found.count} records of '{entity.settings.owner}' name no business group, "
            "so they are not in sync",
        )
        return found.count

    return await asyncio.to_thread(in_transaction, context.engine, write_alert)

"""Full sync of a business group, in two halves: fill the archive from the sources, then bring the third party in step.

It does not pass each row through the ledger: the archive itself knows what is out of step. Live changes go on beside
it; the version guard decides. Not here: pushing (``drain.py``), merging (``archive.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.core import alerts
from sync_orchestrator.core.archive import BACKFILL, merge
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.drain import DrainReport, drain
from sync_orchestrator.core.errors import DeletionsHeld
from sync_orchestrator.core.group_lease import GroupLease, leased
from sync_orchestrator.core.group_reads import EXAMPLES, GroupReads
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.sql import in_transaction, run
from sync_orchestrator.core.statements import full_sync as statements
from sync_orchestrator.core.statements import ledger as ledger_statements
from sync_orchestrator.core.statements import push as push_statements
from sync_orchestrator.core.storable import text_problem
from sync_orchestrator.core.versions import Change, Verdict

_page_read = CrashPoint("full_sync.page_read")
_before_page_commit = CrashPoint("full_sync.before_page_commit")
_page_merged = CrashPoint("full_sync.page_merged")
_before_deletions_commit = CrashPoint("full_sync.before_deletions_commit")
_filled = CrashPoint("full_sync.filled")
_pushed = CrashPoint("full_sync.pushed")
_completed = CrashPoint("full_sync.completed")


@dataclass(slots=True)
class FillReport:
    """What reading a group brought: ``listed`` by the owner, ``changed`` and ``deleted`` in the archive.

    ``emptied``: other parts that their sources no longer have. ``unusable``: parts that were passed over, and told of
    by an alert; ``problems``: what is wrong with the first of them.
    """

    entity: str
    group: str
    listed: int = 0
    changed: int = 0
    deleted: int = 0
    emptied: int = 0
    moved: int = 0
    unusable: int = 0
    problems: list[str] = field(default_factory=list)
    resumed: bool = False


@dataclass(slots=True)
class StepReport:
    """What pushing a group came to; ``open`` and ``parked`` records are still out of step."""

    entity: str
    group: str
    calls: int = 0
    acknowledged: int = 0
    open: int = 0
    parked: int = 0
    redriven: int = 0


Progress = Callable[[str, int], None]
"""Called with the phase and how many records it has dealt with."""


async def discover_groups(context: Context, entity: EntityContext) -> list[str]:
    """Asks the owner which business groups exist, and returns all that are known now, sorted."""
    told = await entity.owner.groups()

    def work(connection: Connection) -> list[str]:
        if told:
            run(connection, statements.ADD_GROUPS, entity=entity.name, groups=sorted(set(told)))
        return known_groups(connection, entity.name)

    return await asyncio.to_thread(in_transaction, context.engine, work)


def known_groups(connection: Connection, entity: str) -> list[str]:
    """The business groups of an entity that have been seen so far, sorted."""
    return [row.group_key for row in run(connection, statements.GROUPS, entity=entity)]


async def fill(
    context: Context, entity: EntityContext, group: str, *, allow_deletions: int | None = None,
    progress: Progress | None = None,
) -> FillReport:
    """Brings a group's archive to what its sources say, and finds what the owner no longer has.

    ``allow_deletions`` raises the cap for this time. Goes on where an interrupted one stopped, if the listing allows.
    Raises GroupBusy, DeletionsHeld, CallFailed.
    """
    async with leased(context, entity.name, group) as lease:
        work = _Fill(context, entity, lease, progress)
        await work.stream()
        await work.delete(allow_deletions)
    _filled()
    return work.report


async def bring_in_step(
    context: Context, entity: EntityContext, group: str, *, patience: float | None = None,
    progress: Progress | None = None,
) -> StepReport:
    """Pushes what of a group is out of step, then compensates: all that failed meanwhile is tried again.

    Waits for retries up to ``patience`` seconds; what is open after that is left to the drain. Raises GroupBusy.
    """
    report = StepReport(entity.name, group)
    patience = context.config.limits.drain_seconds if patience is None else patience
    ends = asyncio.get_running_loop().time() + patience
    async with leased(context, entity.name, group) as lease:
        await lease.phase("push")
        await push_group(context, report, ends, progress)
        _pushed()
        await lease.phase("compensate")
        report.redriven = await asyncio.to_thread(in_transaction, context.engine, lambda c: _complete(c, lease))
        _completed()
        await push_group(context, report, ends, progress)
    return report


async def full_sync(
    context: Context, entity: EntityContext, group: str, *, allow_deletions: int | None = None,
    patience: float | None = None, progress: Progress | None = None,
) -> tuple[FillReport, StepReport]:
    """Both halves, one after the other."""
    filled = await fill(context, entity, group, allow_deletions=allow_deletions, progress=progress)
    return filled, await bring_in_step(context, entity, group, patience=patience, progress=progress)


class _Fill:
    def __init__(self, context: Context, entity: EntityContext, lease: GroupLease, progress: Progress | None) -> None:
        self._context = context
        self._entity = entity
        self._lease = lease
        self._progress = progress
        self._sync_id = 0
        self._reads = GroupReads(context.engine, entity, lease.group)
        self.report = FillReport(entity.name, lease.group, problems=self._reads.problems)

    async def stream(self) -> None:
        """Streams the owner's pages with the other parts of the same keys, and merges page by page."""
        cursor = await asyncio.to_thread(in_transaction, self._context.engine, self._begin)
        number = await self._reads.ticket()
        async with aclosing(self._entity.owner.pages(self._lease.group, cursor)) as pages:  # type: ignore[type-var]
            async for rows, position in pages:
                others = await self._reads.others(rows)
                _page_read()
                await asyncio.to_thread(
                    in_transaction, self._context.engine,
                    lambda c, rows=rows, position=position, number=number, others=others:
                        self._merge_page(c, rows, others, number, position))
                _page_merged()
                if self._progress is not None:
                    self._progress("read", self.report.listed)
                number = await self._reads.ticket()
        await self._parts_by_group()

    def _begin(self, connection: Connection) -> str | None:
        self._reads.begin(connection)
        row = self._lease.row
        unfinished = row.sync_phase == "list" and row.sync_cursor is not None and row.recent  # type: ignore[attr-defined]
        if unfinished and self._entity.owner.keyset_listing:
            self._sync_id = row.sync_id  # type: ignore[attr-defined]
            self.report.listed = row.sync_listed  # type: ignore[attr-defined]
            self.report.resumed = True
            return str(row.sync_cursor)  # type: ignore[attr-defined]
        self._sync_id = self._lease.fenced(connection, statements.BEGIN).sync_id  # type: ignore[attr-defined]
        return None

    def _merge_page(self, connection: Connection, rows: Sequence[PartRead], others: dict[str, Sequence[PartRead]],
                    number: int, position: str | None) -> None:
        owner = self._entity.rules.owner
        changes = self._reads.changes(rows, owner, number)
        for part, found in others.items():
            changes += self._reads.changes(found, part, number)
            self._listed(connection, part, found)
        self._merge(connection, changes)
        resumable = position is not None and text_problem(position) is None
        done = self._lease.fenced(
            connection, statements.PAGE_DONE, sync_id=self._sync_id, cursor=position if resumable else None,
            n=self._listed(connection, owner, rows), lease=self._lease.seconds)
        self.report.listed = done.sync_listed  # type: ignore[attr-defined]
        _before_page_commit()

    def _listed(self, connection: Connection, part: str, rows: Sequence[PartRead]) -> int:
        """Remembers what a source listed; returns how many keys of it were new."""
        keys = [row.key for row in rows if text_problem(row.key) is None]
        return len(run(connection, statements.LISTED, sync_id=self._sync_id, part=part, keys=keys))

    def _merge(self, connection: Connection, changes: Sequence[Change]) -> int:
        merged = merge(connection, self._entity.name, changes, self._entity.rules, lane=BACKFILL)
        accepted = {end.change.key for end in merged if end.verdict in (Verdict.ACCEPTED, Verdict.KEPT)}
        self.report.changed += len(accepted)
        return len(accepted)

    async def _parts_by_group(self) -> None:
        """Parts whose source cannot be read by key are listed by group."""
        for part in self._reads.listed_parts():
            number = await self._reads.ticket()
            async with aclosing(self._entity.sources[part].pages(self._lease.group)) as pages:  # type: ignore[type-var]
                async for rows, _ in pages:
                    await asyncio.to_thread(in_transaction, self._context.engine,
                                            partial(self._merge_listed, part=part, rows=rows, number=number))
                    number = await self._reads.ticket()

    def _merge_listed(self, connection: Connection, *, part: str, rows: Sequence[PartRead], number: int) -> None:
        self._merge(connection, self._reads.changes(rows, part, number))
        self._listed(connection, part, rows)

    async def delete(self, allowed: int | None) -> None:
        """Makes tombstones of what the sources no longer have: proven, capped, confirmed by key."""
        await self._lease.phase("delete")
        unlisted, size = await asyncio.to_thread(in_transaction, self._context.engine, self._unlisted)
        for part, rows in unlisted.items():
            await self._check_complete(part, len(rows))
            if held := self._reads.over_cap(part, len(rows), size, allowed):
                self._hold(held, [row.key for row in rows[:EXAMPLES]])
        for part, rows in unlisted.items():
            await self._confirm(part, rows)
        await asyncio.to_thread(in_transaction, self._context.engine, self._deletions_done)

    def _unlisted(self, connection: Connection) -> tuple[dict[str, list[Any]], int]:
        """What is here and was not listed, by part, the owner's first; and how many records the group has."""
        rows = run(connection, statements.UNLISTED, entity=self._entity.name, group=self._lease.group,
                   owner=self._entity.rules.owner, parts=sorted(self._entity.sources))
        size = run(connection, statements.GROUP_SIZE, entity=self._entity.name, group=self._lease.group)[0][0]
        return {part: list(found) for part, found in groupby(rows, key=lambda row: row.part)}, size

    def _deletions_done(self, connection: Connection) -> None:
        self.report.unusable = self._reads.unusable
        run(connection, statements.FORGET_LISTED, sync_id=self._sync_id)
        place = f"{self._entity.name} {self._lease.group}"
        alerts.resolve(connection, "delete_cap", place)
        if self.report.unusable:
            alerts.tell(connection, "unusable", place, f"{place}: its sources have parts that cannot be used",
                        entity=self._entity.name, examples=self.report.problems)
        else:
            alerts.resolve(connection, "unusable", place)

    async def _check_complete(self, part: str, unlisted: int) -> None:
        if not self._reads.needs_count(part):
            return
        with self._context.engine.begin() as connection:
            listed = run(connection, statements.COUNT_LISTED, sync_id=self._sync_id, part=part)[0].n
        if held := await self._reads.incomplete(part, listed, unlisted):
            self._hold(held, [])

    def _hold(self, reason: str, examples: Sequence[str]) -> None:
        place = f"{self._entity.name} {self._lease.group}"
        in_transaction(self._context.engine, lambda connection: alerts.tell(
            connection, "delete_cap", place, f"{place}: {reason}", entity=self._entity.name, examples=examples))
        raise DeletionsHeld(f"{place}: {reason}; nothing was deleted. Look at the source, then allow it for once "
                            f"with --allow-deletions")

    async def _confirm(self, part: str, unlisted: Sequence[Any]) -> None:
        changes, here = await self._reads.confirm(
            part, [(row.key, row.epoch, row.version) for row in unlisted], self._sync_id)

        def work(connection: Connection) -> None:
            self._lease.fenced(connection, statements.RENEW, lease=self._lease.seconds)
            merged = merge(connection, self._entity.name, changes, self._entity.rules, lane=BACKFILL)
            gone = sum(1 for end in merged if end.change.deleted and end.verdict is Verdict.ACCEPTED)
            if part == self._entity.rules.owner:
                self.report.deleted += gone
                self.report.moved += here
            else:
                self.report.emptied += gone
            _before_deletions_commit()

        await asyncio.to_thread(in_transaction, self._context.engine, work)


async def push_group(context: Context, report: StepReport, ends: float, progress: Progress | None) -> None:
    """Pushes what of the report's group is out of step, and waits for retries until the loop's time ``ends``."""
    loop = asyncio.get_running_loop()
    before = report.acknowledged

    def told(drained: DrainReport) -> None:
        if progress is not None:
            progress("push", before + drained.settled.acknowledged)

    while True:
        drained = await drain(context, linger=0, most_seconds=max(0.0, ends - loop.time()), progress=told,
                              group=(report.entity, report.group))
        report.calls += drained.calls
        report.acknowledged += drained.settled.acknowledged
        before = report.acknowledged
        with context.engine.begin() as connection:
            left = run(connection, statements.OUTSTANDING, entity=report.entity, group=report.group)[0]
        report.open, report.parked = left.open, left.parked
        if not left.open or loop.time() + max(0.0, left.next) >= ends:
            return
        await asyncio.sleep(min(1.0, max(0.05, left.next)))


def _complete(connection: Connection, lease: GroupLease) -> int:
    """Marks the group as synced and tries again all that failed: records, their events, events without record."""
    run(connection, statements.COMPLETING, entity=lease.entity)
    lease.fenced(connection, statements.COMPLETE)
    tried = run(connection, push_statements.UNPARK_GROUP, entity=lease.entity, group=lease.group)
    keys = sorted(row.key for row in tried)
    run(connection, statements.REDRIVE_ARCHIVED, entity=lease.entity, keys=keys)
    covered = run(connection, statements.ALL_COVERED, entity=lease.entity)[0].covered
    redriven = run(connection, ledger_statements.COMPENSATE, entity=lease.entity, group=lease.group,
                   all_covered=covered)
    run(connection, ledger_statements.NOTIFY)
    return len(redriven)

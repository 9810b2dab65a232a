"""The second half of a full sync: pushes what of a business group is out of sync."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.locks import AdvisoryLock, acquire_lock
from sync_orchestrator.core.db.notify import notify_work
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.drain.drain import DrainReport, drain
from sync_orchestrator.core.full_sync import queries
from sync_orchestrator.core.full_sync.fill import Progress
from sync_orchestrator.core.groups.lease import GroupLease
from sync_orchestrator.core.ledger.retrying import retry_failed_of_group
from sync_orchestrator.core.push.hold import release_group_from_hold
from sync_orchestrator.core.systems.suspension import suspension_of
from sync_orchestrator.core.two_way.rules import TwoWay
from sync_orchestrator.core.two_way.waiting import wake_waiting_records

_IDLE_WAIT_SECONDS = 0.1


@dataclass(slots=True)
class StepReport:
    """What pushing a group came to; ``open`` and ``on hold`` records are still out of sync."""

    entity: str
    group: str
    calls: int = 0
    acknowledged: int = 0
    open: int = 0
    stopped: int = 0
    redriven: int = 0
    suspended: str | None = None
    """Why nothing was pushed, where pushes to the third party are suspended."""

    def add_drained(self, drained: DrainReport) -> None:
        """Adds what a drain of the group did."""
        self.calls += drained.calls
        self.acknowledged += drained.settled.acknowledged


class PushBeside:
    """Pushes what of a group is out of sync while more of it is being read; ``wake`` says that there may be some."""

    def __init__(self, context: Context, report: StepReport, progress: Progress | None) -> None:
        self._context = context
        self._report = report
        self._progress = progress
        self._wanted = False
        self._ending = False
        self._pushing: asyncio.Task[None] | None = None

    def request_push(self) -> None:
        """There may be something to push."""
        self._wanted = True
        if self._pushing is None or (self._pushing.done() and self._pushing.exception() is None):
            self._pushing = asyncio.create_task(self._push_while_wanted())

    async def all_pushed(self) -> None:
        """Until all that is due is pushed. Raises what pushing raised."""
        if self._pushing is not None:
            await self._pushing

    async def break_off(self) -> None:
        """Lets what is under way come to its end, and begins nothing more."""
        self._ending = True
        if self._pushing is not None:
            with suppress(Exception):  # that for which it is broken off is told
                await self._pushing

    async def cancel_push(self) -> None:
        """Cancels the pushing, which ends in order as a drain does."""
        if self._pushing is not None:
            self._pushing.cancel()
            await asyncio.gather(self._pushing, return_exceptions=True)

    async def _push_while_wanted(self) -> None:
        while self._wanted and not self._ending:
            self._wanted = False
            await _drain_group(self._context, self._report, None, self._progress, lambda: self._ending)


async def push_group(context: Context, report: StepReport, ends: float, progress: Progress | None) -> None:
    """Pushes what of the report's group is out of sync, and waits for retries until the loop's time ``ends``."""
    loop = asyncio.get_running_loop()
    system = context.entities[report.entity].system_name
    suspension = await asyncio.to_thread(
        in_transaction, context.engine, lambda connection: suspension_of(connection, system)
    )
    report.suspended = None if suspension is None else suspension.reason
    if suspension is not None:
        await _count_outstanding(context, report)
        return
    while (due := await _count_outstanding(context, report)) is not None and loop.time() + max(0.0, due) < ends:
        if due > 0:
            await asyncio.sleep(min(1.0, due))
            continue
        called = report.calls
        await _drain_group(context, report, ends, progress)
        if report.calls == called:  # it may not be called now, or another drain is at it
            await asyncio.sleep(_IDLE_WAIT_SECONDS)


async def _count_outstanding(context: Context, report: StepReport) -> float | None:
    """What is left, and in how many seconds the next of it is due; None where none is open."""
    left = (
        await asyncio.to_thread(
            in_transaction,
            context.engine,
            lambda connection: run(connection, queries.COUNT_OUTSTANDING, entity=report.entity, group=report.group),
        )
    )[0]
    report.open, report.stopped = left.open, left.stopped
    return left.next if left.open else None


async def _drain_group(
    context: Context,
    report: StepReport,
    ends: float | None,
    progress: Progress | None,
    asked_to_end: Callable[[], bool] = lambda: False,
) -> None:
    before = report.acknowledged

    def report_progress(drained: DrainReport) -> None:
        if progress is not None:
            progress("push", before + drained.settled.acknowledged)

    left = None if ends is None else max(0.0, ends - asyncio.get_running_loop().time())
    report.add_drained(
        await drain(
            context,
            linger=0,
            most_seconds=left,
            progress=report_progress,
            group=(report.entity, report.group),
            asked_to_end=asked_to_end,
        )
    )


def complete_full_sync(connection: Connection, lease: GroupLease, two_way: TwoWay | None = None) -> tuple[int, int]:
    """Marks the group as synced and tries again all that failed: records, their events, events without record.

    Returns how many records and how many events without one are tried again.
    """
    acquire_lock(connection, AdvisoryLock.COMPLETION, lease.entity)
    lease.run_fenced(connection, queries.COMPLETE_GROUP)
    if two_way is not None:
        wake_waiting_records(connection, two_way)
    tried = release_group_from_hold(connection, lease.entity, lease.group)
    covered = run(connection, queries.MARK_ENTITY_COVERED, entity=lease.entity)[0].covered
    redriven = retry_failed_of_group(connection, lease.entity, lease.group, all_covered=covered)
    if tried or redriven:
        notify_work(connection)
    return tried, redriven

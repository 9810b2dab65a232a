"""Full sync of a business group, in two halves: fill the archive from the sources, then push what is out of sync.

Rows do not pass through the ledger: the archive itself knows what is out of sync. Live changes go on meanwhile; the
version guard decides which of two changes is newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.full_sync.fill import Fill, FillReport, Progress
from sync_orchestrator.core.full_sync.push_group import PushBeside, StepReport, complete_full_sync, push_group
from sync_orchestrator.core.groups.lease import GroupLease, lease_group
from sync_orchestrator.core.two_way.waiting import link_waiting_records

_filled = CrashPoint("full_sync.filled")
_pushed = CrashPoint("full_sync.pushed")
_completed = CrashPoint("full_sync.completed")


async def fill_archive(
    context: Context,
    entity: EntityContext,
    group: str,
    *,
    allow_deletions: int | None = None,
    progress: Progress | None = None,
) -> FillReport:
    """Brings a group's archive to what its sources say, and finds what the owner no longer has.

    ``allow_deletions`` raises the cap for this time. Goes on where an interrupted one stopped, if the listing allows.
    Raises GroupBusy, DeletionsHeld, CallFailed.
    """
    async with lease_group(context, entity.name, group) as lease:
        work = Fill(context, entity, lease, progress)
        await work.stream_pages()
        await work.delete_missing(allow_deletions)
    _filled()
    return work.report


async def bring_in_sync(
    context: Context,
    entity: EntityContext,
    group: str,
    *,
    patience: float | None = None,
    progress: Progress | None = None,
) -> StepReport:
    """Pushes what of a group is out of sync, then tries again all that failed meanwhile.

    Waits for retries up to ``patience`` seconds; what is open after that is left to the drain. Raises GroupBusy.
    """
    report = StepReport(entity.name, group)
    async with lease_group(context, entity.name, group) as lease:
        await _bring_in_sync(context, entity, lease, report, patience, progress)
    return report


async def full_sync(
    context: Context,
    entity: EntityContext,
    group: str,
    *,
    allow_deletions: int | None = None,
    patience: float | None = None,
    progress: Progress | None = None,
    filled: Callable[[FillReport], None] = lambda report: None,
) -> tuple[FillReport, StepReport]:
    """Both halves, the second beginning with the first page that the first has merged.

    Calls ``filled`` as soon as the archive is. Raises GroupBusy, DeletionsHeld, CallFailed.
    """
    report = StepReport(entity.name, group)
    async with lease_group(context, entity.name, group) as lease:
        beside = PushBeside(context, report, progress)
        work = Fill(context, entity, lease, progress, beside.request_push)
        try:
            await work.stream_pages()
            await work.delete_missing(allow_deletions)
        except asyncio.CancelledError:
            await beside.cancel_push()
            raise
        except BaseException:
            await beside.break_off()
            raise
        _filled()
        filled(work.report)
        await beside.all_pushed()
        await _bring_in_sync(context, entity, lease, report, patience, progress)
    return work.report, report


async def _bring_in_sync(
    context: Context,
    entity: EntityContext,
    lease: GroupLease,
    report: StepReport,
    patience: float | None,
    progress: Progress | None,
) -> None:
    ends = asyncio.get_running_loop().time() + (context.config.limits.drain_seconds if patience is None else patience)
    await lease.note_phase("push")
    await push_group(context, report, ends, progress)
    _pushed()
    tried, report.redriven = await asyncio.to_thread(
        in_transaction, context.engine, lambda c: complete_full_sync(c, lease, entity.two_way)
    )
    _completed()
    if entity.two_way is not None:
        tried += await asyncio.to_thread(link_waiting_records, context.engine, entity.two_way)
    if tried:
        await push_group(context, report, ends, progress)

"""Full sync of a business group, in two halves: fill the archive from the sources, then bring the third party in sync.

It does not pass each row through the ledger: the archive itself knows what is out of sync. Live changes go on beside
it; the version guard decides. Not here: the halves themselves (``group_fill.py``, ``group_push.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.full_sync.fill import Fill, FillReport, Progress
from sync_orchestrator.core.full_sync.push_group import PushBeside, StepReport, complete, push_group
from sync_orchestrator.core.groups import queries as groups_queries
from sync_orchestrator.core.groups.lease import GroupLease, leased

GROUPS_AT_ONCE = 6
"""So many business groups one process takes through a full sync at once."""

_filled = CrashPoint("full_sync.filled")
_pushed = CrashPoint("full_sync.pushed")
_completed = CrashPoint("full_sync.completed")


async def discover_groups(context: Context, entity: EntityContext) -> list[str]:
    """Asks the owner which business groups exist, and returns all that are known now, sorted."""
    told = await entity.owner.groups()

    def work(connection: Connection) -> list[str]:
        if told:
            run(connection, groups_queries.ADD_GROUPS, entity=entity.name, groups=sorted(set(told)))
        return known_groups(connection, entity.name)

    return await asyncio.to_thread(in_transaction, context.engine, work)


def known_groups(connection: Connection, entity: str) -> list[str]:
    """The business groups of an entity that have been seen so far, sorted."""
    return [row.group_key for row in run(connection, groups_queries.LIST_GROUPS, entity=entity)]


async def fill(
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
    async with leased(context, entity.name, group) as lease:
        work = Fill(context, entity, lease, progress)
        await work.stream()
        await work.delete(allow_deletions)
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
    """Pushes what of a group is out of sync, then compensates: all that failed meanwhile is tried again.

    Waits for retries up to ``patience`` seconds; what is open after that is left to the drain. Raises GroupBusy.
    """
    report = StepReport(entity.name, group)
    async with leased(context, entity.name, group) as lease:
        await _bring_in_sync(context, lease, report, patience, progress)
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
    async with leased(context, entity.name, group) as lease:
        beside = PushBeside(context, report, progress)
        work = Fill(context, entity, lease, progress, beside.wake)
        try:
            await work.stream()
            await work.delete(allow_deletions)
        except asyncio.CancelledError:
            await beside.cancel()
            raise
        except BaseException:
            await beside.break_off()
            raise
        _filled()
        filled(work.report)
        await beside.all_pushed()
        await _bring_in_sync(context, lease, report, patience, progress)
    return work.report, report


async def _bring_in_sync(
    context: Context, lease: GroupLease, report: StepReport, patience: float | None, progress: Progress | None
) -> None:
    ends = asyncio.get_running_loop().time() + (context.config.limits.drain_seconds if patience is None else patience)
    await lease.phase("push")
    await push_group(context, report, ends, progress)
    _pushed()
    tried, report.redriven = await asyncio.to_thread(in_transaction, context.engine, lambda c: complete(c, lease))
    _completed()
    if tried:
        await push_group(context, report, ends, progress)

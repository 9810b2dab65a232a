"""The retry policy of full syncs, whoever runs them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.retry import after_failure
from sync_orchestrator.errors import CallFailed, Failure, GroupBusy

SyncResult = TypeVar("SyncResult")


async def retry_full_sync(
    entity: EntityContext, work: Callable[[], Awaitable[SyncResult]], report_wait: Callable[[str], None]
) -> SyncResult:
    """Runs the full sync of a group, or one half of it, and repeats it after failures that may pass.

    The entity's retry rule applies. A repeated full sync goes on where it stopped.

    Args:
        entity: The entity of the group.
        work: Begins the full sync. Called for each attempt.
        report_wait: Called before each wait, with the failure and the seconds of the wait in one line.

    Returns:
        What ``work`` returns.

    Raises:
        CallFailed: A call failed for good, or too often.
        GroupBusy: Another full sync holds the group for longer than the retries last.
    """
    spent = 0
    while True:
        try:
            return await work()
        except (CallFailed, GroupBusy) as failed:
            kind, retry_after = Failure.TRANSIENT, None
            if isinstance(failed, CallFailed):
                kind, retry_after = failed.kind, failed.retry_after
            if kind is Failure.REFERENCE:  # a record waits for it as long as it takes, a full sync does not
                kind = Failure.TRANSIENT
            decision = after_failure(entity.retry, spent, kind, retry_after=retry_after, draw=random.random())
            if decision.wait is None:
                raise
            spent = decision.attempts
            report_wait(f"{failed.describe_with_system()}; again in {decision.wait:.0f} s")
            await asyncio.sleep(decision.wait)

"""Archives the due events of one entity, in two tasks: while one of them waits for the database, the other works."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.drain import event_batch
from sync_orchestrator.core.drain.activity import time_of_next_check
from sync_orchestrator.core.ledger.event_claims import release_expired_events, seconds_until_next_event
from sync_orchestrator.core.two_way.waiting import link_waiting_records

if TYPE_CHECKING:
    from sync_orchestrator.core.context import Context
    from sync_orchestrator.core.drain.activity import Activity
    from sync_orchestrator.core.push.settlement import Settled

TASKS_PER_ENTITY = 2

_RELEASE_INTERVAL_SECONDS = 1.0


class Archiver:
    """Takes the due events of one entity in batches, and archives them.

    Args:
        context: What the drain works with.
        entity: The entity's name.
        activity: What the tasks of the drain share.
        tokens: Gets the tokens of the leases that are held; whoever runs the tasks releases them.
        report: Called with the number of events of each batch, and with what was finished.
    """

    def __init__(
        self,
        context: Context,
        entity: str,
        activity: Activity,
        tokens: set[int],
        report: Callable[[int, Settled], None],
    ) -> None:
        self._context = context
        self._entity = entity
        self._activity = activity
        self._tokens = tokens
        self._report = report
        self._alone = threading.Lock()  # two takers would divide what came together between them

    async def run(self, name: str) -> None:
        """Works as the task of this name until the activity ends."""
        released = -_RELEASE_INTERVAL_SECONDS
        while not self._activity.is_ended:
            if time.monotonic() - released >= _RELEASE_INTERVAL_SECONDS:
                released = time.monotonic()
                await asyncio.to_thread(in_transaction, self._context.engine, release_expired_events)
                if (two_way := self._context.entities[self._entity].two_way) is not None:
                    await asyncio.to_thread(link_waiting_records, self._context.engine, two_way)
            count, settled = await event_batch.work_off(
                self._context,
                self._context.config.limits.batch,
                self._tokens,
                entities=[self._entity],
                alone=self._alone,
            )
            self._report(count, settled)
            if count:
                self._activity.note_work(name)
                self._activity.wake_all()
            else:
                self._activity.note_idle(name)
                due = await asyncio.to_thread(self._seconds_until_due)
                await self._activity.wait_for_wake(name, time_of_next_check(due))

    def _seconds_until_due(self) -> float | None:
        with self._context.engine.begin() as connection:
            return seconds_until_next_event(connection, [self._entity])

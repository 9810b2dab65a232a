"""What the tasks of one drain share: which of them have work under way, how they wake each other, and whether to end.

All of it belongs to the event loop of the drain.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from sync_orchestrator.core.shutdown import ending

_MAX_WAIT_SECONDS = 5.0
_MIN_WAIT_SECONDS = 0.005


class Activity:
    """The activity of the tasks of one drain, by the names of the tasks.

    Attributes:
        news_count: How often something came up that every task has to look at.
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        self.news_count = 0
        self._wakes = {name: asyncio.Event() for name in tasks}
        self._busy = set(self._wakes)  # every task, until it says otherwise
        self._last_work = time.monotonic()
        self._is_ended = False

    @property
    def is_ended(self) -> bool:
        """Whether no task may begin more work: a request to end counts at once, and its cancellation follows later."""
        return self._is_ended or ending.is_requested

    def end_work(self) -> None:
        """Lets every task finish what it has under way and begin nothing more."""
        self._is_ended = True
        self.wake_all()

    def is_idle_for(self, seconds: float) -> bool:
        """Returns whether no task has had anything to do for this time."""
        return not self._busy and time.monotonic() - self._last_work >= seconds

    def wake_all(self) -> None:
        """Announces news to every task: no task counts as idle before it has looked."""
        self.news_count += 1
        self._busy |= self._wakes.keys()
        for event in self._wakes.values():
            event.set()

    def wake_task(self, name: str) -> None:
        """Wakes one task, so that it looks at what became of the work that it began."""
        self._wakes[name].set()

    def note_check(self, name: str) -> None:
        """Notes that a task looks for work; the drain goes on until the task knows whether it found any."""
        self._busy.add(name)

    def note_work(self, name: str) -> None:
        """Notes that a task has work under way; the drain goes on until it has none."""
        self._busy.add(name)
        self._last_work = time.monotonic()

    def note_idle(self, name: str) -> None:
        """Notes that a task found nothing to do. A task that was woken while it looked has to look again."""
        if not self._wakes[name].is_set():
            self._busy.discard(name)

    async def wait_for_wake(self, name: str, until: float) -> None:
        """Waits until the task is woken, until a monotonic time, or for the longest time that a task may wait."""
        event = self._wakes[name]
        seconds = max(_MIN_WAIT_SECONDS, min(until - time.monotonic(), _MAX_WAIT_SECONDS))
        timer = asyncio.get_running_loop().call_later(seconds, event.set)
        await event.wait()
        timer.cancel()
        event.clear()


def time_of_next_check(seconds_until_due: float | None) -> float:
    """Returns the monotonic time at which a task looks for work again; None is for a task that knows of none."""
    return time.monotonic() + (_MAX_WAIT_SECONDS if seconds_until_due is None else seconds_until_due)

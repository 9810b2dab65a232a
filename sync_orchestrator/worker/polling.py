"""The polls of a worker: each source at its own pace, in one event loop."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.intake.polling import poll_reporting, polled_parts
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.errors import CallFailed
from sync_orchestrator.worker.tasks import TaskState

LOOK_SECONDS = 5.0
"""The longest time between two looks whether a source is due."""


@dataclass(frozen=True, slots=True)
class _PolledPart:
    entity: EntityContext
    part: str
    state: TaskState

    @property
    def interval_seconds(self) -> float:
        return min(LOOK_SECONDS, self.entity.settings.parts[self.part].poll_every)


class Polling:
    """Polls all sources that are polled; one that is slow or down keeps no other waiting."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._parts = [
            _PolledPart(entity, part, TaskState(f"polling {entity.name} {part}"))
            for entity, part in polled_parts(context)
        ]
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()

    @property
    def states(self) -> list[TaskState]:
        """How each source fares."""
        return [each.state for each in self._parts]

    def stop(self) -> None:
        """Ends the polls that are under way; the next worker goes on where they were."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._stopping.set)

    def run(self, stop: threading.Event) -> None:
        """Polls until ``stop`` is set and ``stop()`` is called."""
        perform(self._context, self._poll_all(stop))

    async def _poll_all(self, stop: threading.Event) -> None:
        with self._lock:
            self._loop = asyncio.get_running_loop()
        if stop.is_set():
            self._stopping.set()
        loops = [asyncio.create_task(self._poll_repeatedly(each)) for each in self._parts]
        await self._stopping.wait()
        with self._lock:
            self._loop = None
        for each in loops:
            each.cancel()
        await asyncio.wait(loops)  # leases are given back

    async def _poll_repeatedly(self, polled: _PolledPart) -> None:
        while True:
            try:
                pause = await self._poll_if_due(polled)
            except Exception as error:  # of whatever kind: it ends neither this poll nor another one
                pause = polled.state.note_failure(error)
            await asyncio.sleep(pause)

    async def _poll_if_due(self, polled: _PolledPart) -> float:
        """Polls one source if it is due, and returns the pause in seconds until the next look."""
        end = await poll_reporting(self._context, polled.entity, polled.part, polled.state.note_progress)
        if isinstance(end, CallFailed):
            return polled.state.note_failure(end)
        polled.state.note_success("" if end is None else f"{end.new} new of {end.shown}")
        return polled.interval_seconds

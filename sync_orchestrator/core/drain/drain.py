"""The drain: works off due events and records out of sync until nothing is due, and lingers while traffic flows.

Tasks of each entity archive its events (``archiver.py``), so that a slow source holds up no other; a task of each third
party pushes its records (``pusher.py``). They share the database and their activity (``activity.py``). Any number of
drains may run at once, on any machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.drain.activity import Activity
from sync_orchestrator.core.drain.archiver import TASKS_PER_ENTITY, Archiver
from sync_orchestrator.core.drain.presence import Presence, at_work
from sync_orchestrator.core.drain.pusher import Pusher
from sync_orchestrator.core.drain.wakeup import listen_for_work
from sync_orchestrator.core.ledger.event_claims import release_events
from sync_orchestrator.core.push.settlement import Settled
from sync_orchestrator.core.shutdown import ended_in_order
from sync_orchestrator.core.systems.installation import LOOK_INTERVAL_SECONDS

if TYPE_CHECKING:
    from sync_orchestrator.config import ThirdPartySettings

_HEARTBEAT_INTERVAL_SECONDS = 2.0
_SUCCESSOR_INTERVAL_SECONDS = 0.5
_QUIET_SECONDS = 1.0
"""A drain whose time is over needs no successor after this time without work."""
_WATCH_INTERVAL_SECONDS = 0.05
_WATCH_INTERVAL_WITHOUT_LINGER_SECONDS = 0.01


@dataclass(slots=True)
class DrainReport:
    """What a drain did; ``seconds`` from start to end, ``slowest`` the longest from received to finished."""

    events: int = 0
    calls: int = 0
    seconds: float = 0.0
    settled: Settled = field(default_factory=Settled)

    def add_archived(self, events: int, settled: Settled) -> None:
        """Adds a batch of events that were archived or otherwise decided."""
        self.events += events
        self.settled.add(settled)

    def add_pushed(self, calls: int, settled: Settled) -> None:
        """Adds a settlement of pushes."""
        self.calls += calls
        self.settled.add(settled)


Progress = Callable[[DrainReport], None]


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """When a drain ends.

    Attributes:
        linger_seconds: It ends after this time without work.
        max_seconds: Its time is over after this.
        hand_over_seconds: Once its time is over and there is work, it waits for a successor for at most this time.
        is_asked_to_end: Once this returns True, the drain finishes what is under way and begins nothing more.
    """

    linger_seconds: float
    max_seconds: float
    hand_over_seconds: float = 0.0
    is_asked_to_end: Callable[[], bool] = lambda: False


async def drain(
    context: Context,
    *,
    linger: float | None = None,
    most_seconds: float | None = None,
    progress: Progress | None = None,
    group: tuple[str, str] | None = None,
    asked_to_end: Callable[[], bool] = lambda: False,
    hand_over: float = 0.0,
) -> DrainReport:
    """Works until nothing has been due for ``linger`` seconds, or ``most_seconds`` have passed.

    Args:
        context: The database, the configuration, the entities and their systems.
        linger: In seconds; by default that of ``limits``.
        most_seconds: In seconds; by default that of ``limits``.
        progress: Called with the report in intervals.
        group: An entity and a business group. Only the records of the group are pushed, and events are left to others.
        asked_to_end: Once it returns True, what is under way is finished and nothing more is begun.
        hand_over: A drain whose time is over while there is work goes on until another one has begun, at most for so
            many seconds.

    Returns:
        What the drain did.

    Raises:
        CancelledError: The caller was cancelled. Calls under way have had GRACE_SECONDS (``shutdown.py``) to return and
            are settled, and what was claimed is given back.
    """
    defaults = context.config.limits
    limits = DrainLimits(
        defaults.linger if linger is None else linger,
        defaults.drain_seconds if most_seconds is None else most_seconds,
        hand_over,
        asked_to_end,
    )
    work = _Drain(context, limits, progress, group)
    with context.holder.keep_heartbeat():
        return await ended_in_order(work.run(), work.end_work)


class _Drain:
    """One drain of all records, or of the records of one business group."""

    def __init__(
        self, context: Context, limits: DrainLimits, progress: Progress | None, group: tuple[str, str] | None
    ) -> None:
        self._context = context
        self._limits = limits
        self._progress = progress
        self._group = group
        self._presence = Presence(context.engine) if group is None else None
        self._started = time.monotonic()
        self._systems = self._systems_to_push()
        self._archived = self._entities_to_archive()
        self._activity = Activity((*self._systems, *self._archived))
        self._archiving: list[asyncio.Task[None]] = []
        self._tokens: set[int] = set()
        self._report = DrainReport()

    async def run(self) -> DrainReport:
        """Works until a limit is reached."""
        await self._check_installation(at_most_every=0.0 if self._group is None else LOOK_INTERVAL_SECONDS)
        try:
            await self._run_tasks()
        finally:
            if self._tokens:
                with self._context.engine.begin() as connection:
                    release_events(connection, self._tokens)
            if self._presence is not None:
                self._presence.remove_heartbeat()
        if self._group is None:
            await self._check_installation(at_most_every=0.0)
        self._report.seconds = time.monotonic() - self._started
        return self._report

    def end_work(self) -> None:
        """Lets calls at third parties come to their end, and begins nothing more. Reading from sources ends at once."""
        for archiving in self._archiving:
            archiving.cancel()
        self._activity.end_work()

    def _systems_to_push(self) -> dict[str, ThirdPartySettings]:
        if self._group is None:
            return dict(self._context.iterate_systems())
        name = self._context.entities[self._group[0]].system_name
        return {name: self._context.config.third_parties[name]}

    def _entities_to_archive(self) -> dict[str, str]:
        """The entity of each task that archives."""
        if self._group is not None:
            return {}
        return {
            f"archive {entity} {number}": entity
            for entity in self._context.entities
            for number in range(TASKS_PER_ENTITY)
        }

    async def _run_tasks(self) -> None:
        activity, report = self._activity, self._report
        archivers = {
            entity: Archiver(self._context, entity, activity, self._tokens, report.add_archived)
            for entity in self._archived.values()
        }
        hints = (
            listen_for_work(self._context.engine, activity.wake_all) if self._limits.linger_seconds else nullcontext()
        )
        async with hints, asyncio.TaskGroup() as tasks:
            self._archiving = [
                tasks.create_task(archivers[entity].run(name)) for name, entity in self._archived.items()
            ]
            for name, system in self._systems.items():
                pusher = Pusher(self._context, name, system, activity, report.add_pushed, self._group)
                tasks.create_task(pusher.run())
            tasks.create_task(self._watch_limits())

    async def _check_installation(self, *, at_most_every: float) -> None:
        """Suspends pushes when the database was restored."""
        if self._context.installation is not None:
            await asyncio.to_thread(self._context.installation.check_if_due, at_most_every=at_most_every)

    async def _watch_limits(self) -> None:
        """Ends the drain at its limits; keeps its heartbeat and reports its progress."""
        linger = self._limits.linger_seconds
        interval = _WATCH_INTERVAL_SECONDS if linger else _WATCH_INTERVAL_WITHOUT_LINGER_SECONDS
        last_beat = 0.0
        if self._presence is not None:
            await asyncio.to_thread(self._presence.announce_drain)
        while not self._activity.is_ended:
            is_leaving = self._seconds_overdue() > 0
            if self._is_over(is_leaving=is_leaving):
                break
            now = time.monotonic()
            if now - last_beat >= (_SUCCESSOR_INTERVAL_SECONDS if is_leaving else _HEARTBEAT_INTERVAL_SECONDS):
                last_beat = now
                await self._record_beat(is_leaving=is_leaving)
                if is_leaving and await self._is_relieved():
                    break
            await asyncio.sleep(interval)
        self._activity.end_work()

    def _is_over(self, *, is_leaving: bool) -> bool:
        if self._activity.is_idle_for(self._limits.linger_seconds) or self._limits.is_asked_to_end():
            return True
        return is_leaving and (not self._limits.hand_over_seconds or self._activity.is_idle_for(_QUIET_SECONDS))

    def _seconds_overdue(self) -> float:
        return time.monotonic() - self._started - self._limits.max_seconds

    async def _record_beat(self, *, is_leaving: bool) -> None:
        if self._presence is not None:
            await asyncio.to_thread(self._presence.record_beat, leaving=is_leaving, events=self._report.events)
            await self._check_installation(at_most_every=LOOK_INTERVAL_SECONDS)
        if self._progress is not None:
            self._progress(self._report)

    async def _is_relieved(self) -> bool:
        if self._seconds_overdue() > self._limits.hand_over_seconds:
            return True
        return (await asyncio.to_thread(at_work, self._context.engine)).staying > 0

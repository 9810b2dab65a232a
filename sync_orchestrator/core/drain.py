"""The drain: works off due events and out-of-step records until nothing is due, lingering while traffic flows.

One task for each entity archives, so that a slow source holds up no other; one for each third party pushes. They share
nothing but the database and a wake-up. Any number
of drains may run at once, on any machine. Not here: what is done with an event (``events.py``) or a record
(``push.py``, ``settle.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field

from sqlalchemy import Connection

from sync_orchestrator.config import ThirdPartySystem
from sync_orchestrator.core import events
from sync_orchestrator.core.breaker import Gate, gate
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.errors import CallFailed
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.push import Claim, Pushed, claim, push
from sync_orchestrator.core.settle import Settled, settle
from sync_orchestrator.core.sql import in_transaction, run
from sync_orchestrator.core.statements import ledger as ledger_statements
from sync_orchestrator.core.statements import push as statements
from sync_orchestrator.core.status import end_heartbeat, heartbeat, paused_entities
from sync_orchestrator.core.wait import listening

_claimed = CrashPoint("drain.pushes_claimed")
_before_settle = CrashPoint("drain.before_settle")
_before_settle_commit = CrashPoint("drain.before_settle_commit")
_settled = CrashPoint("drain.settled")

_LONGEST_WAIT = 5.0
_GATHER = 0.008


@dataclass(slots=True)
class DrainReport:
    """What a drain did; ``seconds`` from start to end, ``slowest`` the longest from received to finished."""

    events: int = 0
    calls: int = 0
    seconds: float = 0.0
    settled: Settled = field(default_factory=Settled)


Progress = Callable[[DrainReport], None]


async def drain(
    context: Context, *, linger: float | None = None, most_seconds: float | None = None,
    progress: Progress | None = None, group: tuple[str, str] | None = None,
    asked_to_end: Callable[[], bool] = lambda: False,
) -> DrainReport:
    """Works until nothing has been due for ``linger`` seconds, or ``most_seconds`` have passed.

    Times are in seconds and come from ``limits`` unless told. With ``group`` (entity, business group) only that
    group's out-of-step records are pushed, and events are left to others. Once ``asked_to_end`` says so, what is under
    way is finished and nothing more is begun.
    """
    limits = context.config.limits
    work = _Drain(
        context, limits.linger if linger is None else linger,
        limits.drain_seconds if most_seconds is None else most_seconds, progress, group, asked_to_end,
    )
    return await work.run()


class _Drain:
    def __init__(self, context: Context, linger: float, most_seconds: float, progress: Progress | None,
                 group: tuple[str, str] | None, asked_to_end: Callable[[], bool]) -> None:
        self._context = context
        self._asked_to_end = asked_to_end
        self._linger = linger
        self._progress = progress
        self._group = group
        self._started = time.monotonic()
        self._ends = self._started + most_seconds
        self._last_work = self._started
        self._busy: set[str] = set()  # every task, until it says otherwise
        self._ended = asyncio.Event()
        self._wakes: dict[str, asyncio.Event] = {}
        self._tokens: set[int] = set()
        self.report = DrainReport()

    async def run(self) -> DrainReport:
        systems = self._systems()
        archived = {f"archive {name}": name for name in self._context.entities} if self._group is None else {}
        self._wakes = {name: asyncio.Event() for name in (*systems, *archived)}
        self._busy = set(self._wakes)
        try:
            hints = listening(self._context.engine, self._wake) if self._linger else nullcontext()
            async with hints, asyncio.TaskGroup() as tasks:
                for name, entity in archived.items():
                    tasks.create_task(self._archive(name, entity))
                for name, system in systems.items():
                    tasks.create_task(_Pusher(self, self._context, name, system, self._group).run())
                tasks.create_task(self._watch())
        finally:
            with self._context.engine.begin() as connection:
                run(connection, ledger_statements.RELEASE, tokens=sorted(self._tokens))
            if self._group is None:
                end_heartbeat(self._context.engine, "drain")
        self.report.seconds = time.monotonic() - self._started
        return self.report

    def _systems(self) -> dict[str, ThirdPartySystem]:
        if self._group is None:
            return dict(self._context.systems())
        name = self._context.entities[self._group[0]].system_name
        return {name: self._context.config.third_parties[name]}

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def _wake(self) -> None:
        self._busy |= self._wakes.keys()  # nobody counts as idle before it has looked
        for event in self._wakes.values():
            event.set()

    def did(self, name: str, work: bool) -> None:
        """A task says whether it has something under way; while one has, the drain stays."""
        if work:
            self._busy.add(name)
            self._last_work = time.monotonic()
        elif not self._wakes[name].is_set():  # woken while it looked: it has to look again
            self._busy.discard(name)

    async def wait(self, name: str, seconds: float) -> None:
        """Until something may have come up for this task, or the time is over."""
        event = self._wakes[name]
        ended = asyncio.create_task(self._ended.wait())
        woken = asyncio.create_task(event.wait())
        await asyncio.wait({ended, woken}, timeout=max(0.005, min(seconds, _LONGEST_WAIT)),
                           return_when=asyncio.FIRST_COMPLETED)
        for task in (ended, woken):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        event.clear()

    async def _watch(self) -> None:
        """Ends the drain when it is idle or old; keeps its heartbeat; tells how far it is."""
        beat = 0.0
        while not self.ended:
            now = time.monotonic()
            idle = not self._busy and now - self._last_work >= self._linger
            if idle or now > self._ends or self._asked_to_end():
                self._ended.set()
                self._wake()
                break
            if now - beat >= 2:
                beat = now
                if self._group is None:
                    await asyncio.to_thread(heartbeat, self._context.engine, "drain", {"events": self.report.events})
                if self._progress is not None:
                    self._progress(self.report)
            await asyncio.sleep(0.05 if self._linger else 0.01)

    async def _archive(self, name: str, entity: str) -> None:
        limits = self._context.config.limits
        while not self.ended:
            await asyncio.to_thread(in_transaction, self._context.engine,
                                    lambda connection: run(connection, ledger_statements.RELEASE_EXPIRED))
            count, settled = await events.work_off(self._context, limits.batch, self._tokens, entities=[entity])
            self.report.events += count
            self.report.settled.add(settled)
            self.did(name, count > 0)
            if count:
                self._wake()
            else:
                await self.wait(name, await asyncio.to_thread(self._next_event, entity))

    def _next_event(self, entity: str) -> float:
        with self._context.engine.begin() as connection:
            row = run(connection, ledger_statements.NEXT_DUE, entities=[entity])[0]
        return _LONGEST_WAIT if row.seconds is None else float(row.seconds)


class _Pusher:
    """Keeps up to ``Config.records_at_once`` pushes under way at one third party, and settles them as they end."""

    def __init__(self, owner: _Drain, context: Context, name: str, system: ThirdPartySystem,
                 group: tuple[str, str] | None) -> None:
        self._drain = owner
        self._context = context
        self._name = name
        self._system = system
        self._at_once = context.config.records_at_once(name)
        self._group = group
        self._under_way: set[asyncio.Task[Pushed]] = set()
        self._claimed: list[Claim] = []

    async def run(self) -> None:
        while True:
            wait = 0.0
            if not self._drain.ended and len(self._claimed) < self._at_once:
                wait = await self._claim()
            self._start()
            if self._under_way:
                self._drain.did(self._name, True)
                await self._settle_ended()
            elif self._drain.ended:
                break
            else:
                self._drain.did(self._name, False)
                await self._drain.wait(self._name, wait)
        await self._give_back()

    def _start(self) -> None:
        while self._claimed and len(self._under_way) < self._at_once and not self._drain.ended:
            claimed = self._claimed.pop(0)
            self._under_way.add(asyncio.create_task(push(self._context.entities[claimed.entity], claimed)))

    async def _claim(self) -> float:
        """Claims more records; returns how long to wait where there are none."""
        state, claims, due = await asyncio.to_thread(
            in_transaction, self._context.engine, self._claim_in)
        if claims:
            _claimed()
            self._claimed += claims
        return due if state.wait is None else state.wait

    def _claim_in(self, connection: Connection) -> tuple[Gate, list[Claim], float]:
        state = gate(connection, self._name, self._system)
        paused = paused_entities(connection)
        names = [entity.name for entity in self._context.of_system(self._name)
                 if entity.name not in paused and (self._group is None or entity.name == self._group[0])]
        if state.wait is not None or not names or (state.probe and (self._under_way or self._claimed)):
            return state, [], _LONGEST_WAIT
        group = None if self._group is None else self._group[1]
        claims = claim(
            connection, names, most=2 * self._at_once - len(self._claimed),
            lease=self._context.config.limits.lease, landing=self._system.landing_seconds, group=group,
            probe=state.probe,
        )
        if claims:
            return state, claims, 0.0
        row = run(connection, statements.NEXT_DUE, entities=names, group=group)[0]
        return state, [], _LONGEST_WAIT if row.seconds is None else float(row.seconds)

    async def _settle_ended(self) -> None:
        ended, self._under_way = await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        if self._under_way:  # settle several at once: those that end together cost one transaction
            more, self._under_way = await asyncio.wait(self._under_way, timeout=_GATHER)
            ended |= more
        pushed = [task.result() for task in ended]
        _before_settle()

        def work(connection: Connection) -> Settled:
            settled = settle(connection, self._name, self._system, self._context.entities, pushed)
            _before_settle_commit()
            return settled

        settled = await asyncio.to_thread(in_transaction, self._context.engine, work)
        _settled()
        self._drain.report.calls += sum(1 for end in pushed if end.called)
        await self._remove_twins(settled)
        self._drain.report.settled.add(settled)

    async def _remove_twins(self, settled: Settled) -> None:
        """A create that came after its lease had gone to another: what it made is ours to take back."""
        for end in settled.twins:
            item = Item(end.claim.key, end.claim.group, {}, end.external_id)
            with suppress(CallFailed):
                await self._context.entities[end.claim.entity].third_party.delete(item)
        settled.twins.clear()

    async def _give_back(self) -> None:
        if self._claimed:
            columns = {
                "entity": [claimed.entity for claimed in self._claimed],
                "key": [claimed.key for claimed in self._claimed],
                "token": [claimed.token for claimed in self._claimed],
            }
            await asyncio.to_thread(in_transaction, self._context.engine,
                                    lambda connection: run(connection, statements.UNCLAIM, **columns))

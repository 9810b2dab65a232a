"""The drain: works off due events and out-of-sync records until nothing is due, lingering while traffic flows.

One task for each entity archives, so that a slow source holds up no other; one for each third party pushes. They share
nothing but the database and a wake-up. Any number
of drains may run at once, on any machine. Not here: what is done with an event (``events.py``) or a record
(``push.py``, ``settle.py``).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.drain import event_batch
from sync_orchestrator.core.drain.presence import Presence, at_work
from sync_orchestrator.core.drain.wakeup import listening
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.operations.status import paused_entities
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.push import queries as push_queries
from sync_orchestrator.core.push.attempt import FIRST_PLACE, Claim, Pushed, claim, claim_in_turn, next_due, push
from sync_orchestrator.core.push.settlement import Settled, settle
from sync_orchestrator.core.push.stray_copies import take_back
from sync_orchestrator.core.shutdown import ended_in_order, ending
from sync_orchestrator.core.systems.accounts import ASK_AGAIN_SECONDS, ASK_INTERVAL_SECONDS, is_same_account
from sync_orchestrator.core.systems.breaker import Gate, gate
from sync_orchestrator.core.systems.installation import LOOK_INTERVAL_SECONDS
from sync_orchestrator.core.systems.suspension import suspension_of
from sync_orchestrator.errors import CallFailed

if TYPE_CHECKING:
    from sync_orchestrator.config import ThirdPartySystem

_claimed = CrashPoint("drain.pushes_claimed")
_before_settle = CrashPoint("drain.before_settle")
_before_settle_commit = CrashPoint("drain.before_settle_commit")
_settled = CrashPoint("drain.settled")

_LONGEST_WAIT = 5.0
_BEAT = 2.0
_LOOK_FOR_SUCCESSOR = 0.5
_QUIET = 1.0  # so long without work, a drain whose time is over needs no successor
_GATHER = 0.02
_AHEAD = 0.25
_MOST_AHEAD = 1000
_ARCHIVING = 2  # while one waits for the database the other works
_RELEASE_EVERY = 1.0


@dataclass(slots=True)
class DrainReport:
    """What a drain did; ``seconds`` from start to end, ``slowest`` the longest from received to finished."""

    events: int = 0
    calls: int = 0
    seconds: float = 0.0
    settled: Settled = field(default_factory=Settled)


Progress = Callable[[DrainReport], None]


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

    Times are in seconds and come from ``limits`` unless told. With ``group`` (entity, business group) only that
    group's out-of-sync records are pushed, and events are left to others. With ``hand_over`` a drain whose time is over
    while there is work goes on until another one has begun, at most for so many seconds. Once ``asked_to_end`` says
    so, what is under way is finished and nothing more is begun.

    Raises CancelledError where the caller is cancelled: calls under way have GRACE_SECONDS (``ending.py``) to return
    and are settled, and what was claimed is given back.
    """
    limits = context.config.limits
    work = _Drain(
        context,
        limits.linger if linger is None else linger,
        limits.drain_seconds if most_seconds is None else most_seconds,
        progress,
        group,
        asked_to_end,
        hand_over,
    )
    with context.holder.beating():
        return await ended_in_order(work.run(), work.end)


class _Drain:
    def __init__(
        self,
        context: Context,
        linger: float,
        most_seconds: float,
        progress: Progress | None,
        group: tuple[str, str] | None,
        asked_to_end: Callable[[], bool],
        hand_over: float,
    ) -> None:
        self._context = context
        self._hand_over = hand_over
        self._presence = Presence(context.engine) if group is None else None
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
        self._archiving: list[asyncio.Task[None]] = []
        self._taking = {name: threading.Lock() for name in context.entities}
        self.news = 0  # how often something came up
        self.report = DrainReport()

    async def run(self) -> DrainReport:
        systems = self._systems()
        archived = (
            {f"archive {name} {number}": name for name in self._context.entities for number in range(_ARCHIVING)}
            if self._group is None
            else {}
        )
        self._wakes = {name: asyncio.Event() for name in (*systems, *archived)}
        self._busy = set(self._wakes)
        await self._look_at_installation(at_most_every=0.0 if self._group is None else LOOK_INTERVAL_SECONDS)
        try:
            hints = listening(self._context.engine, self._wake) if self._linger else nullcontext()
            async with hints, asyncio.TaskGroup() as tasks:
                self._archiving = [tasks.create_task(self._archive(name, entity)) for name, entity in archived.items()]
                for name, system in systems.items():
                    tasks.create_task(_Pusher(self, self._context, name, system, self._group).run())
                tasks.create_task(self._watch())
        finally:
            if self._tokens:
                with self._context.engine.begin() as connection:
                    run(connection, ledger_queries.RELEASE_EVENTS, tokens=sorted(self._tokens))
            if self._presence is not None:
                self._presence.end()
        if self._group is None:
            await self._look_at_installation(at_most_every=0.0)
        self.report.seconds = time.monotonic() - self._started
        return self.report

    def end(self) -> None:
        """Lets calls at third parties come to their end, and begins nothing more. Reading from sources ends at once."""
        self._ended.set()
        for archiving in self._archiving:
            archiving.cancel()
        self._wake()

    async def _look_at_installation(self, *, at_most_every: float) -> None:
        """Suspends pushes when the database was restored."""
        if self._context.installation is not None:
            await asyncio.to_thread(self._context.installation.look, at_most_every=at_most_every)

    def _systems(self) -> dict[str, ThirdPartySystem]:
        if self._group is None:
            return dict(self._context.systems())
        name = self._context.entities[self._group[0]].system_name
        return {name: self._context.config.third_parties[name]}

    @property
    def ended(self) -> bool:
        """Whether nothing more is begun: a request to end counts at once, and its cancellation follows later."""
        return self._ended.is_set() or ending.is_requested

    def _wake(self) -> None:
        self.news += 1
        self._busy |= self._wakes.keys()  # nobody counts as idle before it has looked
        for event in self._wakes.values():
            event.set()

    def wake(self, name: str) -> None:
        """One task has to look at what became of what it began."""
        self._wakes[name].set()

    def looks(self, name: str) -> None:
        """A task looks whether there is anything to do; the drain stays until it knows."""
        self._busy.add(name)

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
        over = asyncio.get_running_loop().call_later(max(0.005, min(seconds, _LONGEST_WAIT)), event.set)
        await event.wait()
        over.cancel()
        event.clear()

    async def _watch(self) -> None:
        """Ends the drain when it is idle or old; keeps its heartbeat; tells how far it is."""
        beat = 0.0
        if self._presence is not None:
            await asyncio.to_thread(self._presence.begin)
        while not self.ended:
            now = time.monotonic()
            idle = not self._busy and now - self._last_work >= self._linger
            leaving = now > self._ends
            quiet = not self._busy and now - self._last_work >= _QUIET
            if idle or self._asked_to_end() or (leaving and (quiet or not self._hand_over)):
                break
            if now - beat >= (_LOOK_FOR_SUCCESSOR if leaving else _BEAT):
                beat = now
                if self._presence is not None:
                    await asyncio.to_thread(self._presence.beat, leaving=leaving, events=self.report.events)
                    await self._look_at_installation(at_most_every=LOOK_INTERVAL_SECONDS)
                if self._progress is not None:
                    self._progress(self.report)
                if leaving and await self._is_relieved():
                    break
            await asyncio.sleep(0.05 if self._linger else 0.01)
        self._ended.set()
        self._wake()

    async def _is_relieved(self) -> bool:
        if time.monotonic() > self._ends + self._hand_over:
            return True
        return (await asyncio.to_thread(at_work, self._context.engine)).staying > 0

    async def _archive(self, name: str, entity: str) -> None:
        limits = self._context.config.limits
        released = -_RELEASE_EVERY
        while not self.ended:
            if time.monotonic() - released >= _RELEASE_EVERY:
                released = time.monotonic()
                await asyncio.to_thread(
                    in_transaction,
                    self._context.engine,
                    lambda connection: run(connection, ledger_queries.RELEASE_EXPIRED_EVENTS),
                )
            count, settled = await event_batch.work_off(
                self._context, limits.batch, self._tokens, entities=[entity], alone=self._taking[entity]
            )
            self.report.events += count
            self.report.settled.add(settled)
            self.did(name, count > 0)
            if count:
                self._wake()
            else:
                await self.wait(name, await asyncio.to_thread(self._next_event, entity))

    def _next_event(self, entity: str) -> float:
        with self._context.engine.begin() as connection:
            row = run(connection, ledger_queries.SECONDS_UNTIL_NEXT_EVENT, entities=[entity])[0]
        return _LONGEST_WAIT if row.seconds is None else float(row.seconds)


class _Pusher:
    """Keeps up to ``Config.records_at_once`` pushes under way at one third party.

    More records are claimed, and those that ended are settled, while pushes go on: neither holds up the next one.
    """

    def __init__(
        self, owner: _Drain, context: Context, name: str, system: ThirdPartySystem, group: tuple[str, str] | None
    ) -> None:
        self._drain = owner
        self._context = context
        self._name = name
        self._system = system
        self._limit = context.call_limits.get(name)
        self._batch = context.config.largest_batch(name)
        self._most_at_once = context.config.records_at_once(name)
        if self._limit is not None:  # it sees to it that these are not too many calls
            self._most_at_once = max(self._most_at_once, min(_MOST_AHEAD, system.concurrency * self._batch))
        self._group = group
        self._claimed: deque[Claim] = deque()
        self._pushing = 0
        self._ended: list[Pushed] = []
        self._claiming = False
        self._settling = False
        self._gathered = False
        self._heard = -1  # the news that the last claim knew of
        self._look_at = 0.0
        self._done_before = 0, time.monotonic()
        self._ask_account_every = ASK_AGAIN_SECONDS if group else 0.0  # a drain asks before its first push
        self._more = False  # the last claim left some of what is due: the next one takes its records in turn
        self._turn = FIRST_PLACE

    @property
    def _at_once(self) -> int:
        """How many pushes to have under way: fewer where the third party does not answer that many."""
        if self._limit is None:
            return self._most_at_once
        return self._limit.records(self._batch, self._most_at_once)

    async def run(self) -> None:
        if self._limit is not None:
            await self._limit.look()
            self._limit.pushers += 1
        try:
            await self._work()
        finally:
            if self._limit is not None:
                self._limit.pushers -= 1

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._claim_more(tasks)
                self._start(tasks)
                self._settle_ended(tasks)
                if self._drain.ended:
                    await self._give_back_claimed()
                if self._working:
                    self._drain.did(self._name, True)
                elif self._claiming:
                    self._drain.looks(self._name)
                elif self._drain.ended:
                    break
                elif self._heard == self._drain.news:
                    self._drain.did(self._name, False)
                await self._drain.wait(self._name, self._look_at - time.monotonic())
        await self._give_back_claimed()

    @property
    def _working(self) -> bool:
        startable = bool(self._claimed) and not self._drain.ended
        return bool(self._pushing or self._ended or self._settling or startable)

    def _start(self, tasks: asyncio.TaskGroup) -> None:
        outcome_unknown = max(_MOST_AHEAD, 2 * self._at_once)
        while (
            self._claimed
            and self._pushing < self._at_once
            and len(self._ended) < outcome_unknown
            and not self._drain.ended
        ):
            self._pushing += 1
            tasks.create_task(self._push(self._claimed.popleft()))

    async def _push(self, claimed: Claim) -> None:
        ended = await push(self._context.entities[claimed.entity], claimed)
        self._pushing -= 1
        if not self._ended:
            self._gathered = False
            asyncio.get_running_loop().call_later(_GATHER, self._gather)
        self._ended.append(ended)
        if self._claimed or not self._pushing or len(self._ended) >= self._at_once:
            self._drain.wake(self._name)

    def _gather(self) -> None:
        self._gathered = True
        self._drain.wake(self._name)

    def _claim_more(self, tasks: asyncio.TaskGroup) -> None:
        if self._claiming or self._drain.ended or len(self._claimed) >= self._at_once:
            return
        if self._heard == self._drain.news and time.monotonic() < self._look_at:
            return
        self._claiming = True
        self._heard = self._drain.news
        tasks.create_task(self._claim())

    async def _claim(self) -> None:
        state, claims, due = await asyncio.to_thread(in_transaction, self._context.engine, self._claim_in)
        if claims:
            _claimed()
            if await self._is_same_account():
                self._claimed += claims
            else:
                await self._give_back(claims)
        self._look_at = time.monotonic() + (due if state.wait is None else state.wait)
        self._claiming = False
        self._drain.wake(self._name)

    async def _is_same_account(self) -> bool:
        """Whether what was claimed may be pushed: asked before the first push, and now and then after that."""
        every, self._ask_account_every = self._ask_account_every, ASK_INTERVAL_SECONDS
        return await is_same_account(self._context, self._name, at_most_every=every)

    def _claim_in(self, connection: Connection) -> tuple[Gate, list[Claim], float]:
        state = gate(connection, self._name, self._system)
        paused = paused_entities(connection)
        names = [
            entity.name
            for entity in self._context.of_system(self._name)
            if entity.name not in paused and (self._group is None or entity.name == self._group[0])
        ]
        under_way = self._pushing or self._claimed or self._ended or self._settling
        if state.wait is not None or not names or (state.probe and under_way):
            return state, [], _LONGEST_WAIT
        group = None if self._group is None else self._group[1]
        claims = self._claims_of(connection, names, group, probe=state.probe)
        if claims and self._drain.ended:  # nobody may be left to give them back
            run(connection, push_queries.RELEASE_EXPIRED_CLAIMS, **_columns(claims))
            return state, [], _LONGEST_WAIT
        if claims:
            return state, claims, 0.0
        due = next_due(connection, names, group)
        return state, [], _LONGEST_WAIT if due is None else due

    def _claims_of(
        self, connection: Connection, names: Sequence[str], group: str | None, *, probe: bool
    ) -> list[Claim]:
        """Where more is due than one claim takes, every second claim takes it in turn, so that nothing starves."""
        most = max(1, self._ahead() - len(self._claimed))
        lease, in_flight_window = self._context.config.limits.lease, self._system.in_flight_seconds
        hold, timeout = self._context.holder.hold, self._system.timeout
        if self._more and group is None and not probe:
            self._more = False
            claims, self._turn = claim_in_turn(
                connection,
                names,
                self._turn,
                most=most,
                lease=lease,
                in_flight_window=in_flight_window,
                hold=hold,
                timeout=timeout,
            )
            return claims
        claims = claim(
            connection,
            names,
            most=most,
            lease=lease,
            in_flight_window=in_flight_window,
            group=group,
            probe=probe,
            hold=hold,
            timeout=timeout,
        )
        self._more = len(claims) >= most
        return claims

    def _ahead(self) -> int:
        """How many records to have claimed: a quarter of a second's worth, so that live changes have their turn."""
        done, began = self._done_before
        now, ended = time.monotonic(), self._drain.report.calls
        rate = (ended - done) / max(0.05, now - began)
        self._done_before = ended, now
        return max(2 * self._at_once, min(int(rate * _AHEAD), _MOST_AHEAD))

    def _settle_ended(self, tasks: asyncio.TaskGroup) -> None:
        """Those that end together cost one transaction."""
        enough = self._gathered or not self._pushing or len(self._ended) >= self._at_once
        if self._ended and enough and not self._settling:
            self._settling = True
            pushed, self._ended = self._ended, []
            tasks.create_task(self._settle(pushed))

    async def _settle(self, pushed: Sequence[Pushed]) -> None:
        _before_settle()

        def work(connection: Connection) -> tuple[Settled, bool]:
            settled = settle(connection, self._name, self._system, self._context.entities, pushed)
            suspended = suspension_of(connection, self._name) is not None
            _before_settle_commit()
            return settled, suspended

        settled, suspended = await asyncio.to_thread(in_transaction, self._context.engine, work)
        if suspended:
            await self._give_back_claimed()
        _settled()
        self._drain.report.calls += sum(1 for end in pushed if end.called)
        await self._remove_duplicates(settled)
        self._drain.report.settled.add(settled)
        self._settling = False
        self._heard = -1  # what was settled may be due again, and a claim under way may not know of it
        self._drain.wake(self._name)

    async def _remove_duplicates(self, settled: Settled) -> None:
        """A create that came after its lease had gone to another: what it made is ours to take back."""
        for end in settled.duplicates:
            item = Item(end.claim.key, end.claim.group, {}, end.external_id)
            with suppress(CallFailed):
                await take_back(self._context.entities[end.claim.entity].third_party, item)
        settled.duplicates.clear()

    async def _give_back_claimed(self) -> None:
        claims = list(self._claimed)
        self._claimed.clear()
        await self._give_back(claims)

    async def _give_back(self, claims: Collection[Claim]) -> None:
        if claims:
            await asyncio.to_thread(
                in_transaction,
                self._context.engine,
                lambda connection: run(connection, push_queries.RELEASE_EXPIRED_CLAIMS, **_columns(claims)),
            )


def _columns(claims: Collection[Claim]) -> dict[str, list[Any]]:
    return {
        "entity": [claimed.entity for claimed in claims],
        "key": [claimed.key for claimed in claims],
        "token": [claimed.token for claimed in claims],
    }

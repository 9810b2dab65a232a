"""Pushes the due records of one third party, while a drain goes on."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.drain.activity import time_of_next_check
from sync_orchestrator.core.drain.push_pace import PushPace
from sync_orchestrator.core.drain.record_claimer import ClaimResult, RecordClaimer
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.push.account_check import CHECK_INTERVAL_SECONDS, RECHECK_SECONDS, is_same_account
from sync_orchestrator.core.push.attempt import push_record
from sync_orchestrator.core.push.claims import PushClaim, release_claims
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.core.push.settlement import Settled, settle_pushes
from sync_orchestrator.core.push.stray_copies import take_back
from sync_orchestrator.core.systems.suspension import suspension_of
from sync_orchestrator.errors import CallFailed

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sync_orchestrator.config import ThirdPartySettings
    from sync_orchestrator.core.context import Context
    from sync_orchestrator.core.drain.activity import Activity

_claimed = CrashPoint("drain.pushes_claimed")
_before_settle = CrashPoint("drain.before_settle")
_before_settle_commit = CrashPoint("drain.before_settle_commit")
_settled = CrashPoint("drain.settled")

_GATHER_SECONDS = 0.02
_NEVER_LOOKED = -1


class Pusher:
    """Keeps as many pushes under way at one third party as its pace allows.

    More records are claimed, and pushes that ended are settled, while others go on: neither holds up the next push.

    Args:
        context: What the drain works with.
        name: The third party, and this task of the drain.
        system: The settings of the third party.
        activity: What the tasks of the drain share.
        report: Called with the number of calls of each settlement, and with its result.
        group: The entity and the business group whose records are pushed; None for all records.
    """

    def __init__(
        self,
        context: Context,
        name: str,
        system: ThirdPartySettings,
        activity: Activity,
        report: Callable[[int, Settled], None],
        group: tuple[str, str] | None = None,
    ) -> None:
        self._context = context
        self._name = name
        self._system = system
        self._activity = activity
        self._report = report
        self._pace = PushPace(context, name, system)
        self._claimer = RecordClaimer(context, name, system, group)
        self._account_interval_seconds = RECHECK_SECONDS if group else 0.0  # a drain asks before its first push
        self._claimed: deque[PushClaim] = deque()
        self._pushing_count = 0
        self._pushed: list[Pushed] = []
        self._is_claiming = False
        self._is_settling = False
        self._is_gathered = False
        self._news_seen = _NEVER_LOOKED  # the news that the last claim knew of
        self._look_at = 0.0

    async def run(self) -> None:
        """Works until the activity ends, and what is under way with it."""
        async with self._pace.register_pusher(), asyncio.TaskGroup() as tasks:
            while True:
                self._begin_claim(tasks)
                self._begin_pushes(tasks)
                self._begin_settlement(tasks)
                if self._activity.is_ended:
                    await self._release_claimed()
                if self._is_working:
                    self._activity.note_work(self._name)
                elif self._is_claiming:
                    self._activity.note_check(self._name)
                elif self._activity.is_ended:
                    break
                elif self._news_seen == self._activity.news_count:
                    self._activity.note_idle(self._name)
                await self._activity.wait_for_wake(self._name, self._look_at)
            await self._release_claimed()

    @property
    def _is_working(self) -> bool:
        startable = bool(self._claimed) and not self._activity.is_ended
        return bool(self._pushing_count or self._pushed or self._is_settling or startable)

    def _begin_pushes(self, tasks: asyncio.TaskGroup) -> None:
        max_unsettled = self._pace.max_unsettled
        while (
            self._claimed
            and self._pushing_count < self._pace.at_once
            and len(self._pushed) < max_unsettled
            and not self._activity.is_ended
        ):
            self._pushing_count += 1
            tasks.create_task(self._push_record(self._claimed.popleft()))

    async def _push_record(self, claimed: PushClaim) -> None:
        pushed = await push_record(self._context.entities[claimed.entity], claimed)
        self._pushing_count -= 1
        if not self._pushed:
            self._is_gathered = False
            asyncio.get_running_loop().call_later(_GATHER_SECONDS, self._note_gathered)
        self._pushed.append(pushed)
        if self._claimed or not self._pushing_count or len(self._pushed) >= self._pace.at_once:
            self._activity.wake_task(self._name)

    def _note_gathered(self) -> None:
        self._is_gathered = True
        self._activity.wake_task(self._name)

    def _begin_claim(self, tasks: asyncio.TaskGroup) -> None:
        if self._is_claiming or self._activity.is_ended or len(self._claimed) >= self._pace.at_once:
            return
        if self._news_seen == self._activity.news_count and time.monotonic() < self._look_at:
            return
        self._is_claiming = True
        self._news_seen = self._activity.news_count
        tasks.create_task(self._claim_records())

    async def _claim_records(self) -> None:
        found = await asyncio.to_thread(in_transaction, self._context.engine, self._claim_in)
        if found.claims:
            _claimed()
            if await self._is_same_account():
                self._claimed += found.claims
            else:
                await self._release_claims(found.claims)
        self._look_at = time_of_next_check(found.seconds_until_due)
        self._is_claiming = False
        self._activity.wake_task(self._name)

    def _claim_in(self, connection: Connection) -> ClaimResult:
        is_busy = bool(self._pushing_count or self._claimed or self._pushed or self._is_settling)
        most = max(1, self._pace.measure_ahead() - len(self._claimed))
        found = self._claimer.claim_records(connection, most, is_busy=is_busy)
        if found.claims and self._activity.is_ended:  # no task may be left to release them
            release_claims(connection, found.claims)
            return ClaimResult()
        return found

    async def _is_same_account(self) -> bool:
        """Returns whether claimed records may be pushed: asks before the first push, and in intervals after that."""
        seconds, self._account_interval_seconds = self._account_interval_seconds, CHECK_INTERVAL_SECONDS
        return await is_same_account(self._context, self._name, at_most_every=seconds)

    def _begin_settlement(self, tasks: asyncio.TaskGroup) -> None:
        """Pushes that end together cost one transaction."""
        is_enough = self._is_gathered or not self._pushing_count or len(self._pushed) >= self._pace.at_once
        if self._pushed and is_enough and not self._is_settling:
            self._is_settling = True
            pushed, self._pushed = self._pushed, []
            tasks.create_task(self._settle_pushes(pushed))

    async def _settle_pushes(self, pushed: Sequence[Pushed]) -> None:
        _before_settle()

        def settle_and_check(connection: Connection) -> tuple[Settled, bool]:
            settled = settle_pushes(connection, self._name, self._system, self._context.entities, pushed)
            suspended = suspension_of(connection, self._name) is not None
            _before_settle_commit()
            return settled, suspended

        settled, suspended = await asyncio.to_thread(in_transaction, self._context.engine, settle_and_check)
        if suspended:
            await self._release_claimed()
        _settled()
        calls = sum(1 for end in pushed if end.calls.called)
        self._pace.note_calls(calls)
        await self._remove_duplicates(settled)
        self._report(calls, settled)
        self._is_settling = False
        self._news_seen = _NEVER_LOOKED  # what was settled may be due again, and a claim may not know of it
        self._activity.wake_task(self._name)

    async def _remove_duplicates(self, settled: Settled) -> None:
        """Removes what creates made whose claim had gone to another drain before they ended."""
        for end in settled.duplicates:
            item = Item(end.claim.key, end.claim.group, {}, end.external_id)
            with suppress(CallFailed):
                await take_back(self._context.entities[end.claim.entity].third_party, item)
        settled.duplicates.clear()

    async def _release_claimed(self) -> None:
        claims = list(self._claimed)
        self._claimed.clear()
        await self._release_claims(claims)

    async def _release_claims(self, claims: Collection[PushClaim]) -> None:
        if claims:
            await asyncio.to_thread(
                in_transaction, self._context.engine, lambda connection: release_claims(connection, claims)
            )

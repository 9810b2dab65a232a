"""One push: the state machine that brings one claimed record at the third party to its newest archived state.

A push is in a ``Phase``. Each phase makes its calls and returns the state that follows, or the end of the push. A call
that fails ends the push with the state that its phase began with, and with all that was called and sent (``calls.py``).
The end says what is not known: a write whose answer is lost leaves the outcome unknown, and the next push finds it out
(``decision.py``). What an end means for record, events and breaker is in ``settlement.py``.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Protocol

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.ports import Found, Item, Json, ThirdParty, WriteGuard
from sync_orchestrator.core.push.absent_records import build_absent_failure
from sync_orchestrator.core.push.calls import PushCalls, first_id
from sync_orchestrator.core.push.claims import PushClaim
from sync_orchestrator.core.push.decision import (
    PushStep,
    Situation,
    after_lookup,
    groups_elsewhere,
    has_moved,
    plan_step,
    search_wait,
    situation_of,
)
from sync_orchestrator.core.push.result import Pushed
from sync_orchestrator.core.push.shared_writes import build_guard
from sync_orchestrator.core.push.states import Aim, Phase, PushState
from sync_orchestrator.core.push.stray_copies import delete_all_of_key, delete_copies_at, delete_late_creates
from sync_orchestrator.core.tracing import continue_trace
from sync_orchestrator.core.values.places import digest_of_found, digest_of_write
from sync_orchestrator.errors import CallFailed, Failure, MappingFailed, Refusal

if TYPE_CHECKING:
    from sync_orchestrator.config import ThirdPartySettings
    from sync_orchestrator.core.context import EntityContext
    from sync_orchestrator.core.values.mapping import Mapping as PayloadMapping

_log = logging.getLogger("sync_orchestrator.push")

_after_call = CrashPoint("push.after_call")
_half_deleted = CrashPoint("push.half_deleted")

_RECHECK_SECONDS = 2.0
"""After so long a record is pushed again whose other side was to be read first; a merge makes it due at once."""

_RECHECK_FOUND_SECONDS = 60.0
"""The same where a search has found a record that is not linked yet: without a link, nothing changes."""


class PushTarget(Protocol):
    """What a push goes to: a collection at a third party, and how payloads are compared there."""

    @property
    def third_party(self) -> ThirdParty:
        """The collection to push to."""
        ...

    @property
    def mapping(self) -> PayloadMapping:
        """From a record's parts to the payload."""
        ...

    @property
    def system(self) -> ThirdPartySettings:
        """The settings of the third party."""
        ...


async def push_record(entity: EntityContext, claimed: PushClaim) -> Pushed:
    """Carries out one push; every failure is in the result, none is raised."""
    try:
        payload = None if claimed.deleted else entity.mapping.build_payload(claimed.key, claimed.group, claimed.parts)
        return await push_payload(entity, claimed, payload, build_guard(entity, claimed, payload))
    except (MappingFailed, ValueError) as error:
        return Pushed(claimed, PushStep.NOTHING, failure=CallFailed(Failure.PERMANENT, str(error)))


async def push_payload(
    target: PushTarget, claimed: PushClaim, payload: Json | None, guard: WriteGuard | None = None
) -> Pushed:
    """Carries out the push of a payload that is mapped already; None for a deleted record.

    With a ``guard``, what somebody else has changed meanwhile is not written over.

    Every failure of a call is in the result. Raises ValueError for a payload that has no digest.
    """
    wanted = None if payload is None else target.mapping.digest_of_ours(payload)
    attempt = _Attempt(target, claimed, payload, wanted, guard)
    try:
        return await (attempt.run() if claimed.trace is None else _run_traced(attempt, claimed))
    except Exception as error:  # an adapter that somebody wrote: one record's trouble, not the drain's
        _log.exception("unexpected error while pushing %s %r", claimed.entity, claimed.key)
        return attempt.end_by_error(error)


async def _run_traced(attempt: _Attempt, claimed: PushClaim) -> Pushed:
    with (
        suppress(CallFailed),
        continue_trace(claimed.trace, f"push {claimed.entity}", entity=claimed.entity, key=claimed.key),
    ):
        ended = await attempt.run()
        if ended.failure is not None and not ended.held:
            raise ended.failure  # so that the span has it
    return ended


class _Attempt:
    """One push: its rules are fixed, and only ``run`` moves its state."""

    def __init__(
        self,
        target: PushTarget,
        claimed: PushClaim,
        payload: Json | None,
        wanted: bytes | None,
        guard: WriteGuard | None,
    ) -> None:
        capabilities = target.third_party.capabilities
        self._capabilities = capabilities
        self._third_party = target.third_party
        self._mapping = target.mapping
        self._search_lag = target.system.search_lag
        self._in_flight_window = target.system.in_flight_seconds
        self._claim = claimed
        self._wanted = wanted
        self._write_digest = digest_of_write(wanted, capabilities, claimed.group)
        self._elsewhere = groups_elsewhere(claimed, capabilities)
        self._leaves_place = has_moved(claimed, capabilities) and not claimed.deleted and capabilities.can_delete
        self._calls = PushCalls(target.third_party, claimed, target.mapping)
        item = Item(
            key=claimed.key,
            group=claimed.applied_group or claimed.group if claimed.deleted else claimed.group,
            payload=payload or {},
            external_id=None if self._leaves_place else claimed.external_id,
            idempotency_key=_idempotency_key(claimed),
            deadline=claimed.deadline,
            guard=guard,
        )
        situation = situation_of(claimed, capabilities, wanted, self._write_digest)
        self._state = PushState(Phase.START, plan_step(situation, capabilities), item, situation)

    async def run(self) -> Pushed:
        """Goes from phase to phase to the end of the push. An error that is no CallFailed is raised."""
        while True:
            try:
                reached = await _PHASES[self._state.phase](self, self._state)
            except CallFailed as failure:
                if failure.refusal is Refusal.CHANGED_SINCE_READ:
                    return self._end_to_be_read(self._state, "changed")
                return self._end_failed(self._state, failure)
            if isinstance(reached, Pushed):
                return reached
            self._state = reached

    def end_by_error(self, error: Exception) -> Pushed:
        """The end of a push that an unexpected error ended: what was sent may have been carried out."""
        failure = CallFailed(Failure.TRANSIENT, f"{type(error).__name__}: {error}", unknown=self._calls.made.sent)
        return self._end_failed(self._state, failure)

    # Phases ---------------------------------------------------------------------------------------------------------

    async def _start_push(self, state: PushState) -> PushState | Pushed:
        match state.step:
            case PushStep.REJECTED:
                refusal = CallFailed(Failure.PERMANENT, "the third party refused this very payload before")
                return self._end_failed(state, refusal, is_payload_refused=True)
            case PushStep.NOTHING | PushStep.NOT_SENT:
                return self._end_acknowledged(state)
            case PushStep.HOLD if not self._claim.late_creates:
                return self._end_on_hold(state)
        self._calls.begin_calls()
        if state.step is PushStep.HOLD:  # an operator decides what is unknown; what is known to be too much goes
            await delete_late_creates(self._calls, state.item, self._claim.late_creates)
            return self._end_on_hold(state)
        if state.step is PushStep.READ_BACK:
            return replace(state, phase=Phase.READ_BACK)
        return self._enter_step(state)

    async def _read_back(self, state: PushState) -> PushState | Pushed:
        found = await self._calls.read_record(state.item)
        if found is None:
            return self._end_to_be_read(state, "gone") if self._is_linked else self._go_on_without_id(state)
        is_same = self._is_as_wanted(found, state)
        if is_same or self._capabilities.assigns_ids:
            state = replace(state, item=replace(state.item, external_id=found.external_id))
        return self._enter_step(replace(state, step=PushStep.NOTHING if is_same else PushStep.UPDATE))

    async def _look_up(self, state: PushState) -> PushState | Pushed:
        if self._claim.deleted:
            found = await delete_all_of_key(self._calls, state.item, {self._claim.group or "", *self._elsewhere})
        else:
            shown = await self._calls.search_by_key(state.item, state.item.group)
            found = first_id(shown)
            if found is not None and self._claim.shared is not None and not self._claim.shared.is_linked:
                return self._end_to_be_read(state, "changed", found)
            state = replace(state, item=replace(state.item, external_id=found))
            if self._is_linked and found is None:
                return self._end_to_be_read(state, "gone")
            if self._is_linked and len(shown) == 1 and self._is_as_wanted(shown[0], state):
                return self._enter_step(replace(state, step=PushStep.NOTHING))
        can_create = self._capabilities.can_create
        step = after_lookup(state.situation, found, self._search_lag, can_create=can_create)
        if step is None:
            return self._end_postponed(state, search_wait(state.situation, self._search_lag))
        return self._enter_step(replace(state, step=step))

    async def _clear_old_place(self, state: PushState) -> PushState | Pushed:
        old = replace(state.item, group=self._claim.applied_group, external_id=self._claim.external_id)
        await self._calls.delete_record(old)
        return self._enter_step(replace(state, is_cleared=True))

    async def _lookup_before_update(self, state: PushState) -> PushState | Pushed:
        target = await self._calls.find_target(state.item, "update")
        if self._is_linked and not target.is_there:
            return self._end_to_be_read(state, "gone")
        if target.item is None or not (target.is_there or self._capabilities.can_create):
            return self._after_missed_update(state)
        state = replace(state, item=target.item)
        may_prove = self._is_linked and not self._capabilities.has_linked_calls
        if may_prove and target.found is not None and self._is_as_wanted(target.found, state):
            return self._enter_step(replace(state, step=PushStep.NOTHING))  # the other side has it by itself
        return replace(state, phase=Phase.UPDATE)

    async def _update_record(self, state: PushState) -> PushState | Pushed:
        try:
            external_id = await self._calls.update_record(state.item)
        except CallFailed as failure:
            if failure.refusal is Refusal.CHANGED_SINCE_READ:
                raise
            if failure.refusal is Refusal.HALF_WRITTEN and self._can_remake:
                return replace(state, phase=Phase.DELETE_HALF, half=failure)
            return self._end_failed(state, failure, is_payload_refused=_is_refusal(failure))
        if external_id is None:
            return self._after_missed_update(state)
        return replace(state, phase=Phase.CLEAN_UP, item=replace(state.item, external_id=external_id))

    async def _delete_half(self, state: PushState) -> PushState | Pushed:
        """Deletes what is there of a record that no update completes; ends the push where that did not help before.

        Its id is forgotten in a transaction of its own before the record is made anew, so that a crash in between
        leaves no create of unknown outcome behind an id that leads to nothing. A half that a create has made spends an
        attempt.
        """
        failure = state.half
        assert failure is not None
        if state.is_remade:
            return self._end_failed(state, failure)
        if state.aim is Aim.CREATE:
            await self._calls.delete_created(state.item)
            _half_deleted()
            state = replace(state, item=replace(state.item, external_id=None), is_cleared=True, is_create_refused=True)
            return self._end_failed(state, failure)
        await self._calls.delete_record(state.item)
        _half_deleted()
        return self._after_missed_update(replace(state, is_remade=True, is_create_refused=True))

    async def _create_record(self, state: PushState) -> PushState | Pushed:
        if self._claim.shared is not None and (same := await self._calls.find_same(state.item)) is not None:
            return self._end_to_be_read(state, "changed", same)
        try:
            external_id = await self._calls.create_record(replace(state.item, guard=None))
        except CallFailed as failure:
            return self._after_failed_create(state, failure)
        state = replace(state, phase=Phase.CLEAN_UP, item=replace(state.item, external_id=external_id))
        if state.situation.outcome_unknown_for is not None and self._capabilities.idempotent_create:
            return self._to_update(state, Aim.REPEATED_CREATE)
        return state

    async def _take_over(self, state: PushState) -> PushState | Pushed:
        found = first_id(await self._calls.search_by_key(state.item, state.item.group))
        if found is not None and self._claim.shared is not None:
            return self._end_to_be_read(state, "changed", found)
        state, duplicate = replace(state, item=replace(state.item, external_id=found)), state.duplicate
        assert duplicate is not None
        if found is not None:
            return self._to_update(state, Aim.TAKE_OVER)
        if self._search_lag or state.situation.outcome_unknown_for is not None:
            failure = CallFailed(
                Failure.TRANSIENT, f"{duplicate.detail}: its search does not show it yet", status=duplicate.status
            )
            return self._end_failed(state, failure)
        return self._end_failed(state, duplicate, is_payload_refused=_is_refusal(duplicate))

    async def _delete_record(self, state: PushState) -> PushState | Pushed:
        """Deletes the record; where its id leads elsewhere, what carries its key."""
        if await self._calls.delete_record(state.item) or not self._capabilities.can_lookup:
            return replace(state, phase=Phase.CLEAN_UP)
        return replace(state, phase=Phase.LOOK_UP, item=replace(state.item, external_id=None))

    async def _clean_up(self, state: PushState) -> PushState | Pushed:
        await delete_late_creates(self._calls, state.item, self._claim.late_creates)
        is_deleted_everywhere = self._claim.deleted and self._capabilities.assigns_ids  # a search has shown all of it
        look_again = 0.0
        if self._elsewhere and not is_deleted_everywhere:
            await delete_copies_at(self._calls, state.item, self._elsewhere)
            if self._capabilities.assigns_ids and self._capabilities.can_lookup:
                look_again = max(0.0, (self._claim.outcome_unknown_for or 0.0) + self._search_lag)
        _after_call()
        return self._end_acknowledged(state, look_again)

    # What follows ---------------------------------------------------------------------------------------------------

    def _enter_step(self, state: PushState) -> PushState | Pushed:
        """The phase, or the end, that the step of a state asks for."""
        if state.step is PushStep.LOOK_UP:
            return replace(state, phase=Phase.LOOK_UP)
        if state.step in (PushStep.WAIT, PushStep.FORGET):
            return self._end_without_id(state)
        if state.step is PushStep.ABSENT:
            return self._end_absent(state)
        if self._leaves_place and not state.is_cleared:
            return replace(state, phase=Phase.CLEAR_OLD_PLACE)
        match state.step:
            case PushStep.HOLD:
                return self._end_on_hold(state)
            case PushStep.UPDATE:
                return self._to_update(state, state.aim)
            case PushStep.CREATE:
                return replace(state, phase=Phase.CREATE)
            case PushStep.DELETE:
                return replace(state, phase=Phase.DELETE)
        return replace(state, phase=Phase.CLEAN_UP)

    def _to_update(self, state: PushState, aim: Aim) -> PushState:
        needs_look = self._calls.needs_look(state.item, "update")
        return replace(state, phase=Phase.LOOK_BEFORE_UPDATE if needs_look else Phase.UPDATE, aim=aim)

    def _go_on_without_id(self, state: PushState) -> PushState | Pushed:
        """The known id leads to nothing: what follows is planned as for a record without one."""
        if not self._capabilities.assigns_ids and not self._capabilities.can_create:
            return self._end_absent(state)
        if not self._capabilities.assigns_ids:
            if self._calls.made.wrote and not state.is_remade:
                return self._end_failed(state, _nothing_was_made())
            return self._enter_step(replace(state, step=PushStep.UPDATE))
        situation = replace(state.situation, external_id=None, applied_digest=None, lost=True)
        step = plan_step(situation, self._capabilities)
        can_be_made = (
            situation.outcome_unknown_for is None
            or self._capabilities.can_lookup
            or self._capabilities.idempotent_create
        )
        if state.is_remade and can_be_made:
            step = PushStep.FORGET  # it is known to be gone, so nothing has to be waited for
        item = replace(state.item, external_id=None)
        return self._enter_step(replace(state, step=step, item=item, situation=situation))

    def _after_missed_update(self, state: PushState) -> PushState | Pushed:
        """Nothing of ours was under the id of an update, or only a half that is deleted."""
        if self._is_linked and not state.is_remade:
            return self._end_to_be_read(state, "gone")
        match state.aim:
            case Aim.FIRST_UPDATE:
                return self._go_on_without_id(replace(state, aim=Aim.SECOND_UPDATE))
            case Aim.TAKE_OVER:
                return self._end_not_taken_over(state)
            case Aim.REPEATED_CREATE:  # its key is answered for a record that is gone: the next create needs another
                text = "what it says it has made cannot be found under the id it gave"
                return self._end_failed(replace(state, is_create_refused=True), CallFailed(Failure.TRANSIENT, text))
        text = "its search shows a record that cannot be found under its id"
        return self._end_failed(state, CallFailed(Failure.TRANSIENT, text))

    def _after_failed_create(self, state: PushState, failure: CallFailed) -> PushState | Pushed:
        state = replace(state, is_create_refused=_is_create_refused(failure, state.situation))
        if failure.external_id is not None:
            state = replace(state, item=replace(state.item, external_id=failure.external_id))
            if failure.refusal is Refusal.HALF_WRITTEN and self._can_remake:
                return replace(state, phase=Phase.DELETE_HALF, aim=Aim.CREATE, half=failure)
        if failure.may_be_duplicate and self._capabilities.can_lookup:
            return replace(state, phase=Phase.TAKE_OVER, duplicate=failure)
        return self._end_failed(state, failure, is_payload_refused=_is_refusal(failure))

    @property
    def _is_linked(self) -> bool:
        """Whether people change the record on the other side, too: what is gone there was deleted by them."""
        return self._claim.shared is not None and self._claim.shared.is_linked

    def _is_as_wanted(self, found: Found, state: PushState) -> bool:
        return digest_of_found(self._mapping, self._capabilities, found, state.item.group) == self._wanted

    @property
    def _can_remake(self) -> bool:
        return self._capabilities.can_create and self._capabilities.can_delete

    # Ends -----------------------------------------------------------------------------------------------------------

    def _end_acknowledged(self, state: PushState, look_again: float = 0.0) -> Pushed:
        gone = self._claim.deleted
        external_id = state.item.external_id if state.item.external_id is not None else self._claim.external_id
        is_settled = state.situation.outcome_unknown_for is None or state.situation.outcome_unknown_for <= 0
        return Pushed(
            self._claim,
            PushStep.DELETE if gone and self._calls.made.deleted else state.step,
            self._calls.made,
            digest=self._wanted,
            external_id=None if gone and is_settled else external_id,
            look_again=look_again,
        )

    def _end_failed(self, state: PushState, failure: CallFailed, *, is_payload_refused: bool = False) -> Pushed:
        return Pushed(
            self._claim,
            state.step,
            self._calls.made,
            failure=failure,
            rejected_digest=self._write_digest if is_payload_refused else None,
            external_id=self._id_to_keep(state),
            cleared=state.is_cleared,
            refused=state.is_create_refused,
        )

    def _end_absent(self, state: PushState) -> Pushed:
        """The record is not there, and is not made: it waits, and what was acknowledged of it is forgotten."""
        item = replace(state.item, external_id=None)
        return self._end_failed(
            replace(state, step=PushStep.ABSENT, item=item, is_cleared=True), build_absent_failure()
        )

    def _end_not_taken_over(self, state: PushState) -> Pushed:
        duplicate = state.duplicate
        assert duplicate is not None
        if not state.is_remade:
            return self._end_failed(state, duplicate, is_payload_refused=_is_refusal(duplicate))
        failure = CallFailed(
            Failure.TRANSIENT,
            "a part of the record had its key and is deleted; it is made anew",
            status=duplicate.status,
        )
        return self._end_failed(replace(state, item=replace(state.item, external_id=None), is_cleared=True), failure)

    def _end_postponed(self, state: PushState, wait: float) -> Pushed:
        return Pushed(
            self._claim,
            PushStep.LOOK_UP,
            self._calls.made,
            postponed=wait,
            external_id=self._id_to_keep(state),
            cleared=state.is_cleared,
        )

    def _end_to_be_read(
        self, state: PushState, recheck: Literal["changed", "gone"], found: str | None = None
    ) -> Pushed:
        """Nothing is written over what somebody has changed: the other side's record is read, and merged, first.

        An id that leads to nothing is forgotten: somebody may have made the record again, under another one.
        """
        is_gone = recheck == "gone"
        return Pushed(
            self._claim,
            state.step,
            self._calls.made,
            postponed=_RECHECK_SECONDS if found is None else _RECHECK_FOUND_SECONDS,
            external_id=None if is_gone else self._id_to_keep(state),
            cleared=is_gone or state.is_cleared,
            recheck=recheck,
            recheck_id=found,
        )

    def _end_without_id(self, state: PushState) -> Pushed:
        """Waits until no older call can still land: only then does an id that leads to nothing prove that it is gone.

        Then it is forgotten, and the next push makes the record.
        """
        left = state.situation.outcome_unknown_for
        if state.step is PushStep.FORGET:
            return Pushed(
                self._claim,
                state.step,
                self._calls.made,
                postponed=0.0,
                cleared=True,
                settled=left is None or left <= 0,
                refused=True,
            )
        return Pushed(
            self._claim,
            state.step,
            self._calls.made,
            postponed=self._in_flight_window if left is None else max(left, 0.0),
            external_id=self._claim.external_id,
            cleared=state.is_cleared,
            outcome_unknown=left is None,
        )

    def _end_on_hold(self, state: PushState) -> Pushed:
        return Pushed(
            self._claim,
            PushStep.HOLD,
            self._calls.made,
            held=True,
            cleared=state.is_cleared,
            failure=CallFailed(
                Failure.PERMANENT, "a create's outcome is unknown, and the third party cannot be searched by key"
            ),
        )

    def _id_to_keep(self, state: PushState) -> str | None:
        """The id at the new place of a move only once the old place, whose id is known till then, is cleared."""
        return None if self._leaves_place and not state.is_cleared else state.item.external_id


_PHASES: Mapping[Phase, Callable[[_Attempt, PushState], Awaitable[PushState | Pushed]]] = {
    Phase.START: _Attempt._start_push,
    Phase.READ_BACK: _Attempt._read_back,
    Phase.LOOK_UP: _Attempt._look_up,
    Phase.CLEAR_OLD_PLACE: _Attempt._clear_old_place,
    Phase.LOOK_BEFORE_UPDATE: _Attempt._lookup_before_update,
    Phase.UPDATE: _Attempt._update_record,
    Phase.DELETE_HALF: _Attempt._delete_half,
    Phase.CREATE: _Attempt._create_record,
    Phase.TAKE_OVER: _Attempt._take_over,
    Phase.DELETE: _Attempt._delete_record,
    Phase.CLEAN_UP: _Attempt._clean_up,
}


def _is_refusal(failure: CallFailed) -> bool:
    """Whether a write was refused for good, so that the same payload need not be sent again."""
    return failure.kind is Failure.PERMANENT and not failure.unknown


def _is_create_refused(failure: CallFailed, situation: Situation) -> bool:
    """Whether a create was surely not carried out, nor was an earlier one that it repeats.

    Its idempotency key ends then: a third party may answer a repeated key with the refusal that it remembers.
    """
    if failure.unknown or situation.outcome_unknown_for is not None or failure.external_id is not None:
        return False
    if failure.kind is Failure.PERMANENT:
        return True
    return (
        failure.kind in (Failure.TRANSIENT, Failure.REFERENCE)
        and failure.status is not None
        and (400 <= failure.status < 500)
    )


def _nothing_was_made() -> CallFailed:
    return CallFailed(
        Failure.TRANSIENT,
        'the third party responds "not found" to a write that makes what is missing',
        about_system=True,
    )


def _idempotency_key(claimed: PushClaim) -> str:
    """The same for all attempts at one creation whose outcome is unknown; another one after a definite refusal."""
    key = f"{claimed.entity}/{claimed.key}/{claimed.group or ''}/{claimed.acknowledged_at}"
    return f"{key}/{claimed.refused_at}" if claimed.refused_at else key

"""One push: bringing one claimed record at the third party to its newest archived state.

Not here: which records (``statements/push.py``), what a situation asks for (``push_plan.py``), what its end means for
record, events and breaker (``settle.py``), what older calls left beside the record (``left_behind.py``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection

from sync_orchestrator.config import ThirdPartySystem
from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.fragments import HOLDER_VALID_SECONDS
from sync_orchestrator.core.db.session import as_bytes, force_index_scans, run
from sync_orchestrator.core.ports import TOO_OLD, Found, Item, ThirdParty
from sync_orchestrator.core.push import queries
from sync_orchestrator.core.push.decision import Situation, Step, after_lookup, plan, search_wait
from sync_orchestrator.core.push.stray_copies import found_at, made_late
from sync_orchestrator.core.systems.claim_holders import Deadline, Hold, is_over
from sync_orchestrator.core.tracing import following
from sync_orchestrator.core.values.identity import StrayId, may_be_given_again, other_key
from sync_orchestrator.core.values.mapping import Mapping
from sync_orchestrator.core.values.places import digest_of_found, digest_of_write
from sync_orchestrator.errors import CallFailed, Failure, MappingFailed

T = TypeVar("T")
Place = tuple[str, str]
"""An entity and one of its business groups."""

FIRST_PLACE: Place = ("", "")

_PLACES_IN_TURN = 50

_log = logging.getLogger("sync_orchestrator.push")

_before_call = CrashPoint("push.before_call")
_after_call = CrashPoint("push.after_call")
_half_deleted = CrashPoint("push.half_deleted")


@dataclass(frozen=True, slots=True)
class Claim:
    """A record leased for one push, as it stood when it was claimed."""

    entity: str
    key: str
    group: str | None
    revision: int
    deleted: bool
    applied_digest: bytes | None
    applied_group: str | None
    external_id: str | None
    attempts: int
    rejected_digest: bytes | None
    token: int
    ever_applied: bool
    outcome_unknown_until: datetime | None
    outcome_unknown_for: float | None
    deadline: float
    """Monotonic time after which no call may be begun under this lease, a ``Deadline`` where its holder has a
    heartbeat."""
    acknowledged_at: int
    """When the third party last acknowledged the record, in microseconds since 1970; 0 for never."""
    waiting_for: float
    """For how many seconds it has been waiting for something that it refers to."""
    parts: dict[str, Any]
    outcome_unknown_groups: tuple[str, ...] = ()
    """Business groups under which calls may have been sent whose outcome is unknown, and the present one."""
    late_creates: list[list[str]] = field(default_factory=list)
    """Group and id of what creates made that came too late."""
    applied_revision: int = 0
    """The revision that the third party acknowledged last; 0 where none holds."""
    trace: str | None = None
    """The trace context of the newest event that is waiting for this push."""
    refusal_retried: bool = False
    """Whether its refused payload was tried again since what it could depend on was acknowledged."""
    acknowledged_ago: float | None = None
    """Seconds since the third party last acknowledged the record; None for never."""
    refused_at: int = 0
    """When a write was last definitely refused, in microseconds since 1970; 0 for never."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """How a push ended.

    ``failure`` None: acknowledged (``digest`` None: the record is not there any more). ``postponed``: seconds to wait,
    at no cost. ``called`` says whether the third party was asked anything, ``created`` whether a record was made there,
    ``cleared`` whether the old place of a move was, ``look_again`` in how many seconds a search would show all that an
    older call left at other places (0: it was all seen).

    ``not_ours``: an id of ours under which another record was found, which was left alone. ``outcome_unknown``: what is there
    cannot be known until the in-flight window has passed; ``settled``: that window has passed, and nothing is there.
    ``refused``: a create was definitely not carried out, so that the next one needs a new idempotency key.
    """

    claim: Claim
    step: Step
    called: bool = False
    digest: bytes | None = None
    external_id: str | None = None
    failure: CallFailed | None = None
    rejected_digest: bytes | None = None
    postponed: float | None = None
    held: bool = False
    created: bool = False
    cleared: bool = False
    look_again: float = 0.0
    not_ours: StrayId | None = None
    outcome_unknown: bool = False
    settled: bool = False
    refused: bool = False


class PushTarget(Protocol):
    """What a push goes to: a collection at a third party, and how payloads are compared there."""

    @property
    def third_party(self) -> ThirdParty: ...

    @property
    def mapping(self) -> Mapping: ...

    @property
    def system(self) -> ThirdPartySystem: ...


def claim(
    connection: Connection,
    entities: Sequence[str],
    *,
    most: int,
    lease: float,
    in_flight_window: float,
    group: str | None = None,
    probe: bool = False,
    hold: Hold | None = None,
    timeout: float = 0.0,
) -> list[Claim]:
    """Leases records that are out of sync and due, live changes first, and announces the intent to push them.

    The caller commits before anything is sent. ``group``: only those of a business group of the one entity. ``probe``
    takes a single record, due or not. ``hold``: the holder whose heartbeat the claims depend on; without one they end
    with their lease. ``timeout`` is that of a call: so much later a holder that is gone has given up its calls.
    """
    deadline = Deadline(time.monotonic() + lease / 2, hold)
    terms = _terms(lease, in_flight_window, hold, timeout)
    force_index_scans(connection, in_order=True)
    if probe:
        rows = run(connection, queries.CLAIM_ONE_RECORD, entities=list(entities), group=group, **terms)
    elif group is None:
        rows = run(connection, queries.CLAIM_DUE_RECORDS, entities=list(entities), most=most, **terms)
    else:
        rows = run(connection, queries.CLAIM_DUE_RECORDS_OF_GROUP, entity=entities[0], group=group, most=most, **terms)
    return _claims(connection, rows, deadline)


def claim_in_turn(
    connection: Connection,
    entities: Sequence[str],
    after: Place,
    *,
    most: int,
    lease: float,
    in_flight_window: float,
    hold: Hold | None = None,
    timeout: float = 0.0,
) -> tuple[list[Claim], Place]:
    """The same, of some business groups that have work, the first one behind ``after``, and of both priorities alike.

    Returns the last of these groups, too; behind the last one of all it begins anew.
    """
    deadline = Deadline(time.monotonic() + lease / 2, hold)
    force_index_scans(connection, in_order=True)
    rows: Sequence[Any] = ()
    for entity, group in dict.fromkeys((after, FIRST_PLACE)):
        rows = rows or run(
            connection,
            queries.CLAIM_DUE_RECORDS_IN_TURN,
            entities=list(entities),
            most=most,
            after_entity=entity,
            after_group=group,
            places=_PLACES_IN_TURN,
            **_terms(lease, in_flight_window, hold, timeout),
        )
    if not rows:
        return [], FIRST_PLACE
    last = max(rows, key=lambda row: row.turn)
    return _claims(connection, rows, deadline), (last.entity, last.group_key)


def _terms(lease: float, in_flight_window: float, hold: Hold | None, timeout: float) -> dict[str, Any]:
    return {
        "lease": lease,
        "in_flight_window": in_flight_window,
        "holder": None if hold is None else hold.id,
        "gives_up": HOLDER_VALID_SECONDS + timeout,
    }


def _claims(connection: Connection, rows: Sequence[Any], deadline: float) -> list[Claim]:
    if not rows:
        return []
    parts: dict[tuple[str, str], dict[str, Any]] = {}
    for part in run(connection, queries.SELECT_PARTS, entity=[r.entity for r in rows], key=[r.key for r in rows]):
        parts.setdefault((part.entity, part.key), {})[part.part] = part.data
    return [
        Claim(
            row.entity,
            row.key,
            row.group_key,
            row.revision,
            row.deleted,
            as_bytes(row.applied_digest),
            row.applied_group,
            row.external_id,
            row.attempts,
            as_bytes(row.rejected_digest),
            row.lease_token,
            row.ever_applied,
            row.outcome_unknown_until,
            row.outcome_unknown_for,
            deadline,
            row.acknowledged_at,
            row.waiting_for,
            parts.get((row.entity, row.key), {}),
            tuple(row.outcome_unknown_groups),
            row.late_creates,
            row.applied_revision,
            row.trace,
            row.refusal_retried,
            row.acknowledged_ago,
            row.refused_at,
        )
        for row in sorted(rows, key=lambda row: (row.priority, row.due_at))
    ]


def next_due(connection: Connection, entities: Sequence[str], group: str | None = None) -> float | None:
    """Seconds until the next record is due for a push; None where none is."""
    if group is None:
        rows = run(connection, queries.SECONDS_UNTIL_NEXT_PUSH, entities=list(entities))
    else:
        rows = run(connection, queries.SECONDS_UNTIL_NEXT_PUSH_OF_GROUP, entity=entities[0], group=group)
    return None if rows[0].seconds is None else float(rows[0].seconds)


async def push(entity: EntityContext, claimed: Claim) -> Pushed:
    """Carries out one push; every failure is in the answer, none is raised."""
    try:
        payload = None if claimed.deleted else entity.mapping.payload(claimed.key, claimed.group, claimed.parts)
        return await push_payload(entity, claimed, payload)
    except (MappingFailed, ValueError) as error:
        return Pushed(claimed, Step.NOTHING, failure=CallFailed(Failure.PERMANENT, str(error)))


async def push_payload(target: PushTarget, claimed: Claim, payload: dict[str, Any] | None) -> Pushed:
    """Carries out the push of a payload that is mapped already; None for a deleted record.

    Every failure of a call is in the answer. Raises ValueError for a payload that has no digest.
    """
    attempt = _Attempt(target, claimed, payload, None if payload is None else target.mapping.digest_of_ours(payload))
    return replace(await _carried_out(attempt, claimed), not_ours=attempt.stray)


async def _carried_out(attempt: _Attempt, claimed: Claim) -> Pushed:
    try:
        if claimed.trace is None:
            return await attempt.run()
        with following(claimed.trace, f"push {claimed.entity}", entity=claimed.entity, key=claimed.key):
            return await attempt.run()
    except CallFailed as failure:
        return attempt.failed(failure)
    except Exception as error:  # an adapter that somebody wrote: one record's trouble, not the drain's
        _log.exception("a push of %s %r failed as none should", claimed.entity, claimed.key)
        return attempt.failed(CallFailed(Failure.TRANSIENT, f"{type(error).__name__}: {error}", unknown=attempt.sent))


class _Attempt:
    """The calls of one push, in order, and what has been learnt on the way."""

    def __init__(
        self, entity: PushTarget, claimed: Claim, payload: dict[str, Any] | None, wanted: bytes | None
    ) -> None:
        self._third_party = entity.third_party
        self._mapping = entity.mapping
        self._search_lag = entity.system.search_lag
        self._in_flight_window = entity.system.in_flight_seconds
        self._claim = claimed
        self._wanted = wanted
        capabilities = entity.third_party.capabilities
        self._moved = (
            capabilities.group_in_address
            and claimed.applied_group is not None
            and claimed.applied_group != claimed.group
            and claimed.applied_digest is not None
        )
        new_place = self._moved and not claimed.deleted
        self._write_digest = digest_of_write(wanted, capabilities, claimed.group)
        self.item = Item(
            key=claimed.key,
            group=claimed.applied_group or claimed.group if claimed.deleted else claimed.group,
            payload=payload or {},
            external_id=None if new_place else claimed.external_id,
            idempotency_key=_idempotency_key(claimed),
            deadline=claimed.deadline,
        )
        self._elsewhere = tuple(
            group
            for group in claimed.outcome_unknown_groups
            if capabilities.group_in_address and claimed.outcome_unknown_for is not None and group != self.item.group
        )
        self._situation = Situation(
            deleted=claimed.deleted,
            digest=wanted,
            applied_digest=claimed.applied_digest,
            rejected_digest=wanted if claimed.rejected_digest == self._write_digest else None,
            external_id=self.item.external_id,
            ever_applied=claimed.ever_applied,
            moved=self._moved,
            outcome_unknown_for=claimed.outcome_unknown_for,
            elsewhere=bool(set(self._elsewhere) - ({claimed.applied_group} if self._moved else set())),
            acknowledged_ago=claimed.acknowledged_ago,
            regrouped=self._is_regrouped(),
        )
        self.step = plan(self._situation, capabilities)
        self.called = False
        self.refused = False
        self.sent = False
        self._wrote = False
        self._created = False
        self._cleared = False
        self._deleted = False
        self._create_refused = False
        self._remade = False
        self._seen: set[str] = set()
        self.stray: StrayId | None = None

    def _is_regrouped(self) -> bool:
        """Whether the third party may have the record in another group, where a group is no part of the address.

        A call to another group whose outcome is unknown counts, unless a read shows which group a record is in.
        """
        claimed, capabilities = self._claim, self._third_party.capabilities
        if (
            not capabilities.sends_group
            or capabilities.group_in_address
            or claimed.deleted
            or claimed.applied_digest is None
        ):
            return False
        hidden = claimed.outcome_unknown_for is not None and not capabilities.shows_group
        known = {claimed.applied_group} - {None}
        return bool((known | set(claimed.outcome_unknown_groups if hidden else ())) - {claimed.group})

    async def run(self) -> Pushed:
        if self.step is Step.REJECTED:
            raise CallFailed(Failure.PERMANENT, "the third party refused this very payload before")
        if self.step is Step.HOLD:
            return await self._hold()
        if self.step is Step.NOTHING:
            return self._acknowledged()
        self._begin()
        if self.step is Step.READ_BACK:
            await self._read_back()
        if (wait := await self._look_up_if_asked()) is not None:
            return self._postponed(wait)
        if self.step in (Step.WAIT, Step.FORGET):
            return self._without_its_id()
        if self._moved and not self._claim.deleted:  # first, so that only one id has to be remembered
            await self._delete(replace(self.item, group=self._claim.applied_group, external_id=self._claim.external_id))
            self._cleared = True
        if self.step is Step.UPDATE and not await self._update():
            self._forget_id()
            if (wait := await self._look_up_if_asked()) is not None:
                return self._postponed(wait)
            if self.step in (Step.WAIT, Step.FORGET):
                return self._without_its_id()
            if self.step is Step.UPDATE and not await self._update():
                raise CallFailed(Failure.TRANSIENT, "its search shows a record that cannot be found under its id")
        match self.step:
            case Step.HOLD:
                return self._held()
            case Step.DELETE:
                if (wait := await self._remove()) is not None:
                    return self._postponed(wait)
            case Step.CREATE:
                await self._create()
        await self._take_back()
        look_again = await self._clear_elsewhere()
        _after_call()
        return self._acknowledged(look_again)

    def failed(self, failure: CallFailed) -> Pushed:
        """The end of a push that a failure ended."""
        refused = self.refused or self.step is Step.REJECTED
        return Pushed(
            self._claim,
            self.step,
            called=self.called,
            failure=failure,
            rejected_digest=self._write_digest if refused else None,
            external_id=self._id_to_keep(),
            created=self._created,
            cleared=self._cleared,
            refused=self._create_refused,
        )

    def _id_to_keep(self) -> str | None:
        """The id at the new place of a move only once the old place, whose id is known till then, is cleared."""
        moving = self._moved and not self._claim.deleted and not self._cleared
        return None if moving else self.item.external_id

    def _begin(self) -> None:
        self._in_time()
        _before_call()
        self.called = True

    def _in_time(self) -> None:
        """Asked before every write: reads before it, and waits for the shared rate, take time."""
        if is_over(self._claim.deadline):
            raise CallFailed(Failure.THROTTLED, TOO_OLD)

    async def _read_back(self) -> None:
        found = await self._third_party.read(self.item)
        if found is None or self._is_strangers(self.item, found):
            self._forget_id()
            return
        self._seen.add(found.external_id)
        shown = digest_of_found(self._mapping, self._third_party.capabilities, found, self.item.group)
        same = shown == self._wanted
        self.step = Step.NOTHING if same else Step.UPDATE
        if same or self._third_party.capabilities.assigns_ids:
            self.item = replace(self.item, external_id=found.external_id)

    def _forget_id(self) -> None:
        """The known id leads to nothing: what follows is planned as for a record without one."""
        capabilities = self._third_party.capabilities
        if not capabilities.assigns_ids:
            if self._wrote and not self._remade:
                raise CallFailed(
                    Failure.TRANSIENT,
                    'the third party responds "not found" to a write that makes what is missing',
                    about_system=True,
                )
            self.step = Step.UPDATE
            return
        self.item = replace(self.item, external_id=None)
        self._situation = replace(self._situation, external_id=None, applied_digest=None, lost=True)
        self.step = plan(self._situation, capabilities)
        settled = self._situation.outcome_unknown_for is None
        if self._remade and (settled or capabilities.can_lookup or capabilities.idempotent_create):
            self.step = Step.FORGET  # it is known to be gone, so nothing has to be waited for

    async def _look_up_if_asked(self) -> float | None:
        return await self._look_up() if self.step is Step.LOOK_UP else None

    async def _look_up(self) -> float | None:
        if self._claim.deleted:
            found = await self._clear()
        else:
            self._adopt(await self._third_party.lookup(self.item.key, self.item.group))
            found = self.item.external_id
        step = after_lookup(self._situation, found, self._search_lag)
        if step is None:
            return search_wait(self._situation, self._search_lag)
        self.step = step
        return None

    async def _clear(self) -> str | None:
        """Deletes all that carries our key, in every place where it can be; returns an id that was there."""
        known = self.item.external_id
        if known is not None:
            await self._delete(self.item)
        found = known
        for place in sorted({self._claim.group or "", self.item.group or "", *self._elsewhere}):
            for record in self._ours(await self._third_party.lookup(self.item.key, place or None)):
                if record.external_id != known or place != (self.item.group or ""):
                    await self._delete(replace(self.item, group=place or None, external_id=record.external_id))
                    found = record.external_id
        return found

    async def _take_back(self) -> None:
        """Deletes what creates made that came too late, now that the record's own id is known."""
        for item in made_late(self._third_party, self.item, self._claim.late_creates):
            await self._delete(item)

    async def _clear_elsewhere(self) -> float:
        """Deletes what older calls left at other places; says in how many seconds a search would show all of it."""
        if not self._elsewhere or (self._claim.deleted and self._third_party.capabilities.assigns_ids):
            return 0.0
        for item in await found_at(self._third_party, self.item, self._elsewhere):
            await self._delete(item)
        searched = self._third_party.capabilities.assigns_ids and self._third_party.capabilities.can_lookup
        return max(0.0, (self._claim.outcome_unknown_for or 0.0) + self._search_lag) if searched else 0.0

    def _ours(self, found: Sequence[Found]) -> list[Found]:
        """What a search for our key really shows of it: an id is never adopted from a record with another key."""
        return [record for record in found if other_key(self.item.key, record.key) is None]

    def _adopt(self, found: Sequence[Found]) -> None:
        ids = sorted(record.external_id for record in self._ours(found))
        self.item = replace(self.item, external_id=ids[0] if ids else None)

    async def _remove(self) -> float | None:
        """Deletes the record; where its id leads elsewhere, what carries its key. Returns how long to wait, if so."""
        if await self._delete(self.item) or not self._third_party.capabilities.can_lookup:
            return None
        self.item = replace(self.item, external_id=None)
        return await self._look_up()

    async def _delete(self, item: Item) -> bool:
        """Deletes what is under an id; not another record. Says whether ours was there, as far as it was looked at."""
        target, is_there = await self._look(item, "delete")
        if target is None:
            return False
        self._in_time()
        self.sent = self._deleted = True
        try:
            await self._third_party.delete(target)
        except CallFailed as failure:
            if failure.not_ours is None or not self._third_party.capabilities.assigns_ids:
                raise
            self._note_stray(target, failure.not_ours)
            return False
        return is_there

    async def _update(self) -> bool:
        """Says whether there was something of ours to update."""
        target, _ = await self._look(self.item, "update")
        if target is None:
            return False
        self.item = target
        try:
            external_id = await self._write(self._third_party.update)
        except CallFailed as failure:
            if failure.remake:
                await self._delete_half(failure)
                return False
            if failure.not_ours is None or not self._third_party.capabilities.assigns_ids:
                raise
            self.refused = False
            self._note_stray(self.item, failure.not_ours)
            return False
        if external_id is not None:
            self.item = replace(self.item, external_id=external_id)
        return external_id is not None

    async def _delete_half(self, failure: CallFailed) -> None:
        """Deletes what is there of a record that no update completes. Raises CallFailed where that did not help before.

        Its id is forgotten in a transaction of its own before the record is made anew, so that a crash in between
        leaves no create of unknown outcome behind an id that leads to nothing.
        """
        self.refused = False
        if self._remade:
            raise failure
        await self._delete(self.item)
        self._remade = self._create_refused = True
        _half_deleted()

    async def _look(self, item: Item, verb: str) -> tuple[Item | None, bool]:
        """Looks at what is under an id before it is written or deleted there.

        Returns the item with the id to use, None where that is another record's id; and whether a record is there,
        true where it was not looked at. A record that a read does not show is written all the same: reads may lag.
        """
        if not self._has_to_look(item, verb):
            return item, True
        found = await self._third_party.read(item)
        if found is None:
            return item, False
        if self._is_strangers(item, found):
            return None, False
        self._seen.add(found.external_id)
        return replace(item, external_id=found.external_id), True

    def _has_to_look(self, item: Item, verb: str) -> bool:
        capabilities = self._third_party.capabilities
        if not capabilities.assigns_ids or item.external_id is None or item.external_id in self._seen:
            return False
        if capabilities.look_first == "never" or verb in capabilities.reads_before:
            return False
        return capabilities.look_first == "always" or may_be_given_again(item.external_id)

    def _is_strangers(self, item: Item, found: Found) -> bool:
        """Whether another record was found under an id of ours, which is remembered."""
        other = other_key(item.key, found.key) if self._third_party.capabilities.assigns_ids else None
        if other is not None:
            self._note_stray(item, other)
        return other is not None

    def _note_stray(self, item: Item, shown_key: str) -> None:
        if self.stray is None and item.external_id is not None:
            self.stray = StrayId(item.external_id, shown_key)
            _log.warning(
                "%s %r: the id %s is the id of another record by now: %r",
                self._claim.entity,
                self._claim.key,
                item.external_id,
                shown_key,
            )

    async def _create(self) -> None:
        try:
            self.item = replace(self.item, external_id=await self._write(self._third_party.create))
            self._created = True
        except CallFailed as failure:
            self._create_refused = self._is_definite_refusal(failure)
            if failure.external_id is not None:
                self.item = replace(self.item, external_id=failure.external_id)
                self._created = True
            if failure.remake and failure.external_id is not None:
                await self._take_back_half(failure)
            if not (failure.duplicate and self._third_party.capabilities.can_lookup):
                raise
            await self._take_over(failure)
        else:
            await self._overwrite_what_an_older_one_made()

    async def _take_back_half(self, failure: CallFailed) -> None:
        """Deletes what a create made before one of its calls failed. Raises CallFailed, so that an attempt is spent."""
        await self._delete_half(failure)
        self.item = replace(self.item, external_id=None)
        self._created, self._cleared = False, True
        raise failure

    def _is_definite_refusal(self, failure: CallFailed) -> bool:
        """Whether a create was surely not carried out, nor was an earlier one that it repeats.

        Its idempotency key ends then: a third party may answer a repeated key with the refusal that it remembers.
        """
        if failure.unknown or self._situation.outcome_unknown_for is not None or failure.external_id is not None:
            return False
        if failure.kind is Failure.PERMANENT:
            return True
        return (
            failure.kind in (Failure.TRANSIENT, Failure.REFERENCE)
            and failure.status is not None
            and (400 <= failure.status < 500)
        )

    async def _take_over(self, duplicate: CallFailed) -> None:
        """Another has the key: a record that somebody made, or that an older create of ours did."""
        refused, self.refused = self.refused, False
        self._adopt(await self._third_party.lookup(self.item.key, self.item.group))
        may_lag = self._search_lag or self._situation.outcome_unknown_for is not None
        if self.item.external_id is None and may_lag:
            raise CallFailed(
                Failure.TRANSIENT, f"{duplicate.detail}: its search does not show it yet", status=duplicate.status
            ) from duplicate
        if self.item.external_id is None or not await self._update():
            if self._remade:
                self.item = replace(self.item, external_id=None)
                self._cleared = True
                raise CallFailed(
                    Failure.TRANSIENT,
                    "a part of the record had its key and is deleted; it is made anew",
                    status=duplicate.status,
                ) from None
            self.refused = refused
            raise duplicate

    async def _overwrite_what_an_older_one_made(self) -> None:
        """A create repeated under its key is answered for the first, whose payload may have been another."""
        repeated = self._situation.outcome_unknown_for is not None and self._third_party.capabilities.idempotent_create
        if repeated and not await self._update():
            self._create_refused = True  # its key is answered for a record that is gone: the next create needs another
            raise CallFailed(Failure.TRANSIENT, "what it says it has made cannot be found under the id it gave")

    async def _write(self, call: Callable[[Item], Awaitable[T]]) -> T:
        self._in_time()
        self.sent = self._wrote = True
        try:
            return await call(self.item)
        except CallFailed as failure:
            self.refused = failure.kind is Failure.PERMANENT and not failure.unknown
            raise

    def _postponed(self, wait: float) -> Pushed:
        return Pushed(
            self._claim,
            Step.LOOK_UP,
            called=True,
            postponed=wait,
            external_id=self._id_to_keep(),
            cleared=self._cleared,
        )

    def _without_its_id(self) -> Pushed:
        """Waits until no older call can still land: only then does an id that leads to nothing prove that it is gone.

        Then it is forgotten, and the next push makes the record.
        """
        if self.step is Step.FORGET:
            landed = self._situation.outcome_unknown_for is None or self._situation.outcome_unknown_for <= 0
            return Pushed(
                self._claim, self.step, called=True, postponed=0.0, cleared=True, settled=landed, refused=True
            )
        left = self._situation.outcome_unknown_for
        return Pushed(
            self._claim,
            self.step,
            called=True,
            postponed=self._in_flight_window if left is None else max(left, 0.0),
            external_id=self._claim.external_id,
            cleared=self._cleared,
            outcome_unknown=left is None,
        )

    async def _hold(self) -> Pushed:
        """A person decides of what is unknown; what is known to be too much goes."""
        if self._claim.late_creates:
            self._begin()
            await self._take_back()
        return self._held()

    def _held(self) -> Pushed:
        return Pushed(
            self._claim,
            Step.HOLD,
            called=self.called,
            held=True,
            cleared=self._cleared,
            failure=CallFailed(
                Failure.PERMANENT, "a create's outcome is unknown, and the third party cannot be searched by key"
            ),
        )

    def _acknowledged(self, look_again: float = 0.0) -> Pushed:
        gone = self._claim.deleted
        external_id = self.item.external_id if self.item.external_id is not None else self._claim.external_id
        settled = self._situation.outcome_unknown_for is None or self._situation.outcome_unknown_for <= 0
        return Pushed(
            self._claim,
            Step.DELETE if gone and self._deleted else self.step,
            called=self.called,
            digest=self._wanted,
            external_id=None if gone and settled else external_id,
            created=self._created,
            look_again=look_again,
        )


def _idempotency_key(claimed: Claim) -> str:
    """The same for all attempts at one creation whose outcome is unknown; another one after a definite refusal."""
    key = f"{claimed.entity}/{claimed.key}/{claimed.group or ''}/{claimed.acknowledged_at}"
    return f"{key}/{claimed.refused_at}" if claimed.refused_at else key

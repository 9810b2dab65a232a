"""The calls of one push at the third party: made within the lease, never to another record, and all of them noted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.ports import TOO_OLD, FindsSame, Found, Item, ThirdParty
from sync_orchestrator.core.push.claims import PushClaim
from sync_orchestrator.core.systems.claim_holders import is_over
from sync_orchestrator.core.values.identity import StrayId, may_be_given_again, other_key
from sync_orchestrator.core.values.mapping import Mapping
from sync_orchestrator.core.values.shared_fields import check_guard
from sync_orchestrator.errors import CallFailed, Failure

_log = logging.getLogger("sync_orchestrator.push")

_before_call = CrashPoint("push.before_call")


@dataclass(slots=True)
class CallsMade:
    """What one push has called and sent. Only ``PushCalls`` changes it."""

    called: bool = False
    """The third party was called at all."""
    sent: bool = False
    """A write or a delete was sent: it may be carried out even if its answer is lost."""
    wrote: bool = False
    """A create or an update was sent."""
    created: bool = False
    """A create has made a record, which is still there."""
    deleted: bool = False
    """A delete was sent."""
    stray: StrayId | None = None
    """An id of ours under which another record was found, which was left alone."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is under the id of a record that is to be written.

    Attributes:
        item: The record with the id to use; None where that is another record's id.
        is_there: A record is there; true where it was not looked at. One that a read does not show is written all the
            same: reads may lag.
        found: What the look has shown; None where there was none.
    """

    item: Item | None
    is_there: bool
    found: Found | None = None


class PushCalls:
    """Makes the calls of one push and notes them in ``made``.

    Every method may raise CallFailed. A write is begun only while the lease allows it.
    """

    def __init__(self, third_party: ThirdParty, claim: PushClaim, mapping: Mapping) -> None:
        self._third_party = third_party
        self._mapping = mapping
        self._claim = claim
        self.capabilities = third_party.capabilities
        self._ids_seen: set[str] = set()
        self.made = CallsMade()

    def begin_calls(self) -> None:
        """Notes that the third party is about to be called."""
        self._require_time()
        _before_call()
        self.made.called = True

    async def read_record(self, item: Item) -> Found | None:
        """The record under an id; None where there is none, or another one."""
        found = await self._third_party.read(item)
        if found is None or self._is_of_another(item, found):
            return None
        self._ids_seen.add(found.external_id)
        return found

    async def search_by_key(self, item: Item, group: str | None) -> list[Found]:
        """What a search for our key really shows of it: an id is never adopted from a record with another key."""
        found = await self._third_party.lookup(item.key, group)
        return [record for record in found if other_key(item.key, record.key) is None]

    async def find_same(self, item: Item) -> str | None:
        """The id of a record that may be the one that is about to be made; None where there is none such."""
        if not self.capabilities.can_find_same:
            return None
        return first_id(await cast(FindsSame, self._third_party).find_same(item))

    def needs_look(self, item: Item, verb: Literal["update", "delete"]) -> bool:
        """Whether a read has to show whose id it is, or who changed it, before a record is written or deleted."""
        capabilities = self.capabilities
        if item.guard is not None:
            return True
        if not capabilities.assigns_ids:
            return verb == "update" and capabilities.update_creates and not capabilities.can_create
        if item.external_id is None or item.external_id in self._ids_seen:
            return False
        if capabilities.look_first == "never" or verb in capabilities.reads_before:
            return False
        return capabilities.look_first == "always" or may_be_given_again(item.external_id)

    async def find_target(self, item: Item, verb: Literal["update", "delete"]) -> Target:
        """Looks at what is under an id before it is written or deleted there, where that is needed."""
        if not self.needs_look(item, verb):
            return Target(item, True)
        found = await self._third_party.read(item)
        if found is None:
            return Target(item, False)
        if self._is_of_another(item, found):
            return Target(None, False)
        if item.guard is not None:
            check_guard(self._mapping, item.guard, found.fields)
        self._ids_seen.add(found.external_id)
        return Target(replace(item, external_id=found.external_id), True, found)

    async def create_record(self, item: Item) -> str:
        """Makes the record and returns its id."""
        self._begin_write()
        try:
            external_id = await self._third_party.create(item)
        except CallFailed as failure:
            self.made.created = self.made.created or failure.external_id is not None
            raise
        self.made.created = True
        return external_id

    async def update_record(self, item: Item) -> str | None:
        """Overwrites the record under an id and returns its id; None where nothing of ours is there."""
        self._begin_write()
        try:
            return await self._third_party.update(item)
        except CallFailed as failure:
            if not self._was_not_ours(item, failure):
                raise
            return None

    async def delete_record(self, item: Item) -> bool:
        """Deletes what is under an id, unless it is another record.

        Returns whether ours was there, as far as it was looked at. Nothing is deleted where deletes are never sent.
        """
        if not self.capabilities.can_delete:
            return False
        looked_at = await self.find_target(item, "delete")
        target = looked_at.item
        if target is None:
            return False
        self._require_time()
        self.made.sent = self.made.deleted = True
        try:
            await self._third_party.delete(target)
        except CallFailed as failure:
            if not self._was_not_ours(target, failure):
                raise
            return False
        return looked_at.is_there

    async def delete_created(self, item: Item) -> None:
        """Deletes what a create of this push has made."""
        await self.delete_record(item)
        self.made.created = False

    def _begin_write(self) -> None:
        self._require_time()
        self.made.sent = self.made.wrote = True

    def _require_time(self) -> None:
        """Checked before every write: reads before it, and waits for the shared rate, take time."""
        if is_over(self._claim.deadline):
            raise CallFailed(Failure.THROTTLED, TOO_OLD)

    def _is_of_another(self, item: Item, found: Found) -> bool:
        """Whether another record was found under an id of ours, which is noted."""
        shown_key = other_key(item.key, found.key) if self.capabilities.assigns_ids else None
        if shown_key is not None:
            self._note_stray(item, shown_key)
        return shown_key is not None

    def _was_not_ours(self, item: Item, failure: CallFailed) -> bool:
        """Whether a write was not made because the adapter found another record under an id of ours."""
        if failure.not_ours is None or not self.capabilities.assigns_ids:
            return False
        self._note_stray(item, failure.not_ours)
        return True

    def _note_stray(self, item: Item, shown_key: str) -> None:
        if self.made.stray is None and item.external_id is not None:
            self.made.stray = StrayId(item.external_id, shown_key)
            _log.warning(
                "%s %r: the id %s is the id of another record by now: %r",
                self._claim.entity,
                self._claim.key,
                item.external_id,
                shown_key,
            )


def first_id(found: Sequence[Found]) -> str | None:
    """The id to adopt of the records that a search shows: the same one each time; None where it shows none."""
    return min((record.external_id for record in found), default=None)

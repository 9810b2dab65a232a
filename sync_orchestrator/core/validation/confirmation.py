"""Confirmation of suspects: each record that looks wrong is looked at again, since it may have been in flight."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.ports import Found, Item
from sync_orchestrator.core.systems.suspension import NotedStray
from sync_orchestrator.core.validation.compare import Suspect
from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.scope import ValidationScope
from sync_orchestrator.core.values.identity import other_key
from sync_orchestrator.core.values.places import differences_of_place, digest_elsewhere, is_elsewhere

_RecordId = tuple[str, str | None]
"""Key and id at the third party."""


@dataclass(frozen=True, slots=True)
class ConfirmedSuspect:
    """A suspect that is wrong, and what the third party has of it.

    ``is_by_listing``: only a second listing of the group could say so, since the record does not name its group.
    """

    suspect: Suspect
    found: Found | None
    is_by_listing: bool = False

    @property
    def kind(self) -> DriftKind:
        """The kind of drift. A missing record that is there after all, but differs, is different."""
        is_there = self.suspect.kind is DriftKind.MISSING and self.found is not None
        return DriftKind.DIFFERENT if is_there else self.suspect.kind

    def digest_there(self, scope: ValidationScope) -> bytes | None:
        """The digest of what is there: one that no payload has where the place is wrong, so that it is written."""
        if self.found is None:
            return None
        if self.is_by_listing:
            fields = scope.entity.mapping.digest_of_theirs(self.found.fields)
            return digest_elsewhere(fields, self._listed_in(scope.group))
        return scope.entity.digest_of_found(self.found, self.suspect.belongs_to or scope.group)

    def place_differences(self, scope: ValidationScope) -> list[dict[str, object]]:
        """Rows of field, ours, theirs for the business group and the id, where these differ."""
        if self.found is None or self.suspect.kind in (DriftKind.EXTRA, DriftKind.UNMANAGED):
            return []
        capabilities, found = scope.entity.third_party.capabilities, self.found
        if self.is_by_listing:
            capabilities, found = (
                replace(capabilities, shows_group=True),
                replace(found, group=self._listed_in(scope.group)),
            )
        return differences_of_place(
            capabilities, group=self.suspect.belongs_to or scope.group, external_id=self.suspect.known_id, found=found
        )

    def _listed_in(self, group: str) -> str | None:
        """Where the record is, as far as listings say; None where it is not in the group that was listed."""
        return group if self.suspect.belongs_to is not None else None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The suspects that are wrong, and the ids of ours under which the third party shows other keys."""

    confirmed: Sequence[ConfirmedSuspect] = ()
    absent: Sequence[ConfirmedSuspect] = ()
    """Records that are not there, where only others make them: no drift, and waited for."""
    strays: Sequence[NotedStray] = ()


@dataclass(frozen=True, slots=True)
class _SecondLook:
    """What a second look at a suspect shows. ``is_wrong``: None where only another listing can say that."""

    is_wrong: bool | None
    found: Found | None
    stray: NotedStray | None


async def confirm_suspects(scope: ValidationScope, suspects: Sequence[Suspect]) -> Confirmation:
    """Looks at each suspect again after a pause. What looks right by then was in flight. Raises CallFailed."""
    if not suspects:
        return Confirmation()
    await asyncio.sleep(scope.entity.settings.validation.confirm_after)
    limit = asyncio.Semaphore(scope.entity.system.concurrency)
    looks = await asyncio.gather(*(_recheck_suspects(scope, suspect, limit) for suspect in suspects))
    by_listing: set[_RecordId] = set()
    if any(look.is_wrong is None for look in looks):
        by_listing = await _list_misplaced(scope, suspects)
    wrong = [
        ConfirmedSuspect(suspect, look.found, _record_id(suspect) in by_listing)
        for suspect, look in zip(suspects, looks, strict=True)
        if (_record_id(suspect) in by_listing if look.is_wrong is None else look.is_wrong)
    ]
    can_create = scope.entity.third_party.capabilities.can_create
    return Confirmation(
        confirmed=[each for each in wrong if can_create or each.kind is not DriftKind.MISSING],
        absent=[each for each in wrong if not can_create and each.kind is DriftKind.MISSING],
        strays=[look.stray for look in looks if look.stray is not None],
    )


def other_record_key(entity: EntityContext, suspect: Suspect, found: Found) -> str | None:
    """The key of another record that is under a suspect's id by now; None where the suspect's own record is."""
    shows_no_key = suspect.kind is DriftKind.UNMANAGED and suspect.key == suspect.external_id
    if not entity.third_party.capabilities.assigns_ids or shows_no_key:
        return None
    return other_key(suspect.key, found.key)


async def _recheck_suspects(scope: ValidationScope, suspect: Suspect, limit: asyncio.Semaphore) -> _SecondLook:
    third_party = scope.entity.third_party
    item = Item(suspect.key, scope.group, {}, suspect.external_id)
    stray: NotedStray | None = None
    async with limit:
        found = await third_party.read(item) if suspect.external_id else None
        if found is not None and (shown := other_record_key(scope.entity, suspect, found)) is not None:
            found = None  # the id was given to another record, which is judged under its own key
            if suspect.revision and suspect.external_id:
                stray = scope.entity.name, suspect.key, suspect.external_id, shown
        if found is None and suspect.kind is DriftKind.MISSING and third_party.capabilities.can_lookup:
            shown_records = await third_party.lookup(suspect.key, scope.group)
            found = next((each for each in shown_records if other_key(suspect.key, each.key) is None), None)
    return _SecondLook(_is_wrong(scope, suspect, found), found, stray)


def _is_wrong(scope: ValidationScope, suspect: Suspect, found: Found | None) -> bool | None:
    """Whether a suspect is wrong, None where only another listing can say that."""
    if found is None:
        return suspect.kind is DriftKind.MISSING
    if suspect.kind in (DriftKind.EXTRA, DriftKind.DUPLICATE, DriftKind.UNMANAGED):
        return found.group in (None, scope.group)
    capabilities = scope.entity.third_party.capabilities
    shows_no_group = found.group is None and not capabilities.shows_group
    if suspect.belongs_to is not None:
        return None if shows_no_group else is_elsewhere(capabilities, found.group, suspect.belongs_to)
    if is_elsewhere(capabilities, found.group, scope.group) or _is_different(scope.entity, suspect, found):
        return True
    needs_listing = shows_no_group and suspect.kind is DriftKind.MISSING and capabilities.lists_by_group
    return None if needs_listing else False


def _is_different(entity: EntityContext, suspect: Suspect, found: Found) -> bool:
    is_suspect_for_its_id = suspect.theirs is not None and suspect.theirs == suspect.ours
    return (
        is_suspect_for_its_id
        or found.external_id != suspect.external_id
        or entity.mapping.digest_of_theirs(found.fields) != suspect.ours
    )


async def _list_misplaced(scope: ValidationScope, suspects: Sequence[Suspect]) -> set[_RecordId]:
    """Lists the group again for records that do not name their group, which a read cannot confirm.

    Returns key and id of those that are still listed here and belong elsewhere, or belong here and are not listed.
    """
    listed = {
        (record.key, record.external_id)
        async for page in scope.entity.third_party.pages(scope.group)
        for record in page
    }
    keys = {key for key, _ in listed}
    return {
        _record_id(suspect)
        for suspect in suspects
        if (_record_id(suspect) in listed if suspect.belongs_to is not None else suspect.key not in keys)
    }


def _record_id(suspect: Suspect) -> _RecordId:
    return suspect.key, suspect.external_id

"""Finds and deletes stray copies of a record at the third party: late creates, and copies at other places.

Older calls of the record left them. ``attempt.py`` decides when they are looked for, ``late_calls.py`` remembers them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sync_orchestrator.core.values.identity import may_be_given_again, other_key

if TYPE_CHECKING:
    from sync_orchestrator.core.ports import Item, ThirdParty
    from sync_orchestrator.core.push.calls import PushCalls


async def delete_all_of_key(calls: PushCalls, item: Item, places: Iterable[str]) -> str | None:
    """Deletes all that carries the key of a record, at its place and at others; returns an id that was there.

    Raises CallFailed.
    """
    known = found = item.external_id
    own_place = item.group or ""
    if known is not None:
        await calls.delete_record(item)
    for place in sorted({own_place, *places}):
        for record in await calls.search_by_key(item, place or None):
            if record.external_id != known or place != own_place:
                await calls.delete_record(replace(item, group=place or None, external_id=record.external_id))
                found = record.external_id
    return found


async def delete_late_creates(calls: PushCalls, own: Item, late_creates: Iterable[Sequence[str]]) -> None:
    """Deletes what creates made too late, but not the record itself, should it be one of them. Raises CallFailed.

    The record's own id has to be known. ``late_creates``: the group and the id of each.
    """
    own_place = own.group if calls.capabilities.group_in_address else None
    for group, external_id in late_creates:
        if external_id != own.external_id or (own_place is not None and group != own_place):
            await calls.delete_record(replace(own, group=group, external_id=external_id))


async def delete_copies_at(calls: PushCalls, own: Item, places: Iterable[str]) -> None:
    """Deletes what carries the key of a record at other places. Raises CallFailed.

    Never the record itself, which a search that does not obey its group would show. With our ids a copy has an address
    whether it is there or not.
    """
    for copy in await _copies_at(calls, own, places):
        await calls.delete_record(copy)


async def _copies_at(calls: PushCalls, own: Item, places: Iterable[str]) -> list[Item]:
    if not calls.capabilities.assigns_ids:
        return [replace(own, group=place) for place in places]
    if not calls.capabilities.can_lookup:
        return []
    return [
        replace(own, group=place, external_id=record.external_id)
        for place in places
        for record in await calls.search_by_key(own, place)
        if record.external_id != own.external_id and record.group in (None, place)
    ]


async def take_back(third_party: ThirdParty, item: Item) -> None:
    """Deletes what a create made too late, unless its id is another record's by now. Raises CallFailed."""
    capabilities, external_id = third_party.capabilities, item.external_id
    if not capabilities.can_delete:
        return
    if (
        capabilities.assigns_ids
        and external_id is not None
        and capabilities.look_first != "never"
        and (capabilities.look_first == "always" or may_be_given_again(external_id))
    ):
        found = await third_party.read(item)
        if found is not None and other_key(item.key, found.key) is not None:
            return
    await third_party.delete(item)

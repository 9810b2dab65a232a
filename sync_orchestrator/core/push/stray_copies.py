"""What older calls of a record left beside it at the third party: late creates, and what is at places it was sent to.

Not here: when it is looked for and deleted (``push.py``), how it is remembered (``statements/push.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from sync_orchestrator.core.ports import Item, ThirdParty
from sync_orchestrator.core.values.identity import may_be_given_again, other_key


def made_late(third_party: ThirdParty, own: Item, late_creates: Iterable[Sequence[str]]) -> list[Item]:
    """What creates made that came too late, but for the record itself, should it be one of them."""
    own_place = own.group if third_party.capabilities.group_in_address else None
    return [
        replace(own, group=group, external_id=external_id)
        for group, external_id in late_creates
        if external_id != own.external_id or (own_place is not None and group != own_place)
    ]


async def take_back(third_party: ThirdParty, item: Item) -> None:
    """Deletes what a create made too late, unless its id is another record's by now. Raises CallFailed."""
    capabilities, external_id = third_party.capabilities, item.external_id
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


async def found_at(third_party: ThirdParty, own: Item, places: Iterable[str]) -> list[Item]:
    """What carries our key at other places; with our ids it has an address whether it is there or not.

    Never the record itself, which a search that does not obey its group would show. Raises CallFailed.
    """
    if not third_party.capabilities.assigns_ids:
        return [replace(own, group=place) for place in places]
    if not third_party.capabilities.can_lookup:
        return []
    return [
        replace(own, group=place, external_id=record.external_id)
        for place in places
        for record in await third_party.lookup(own.key, place)
        if record.external_id != own.external_id
        and record.group in (None, place)
        and other_key(own.key, record.key) is None
    ]

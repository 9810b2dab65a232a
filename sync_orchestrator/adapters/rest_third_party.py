"""A third party behind a REST API, for one entity's collection: the core's protocol, made of reads and writes.

Not here: what is read how (``reads.py``), what is written how (``writes.py``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from sync_orchestrator.adapters.bulk import in_bulk
from sync_orchestrator.adapters.http import Http
from sync_orchestrator.adapters.paging import get
from sync_orchestrator.adapters.reads import Reads
from sync_orchestrator.adapters.records import Records
from sync_orchestrator.adapters.references import References
from sync_orchestrator.adapters.sending import Sender
from sync_orchestrator.adapters.writes import Writes
from sync_orchestrator.config import Get, Target
from sync_orchestrator.core.ports import Found, Item, Traits
from sync_orchestrator.templates import names_in


class RestThirdParty:
    """Implements ``core.ports.ThirdParty``; ``mapped_fields`` are the payload's fields, the only ones compared."""

    def __init__(self, http: Http, target: Target, mapped_fields: tuple[str, ...], account: Get | None = None) -> None:
        self._http = http
        self._account = account
        self.traits = traits_of(target)
        records = Records(http, target, mapped_fields)
        references = References(http, target.references, target.outcomes)
        self._reads = Reads(http, target, records, references)
        self._writes = Writes(target, Sender(http, target, records, references), self._reads, records,
                              in_bulk(http, target, references))

    async def create(self, item: Item) -> str:
        """Makes the record and returns its id; with our ids it is the update that makes it."""
        return await self._writes.create(item)

    async def update(self, item: Item) -> str | None:
        """Overwrites the record; None where it is not there."""
        return await self._writes.update(item)

    async def delete(self, item: Item) -> None:
        """Removes the record; one that is gone already is no failure."""
        await self._writes.delete(item)

    async def read(self, item: Item) -> Found | None:
        """The record under its id, or None."""
        return await self._reads.read(item)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        """Every record that carries our key."""
        return await self._reads.lookup(key, group)

    def pages(self, group: str) -> AsyncIterator[list[Found]]:
        """Everything it holds in a business group, page by page."""
        return self._reads.pages(group)

    async def count(self, group: str) -> int | None:
        """How many records it holds in the group; None where no ``count`` is configured."""
        return await self._reads.count(group)

    async def account(self) -> str | None:
        """The identity of the account that our login belongs to; None where no ``account`` is configured."""
        if self._account is None:
            return None
        found = await get(self._http, self._account, {})
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            raise self._http.garbage("'account.record' shows no text or whole number", found)
        return str(found)

    async def close(self) -> None:
        await self._http.close()


def traits_of(target: Target) -> Traits:
    """What a third party can do, as its configuration says."""
    bulks = [bulk.request for bulk in (target.bulk_update, target.bulk_delete) if bulk is not None]
    addresses = [call.path for call in (target.update, target.delete, target.read, *bulks) if call is not None]
    return Traits(
        own_ids=target.ids == "theirs",
        can_lookup=target.lookup is not None,
        idempotent_create=target.idempotency is not None
        and names_in(target.idempotency.value) <= {"idempotency_key", "key", "group"},
        grouped_address=any("group" in names_in(address) for address in addresses),
        search_first=target.search_first,
    )

"""A third party behind a REST API, for one entity's collection: the core's protocol, made of reads and writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.rest.bulk import in_bulk
from sync_orchestrator.adapters.rest.lost_batches import LostBatches
from sync_orchestrator.adapters.rest.paging import get_record
from sync_orchestrator.adapters.rest.reads import Reads
from sync_orchestrator.adapters.rest.records import Records
from sync_orchestrator.adapters.rest.references import References
from sync_orchestrator.adapters.rest.requests import Sender
from sync_orchestrator.adapters.rest.writes import Writes
from sync_orchestrator.config import ReadCallSettings, TargetSettings
from sync_orchestrator.core.ports import Capabilities, Found, Item
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions.templates import names_in

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FilledIn:
    """The writing calls of a record as far as they are known before any write: ``calls`` such as ``POST /items``."""

    calls: tuple[str, ...]
    references: dict[str, object]


class RestThirdParty:
    """Implements ``core.ports.ThirdParty``; ``mapped_fields`` are the payload's fields, the only ones compared."""

    def __init__(
        self,
        http: HttpClient,
        target: TargetSettings,
        mapped_fields: tuple[str, ...],
        account: ReadCallSettings | None = None,
    ) -> None:
        self._http = http
        self._target = target
        self._account = account
        self.capabilities = capabilities_of(target)
        records = Records(http, target, mapped_fields)
        references = References(http, target.references, target.outcomes)
        self._reads = Reads(http, target, records, references)
        self._references = references if target.references else None
        self._sender = Sender(http, target, records, references)
        self._lost = LostBatches(self._reads.pages)
        self._writes = Writes(
            target, self._sender, self._reads, records, in_bulk(http, target, references, records, self._lost.add_keys)
        )

    async def create(self, item: Item) -> str:
        """Makes the record and returns its id; with our ids it is the update that makes it."""
        return await self._write_with_references(item, self._writes.create)

    async def update(self, item: Item) -> str | None:
        """Overwrites the record; None where it is not there."""
        return await self._write_with_references(item, self._writes.update)

    async def delete(self, item: Item) -> None:
        """Removes the record; one that is gone already is no failure."""
        await self._write_with_references(item, self._writes.delete)

    async def _write_with_references(self, item: Item, write: Callable[[Item], Awaitable[T]]) -> T:
        """A write; one that was refused with a kept reference that has changed meanwhile is to be tried again."""
        if self._references is None:
            return await write(item)
        began = self._references.read_clock()
        try:
            written = await write(item)
        except CallFailed as failure:
            definite = failure.kind is Failure.PERMANENT and failure.status is not None and not failure.unknown
            if definite and await self._references_changed(item, began):
                raise CallFailed(
                    Failure.TRANSIENT, f"a reference has changed meanwhile: {failure.detail}", status=failure.status
                ) from None
            raise
        if written is None and write == self._writes.update and await self._references_changed(item, began):
            raise CallFailed(Failure.TRANSIENT, "a reference has changed meanwhile: no such record under the old one")
        return written

    async def _references_changed(self, item: Item, began: float) -> bool:
        assert self._references is not None
        try:
            values = self._sender.build_write_values(item) if item.payload else self._sender.build_delete_values(item)
        except CallFailed:
            return False  # it was refused here, without a reference
        return await self._references.have_changed(values, began)

    async def read(self, item: Item) -> Found | None:
        """The record under its id, or None."""
        return await self._reads.read(item)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        """Every record that carries our key; those of a lost bulk call are looked for together."""
        return await self._lost.find_records(key, group) or await self._reads.lookup(key, group)

    async def find_same(self, item: Item) -> list[Found]:
        """The records that ``find_same`` shows for one that is about to be made."""
        return await self._reads.find_same(self._sender.build_write_values(item))

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
        found = await get_record(self._http, self._account, {})
        if isinstance(found, bool) or not isinstance(found, str | int) or found == "":
            raise self._http.build_unusable_failure("'account.record' shows no text or whole number", found)
        return str(found)

    async def fill_in(self, item: Item) -> FilledIn:
        """Looks up the references of a record's writes and fills in the templates of these; writes nothing.

        A call that needs the result of an earlier one (an id, a revision) is left out. Raises CallFailed.
        """
        values = self._sender.build_write_values(item)
        writes = [call for call in (self._target.create, self._target.update) if call is not None]
        requests = [
            *writes,
            *(call for write in writes for call in write.then),
            *([] if self._target.delete is None else [self._target.delete]),
        ]
        bulks = self._target.collect_bulk_calls().values()
        asked = set[str]().union(
            *(call.collect_template_names() for call in requests),
            *(bulk.request.collect_template_names() | names_in(bulk.item) for bulk in bulks),
        )
        found = {} if self._references is None else await self._references.resolve_references(values, asked)
        known = {**values, **found}
        if self.capabilities.assigns_ids:
            known.pop("id")  # which nobody knows yet
        filled = [
            self._http.prepare_request(call, known, known["payload"])
            for call in writes
            if call.collect_template_names() <= known.keys()
        ]
        return FilledIn(tuple(f"{call.request.method} {call.url}" for call in filled), found)

    async def close(self) -> None:
        """Closes the connections of the client."""
        await self._http.close()


def capabilities_of(target: TargetSettings) -> Capabilities:
    """What a third party can do, as its configuration says."""
    bulks = [bulk.request for bulk in (target.bulk_update, target.bulk_delete) if bulk is not None]
    addresses = [call.path for call in (target.update, target.delete, target.read, *bulks) if call is not None]
    writes = [call for call in (target.create, target.update) if call is not None]
    sent = set().union(
        *(call.collect_template_names() for call in writes),
        *(step.collect_template_names() for call in writes for step in call.then),
        *(
            bulk.request.collect_template_names() | names_in(bulk.item)
            for bulk in (target.bulk_create, target.bulk_update)
            if bulk is not None
        ),
    )
    return Capabilities(
        assigns_ids=target.ids == "theirs",
        can_lookup=target.lookup is not None,
        idempotent_create=target.idempotency is not None
        and names_in(target.idempotency.value) <= {"idempotency_key", "key", "group"},
        group_in_address=any(target.uses_group(names_in(address)) for address in addresses),
        search_first=target.search_first,
        look_first=target.look_first,
        reads_before=tuple(
            verb
            for verb, call in (("update", target.update), ("delete", target.delete))
            if target.revision is not None and call is not None and "revision" in call.collect_template_names()
        ),
        bulk_update=target.bulk_update is not None,
        sends_group=target.uses_group(sent),
        shows_group=target.group is not None,
        lists_by_group=target.list is None or target.uses_group(target.list.collect_template_names()),
        can_create=target.creates == "allowed",
        can_delete=target.deletes == "allowed",
        update_creates=any(
            call.method != "PATCH"
            for call in (target.update, None if target.bulk_update is None else target.bulk_update.request)
            if call is not None
        ),
        can_find_same=target.find_same is not None,
        has_linked_calls=target.update is not None and bool(target.update.then),
    )

"""A third party behind a REST API, for one entity's collection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import jmespath

from sync_orchestrator.adapters.http import Http, filled
from sync_orchestrator.adapters.paging import get, get_count, pages
from sync_orchestrator.config import Request, Target
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.events import group_text
from sync_orchestrator.core.ports import Found, Item, Traits


class RestThirdParty:
    """Implements ``core.ports.ThirdParty``; ``mapped_fields`` are the payload's fields, the only ones compared."""

    def __init__(self, http: Http, target: Target, mapped_fields: tuple[str, ...]) -> None:
        self._http = http
        self._target = target
        self._fields = mapped_fields
        self._id = jmespath.compile(target.id)
        self._group = jmespath.compile(target.group) if target.group else None
        self._record = jmespath.compile(target.record)
        addresses = (target.update.path, target.delete.path, target.read.path)
        self.traits = Traits(
            own_ids=target.ids == "theirs",
            can_lookup=target.lookup is not None,
            idempotent_create=target.idempotency_header is not None,
            grouped_address=any("{group}" in address for address in addresses),
        )

    async def create(self, item: Item) -> str:
        """Makes the record and returns its id; with our ids it is the update that makes it."""
        if not self.traits.own_ids:
            if await self.update(item) is None:
                raise CallFailed(Failure.PERMANENT, "an update that should make the record finds nothing", missing=True)
            return item.key
        assert self._target.create is not None
        answer = await self._write(self._target.create, item, headers=self._idempotency(item))
        found = self._created_id(answer)
        if found is None:
            raise self._http.garbage(f"no id at '{self._target.id}' in the answer to a create", answer, write=True)
        return found

    async def update(self, item: Item) -> str | None:
        """Overwrites the record; None where it is not there."""
        try:
            await self._write(self._target.update, item)
        except CallFailed as failure:
            if failure.missing:
                return None
            raise
        return item.external_id if self.traits.own_ids else item.key

    async def delete(self, item: Item) -> None:
        """Removes the record; one that is gone already is no failure."""
        try:
            await self._write(self._target.delete, item, body=False)
        except CallFailed as failure:
            if not failure.missing:
                raise

    async def read(self, item: Item) -> Found | None:
        """The record under its id, or None."""
        try:
            record = await get(self._http, self._target.read, self._values(item))
        except CallFailed as failure:
            if failure.missing:
                return None
            raise
        return None if record is None else self._found(record)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        """Every record that carries our key."""
        assert self._target.lookup is not None
        values = {"key": key, "group": group}
        found = [
            self._found(record)
            async for records, _ in pages(self._http, self._target.lookup, values, key_of=self._key_of)
            for record in records
        ]
        return [record for record in found if record.key == key]

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        """Everything it holds in a business group, page by page."""
        async for records, _ in pages(self._http, self._target.list, {"group": group}, key_of=self._key_of):
            yield [self._found(record) for record in records]

    async def count(self, group: str) -> int | None:
        """How many records it holds in the group; None where no ``count`` is configured."""
        return None if self._target.count is None else await get_count(self._http, self._target.count, group)

    async def close(self) -> None:
        await self._http.close()

    async def _write(
        self, call: Request, item: Item, *, headers: dict[str, str] | None = None, body: bool = True
    ) -> Any:
        values = self._values(item)
        payload = {call.wrap: item.payload} if call.wrap else item.payload
        params = {name: filled(value, values, in_path=False) for name, value in call.params.items()}
        path = filled(call.path, values, in_path=True)
        return await self._http.write(
            call.method, path, params, payload if body else None, headers or {}, deadline=item.deadline)

    def _idempotency(self, item: Item) -> dict[str, str]:
        """For creates alone: an update under the same key would be answered as the create was, and not carried out."""
        header = self._target.idempotency_header
        return {header: quote(item.idempotency_key)} if header and item.idempotency_key else {}

    def _created_id(self, answer: Any) -> str | None:
        try:
            return self._id_of(self._http.search(self._record, answer))
        except CallFailed:
            return None

    def _values(self, item: Item) -> dict[str, str | None]:
        own = self.traits.own_ids
        return {"key": item.key, "id": item.external_id if own else item.key, "group": item.group}

    def _id_of(self, record: Any) -> str | None:
        return group_text(self._http.search(self._id, record)) if isinstance(record, dict) else None

    def _key_of(self, record: Any) -> str:
        key = group_text(record.get(self._target.key_field)) if isinstance(record, dict) else None
        if key is None:
            raise self._http.garbage(f"no '{self._target.key_field}' in a record of the third party", record)
        return key

    def _found(self, record: Any) -> Found:
        if not isinstance(record, dict):
            raise self._http.garbage("a record of the third party is not an object", record)
        key = group_text(record.get(self._target.key_field))
        external_id = self._id_of(record) if self.traits.own_ids else key
        if external_id is None:
            raise self._http.garbage(f"no id at '{self._target.id}' in a record of the third party", record)
        group = group_text(self._http.search(self._group, record)) if self._group else None
        return Found(key, external_id, group, {name: record.get(name) for name in self._fields})

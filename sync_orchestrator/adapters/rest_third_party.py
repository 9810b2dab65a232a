"""A third party behind a REST API, for one entity's collection."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any, TypeVar
from urllib.parse import quote

import jmespath

from sync_orchestrator.adapters.codecs import Codecs
from sync_orchestrator.adapters.filter_check import Filters
from sync_orchestrator.adapters.http import Http
from sync_orchestrator.adapters.paging import get, get_count, pages
from sync_orchestrator.adapters.references import References
from sync_orchestrator.config import Request, Target
from sync_orchestrator.core.errors import CallFailed, Failure, MappingFailed
from sync_orchestrator.core.events import group_text
from sync_orchestrator.core.mapping import digest
from sync_orchestrator.core.ports import Found, Item, Traits
from sync_orchestrator.templates import names_in

T = TypeVar("T")


def _given(call: T | None) -> T:
    assert call is not None
    return call


class RestThirdParty:
    """Implements ``core.ports.ThirdParty``; ``mapped_fields`` are the payload's fields, the only ones compared."""

    def __init__(self, http: Http, target: Target, mapped_fields: tuple[str, ...]) -> None:
        self._http = http
        self._target = target
        self._codecs = Codecs(target.fields, mapped_fields)
        self._references = References(http, target.references, target.outcomes)
        self._filters = Filters(http, target.filter_check)
        self._id = jmespath.compile(target.id)
        self._group = jmespath.compile(target.group) if target.group else None
        self._record = jmespath.compile(target.record)
        addresses = [call.path for call in (target.update, target.delete, target.read) if call is not None]
        self.traits = Traits(
            own_ids=target.ids == "theirs",
            can_lookup=target.lookup is not None,
            idempotent_create=target.idempotency is not None
            and names_in(target.idempotency.value) <= {"idempotency_key", "key", "group"},
            grouped_address=any("group" in names_in(address) for address in addresses),
        )

    async def create(self, item: Item) -> str:
        """Makes the record and returns its id; with our ids it is the update that makes it."""
        if not self.traits.own_ids:
            if await self.update(item) is None:
                raise CallFailed(Failure.PERMANENT, "an update that should make the record finds nothing", missing=True)
            return item.key
        assert self._target.create is not None
        create = self._target.create
        if self._target.idempotency is not None:
            header = {self._target.idempotency.header: self._target.idempotency.value}
            create = create.model_copy(update={"headers": {**create.headers, **header}})
        answer = await self._write(create, item)
        found = self._created_id(answer)
        if found is None:
            raise self._http.garbage(f"no id at '{self._target.id}' in the answer to a create", answer, write=True)
        return found

    async def update(self, item: Item) -> str | None:
        """Overwrites the record; None where it is not there."""
        try:
            await self._write(_given(self._target.update), item)
        except CallFailed as failure:
            if failure.missing:
                return None
            raise
        return item.external_id if self.traits.own_ids else item.key

    async def delete(self, item: Item) -> None:
        """Removes the record; one that is gone already is no failure."""
        try:
            await self._write(_given(self._target.delete), item, body=False)
        except CallFailed as failure:
            if not failure.missing:
                raise

    async def read(self, item: Item) -> Found | None:
        """The record under its id, or None."""
        call = _given(self._target.read)
        try:
            values = await self._resolved(call, self._values(item))
            record = await get(self._http, call, values, self._target.outcomes)
        except CallFailed as failure:
            if failure.missing:
                return None
            raise
        return None if record is None else self._found(record)

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        """Every record that carries our key."""
        lookup, outcomes = _given(self._target.lookup), self._target.outcomes
        values = await self._resolved(lookup, {"key": key, "group": group})
        found = [
            self._found(record)
            async for records, _ in pages(self._http, lookup, values, key_of=self._key_of, outcomes=outcomes)
            for record in records
        ]
        if found:
            await self._filters.prove("lookup", lookup, values, "key", outcomes=outcomes)
        return [record for record in found if record.key == key]

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        """Everything it holds in a business group, page by page."""
        listing, outcomes = _given(self._target.list), self._target.outcomes
        values = await self._resolved(listing, {"group": group})
        async for records, _ in pages(self._http, listing, values, key_of=self._key_of, outcomes=outcomes):
            await self._filters.prove("list", listing, values, "group", *self._target.references, outcomes=outcomes)
            yield [self._found(record) for record in records]

    async def count(self, group: str) -> int | None:
        """How many records it holds in the group; None where no ``count`` is configured."""
        count, outcomes = self._target.count, self._target.outcomes
        if count is None:
            return None
        values = await self._resolved(count, {"group": group})
        if number := await get_count(self._http, count, values, outcomes):
            await self._filters.prove("count", count, values, "group", *self._target.references, outcomes=outcomes)
        return number

    async def close(self) -> None:
        await self._http.close()

    async def _write(self, call: Request, item: Item, *, body: bool = True) -> Any:
        values = self._values(item)
        pattern = self._target.key_pattern
        if pattern is not None and re.fullmatch(pattern, item.key) is None:
            raise CallFailed(Failure.PERMANENT, f"its key does not fit key_pattern '{pattern}'")
        if body:
            try:
                values["payload"] = self._codecs.encode(item.payload)
            except MappingFailed as error:
                raise CallFailed(Failure.PERMANENT, str(error)) from None
        values = await self._resolved(call, values)
        answer = await self._http.send(
            call, values, write=True, outcomes=self._target.outcomes, deadline=item.deadline,
            body=values["payload"] if body else None)
        if answer.content and answer.body is None:
            raise self._http.garbage("the answer is not JSON", answer.text, write=True)
        return answer.body

    def _created_id(self, answer: Any) -> str | None:
        try:
            return self._id_of(self._http.search(self._record, answer))
        except CallFailed:
            return None

    def _values(self, item: Item) -> dict[str, Any]:
        own = self.traits.own_ids
        return {"key": item.key, "id": item.external_id if own else item.key, "group": item.group,
                "payload": item.payload, "digest": digest(item.payload).hex(),
                "idempotency_key": quote(item.idempotency_key or "")}

    async def _resolved(self, call: Request, values: dict[str, Any]) -> dict[str, Any]:
        """The values with the references that the call's templates ask for."""
        asked = call.names() & self._target.references.keys()
        return {**values, **await self._references.resolve(values, asked)} if asked else values

    def _id_of(self, record: Any) -> str | None:
        return group_text(self._http.search(self._id, record)) if isinstance(record, dict) else None

    def _key_of(self, record: Any) -> str:
        key = group_text(self._codecs.decode(record)[self._target.key_field]) if isinstance(record, dict) else None
        if key is None:
            raise self._http.garbage(f"no '{self._target.key_field}' in a record of the third party", record)
        return key

    def _found(self, record: Any) -> Found:
        if not isinstance(record, dict):
            raise self._http.garbage("a record of the third party is not an object", record)
        fields = self._codecs.decode(record)
        key = group_text(fields[self._target.key_field])
        external_id = self._id_of(record) if self.traits.own_ids else key
        if external_id is None:
            raise self._http.garbage(f"no id at '{self._target.id}' in a record of the third party", record)
        group = group_text(self._http.search(self._group, record)) if self._group else None
        return Found(key, external_id, group, fields)

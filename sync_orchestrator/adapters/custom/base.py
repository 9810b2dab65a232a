"""What adapters begin with, those of your own, too: little that they must say, and honest answers for the rest.

The values that they take and give are those of ``core/ports.py``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel

from sync_orchestrator.adapters.concurrency import side_by_side
from sync_orchestrator.adapters.custom.http_client import Client
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Outgoing
from sync_orchestrator.adapters.row_reader import Rows
from sync_orchestrator.config import PartSettings
from sync_orchestrator.core.ports import Capabilities, Found, Item, Json, OpenTransactions, PartRead, Ungrouped
from sync_orchestrator.errors import CallFailed, ConfigError, Failure

_READS_AT_ONCE = 8


class Source(ABC):
    """One entity's part in one source system; a listing is all that it must have.

    Every method may raise CallFailed, which says how it failed: TRANSIENT is tried again, PERMANENT is not.
    """

    keyset_listing: bool = False
    """True where pages follow a key, so that rows added or removed meanwhile shift nothing. Without it, ``count`` has
    to prove a listing complete before anything is deleted."""

    can_read: bool = False
    """True where one record can be read by key: then say ``read`` and ``read_many``."""

    can_poll: bool = False
    """True where it can be asked what has changed: then say ``changes``."""

    can_list_keys: bool = False
    """True where it can list keys and versions for less than whole parts: then say ``keys``."""

    read_many_size: int = 1
    """How many records one call of ``read_many`` reads at most; 1 where they are read one by one."""

    confirms_absence: bool = False
    """True where ``read`` is a call of its own, which decides whether a record that ``read_many`` lacks is there."""

    @abstractmethod
    def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        """Pages of a business group, each with the position from which a later call can go on, or None."""

    async def read(self, key: str) -> PartRead | None:
        """The part of one record now, or None where there is no such record."""
        return next(iter(await self.read_many([key])), None)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        """The parts of those of the given records that the source has."""
        raise CallFailed(Failure.PERMANENT, "this source cannot be read by key")

    async def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        """Pages of the keys and versions of a business group; nothing else of the parts counts."""
        async for rows, _ in self.pages(group):
            yield rows

    def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        """Pages of what has changed since a version, in any order."""
        raise CallFailed(Failure.PERMANENT, "this source cannot be asked what has changed")

    async def open_transactions(self) -> OpenTransactions | None:
        """The transactions that are open, or None where the source cannot say."""
        return None

    async def count(self, group: str) -> int | None:
        """How many records of the group the source has, or None where it cannot say."""
        return None

    async def groups(self) -> list[str] | None:
        """The business groups that exist, or None where the source cannot say."""
        return None

    async def ungrouped(self) -> Ungrouped | None:
        """The rows that name no business group, or None where the source cannot say."""
        return None

    async def close(self) -> None:
        """Ends its connections; it may be used again."""
        return


@dataclass(frozen=True, slots=True, repr=False)
class Given:
    """What a class of your own is made with.

    ``settings``: those of the system and of the entity (or part) together, as its ``Settings`` made them. ``http``:
    where the system has a ``base_url``. ``key_field`` and ``fields`` (all mapped fields) for a third party, ``part``
    for a source.
    """

    system: str
    entity: str
    settings: Any
    http: HttpClient | None = None
    key_field: str = ""
    fields: tuple[str, ...] = ()
    part: PartSettings | None = None


class Adapter:
    """What classes of both kinds have.

    Every method may raise CallFailed, which says how it failed. Anything else that comes out of one, and anything that
    it should not return, counts as a failure that may pass; of a write, as one of unknown outcome. Methods must not
    block: ``await asyncio.to_thread(...)`` is for what does.
    """

    Settings: ClassVar[type[BaseModel] | None] = None
    """A pydantic model of the settings; without one they are a plain dict."""

    settings: Any
    """The settings."""

    def __init__(self, given: Given) -> None:
        self.system = given.system
        self.entity = given.entity
        self.settings = given.settings
        self._given = given
        self._client = None if given.http is None else Client(given.http, self.sign)

    @property
    def http(self) -> Client:
        """Our HTTP client; only where the system has a ``base_url``. Raises ConfigError."""
        if self._client is None:
            raise ConfigError(f"{self.system}: {type(self).__name__} calls over HTTP, so it needs a 'base_url'")
        return self._client

    def sign(self, call: Outgoing) -> Mapping[str, str]:
        """Headers that depend on the whole call, such as a signature; made anew for each attempt."""
        return {}

    async def close(self) -> None:
        """Ends connections of its own; it may be used again. Those of ``http`` end by themselves."""
        return


class ThirdPartyAdapter(Adapter, ABC):
    """One entity's collection at a third party: five methods, and ``capabilities`` that say what it can do.

    With our ids (``assigns_ids=False``) the key is the id: ``create`` and ``update`` both overwrite what is there, or
    make it, and return the key.
    """

    capabilities: Capabilities = Capabilities(
        assigns_ids=True, can_lookup=False, idempotent_create=False, group_in_address=False
    )
    """With their ids, and neither ``lookup`` nor ``idempotent_create``, a create whose outcome is unknown waits for a
    person: nobody could tell whether it would make a duplicate."""

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        self.key_field = given.key_field
        self.fields = given.fields

    @abstractmethod
    async def create(self, item: Item) -> str:
        """Makes the record and returns the id under which the third party keeps it."""

    @abstractmethod
    async def update(self, item: Item) -> str | None:
        """Overwrites the record and returns its id; None where the third party has none."""

    @abstractmethod
    async def delete(self, item: Item) -> None:
        """Removes the record; one that is gone already is no failure."""

    @abstractmethod
    async def read(self, item: Item) -> Found | None:
        """The record under ``item.external_id`` (with our ids ``item.key``), or None."""

    @abstractmethod
    def pages(self, group: str) -> AsyncIterator[list[Found]]:
        """Pages of everything that it holds in a business group: ``async def`` with ``yield``."""

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        """Every record that carries our key (more than one: duplicates); where the capabilities say ``can_lookup``."""
        raise CallFailed(Failure.PERMANENT, "it cannot be searched by key")

    async def count(self, group: str) -> int | None:
        """How many records it holds in the group; None where it cannot say without listing."""
        return None

    async def account(self) -> str | None:
        """The identity of the account that calls are made with, or None where it cannot be found out.

        It is asked for before the first push of a drain. Ids belong to the account that gave them, so pushes stop when
        another one is returned.
        """
        return None


class SourceAdapter(Adapter, Source):
    """One entity's part in one source system: ``pages``, and whichever of the others it can do.

    ``can_read`` and ``can_poll`` follow from the methods that it has, unless it says them itself. One with a
    ``read_many`` of its own reads records together, ``read_many_size`` of them at most.
    """

    read_many_size: int = 100

    def __init_subclass__(cls, **more: object) -> None:
        super().__init_subclass__(**more)
        has = {name for name in ("read", "read_many", "changes") if getattr(cls, name) is not getattr(Source, name)}
        has -= {"read_many"} if cls.read_many is SourceAdapter.read_many else set()
        if "can_read" not in vars(cls):
            cls.can_read = bool(has & {"read", "read_many"})
        if "can_poll" not in vars(cls):
            cls.can_poll = "changes" in has
        if "confirms_absence" not in vars(cls):
            cls.confirms_absence = has >= {"read", "read_many"}

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        if given.part is None:
            raise ConfigError(f"{self.system}: a source adapter is made for a part")
        self.part = given.part
        self._rows = Rows(given.part)

    def part_of(self, row: Json) -> PartRead:
        """The part that a row tells, by ``key``, ``version``, ``group``, ``deleted_when`` and ``only_when``."""
        return self._rows.part_of(row)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        """The parts of those of the given records that the source has; by one ``read`` each unless told otherwise."""
        if type(self).read is Source.read:
            return await super().read_many(keys)
        found = await side_by_side(_READS_AT_ONCE, self.read, keys)
        return [row for row in found if row is not None]

"""What the core asks of a source system and of a third party: two small protocols and the values they exchange.

Adapters implement them (see ``adapters/``); nothing here knows HTTP. Every method may raise ``CallFailed``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Json = dict[str, Any]

TOO_OLD = "the lease grew too old before the call"


@dataclass(frozen=True, slots=True)
class PartRead:
    """One part of one record as a source system shows it now.

    ``version`` is the source's modification time in microseconds since 1970, or any growing number.
    ``group`` is None where the source does not say the business group.
    ``deleted`` is true where the source still lists the record but calls it deleted.
    ``problem`` says why the part cannot be used; then nothing else of it counts but the key.
    ``passed_over`` is true for an item that is no record (``only_when``): gone where the record is known, and nothing
    where it is not. Its key is empty where it shows none.
    """

    key: str
    version: int
    data: Json
    group: str | None = None
    deleted: bool = False
    problem: str | None = None
    passed_over: bool = False


@dataclass(frozen=True, slots=True)
class Ungrouped:
    """Rows of a source that name no business group, so that no listing shows them; ``examples`` are some keys."""

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenTransactions:
    """The transactions that are open at a source now, which may commit older versions than it shows by then.

    Attributes:
        names: A name for each, which no other transaction has.
        may_have_new_names: Whether some of them may have had other names before.
    """

    names: frozenset[str] = frozenset()
    may_have_new_names: bool = False


@dataclass(frozen=True, slots=True)
class LogEnd:
    """Where the log of a source's database ends now.

    Attributes:
        inserted: The position behind everything that was written.
        flushed: The position behind everything that is durable, which the log's readers are shown.
    """

    inserted: str
    flushed: str


class SourceLog(Protocol):
    """The log of a source's database, as reads of the source look at it."""

    stall_seconds: float
    """For how long the log's stream may stand still while reads wait for it."""

    flush_delay_seconds: float
    """After this time every commit that was visible is flushed, whether its session waited for that or not."""

    async def read_end(self) -> LogEnd:
        """Where the log ends now."""
        ...

    def choose_earlier(self, one: str, other: str) -> str:
        """The earlier of two positions."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


class SourceSystem(Protocol):
    """One entity's part in one source system."""

    keyset_listing: bool
    """True where pages follow a key, so that rows added or removed meanwhile shift nothing."""

    can_read: bool
    """True where one record can be read by key."""

    can_poll: bool
    """True where it can be asked what has changed."""

    can_list_keys: bool
    """True where ``keys`` costs less than ``pages``."""

    read_many_size: int
    """How many records one call of ``read_many`` reads at most; 1 where they are read one by one."""

    confirms_absence: bool
    """True where ``read`` is a call of its own, which decides whether a record that ``read_many`` lacks is there."""

    async def read(self, key: str) -> PartRead | None:
        """The part of one record now, or None where the source has no such record."""
        ...

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        """The parts of those of the given records that the source has."""
        ...

    def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        """Pages of a business group, each with the position from which a later call can go on."""
        ...

    def keys(self, group: str) -> AsyncIterator[list[PartRead]]:
        """Pages of the keys and versions of a business group; nothing else of the parts counts."""
        ...

    def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        """Pages of what has changed since a version, in any order; only where ``can_poll``."""
        ...

    async def open_transactions(self) -> OpenTransactions | None:
        """The transactions that are open, or None where the source cannot say; asked where ``can_poll``."""
        ...

    async def count(self, group: str) -> int | None:
        """How many records of the group the source has, or None where it cannot say."""
        ...

    async def groups(self) -> list[str] | None:
        """The business groups that exist, or None where the source cannot say."""
        ...

    async def ungrouped(self) -> Ungrouped | None:
        """The rows that name no business group, or None where the source cannot say."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a third party can do, so that a push is planned without knowing its API."""

    assigns_ids: bool
    """It gives its own ids; otherwise our key is the id and a write is an upsert."""
    can_lookup: bool
    """It can be searched by our key."""
    idempotent_create: bool
    """A create repeated with the same idempotency key is carried out once."""
    group_in_address: bool
    """The business group is part of a record's address: a move leaves the old place to be cleared."""
    search_first: bool = False
    """A search by our key goes before every create, since others make records there too; needs ``can_lookup``."""
    look_first: Literal["auto", "always", "never"] = "auto"
    """Whether a record is read before it is written or deleted under an id that it was given, so that no record of
    others is hit where ids are given again; ``auto``: unless the id is a random one."""
    reads_before: tuple[str, ...] = ()
    """``update``, ``delete``: where the adapter itself reads the record before, and raises ``not_ours``."""
    bulk_update: bool = False
    """Updates go with others in one call: repeating one of unknown outcome costs less than reading it back alone."""
    sends_group: bool = True
    """A write sends the business group, in a mapped field or not, so a record whose group alone changed is written."""
    shows_group: bool = False
    """A record that it shows names its business group, so one that names none is in no group. Where False, ``group``
    None of a ``Found`` says nothing."""
    lists_by_group: bool = True
    """``pages`` shows the records of one business group only."""
    can_create: bool = True
    """Records are made there. Where False, others make them, and a record that is not there is waited for."""
    can_delete: bool = True
    """Records are deleted there. Where False, no delete is sent."""
    update_creates: bool = True
    """With our ids: an update makes what is not there. Where ``can_create`` is False, a read goes before it."""
    can_find_same: bool = False
    """Records that may be the same as one that is about to be made can be searched (``FindsSame``)."""
    has_linked_calls: bool = False
    """A write consists of several calls. What the first one wrote does not prove that the others were made."""


@dataclass(frozen=True, slots=True)
class WriteGuard:
    """What a record may show before it is written, so that no change of somebody else's is overwritten unseen.

    Attributes:
        expected: Payloads as the record may show them: as it was last known, or as an older call of ours left it.
        fields: The mapped fields that are compared.
        unchanged: Those whose values stay as they are, so that an update need not send them.
    """

    expected: tuple[Json, ...]
    fields: frozenset[str]
    unchanged: frozenset[str]


@dataclass(frozen=True, slots=True)
class Item:
    """One record to be written at the third party."""

    key: str
    group: str | None
    payload: Json
    external_id: str | None = None
    idempotency_key: str | None = None
    """Differs from one creation of a record to its next one, and is the same for all attempts at one."""
    deadline: float | None = None
    """Monotonic time after which no write may be begun: an adapter that waited raises THROTTLED ``TOO_OLD``."""
    guard: WriteGuard | None = None
    """An adapter that reads the record before it writes checks it, and sends only what changes if its API allows."""


@dataclass(frozen=True, slots=True)
class Found:
    """One record as the third party shows it, reduced to the mapped fields."""

    key: str | None
    external_id: str
    group: str | None
    fields: Json


class FindsSame(Protocol):
    """A third party with ``can_find_same``."""

    async def find_same(self, item: Item) -> list[Found]:
        """The records that may be the same as one that is about to be made, by a natural key."""
        ...


class ThirdParty(Protocol):
    """One entity's collection at the third party."""

    capabilities: Capabilities

    async def create(self, item: Item) -> str:
        """Makes the record and returns the id under which the third party keeps it."""
        ...

    async def update(self, item: Item) -> str | None:
        """Overwrites the record and returns its id; None where the third party has none (which is no failure here)."""
        ...

    async def delete(self, item: Item) -> None:
        """Removes the record; one that is gone already is no failure. ``item.group`` is the place to clear."""
        ...

    async def read(self, item: Item) -> Found | None:
        """The record under ``item.external_id`` and ``item.group``, or None."""
        ...

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        """Every record that carries our key (more than one: duplicates)."""
        ...

    def pages(self, group: str) -> AsyncIterator[list[Found]]:
        """Pages of everything the third party holds in a business group."""
        ...

    async def count(self, group: str) -> int | None:
        """How many records it holds in the group, or None where it cannot say without listing."""
        ...

    async def account(self) -> str | None:
        """The identity of the account that it is called with, or None where it cannot say."""
        ...

    async def close(self) -> None:
        """Closes the connections."""
        ...

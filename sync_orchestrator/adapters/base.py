"""What source adapters begin with: a source system with nothing but a listing.

The values that they take and give are those of ``core/ports.py``. Not here: the systems themselves (``rest_source.py``,
``sql_source.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.ports import PartRead


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

    @abstractmethod
    def pages(self, group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
        """Pages of a business group, each with the position from which a later call can go on, or None."""

    async def read(self, key: str) -> PartRead | None:
        """The part of one record now, or None where there is no such record."""
        return next(iter(await self.read_many([key])), None)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        """The parts of those of the given records that the source has."""
        raise CallFailed(Failure.PERMANENT, "this source cannot be read by key")

    def changes(self, since: int) -> AsyncIterator[list[PartRead]]:
        """Pages of what has changed since a version, in any order."""
        raise CallFailed(Failure.PERMANENT, "this source cannot be asked what has changed")

    async def count(self, group: str) -> int | None:
        """How many records of the group the source has, or None where it cannot say."""
        return None

    async def groups(self) -> list[str] | None:
        """The business groups that exist, or None where the source cannot say."""
        return None

    async def close(self) -> None:
        """Ends its connections; it may be used again."""
        return

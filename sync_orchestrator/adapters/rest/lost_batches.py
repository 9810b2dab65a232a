"""Finds records of a lost bulk call together: a listing of their group costs less than a search for each of them.

Only what a listing shows counts. A record that it does not show is searched by its key, since listings may lag.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from weakref import WeakKeyDictionary

from sync_orchestrator.core.ports import Found
from sync_orchestrator.errors import CallFailed

MIN_KEYS = 5
"""For fewer records of one group a listing is not worth its first page."""

_GATHER_SECONDS = 0.05
_REMEMBERED = 10_000

Waiting = dict[str, "asyncio.Future[list[Found]]"]


class LostBatches:
    """The keys of bulk calls whose outcome is unknown.

    Args:
        pages: Lists a business group, page by page.
    """

    def __init__(self, pages: Callable[[str], AsyncIterator[list[Found]]]) -> None:
        self._pages = pages
        self._keys: dict[str, None] = {}
        self._waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Waiting]] = WeakKeyDictionary()
        self._listings: set[asyncio.Task[None]] = set()

    def add_keys(self, keys: Iterable[str]) -> None:
        """Remembers the records of a call whose outcome is unknown."""
        self._keys.update(dict.fromkeys(keys))
        while len(self._keys) > _REMEMBERED:
            self._keys.pop(next(iter(self._keys)))

    async def find_records(self, key: str, group: str | None) -> list[Found]:
        """What a listing shows under a key that was in a lost call; empty where a search has to tell."""
        if group is None or key not in self._keys:
            return []
        del self._keys[key]
        loop = asyncio.get_running_loop()
        groups = self._waiting.setdefault(loop, {})
        if group not in groups:
            groups[group] = {}
            loop.call_later(_GATHER_SECONDS, self._start_listing, groups, group)
        return await groups[group].setdefault(key, loop.create_future())

    def _start_listing(self, groups: dict[str, Waiting], group: str) -> None:
        listing = asyncio.get_running_loop().create_task(self._list_group(group, groups.pop(group)))
        self._listings.add(listing)
        listing.add_done_callback(self._listings.discard)

    async def _list_group(self, group: str, waiting: Waiting) -> None:
        found: dict[str, list[Found]] = defaultdict(list)
        try:
            if len(waiting) >= MIN_KEYS:
                await self._read_pages(group, waiting, found)
        except CallFailed:
            found.clear()  # each is searched by itself, and says what is wrong
        finally:
            for key, future in waiting.items():
                if not future.done():
                    future.set_result(found.get(key, []))

    async def _read_pages(self, group: str, waiting: Waiting, found: dict[str, list[Found]]) -> None:
        """Reads pages for as long as they cost less than half of the searches that they may save."""
        left = len(waiting) // 2
        async with aclosing(self._pages(group)) as pages:  # type: ignore[type-var]
            async for page in pages:
                left -= 1
                for record in page:
                    if record.key in waiting:
                        found[record.key].append(record)
                if left <= 0 or len(found) == len(waiting):
                    return

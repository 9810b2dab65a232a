"""Listings page by page, as ``Listing`` in ``sync.yaml`` describes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import jmespath

from sync_orchestrator.adapters.http import Http, filled, garbage
from sync_orchestrator.config import Listing


async def pages(
    http: Http, listing: Listing, values: dict[str, str | None], *, key_of: Callable[[Any], str] | None = None,
    after: str | None = None,
) -> AsyncIterator[tuple[list[Any], str | None]]:
    """The items of each page, with the last key where paging goes by key (None otherwise).

    ``key_of`` is needed for paging ``after``. A listing that does not move on is a failure, not an end. Raises
    CallFailed.
    """
    items_at, next_at = jmespath.compile(listing.items), jmespath.compile(listing.next) if listing.next else None
    position, page = after or "", listing.first_page
    while True:
        known = {**values, "after": position, "cursor": position, "page": str(page)}
        params = {name: text for name, value in listing.params.items() if (text := filled(value, known, in_path=False))}
        document = await http.read(filled(listing.path, known, in_path=True), params)
        items = items_at.search(document)
        if not isinstance(items, list):
            raise garbage(f"no list at '{listing.items}'", document)
        if listing.paging == "after":
            assert key_of is not None
            last = key_of(items[-1]) if items else None
            if items:
                yield items, last
            if last is None:
                return
            if last <= position and position:
                raise garbage("the listing does not move on from its last key", position)
            position = last
            continue
        if items:
            yield items, None
        if listing.paging == "none" or (listing.paging == "page" and not items):
            return
        if listing.paging == "page":
            page += 1
            continue
        assert next_at is not None
        following = next_at.search(document)
        if following in (None, ""):
            return
        if str(following) == position:
            raise garbage("the listing gives the same cursor again", position)
        position = str(following)

"""Listings page by page, and single answers, as ``Listing`` and ``Get`` in ``sync.yaml`` describe them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import jmespath

from sync_orchestrator.adapters.http import Http, filled
from sync_orchestrator.config import Get, Listing

_PLAIN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


async def pages(
    http: Http, listing: Listing, values: dict[str, str | None], *, key_of: Callable[[Any], str] | None = None,
    after: str | None = None,
) -> AsyncIterator[tuple[list[Any], str | None]]:
    """The items of each page, with the last key where paging goes by key (None otherwise).

    ``key_of`` is needed for paging ``after``. A listing that does not move on is a failure, not an end. Raises
    CallFailed.
    """
    position, page = after or "", listing.first_page
    seen = {position}
    before: list[Any] = []
    while True:
        document = await _page(http, listing, {**values, "after": position, "cursor": position, "page": str(page)})
        items = http.search(jmespath.compile(listing.items), document)
        if not isinstance(items, list):
            raise http.garbage(f"no list at '{listing.items}'", document)
        if listing.paging == "page" and items and items == before:
            raise http.garbage("the listing gives the same page again", page)
        following = _following(http, listing, document, items, key_of)
        if following in seen:
            raise http.garbage("the listing does not move on from", following)
        if items:
            yield items, following if listing.paging == "after" else None
        if following is None and (listing.paging != "page" or not items):
            return
        if following is not None:
            seen.add(following)
            position = following
        page += 1
        before = items


async def get(http: Http, call: Get, values: Mapping[str, str | None]) -> Any:
    """What one reading call finds; None only where the answer says in so many words that there is nothing.

    An answer of another shape (a maintenance page in JSON) is a failure: it must not pass for a missing record. Raises
    CallFailed.
    """
    params = {name: filled(value, values, in_path=False) for name, value in call.params.items()}
    document = await http.read(filled(call.path, values, in_path=True), params)
    found = http.search(jmespath.compile(call.record), document)
    if found is None and not _says_nothing(document, call.record):
        raise http.garbage(f"nothing at '{call.record}'", document)
    return found


async def get_count(http: Http, call: Get, group: str) -> int:
    """The whole number that a counting call finds. Raises CallFailed."""
    number = await get(http, call, {"group": group})
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise http.garbage(f"no number at '{call.record}' in the answer to a count", number)
    return number


async def _page(http: Http, listing: Listing, known: dict[str, str | None]) -> Any:
    params = {name: text for name, value in listing.params.items() if (text := filled(value, known, in_path=False))}
    return await http.read(filled(listing.path, known, in_path=True), params)


def _following(
    http: Http, listing: Listing, document: Any, items: list[Any], key_of: Callable[[Any], str] | None
) -> str | None:
    if listing.paging == "after":
        assert key_of is not None
        return key_of(items[-1]) if items else None
    if listing.next is None:
        return None
    cursor = http.search(jmespath.compile(listing.next), document)
    if isinstance(cursor, dict | list | bool):
        raise http.garbage(f"no cursor at '{listing.next}'", cursor)
    return None if cursor in (None, "") else str(cursor)


def _says_nothing(document: Any, place: str) -> bool:
    """Whether the answer is ``null``, or has ``null`` at a plain place such as ``data.item``."""
    if document is None:
        return True
    if not _PLAIN.fullmatch(place):
        return False
    *above, last = place.split(".")
    for name in above:
        document = document.get(name) if isinstance(document, dict) else None
    return isinstance(document, dict) and last in document

"""Reads the first pages of a listing, and counts what they hold."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, TypeVar

from sync_orchestrator.core.ports import PartRead, SourceSystem, ThirdParty

T = TypeVar("T")

MAX_PAGES = 2


async def all_keys(source: SourceSystem, group: str) -> int | None:
    """How many records a source lists; None where two pages are not all of them."""
    return await _number_in(rows_alone(source.pages(group)))


async def all_found(third_party: ThirdParty, group: str) -> int | None:
    """How many records a third party lists; None where two pages are not all of them."""
    return await _number_in(third_party.pages(group))


async def _number_in(pages: AsyncIterator[Sequence[Any]]) -> int | None:
    found = [len(page) async for page in read_some_pages(pages, MAX_PAGES + 1)]
    return None if len(found) > MAX_PAGES else sum(found)


async def rows_alone(pages: AsyncIterator[tuple[list[PartRead], str | None]]) -> AsyncGenerator[list[PartRead]]:
    """Yields the rows of each page, without the key after which it goes on."""
    async for rows, _ in read_some_pages(pages, 10**6):
        yield rows


async def rows_of(source: SourceSystem, key: str, group: str) -> list[PartRead]:
    """One record by its key, or else a page in which it may be."""
    if source.can_read:
        return await source.read_many([key])
    return (await read_first_page(source.pages(group)) or ([], None))[0]


async def read_first_page(pages: AsyncIterator[T]) -> T | None:
    """The first page, and no more."""
    async for page in read_some_pages(pages, 1):
        return page
    return None


async def read_some_pages(pages: AsyncIterator[T], most: int = MAX_PAGES) -> AsyncGenerator[T]:
    """The first pages: a listing often fails from the second on, by what leads to it."""
    number = 0
    try:
        async for page in pages:
            yield page
            number += 1
            if number >= most:
                return
    finally:
        if isinstance(pages, AsyncGenerator):
            await pages.aclose()


def pages_of(pages: Sequence[Sequence[Any]], what: str) -> str:
    """Returns the number of pages and of what they hold, in words."""
    number = sum(len(page) for page in pages)
    return f"a page of {number} {what}" if len(pages) < 2 else f"{len(pages)} pages with {number} {what}"

"""Reads ahead: the next item is made ready while the previous one is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from typing import TypeVar

T = TypeVar("T")


async def read_ahead(items: AsyncGenerator[T, None]) -> AsyncIterator[T]:
    """The items in their order. They are made in one task of their own, which is never more than one ahead.

    Raises what making them raises, after the items that came before.
    """
    ready: asyncio.Queue[T | None] = asyncio.Queue(1)

    async def fill_queue() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    await ready.put(item)
                    await ready.join()
        finally:
            await ready.put(None)

    making = asyncio.create_task(fill_queue())
    try:
        while (item := await ready.get()) is not None:
            ready.task_done()
            yield item
        await making
    finally:
        making.cancel()
        while not ready.empty():
            ready.get_nowait()
        with suppress(asyncio.CancelledError, Exception):
            await making

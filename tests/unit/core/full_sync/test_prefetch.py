"""Reading ahead keeps the order, says what went wrong where it did, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from sync_orchestrator.core.full_sync.prefetch import read_ahead


class Numbers:
    """Whole numbers from 0, with how many were made and whether the source was closed."""

    def __init__(self, count: int, breaks: bool = False) -> None:
        self.count = count
        self.breaks = breaks
        self.made = 0
        self.closed = False
        self.tasks: set[asyncio.Task[object] | None] = set()

    async def each(self) -> AsyncGenerator[int, None]:
        try:
            for number in range(self.count):
                await asyncio.sleep(0)
                self.made += 1
                self.tasks.add(asyncio.current_task())
                yield number
            if self.breaks:
                raise ConnectionError("gone")
        finally:
            self.closed = True


def test_gives_all_of_them_in_order_and_is_never_more_than_one_ahead() -> None:
    numbers = Numbers(20)

    async def scene() -> None:
        got = []
        async for number in read_ahead(numbers.each()):
            for _ in range(20):
                await asyncio.sleep(0)
            got.append(number)
            assert numbers.made <= len(got) + 1
        assert got == list(range(20))

    asyncio.run(scene())
    assert numbers.closed


def test_what_breaks_is_told_after_what_came_before_it() -> None:
    numbers = Numbers(5, breaks=True)
    got = []

    async def scene() -> None:
        async for number in read_ahead(numbers.each()):
            got.append(number)

    with pytest.raises(ConnectionError, match="gone"):
        asyncio.run(scene())
    assert got == list(range(5))


def test_who_stops_early_closes_the_source() -> None:
    numbers = Numbers(1000)

    async def scene() -> None:
        async with aclosing(read_ahead(numbers.each())) as ahead:  # type: ignore[type-var]
            async for number in ahead:
                if number == 3:
                    break
        assert numbers.closed

    asyncio.run(scene())
    assert numbers.made <= 5


def test_the_source_is_gone_through_in_one_task() -> None:
    """Many a client holds a connection or a timeout that belongs to a task."""
    numbers = Numbers(10)

    async def scene() -> None:
        assert [number async for number in read_ahead(numbers.each())] == list(range(10))

    asyncio.run(scene())
    assert len(numbers.tasks) == 1

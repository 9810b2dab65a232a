"""Calls side by side, as many as a system may have under way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

A = TypeVar("A")
R = TypeVar("R")


async def side_by_side(most: int, call: Callable[[A], Awaitable[R]], arguments: Sequence[A]) -> list[R]:
    """What the calls return, in order; no more than ``most`` at once, so that none spends its deadline queueing."""
    room = asyncio.Semaphore(most)

    async def call_limited(argument: A) -> R:
        async with room:
            return await call(argument)

    return await asyncio.gather(*(call_limited(argument) for argument in arguments))

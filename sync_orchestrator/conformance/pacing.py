"""The configured rates of third parties, kept by one process alone: for checks, which know no database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from sync_orchestrator.config import Config


def paces_of(config: Config) -> dict[str, Callable[[], Awaitable[None]]]:
    """By third party with a ``rate``, what to await before each call."""
    return {name: _make_pace(system.rate) for name, system in config.third_parties.items() if system.rate is not None}


def _make_pace(rate: float) -> Callable[[], Awaitable[None]]:
    following = 0.0

    async def before_call() -> None:
        nonlocal following
        now = asyncio.get_running_loop().time()
        at = max(now, following)
        following = at + 1 / rate
        await asyncio.sleep(at - now)

    return before_call

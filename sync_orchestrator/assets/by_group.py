"""Work on business groups, a few at once, in one run.

Not here: the work, and what is reported of it (``checks.py``, ``source_checks.py``, ``repair.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import dagster as dg

from sync_orchestrator.resources.system import System

T = TypeVar("T")

Context = dg.OpExecutionContext | dg.AssetCheckExecutionContext

GROUPS_AT_ONCE = 4


def by_group(
    context: Context, system: System, name: str, groups: Sequence[str], work: Callable[[str], Awaitable[T]], what: str
) -> Iterator[tuple[str, T]]:
    """The groups with their results, as they end; one that breaks keeps no other from its turn, but fails the run.

    ``what``: what could not be done with it, such as "validated".
    """

    async def some(chosen: Sequence[str]) -> list[T | BaseException]:
        return await asyncio.gather(*(work(group) for group in chosen), return_exceptions=True)

    broken: list[str] = []
    for start in range(0, len(groups), GROUPS_AT_ONCE):
        chosen = groups[start:start + GROUPS_AT_ONCE]
        for group, result in zip(chosen, system.perform(some(chosen)), strict=True):
            if isinstance(result, BaseException):
                context.log.error(f"{name} {group}: {result!r}")
                broken.append(f"{group}: {type(result).__name__}: {result}")
            else:
                yield group, result
    if broken:
        raise dg.Failure(f"{len(broken)} of {len(groups)} business groups of {name} could not be {what}: "
                         + "; ".join(broken), allow_retries=False)

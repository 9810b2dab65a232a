"""How asynchronous work of the core is run from ordinary code: a command, an op, a sensor. Not here: the work."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import uvloop

from sync_orchestrator.core.context import Context

T = TypeVar("T")
Item = TypeVar("Item")

_COLLECT_AFTER = 50_000  # objects made and not yet gone: batches of records make thousands that soon go by themselves


def perform(context: Context, work: Awaitable[T]) -> T:
    """Runs asynchronous work of the core from ordinary code, and ends its connections."""

    async def performed() -> T:
        try:
            return await work
        finally:
            await context.close()

    with seldom_collecting():
        return uvloop.run(performed())


def perform_each(
    context: Context, items: Iterable[Item], work: Callable[[Item], Awaitable[T]], at_once: int
) -> Iterator[tuple[Item, T | Exception]]:
    """Does the work for each item, so many at once, and gives what came of each as it ends; then ends connections.

    Work goes on only while the next result is asked for.
    """
    left = iter(items)
    ended: asyncio.Queue[tuple[Item, T | Exception]] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    async def one(item: Item) -> None:
        try:
            came: T | Exception = await work(item)
        except Exception as error:
            came = error
        ended.put_nowait((item, came))

    async def following() -> tuple[Item, T | Exception] | None:
        while len(tasks) < at_once and (item := next(left, None)) is not None:
            task = asyncio.get_running_loop().create_task(one(item))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if not tasks and ended.empty():
            return None
        return await ended.get()

    with seldom_collecting(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            while (pair := runner.run(following())) is not None:
                yield pair
        finally:
            runner.run(context.close())


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Lets the garbage collector rest more than usual, and leaves what was loaded before alone."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

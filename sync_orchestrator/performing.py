"""How asynchronous work of the core is run from ordinary code: a command, an op, a sensor. Not here: the work."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import uvloop

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.ending import ending

T = TypeVar("T")
Item = TypeVar("Item")

_COLLECT_AFTER = 50_000  # objects made and not yet gone: batches of records make thousands that soon go by themselves


_GRACE_SECONDS = 8.0
"""How long calls under way may take once the process was requested to end. Service managers wait about 10 seconds."""

_ENDING_SIGNALS = ("SIGTERM", "SIGHUP")


def perform(context: Context, work: Awaitable[T]) -> T:
    """Runs asynchronous work of the core from ordinary code, and ends its connections.

    On SIGTERM or SIGHUP, unless the program handles them itself, calls under way end, leases are given back, and
    SystemExit is raised.
    """

    async def performed() -> T:
        try:
            with _ends_on_signals():
                return await work
        finally:
            await context.close()

    with seldom_collecting():
        try:
            return uvloop.run(performed())
        except asyncio.CancelledError:
            if ending.signal_number is None:
                raise
            raise SystemExit(128 + ending.signal_number) from None


@contextmanager
def _ends_on_signals() -> Iterator[None]:
    """Turns the first signal that would end the process into the cancellation of the present task; a second one ends
    the process at once."""
    task = asyncio.current_task()
    numbers = [number for name in _ENDING_SIGNALS if (number := getattr(signal, name, None)) is not None
               and threading.current_thread() is threading.main_thread()
               and signal.getsignal(number) is signal.SIG_DFL]
    if task is None or not numbers:
        yield
        return
    loop = asyncio.get_running_loop()

    def end() -> None:
        loop.call_later(_GRACE_SECONDS, task.cancel)
        ending.when_idle(task.cancel)

    def requested(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_DFL)
        ending.signal_number = number
        loop.call_soon_threadsafe(end)

    for number in numbers:
        signal.signal(number, requested)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


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

"""Runs asynchronous work of the core from synchronous code: a command, an op, a sensor.

It can be interrupted. uvloop swallows what a signal handler raises while its loop runs, so handlers that are installed
(Dagster's, Python's for Ctrl-C, or none) are held back for that time: what they would raise is raised after the work
has ended in order (``core/shutdown.py``).
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, TypeVar

import uvloop

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.shutdown import GRACE_SECONDS, ending

T = TypeVar("T")
Item = TypeVar("Item")

_COLLECT_AFTER_OBJECTS = 50_000  # batches of records make thousands of objects that are freed soon without collection

_INTERRUPTING_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")

_CUT_OFF_SECONDS = 1.0

_CUT_OFF_SIGNALS = 2  # the second signal ends the grace, any further one ends the process


class _Interrupts:
    """Takes the signals of this process while the block lasts, in the main thread.

    A signal whose handler raises is an interrupt. Leaving the block raises what the handler of the first one raised.
    A handler that raises nothing has dealt with its signal.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._count = self._passed_on = 0
        self._ends = 0.0
        self._handlers: dict[int, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._cancel: Callable[[], object] = lambda: None

    def __enter__(self) -> _Interrupts:
        if threading.current_thread() is threading.main_thread():
            for name in _INTERRUPTING_SIGNALS:
                number = getattr(signal, name, None)
                if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                    self._handlers[number] = signal.signal(number, self._handle_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        if self.error is not None:
            ending.withdraw_request()
            raise self.error from None

    @contextmanager
    def cancel_on_interrupt(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Calls ``cancel`` in the running loop at each interrupt while the block lasts, and at an earlier one."""
        self._loop, self._cancel = asyncio.get_running_loop(), cancel
        self._request_cancel()
        try:
            yield
        finally:
            self._loop = None

    async def end_others(self) -> None:
        """After an interrupt, waits until all other tasks of the loop have ended, and cancels them after the grace.

        ``asyncio.gather`` ends with the first of its tasks that is cancelled, while others still settle their calls.
        """
        present = asyncio.current_task()
        if self.error is None or present is None:
            return
        with suppress(asyncio.CancelledError), self.cancel_on_interrupt(present.cancel):
            while (others := asyncio.all_tasks() - {present}) and (left := self._ends - time.monotonic()) > 0:
                await asyncio.wait(others, timeout=left)
        for other in others:
            other.cancel()
        if others:
            await asyncio.wait(others, timeout=_CUT_OFF_SECONDS)

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        try:
            _call_handler(self._handlers[number], number, frame)
        except BaseException as error:
            self._count += 1
            self.error = self.error or error
        else:
            return
        if self._count > _CUT_OFF_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._count == 1 and sys.stderr.isatty():
            print(f"\nending: calls under way have {GRACE_SECONDS:.0f} s; again cuts them off", file=sys.stderr)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._request_cancel)

    def _request_cancel(self) -> None:
        if self._loop is not None and self._passed_on < self._count:  # a second cancellation cuts off, so never twice
            if not self._passed_on:
                self._ends = time.monotonic() + GRACE_SECONDS + _CUT_OFF_SECONDS
            self._passed_on = self._count
            ending.request_end()
            self._cancel()


def _call_handler(handler: Any, number: int, frame: FrameType | None) -> None:
    """Does what a signal would do here. Raises what its handler raises; SystemExit where it would end the process."""
    if handler is signal.SIG_DFL:
        raise SystemExit(128 + number)
    handler(number, frame)


def perform(context: Context, work: Awaitable[T]) -> T:
    """Runs asynchronous work of the core from ordinary code, and ends its connections.

    An interrupt (SIGINT, SIGTERM or SIGHUP whose handler raises, or that would end the process) ends the work in
    order: calls under way have GRACE_SECONDS, nothing new begins, leases are given back. Then it is raised here.
    """

    async def perform_work() -> T:
        task = asyncio.current_task()
        assert task is not None
        try:
            with interrupts.cancel_on_interrupt(task.cancel):
                return await work
        finally:
            await interrupts.end_others()
            await context.close()

    with seldom_collecting(), _Interrupts() as interrupts:
        return uvloop.run(perform_work())


def perform_each(
    context: Context, items: Iterable[Item], work: Callable[[Item], Awaitable[T]], at_once: int
) -> Iterator[tuple[Item, T | Exception]]:
    """Does the work for each item, a few at once, and yields the result of each as it ends; then ends connections.

    Work goes on only while the next result is requested. An interrupt ends all of it, as in ``perform``: also one that
    comes between two results. Who takes the results must not install signal handlers in between, as Dagster does
    around each event that an op yields (``assets/cancellation.py``).
    """
    left = iter(items)
    ended: asyncio.Queue[tuple[Item, T | Exception]] = asyncio.Queue()
    tasks: set[asyncio.Task[None]] = set()

    def cancel_all() -> None:
        for task in tasks:
            task.cancel()

    async def perform_item(item: Item) -> None:
        try:
            came: T | Exception = await work(item)
        except Exception as error:
            came = error
        ended.put_nowait((item, came))

    async def next_result() -> tuple[Item, T | Exception] | None:
        present = asyncio.current_task()
        assert present is not None
        with interrupts.cancel_on_interrupt(present.cancel):
            while interrupts.error is None and len(tasks) < at_once and (item := next(left, None)) is not None:
                task = asyncio.get_running_loop().create_task(perform_item(item))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            if not tasks and ended.empty():
                return None
            return await ended.get()

    async def end_tasks() -> None:
        try:
            with interrupts.cancel_on_interrupt(cancel_all):
                if not any(task.cancelling() for task in tasks):
                    cancel_all()
                if tasks:
                    await asyncio.wait(list(tasks))
        finally:
            await interrupts.end_others()
            await context.close()

    with seldom_collecting(), _Interrupts() as interrupts, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            while (pair := runner.run(next_result())) is not None:
                yield pair
        finally:
            runner.run(end_tasks())


@contextmanager
def seldom_collecting() -> Iterator[None]:
    """Lets the garbage collector rest more than usual, and leaves what was loaded before alone."""
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()

"""The end of work before it is done: calls under way get a grace, and nothing new begins.

An interrupt (``core/runtime.py``) cancels the work. What must not be cut off, such as a drain with calls at the third
party, runs under ``ended_in_order``: its end is requested, and its calls have GRACE_SECONDS to return.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from sync_orchestrator.errors import CallFailed, Failure

T = TypeVar("T")

GRACE_SECONDS = 6.0
"""How long calls under way may take once the end is requested. Service managers wait about 10 seconds in all."""

_JOIN_SECONDS = 1.0
"""Signals are handled between two waits for a thread."""

NOT_BEGUN = "this process is about to end: the call was not begun"

_log = logging.getLogger("sync_orchestrator.ending")


class ThreadWork(Protocol):
    """Work that a thread does until it is asked to stop. ``error``: why it ended, if not because of that."""

    name: str
    error: Exception | None

    def run(self) -> None:
        """Does the work. Raises nothing."""
        ...


def stop_on_signals() -> threading.Event:
    """Returns an event that SIGINT and SIGTERM set from now on, in place of ending the process."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    return stop


def run_in_threads(purpose: str, works: Sequence[ThreadWork]) -> None:
    """Runs each work in a thread of its own until all have ended; raises the first error that one ended with."""
    threads = [threading.Thread(target=each.run, name=f"{purpose} {each.name}") for each in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(_JOIN_SECONDS)
    for each in works:
        if each.error is not None:
            raise each.error


class ShutdownRequest:
    """The request to end the work of this process."""

    def __init__(self) -> None:
        self.is_requested = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Task[object]] = set()
        self._refused: set[asyncio.Task[object]] = set()

    def request_end(self) -> None:
        """Notes the request, and refuses the calls of the running event loop.

        These are the calls that wait for their turn, and those that begin to wait later.
        """
        self.is_requested = True
        self._loop = loop = asyncio.get_running_loop()
        for task in [each for each in self._waiting - self._refused if each.get_loop() is loop]:
            self._refused.add(task)
            task.cancel()

    def withdraw_request(self) -> None:
        """Forgets the request: the work that it ended is over."""
        self.is_requested = False
        self._loop = None

    @contextmanager
    def refuse_when_requested(self) -> Iterator[None]:
        """While the block lasts, the present task waits for its turn to make a call.

        Raises CallFailed (``NOT_BEGUN``) where the end is requested meanwhile, or was requested before: work learns of
        a request some steps of the event loop after it was made, and may have begun more by then.
        """
        if self._loop is not None and self._loop is asyncio.get_running_loop():
            raise not_begun()
        task = asyncio.current_task()
        if task is None or task in self._waiting:
            yield
            return
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if task in self._refused and task.uncancel() == 0:
                raise not_begun() from None
            raise
        finally:
            self._waiting.discard(task)
            self._refused.discard(task)


def not_begun() -> CallFailed:
    """The failure of a call that the end of the process came before. It costs no attempt."""
    return CallFailed(Failure.THROTTLED, NOT_BEGUN)


async def ended_in_order(work: Coroutine[Any, Any, T], end: Callable[[], object] = lambda: None) -> T:
    """Runs work that a cancellation of the caller does not cut off.

    Args:
        work: What has calls under way whose outcome must be recorded.
        end: Requests that the work finishes what is under way and begins nothing more.

    Raises:
        CancelledError: The caller was cancelled, and the work has ended: by itself within GRACE_SECONDS, or because
            it was cancelled after that, or at once by a second cancellation.
    """
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            end()
            try:
                await asyncio.wait([task], timeout=GRACE_SECONDS)
            finally:
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.warning("work that was ended early failed: %s: %s", type(error).__name__, error)
        raise


ending = ShutdownRequest()
"""Of this process."""

"""Work of the core is interrupted in order, whichever handler takes the signal (``core/runtime.py``)."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest

from sync_orchestrator.core import shutdown as ending_module
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.runtime import perform, perform_each
from sync_orchestrator.core.shutdown import NOT_BEGUN, ended_in_order, ending
from sync_orchestrator.errors import CallFailed


class Connections:
    """In place of a context: notes when the connections are closed."""

    def __init__(self, done: list[str]) -> None:
        self._done = done

    async def close(self) -> None:
        self._done.append("closed")


class Interrupted(BaseException):
    """What Dagster's handler raises is no Exception, either."""


@contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        assert signal.getsignal(number) is handler
        signal.signal(number, before)


def raises(number: int, frame: object) -> None:
    raise Interrupted


@pytest.fixture
def done() -> list[str]:
    return []


@pytest.fixture
def context(done: list[str]) -> Context:
    return cast(Context, Connections(done))


def interrupt(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


async def forever() -> None:
    await asyncio.Event().wait()


def test_what_the_handler_raises_is_raised_after_the_work_has_ended_in_order(context: Context, done: list[str]) -> None:
    """Also where the work waits for several tasks, one of which ends at once."""

    async def call(free: asyncio.Event) -> None:
        interrupt()
        await free.wait()
        done.append("settled")

    async def work() -> None:
        free = asyncio.Event()

        def end() -> None:
            done.append("end")
            free.set()

        await asyncio.gather(forever(), ended_in_order(call(free), end))

    with handled(signal.SIGTERM, raises), pytest.raises(Interrupted):
        perform(context, work())
    assert done == ["end", "settled", "closed"]
    assert not ending.is_requested


@pytest.mark.parametrize(
    ("number", "handler", "error"),
    [
        (signal.SIGINT, signal.default_int_handler, KeyboardInterrupt),
        (signal.SIGTERM, signal.SIG_DFL, SystemExit),
        (signal.SIGHUP, signal.SIG_DFL, SystemExit),
    ],
)
def test_signals_that_nobody_handles_end_the_work_too(
    context: Context, done: list[str], number: int, handler: Any, error: type[BaseException]
) -> None:
    async def work() -> None:
        interrupt(number)
        await forever()

    with handled(number, handler), pytest.raises(error) as caught:
        perform(context, work())
    assert not isinstance(caught.value, SystemExit) or caught.value.code == 128 + number
    assert done == ["closed"]


def test_a_handler_that_raises_nothing_has_dealt_with_its_signal(context: Context) -> None:
    heard = threading.Event()

    async def work() -> bool:
        interrupt()
        await asyncio.sleep(0)
        return heard.is_set()

    with handled(signal.SIGTERM, lambda number, frame: heard.set()):
        assert perform(context, work())


@pytest.mark.parametrize("by", ["grace", "second signal"])
def test_a_call_is_cut_off_after_the_grace_or_by_a_second_signal(
    context: Context, done: list[str], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    if by == "grace":
        monkeypatch.setattr(ending_module, "GRACE_SECONDS", 0.01)

    async def call() -> None:
        try:
            await forever()
        finally:
            done.append("cut off")

    async def work() -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await ended_in_order(call(), interrupt if by == "second signal" else lambda: None)

    with handled(signal.SIGTERM, raises), pytest.raises(Interrupted):
        perform(context, work())
    assert done == ["cut off", "closed"]


def test_a_call_that_waits_for_its_turn_is_not_begun(context: Context) -> None:
    failures = []

    async def call() -> None:
        try:
            with ending.refuse_when_requested():
                interrupt()
                await forever()
        except CallFailed as failure:
            failures.append(failure.detail)

    with handled(signal.SIGTERM, raises), pytest.raises(Interrupted):
        perform(context, ended_in_order(call()))
    assert failures == [NOT_BEGUN]


def test_a_call_that_has_its_turn_after_the_request_is_not_begun(context: Context) -> None:
    """The work that makes it was begun before the request, or before the cancellation that follows it."""
    begun: list[str] = []
    failures: list[str] = []

    async def call(free: asyncio.Event) -> None:
        await free.wait()
        try:
            with ending.refuse_when_requested():
                begun.append("here")
        except CallFailed as failure:
            failures.append(failure.detail)
        await asyncio.to_thread(asyncio.run, elsewhere())

    async def elsewhere() -> None:
        with ending.refuse_when_requested():
            begun.append("in another event loop")

    async def work() -> None:
        free = asyncio.Event()
        asyncio.get_running_loop().call_soon(interrupt)
        await ended_in_order(call(free), free.set)

    with handled(signal.SIGTERM, raises), pytest.raises(Interrupted):
        perform(context, work())
    assert (begun, failures) == (["in another event loop"], [NOT_BEGUN])
    asyncio.run(elsewhere())
    assert len(begun) == 2


@pytest.mark.parametrize("when", ["while it waits", "between two results"])
def test_an_interrupt_ends_each_and_begins_no_other(context: Context, done: list[str], when: str) -> None:
    begun = []

    async def work(number: int) -> int:
        begun.append(number)
        if number == 0:
            return number
        if when == "while it waits":
            interrupt()
        try:
            await forever()
        finally:
            done.append("ended")
        return number

    def take_all() -> None:
        for number, _ in perform_each(context, range(9), work, 2):
            assert number == 0
            if when == "between two results":
                interrupt()

    with handled(signal.SIGTERM, raises), pytest.raises(Interrupted):
        take_all()
    assert done.count("ended") == len(begun) - 1
    assert done[-1] == "closed"
    assert len(begun) <= 3


def test_results_that_nobody_takes_any_more_end_the_work(context: Context, done: list[str]) -> None:
    async def work(number: int) -> int:
        if number:
            await forever()
        return number

    results = cast(Any, perform_each(context, range(5), work, 2))
    assert next(results) == (0, 0)
    results.close()
    assert done == ["closed"]


def test_another_thread_takes_no_signals(context: Context) -> None:
    found: list[Callable[..., Any]] = []

    async def work() -> None:
        found.append(cast(Any, signal.getsignal(signal.SIGTERM)))

    with handled(signal.SIGTERM, raises):
        thread = threading.Thread(target=lambda: perform(context, work()))
        thread.start()
        thread.join()
    assert found == [raises]

"""What an op does when its run is canceled, whoever cancels it: the UI, or a signal to the run's process.

Dagster's interrupt is an exception that its signal handler raises while an op's code runs. ``core/runtime.py`` ends the
work in order before it raises it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import wraps
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import dagster as dg

from sync_orchestrator.resources.instance.dagster_internals import Execution, report_evaluation

C = TypeVar("C", bound=Execution)
P = ParamSpec("P")
Event = TypeVar("Event")

_INTERRUPTS = (dg.DagsterExecutionInterruptedError, KeyboardInterrupt)


def cancelable(function: Callable[Concatenate[C, P], Iterable[Event]]) -> Callable[Concatenate[C, P], Iterator[Event]]:
    """Decorates the function of an op whose run ends in order when it is canceled.

    Evaluations are stored as they come, and only the other events are handed to Dagster. While Dagster has the control
    its own handler takes an interrupt, and the op's generator is not resumed: work between two events would be left as
    it is.

    An interrupt makes the run CANCELED. Dagster does so only for a termination that came through its instance; the run
    of a process that got a signal would be FAILURE, be tried again, and raise an alert.
    """

    @wraps(function)
    def carried_out(context: C, *args: P.args, **kwargs: P.kwargs) -> Iterator[Event]:
        try:
            with closing(cast(Any, function(context, *args, **kwargs))) as events:
                for event in events:
                    if isinstance(event, dg.AssetCheckEvaluation):
                        report_evaluation(context, event)
                    else:
                        yield event
        except _INTERRUPTS:
            _mark_canceling(context)
            raise

    return cast(Any, carried_out)  # type: ignore[no-any-return]


def _mark_canceling(context: Execution) -> None:
    run = context.instance.get_run_by_id(context.run.run_id)
    if run is not None and not run.is_finished and run.status is not dg.DagsterRunStatus.CANCELING:
        context.instance.report_run_canceling(run, "The process of this run was interrupted by a signal.")


class _SystemEnds(BaseException):
    """SIGTERM came."""


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, which ends the whole system, ends the block in order and is no error. In the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_system_ends(number: int, frame: FrameType | None) -> None:
        raise _SystemEnds

    before = signal.signal(signal.SIGTERM, raise_system_ends)
    try:
        yield
    except _SystemEnds:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)

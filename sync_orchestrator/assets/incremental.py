"""Incremental materialization: one unpartitioned run that drains the ledger while traffic flows.

It reports touched business groups as materializations of the archive and as observations of the mirror: a newer
materialization would take away the status of the mirror's check, and what a drain pushed is only acknowledged, not
validated. Not here: what a drain does (``core/drain.py``).
"""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import dagster as dg

from sync_orchestrator.assets.by_group import IN_ONE_RUN
from sync_orchestrator.assets.entity import archive_key, mirror_key
from sync_orchestrator.assets.preview import AssetEvent, report
from sync_orchestrator.assets.retention import forget_runs
from sync_orchestrator.core.drain import DrainReport, drain
from sync_orchestrator.core.maintenance import look_after
from sync_orchestrator.core.pauses import pauses_of
from sync_orchestrator.core.retention import forget
from sync_orchestrator.resources.system import System

TELL_SECONDS = 5.0
REPORT_SECONDS = 15.0

_HAND_OVER_SECONDS = 60.0
"""So long a drain whose time is over goes on while its successor starts."""


class Reporter:
    """Tells of a drain under way: a line now and then, and the groups it touched since it last told."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._context = context
        self._started = self._told = self._reported = time.monotonic()

    def __call__(self, so_far: DrainReport) -> None:
        """The drain's progress callback."""
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._context.log.info(self._line(so_far))
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self.groups(so_far)

    def end(self, drained: DrainReport) -> dict[str, int | float]:
        """The last word; returns the run's figures."""
        self._context.log.info(self._line(drained))
        self.groups(drained)
        return self._figures(drained)

    def groups(self, so_far: DrainReport) -> None:
        """Reports the groups touched since the last time."""
        touched, so_far.settled.groups = sorted(so_far.settled.groups.items()), Counter()
        events: list[AssetEvent] = []
        for (entity, group), mirrored in touched:
            figures = {"records_mirrored": mirrored}
            events.append(dg.AssetMaterialization(archive_key(entity), partition=group, metadata=figures))
            events.append(dg.AssetObservation(asset_key=mirror_key(entity), partition=group, metadata=figures))
        report(self._context, events)

    def _line(self, so_far: DrainReport) -> str:
        return ", ".join(f"{value} {name}" for name, value in self._figures(so_far).items())

    def _figures(self, so_far: DrainReport) -> dict[str, int | float]:
        settled = so_far.settled
        seconds = max(0.001, so_far.seconds or time.monotonic() - self._started)
        return {
            "events_claimed": so_far.events, "events_done": settled.done, "events_superseded": settled.superseded,
            "records_mirrored": settled.acknowledged, "calls": so_far.calls, "attempts_failed": settled.failed,
            "dead": settled.dead, "events_per_second": round(so_far.events / seconds, 1),
            "calls_per_second": round(so_far.calls / seconds, 1), "slowest_seconds": round(settled.slowest, 3),
            "seconds": round(seconds, 2),
        }


@contextmanager
def _ending_in_order() -> Iterator[Callable[[], bool]]:
    """While the block lasts, SIGTERM, which ends the whole system, lets a drain finish what is under way.

    Termination from the UI comes as SIGINT and interrupts, as ever.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


@dg.op(out=dg.Out(dg.Nothing))
def drain_ledger(context: dg.OpExecutionContext, system: System) -> Iterator[dg.Output[None]]:
    """Works off due events and out-of-step records until it is quiet, and reports the touched groups."""
    reporter = Reporter(context)
    with _ending_in_order() as asked_to_end:
        drained = system.perform(drain(
            system.context, progress=reporter, asked_to_end=asked_to_end, hand_over=_HAND_OVER_SECONDS))
    _log_pauses(context, system)
    yield dg.Output(None, metadata=reporter.end(drained))


def _log_pauses(context: dg.OpExecutionContext, system: System) -> None:
    """Says which pushes the drain left, and what ends that."""
    with system.context.engine.begin() as connection:
        pauses = pauses_of(connection, {name: entity.system_name for name, entity in system.context.entities.items()})
    for pause in pauses.values():
        context.log.warning(f"{pause.text()}; {pause.next_step}")


@dg.job(**IN_ONE_RUN,
        description="Mirrors the changes that have come in. Its sensor requests it; several at once do no harm.")
def incremental_sync() -> None:
    drain_ledger()


@dg.op(out=dg.Out(dg.Nothing))
def look_after_ledger(context: dg.OpExecutionContext, system: System) -> Iterator[dg.Output[None]]:
    """Partitions ahead, totals that must add up, what is over forgotten."""
    settings = system.context.config.retention
    with system.alive():
        with system.context.engine.begin() as connection:
            totals = look_after(connection)
        forgotten = {**forget(system.context.engine, settings), "runs": forget_runs(context.instance, settings)}
    yield dg.Output(None, metadata={
        "received": totals.received, "duplicates": totals.duplicates, **totals.states, "balanced": totals.balanced,
        **{f"forgotten_{what}": n for what, n in forgotten.items()}})


@dg.job(**IN_ONE_RUN, description="Looks after the ledger.")
def maintenance() -> None:
    look_after_ledger()

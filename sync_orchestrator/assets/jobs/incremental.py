"""Incremental materialization: one unpartitioned run that drains the ledger while traffic flows.

It reports touched business groups as observations of the archive and of the mirror: a newer materialization would take
away the status of their checks and the figures of the last full sync, and what a drain pushed is only acknowledged, not
validated. The observations and the log name the first changed records.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import dagster as dg

from sync_orchestrator.assets.cancellation import cancelable, ended_by_sigterm
from sync_orchestrator.assets.jobs.by_group import IN_ONE_RUN
from sync_orchestrator.assets.lineage import archive_key, mirror_key
from sync_orchestrator.assets.totals import observe_totals
from sync_orchestrator.core.drain.drain import DrainReport, drain
from sync_orchestrator.core.operations.maintenance import run_maintenance
from sync_orchestrator.core.operations.retention import delete_expired
from sync_orchestrator.core.push.settlement import MAX_KEYS
from sync_orchestrator.core.systems.pauses import pauses_of
from sync_orchestrator.resources.instance.dagster_internals import AssetEvent, report_events
from sync_orchestrator.resources.instance.run_retention import delete_old_runs
from sync_orchestrator.resources.job_names import INCREMENTAL_SYNC, MAINTENANCE
from sync_orchestrator.resources.system import SystemResource

TELL_SECONDS = 5.0
REPORT_SECONDS = 15.0

_HAND_OVER_SECONDS = 60.0
"""So long a drain whose time is over goes on while its successor starts."""


class Reporter:
    """Tells of a drain under way: a line now and then, and the groups it touched since it last told."""

    def __init__(self, context: dg.OpExecutionContext) -> None:
        self._context = context
        self._started = self._told = self._reported = time.monotonic()
        self._drained = DrainReport()
        self.entities: set[str] = set()
        """The entities of which something was mirrored."""

    def __call__(self, so_far: DrainReport) -> None:
        """The drain's progress callback; it gets the same report each time."""
        self._drained = so_far
        now = time.monotonic()
        if now - self._told >= TELL_SECONDS:
            self._told = now
            self._context.log.info(self._format_figures(so_far))
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self.report_groups(so_far)

    def report_end(self) -> dict[str, int | float]:
        """Reports the end of the drain, complete or not, and returns the run's figures."""
        self._context.log.info(self._format_figures(self._drained))
        self.report_groups(self._drained)
        return self._collect_figures(self._drained)

    def report_groups(self, so_far: DrainReport) -> None:
        """Reports the groups touched since the last time."""
        touched, so_far.settled.groups = sorted(so_far.settled.groups.items()), Counter()
        keys, so_far.settled.keys = so_far.settled.keys, {}
        events: list[AssetEvent] = []
        for (entity, group), mirrored in touched:
            self.entities.add(entity)
            figures: dict[str, Any] = {
                "records_mirrored": mirrored,
                **_describe_records(entity, keys.get((entity, group), [])),
            }
            events += [
                dg.AssetObservation(asset_key=asset, partition=group, metadata=figures)
                for asset in (archive_key(entity), mirror_key(entity))
            ]
        report_events(self._context, events)
        self._log_records(keys)

    def _log_records(self, keys: Mapping[tuple[str, str], Sequence[str]]) -> None:
        """One line for each entity, with the first records: never one for each record or group."""
        for entity in sorted({entity for entity, _ in keys}):
            some = list(dict.fromkeys(key for (of, _), found in sorted(keys.items()) if of == entity for key in found))
            self._context.log.info(
                f"{entity}: mirrored {', '.join(some[:MAX_KEYS])}"
                + (", and others" if len(some) > MAX_KEYS else "")
                + f". See one: sync-orchestrator records show {entity} KEY"
            )

    def _format_figures(self, so_far: DrainReport) -> str:
        return ", ".join(f"{value} {name}" for name, value in self._collect_figures(so_far).items())

    def _collect_figures(self, so_far: DrainReport) -> dict[str, int | float]:
        settled = so_far.settled
        seconds = max(0.001, so_far.seconds or time.monotonic() - self._started)
        return {
            "events_claimed": so_far.events,
            "events_done": settled.done,
            "events_superseded": settled.superseded,
            "records_mirrored": settled.acknowledged,
            "calls": so_far.calls,
            "attempts_failed": settled.failed,
            "dead": settled.dead,
            "events_per_second": round(so_far.events / seconds, 1),
            "calls_per_second": round(so_far.calls / seconds, 1),
            "slowest_seconds": round(settled.slowest, 3),
            "seconds": round(seconds, 2),
        }


def _describe_records(entity: str, keys: Sequence[str]) -> dict[str, str]:
    """The first changed records of a group, and the command that shows one."""
    if not keys:
        return {}
    return {"records": ", ".join(keys), "show_record": f"sync-orchestrator records show {entity} {keys[0]}"}


@dg.op(out=dg.Out(dg.Nothing))
@cancelable
def drain_ledger(context: dg.OpExecutionContext, system: SystemResource) -> Iterator[dg.Output[None]]:
    """Works off due events and out-of-sync records until it is quiet, and reports the touched groups."""
    reporter = Reporter(context)
    try:
        with ended_by_sigterm():
            system.perform(drain(system.context, progress=reporter, hand_over=_HAND_OVER_SECONDS))
    except BaseException:
        with suppress(Exception):
            reporter.report_end()
        raise
    _log_pauses(context, system)
    figures = reporter.report_end()
    observe_totals(context, system, sorted(reporter.entities))
    yield dg.Output(None, metadata=figures)


def _log_pauses(context: dg.OpExecutionContext, system: SystemResource) -> None:
    """Says which pushes the drain left, and what ends that."""
    with system.context.engine.begin() as connection:
        pauses = pauses_of(connection, {name: entity.system_name for name, entity in system.context.entities.items()})
    for pause in pauses.values():
        context.log.warning(f"{pause.to_text()}; {pause.next_step}")


@dg.job(
    name=INCREMENTAL_SYNC,
    **IN_ONE_RUN,
    description="Mirrors the changes that have come in. Its sensor requests it; several at once do no harm.",
)
def incremental_sync() -> None:
    drain_ledger()


@dg.op(out=dg.Out(dg.Nothing))
@cancelable
def look_after_ledger(context: dg.OpExecutionContext, system: SystemResource) -> Iterator[dg.Output[None]]:
    """Partitions ahead, totals that must add up, what is over forgotten."""
    settings = system.context.config.retention
    with system.keep_alive():
        with system.context.engine.begin() as connection:
            totals = run_maintenance(connection)
        runs = delete_old_runs(context.instance, settings, origin=context.run.remote_job_origin)
        forgotten = {**delete_expired(system.context.engine, settings), "runs": runs}
    yield dg.Output(
        None,
        metadata={
            "received": totals.received,
            "duplicates": totals.duplicates,
            **totals.states,
            "balanced": totals.balanced,
            **{f"forgotten_{what}": n for what, n in forgotten.items()},
        },
    )


@dg.job(name=MAINTENANCE, **IN_ONE_RUN, description="Looks after the ledger.")
def maintenance_job() -> None:
    look_after_ledger()

"""Incremental materialization: one unpartitioned run that drains the ledger while traffic flows.

It reports touched business groups as materializations of the archive and observations of the mirror: a newer
materialization would clear the status of the mirror's check. Not here: what a drain does (``core/drain.py``).
"""

import time
from collections.abc import Iterator

import dagster as dg

from sync_orchestrator.assets.entity import archive_key, mirror_key
from sync_orchestrator.core.drain import DrainReport, drain
from sync_orchestrator.core.maintenance import look_after
from sync_orchestrator.resources.system import System


@dg.op
def drain_ledger(context: dg.OpExecutionContext, system: System) -> Iterator[object]:
    """Works off due events and out-of-step records until it is quiet, then reports the touched groups."""
    told = time.monotonic()

    def tell(report: DrainReport) -> None:
        nonlocal told
        if time.monotonic() - told >= 5:
            told = time.monotonic()
            context.log.info(_line(report))

    report = system.perform(drain(system.context, progress=tell))
    context.log.info(_line(report))
    figures = _figures(report)
    for entity, group in sorted(report.settled.groups):
        yield dg.AssetMaterialization(asset_key=archive_key(entity), partition=group, metadata=figures)
        yield dg.AssetObservation(asset_key=mirror_key(entity), partition=group, metadata=figures)
    yield dg.Output(None, metadata=figures)


def _line(report: DrainReport) -> str:
    settled = report.settled
    return (f"{report.events} events claimed, {settled.done} done, {settled.superseded} superseded, "
            f"{report.calls} calls, {settled.failed} failed, {settled.dead} dead")


def _figures(report: DrainReport) -> dict[str, int | float]:
    settled = report.settled
    return {
        "events_done": settled.done, "events_superseded": settled.superseded, "records_mirrored": settled.acknowledged,
        "calls": report.calls, "failed": settled.failed, "dead": settled.dead, "seconds": round(report.seconds, 2),
        "events_per_second": round(report.events / report.seconds, 1) if report.seconds else 0.0,
        "slowest_seconds": round(settled.slowest, 3),
    }


@dg.job(executor_def=dg.in_process_executor, description="Mirrors the changes that have come in.")
def incremental_sync() -> None:
    drain_ledger()


@dg.op
def look_after_ledger(system: System) -> None:
    """Partitions ahead, totals that must add up, alerts for what waits too long."""
    with system.context.engine.begin() as connection:
        look_after(connection, system.context.config.alerts)


@dg.job(executor_def=dg.in_process_executor, description="Looks after the ledger.")
def maintenance() -> None:
    look_after_ledger()

"""An entity's two assets. Thin: a full sync is done by ``core/full_sync.py``, group by group.

Not here: incremental work (``incremental.py``), checks (``checks.py``).
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from sync_orchestrator.assets.partitions import business_group, groups_of
from sync_orchestrator.config import Entity
from sync_orchestrator.core.errors import SyncError
from sync_orchestrator.core.full_sync import FillReport, StepReport, bring_in_step, fill
from sync_orchestrator.resources.system import System

GROUPS_PER_RUN = 10

_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=GROUPS_PER_RUN)


class FullSyncOptions(dg.Config):
    """What a person may set when launching a full sync."""

    allow_deletions: int = 0
    """Raises the cap of inferred deletions for this time."""


def archive_key(entity: str) -> dg.AssetKey:
    return dg.AssetKey([entity, "archive"])


def mirror_key(entity: str) -> dg.AssetKey:
    return dg.AssetKey([entity, "mirror"])


def entity_assets(name: str, entity: Entity) -> list[dg.AssetsDefinition]:
    """The archive and the mirror of one entity."""
    parts = ", ".join(entity.parts)
    common: dict[str, Any] = {
        "partitions_def": business_group, "backfill_policy": _POLICY, "group_name": name,
        "tags": {"entity": name}, "pool": None,
    }

    @dg.asset(key=archive_key(name), description=f"The newest known state of each {name}, from {parts}.",
              kinds={"postgres"}, **common)
    def archive(context: dg.AssetExecutionContext, config: FullSyncOptions, system: System) -> dg.MaterializeResult:
        return _archive(context, system, name, config.allow_deletions)

    @dg.asset(key=mirror_key(name), deps=[archive_key(name)], kinds={"http"},
              description=f"The {name} records that {entity.third_party.system} holds; its truth is their API.", **common)
    def mirror(context: dg.AssetExecutionContext, system: System) -> dg.MaterializeResult:
        return _mirror(context, system, name)

    return [archive, mirror]


def _archive(
    context: dg.AssetExecutionContext, system: System, name: str, allow_deletions: int
) -> dg.MaterializeResult:
    started = time.monotonic()

    def one(group: str) -> FillReport:
        return system.perform(fill(system.context, system.entity(name), group, allow_deletions=allow_deletions or None,
                                   progress=_teller(context, group)))

    reports = _each_group(context, system, name, one)
    listed = sum(report.listed for report in reports)
    seconds = time.monotonic() - started
    return dg.MaterializeResult(metadata={
        "groups": len(reports), "listed": listed, "changed": sum(report.changed for report in reports),
        "deleted": sum(report.deleted for report in reports), "moved": sum(report.moved for report in reports),
        "seconds": round(seconds, 2), "records_per_second": round(listed / seconds) if seconds else 0,
        "by_group": _table([{"group": report.group, "listed": report.listed, "changed": report.changed,
                             "deleted": report.deleted} for report in reports]),
    })


def _mirror(context: dg.AssetExecutionContext, system: System, name: str) -> dg.MaterializeResult:
    started = time.monotonic()

    def one(group: str) -> StepReport:
        return system.perform(bring_in_step(system.context, system.entity(name), group,
                                            progress=_teller(context, group)))

    reports = _each_group(context, system, name, one)
    calls = sum(report.calls for report in reports)
    seconds = time.monotonic() - started
    return dg.MaterializeResult(metadata={
        "groups": len(reports), "calls": calls, "mirrored": sum(report.acknowledged for report in reports),
        "still_open": sum(report.open for report in reports), "dead": sum(report.parked for report in reports),
        "redriven_events": sum(report.redriven for report in reports), "seconds": round(seconds, 2),
        "calls_per_second": round(calls / seconds) if seconds else 0,
        "by_group": _table([{"group": report.group, "calls": report.calls, "mirrored": report.acknowledged,
                             "still_open": report.open, "dead": report.parked} for report in reports]),
    })


def _each_group(context: dg.AssetExecutionContext, system: System, name: str, work: Callable[[str], Any]) -> list[Any]:
    """Does the work for each group of the run; one group's failure does not keep the others from theirs."""
    own = groups_of(system.context, name)
    reports: list[Any] = []
    failures: list[str] = []
    for number, group in enumerate(context.partition_keys, start=1):
        if group not in own:
            context.log.info(f"{name} has no business group {group}")
            continue
        try:
            reports.append(work(group))
        except SyncError as error:
            failures.append(f"{group}: {error}")
            context.log.error(failures[-1])
            continue
        context.log.info(f"{number} of {len(context.partition_keys)}: {reports[-1]}")
    if failures:
        raise dg.Failure(f"{len(failures)} of {len(context.partition_keys)} groups: " + "; ".join(failures),
                         allow_retries=False)
    return reports


def _teller(context: dg.AssetExecutionContext, group: str) -> Callable[[str, int], None]:
    told = time.monotonic()

    def tell(phase: str, count: int) -> None:
        nonlocal told
        if time.monotonic() - told >= 5:
            told = time.monotonic()
            context.log.info(f"{group}: {phase} {count}")

    return tell


def _table(rows: Sequence[dict[str, Any]]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name, "string" if name == "group" else "int") for name in (rows[0] if rows else {"group": ""})]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows], schema=dg.TableSchema(columns))

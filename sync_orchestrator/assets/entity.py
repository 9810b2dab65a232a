"""An entity's two assets, the archive and the mirror, filled by one step that takes group after group through both.

Thin: what a full sync does is in ``core/full_sync.py``. Not here: incremental work (``incremental.py``), checks
(``checks.py``).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.options import ALLOW_DELETIONS
from sync_orchestrator.assets.partitions import business_group, groups_of, is_group_of_any
from sync_orchestrator.assets.preview import report
from sync_orchestrator.config import Entity
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.errors import CallFailed, Failure, GroupBusy, SyncError
from sync_orchestrator.core.full_sync import GROUPS_AT_ONCE, bring_in_step, fill, full_sync
from sync_orchestrator.core.group_fill import FillReport
from sync_orchestrator.core.group_push import StepReport
from sync_orchestrator.core.nearest import unknown_name
from sync_orchestrator.core.retry import after_failure
from sync_orchestrator.core.sql import in_transaction
from sync_orchestrator.core.sync_progress import SyncProgress, left_over, reported
from sync_orchestrator.resources.instance import FULL_SYNC_POOL
from sync_orchestrator.resources.system import System

T = TypeVar("T")

GROUPS_PER_RUN = 500


class FullSyncOptions(dg.Config):
    """What an operator may set when launching a full sync."""

    allow_deletions: int = Field(default=0, description=ALLOW_DELETIONS)


Figures = dict[str, int | float | bool | str]


def archive_key(entity: str) -> dg.AssetKey:
    return dg.AssetKey([entity, "archive"])


def mirror_key(entity: str) -> dg.AssetKey:
    return dg.AssetKey([entity, "mirror"])


def entity_assets(name: str, entity: Entity) -> dg.AssetsDefinition:
    """The archive and the mirror of one entity; each can be materialized alone."""
    common: dict[str, Any] = {"group_name": name, "owners": [f"team:{entity.owner}"], "tags": {"entity": name}}
    archive, mirror = archive_key(name), mirror_key(name)
    specs = [
        dg.AssetSpec(archive, kinds={"postgres"}, **common,
                     description=f"The newest known state of each {name}, from {', '.join(entity.parts)}."),
        dg.AssetSpec(mirror, deps=[archive], kinds={"http"}, **common,
                     description=f"The {name} records that {entity.third_party.system} holds; its truth is their API."),
    ]

    @dg.multi_asset(
        name=f"{name}_full_sync", specs=specs, can_subset=True, partitions_def=business_group, pool=FULL_SYNC_POOL,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=GROUPS_PER_RUN),
    )
    def full_sync_of_groups(
        context: dg.AssetExecutionContext, config: FullSyncOptions, system: System
    ) -> Iterator[dg.MaterializeResult[None]]:
        failed = _sync(context, config, system, name)
        if failed:
            raise dg.Failure(f"{len(failed)} of {len(context.partition_keys)} business groups are not done: "
                             + "; ".join(f"{group}: {reason}" for group, reason in failed.items()),
                             allow_retries=False)
        for asset in (archive_key(name), mirror_key(name)):
            if asset in context.selected_asset_keys:
                yield dg.MaterializeResult(asset_key=asset)

    return full_sync_of_groups


def _sync(context: dg.AssetExecutionContext, config: FullSyncOptions, system: System, name: str) -> dict[str, str]:
    """Takes the run's groups through both halves, a few at once; one group's failure keeps no other from its turn.

    Returns why groups are not done. Each group is reported as soon as it is, besides the result of the whole step: a
    backfill shows how far it is, and what was done stays done when another group fails.
    """
    own = groups_of(system.context, name)
    work = _Work(context, system.context, system.entity(name), config.allow_deletions or None)
    strange = [group for group in context.partition_keys if group not in own]
    of_others = [group for group in strange if is_group_of_any(system.context, group)]
    failed = system.perform(work.all([group for group in context.partition_keys if group in own], of_others))
    return failed | {group: unknown_name(f"business group '{group}' of {name}", group, own)
                     for group in strange if group not in of_others}


class _Work:
    def __init__(self, run: dg.AssetExecutionContext, context: Context, entity: EntityContext,
                 allow_deletions: int | None) -> None:
        self._run = run
        self._log = run.log
        self._context = context
        self._entity = entity
        self._allow_deletions = allow_deletions
        self._archive, self._mirror = archive_key(entity.name), mirror_key(entity.name)
        self._ended = 0
        self._failed: dict[str, str] = {}
        self._places = asyncio.Semaphore(GROUPS_AT_ONCE)
        self._progress = SyncProgress(context, entity)

    async def all(self, groups: Sequence[str], strange: Sequence[str]) -> dict[str, str]:
        for group in strange:
            for asset in (self._archive, self._mirror):
                self._report(asset, group, {"has_group": False})
            self._told(group, f"{self._entity.name} has no such business group: nothing to do")
        async with reported(self._progress, self._log_progress):
            await asyncio.gather(*(self._one(group) for group in groups))
        if groups and self._mirror in self._run.selected_asset_keys:
            await self._log_what_is_left(groups)
        return self._failed

    def _log_progress(self, lines: list[str]) -> None:
        for line in lines:
            self._log.info(line)

    async def _log_what_is_left(self, groups: Sequence[str]) -> None:
        """The last line: what is not in sync, why, and the next command."""
        left = await asyncio.to_thread(in_transaction, self._context.engine, lambda connection: left_over(
            connection, self._entity.name, groups, 0))
        if left is not None:
            self._log.warning(left)
        elif not self._failed:
            self._log.info(f"all of {len(groups)} business groups is in sync")

    async def _one(self, group: str) -> None:
        lines: list[str] = []
        async with self._places:
            try:
                await self._both_or_one(group, lines)
            except SyncError as error:
                self._failed[group] = str(error)
            except Exception as error:
                self._failed[group] = f"{type(error).__name__}: {error}"
                self._log.exception(f"{self._entity.name} {group}")
        self._progress.ended(group)
        self._told(group, self._failed.get(group) or "; ".join(lines))

    async def _both_or_one(self, group: str, lines: list[str]) -> None:
        """Reports each half as soon as it is done."""
        began = time.monotonic()
        tell = self._progress.of_group(group)

        def filled(report: FillReport) -> None:
            lines.append(self._report(self._archive, group, _of_fill(report, time.monotonic() - began)))

        selected = self._run.selected_asset_keys
        stepped: StepReport | None = None
        if {self._archive, self._mirror} <= selected:
            _, stepped = await self._patiently(lambda: full_sync(
                self._context, self._entity, group, allow_deletions=self._allow_deletions, progress=tell,
                filled=filled))
        elif self._archive in selected:
            filled(await self._patiently(lambda: fill(
                self._context, self._entity, group, allow_deletions=self._allow_deletions, progress=tell)))
        else:
            stepped = await self._patiently(lambda: bring_in_step(self._context, self._entity, group, progress=tell))
        if stepped is not None:
            lines.append(self._report(self._mirror, group, _of_step(stepped, time.monotonic() - began)))

    def _report(self, asset: dg.AssetKey, group: str, figures: Figures) -> str:
        if asset in self._run.selected_asset_keys:
            report(self._run, [dg.AssetMaterialization(asset, partition=group, metadata=figures)])
            self._run.add_asset_metadata(figures, asset_key=asset, partition_key=group)
        return ", ".join(f"{name} {value}" for name, value in figures.items())

    def _told(self, group: str, line: str) -> None:
        self._ended += 1
        tell = self._log.error if group in self._failed else self._log.info
        tell(f"{self._ended} of {len(self._run.partition_keys)}: {group}: {line}")

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Tries again what may pass, by the entity's retry rule; a full sync goes on where it stopped."""
        spent = 0
        while True:
            try:
                return await work()
            except (CallFailed, GroupBusy) as failed:
                kind, asked = (
                    (failed.kind, failed.retry_after) if isinstance(failed, CallFailed) else (Failure.TRANSIENT, None))
                if kind is Failure.REFERENCE:  # a record waits for it as long as it takes, a run does not
                    kind = Failure.TRANSIENT
                decision = after_failure(self._entity.retry, spent, kind, retry_after=asked, draw=random.random())
                if decision.wait is None:
                    raise
                spent = decision.attempts
                self._log.warning(f"{failed}; again in {decision.wait:.0f} s")
                await asyncio.sleep(decision.wait)


def _of_fill(filled: FillReport, seconds: float) -> Figures:
    return {"listed": filled.listed, "changed": filled.changed, "deleted": filled.deleted, "moved": filled.moved,
            "emptied": filled.emptied, "unusable": filled.unusable, "resumed": filled.resumed,
            **_rate("records", filled.listed, seconds)}


def _of_step(stepped: StepReport, seconds: float) -> Figures:
    return {"calls": stepped.calls, "mirrored": stepped.acknowledged, "still_open": stepped.open,
            "dead": stepped.parked, "redriven_events": stepped.redriven,
            **({} if stepped.suspended is None else {"suspended": stepped.suspended}),
            **_rate("calls", stepped.calls, seconds)}


def _rate(what: str, count: int, seconds: float) -> Figures:
    return {"seconds": round(seconds, 2), f"{what}_per_second": round(count / seconds, 1) if seconds else 0.0}

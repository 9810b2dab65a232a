"""An entity's two assets, the archive and the mirror, filled by one step that takes group after group through both.

Thin: what a full sync does is in ``core/full_sync.py``. Not here: incremental work (``incremental.py``), checks
(``checks.py``).
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import dagster as dg

from sync_orchestrator.assets.partitions import business_group, groups_of
from sync_orchestrator.assets.preview import report
from sync_orchestrator.config import Entity
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.errors import CallFailed, Failure, GroupBusy, SyncError
from sync_orchestrator.core.full_sync import FillReport, StepReport, bring_in_step, fill
from sync_orchestrator.core.retry import after_failure
from sync_orchestrator.resources.instance import FULL_SYNC_POOL
from sync_orchestrator.resources.system import System

T = TypeVar("T")

GROUPS_PER_RUN = 50
GROUPS_AT_ONCE = 6
TELL_SECONDS = 5.0


class FullSyncOptions(dg.Config):
    """What a person may set when launching a full sync."""

    allow_deletions: int = 0
    """Raises the cap of inferred deletions for this time."""


@dataclass(slots=True)
class GroupSync:
    """How the full sync of one group went; ``failure`` says why it is not done."""

    group: str
    filled: FillReport | None = None
    stepped: StepReport | None = None
    fill_seconds: float = 0.0
    step_seconds: float = 0.0
    failure: str | None = None


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
        ends = _sync(context, config, system, name)
        described = {archive: _archive_figures, mirror: _mirror_figures}
        failed = [end for end in ends if end.failure is not None]
        for asset in [asset for asset in (archive, mirror) if asset in context.selected_asset_keys]:
            if failed:
                report(context, [dg.AssetMaterialization(asset, partition=end.group, metadata=described[asset](end))
                                 for end in ends if end.failure is None])
                continue
            for end in ends:
                context.add_asset_metadata(described[asset](end), asset_key=asset, partition_key=end.group)
            yield dg.MaterializeResult(asset_key=asset)
        if failed:
            raise dg.Failure(f"{len(failed)} of {len(ends)} business groups are not done: "
                             + "; ".join(f"{end.group}: {end.failure}" for end in failed), allow_retries=False)

    return full_sync_of_groups


def _sync(context: dg.AssetExecutionContext, config: FullSyncOptions, system: System, name: str) -> list[GroupSync]:
    """Takes the run's groups through both halves, a few at once; one group's failure keeps no other from its turn."""
    own = groups_of(system.context, name)
    work = _Work(
        context.log, system.context, system.entity(name), config.allow_deletions or None,
        archive_key(name) in context.selected_asset_keys, mirror_key(name) in context.selected_asset_keys,
        len(context.partition_keys),
    )
    return system.perform(work.all([group for group in context.partition_keys if group in own],
                                   [group for group in context.partition_keys if group not in own]))


class _Work:
    def __init__(self, log: Any, context: Context, entity: EntityContext, allow_deletions: int | None,
                 fills: bool, steps: bool, total: int) -> None:
        self._log = log
        self._context = context
        self._entity = entity
        self._allow_deletions = allow_deletions
        self._fills = fills
        self._steps = steps
        self._total = total
        self._ended = 0
        self._places = asyncio.Semaphore(GROUPS_AT_ONCE)

    async def all(self, groups: Sequence[str], strange: Sequence[str]) -> list[GroupSync]:
        for group in strange:
            self._ended += 1
            self._log.info(f"{self._entity.name} has no business group {group}: nothing to do")
        ends = await asyncio.gather(*(self._one(group) for group in groups))
        return [*ends, *(GroupSync(group) for group in strange)]

    async def _one(self, group: str) -> GroupSync:
        end = GroupSync(group)
        async with self._places:
            try:
                await self._both_halves(end)
            except SyncError as error:
                end.failure = str(error)
            except Exception as error:
                end.failure = f"{type(error).__name__}: {error}"
                self._log.exception(f"{self._entity.name} {group}")
        self._ended += 1
        told = end.failure or f"{_figures_line(_archive_figures(end))}; {_figures_line(_mirror_figures(end))}"
        (self._log.error if end.failure else self._log.info)(f"{self._ended} of {self._total}: {group}: {told}")
        return end

    async def _both_halves(self, end: GroupSync) -> None:
        tell = self._teller(end.group)
        started = time.monotonic()
        if self._fills:
            end.filled = await self._patiently(lambda: fill(
                self._context, self._entity, end.group, allow_deletions=self._allow_deletions, progress=tell))
        filled = time.monotonic()
        if self._steps:
            end.stepped = await self._patiently(lambda: bring_in_step(
                self._context, self._entity, end.group, progress=tell))
        end.fill_seconds, end.step_seconds = filled - started, time.monotonic() - filled

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Tries again what may pass, by the entity's retry rule; a full sync goes on where it stopped."""
        spent = 0
        while True:
            try:
                return await work()
            except (CallFailed, GroupBusy) as failed:
                kind, asked = (
                    (failed.kind, failed.retry_after) if isinstance(failed, CallFailed) else (Failure.TRANSIENT, None))
                decision = after_failure(self._entity.retry, spent, kind, retry_after=asked, draw=random.random())
                if decision.wait is None:
                    raise
                spent = decision.attempts
                self._log.warning(f"{failed}; again in {decision.wait:.0f} s")
                await asyncio.sleep(decision.wait)

    def _teller(self, group: str) -> Callable[[str, int], None]:
        told = time.monotonic()

        def tell(phase: str, count: int) -> None:
            nonlocal told
            if time.monotonic() - told >= TELL_SECONDS:
                told = time.monotonic()
                self._log.info(f"{group}: {phase} {count}")

        return tell


Figures = dict[str, int | float | bool]


def _archive_figures(end: GroupSync) -> Figures:
    filled = end.filled
    if filled is None:
        return {"has_group": False}
    return {"listed": filled.listed, "changed": filled.changed, "deleted": filled.deleted, "moved": filled.moved,
            "resumed": filled.resumed, **_rate("records", filled.listed, end.fill_seconds)}


def _mirror_figures(end: GroupSync) -> Figures:
    stepped = end.stepped
    if stepped is None:
        return {"has_group": False}
    return {"calls": stepped.calls, "mirrored": stepped.acknowledged, "still_open": stepped.open,
            "dead": stepped.parked, "redriven_events": stepped.redriven,
            **_rate("calls", stepped.calls, end.step_seconds)}


def _rate(what: str, count: int, seconds: float) -> Figures:
    return {"seconds": round(seconds, 2), f"{what}_per_second": round(count / seconds, 1) if seconds else 0.0}


def _figures_line(figures: Figures) -> str:
    return ", ".join(f"{value} {name}" for name, value in figures.items() if name != "has_group")

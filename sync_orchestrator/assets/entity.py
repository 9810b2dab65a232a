"""An entity's two assets, the archive and the mirror, filled by one step that takes group after group through both.

Thin: what a full sync does is in ``core/full_sync/full_sync.py``. Not here: incremental work (``incremental.py``),
checks (``checks.py``).
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.cancellation import cancelable
from sync_orchestrator.assets.lineage import archive_key, archive_metadata, mirror_key, mirror_metadata, source_key
from sync_orchestrator.assets.options import ALLOW_DELETIONS
from sync_orchestrator.assets.partitions import business_group, groups_of, is_group_of_any
from sync_orchestrator.assets.totals import observe_totals, totals
from sync_orchestrator.config import Entity
from sync_orchestrator.config.targets import ThirdPartySystem
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.full_sync.fill import FillReport
from sync_orchestrator.core.full_sync.full_sync import bring_in_sync, fill, full_sync
from sync_orchestrator.core.full_sync.progress import SyncProgress, group_left_over, left_over, reported
from sync_orchestrator.core.full_sync.push_group import StepReport
from sync_orchestrator.core.full_sync.retrying import retry_full_sync
from sync_orchestrator.core.groups.concurrency import GROUPS_SYNCED_AT_ONCE
from sync_orchestrator.core.operations.status import group_totals
from sync_orchestrator.core.systems.pauses import why_push_waits
from sync_orchestrator.errors import SyncError
from sync_orchestrator.resources.instance.config import FULL_SYNC_POOL
from sync_orchestrator.resources.instance.dagster_internals import evaluation, report, reported_output
from sync_orchestrator.resources.system import System
from sync_orchestrator.texts.nearest_names import unknown_name

T = TypeVar("T")

__all__ = ["FullSyncOptions", "archive_key", "entity_assets", "mirror_key"]

SOURCE_CHECK = "source_then_archive"
"""The name of the archive's check."""

GROUPS_PER_RUN = 500

_MAX_FAILURES = 20
_SHOWN = ("listed", "changed", "deleted", "unusable", "calls", "mirrored", "still_open", "dead")
"""The figures of a group that the table of a run shows."""


class FullSyncOptions(dg.Config):
    """What an operator may set when launching a full sync."""

    allow_deletions: int = Field(default=0, description=ALLOW_DELETIONS)


Figures = dict[str, int | float | bool | str]


_ARCHIVE = """The newest known state of each {name}, from {parts}.

- **Materialize it together with the mirror** for a full sync: fill the archive from the sources, then push.
- **Alone** it reads the sources and pushes nothing itself; the drain pushes what changed.
- A backfill's figures move only at the daemon's ticks (every 20 to 30 s). The run's log is the live progress.
- Drains report observations here: a materialization is a full sync's."""

_MIRROR = """The {name} records that {system} has acknowledged. A group is materialized only if all of it is in sync.

- **Alone** it pushes what the archive holds and does not read the sources. With the archive it is a full sync.
- A group with dead, on-hold or unacknowledged records fails, with the causes; the other groups stay materialized.
- A backfill's figures move only at the daemon's ticks (every 20 to 30 s). The run's log is the live progress.
- Observations without a partition (`total_…`) are the totals of all groups: see Plots."""


def entity_assets(name: str, entity: Entity, system: ThirdPartySystem) -> dg.AssetsDefinition:
    """The archive and the mirror of one entity; each can be materialized alone."""
    common: dict[str, Any] = {"group_name": name, "owners": entity.owners, "tags": {"entity": name}}
    archive, mirror = archive_key(name), mirror_key(name)
    specs = [
        dg.AssetSpec(
            archive,
            deps=[source_key(name, part) for part in entity.parts],
            kinds={"postgres"},
            **common,
            description=_ARCHIVE.format(name=name, parts=", ".join(entity.parts)),
            metadata=archive_metadata(name, entity),
        ),
        dg.AssetSpec(
            mirror,
            deps=[archive],
            kinds={"api" if system.base_url else "python", entity.third_party.system},
            **common,
            description=_MIRROR.format(name=name, system=entity.third_party.system),
            metadata=mirror_metadata(name, entity, system),
        ),
    ]

    @dg.multi_asset(
        name=f"{name}_full_sync",
        specs=specs,
        can_subset=True,
        partitions_def=business_group,
        pool=FULL_SYNC_POOL,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=GROUPS_PER_RUN),
    )
    @cancelable
    def full_sync_of_groups(
        context: dg.AssetExecutionContext, config: FullSyncOptions, system: System
    ) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
        work = _sync(context, config, system, name)
        yield from work.archive_evaluations()
        observe_totals(context, system, [name])
        metadata = work.totals()
        if work.failed:
            raise dg.Failure(work.failure_text(), metadata=metadata, allow_retries=False)
        for asset in (archive_key(name), mirror_key(name)):
            if asset in context.selected_asset_keys:
                yield reported_output(context, asset, metadata)

    return full_sync_of_groups


def _sync(context: dg.AssetExecutionContext, config: FullSyncOptions, system: System, name: str) -> "_Work":
    """Takes the run's groups through both halves, a few at once; one group's failure keeps no other from its turn.

    Each group is reported as soon as it is in sync: a backfill shows how far it is, and what was done stays done when
    another group fails.
    """
    own = groups_of(system.context, name)
    work = _Work(context, system.context, system.entity(name), config.allow_deletions or None)
    system.perform(work.all(context.partition_keys, own))
    return work


class _Work:
    def __init__(
        self, run: dg.AssetExecutionContext, context: Context, entity: EntityContext, allow_deletions: int | None
    ) -> None:
        self._run = run
        self._log = run.log
        self._context = context
        self._entity = entity
        self._allow_deletions = allow_deletions
        self._archive, self._mirror = archive_key(entity.name), mirror_key(entity.name)
        self._ended = 0
        self.failed: dict[str, str] = {}
        self._rows: dict[str, Figures] = {}
        self._filled: dict[str, FillReport] = {}
        self._places = asyncio.Semaphore(GROUPS_SYNCED_AT_ONCE)
        self._progress = SyncProgress(context, entity)

    async def all(self, partitions: Sequence[str], own: Collection[str]) -> None:
        """Syncs the entity's own groups, and passes over those of other entities.

        Args:
            partitions: What the run is to materialize.
            own: The business groups of the entity.
        """
        groups = [group for group in partitions if group in own]
        for group in partitions:
            if group not in own:
                await self._pass_over(group, own)
        await self._warn_of_a_pause()
        async with reported(self._progress, self._log_progress):
            await asyncio.gather(*(self._one(group) for group in groups))
        if groups and self._mirror in self._run.selected_asset_keys:
            await self._log_what_is_left(groups)

    def failure_text(self) -> str:
        """Which groups failed, and why."""
        shown = [f"{group}: {reason}" for group, reason in list(self.failed.items())[:_MAX_FAILURES]]
        more = len(self.failed) - len(shown)
        return (
            f"{len(self.failed)} of {len(self._run.partition_keys)} business groups of {self._entity.name} are not "
            f"in sync: " + "; ".join(shown) + (f"; and {more} more, see by_group" if more else "")
        )

    def totals(self) -> dict[str, Any]:
        """The run's totals, with a table of its groups: those that failed first, then those that changed most."""
        rows = [
            {"group": group, "result": self.failed.get(group, "in sync"), **figures}
            for group, figures in self._rows.items()
        ]
        return totals(rows, lambda row: (row["group"] not in self.failed, -int(row.get("changed", 0)), row["group"]))

    def archive_evaluations(self) -> Iterator[dg.AssetCheckEvaluation]:
        """The check of the archive, from what was just listed; groups with a problem come last."""
        for group, filled in sorted(self._filled.items(), key=lambda item: (bool(_problem_of_fill(item[1])), item[0])):
            problem = _problem_of_fill(filled)
            yield evaluation(
                self._run,
                self._archive,
                SOURCE_CHECK,
                group,
                passed=problem is None,
                description=f"listed {filled.listed} by this full sync" + ("" if problem is None else f"; {problem}"),
                metadata={
                    "verdict": "in_sync" if problem is None else "lost",
                    "listed": filled.listed,
                    "changed": filled.changed,
                    "unusable": filled.unusable,
                    "behind": filled.behind,
                    **({"problems": "; ".join(filled.problems)} if filled.problems else {}),
                },
            )

    async def _pass_over(self, group: str, own: Collection[str]) -> None:
        """A partition that the entity lacks: another entity's group, or the name of no group at all."""
        if await asyncio.to_thread(is_group_of_any, self._context, group):
            for asset in self._run.selected_asset_keys:
                report(self._run, [dg.AssetMaterialization(asset, partition=group, metadata={"has_group": False})])
            self._log_end(group, f"{self._entity.name} has no such business group: nothing to do")
        else:
            self.failed[group] = unknown_name(f"business group '{group}' of {self._entity.name}", group, own)
            self._log_end(group, self.failed[group])
        self._rows[group] = {}

    def _log_progress(self, lines: list[str]) -> None:
        for line in lines:
            self._log.info(line)

    async def _warn_of_a_pause(self) -> None:
        waits = await asyncio.to_thread(
            in_transaction,
            self._context.engine,
            lambda connection: why_push_waits(connection, self._entity.name, self._entity.system_name),
        )
        if waits is not None and self._mirror in self._run.selected_asset_keys:
            self._log.warning(waits)

    async def _log_what_is_left(self, groups: Sequence[str]) -> None:
        """The last line: what is not in sync, why, and the next command."""
        left = await asyncio.to_thread(
            in_transaction, self._context.engine, lambda connection: left_over(connection, self._entity.name, groups, 0)
        )
        if left is not None:
            self._log.warning(left)
        elif not self.failed:
            self._log.info(f"all of {len(groups)} business groups is in sync")

    async def _one(self, group: str) -> None:
        lines: list[str] = []
        self._rows[group] = {}
        async with self._places:
            try:
                await self._both_or_one(group, lines)
            except SyncError as error:
                self.failed[group] = error.named()
            except Exception as error:
                self.failed[group] = f"{type(error).__name__}: {error}"
                self._log.exception(f"{self._entity.name} {group}")
        self._progress.ended(group)
        self._log_end(group, self.failed.get(group) or "; ".join(lines))

    async def _both_or_one(self, group: str, lines: list[str]) -> None:
        """Reports each half as soon as it is done."""
        began = time.monotonic()
        tell = self._progress.of_group(group)
        reporting: list[asyncio.Task[None]] = []

        def filled(report: FillReport) -> None:
            self._filled[group] = report
            reporting.append(
                asyncio.create_task(
                    self._report(self._archive, group, _of_fill(report, time.monotonic() - began), lines)
                )
            )

        selected = self._run.selected_asset_keys
        stepped: StepReport | None = None
        try:
            if {self._archive, self._mirror} <= selected:
                _, stepped = await self._patiently(
                    group,
                    lambda: full_sync(
                        self._context,
                        self._entity,
                        group,
                        allow_deletions=self._allow_deletions,
                        progress=tell,
                        filled=filled,
                    ),
                )
            elif self._archive in selected:
                filled(
                    await self._patiently(
                        group,
                        lambda: fill(
                            self._context, self._entity, group, allow_deletions=self._allow_deletions, progress=tell
                        ),
                    )
                )
            else:
                stepped = await self._patiently(
                    group, lambda: bring_in_sync(self._context, self._entity, group, progress=tell)
                )
        finally:
            await asyncio.gather(*reporting)
        if stepped is not None:
            await self._end_of_push(group, stepped, _of_step(stepped, time.monotonic() - began), lines)

    async def _end_of_push(self, group: str, stepped: StepReport, figures: Figures, lines: list[str]) -> None:
        """Materializes the mirror of a group that is in sync; the figures of another one are an observation."""
        left = None
        if stepped.open or stepped.stopped or stepped.suspended is not None:
            left = await asyncio.to_thread(
                in_transaction,
                self._context.engine,
                lambda connection: group_left_over(connection, self._entity, group),
            )
        if left is not None:
            self.failed[group] = left
        await self._report(self._mirror, group, figures, lines)

    async def _report(self, asset: dg.AssetKey, group: str, figures: Figures, lines: list[str]) -> None:
        held = await asyncio.to_thread(
            in_transaction, self._context.engine, lambda connection: group_totals(connection, self._entity.name, group)
        )
        metadata: dict[str, Any] = {**figures, "records": held.records, "in_sync": held.in_sync}
        if held.validated_at is not None:
            metadata["last_validated"] = dg.MetadataValue.timestamp(held.validated_at)
        self._rows[group] |= {name: value for name, value in figures.items() if name in _SHOWN}
        lines.append(", ".join(f"{name} {value}" for name, value in figures.items()))
        if asset == self._mirror and group in self.failed:
            metadata["not_in_sync"] = self.failed[group]
            report(self._run, [dg.AssetObservation(asset_key=asset, partition=group, metadata=metadata)])
            return
        metadata["dagster/partition_row_count"] = held.in_sync if asset == self._mirror else held.records
        report(self._run, [dg.AssetMaterialization(asset, partition=group, metadata=metadata)])

    def _log_end(self, group: str, line: str) -> None:
        self._ended += 1
        log = self._log.error if group in self.failed else self._log.info
        log(f"{self._ended} of {len(self._run.partition_keys)}: {group}: {line}")

    async def _patiently(self, group: str, work: Callable[[], Awaitable[T]]) -> T:
        """Tries again what may pass, by the entity's retry rule; a full sync goes on where it stopped."""
        return await retry_full_sync(
            self._entity, work, lambda wait: self._log.warning(f"{self._entity.name} {group}: {wait}")
        )


def _problem_of_fill(filled: FillReport) -> str | None:
    """What keeps an archive from holding what its sources have; None where nothing does."""
    problems = [
        f"{n} {what}"
        for n, what in (
            (filled.unusable, "parts cannot be used"),
            (filled.behind, "parts are older at the source than here"),
        )
        if n
    ]
    return "; ".join(problems) or None


def _of_fill(filled: FillReport, seconds: float) -> Figures:
    return {
        "listed": filled.listed,
        "changed": filled.changed,
        "deleted": filled.deleted,
        "moved": filled.moved,
        "emptied": filled.emptied,
        "unusable": filled.unusable,
        "resumed": filled.resumed,
        **_rate("records", filled.listed, seconds),
    }


def _of_step(stepped: StepReport, seconds: float) -> Figures:
    return {
        "calls": stepped.calls,
        "mirrored": stepped.acknowledged,
        "still_open": stepped.open,
        "dead": stepped.stopped,
        "redriven_events": stepped.redriven,
        **({} if stepped.suspended is None else {"suspended": stepped.suspended}),
        **_rate("calls", stepped.calls, seconds),
    }


def _rate(what: str, count: int, seconds: float) -> Figures:
    return {"seconds": round(seconds, 2), f"{what}_per_second": round(count / seconds, 1) if seconds else 0.0}

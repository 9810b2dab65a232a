"""One run of a full sync over business groups: what it does with each, what it reports, and what it retries.

The full sync itself is in ``core/full_sync/full_sync.py``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import dagster as dg

from sync_orchestrator.assets.archive_checks import SOURCE_CHECK
from sync_orchestrator.assets.full_sync_figures import (
    SHOWN_FIGURES,
    Figures,
    fill_figures,
    find_problem_of_fill,
    push_figures,
)
from sync_orchestrator.assets.lineage import archive_key, mirror_key
from sync_orchestrator.assets.totals import compute_totals
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.full_sync.fill import FillReport
from sync_orchestrator.core.full_sync.full_sync import bring_in_sync, fill_archive, full_sync
from sync_orchestrator.core.full_sync.progress import SyncProgress, group_left_over, left_over, report_regularly
from sync_orchestrator.core.full_sync.push_group import StepReport
from sync_orchestrator.core.full_sync.retrying import retry_full_sync
from sync_orchestrator.core.groups.concurrency import GROUPS_SYNCED_AT_ONCE
from sync_orchestrator.core.operations.status import group_totals
from sync_orchestrator.core.systems.pauses import why_push_waits
from sync_orchestrator.errors import SyncError
from sync_orchestrator.resources.instance.dagster_internals import make_evaluation, report_events
from sync_orchestrator.texts.nearest_names import unknown_name

T = TypeVar("T")

MAX_NAMED_FAILURES = 20
"""Groups that the failure of a run names."""


class FullSyncRun:
    """One run of an entity's full sync: its groups go through both halves, a few at once.

    The failure of one group keeps no other from its turn. Each group is reported as soon as it is in sync: a backfill
    shows how far it is, and what was done stays done when another group fails.
    """

    def __init__(
        self, run: dg.AssetExecutionContext, context: Context, entity: EntityContext, allow_deletions: int | None
    ) -> None:
        """``allow_deletions`` raises the cap of deletions for this run."""
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

    async def sync_groups(self, own: Collection[str]) -> None:
        """Syncs the groups that the run is to materialize, and refuses those that the entity does not have.

        Args:
            own: The business groups of the entity.
        """
        groups = [group for group in self._run.partition_keys if group in own]
        for group in self._run.partition_keys:
            if group not in own:
                self._refuse_unknown_group(group, own)
        await self._warn_of_a_pause()
        async with report_regularly(self._progress, self._log_progress):
            await asyncio.gather(*(self._sync_group(group) for group in groups))
        if groups and self._mirror in self._run.selected_asset_keys:
            await self._log_what_is_left(groups)

    def failure_text(self) -> str:
        """Which groups failed, and why."""
        shown = [f"{group}: {reason}" for group, reason in list(self.failed.items())[:MAX_NAMED_FAILURES]]
        more = len(self.failed) - len(shown)
        return (
            f"{len(self.failed)} of {len(self._run.partition_keys)} business groups of {self._entity.name} are not "
            f"in sync: " + "; ".join(shown) + (f"; and {more} more, see by_group" if more else "")
        )

    def build_totals(self) -> dict[str, Any]:
        """The run's totals, with a table of its groups: those that failed first, then those that changed most."""
        rows = [
            {"group": group, "result": self.failed.get(group, "in sync"), **figures}
            for group, figures in self._rows.items()
        ]
        return compute_totals(
            rows, lambda row: (row["group"] not in self.failed, -int(row.get("changed", 0)), row["group"])
        )

    def archive_evaluations(self) -> Iterator[dg.AssetCheckEvaluation]:
        """The check of the archive, from what was just listed; groups with a problem come last."""
        found = [(find_problem_of_fill(filled), group, filled) for group, filled in self._filled.items()]
        for problem, group, filled in sorted(found, key=lambda item: (item[0] is not None, item[1])):
            yield make_evaluation(
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

    def _refuse_unknown_group(self, group: str, own: Collection[str]) -> None:
        """A partition that an operator added by hand: the entity has no such business group."""
        self.failed[group] = unknown_name(f"business group '{group}' of {self._entity.name}", group, own)
        self._rows[group] = {}
        self._log_end(group, self.failed[group])

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

    async def _sync_group(self, group: str) -> None:
        lines: list[str] = []
        self._rows[group] = {}
        async with self._places:
            try:
                await self._fill_and_push(group, lines)
            except SyncError as error:
                self.failed[group] = error.describe_with_system()
            except Exception as error:
                self.failed[group] = f"{type(error).__name__}: {error}"
                self._log.exception(f"{self._entity.name} {group}")
        self._progress.note_ended(group)
        self._log_end(group, self.failed.get(group) or "; ".join(lines))

    async def _fill_and_push(self, group: str, lines: list[str]) -> None:
        """Reports each half as soon as it is done."""
        began = time.monotonic()
        tell = self._progress.of_group(group)
        reporting: list[asyncio.Task[None]] = []

        def report_filled_group(report: FillReport) -> None:
            self._filled[group] = report
            reporting.append(
                asyncio.create_task(
                    self._report_group(self._archive, group, fill_figures(report, time.monotonic() - began), lines)
                )
            )

        selected = self._run.selected_asset_keys
        stepped: StepReport | None = None
        try:
            if {self._archive, self._mirror} <= selected:
                _, stepped = await self._retry_work(
                    group,
                    lambda: full_sync(
                        self._context,
                        self._entity,
                        group,
                        allow_deletions=self._allow_deletions,
                        progress=tell,
                        filled=report_filled_group,
                    ),
                )
            elif self._archive in selected:
                report_filled_group(
                    await self._retry_work(
                        group,
                        lambda: fill_archive(
                            self._context, self._entity, group, allow_deletions=self._allow_deletions, progress=tell
                        ),
                    )
                )
            else:
                stepped = await self._retry_work(
                    group, lambda: bring_in_sync(self._context, self._entity, group, progress=tell)
                )
        finally:
            await asyncio.gather(*reporting)
        if stepped is not None:
            await self._end_of_push(group, stepped, push_figures(stepped, time.monotonic() - began), lines)

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
        await self._report_group(self._mirror, group, figures, lines)

    async def _report_group(self, asset: dg.AssetKey, group: str, figures: Figures, lines: list[str]) -> None:
        held = await asyncio.to_thread(
            in_transaction, self._context.engine, lambda connection: group_totals(connection, self._entity.name, group)
        )
        metadata: dict[str, Any] = {**figures, "records": held.records, "in_sync": held.in_sync}
        if held.validated_at is not None:
            metadata["last_validated"] = dg.MetadataValue.timestamp(held.validated_at)
        self._rows[group] |= {name: value for name, value in figures.items() if name in SHOWN_FIGURES}
        lines.append(", ".join(f"{name} {value}" for name, value in figures.items()))
        if asset == self._mirror and group in self.failed:
            metadata["not_in_sync"] = self.failed[group]
            report_events(self._run, [dg.AssetObservation(asset_key=asset, partition=group, metadata=metadata)])
            return
        metadata["dagster/partition_row_count"] = held.in_sync if asset == self._mirror else held.records
        report_events(self._run, [dg.AssetMaterialization(asset, partition=group, metadata=metadata)])

    def _log_end(self, group: str, line: str) -> None:
        self._ended += 1
        log = self._log.error if group in self.failed else self._log.info
        log(f"{self._ended} of {len(self._run.partition_keys)}: {group}: {line}")

    async def _retry_work(self, group: str, work: Callable[[], Awaitable[T]]) -> T:
        """Tries again what may pass, by the entity's retry rule; a full sync goes on where it stopped."""
        return await retry_full_sync(
            self._entity, work, lambda wait: self._log.warning(f"{self._entity.name} {group}: {wait}")
        )

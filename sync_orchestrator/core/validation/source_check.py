"""Compares the sources of a business group with the archive, and makes up for changes whose notifications never came.

All records are compared by version, and some of them in turn by their contents as well. What has a change event on its
way is left out of judgement; suspects are looked at again after a pause; what looks gone is asked for by key.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeVar

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.full_sync.fill import report_ungrouped
from sync_orchestrator.core.ledger.recording import record_in
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.archive_comparison import (
    ArchiveComparison,
    ProvenLoss,
    compare_with_archive,
    prove_loss,
)
from sync_orchestrator.core.validation.archived_parts import read_archived_parts
from sync_orchestrator.core.validation.listed_parts import ListedParts
from sync_orchestrator.core.validation.lost_changes import (
    LostChange,
    count_open_lost_changes,
    record_lost_changes,
    recovery_events,
    report_lost_changes,
)
from sync_orchestrator.errors import CallFailed

if TYPE_CHECKING:
    from sync_orchestrator.config.entities import Repair

WorkResult = TypeVar("WorkResult")

_before_commit = CrashPoint("source_check.before_commit")


@dataclass(slots=True)
class SourceCheckResult:
    """What a check found. ``new``: found for the first time. ``repaired``: change events recorded for it."""

    entity: str
    group: str
    verdict: Literal["in_sync", "lost", "not_checked"] = "in_sync"
    reason: str | None = None
    listed: dict[str, int] = field(default_factory=dict)
    on_the_way: int = 0
    lost: list[LostChange] = field(default_factory=list)
    new: int = 0
    repaired: int = 0
    contents: int = 0
    """How many parts were compared by their contents, not by version alone."""
    ungrouped: int = 0
    """Rows of the owner that name no business group, so that no listing shows them."""


def checks_by_itself(entity: EntityContext) -> bool:
    """Whether the schedule checks the entity's sources."""
    in_files = any(part.files is not None for part in entity.settings.parts.values())
    return entity.settings.source_check.every is not None and not in_files


def groups_due(connection: Connection, entity: str, every: float, most: int) -> list[str]:
    """Business groups whose sources are due to be checked, the longest unseen first; ``every`` in seconds."""
    return [
        row.group_key
        for row in run(connection, queries.LIST_GROUPS_DUE_FOR_SOURCE_CHECK, entity=entity, every=every, most=most)
    ]


async def check_sources(
    context: Context, entity: EntityContext, group: str, *, repair: Repair | None = None, key: str | None = None
) -> SourceCheckResult:
    """Checks one group, and makes up for lost changes.

    Args:
        context: The running system.
        entity: The entity of the group.
        group: The business group.
        repair: What to do about lost changes; as configured by default.
        key: The record whose lost changes are made up for; all records by default.

    Returns:
        What was found. The verdict is ``not_checked`` where a source gives no usable response;
        nothing is raised for it.
    """
    return await _SourceCheckRun(context, entity, group, repair or entity.settings.source_check.repair, key).run()


def confirmation_pause_seconds(entity: EntityContext) -> float:
    """The pause before suspects are looked at again. A source that is polled has its turn within it."""
    polled = [2 * part.poll_every for part in entity.settings.parts.values() if part.is_polled]
    return max([entity.settings.source_check.confirm_after, *polled])


class _SourceCheckRun:
    """One check of one group: list, read contents, compare twice, prove, conclude."""

    def __init__(self, context: Context, entity: EntityContext, group: str, repair: Repair, key: str | None) -> None:
        self._context = context
        self._entity = entity
        self._group = group
        self._repair = repair
        self._key = key
        self._listed = ListedParts(context.engine, entity, group)
        self._checked_to: str | None = None
        self.result = SourceCheckResult(entity.name, group)

    async def run(self) -> SourceCheckResult:
        if not await self._run_in_transaction(self._begin_check):
            return self._not_checked("its first full sync has not completed")
        try:
            await self._list_sources()
            comparison, suspects = await self._find_suspects()
            proven = await self._prove_loss(comparison, suspects)
        except CallFailed as failure:
            return self._not_checked(f"its sources gave no usable response: {failure.describe_with_system()}")
        self.result.lost = sorted(proven.lost, key=lambda lost: lost.place)
        await self._run_in_transaction(partial(self._conclude_check, comparison=comparison, proven=proven))
        return self.result

    def _begin_check(self, connection: Connection) -> bool:
        row = run(connection, queries.SELECT_SOURCE_CHECK_GROUP, entity=self._entity.name, group=self._group)[0]
        self._listed.since = row.now
        self._checked_to = row.contents_checked_to
        self._listed.reads.load_epochs(connection)
        return bool(row.synced)

    async def _list_sources(self) -> None:
        listed = self._listed
        await listed.read_sources()
        self.result.listed = listed.count_keys()
        if listed.parts_without_content:
            archived = await self._run_in_transaction(
                lambda connection: read_archived_parts(
                    connection,
                    self._entity.name,
                    self._group,
                    keys={key for _, key in listed.rows},
                    since=listed.since,
                )
            )
            self._checked_to = await listed.read_contents(archived, self._checked_to)
        self.result.ungrouped = await report_ungrouped(self._context, self._entity)

    async def _find_suspects(self) -> tuple[ArchiveComparison, Collection[LostChange]]:
        """Compares with the archive, and once more after a pause: what is no suspect by then was in flight."""
        comparison = await self._compare_listing()
        suspects = comparison.suspects
        if suspects:
            await asyncio.sleep(confirmation_pause_seconds(self._entity))
            comparison = await self._compare_listing()
            suspects = set(suspects) & set(comparison.suspects)
        self.result.contents, self.result.on_the_way = comparison.contents, len(comparison.on_the_way)
        return comparison, suspects

    async def _prove_loss(self, comparison: ArchiveComparison, suspects: Collection[LostChange]) -> ProvenLoss:
        """Confirms suspects; of parts that a stream numbers, what it has told of meanwhile is left out."""
        holds = self._listed.reads.holds
        noted = await holds.note_streams()
        proven = await prove_loss(self._entity, self._listed, comparison, suspects)
        if not noted.numbers or not proven.lost:
            return proven
        await holds.wait(await holds.end_read(noted))
        still = (await self._compare_listing()).suspects
        lost = {lost for lost in proven.lost if lost.part not in noted.numbers or lost in still}
        return ProvenLoss(lost, proven.held)

    async def _compare_listing(self) -> ArchiveComparison:
        return await self._run_in_transaction(
            lambda connection: compare_with_archive(connection, self._entity, self._group, self._listed)
        )

    def _conclude_check(self, connection: Connection, *, comparison: ArchiveComparison, proven: ProvenLoss) -> None:
        result, name = self.result, self._entity.name
        new = record_lost_changes(connection, name, self._group, result.lost, comparison.on_the_way)
        result.new = len(new)
        if self._repair == "auto":
            chosen = [lost for lost in result.lost if self._key in (None, lost.key)]
            events = recovery_events(self._entity, self._group, chosen, self._listed.rows, self._listed.read_sequence)
            result.repaired = record_in(connection, events).accepted
        report_lost_changes(connection, self._entity, self._group, lost=result.lost, new=new, held=proven.held)
        run(
            connection,
            queries.INSERT_SOURCE_CHECK,
            entity=name,
            group=self._group,
            again=result.repaired > 0,
            checked_to=self._checked_to,
        )
        still = count_open_lost_changes(connection, name, self._group)
        if result.lost or still:
            earlier = None if result.lost else f"{still} found earlier are not known to be made up for yet"
            result.verdict, result.reason = "lost", proven.held or earlier
        elif proven.held is not None:
            self._not_checked(proven.held)
        _before_commit()

    def _not_checked(self, reason: str) -> SourceCheckResult:
        self.result.verdict, self.result.reason = "not_checked", reason
        return self.result

    async def _run_in_transaction(self, work: Callable[[Connection], WorkResult]) -> WorkResult:
        return await asyncio.to_thread(in_transaction, self._context.engine, work)

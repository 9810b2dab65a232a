"""Plans a full sync of a business group by reading alone: nothing is written anywhere.

The sources are read and merged in memory by the rules that the archive follows, mapped, and compared with the third
party's listing. Memory is bounded by a group.
"""

from __future__ import annotations

import asyncio

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.full_sync.fill import Progress
from sync_orchestrator.core.full_sync.plan_draft import COUNTS, WORRIES, GroupPlan, PlanDraft, Sample
from sync_orchestrator.core.full_sync.planned_archive import PlannedArchive
from sync_orchestrator.core.full_sync.planned_pushes import PlannedPushes
from sync_orchestrator.core.groups.registry import known_groups
from sync_orchestrator.errors import CallFailed, CannotPlan

__all__ = ["COUNTS", "WORRIES", "GroupPlan", "Sample", "groups_to_plan", "plan_group", "ungrouped_notes"]


async def groups_to_plan(context: Context, entity: EntityContext) -> list[str]:
    """The business groups that a full sync of the entity would go through, sorted. Raises CannotPlan."""
    try:
        shown = await entity.owner.groups() or []
    except CallFailed as failure:
        raise CannotPlan(f"'{entity.settings.owner}' cannot be asked for the business groups: {failure}") from None
    with context.engine.begin() as connection:
        return sorted({*shown, *known_groups(connection, entity.name)})


async def ungrouped_notes(entity: EntityContext) -> list[str]:
    """What no plan of a business group shows: rows of the owner that have no group (rule 39)."""
    owner = entity.settings.owner
    try:
        found = await entity.owner.ungrouped()
    except CallFailed as failure:
        return [f"'{owner}' could not be asked for rows without a business group: {failure}"]
    if found is None or not found.count:
        return []
    return [
        f"{found.count} rows of '{owner}' have no business group and are mirrored nowhere, such as "
        + ", ".join(found.examples)
    ]


async def plan_group(
    context: Context,
    entity: EntityContext,
    group: str,
    *,
    allow_deletions: int | None = None,
    progress: Progress | None = None,
) -> GroupPlan:
    """What a full sync of the group would do now. ``allow_deletions`` raises the cap, as for the full sync.

    Raises CannotPlan where a source or the third party cannot be read, GroupBusy where a full sync is under way.
    """
    progress = progress or (lambda phase, count: None)
    draft = PlanDraft(entity, group)
    archive = PlannedArchive(context.engine, entity, group, draft, allow_deletions)
    await asyncio.to_thread(archive.begin_reading)
    try:
        await archive.read_sources(progress)
        await archive.find_deletions()
    except CallFailed as failure:
        raise CannotPlan(f"its sources cannot be read: {failure.describe_with_system()}") from None
    try:
        await PlannedPushes(context.engine, entity, group, draft, archive.records).compare_group(progress)
    except CallFailed as failure:
        raise CannotPlan(f"the third party '{entity.system_name}' cannot be read: {failure}") from None
    return draft.build_plan(unusable=archive.reads.unusable, problems=archive.reads.problems)

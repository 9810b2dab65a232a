"""Repair that a person starts: drift that was found and left (``repair: ask``), and notifications that never came.

Drift goes the way that ``repair: auto`` would have sent it; then the group is validated again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.fill import Progress
from sync_orchestrator.core.full_sync.push_group import StepReport, push_group
from sync_orchestrator.core.groups.registry import count_group_records
from sync_orchestrator.core.operations.queries import repair as repair_queries
from sync_orchestrator.core.systems.breaker import is_open
from sync_orchestrator.core.validation.repair_queue import RepairTarget, queue_repairs
from sync_orchestrator.core.validation.source_check import SourceCheckResult, check_sources
from sync_orchestrator.core.validation.validate import GroupValidation, validate

_before_commit = CrashPoint("repair.before_commit")

_MAX_LAG_SECONDS = 60.0


@dataclass(slots=True)
class Repaired:
    """What a repair came to. ``sent``: drift put on its way. ``overtaken``: changed since it was found, so left alone.

    ``on_hold``: why extra records were not deleted. ``sources``: what the check of the sources said, if any was due.
    """

    entity: str
    group: str
    sent: int = 0
    overtaken: int = 0
    held: str | None = None
    sources: SourceCheckResult | None = None
    validation: GroupValidation | None = None


def groups_to_repair(connection: Connection, entity: str, key: str | None = None) -> list[str]:
    """The business groups in which something was found and waits for a person, sorted."""
    return [row.group_key for row in run(connection, repair_queries.LIST_GROUPS_TO_REPAIR, entity=entity, key=key)]


async def repair(
    context: Context,
    entity: EntityContext,
    group: str,
    *,
    key: str | None = None,
    allow_deletions: int | None = None,
    progress: Progress | None = None,
) -> Repaired:
    """Repairs what was found in a group, or of one record in it, and validates the group again.

    ``allow_deletions`` raises the cap for extra records; one that is named by its ``key`` needs no leave. With the
    breaker open nothing is sent, and the validation says so.
    """
    work = _Repair(context, entity, group, key, allow_deletions)
    result = work.result
    if await asyncio.to_thread(in_transaction, context.engine, work.queue_drift):
        result.sources = await check_sources(context, entity, group, repair="auto", key=key)
        await drain(context, linger=0)
    if result.sent:
        ends = asyncio.get_running_loop().time() + context.config.limits.drain_seconds
        await push_group(context, StepReport(entity.name, group), ends, progress)
        await asyncio.sleep(min(entity.system.search_lag, _MAX_LAG_SECONDS))  # until its listing shows what was written
    result.validation = await validate(context, entity, group, full=True)
    return result


class _Repair:
    def __init__(
        self, context: Context, entity: EntityContext, group: str, key: str | None, allowed: int | None
    ) -> None:
        self._entity = entity
        self._group = group
        self._key = key
        self._allowed = allowed
        self.result = Repaired(entity.name, group)

    def queue_drift(self, connection: Connection) -> bool:
        """Puts drift on its way; says whether notifications were lost, too."""
        known = {"entity": self._entity.name, "group": self._group, "key": self._key}
        lost = bool(run(connection, repair_queries.LIST_OPEN_LOST_CHANGES, **known)[0].lost)
        if is_open(connection, self._entity.system_name):
            return lost
        chosen = self._within_cap(connection, run(connection, repair_queries.LIST_FOUND_DRIFT, **known))
        sent = queue_repairs(connection, self._entity.name, [self._repair_target(row) for row in chosen])
        run(connection, repair_queries.MARK_UNDER_REPAIR, ids=[row.id for row in chosen if row.key in sent])
        self.result.sent, self.result.overtaken = len(sent), len(chosen) - len(sent)
        _before_commit()
        return lost

    def _repair_target(self, row: Row[Any]) -> RepairTarget:
        is_there = row.theirs is not None
        return RepairTarget(
            key=row.key,
            revision=row.revision,
            theirs=row.theirs,
            external_id=row.external_id if is_there else None,
            place=self._group if is_there else None,
        )

    def _within_cap(self, connection: Connection, found: Sequence[Row[Any]]) -> list[Row[Any]]:
        extra = sum(1 for row in found if row.kind == "extra")
        size = count_group_records(connection, self._entity.name, self._group)
        cap = max(self._entity.settings.validation.deletions.group_cap(size), self._allowed or 0)
        if self._key is not None or extra <= cap:
            return list(found)
        self.result.held = f"{extra} extra records would be deleted, more than the cap of {cap}"
        return [row for row in found if row.kind != "extra"]

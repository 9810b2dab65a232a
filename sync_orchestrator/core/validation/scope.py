"""The business group that one validation judges, and what may keep it from beginning."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, Row

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.systems.breaker import closed_reason
from sync_orchestrator.core.validation import queries

if TYPE_CHECKING:
    from sync_orchestrator.config.entities import Repair

WorkResult = TypeVar("WorkResult")


@dataclass(frozen=True, slots=True)
class ValidationScope:
    """The group of one validation, and how it is validated.

    ``since``: the database's time at the beginning. Records that move after it are not judged. ``is_full``: records are
    compared one by one, whatever the count says.
    """

    context: Context
    entity: EntityContext
    group: str
    since: datetime
    is_full: bool
    repair: Repair

    @property
    def place(self) -> str:
        """The entity and the group, for alerts."""
        return f"{self.entity.name} {self.group}"

    @property
    def parameters(self) -> dict[str, object]:
        """The parameters of queries that leave out what moves or may not be shown yet."""
        return {
            "entity": self.entity.name,
            "group": self.group,
            "since": self.since,
            "lag": self.entity.system.search_lag,
        }

    async def run_in_transaction(self, work: Callable[[Connection], WorkResult]) -> WorkResult:
        """Runs ``work`` in a transaction. A deadlock runs it again, so it must not change what it is given."""
        return await asyncio.to_thread(in_transaction, self.context.engine, work)


async def begin_validation(
    context: Context, entity: EntityContext, group: str, *, full: bool, repair: Repair
) -> tuple[ValidationScope, str | None]:
    """Begins the validation of a group.

    Returns:
        The scope, and why the group cannot be validated now, None where it can.
    """

    def read_scope(connection: Connection) -> tuple[ValidationScope, str | None]:
        since = run(connection, queries.SELECT_NOW)[0].now
        rows = run(
            connection,
            queries.SELECT_GROUP,
            entity=entity.name,
            group=group,
            full_comparison_every=entity.settings.validation.full_comparison_every,
        )
        is_synced = bool(rows) and rows[0].first_completed_at is not None
        is_full = full or (is_synced and bool(rows[0].full_comparison_due))
        obstacle = (
            (closed_reason(connection, entity.system_name) or _describe_gap(rows[0]))
            if is_synced
            else "its first full sync has not completed"
        )
        return ValidationScope(context, entity, group, since, is_full, repair), obstacle

    return await asyncio.to_thread(in_transaction, context.engine, read_scope)


def _describe_gap(row: Row[Any]) -> str | None:
    """Why nobody can know whether the group is in sync, though the third party may hold all that the archive has."""
    if not row.is_unproven:
        return None
    return f"no full sync has begun since {row.unproven_since:%Y-%m-%d %H:%M:%S} UTC: {row.unproven_reason}"

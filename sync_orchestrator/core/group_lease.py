"""The hold on one business group: one full sync a group at a time, on all machines, fenced by a token (rule 4).

Not here: what is done under it (``full_sync.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.errors import GroupBusy
from sync_orchestrator.core.sql import in_transaction, run
from sync_orchestrator.core.statements import full_sync as statements


class GroupLease:
    """The hold on one business group; every write under it is fenced by the token."""

    def __init__(self, context: Context, entity: str, group: str, row: object) -> None:
        self._context = context
        self.entity = entity
        self.group = group
        self.row = row
        self.token: int = row.lease_token  # type: ignore[attr-defined]
        self.filled_before: bool = row.first_completed_at is not None  # type: ignore[attr-defined]
        self.seconds = context.config.limits.lease

    def fenced(self, connection: Connection, statement: str, **params: object) -> object:
        """Runs a statement that must still find the lease ours, and returns its row.

        Raises GroupBusy where another has taken over.
        """
        rows = run(connection, statement, entity=self.entity, group=self.group, token=self.token, **params)
        if not rows:
            raise GroupBusy(f"another full sync has taken over {self.entity} {self.group}")
        return rows[0]

    async def phase(self, phase: str) -> None:
        """Notes what is done now, and renews the lease. Raises GroupBusy."""
        await asyncio.to_thread(in_transaction, self._context.engine, lambda connection: self.fenced(
            connection, statements.PHASE, phase=phase, lease=self.seconds))

    async def renew(self) -> None:
        """Holds the group for another while. Raises GroupBusy."""
        await asyncio.to_thread(in_transaction, self._context.engine, lambda connection: self.fenced(
            connection, statements.RENEW, lease=self.seconds))


@asynccontextmanager
async def leased(context: Context, entity: str, group: str) -> AsyncIterator[GroupLease]:
    """Holds a group while the block lasts, and renews the lease. Raises GroupBusy where another holds it."""

    def take(connection: Connection) -> GroupLease:
        run(connection, statements.ADD_GROUPS, entity=entity, groups=[group])
        rows = run(connection, statements.TAKE, entity=entity, group=group, lease=context.config.limits.lease)
        if not rows:
            raise GroupBusy(f"a full sync of {entity} {group} is under way")
        return GroupLease(context, entity, group, rows[0])

    lease = await asyncio.to_thread(in_transaction, context.engine, take)
    renewing = asyncio.create_task(_keep(lease))
    error: str | None = None
    try:
        yield lease
    except Exception as failure:
        error = str(failure)[:500]
        raise
    finally:
        renewing.cancel()
        in_transaction(context.engine, lambda connection: run(
            connection, statements.LET_GO, entity=entity, group=group, token=lease.token, error=error))


async def _keep(lease: GroupLease) -> None:
    while True:
        await asyncio.sleep(lease.seconds / 3)
        await lease.renew()

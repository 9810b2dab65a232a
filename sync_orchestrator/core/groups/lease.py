"""Exclusive lease on a business group: at most one full sync per group on all machines, fenced by a token (rule 4).

The lease is short, and a thread of its holder renews it. The lease of a process that is gone ends within seconds,
however long ``limits.lease`` is.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from sqlalchemy import Connection, Row
from sqlalchemy.exc import SQLAlchemyError

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.db.session_settings import application_name
from sync_orchestrator.core.groups import queries
from sync_orchestrator.core.groups.registry import add_groups
from sync_orchestrator.errors import GroupBusy

GROUP_LEASE_SECONDS = 10.0
"""A full sync that was not heard of for this long is gone, and another one takes over its business group."""

_RENEWALS = 4  # within one lease: one that is late, or fails, ends nothing
_LOOK_SECONDS = 0.5

_log = logging.getLogger("sync_orchestrator.group_lease")


@dataclass(frozen=True, slots=True)
class LeasedGroup:
    """A business group as its new holder finds it.

    The full sync that was interrupted last, if any, was in ``sync_phase``, and had listed ``sync_listed`` records up to
    ``sync_cursor``. ``is_sync_recent``: it began within a day.
    """

    lease_token: int
    first_completed_at: datetime | None
    sync_id: int | None
    sync_phase: str | None
    sync_cursor: str | None
    sync_listed: int
    is_sync_recent: bool

    @classmethod
    def from_row(cls, row: Row[Any]) -> LeasedGroup:
        """Makes one from a row of the database."""
        return cls(
            lease_token=row.lease_token,
            first_completed_at=row.first_completed_at,
            sync_id=row.sync_id,
            sync_phase=row.sync_phase,
            sync_cursor=row.sync_cursor,
            sync_listed=row.sync_listed,
            is_sync_recent=bool(row.recent),
        )


class GroupLease:
    """The hold on one business group; every write under it is fenced by the token."""

    def __init__(self, context: Context, entity: str, group: str, found: LeasedGroup) -> None:
        self._context = context
        self.entity = entity
        self.group = group
        self.found = found
        self.token = found.lease_token
        self.filled_before = found.first_completed_at is not None
        self.seconds = lease_seconds(context)

    def run_fenced(self, connection: Connection, statement: str, **params: object) -> Row[Any]:
        """Runs a statement that must still find the lease ours, and returns its row.

        Raises GroupBusy where another has taken over.
        """
        rows = run(connection, statement, entity=self.entity, group=self.group, token=self.token, **params)
        if not rows:
            raise GroupBusy(
                f"another full sync has taken over {self.entity} {self.group}: "
                + busy_text(connection, self.entity, self.group)
            )
        return rows[0]

    async def note_phase(self, phase: str) -> None:
        """Notes what is done now, and renews the lease. Raises GroupBusy."""
        await asyncio.to_thread(
            in_transaction, self._context.engine, lambda connection: self.set_phase(connection, phase)
        )

    def set_phase(self, connection: Connection, phase: str) -> None:
        """Notes in the caller's transaction what is done now, and renews the lease. Raises GroupBusy."""
        self.run_fenced(connection, queries.SET_PHASE, phase=phase, lease=self.seconds)

    def renew_lease(self) -> None:
        """Holds the group for another lease. Raises GroupBusy."""
        in_transaction(self._context.engine, self.renew_within)

    def renew_within(self, connection: Connection) -> None:
        """Renews the lease in the caller's transaction. Raises GroupBusy."""
        self.run_fenced(connection, queries.RENEW_GROUP_LEASE, lease=self.seconds)


def lease_seconds(context: Context) -> float:
    """For how long a group is held without a renewal, in seconds."""
    return min(GROUP_LEASE_SECONDS, context.config.limits.lease)


def busy_text(connection: Connection, entity: str, group: str) -> str:
    """Who holds a business group, for how long by now, and until when unless the holder renews it."""
    rows = run(connection, queries.SELECT_GROUP_LEASE, entity=entity, group=group)
    if not rows or rows[0].until is None or rows[0].left <= 0:
        return f"no full sync of {entity} {group} is under way any more: run it again"
    row = rows[0]
    holder = row.holder or "a process that left no name"
    age = "" if row.age is None else f" for {row.age:.0f} s"
    return (
        f"a full sync of {entity} {group} is under way: {holder} holds the group{age}, and until "
        f"{row.until:%H:%M:%S} UTC ({row.left:.0f} s from now) unless it renews its lease. Wait for it, or end "
        "that process"
    )


@asynccontextmanager
async def lease_group(context: Context, entity: str, group: str) -> AsyncIterator[GroupLease]:
    """Holds a group while the block lasts, and renews the lease.

    Where another holds it, waits until it is known whether that one still lives, which takes seconds. Raises GroupBusy
    where it does.
    """
    with context.holder.keep_heartbeat():  # one heartbeat for all drains of the group
        async with _hold_lease(context, entity, group) as lease:
            yield lease


@asynccontextmanager
async def _hold_lease(context: Context, entity: str, group: str) -> AsyncIterator[GroupLease]:
    lease = await _acquire_lease(context, entity, group)
    ended = threading.Event()
    renewing = threading.Thread(
        target=_renew_until_ended, args=(lease, ended), name=f"lease {entity} {group}", daemon=True
    )
    renewing.start()
    error: str | None = None
    try:
        yield lease
    except Exception as failure:
        error = str(failure)[:500]
        raise
    finally:
        ended.set()
        _release_lease(context, lease, error)


def _release_lease(context: Context, lease: GroupLease, error: str | None) -> None:
    in_transaction(
        context.engine,
        lambda connection: run(
            connection,
            queries.RELEASE_GROUP_LEASE,
            entity=lease.entity,
            group=lease.group,
            token=lease.token,
            error=error,
        ),
    )


async def _acquire_lease(context: Context, entity: str, group: str) -> GroupLease:
    holder = f"{application_name()} on {socket.gethostname()}"
    seconds = lease_seconds(context)

    def try_lease(connection: Connection) -> tuple[GroupLease | None, object, float, str]:
        add_groups(connection, entity, [group])
        rows = run(connection, queries.LEASE_GROUP, entity=entity, group=group, lease=seconds, holder=holder)
        if rows:
            return GroupLease(context, entity, group, LeasedGroup.from_row(rows[0])), None, 0.0, ""
        row = run(connection, queries.SELECT_GROUP_LEASE, entity=entity, group=group)[0]
        return None, row.until, float(row.left or 0.0), busy_text(connection, entity, group)

    first: object = None
    while True:
        taking = asyncio.ensure_future(asyncio.to_thread(in_transaction, context.engine, try_lease))
        try:
            lease, until, left, text = await asyncio.shield(taking)
        except asyncio.CancelledError:  # the thread goes on, and may take the group after all
            lease = (await taking)[0]
            if lease is not None:
                _release_lease(context, lease, None)
            raise
        if lease is not None:
            return lease
        first = first or until
        if until != first or left > GROUP_LEASE_SECONDS:  # it was renewed: its holder lives
            raise GroupBusy(text)
        await asyncio.sleep(min(_LOOK_SECONDS, max(0.01, left)))


def _renew_until_ended(lease: GroupLease, ended: threading.Event) -> None:
    """Renews a lease from a thread of its own, so that a busy event loop does not lose it."""
    while not ended.wait(lease.seconds / _RENEWALS):
        try:
            lease.renew_lease()
        except (SQLAlchemyError, psycopg.Error) as error:
            _log.warning("the lease of %s %s was not renewed: %s", lease.entity, lease.group, type(error).__name__)
        except BaseException:  # another has taken over: the next write under the lease says so
            return

"""Sources that notify nobody are asked what has changed; what is new becomes change events.

Each poll goes back by an overlap, for changes that were committed late, and behind the transactions that a source
reports as open (``core/intake/poll_position.py``). What the archive has already, and what is on its way, is passed
over.

A poll holds a lease on its source and renews it, so that several workers ask each source once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Row
from sqlalchemy.exc import SQLAlchemyError

from sync_orchestrator.core.archive.archived_records import read_stamps
from sync_orchestrator.core.archive.read_sequence import next_read_sequence, read_clock
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.intake import queries
from sync_orchestrator.core.intake.poll_position import PollPosition
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.ports import PartRead, SourceSystem
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Stamp
from sync_orchestrator.errors import CallFailed, Failure

LEASE_SECONDS = 30.0
"""How long a poll that is not heard of holds its source."""

RENEW_SECONDS = 8.0
"""The time between two renewals of the lease."""

_MAX_EXAMPLES = 10
_page_taken = CrashPoint("polling.page_taken")
_positions: WeakKeyDictionary[SourceSystem, PollPosition] = WeakKeyDictionary()
"""What this process knows of the positions of its sources."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Polled:
    """What a poll brought: parts ``shown``, those that are ``new`` here, those that are ``unusable``."""

    entity: str
    part: str
    shown: int = 0
    new: int = 0
    unusable: int = 0


def polled_parts(context: Context) -> list[tuple[EntityContext, str]]:
    """The parts whose sources are asked for their changes."""
    return [
        (entity, part)
        for entity in context.entities.values()
        for part, source in entity.sources.items()
        if source.can_poll
    ]


async def poll_due(context: Context) -> list[Polled | CallFailed]:
    """Asks all sources whose turn it is; one that fails keeps no other from being asked, and is told of in time."""
    ends = await asyncio.gather(*(poll_reporting(context, entity, part) for entity, part in polled_parts(context)))
    return [end for end in ends if end is not None]


async def poll_reporting(
    context: Context, entity: EntityContext, part: str, on_page: Callable[[], None] = lambda: None
) -> Polled | CallFailed | None:
    """Polls one source if it is due. A failure is returned, and becomes an alert once it has lasted.

    Args:
        context: The system.
        entity: The entity of the part.
        part: The part whose source is polled.
        on_page: Called after each page: a long poll makes progress.
    """
    try:
        return await poll(context, entity, part, on_page=on_page)
    except CallFailed as error:
        failure = error
    except Exception as error:  # ports contain their errors; whatever gets here fails this poll alone (rule 37)
        _log.exception("unexpected error while polling %s of %s", part, entity.name)
        failure = CallFailed(Failure.TRANSIENT, f"unexpected {type(error).__name__}: {error}")
    await asyncio.to_thread(
        in_transaction,
        context.engine,
        lambda connection: _alert_of_failure(connection, context, entity, part, failure),
    )
    return failure


async def poll(
    context: Context,
    entity: EntityContext,
    part: str,
    *,
    due_only: bool = True,
    on_page: Callable[[], None] = lambda: None,
) -> Polled | None:
    """Asks one source what has changed.

    Returns:
        What it showed, or None where it is not its turn, or another process polls it.

    Raises:
        CallFailed: The source gave no usable response.
    """
    work = _Poll(context, entity, part, on_page)
    begun = asyncio.create_task(work.acquire_lease(due_only=due_only))
    renewal = asyncio.create_task(work.keep_lease())
    try:
        return await work.run() if await asyncio.shield(begun) else None
    finally:
        renewal.cancel()
        await asyncio.wait([begun])  # a cancellation may come while the lease is being taken
        await work.release_lease()


class _Poll:
    """One poll of one source, under a lease."""

    def __init__(self, context: Context, entity: EntityContext, part: str, on_page: Callable[[], None]) -> None:
        self._context = context
        self._entity = entity
        self._part = part
        self._on_page = on_page
        self._settings = entity.settings.parts[part]
        self._is_time = self._settings.version.kind == "time"
        self._newest = 0
        self._token = 0

    async def acquire_lease(self, *, due_only: bool) -> bool:
        """Takes the lease; False where the source is not due, or another process has it."""
        found = await self._run_statement(
            queries.CLAIM_POLL,
            is_time=self._is_time,
            lease=LEASE_SECONDS,
            every=self._settings.poll_every if due_only else 0,
        )
        for row in found:
            self._newest, self._token = row.newest, row.lease_token
        return bool(found)

    async def keep_lease(self) -> None:
        """Renews the lease until it is canceled; a database that is down for a moment costs a renewal."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            with suppress(SQLAlchemyError):
                await self._run_statement(queries.RENEW_POLL, token=self._token, lease=LEASE_SECONDS)

    async def release_lease(self) -> None:
        """Lets others poll the source at once; harmless after a poll that has ended well, or never began."""
        if not self._token:
            return
        with suppress(SQLAlchemyError):  # it ends by itself
            await self._run_statement(queries.RELEASE_POLL, token=self._token)

    async def run(self) -> Polled | None:
        """Records what is new, page by page; None where the lease was lost on the way."""
        polled, problems, newest = Polled(self._entity.name, self._part), [], self._newest
        overlap = int(self._settings.overlap * 1e6) if self._is_time else int(self._settings.overlap)
        number = await asyncio.to_thread(in_transaction, self._context.engine, next_read_sequence)
        source = self._entity.sources[self._part]
        position = _positions.setdefault(source, PollPosition())
        there = await source.open_transactions()
        position.begin_poll(there)
        async for rows in source.changes(max(0, self._newest - overlap)):
            usable, unusable = sort_out(rows)
            problems += [f"{row.key!a}: {row.problem}" for row in unusable]
            polled.shown += len(rows)
            taken = await asyncio.to_thread(
                in_transaction,
                self._context.engine,
                lambda connection, usable=usable, number=number: self._record_page(connection, usable, number),
            )
            if taken is None:
                _log.warning("%s: another process polls %s", self._entity.name, self._part)
                return None
            polled.new += taken
            _page_taken()
            self._on_page()
            number = await asyncio.to_thread(in_transaction, self._context.engine, next_read_sequence)
            newest = max([newest, *(row.version for row in usable)])
        polled.unusable = len(problems)
        if self._is_time:  # a version in the future does not hide what changes until then
            clock = await asyncio.to_thread(in_transaction, self._context.engine, read_clock)
            newest = min(newest, int(clock * 1e6))
        noted = position.end_poll(there, self._newest, newest)
        await asyncio.to_thread(
            in_transaction,
            self._context.engine,
            lambda connection: _note_polled(connection, polled, problems, noted, self._token),
        )
        return polled

    def _record_page(self, connection: Connection, rows: Sequence[PartRead], number: int) -> int | None:
        """Records what is new of a page in the transaction that renews the lease; None where that is lost."""
        name = self._entity.name
        if not run(
            connection, queries.RENEW_POLL, entity=name, part=self._part, token=self._token, lease=LEASE_SECONDS
        ):
            return None
        return _record_news(connection, self._entity, self._part, rows, number)

    async def _run_statement(self, query: str, **parameters: object) -> Sequence[Row[Any]]:
        return await asyncio.to_thread(
            in_transaction,
            self._context.engine,
            lambda connection: run(connection, query, entity=self._entity.name, part=self._part, **parameters),
        )


def _record_news(
    connection: Connection, entity: EntityContext, part: str, rows: Sequence[PartRead], number: int
) -> int:
    """Records what is new of a page: a poll is a read, so that what it shows is later than what was read before."""
    stamps = read_stamps(connection, entity.name, [row.key for row in rows], entity.rules.lag)
    offered = [_event_of_row(entity, part, row, number) for row in rows if _is_news(stamps.get((row.key, part)), row)]
    active = {
        (row.key, bytes(row.content_hash))
        for row in run(
            connection,
            queries.SELECT_ACTIVE_EVENT_STAMPS,
            entity=entity.name,
            part=part,
            keys=[event.key for event in offered],
        )
    }
    news = [event for event in offered if (event.key, event.content_hash()) not in active]
    return record_in(connection, news).accepted


def _is_news(archived: Stamp | None, row: PartRead) -> bool:
    """Whether a row shows something else than what is archived."""
    content = TOMBSTONE_HASH if row.deleted else compute_digest(row.data)
    return archived is None or (archived.version, archived.content_hash) != (row.version, content)


def _event_of_row(entity: EntityContext, part: str, row: PartRead, number: int) -> ChangeEvent:
    content = TOMBSTONE_HASH if row.deleted else compute_digest(row.data)
    return ChangeEvent(
        part,
        f"poll/{entity.name}/{row.key}/{row.version}/{content.hex()}/{number}",
        entity.name,
        row.key,
        "delete" if row.deleted else "create",
        row.version,
        None if row.deleted else row.data,
        row.group,
        "poll",
        read_sequence=number,
    )


def _note_polled(connection: Connection, polled: Polled, problems: Sequence[str], newest: int, token: int) -> None:
    """Writes that a poll has ended, and where the next one begins."""
    run(
        connection,
        queries.NOTE_POLLED,
        entity=polled.entity,
        part=polled.part,
        newest=newest,
        token=token,
    )
    place = f"{polled.entity} {polled.part}"
    alerts.resolve_alert(connection, "poll_failing", place)
    if problems:
        alerts.raise_alert(
            connection,
            "invalid_source_records",
            f"{place}: changes",
            f"{place}: it shows changes that cannot be used",
            entity=polled.entity,
            examples=problems[:_MAX_EXAMPLES],
        )
    else:
        alerts.resolve_alert(connection, "invalid_source_records", f"{place}: changes")


def _alert_of_failure(
    connection: Connection, context: Context, entity: EntityContext, part: str, failure: CallFailed
) -> None:
    ago = next((row.ago for row in run(connection, queries.SELECT_POLL_AGE, entity=entity.name, part=part)), None)
    if ago is None or ago > context.config.alerts.overdue_after:
        since = "yet" if ago is None else f"for {ago / 60:.0f} minutes"
        alerts.raise_alert(
            connection,
            "poll_failing",
            f"{entity.name} {part}",
            f"{entity.name}: '{part}' could not be asked for its changes {since}",
            entity=entity.name,
            examples=[str(failure)],
        )

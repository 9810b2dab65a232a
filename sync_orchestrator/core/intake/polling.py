"""Sources that notify nobody are asked what has changed; what is new becomes change events.

Each poll goes back by an overlap, for changes that were committed late; what the archive has already, and what is on
its way, is passed over. Not here: when sources are asked (``sensors/polling.py``), what happens to the events
(``events.py``).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from sync_orchestrator.core.archive import queries as archive_queries
from sync_orchestrator.core.archive.merge import clock, read_sequence, stamp_of
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.intake import queries
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.mapping import digest
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Stamp
from sync_orchestrator.errors import CallFailed, Failure

_EXAMPLES = 10

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

    async def one(entity: EntityContext, part: str) -> Polled | CallFailed | None:
        try:
            return await poll(context, entity, part)
        except CallFailed as error:
            failure = error
        except Exception as error:  # ports contain their errors; whatever gets here fails this poll alone (rule 37)
            _log.exception("unexpected error while polling %s of %s", part, entity.name)
            failure = CallFailed(Failure.TRANSIENT, f"unexpected {type(error).__name__}: {error}")
        await asyncio.to_thread(
            in_transaction,
            context.engine,
            lambda connection: _tell_of_failure(connection, context, entity, part, failure),
        )
        return failure

    ends = await asyncio.gather(*(one(entity, part) for entity, part in polled_parts(context)))
    return [end for end in ends if end is not None]


async def poll(context: Context, entity: EntityContext, part: str, *, due_only: bool = True) -> Polled | None:
    """Asks one source what has changed; None where it is not its turn. Raises CallFailed."""
    settings = entity.settings.parts[part]
    is_time = settings.version.kind == "time"
    begin = await asyncio.to_thread(
        in_transaction,
        context.engine,
        lambda connection: run(connection, queries.BEGIN_POLL, entity=entity.name, part=part, is_time=is_time)[0],
    )
    if due_only and begin.ago is not None and begin.ago < settings.poll_every:
        return None
    polled = Polled(entity.name, part)
    problems: list[str] = []
    newest = begin.newest
    overlap = int(settings.overlap * 1e6) if is_time else int(settings.overlap)
    number = await asyncio.to_thread(in_transaction, context.engine, read_sequence)
    async for rows in entity.sources[part].changes(max(0, begin.newest - overlap)):
        usable, unusable = sort_out(rows)
        problems += [f"{row.key!a}: {row.problem}" for row in unusable]
        polled.shown += len(rows)
        polled.new += await asyncio.to_thread(
            in_transaction,
            context.engine,
            lambda connection, usable=usable, number=number: _take(connection, entity, part, usable, number),
        )
        number = await asyncio.to_thread(in_transaction, context.engine, read_sequence)
        newest = max([newest, *(row.version for row in usable)])
    polled.unusable = len(problems)
    await asyncio.to_thread(
        in_transaction, context.engine, lambda connection: _asked(connection, polled, problems, newest, is_time=is_time)
    )
    return polled


def _take(connection: Connection, entity: EntityContext, part: str, rows: Sequence[PartRead], number: int) -> int:
    """Records what is new of a page: a poll is a read, so that what it shows is later than what was read before."""
    keys = [row.key for row in rows]
    stamps = {
        row.key: stamp_of(row)
        for row in run(connection, archive_queries.SELECT_STAMPS, entity=entity.name, keys=keys, lag=entity.rules.lag)
        if row.part == part
    }
    offered = [_event(entity, part, row, number) for row in rows if _is_news(stamps.get(row.key), row)]
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
    content = TOMBSTONE_HASH if row.deleted else digest(row.data)
    return archived is None or (archived.version, archived.content_hash) != (row.version, content)


def _event(entity: EntityContext, part: str, row: PartRead, number: int) -> ChangeEvent:
    content = TOMBSTONE_HASH if row.deleted else digest(row.data)
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


def _asked(connection: Connection, polled: Polled, problems: Sequence[str], newest: int, *, is_time: bool) -> None:
    """A version in the future does not hide what changes until then."""
    present = int(clock(connection) * 1e6)
    run(
        connection,
        queries.NOTE_POLLED,
        entity=polled.entity,
        part=polled.part,
        newest=min(newest, present) if is_time else newest,
    )
    place = f"{polled.entity} {polled.part}"
    alerts.resolve(connection, "poll_failing", place)
    if problems:
        alerts.tell(
            connection,
            "invalid_source_records",
            f"{place}: changes",
            f"{place}: it shows changes that cannot be used",
            entity=polled.entity,
            examples=problems[:_EXAMPLES],
        )
    else:
        alerts.resolve(connection, "invalid_source_records", f"{place}: changes")


def _tell_of_failure(
    connection: Connection, context: Context, entity: EntityContext, part: str, failure: CallFailed
) -> None:
    begin = run(connection, queries.BEGIN_POLL, entity=entity.name, part=part, is_time=True)[0]
    if begin.ago is None or begin.ago > context.config.alerts.overdue_after:
        since = "yet" if begin.ago is None else f"for {begin.ago / 60:.0f} minutes"
        alerts.tell(
            connection,
            "poll_failing",
            f"{entity.name} {part}",
            f"{entity.name}: '{part}' could not be asked for its changes {since}",
            entity=entity.name,
            examples=[str(failure)],
        )

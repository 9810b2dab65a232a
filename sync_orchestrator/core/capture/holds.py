"""Reads that wait until a stream has passed them, where the versions of a part are the numbers of its stream.

What a source shows has no version there. So the stream's number is noted before a read, and the end of the source's
log after it. Once the stream has passed that end, all that the read can have seen is recorded. Then the archive leaves
out what the stream recorded after the noted number, and the rest is the newest state (``core/archive/merge.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.capture import queries
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.errors import CallFailed, Failure

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine, Row

    from sync_orchestrator.core.context import EntityContext

_noted = CrashPoint("capture.page_noted")

_FIRST_LOOK_SECONDS = 0.01
_MAX_LOOK_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class NotedStreams:
    """Where streams were before a read.

    Attributes:
        numbers: By part, the stream's number.
        generations: By part, which beginning of the stream the number belongs to.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    generations: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ReadHold:
    """A read that waits. ``wanted``: by part, the position that the stream has to pass."""

    noted: NotedStreams
    wanted: Mapping[str, str]
    read_at: float


class StreamHolds:
    """The holds of one entity's reads; of an entity without numbered versions they cost nothing."""

    def __init__(self, engine: Engine, entity: EntityContext) -> None:
        self._engine = engine
        self._logs = entity.logs

    async def note_streams(self) -> NotedStreams:
        """Notes where the streams are, before a read of all parts. Raises CallFailed where a stream was never begun."""
        if not self._logs:
            return NotedStreams()
        return await asyncio.to_thread(in_transaction, self._engine, lambda c: self.note_within(c, self._logs))

    def note_within(self, connection: Connection, parts: Iterable[str]) -> NotedStreams:
        """The same before a read of some parts, in the caller's transaction."""
        names = sorted(self._logs.keys() & set(parts))
        rows = {row.name: row for row in run(connection, queries.NOTE_NUMBERS, names=names)} if names else {}
        for part in names:
            if part not in rows:
                raise CallFailed(
                    Failure.TRANSIENT,
                    f"the stream of '{part}' has not begun, whose numbers are the versions: start "
                    "`sync-orchestrator capture` (or `up`) first, then the full sync",
                )
        return NotedStreams(
            {part: rows[part].number for part in names}, {part: rows[part].generation for part in names}
        )

    async def end_read(self, noted: NotedStreams) -> ReadHold:
        """Notes where the sources' logs end, once a read is over. Raises CallFailed."""
        parts = sorted(noted.numbers)
        ends = await asyncio.gather(*(self._logs[part].read_end() for part in parts))
        if parts:
            _noted()
        wanted = {part: end.inserted for part, end in zip(parts, ends, strict=True)}
        return ReadHold(noted, wanted, time.monotonic())

    async def wait(self, hold: ReadHold, most_seconds: float | None = None) -> None:
        """Waits until the streams have passed the read.

        Args:
            hold: The read.
            most_seconds: The longest wait; by default as long as the streams move.

        Raises:
            CallFailed: A stream stands still, did not pass it in time, or began anew; the read is to be repeated.
        """
        wanted, pause, moved = dict(hold.wanted), _FIRST_LOOK_SECONDS, _Movement()
        while wanted:
            rows = await asyncio.to_thread(in_transaction, self._engine, lambda c: _look_at_streams(c, wanted))
            for part in sorted(wanted):
                row = rows.get(part)
                if row is None or row.generation != hold.noted.generations[part]:
                    raise CallFailed(
                        Failure.TRANSIENT,
                        f"the stream of '{part}' began anew while its source was read: changes may be missing between",
                    )
                if row.has_passed:
                    del wanted[part]
                    continue
                stood = moved.seconds_since(part, (row.position, row.partial, row.number))
                most = self._logs[part].stall_seconds if most_seconds is None else most_seconds
                since = stood if most_seconds is None else time.monotonic() - hold.read_at
                if since >= most:
                    raise CallFailed(Failure.TRANSIENT, _describe_stall(part, row, wanted[part], since))
            if wanted:
                await asyncio.sleep(pause)
                pause = min(_MAX_LOOK_SECONDS, pause * 2)
                await self._lower_wanted(hold, wanted)

    async def _lower_wanted(self, hold: ReadHold, wanted: dict[str, str]) -> None:
        """Waits for no more of the log than a commit can be in that the read saw.

        What a transaction wrote that is still open may not be flushed for long, and no stream shows it before. A commit
        is flushed before it is visible, or with ``synchronous_commit = off`` a moment later.
        """
        for part in wanted:
            log = self._logs[part]
            waited = time.monotonic() - hold.read_at
            if wanted[part] == hold.wanted[part] and waited > log.flush_delay_seconds:
                end = await log.read_end()
                wanted[part] = log.choose_earlier(end.flushed, wanted[part])


class _Movement:
    """Since when streams have not moved."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[object, float]] = {}

    def seconds_since(self, part: str, place: object) -> float:
        """For how many seconds a stream has been at this place."""
        now = time.monotonic()
        known, since = self._seen.get(part, (None, now))
        if known != place:
            since = now
            self._seen[part] = place, now
        return now - since


def _look_at_streams(connection: Connection, wanted: Mapping[str, str]) -> dict[str, Row[Any]]:
    names = sorted(wanted)
    rows = run(connection, queries.LOOK_AT_STREAMS, names=names, wanted=[wanted[name] for name in names])
    return {row.name: row for row in rows}


def _describe_stall(part: str, row: Row[Any], wanted: str, seconds: float) -> str:
    why = row.error or ("it is read, and does not move" if row.is_read else "no process reads it")
    return (
        f"the stream of '{part}' has not passed {wanted}, where its source's log ended after a read: it has been at "
        f"{row.position} for {seconds:.0f} s ({why}). See `sync-orchestrator capture list`, and that "
        "`sync-orchestrator capture` (or `up`) runs"
    )

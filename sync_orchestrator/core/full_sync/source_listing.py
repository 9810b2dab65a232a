"""Reads the sources of one business group as changes, for its full sync, its plan and its check.

Parts that cannot be used are passed over and reported.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import Connection, Engine

from sync_orchestrator.core.archive.changes_from_reads import bounds_of, change_of_read
from sync_orchestrator.core.archive.read_sequence import next_read_sequence_and_clock
from sync_orchestrator.core.capture.holds import NotedStreams, StreamHolds
from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.systems.epochs import list_epochs
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Change, Stamp, seconds_too_far
from sync_orchestrator.texts.storable_text import text_problem

EXAMPLES = 10


@dataclass(frozen=True, slots=True)
class BegunRead:
    """A read of the sources: its number, and where the streams were before it."""

    number: int
    noted: NotedStreams


class GroupReads:
    """``unusable``: parts that were passed over; ``problems``: what is wrong with the first of them.

    ``holds``: lets reads wait for the streams whose numbers are the versions of parts.
    """

    def __init__(self, engine: Engine, entity: EntityContext, group: str) -> None:
        self._engine = engine
        self._entity = entity
        self._group = group
        self._epochs: dict[str, int] = {}
        self._now = 0.0
        self.holds = StreamHolds(engine, entity)
        self.unusable = 0
        self.problems: list[str] = []

    def load_epochs(self, connection: Connection) -> None:
        """Learns in which epoch each source is."""
        self._epochs = list_epochs(connection)

    async def read_sequence(self) -> int:
        """A number for a read that begins now."""
        number, self._now = await asyncio.to_thread(in_transaction, self._engine, next_read_sequence_and_clock)
        return number

    async def begin_read(self) -> BegunRead:
        """A read that begins now: where the streams are before it, and its number."""
        noted = await self.holds.note_streams()
        return BegunRead(await self.read_sequence(), noted)

    async def read_others(self, rows: Sequence[PartRead]) -> dict[str, Sequence[PartRead]]:
        """The other parts of the owner's records, from sources that can be read by key.

        A key that cannot be stored is no record's, and is asked of nobody.
        """
        keys = [row.key for row in rows if row.key and not row.deleted and text_problem(row.key) is None]
        rules = self._entity.rules
        others = [part for part in self._entity.sources if part != rules.owner and part in rules.readable]
        found = await asyncio.gather(*(self._entity.sources[part].read_many(keys) for part in others))
        return dict(zip(others, found, strict=True))

    def listed_parts(self) -> Iterator[str]:
        """The other parts, whose sources cannot be read by key and are listed by group."""
        rules = self._entity.rules
        return (part for part in self._entity.sources if part != rules.owner and part not in rules.readable)

    def build_changes(self, rows: Sequence[PartRead], part: str, read: BegunRead) -> list[Change]:
        """What can be used of a source's rows."""
        usable, unusable = self._sort_out(rows, part)
        self.problems += [f"{row.key!a}: {row.problem}" for row in unusable[: EXAMPLES - len(self.problems)]]
        self.unusable += len(unusable)
        noted = read.noted.numbers.get(part)
        changes = [change_of_read(row, part, self.epoch_of(part), read.number, noted=noted) for row in usable]
        for change in changes:
            if part == self._entity.rules.owner and change.group is None:
                change.group = self._group
        return changes

    def select_usable(self, rows: Sequence[PartRead], part: str) -> list[PartRead]:
        """The rows that can be used; of the others nothing is remembered."""
        return self._sort_out(rows, part)[0]

    def epoch_of(self, part: str) -> int:
        """The epoch that a source was in when the reading began."""
        return self._epochs.get(part, 0)

    def _sort_out(self, rows: Sequence[PartRead], part: str) -> tuple[list[PartRead], list[PartRead]]:
        return sort_out(self._mark_future(row, part) for row in rows)

    def _mark_future(self, row: PartRead, part: str) -> PartRead:
        settings = self._entity.settings
        ahead = seconds_too_far(row.version, settings.parts[part].version.kind, self._now, settings.max_ahead)
        if not ahead or row.problem is not None:
            return row
        hours = (ahead + settings.max_ahead) / 3600
        return replace(row, problem=f"its version lies {hours:.1f} h in the future, more than max_ahead")

    def over_cap(self, part: str, unlisted: int, size: int, allowed: int | None) -> str | None:
        """Why so many records of a group may not be deleted at once; None where they may."""
        cap = max(self._entity.settings.validation.deletions.group_cap(size), allowed or 0)
        if unlisted <= cap:
            return None
        fate = "deleted" if part == self._entity.rules.owner else f"without their part '{part}'"
        return f"{unlisted} of {size} records would be {fate}, more than the cap of {cap}"

    def needs_count(self, part: str) -> bool:
        """Whether only the source's count can prove that its listing was complete."""
        by_key = part != self._entity.rules.owner and part in self._entity.rules.readable
        return not by_key and not self._entity.sources[part].keyset_listing

    async def incomplete_reason(self, part: str, listed: int, unlisted: int) -> str | None:
        """Why what a listing lacks cannot be taken for gone; None where the source's count proves it complete."""
        count = await self._entity.sources[part].count(self._group)
        if count == listed:
            return None
        return (
            f"{unlisted} records were not listed by '{part}', but its listing is not proven complete "
            f"({listed} listed, {count} counted)"
        )

    async def confirm_unlisted(
        self, part: str, unlisted: Sequence[tuple[str, int, int]], number: int
    ) -> tuple[list[Change], int]:
        """What is true of unlisted parts (key, epoch, version), asked for by key where that can be.

        What the source does not have becomes a tombstone with the last version and the listing's read sequence.
        Returns the changes, and how many records are there after all. Where a stream numbers the versions it has passed
        these reads by then.
        """
        here: dict[str, PartRead] = {}
        asked = await self.begin_read()
        if part in self._entity.rules.readable:
            reads = await asyncio.gather(*(self._entity.sources[part].read(key) for key, _, _ in unlisted))
            here = {read.key: read for read in reads if read is not None}
        if part in asked.noted.numbers:
            await self.holds.wait(await self.holds.end_read(asked.noted))
        gone = [
            Change(
                key,
                part,
                "delete",
                Stamp(epoch, version, number, TOMBSTONE_HASH, inferred=True),
                None,
                bounds=bounds_of(asked.noted.numbers.get(part)),
            )
            for key, epoch, version in unlisted
            if key not in here
        ]
        return [*self.build_changes(list(here.values()), part, asked), *gone], len(here)

    def outage_reason(self, part: str, listed: int, gone: int, size: int, allowed: int | None) -> str | None:
        """Why an empty listing is not believed; None where it lists something, or an operator allowed it (rule 22)."""
        few = part != self._entity.rules.owner and gone == 1  # a part that only one record of the group had
        if listed or not gone or few or (allowed is not None and gone <= allowed):
            return None
        return (
            f"'{part}' listed nothing of a business group that has {size} records here: that counts as an outage "
            "of the source"
        )

"""The sources against the archive, for one business group: notifications that never came are found and made up for.

All records are compared by version, and some of them in turn by their contents as well. What has a change event on its
way is left out of judgement; suspects are looked at again after a pause; what looks gone is asked for by key. Not
here: the archive against the third party (``validation.py``), when groups are due (``sensors/schedules.py``).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.full_sync.fill import report_ungrouped
from sync_orchestrator.core.full_sync.source_listing import GroupReads
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.values.mapping import digest
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH
from sync_orchestrator.errors import CallFailed

if TYPE_CHECKING:
    from sync_orchestrator.config.entities import Repair

T = TypeVar("T")

_MAX_OLDER = 1000

_before_commit = CrashPoint("source_check.before_commit")

Kind = Literal["missing", "newer", "gone", "older", "different"]
Place = tuple[str, str]
"""Part and key."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A notification that never came.

    The archive lacks the part (``missing``), has an older one (``newer`` at the source), one that the source does not
    have (``gone``), a newer one (``older`` at the source), or other content of the same version (``different``).
    ``version``: of the source; of the archive for what is gone.
    """

    part: str
    key: str
    kind: Kind
    version: int


@dataclass(slots=True)
class SourceCheck:
    """What a check found. ``new``: found for the first time. ``repaired``: change events recorded for it."""

    entity: str
    group: str
    verdict: Literal["in_sync", "lost", "not_checked"] = "in_sync"
    reason: str | None = None
    listed: dict[str, int] = field(default_factory=dict)
    on_the_way: int = 0
    lost: list[Lost] = field(default_factory=list)
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
) -> SourceCheck:
    """Checks one group and, as configured or told, makes up for what was lost; with ``key``, of that record alone.

    A source that cannot be asked makes the verdict ``not_checked``; nothing is raised for it.
    """
    return await _Check(context, entity, group, repair or entity.settings.source_check.repair, key).run()


class _Check:
    def __init__(self, context: Context, entity: EntityContext, group: str, repair: Repair, key: str | None) -> None:
        self._context = context
        self._entity = entity
        self._group = group
        self._repair = repair
        self._key = key
        self._owner = entity.rules.owner
        self._reads = GroupReads(context.engine, entity, group)
        self._since: Any = None
        self._rows: dict[Place, PartRead] = {}
        self._whole: set[Place] = set()
        self._archive: dict[Place, Any] = {}
        self._checked_to: str | None = None
        self._number = 0
        self._keys: dict[str, set[str]] = defaultdict(set)
        self._size = 0
        self._held: str | None = None
        self._on_the_way: set[Lost] = set()
        self.result = SourceCheck(entity.name, group)

    async def run(self) -> SourceCheck:
        if not await self._db(self._begin):
            return self._not_checked("its first full sync has not completed")
        try:
            await self._list()
            await self._read_contents()
            self.result.ungrouped = await report_ungrouped(self._context, self._entity)
            suspects = await self._db(self._suspects)
            if suspects:
                await asyncio.sleep(self._pause())
                suspects = await self._db(partial(self._still, before=suspects))
            self.result.lost = sorted(await self._confirm(suspects), key=lambda lost: (lost.part, lost.key))
        except CallFailed as failure:
            return self._not_checked(f"its sources gave no usable response: {failure.named()}")
        await self._db(self._conclude)
        return self.result

    def _pause(self) -> float:
        """A source that is asked for its changes has its turn meanwhile."""
        polled = [2 * part.poll_every for part in self._entity.settings.parts.values() if part.changes is not None]
        return max([self._entity.settings.source_check.confirm_after, *polled])

    async def _db(self, work: Callable[[Connection], T]) -> T:
        return await asyncio.to_thread(in_transaction, self._context.engine, work)

    def _not_checked(self, reason: str) -> SourceCheck:
        self.result.verdict, self.result.reason = "not_checked", reason
        return self.result

    def _begin(self, connection: Connection) -> bool:
        row = run(connection, queries.SELECT_SOURCE_CHECK_GROUP, entity=self._entity.name, group=self._group)[0]
        self._since = row.now
        self._checked_to = row.contents_checked_to
        self._reads.begin(connection)
        return bool(row.synced)

    # What the sources have --------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        self._number = await self._reads.read_sequence()
        by_key = [
            part
            for part, source in self._entity.sources.items()
            if part != self._owner and part in self._entity.rules.readable and not source.can_list_keys
        ]
        async for rows in self._pages(self._owner):
            keys = [row.key for row in self._take(self._owner, rows) if not row.deleted]
            found = await asyncio.gather(*(self._entity.sources[part].read_many(keys) for part in by_key))
            for part, others in zip(by_key, found, strict=True):
                self._take(part, others)
                self._whole |= {(part, row.key) for row in others}
        for part in self._entity.sources:
            if part != self._owner and part not in by_key:
                async for rows in self._pages(part):
                    self._take(part, rows)
        self.result.listed = {part: len(self._keys[part]) for part in sorted(self._entity.sources)}

    async def _pages(self, part: str) -> AsyncIterator[list[PartRead]]:
        """Keys and versions alone, where the part can be read by key later; else whole parts."""
        source = self._entity.sources[part]
        if part in self._entity.rules.readable:
            async with aclosing(source.keys(self._group)) as listing:  # type: ignore[type-var]
                async for rows in listing:
                    yield rows
        else:
            async with aclosing(source.pages(self._group)) as pages:  # type: ignore[type-var]
                async for rows, _ in pages:
                    yield rows

    def _take(self, part: str, rows: Sequence[PartRead]) -> list[PartRead]:
        """Rows that cannot be used are there, and are told of by full syncs."""
        self._keys[part].update(row.key for row in rows)
        usable = [row for row in self._reads.usable(rows, part) if row.group in (None, self._group)]
        self._rows |= {(part, row.key): row for row in usable}
        if not self._lists_keys_only(part):
            self._whole |= {(part, row.key) for row in usable}
        return usable

    def _lists_keys_only(self, part: str) -> bool:
        return part in self._entity.rules.readable and self._entity.sources[part].can_list_keys

    async def _read_contents(self) -> None:
        """Reads whole parts where only keys were listed: those that look older here, and some of the others in turn."""
        parts = [part for part in self._entity.sources if self._lists_keys_only(part)]
        if not parts:
            return
        archived = await self._db(self._archived)
        keys = sorted(key for part, key in self._rows if part == self._owner)
        behind = [key for key in keys if self._checked_to is None or key > self._checked_to]
        chosen = (behind or keys)[: self._entity.settings.source_check.contents]
        for part in parts:
            older = [
                key
                for (of, key), row in self._rows.items()
                if of == part and (of, key) in archived and row.version < archived[of, key].version
            ]
            wanted = sorted({*older[:_MAX_OLDER], *(key for key in chosen if (part, key) in self._rows)})
            found = self._reads.usable(await self._entity.sources[part].read_many(wanted), part) if wanted else []
            self._rows |= {(part, row.key): row for row in found}
            self._whole |= {(part, row.key) for row in found}
        self._checked_to = chosen[-1] if chosen and chosen[-1] != keys[-1] else None

    # What the archive lacks -------------------------------------------------------------------------------------------

    def _suspects(self, connection: Connection) -> set[Lost]:
        archived = self._archive = self._archived(connection)
        self.result.contents = sum(1 for place in self._whole if place in archived)
        found = {
            lost
            for (part, key), row in self._rows.items()
            if (lost := self._compared(part, key, row, archived)) is not None
        }
        self._size = sum(1 for row in archived.values() if row.part == self._owner and row.of_group and not row.deleted)
        found |= {
            Lost(part, key, "gone", row.version) for (part, key), row in archived.items() if self._looks_gone(row)
        }
        return self._not_on_the_way(connection, found)

    def _archived(self, connection: Connection) -> dict[Place, Any]:
        keys = sorted({key for _, key in self._rows})
        return {
            (row.part, row.key): row
            for row in run(
                connection,
                queries.SELECT_ARCHIVED_PARTS,
                entity=self._entity.name,
                group=self._group,
                keys=keys,
                since=self._since,
            )
        }

    def _compared(self, part: str, key: str, row: PartRead, archived: dict[Place, Any]) -> Lost | None:
        there = archived.get((part, key))
        if there is None:
            owner = archived.get((self._owner, key))
            orphan = part != self._owner and (owner is None or owner.deleted)  # its owner's part is what is missing
            return None if row.deleted or orphan else Lost(part, key, "missing", row.version)
        if there.epoch != self._reads.epoch(part):
            return None  # its source was restored: a full sync takes over what it holds
        kind = compared_kind(row, there.version, bytes(there.content_hash), is_whole=(part, key) in self._whole)
        if kind is None or (there.moved and kind != "newer"):
            return None
        return Lost(part, key, kind, row.version)

    def _looks_gone(self, row: Any) -> bool:
        return (
            row.of_group
            and not row.deleted
            and not row.moved
            and row.part in self._entity.sources
            and row.key not in self._keys[row.part]
            and (row.part == self._owner or row.key in self._keys[self._owner])
        )

    def _not_on_the_way(self, connection: Connection, found: set[Lost]) -> set[Lost]:
        rows = run(
            connection,
            queries.SELECT_KEYS_WITH_ACTIVE_EVENTS,
            entity=self._entity.name,
            keys=sorted({lost.key for lost in found}),
        )
        under_way = {(row.source, row.key) for row in rows}
        self._on_the_way = {lost for lost in found if (lost.part, lost.key) in under_way}
        self.result.on_the_way = len(self._on_the_way)
        return found - self._on_the_way

    def _still(self, connection: Connection, before: set[Lost]) -> set[Lost]:
        """Those that are lost by now, too; the others were in flight."""
        return before & self._suspects(connection)

    async def _confirm(self, suspects: set[Lost]) -> set[Lost]:
        """What looks gone is so only if it is proven, and only as many as may be deleted at once (rule 14)."""
        gone: dict[str, list[Lost]] = defaultdict(list)
        for lost in suspects:
            if lost.kind == "gone":
                gone[lost.part].append(lost)
        sure = {lost for lost in suspects if lost.kind != "gone"}
        for part, some in sorted(gone.items()):
            held = self._reads.over_cap(part, len(some), self._size, None)
            if held is None and part not in self._entity.rules.readable and self._reads.needs_count(part):
                held = await self._reads.incomplete(part, len(self._keys[part]), len(some))
            if held is not None:
                self._held = held
                continue
            absent, other = await self._gone(part, some)
            sure |= other
            held = self._reads.outage(part, len(self._keys[part]), len(absent), self._size, None)
            if held is not None:
                self._held = held
            else:
                sure |= absent
        return sure

    async def _gone(self, part: str, some: Sequence[Lost]) -> tuple[set[Lost], set[Lost]]:
        """Those that their source does not have, and those that it has after all, and has changed."""
        if part not in self._entity.rules.readable:
            return set(some), set()
        reads = await asyncio.gather(*(self._entity.sources[part].read(lost.key) for lost in some))
        absent = {lost for lost, read in zip(some, reads, strict=True) if read is None}
        changed = set()
        for read in self._reads.usable([read for read in reads if read is not None], part):
            there = self._archive[part, read.key]
            kind = compared_kind(read, there.version, bytes(there.content_hash), is_whole=True)
            if kind is not None:
                self._rows[part, read.key] = read
                changed.add(Lost(part, read.key, kind, read.version))
        return absent, changed

    # What is done about it --------------------------------------------------------------------------------------------

    def _conclude(self, connection: Connection) -> None:
        found = self.result.lost
        known = {"entity": self._entity.name, "group": self._group}
        new = run(connection, queries.INSERT_LOST_CHANGES, **known, **_columns(found))
        run(connection, queries.DELETE_LOST_CHANGES, **known, **_columns([*found, *self._on_the_way]))
        run(connection, queries.ADD_LOST_CHANGES, entity=self._entity.name, source=[row.part for row in new])
        self.result.new = len(new)
        if self._repair == "auto":
            self.result.repaired = record_in(connection, self._events()).accepted
        self._tell(connection, new)
        run(
            connection,
            queries.INSERT_SOURCE_CHECK,
            **known,
            again=self.result.repaired > 0,
            checked_to=self._checked_to,
        )
        still = run(connection, queries.COUNT_OPEN_LOST_CHANGES, **known)[0].n
        if found or still:
            earlier = f"{still} found earlier are not known to be made up for yet" if not found else None
            self.result.verdict, self.result.reason = "lost", self._held or earlier
        elif self._held is not None:
            self._not_checked(self._held)
        _before_commit()

    def _events(self) -> list[ChangeEvent]:
        """What makes up for them. Where a part can be read by key, the event has it read again.

        What an unreadable source no longer lists is left to a full sync, which proves its listing complete.
        """
        readable = self._entity.rules.readable
        return [
            self._event(lost, self._rows.get((lost.part, lost.key)))
            for lost in self.result.lost
            if (lost.kind != "gone" or lost.part in readable) and self._key in (None, lost.key)
        ]

    def _event(self, lost: Lost, row: PartRead | None) -> ChangeEvent:
        """A finding may be made again: its id stands for it only while its event is active."""
        told = row if lost.part not in self._entity.rules.readable else None
        deleted = lost.kind == "gone" or (told is not None and told.deleted)
        makes = lost.part == self._owner
        return ChangeEvent(
            lost.part,
            f"audit/{self._entity.name}/{lost.key}/{lost.kind}/{lost.version}",
            self._entity.name,
            lost.key,
            "delete" if deleted else "create" if makes else "update",
            lost.version,
            None if told is None or deleted else told.data,
            self._group,
            "audit",
            read_sequence=self._number if told is not None or deleted else 0,
            content_id=True,
        )

    def _tell(self, connection: Connection, new: Sequence[Any]) -> None:
        name = self._entity.name
        alerts.decide_alone(connection, "lost_notifications", name)  # groups are checked beside each other
        older = {(lost.part, lost.key) for lost in self.result.lost if lost.kind == "older"}
        for part in sorted({row.part for row in new}):
            keys = [row.key for row in new if row.part == part]
            alerts.tell_of_records(
                connection,
                "lost_notifications",
                f"{name} {part}",
                f"{name}: notifications of '{part}' never came",
                name,
                [key for key in keys if (part, key) not in older],
            )
            alerts.tell_of_records(
                connection,
                "source_behind",
                f"{name} {part}: older",
                f"{name}: '{part}' shows records at an older version than the archive",
                name,
                [key for key in keys if (part, key) in older],
            )
        still = {row.part for row in run(connection, queries.LIST_PARTS_WITH_LOST_CHANGES, entity=name)}
        for part in sorted(self._entity.sources.keys() - still):
            alerts.resolve(connection, "lost_notifications", f"{name} {part}")
            alerts.resolve(connection, "source_behind", f"{name} {part}: older")
        place = f"{name} {self._group}: sources"
        if self._held is None:
            alerts.resolve(connection, "delete_cap", place)
        else:
            alerts.tell(connection, "delete_cap", place, f"{name} {self._group}: {self._held}", entity=name)


def compared_kind(row: PartRead, version: int, content_hash: bytes, *, is_whole: bool) -> Kind | None:
    """How a part at its source differs from the archived one; None where it does not, as far as it was compared.

    A record that the source has and that is a tombstone here is missing, whatever the versions (rule 21).

    Args:
        row: The part as the source shows it.
        version: The archived version.
        content_hash: The digest of the archived content, TOMBSTONE_HASH for a deletion.
        is_whole: Whether the row holds the content; otherwise only its version counts.
    """
    if content_hash == TOMBSTONE_HASH and row.deleted:
        return None
    if row.version > version:
        return "newer"
    if content_hash == TOMBSTONE_HASH:
        return "missing"
    if is_whole and (TOMBSTONE_HASH if row.deleted else digest(row.data)) == content_hash:
        return None
    if row.version < version:
        return "older"
    return "different" if is_whole else None


def _columns(found: Sequence[Lost]) -> dict[str, Any]:
    return {
        "part": [lost.part for lost in found],
        "key": [lost.key for lost in found],
        "kind": [lost.kind for lost in found],
        "version": [lost.version for lost in found],
    }

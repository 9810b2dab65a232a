"""Compares the sources of a business group with the archive: which changes seem lost, and which of them are proven."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.archived_parts import (
    ArchivedPart,
    compare_content,
    compare_part,
    digest_of_read,
    read_archived_parts,
)
from sync_orchestrator.core.validation.listed_parts import ListedParts
from sync_orchestrator.core.validation.lost_changes import LostChange, PartPlace


@dataclass(frozen=True, slots=True)
class ArchiveComparison:
    """What differs between the sources and the archive at one moment.

    ``suspects`` are without what has a change event ``on_the_way``. ``contents``: how many parts were compared by their
    contents. ``group_size``: how many records the archive has of the group.
    """

    archived: Mapping[PartPlace, ArchivedPart]
    suspects: Collection[LostChange]
    on_the_way: Collection[LostChange]
    contents: int
    group_size: int


@dataclass(frozen=True, slots=True)
class ProvenLoss:
    """The changes that are lost, and why others that look gone are not taken for deleted."""

    lost: Collection[LostChange]
    held: str | None


def compare_with_archive(
    connection: Connection, entity: EntityContext, group: str, listed: ListedParts
) -> ArchiveComparison:
    """Compares what the sources listed with what the archive has now."""
    archived = read_archived_parts(
        connection, entity.name, group, keys={key for _, key in listed.rows}, since=listed.since
    )
    found = {
        lost
        for (part, key), row in listed.rows.items()
        if (lost := _compare_row(entity, listed, archived, part, key, row)) is not None
    }
    found |= {
        LostChange(there.part, there.key, "gone", there.version)
        for there in archived.values()
        if _seems_deleted(entity, listed, there)
    }
    on_the_way = _with_active_events(connection, entity.name, found)
    owner = entity.rules.owner
    return ArchiveComparison(
        archived=archived,
        suspects=found - on_the_way,
        on_the_way=on_the_way,
        contents=sum(1 for place in listed.whole if place in archived),
        group_size=sum(
            1 for there in archived.values() if there.part == owner and there.is_of_group and not there.deleted
        ),
    )


def _compare_row(
    entity: EntityContext,
    listed: ListedParts,
    archived: Mapping[PartPlace, ArchivedPart],
    part: str,
    key: str,
    row: PartRead,
) -> LostChange | None:
    there = archived.get((part, key))
    if there is None:
        owner = archived.get((entity.rules.owner, key))
        # The owner's part is what is missing of an orphan.
        is_orphan = part != entity.rules.owner and (owner is None or owner.deleted)
        return None if row.deleted or is_orphan else LostChange(part, key, "missing", row.version)
    if there.epoch != listed.reads.epoch_of(part):
        return None  # its source was restored: a full sync takes over what it holds
    if (digest := listed.digests.get((part, key))) is not None:
        kind = None if there.has_moved else compare_content(digest, there.content_hash)
        return None if kind is None else LostChange(part, key, kind, there.version)
    kind = compare_part(row, there.version, there.content_hash, is_whole=(part, key) in listed.whole)
    if kind is None or (there.has_moved and kind != "newer"):
        return None
    return LostChange(part, key, kind, row.version)


def _seems_deleted(entity: EntityContext, listed: ListedParts, there: ArchivedPart) -> bool:
    return (
        there.is_of_group
        and not there.deleted
        and not there.has_moved
        and there.part in entity.sources
        and there.key not in listed.keys[there.part]
        and (there.part == entity.rules.owner or there.key in listed.keys[entity.rules.owner])
    )


def _with_active_events(connection: Connection, entity: str, found: Collection[LostChange]) -> set[LostChange]:
    rows = run(
        connection,
        queries.SELECT_KEYS_WITH_ACTIVE_EVENTS,
        entity=entity,
        keys=sorted({lost.key for lost in found}),
    )
    active = {(row.source, row.key) for row in rows}
    return {lost for lost in found if lost.place in active}


async def prove_loss(
    entity: EntityContext, listed: ListedParts, comparison: ArchiveComparison, suspects: Collection[LostChange]
) -> ProvenLoss:
    """Confirms suspects. What looks gone is so only if proven, and only as much as may be deleted at once (rule 14).

    Adds what it reads to ``listed``. Raises CallFailed.
    """
    gone: dict[str, list[LostChange]] = defaultdict(list)
    for lost in suspects:
        if lost.kind == "gone":
            gone[lost.part].append(lost)
    proven = {lost for lost in suspects if lost.kind != "gone"}
    held: str | None = None
    for part, some in sorted(gone.items()):
        present, absent, why = await _prove_gone(entity, listed, comparison, part, some)
        proven |= present
        if why is None:
            proven |= absent
        else:
            held = why
    return ProvenLoss(proven, held)


async def _prove_gone(
    entity: EntityContext,
    listed: ListedParts,
    comparison: ArchiveComparison,
    part: str,
    some: Sequence[LostChange],
) -> tuple[set[LostChange], set[LostChange], str | None]:
    """Returns what the source has after all and has changed, what it does not have, and why the latter is held back."""
    reads, size, count = listed.reads, comparison.group_size, len(listed.keys[part])
    held = reads.over_cap(part, len(some), size, None)
    if held is None and part not in entity.rules.readable and reads.needs_count(part):
        held = await reads.incomplete_reason(part, count, len(some))
    if held is not None:
        return set(), set(), held
    if part not in entity.rules.readable:
        present, absent = set[LostChange](), set(some)
    else:
        present, absent = await _read_gone(entity, listed, comparison, part, some)
    return present, absent, reads.outage_reason(part, count, len(absent), size, None)


async def _read_gone(
    entity: EntityContext,
    listed: ListedParts,
    comparison: ArchiveComparison,
    part: str,
    some: Sequence[LostChange],
) -> tuple[set[LostChange], set[LostChange]]:
    """Reads by key what looks gone. Returns what the source has and has changed, and what it does not have."""
    rows = await asyncio.gather(*(entity.sources[part].read(lost.key) for lost in some))
    absent = {lost for lost, row in zip(some, rows, strict=True) if row is None}
    present = set()
    for row in listed.reads.select_usable([row for row in rows if row is not None], part):
        there = comparison.archived[part, row.key]
        is_numbered = part in entity.rules.numbered
        kind = (
            compare_content(digest_of_read(row), there.content_hash)
            if is_numbered
            else compare_part(row, there.version, there.content_hash, is_whole=True)
        )
        if kind is not None:
            listed.add_read(part, [row])
            present.add(LostChange(part, row.key, kind, there.version if is_numbered else row.version))
    return present, absent

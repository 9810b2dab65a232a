"""Compares what the third party lists of a business group with what it has acknowledged.

Rows that are the same on both sides are left out at once; only the others are compared closely. The result are
suspects: ``confirmation.py`` looks at each of them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import run, stream_rows
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.compare import (
    Suspect,
    find_misplaced,
    find_suspects,
    find_unmanaged,
    leave_extra,
)
from sync_orchestrator.core.validation.spill import ListedRow, Slices, pair_slices


@dataclass(slots=True)
class GroupDiff:
    """The suspects of a group, and its counts.

    ``listed``: records there. ``expected``: records that should be there, without the ``ambiguous``, which are not
    judged. ``of_other_groups``: listed records that belong to other business groups here.
    """

    listed: int = 0
    expected: int = 0
    ambiguous: int = 0
    of_other_groups: int = 0
    suspects: list[Suspect] = field(default_factory=list)


async def diff_group(context: Context, entity: EntityContext, group: str, since: datetime) -> GroupDiff:
    """Lists the group and compares; ``since``: the database's time before. Raises CallFailed."""
    theirs = Slices()
    try:
        async for page in entity.third_party.pages(group):
            theirs.add([(found.key, found.external_id, entity.digest_of_found(found, group)) for found in page])
        return await asyncio.to_thread(_compare_archive, context, entity, group, since, theirs)
    finally:
        theirs.close()


def _compare_archive(context: Context, entity: EntityContext, group: str, since: datetime, theirs: Slices) -> GroupDiff:
    """One look at the archive, at one moment."""
    known = {"entity": entity.name, "group": group, "since": since, "lag": entity.system.search_lag}
    engine = context.engine.execution_options(isolation_level="REPEATABLE READ")
    ours = Slices()
    try:
        with engine.begin() as connection:
            found = GroupDiff(theirs.size)
            for rows in stream_rows(connection, queries.SELECT_EXPECTED, **known):
                ours.add(rows)
                found.ambiguous += sum(1 for row in rows if row[2] is None)
            found.expected = ours.size - found.ambiguous
            for unlike, keys in _unlike_rows(ours, theirs):
                found.suspects += _find_suspects(connection, entity, known, unlike, keys, found)
        return found
    finally:
        ours.close()


def _unlike_rows(ours: Slices, theirs: Slices) -> Iterator[tuple[list[ListedRow], Collection[str]]]:
    """Yields by slice the keys of which one side has a row that the other one lacks, with their listed rows."""
    for mine, there in pair_slices(ours, theirs):
        keys = {row[0] for row in set(mine).symmetric_difference(there)}
        if keys:
            yield [row for row in there if row[0] in keys], [key for key in keys if key is not None]


def _find_suspects(
    connection: Connection,
    entity: EntityContext,
    known: dict[str, object],
    there: list[ListedRow],
    keys: Collection[str],
    counts: GroupDiff,
) -> list[Suspect]:
    rows = run(connection, queries.SELECT_OURS, **known, keys=sorted(keys))
    found, unknown = find_suspects(rows, there)
    elsewhere = run(connection, queries.SELECT_ELSEWHERE, **{**known, "keys": sorted(unknown)})
    alive = {row.key for row in elsewhere if not row.deleted}
    counts.of_other_groups += sum(1 for key, _, _ in there if key in alive)
    capabilities = entity.third_party.capabilities
    found += find_misplaced(
        there,
        elsewhere,
        group_in_address=capabilities.group_in_address,
        group_is_known=capabilities.lists_by_group or capabilities.shows_group,
    )
    found += find_unmanaged(there, unknown - {row.key for row in elsewhere})
    return found if capabilities.can_delete else leave_extra(found)

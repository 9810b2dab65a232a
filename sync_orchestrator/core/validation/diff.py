"""What the third party lists of a business group, held against what it has acknowledged.

Rows that are the same on both sides are left out at once; only the others are looked at closely. Nothing here is
believed yet: a suspect is looked at again (``validation.py``). Not here: what is wrong with a row (``compare.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import run, streamed
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.compare import Suspect, misplaced, suspects, unmanaged
from sync_orchestrator.core.validation.spill import Row, Slices, pairs


@dataclass(slots=True)
class GroupDiff:
    """``listed``: records there; ``expected``: records that should be, without the ``ambiguous``, which are left out
    of judgement; ``of_other_groups``: listed records that belong to other business groups here."""

    listed: int = 0
    expected: int = 0
    ambiguous: int = 0
    of_other_groups: int = 0
    suspects: list[Suspect] = field(default_factory=list)


async def diff(context: Context, entity: EntityContext, group: str, since: datetime) -> GroupDiff:
    """Lists the group and compares; ``since``: the database's time before. Raises CallFailed."""
    theirs = Slices()
    try:
        async for page in entity.third_party.pages(group):
            theirs.add([(found.key, found.external_id, entity.digest_of_found(found, group)) for found in page])
        return await asyncio.to_thread(_against, context, entity, group, since, theirs)
    finally:
        theirs.close()


def _against(context: Context, entity: EntityContext, group: str, since: datetime, theirs: Slices) -> GroupDiff:
    """One look at the archive, at one moment."""
    known = {"entity": entity.name, "group": group, "since": since, "lag": entity.system.search_lag}
    engine = context.engine.execution_options(isolation_level="REPEATABLE READ")
    ours = Slices()
    try:
        with engine.begin() as connection:
            found = GroupDiff(theirs.size)
            for rows in streamed(connection, queries.SELECT_EXPECTED, **known):
                ours.add(rows)
                found.ambiguous += sum(1 for row in rows if row[2] is None)
            found.expected = ours.size - found.ambiguous
            for unlike, keys in _unlike(ours, theirs):
                found.suspects += _suspects(connection, entity, known, unlike, keys, found)
        return found
    finally:
        ours.close()


def _unlike(ours: Slices, theirs: Slices) -> Iterator[tuple[list[Row], Collection[str]]]:
    """Slice by slice the keys of which one side has a row that the other has not, with all of their rows of these."""
    for mine, there in pairs(ours, theirs):
        keys = {row[0] for row in set(mine).symmetric_difference(there)}
        if keys:
            yield [row for row in there if row[0] in keys], [key for key in keys if key is not None]


def _suspects(
    connection: Connection,
    entity: EntityContext,
    known: dict[str, Any],
    there: list[Row],
    keys: Collection[str],
    counts: GroupDiff,
) -> list[Suspect]:
    rows = run(connection, queries.SELECT_OURS, **known, keys=sorted(keys))
    found, unknown = suspects(rows, there)
    elsewhere = run(connection, queries.SELECT_ELSEWHERE, **{**known, "keys": sorted(unknown)})
    alive = {row.key for row in elsewhere if not row.deleted}
    counts.of_other_groups += sum(1 for key, _, _ in there if key in alive)
    capabilities = entity.third_party.capabilities
    found += misplaced(
        there,
        elsewhere,
        group_in_address=capabilities.group_in_address,
        group_is_known=capabilities.lists_by_group or capabilities.shows_group,
    )
    return found + unmanaged(there, unknown - {row.key for row in elsewhere})

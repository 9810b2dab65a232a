"""The business groups of each entity that are known, and how many records they have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.groups import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row

    from sync_orchestrator.core.context import Context, EntityContext


@dataclass(frozen=True, slots=True)
class GroupCounts:
    """How many business groups of an entity are known, and how many of them have completed a full sync."""

    known: int
    synced: int

    @classmethod
    def from_row(cls, row: Row[Any]) -> GroupCounts:
        """Makes the counts of one entity from a row of the database."""
        return cls(known=row.groups, synced=row.synced)


def add_groups(connection: Connection, entity: str, groups: Iterable[str]) -> None:
    """Registers business groups of an entity. Groups that are known already stay as they are."""
    if new := sorted(set(groups)):
        run(connection, queries.ADD_GROUPS, entity=entity, groups=new)


def known_groups(connection: Connection, entity: str) -> list[str]:
    """The business groups of an entity that have been seen so far, sorted."""
    return [row.group_key for row in run(connection, queries.LIST_GROUPS, entity=entity)]


async def discover_groups(context: Context, entity: EntityContext) -> list[str]:
    """Requests the business groups from the owner, registers them, and returns all that are known now, sorted."""
    shown = await entity.owner.groups()

    def register_shown(connection: Connection) -> list[str]:
        add_groups(connection, entity.name, shown or ())
        return known_groups(connection, entity.name)

    return await asyncio.to_thread(in_transaction, context.engine, register_shown)


def count_group_records(connection: Connection, entity: str, group: str) -> int:
    """Counts the records of a business group in the archive, without deleted ones."""
    return int(run(connection, queries.COUNT_GROUP_RECORDS, entity=entity, group=group)[0][0])


def count_groups(connection: Connection) -> dict[str, GroupCounts]:
    """Counts the business groups of each entity that has any."""
    return {row.entity: GroupCounts.from_row(row) for row in run(connection, queries.COUNT_GROUPS)}


def mark_groups_unproven(connection: Connection, entities: Sequence[str], reason: str) -> None:
    """Marks all known business groups of entities: changes of a source are missing, and nobody knows which.

    They are not validated until a full sync that begins from now on has completed.

    Args:
        connection: A connection within a transaction.
        entities: The entities.
        reason: What is missing, for operators.
    """
    if entities:
        run(connection, queries.MARK_GROUPS_UNPROVEN, entities=list(entities), reason=reason)

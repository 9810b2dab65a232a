"""The one set of partitions: the business groups of all entities."""

from __future__ import annotations

import dagster as dg

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.groups.registry import known_groups

business_group = dg.DynamicPartitionsDefinition(name="business_group")

_MOST_AT_ONCE = 25_000
"""So many partitions can be added in one tick of a sensor."""


def groups_of(context: Context, entity: str) -> set[str]:
    """The groups an entity has; a partition that it lacks belongs to another entity."""
    with context.engine.begin() as connection:
        return set(known_groups(connection, entity))


def groups_of_all(context: Context) -> set[str]:
    """The groups of all entities."""
    return set().union(*(groups_of(context, entity) for entity in context.entities))


def is_group_of_any(context: Context, group: str) -> bool:
    """Whether any entity has the group, or had it before ``sync.yaml`` changed; a partition added by hand has none."""
    with context.engine.begin() as connection:
        return bool(
            run(
                connection, "SELECT EXISTS (SELECT FROM sync.groups WHERE group_key = %(group)s) AS known", group=group
            )[0].known
        )


def missing_partitions(context: Context, instance: dg.DagsterInstance) -> list[str]:
    """Business groups that Dagster does not know yet and can know."""
    known = set(instance.get_dynamic_partitions(str(business_group.name)))
    groups = groups_of_all(context) - known
    return sorted(group for group in groups if _can_be_partition(group))[:_MOST_AT_ONCE]


def unnameable_groups(context: Context) -> dict[str, list[str]]:
    """By entity, the business groups whose names Dagster refuses."""
    found = {
        entity: sorted(group for group in groups_of(context, entity) if not _can_be_partition(group))
        for entity in context.entities
    }
    return {entity: groups for entity, groups in found.items() if groups}


def _can_be_partition(group: str) -> bool:
    """Dagster refuses some names; one such group must not keep the others out."""
    return "..." not in group and group.isprintable()

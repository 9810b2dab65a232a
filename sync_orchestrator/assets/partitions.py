"""The partitions: one set of business groups for each entity, so that no entity shows the groups of another."""

from __future__ import annotations

from functools import cache

import dagster as dg

from sync_orchestrator.core.context import Context
from sync_orchestrator.core.groups.registry import known_groups

MAX_ADDED_PARTITIONS = 25_000
"""Dagster adds at most this number of partitions in one tick of a sensor."""


@cache
def business_groups_of(entity: str) -> dg.DynamicPartitionsDefinition:
    """The partitions of an entity's archive, mirror and checks.

    The name is that of the entity and of its kind: dynamic partitions have one namespace in an instance of Dagster,
    which other projects may share.
    """
    return dg.DynamicPartitionsDefinition(name=f"{entity}_business_group")


def groups_of(context: Context, entity: str) -> set[str]:
    """The business groups of an entity."""
    with context.engine.begin() as connection:
        return set(known_groups(connection, entity))


def new_partition_requests(context: Context, instance: dg.DagsterInstance) -> list[dg.AddDynamicPartitionsRequest]:
    """Requests that add the business groups that Dagster does not know yet and can know, at most a tick's worth."""
    requests, left = [], MAX_ADDED_PARTITIONS
    for entity in context.entities:
        partitions = business_groups_of(entity)
        known = set(instance.get_dynamic_partitions(str(partitions.name)))
        missing = sorted(group for group in groups_of(context, entity) - known if _can_be_partition(group))[:left]
        left -= len(missing)
        if missing:
            requests.append(partitions.build_add_request(missing))
    return requests


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

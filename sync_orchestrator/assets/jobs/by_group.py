"""Work on business groups in one run: what it was asked for, and the work, a few groups at once.

The work itself, and what is reported of it, is in ``mirror_checks.py``, ``archive_checks.py``, ``repair.py`` and
``plan.py``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import dagster as dg

from sync_orchestrator.assets.options import ALL_ENTITIES
from sync_orchestrator.assets.partitions import groups_of
from sync_orchestrator.core.groups.concurrency import GROUPS_COMPARED_AT_ONCE
from sync_orchestrator.resources.system import SystemResource
from sync_orchestrator.texts.nearest_names import unknown_name

T = TypeVar("T")

Context = dg.OpExecutionContext | dg.AssetCheckExecutionContext

IN_ONE_RUN: dict[str, Any] = {"executor_def": dg.in_process_executor, "run_tags": {"dagster/max_retries": "0"}}
"""The settings of a job that is one process, and is not run again by itself where it failed."""


def requested_entities(system: SystemResource, entity: str) -> list[str]:
    """The entity that an operator chose, or all. Raises Failure for one that does not exist."""
    known = list(system.context.entities)
    if entity != ALL_ENTITIES and entity not in known:
        raise dg.Failure(unknown_name(f"entity '{entity}'", entity, known), allow_retries=False)
    return known if entity == ALL_ENTITIES else [entity]


def named_groups(system: SystemResource, entities: Sequence[str], groups: Sequence[str]) -> dict[str, list[str]]:
    """The business groups that an operator named, by the entities that have them.

    Raises Failure for a group that none of these entities has, with the names that may have been meant.
    """
    own = {name: groups_of(system.context, name) for name in entities}
    known = set().union(*own.values())
    if unknown := [group for group in dict.fromkeys(groups) if group not in known]:
        raise unknown_groups(entities, unknown, known)
    return {name: sorted(of_entity.intersection(groups)) for name, of_entity in own.items()}


def unknown_groups(entities: Sequence[str], groups: Sequence[str], known: set[str]) -> dg.Failure:
    """The failure of a run over business groups that do not exist."""
    of = ", ".join(entities)
    return dg.Failure(
        "; ".join(unknown_name(f"business group '{group}' of {of}", group, known) for group in groups),
        allow_retries=False,
    )


def requested_groups(context: dg.AssetCheckExecutionContext, system: SystemResource, name: str) -> list[str]:
    """The groups of an entity that a check was launched over; all of its groups where no partitions were named.

    Raises Failure for a partition that is no business group of the entity: an operator added it by hand.
    """
    own = groups_of(system.context, name)
    if not (context.has_partition_key or context.has_partition_key_range):
        return sorted(own)
    if unknown := [group for group in context.partition_keys if group not in own]:
        raise unknown_groups([name], unknown, own)
    return sorted(own.intersection(context.partition_keys))


def by_group(
    context: Context,
    system: SystemResource,
    name: str,
    groups: Sequence[str],
    work: Callable[[str], Awaitable[T]],
    what: str,
) -> Iterator[tuple[str, T]]:
    """The groups with their results, as they end; one that breaks keeps no other from its turn, but fails the run.

    ``what``: what could not be done with it, such as "validated".
    """

    broken: list[str] = []
    for group, result in system.perform_each(groups, work, GROUPS_COMPARED_AT_ONCE):
        if isinstance(result, Exception):
            context.log.error(f"{name} {group}: {result!r}")
            broken.append(f"{group}: {type(result).__name__}: {result}")
        else:
            yield group, result
    if broken:
        raise dg.Failure(
            f"{len(broken)} of {len(groups)} business groups of {name} could not be {what}: " + "; ".join(broken),
            allow_retries=False,
        )

"""Work on business groups in one run: what it was asked for, and the work, a few groups at once.

Not here: the work itself, and what is reported of it (``checks.py``, ``source_checks.py``, ``repair.py``, ``plan.py``).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar, cast, get_args

import dagster as dg

from sync_orchestrator.assets.partitions import groups_of
from sync_orchestrator.config.entities import Repair
from sync_orchestrator.resources.system import System

T = TypeVar("T")

Context = dg.OpExecutionContext | dg.AssetCheckExecutionContext

GROUPS_AT_ONCE = 4

IN_ONE_RUN: dict[str, Any] = {"executor_def": dg.in_process_executor, "run_tags": {"dagster/max_retries": "0"}}
"""The settings of a job that is one process, and is not run again by itself where it failed."""


def asked_entities(system: System, entity: str) -> list[str]:
    """The entity that a person named, or all. Raises Failure for one that there is not."""
    known = list(system.context.entities)
    if entity and entity not in known:
        raise dg.Failure(f"there is no entity '{entity}'; there is {', '.join(known)}", allow_retries=False)
    return [entity] if entity else known


def asked_repair(repair: str) -> Repair | None:
    """What a person wants done about drift; None for what is configured. Raises Failure for anything else."""
    if repair and repair not in get_args(Repair):
        raise dg.Failure("repair must be auto, ask or off", allow_retries=False)
    return cast(Repair, repair) if repair else None


def asked_groups(context: dg.AssetCheckExecutionContext, system: System, name: str) -> list[str]:
    """The groups of an entity that a check was launched over; all of its groups where no partitions were named."""
    own = groups_of(system.context, name)
    named = context.has_partition_key or context.has_partition_key_range
    return sorted(own.intersection(context.partition_keys) if named else own)


def by_group(
    context: Context, system: System, name: str, groups: Sequence[str], work: Callable[[str], Awaitable[T]], what: str
) -> Iterator[tuple[str, T]]:
    """The groups with their results, as they end; one that breaks keeps no other from its turn, but fails the run.

    ``what``: what could not be done with it, such as "validated".
    """

    broken: list[str] = []
    for group, result in system.perform_each(groups, work, GROUPS_AT_ONCE):
        if isinstance(result, Exception):
            context.log.error(f"{name} {group}: {result!r}")
            broken.append(f"{group}: {type(result).__name__}: {result}")
        else:
            yield group, result
    if broken:
        raise dg.Failure(f"{len(broken)} of {len(groups)} business groups of {name} could not be {what}: "
                         + "; ".join(broken), allow_retries=False)

"""The job that shows what full syncs would do, as tables in its run's metadata; it writes nothing anywhere.

Thin: a plan is made by ``core/full_sync/plan.py``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.jobs.by_group import IN_ONE_RUN, requested_entities, unknown_groups
from sync_orchestrator.assets.options import (
    ALL_ENTITIES,
    ALLOW_DELETIONS,
    ENTITY,
    GROUPS,
    all_defaults,
    entity_choices,
    op_with,
    with_choices,
)
from sync_orchestrator.assets.partitions import groups_of
from sync_orchestrator.assets.tables import shown_table
from sync_orchestrator.config import Config
from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.full_sync.plan import GroupPlan, groups_to_plan, plan_group, ungrouped_notes
from sync_orchestrator.core.full_sync.plan_tables import counts_table, list_notes, samples_table
from sync_orchestrator.errors import SyncError
from sync_orchestrator.resources.job_names import PLAN
from sync_orchestrator.resources.system import SystemResource

_MAX_SAMPLES = 200


class PlanOptions(dg.Config):
    """What an operator may set when launching a plan; by default every group of every entity."""

    entity: str = Field(default=ALL_ENTITIES, description=ENTITY)
    groups: list[str] = Field(default=[], description=GROUPS)
    allow_deletions: int | None = Field(default=None, description=f"{ALLOW_DELETIONS} As for the full sync.")


def plan_full_sync(
    context: dg.OpExecutionContext, config: PlanOptions, system: SystemResource
) -> Iterator[dg.Output[None]]:
    """Plans group after group; one that cannot be planned keeps no other from its turn, but fails the run."""
    entities = requested_entities(system, config.entity)
    metadata: dict[str, Any] = {}
    failed: list[str] = []
    by_entity = _select_groups(config, system, entities, failed)
    for name in entities:
        plans = list(_plan_groups(context, config, system, system.get_entity(name), by_entity[name], failed))
        if plans:
            metadata[f"{name}: counts"] = shown_table(counts_table(plans))
            metadata[f"{name}: samples"] = shown_table(samples_table(plans, _MAX_SAMPLES))
            if told := [*list_notes(plans), *system.perform(ungrouped_notes(system.get_entity(name)))]:
                metadata[f"{name}: notes"] = dg.MetadataValue.md("\n".join(f"- {note}" for note in told))
    if failed:
        raise dg.Failure(
            f"{len(failed)} business groups could not be planned: " + "; ".join(failed),
            metadata=metadata,
            allow_retries=False,
        )
    yield dg.Output(None, metadata=metadata)


def _select_groups(
    config: PlanOptions, system: SystemResource, entities: Sequence[str], failed: list[str]
) -> dict[str, list[str]]:
    """The groups to plan, by entity: those named, which a source may have before the archive has them, or all.

    Raises Failure for a name that neither has.
    """
    known = {name: groups_of(system.context, name) for name in entities}
    if not config.groups or not set().union(*known.values()).issuperset(config.groups):
        for name in entities:
            try:
                known[name] = set(system.perform(groups_to_plan(system.context, system.get_entity(name))))
            except SyncError as error:
                failed.append(f"{name}: {error}")
                known[name] = known[name] if config.groups else set()
    everywhere = set().union(*known.values())
    if not failed and (unknown := [group for group in config.groups if group not in everywhere]):
        raise unknown_groups(entities, unknown, everywhere)
    return {
        name: sorted(groups.intersection(config.groups) if config.groups else groups) for name, groups in known.items()
    }


def _plan_groups(
    context: dg.OpExecutionContext,
    config: PlanOptions,
    system: SystemResource,
    entity: EntityContext,
    groups: Sequence[str],
    failed: list[str],
) -> Iterator[GroupPlan]:
    for number, group in enumerate(groups, 1):
        try:
            made = system.perform(plan_group(system.context, entity, group, allow_deletions=config.allow_deletions))
        except SyncError as error:
            failed.append(f"{entity.name} {group}: {error}")
            context.log.error(failed[-1])
            continue
        counts = ", ".join(f"{count} {name}" for name, count in made.counts.items()) or "nothing"
        context.log.info(f"{number} of {len(groups)}: {entity.name} {group}: {counts}")
        yield made


def plan_job(config: Config) -> dg.JobDefinition:
    """The job that plans full syncs."""
    options = with_choices(PlanOptions, entity=entity_choices(config))
    plan_op = op_with(plan_full_sync, options)

    @dg.job(
        name=PLAN,
        **IN_ONE_RUN,
        config=all_defaults(plan_op.name, options),
        description=("Shows what full syncs would do, of every business group or of those named. Nothing is written."),
    )
    def show_plan() -> None:
        plan_op()

    return show_plan

"""The job that shows what full syncs would do, as tables in its run's metadata; it writes nothing anywhere.

Thin: a plan is made by ``core/full_sync_plan.py``.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from sync_orchestrator.assets.by_group import IN_ONE_RUN, asked_entities
from sync_orchestrator.assets.canceling import cancelable
from sync_orchestrator.core.context import EntityContext
from sync_orchestrator.core.errors import SyncError
from sync_orchestrator.core.full_sync_plan import GroupPlan, groups_to_plan, plan_group, ungrouped_notes
from sync_orchestrator.plan_tables import Table, counts_table, notes, samples_table
from sync_orchestrator.resources.system import System

_MOST_SAMPLES = 200


class PlanOptions(dg.Config):
    """What a person may set when launching a plan; by default every group of every entity."""

    entity: str = ""
    """Only this entity."""
    groups: list[str] = []  # noqa: RUF012 (a field of a configuration, not a shared value)
    """Only these business groups."""
    allow_deletions: int = 0
    """Raises the cap of inferred deletions, as for the full sync."""


@dg.op(out=dg.Out(dg.Nothing))
@cancelable
def plan_full_sync(context: dg.OpExecutionContext, config: PlanOptions, system: System) -> Iterator[dg.Output[None]]:
    """Plans group after group; one that cannot be planned keeps no other from its turn, but fails the run."""
    entities = asked_entities(system, config.entity)
    metadata: dict[str, Any] = {}
    failed: list[str] = []
    for name in entities:
        plans = list(_plans(context, config, system, system.entity(name), failed))
        if plans:
            metadata[f"{name}: counts"] = _shown(counts_table(plans))
            metadata[f"{name}: samples"] = _shown(samples_table(plans, _MOST_SAMPLES))
            if told := [*notes(plans), *system.perform(ungrouped_notes(system.entity(name)))]:
                metadata[f"{name}: notes"] = dg.MetadataValue.md("\n".join(f"- {note}" for note in told))
    if failed:
        raise dg.Failure(f"{len(failed)} business groups could not be planned: " + "; ".join(failed), metadata=metadata,
                         allow_retries=False)
    yield dg.Output(None, metadata=metadata)


def _plans(context: dg.OpExecutionContext, config: PlanOptions, system: System, entity: EntityContext,
           failed: list[str]) -> Iterator[GroupPlan]:
    try:
        groups = config.groups or system.perform(groups_to_plan(system.context, entity))
    except SyncError as error:
        failed.append(f"{entity.name}: {error}")
        return
    for number, group in enumerate(groups, 1):
        try:
            made = system.perform(plan_group(system.context, entity, group,
                                             allow_deletions=config.allow_deletions or None))
        except SyncError as error:
            failed.append(f"{entity.name} {group}: {error}")
            context.log.error(failed[-1])
            continue
        counts = ", ".join(f"{count} {name}" for name, count in made.counts.items()) or "nothing"
        context.log.info(f"{number} of {len(groups)}: {entity.name} {group}: {counts}")
        yield made


def _shown(table: Table) -> dg.TableMetadataValue:
    columns, rows = table
    records = [dg.TableRecord({name: _plain(value) for name, value in zip(columns, row, strict=True)}) for row in rows]
    return dg.MetadataValue.table(records, schema=dg.TableSchema([dg.TableColumn(name) for name in columns]))


def _plain(value: Any) -> str | int | float:
    return value if isinstance(value, int | float | str) else "" if value is None else str(value)


@dg.job(name="plan", **IN_ONE_RUN,
        description="Shows what full syncs would do, of every business group or of those named. Nothing is written.")
def plan_job() -> None:
    plan_full_sync()

"""The job that repairs what was found in business groups and waits for an operator, and reports the result.

Thin: the repair is in ``core/operations/repair.py``.
"""

from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets import archive_checks, mirror_check_report, mirror_checks
from sync_orchestrator.assets.jobs.by_group import IN_ONE_RUN, by_group, named_groups, requested_entities
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
from sync_orchestrator.assets.tables import shown_table
from sync_orchestrator.config import Config
from sync_orchestrator.core.full_sync.plan_tables import Table
from sync_orchestrator.core.operations.repair import Repaired, groups_to_repair, repair
from sync_orchestrator.resources.instance.dagster_internals import report_events
from sync_orchestrator.resources.job_names import REPAIR
from sync_orchestrator.resources.system import SystemResource

_WORST_FIRST = {"drift": 0, "not_validated": 1, "in_sync": 2}


class RepairOptions(dg.Config):
    """What an operator may set when launching a repair; by default all groups that wait for one."""

    entity: str = Field(default=ALL_ENTITIES, description=ENTITY)
    groups: list[str] = Field(
        default=[],
        description=(
            f"{GROUPS} By default all groups in which drift or lost notifications were found and wait for an operator."
        ),
    )
    key: str | None = Field(default=None, description="Only the record with this key.")
    allow_deletions: int | None = Field(
        default=None,
        description=(f"{ALLOW_DELETIONS} It applies to records that are at the third party and should not be."),
    )


def repair_groups(
    context: dg.OpExecutionContext, config: RepairOptions, system: SystemResource
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Repairs drift and lost notifications of the groups, and reports the validation of each that follows."""
    entities = requested_entities(system, config.entity)
    groups = (
        named_groups(system, entities, config.groups)
        if config.groups
        else _find_waiting_groups(system, entities, config.key)
    )
    results: list[Repaired] = []
    for name in entities:
        for result in _repair_each_group(context, config, system, name, groups[name]):
            results.append(result)
            validation = result.validation
            if validation is not None:
                if validation.verdict != "not_validated":
                    report_events(context, [mirror_check_report.drift_observation(name, validation)])
                yield mirror_checks.group_evaluation(context, name, validation)
    yield dg.Output(None, metadata=_build_metadata(context, entities, config, results))


def _find_waiting_groups(system: SystemResource, entities: Sequence[str], key: str | None) -> dict[str, list[str]]:
    with system.context.engine.begin() as connection:
        return {name: groups_to_repair(connection, name, key) for name in entities}


def _repair_each_group(
    context: dg.OpExecutionContext, config: RepairOptions, system: SystemResource, name: str, groups: Sequence[str]
) -> Iterator[Repaired]:
    def repair_group(group: str) -> Awaitable[Repaired]:
        return repair(
            system.context,
            system.get_entity(name),
            group,
            key=config.key,
            allow_deletions=config.allow_deletions,
        )

    for group, result in by_group(context, system, name, groups, repair_group, "repaired"):
        context.log.info(f"{name} {group}: {summarize_repair(result)}")
        yield result


def summarize_repair(result: Repaired) -> str:
    """The result for one group, in one line."""
    nothing = not (result.sent or result.overtaken or result.held) and result.sources is None
    parts = ["nothing was found open" if nothing else f"{result.sent} sent to repair"]
    if result.overtaken:
        parts.append(f"{result.overtaken} changed since they were found")
    if result.held:
        parts.append(result.held)
    if result.sources is not None:
        parts.append(f"sources: {archive_checks.summarize_source_check(result.sources)}")
    if result.validation is not None:
        parts.append(mirror_check_report.summarize_validation(result.validation))
    return "; ".join(parts)


def _build_metadata(
    context: dg.OpExecutionContext, entities: Sequence[str], config: RepairOptions, results: Sequence[Repaired]
) -> dict[str, Any]:
    """The result of all groups: one line, the numbers, and a table with the worst group first."""
    sent = sum(result.sent for result in results)
    left, dead = sum(_drift_left(result) for result in results), sum(_count_dead(result) for result in results)
    if not results:
        of = f"record '{config.key}' of " if config.key else ""
        line = f"nothing was found open in {of}{', '.join(entities)}"
    else:
        line = (
            f"{sent} sent to repair in {len(results)} business groups; {left} differences and {dead} dead records "
            "are left"
        )
    context.log.info(line)
    metadata: dict[str, Any] = {"result": line, "sent": sent, "drift_left": left, "dead": dead}
    if results:
        metadata["groups"] = shown_table(_groups_table(results))
    return metadata


def _groups_table(results: Sequence[Repaired]) -> Table:
    def rank_result(result: Repaired) -> tuple[int, int, str, str]:
        return (
            _WORST_FIRST.get(_get_verdict(result), 1),
            -_drift_left(result) - _count_dead(result),
            result.entity,
            result.group,
        )

    rows = [
        [
            result.entity,
            result.group,
            result.sent,
            _get_verdict(result).replace("_", " "),
            _drift_left(result),
            _count_dead(result),
            len(result.sources.lost) if result.sources is not None else 0,
            summarize_repair(result),
        ]
        for result in sorted(results, key=rank_result)
    ]
    return ["entity", "group", "sent", "verdict", "drift left", "dead", "lost notifications", "result"], rows


def _get_verdict(result: Repaired) -> str:
    return "not_validated" if result.validation is None else result.validation.verdict


def _drift_left(result: Repaired) -> int:
    return 0 if result.validation is None else len(result.validation.drift)


def _count_dead(result: Repaired) -> int:
    return 0 if result.validation is None else result.validation.dead


def repair_job(config: Config) -> dg.JobDefinition:
    """The job by which an operator repairs."""
    options = with_choices(RepairOptions, entity=entity_choices(config))
    repair_op = op_with(repair_groups, options)

    @dg.job(
        name=REPAIR,
        **IN_ONE_RUN,
        config=all_defaults(repair_op.name, options),
        description=(
            "Repairs what was found and waits for an operator (`repair: ask`), in all business groups or in those "
            "named, then validates these groups again."
        ),
    )
    def repair_found() -> None:
        repair_op()

    return repair_found

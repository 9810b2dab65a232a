"""The job by which a person repairs what was found in a business group, and sees what came of it.

Thin: the repair is in ``core/repair.py``.
"""

from collections.abc import Awaitable, Iterator
from typing import Any

import dagster as dg

from sync_orchestrator.assets import checks, source_checks
from sync_orchestrator.assets.by_group import IN_ONE_RUN, asked_entities, by_group
from sync_orchestrator.assets.canceling import cancelable
from sync_orchestrator.assets.entity import mirror_key
from sync_orchestrator.assets.partitions import business_group, groups_of
from sync_orchestrator.assets.preview import evaluation, report
from sync_orchestrator.core.repair import Repaired, repair
from sync_orchestrator.resources.system import System


class RepairOptions(dg.Config):
    """What a person may set when launching a repair; by default all that was found in the group."""

    entity: str = ""
    """Only of this entity."""
    key: str = ""
    """Only this record."""
    allow_deletions: int = 0
    """Raises the cap for extra records, for this time."""


@dg.op(out=dg.Out(dg.Nothing))
@cancelable
def repair_group(
    context: dg.OpExecutionContext, config: RepairOptions, system: System
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Repairs the group's drift and lost notifications, and reports the validation that follows."""
    entities = asked_entities(system, config.entity)
    group = context.partition_key
    metadata: dict[str, Any] = {}
    for name in entities:
        if group not in groups_of(system.context, name):
            continue

        def work(group: str, name: str = name) -> Awaitable[Repaired]:
            return repair(system.context, system.entity(name), group, key=config.key or None,
                          allow_deletions=config.allow_deletions or None)

        for _, result in by_group(context, system, name, [group], work, "repaired"):
            context.log.info(f"{name} {group}: {summary(result)}")
            metadata |= {f"{name}: {what}": value for what, value in _metadata(result).items()}
            validation = result.validation
            if validation is not None and validation.verdict != "not_validated":
                report(context, [checks.drift_observation(name, validation)])
                yield evaluation(context, mirror_key(name), checks.CHECK, group,
                                 passed=validation.verdict == "in_step", description=checks.summary(validation),
                                 metadata=checks.metadata_of(validation))
    yield dg.Output(None, metadata=metadata)


def summary(result: Repaired) -> str:
    """What came of it, in one line."""
    told = [f"{result.sent} sent to repair"]
    if result.overtaken:
        told.append(f"{result.overtaken} changed since they were found")
    if result.held:
        told.append(result.held)
    if result.sources is not None:
        told.append(f"sources: {source_checks.summary(result.sources)}")
    if result.validation is not None:
        told.append(checks.summary(result.validation))
    return "; ".join(told)


def _metadata(result: Repaired) -> dict[str, Any]:
    metadata: dict[str, Any] = {"result": summary(result), "sent": result.sent, "overtaken": result.overtaken}
    if result.sources is not None:
        metadata["lost notifications"] = len(result.sources.lost)
    if result.validation is not None:
        metadata |= checks.metadata_of(result.validation)
    return metadata


@dg.job(name="repair", partitions_def=business_group, **IN_ONE_RUN,
        description="Repairs what was found in a business group and waits for a person (`repair: ask`), then validates "
                    "it again.")
def repair_job() -> None:
    repair_group()

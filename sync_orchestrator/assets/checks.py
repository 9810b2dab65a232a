"""The asset check of the mirror: count, then diff, for each business group; and the job that validates many at once.

The partitioned check stands as the declaration and can be launched by itself; the job's op evaluates it for every
group that is due, in one run. Everything here that Dagster calls preview is kept in ``preview.py``.
"""

from collections.abc import Iterator

import dagster as dg

from sync_orchestrator.assets.entity import mirror_key
from sync_orchestrator.assets.preview import evaluation, partitioned_check
from sync_orchestrator.core.validation import GroupValidation, groups_due, validate
from sync_orchestrator.resources.system import System

CHECK = "count_then_diff"
_MOST_SAMPLES = 50
_MOST_GROUPS = 500


class ValidateOptions(dg.Config):
    """What a person may set when launching a validation; by default every group that is due."""

    entity: str = ""
    group: str = ""
    full: bool = False
    repair: str = ""


def mirror_check(name: str) -> dg.AssetChecksDefinition:
    """The check of one entity's mirror."""

    def check(context: dg.AssetCheckExecutionContext, system: System) -> dg.AssetCheckResult:
        group = context.partition_key
        result = system.perform(validate(system.context, system.entity(name), group))
        return dg.AssetCheckResult(passed=result.verdict != "drift", severity=dg.AssetCheckSeverity.ERROR,
                                   metadata=metadata_of(result))

    return partitioned_check(check, mirror_key(name), CHECK,
                             "Counts a business group at the third party, and compares record by record where the "
                             "count does not fit or an audit is due.")


@dg.op
def validate_groups(context: dg.OpExecutionContext, config: ValidateOptions, system: System) -> Iterator[object]:
    """Validates the groups that are due, or those asked for, and reports each as an evaluation of the check."""
    for name, entity in system.context.entities.items():
        if config.entity not in ("", name):
            continue
        asked = config.group or context.run.tags.get("dagster/partition", "")
        groups = [asked] if asked else _due(system, name, entity.settings.validation.every)
        for number, group in enumerate(groups, start=1):
            result = system.perform(validate(
                system.context, entity, group, full=config.full, repair=config.repair or None))  # type: ignore[arg-type]
            context.log.info(f"{number} of {len(groups)}: {name} {group}: {result.verdict} {result.reason or ''}")
            yield evaluation(context, mirror_key(name), CHECK, group, passed=result.verdict != "drift",
                             metadata=metadata_of(result))
    yield dg.Output(None)


def _due(system: System, name: str, every: float) -> list[str]:
    with system.context.engine.begin() as connection:
        return groups_due(connection, name, every, _MOST_GROUPS)


def metadata_of(result: GroupValidation) -> dict[str, dg.MetadataValue | str | int]:
    """What people look at: the verdict, the counts, and a table of sampled differences."""
    metadata: dict[str, dg.MetadataValue | str | int] = {
        "verdict": result.verdict, "expected": result.expected, "in_flight": result.ambiguous,
        "drift": len(result.drift), "sent_to_repair": result.repaired, "foreign": result.foreign,
        "stubborn": result.stubborn,
    }
    if result.reason:
        metadata["reason"] = result.reason
    if result.counted is not None:
        metadata["counted"] = result.counted
    if result.compared is not None:
        metadata["compared"] = result.compared
    rows = [
        {"key": drift.key, "kind": drift.kind, "status": drift.status, "field": str(line["field"]),
         "ours": str(line["ours"]), "theirs": str(line["theirs"])}
        for drift in result.drift for line in drift.sample or [{"field": "", "ours": "", "theirs": ""}]
    ]
    if rows:
        metadata["differences"] = dg.MetadataValue.table(
            [dg.TableRecord(row) for row in rows[:_MOST_SAMPLES]],  # type: ignore[arg-type]
            schema=dg.TableSchema([dg.TableColumn(name) for name in rows[0]]))
    return metadata


@dg.job(name="validate", executor_def=dg.in_process_executor,
        description="Validates the business groups that are due, or one that is named.")
def validate_job() -> None:
    validate_groups()

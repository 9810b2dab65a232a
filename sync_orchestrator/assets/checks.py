"""The asset check of the mirror: count, then diff, for each business group; and the job that validates many at once.

The partitioned check stands as the declaration and works when it is launched by itself, over any groups; the job's op
evaluates it for every group that is due, in one run. A group that could not be validated gets no evaluation: its last
one stands, with its time. Not here: the validation (``core/validation.py``), what is preview (``preview.py``).
"""

from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.by_group import IN_ONE_RUN, Context, asked_entities, asked_groups, by_group, named_groups
from sync_orchestrator.assets.entity import mirror_key
from sync_orchestrator.assets.options import (
    ALL_ENTITIES,
    AS_CONFIGURED,
    ENTITY,
    GROUPS,
    REPAIR,
    RepairChoice,
    all_defaults,
    chosen_repair,
    entity_choices,
    op_with,
    with_choices,
)
from sync_orchestrator.assets.partitions import groups_of
from sync_orchestrator.assets.preview import evaluation, partitioned_check, report
from sync_orchestrator.config import Config
from sync_orchestrator.config.entities import Repair
from sync_orchestrator.core import exact_json
from sync_orchestrator.core.dead_records import DeadRecord
from sync_orchestrator.core.validation import GroupValidation, groups_due, groups_with_drift, validate
from sync_orchestrator.resources.system import System

CHECK = "count_then_diff"

_DRIFT_KINDS = ("missing", "stale", "different", "extra", "twin", "foreign")
_STATES = {"dead": "record", "held": "record, on hold", "discarded": "record, discarded"}
_TICK_SECONDS = 60.0
_PARTITION_TAG = "dagster/partition"
_MOST_SAMPLES = 50
_MOST_FIELDS = 6
_LONGEST_ERROR = 300
_MOST_GROUPS = 500


class ValidateOptions(dg.Config):
    """What an operator may set when launching a validation; by default every group that is due."""

    entity: str = Field(default=ALL_ENTITIES, description=ENTITY)
    groups: list[str] = Field(default=[], description=f"{GROUPS} They are validated whether they are due or not.")
    full: bool = Field(default=False, description=(
        "Compare record by record, whatever the counts say. Without `groups`, all groups, due or not."))
    repair: RepairChoice = Field(default=AS_CONFIGURED, description=REPAIR)


def mirror_check(name: str) -> dg.AssetChecksDefinition:
    """The check of one entity's mirror."""

    def check(context: dg.AssetCheckExecutionContext, system: System) -> Iterator[dg.AssetCheckEvaluation]:
        yield from _evaluations(context, system, name, asked_groups(context, system, name))

    return partitioned_check(
        check, f"{name}_mirror_{CHECK}", mirror_key(name), CHECK,
        "Counts a business group at the third party, and compares record by record where the count does not fit or "
        "its audit is due (`validation.audit_every`). A count that fits says nothing of records that were altered: "
        "launch the job `validate_fully` to compare all records now, of all groups or of those it is given.")


def validate_groups(
    context: dg.OpExecutionContext, config: ValidateOptions, system: System
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Validates the groups that are due, or those asked for, and reports each as an evaluation of the check."""
    entities, repair = asked_entities(system, config.entity), chosen_repair(config.repair)
    tag = context.run.tags.get(_PARTITION_TAG)
    asked = config.groups or ([tag] if tag else [])
    verdicts: dict[str, int] = {"in_step": 0, "drift": 0, "not_validated": 0}
    named = named_groups(system, entities, asked) if asked else {}
    for name in entities:
        groups = (named[name] if asked else sorted(groups_of(system.context, name)) if config.full
                  else due_groups(system, name))
        yield from _evaluations(context, system, name, groups, full=config.full, repair=repair, verdicts=verdicts)
    yield dg.Output(None, metadata=verdicts)


def due_groups(system: System, name: str) -> list[str]:
    """The groups of an entity whose validation is due, the longest unseen first.

    Those that would be due before the schedule fires next are due now.
    """
    every = system.entity(name).settings.validation.every
    every -= min(_TICK_SECONDS, every) / 2
    with system.context.engine.begin() as connection:
        return groups_due(connection, name, every, _MOST_GROUPS)


def _evaluations(
    context: Context, system: System, name: str, groups: Sequence[str], *, full: bool = False,
    repair: Repair | None = None, verdicts: dict[str, int] | None = None,
) -> Iterator[dg.AssetCheckEvaluation]:
    entity = system.entity(name)

    def work(group: str) -> Awaitable[GroupValidation]:
        return validate(system.context, entity, group, full=full, repair=repair)

    shown = _shown_with_drift(system, name)
    for group, result in by_group(context, system, name, groups, work, "validated"):
        context.log.info(f"{name} {group}: {summary(result)}")
        if verdicts is not None:
            verdicts[result.verdict] += 1
        if result.verdict != "not_validated":
            if result.drift or group in shown:
                report(context, [drift_observation(name, result)])
            yield evaluation(context, mirror_key(name), CHECK, group, passed=result.verdict == "in_step",
                             description=summary(result), metadata=metadata_of(result))


def _shown_with_drift(system: System, name: str) -> set[str]:
    """The groups of which drift was found that is open still: their plots fall back to zero once it is gone."""
    with system.context.engine.begin() as connection:
        return groups_with_drift(connection, name)


def drift_observation(name: str, result: GroupValidation) -> dg.AssetObservation:
    """The drift of one group by kind, as numbers that the UI plots over time.

    Reported where there is some, and once more when it is gone or was repaired by hand; groups that are in step add
    nothing to the event log.
    """
    counts = Counter(drift.kind for drift in result.drift)
    return dg.AssetObservation(asset_key=mirror_key(name), partition=result.group, metadata={
        "drift": len(result.drift), **{f"drift_{kind}": counts[kind] for kind in _DRIFT_KINDS}})


def summary(result: GroupValidation) -> str:
    """The verdict in one line."""
    if result.verdict == "not_validated":
        return f"not validated: {result.reason}"
    looked = "counted" if result.compared is None else f"compared {result.compared}"
    counts = [f"{n} {kind}" for kind, n in sorted(Counter(drift.kind for drift in result.drift).items())]
    line = ", ".join([result.verdict.replace("_", " "), looked, *counts])
    if waiting := sum(1 for drift in result.drift if drift.status == "found"):
        line += f"; {waiting} to be repaired by hand: launch the job `repair`"
    return "; ".join(text for text in (line, result.reason) if text)


def metadata_of(result: GroupValidation) -> dict[str, Any]:
    """What people look at: the verdict, the counts, tables of sampled differences and of dead records."""
    metadata: dict[str, Any] = {
        "verdict": result.verdict, "expected": result.expected, "in_flight": result.ambiguous,
        "drift": len(result.drift), "sent_to_repair": result.repaired, "foreign": result.foreign,
        "unmanaged": result.unmanaged,
        "stubborn": result.stubborn, "dead": result.dead, "discarded": result.discarded,
        "method": "count" if result.compared is None else "count, then diff",
    }
    if result.counted is not None:
        metadata["counted"] = result.counted
    if result.compared is not None:
        metadata["compared"] = result.compared
    if result.drift:
        metadata["differences"] = _differences(result)
    if result.dead_records:
        metadata["dead_records"] = _dead_records(result.dead_records)
    if result.dead_without_group:
        metadata["dead_without_group"] = result.dead_without_group
    return metadata


def _dead_records(records: Sequence[DeadRecord]) -> dg.TableMetadataValue:
    columns = ["key", "kind", "cause", "since", "error"]
    rows = [
        {"key": record.key, "kind": "change" if record.kind == "event" else _STATES[record.state],
         "cause": record.cause, "since": record.since.isoformat(timespec="seconds"),
         "error": (record.error or "")[:_LONGEST_ERROR]}
        for record in records
    ]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows],
                                  schema=dg.TableSchema([dg.TableColumn(name) for name in columns]))


def _differences(result: GroupValidation) -> dg.TableMetadataValue:
    columns = ["key", "kind", "status", "id there", "ours → theirs"]
    drifts = sorted(result.drift, key=lambda drift: (drift.kind, drift.key))
    rows = [
        {"key": drift.key, "kind": drift.kind, "status": drift.status, "id there": drift.external_id or "",
         "ours → theirs": "not there" if drift.kind == "missing" else _compact(drift.sample)}
        for drift in drifts[:_MOST_SAMPLES]
    ]
    return dg.MetadataValue.table([dg.TableRecord(row) for row in rows],
                                  schema=dg.TableSchema([dg.TableColumn(name) for name in columns]))


def _compact(sample: Sequence[dict[str, Any]]) -> str:
    """The differing fields of one record in one line: ``price: 12.5 → 99``."""
    lines = [f"{line['field']}: {_shown(line['ours'])} → {_shown(line['theirs'])}" for line in sample]
    return "; ".join(lines[:_MOST_FIELDS]) + (f"; and {len(lines) - _MOST_FIELDS} more" * (len(lines) > _MOST_FIELDS))


def _shown(value: Any) -> str:
    if isinstance(value, dict | list | Decimal):
        return exact_json.text(value, spaced=True)[:80]
    return "nothing" if value is None else str(value)[:80]


def validate_jobs(config: Config) -> list[dg.JobDefinition]:
    """The jobs that validate: what is due, or everything."""
    options = with_choices(ValidateOptions, entity=entity_choices(config))
    validate_op = op_with(validate_groups, options)

    @dg.job(name="validate", **IN_ONE_RUN, config=all_defaults(validate_op.name, options),
            description="Validates the business groups that are due, or those named.")
    def validate_job() -> None:
        validate_op()

    @dg.job(name="validate_fully", **IN_ONE_RUN, config=all_defaults(validate_op.name, options, full=True),
            description="Compares every record of every business group, whatever the counts say, due or not.")
    def validate_fully_job() -> None:
        validate_op()

    return [validate_job, validate_fully_job]

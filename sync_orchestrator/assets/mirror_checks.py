"""The asset check of the mirror: count, then diff, for each business group; and the job that validates many at once.

The partitioned check stands as the declaration and works when it is launched by itself, over any groups; the job's op
evaluates it for every group that is due, in one run. A group that could not be validated gets a warning that says so:
an earlier green would claim what nobody knows, and a failure would claim drift. A run in which no group could be
validated fails. Groups in sync are reported first and those with drift last, since the UI shows the last evaluation as
that of the asset. The validation is in ``core/validation/validate.py``, what is said of a group in
``mirror_check_report.py``.
"""

from collections.abc import Awaitable, Iterator, Mapping, Sequence

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.cancellation import cancelable
from sync_orchestrator.assets.freshness import report_if_in_sync
from sync_orchestrator.assets.jobs.by_group import (
    IN_ONE_RUN,
    Context,
    by_group,
    named_groups,
    requested_entities,
    requested_groups,
)
from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.assets.mirror_check_report import drift_observation, metadata_of, summarize_validation
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
from sync_orchestrator.assets.partitions import business_groups_of, groups_of
from sync_orchestrator.assets.totals import Verdicts, observe_totals
from sync_orchestrator.config import Config
from sync_orchestrator.config.entities import Repair
from sync_orchestrator.core.systems.pauses import pauses_of
from sync_orchestrator.core.validation.validate import GroupValidation, groups_due, groups_with_drift, validate
from sync_orchestrator.resources.instance.dagster_internals import (
    check_output,
    make_evaluation,
    partitioned_check,
    report_events,
)
from sync_orchestrator.resources.job_names import VALIDATE, VALIDATE_FULLY
from sync_orchestrator.resources.system import SystemResource

CHECK = "count_then_diff"

_TICK_SECONDS = 60.0
_PARTITION_TAG = "dagster/partition"
_MAX_GROUPS = 500


class ValidateOptions(dg.Config):
    """What an operator may set when launching a validation; by default every group that is due."""

    entity: str = Field(default=ALL_ENTITIES, description=ENTITY)
    groups: list[str] = Field(default=[], description=f"{GROUPS} They are validated whether they are due or not.")
    full: bool = Field(
        default=False,
        description=("Compare record by record, whatever the counts say. Without `groups`, all groups, due or not."),
    )
    repair: RepairChoice = Field(default=AS_CONFIGURED, description=REPAIR)


def mirror_check(name: str, repair: Repair = "auto") -> dg.AssetChecksDefinition:
    """The check of one entity's mirror; ``repair`` is the configured one, for the description."""

    @cancelable
    def check_mirror(
        context: dg.AssetCheckExecutionContext, system: SystemResource
    ) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
        verdicts = _make_verdicts()
        yield from _evaluate_groups(context, system, name, requested_groups(context, system, name), verdicts)
        observe_totals(context, system, [name])
        verdicts.require_some()
        yield check_output(context, mirror_key(name), CHECK)

    return partitioned_check(
        check_mirror,
        f"{name}_mirror_{CHECK}",
        mirror_key(name),
        CHECK,
        business_groups_of(name),
        _DESCRIPTION.format(effect=_EFFECTS[repair]),
    )


_DESCRIPTION = """Counts a business group at the third party, and compares record by record where the count does not \
fit or a full comparison is due (`validation.full_comparison_every`).

- **Execute all** starts at once, without a dialog, and works on all business groups. {effect}
- A count that fits says nothing about records that were altered. To compare all records now, launch the job
  `validate_fully`, of all groups or of those in its configuration.
- A group that could not be validated shows a warning. If no group could be validated, the run fails.
- The log of the run is the live progress."""

_EFFECTS: dict[Repair, str] = {
    "auto": "With the setting `repair: auto` it **writes to the third party**: confirmed drift is sent to repair.",
    "ask": "With the setting `repair: ask` it writes nothing to the third party: the job `repair` does.",
    "off": "With the setting `repair: off` it writes nothing to the third party.",
}


def _make_verdicts() -> Verdicts:
    return Verdicts(("drift", "not_validated", "in_sync"), "validated")


def validate_groups(
    context: dg.OpExecutionContext, config: ValidateOptions, system: SystemResource
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Validates the groups that are due, or those asked for, and reports each as an evaluation of the check."""
    entities, repair = requested_entities(system, config.entity), chosen_repair(config.repair)
    tag = context.run.tags.get(_PARTITION_TAG)
    asked = config.groups or ([tag] if tag else [])
    verdicts = _make_verdicts()
    named = named_groups(system, entities, asked) if asked else {}
    for name in entities:
        groups = (
            named[name]
            if asked
            else sorted(groups_of(system.context, name))
            if config.full
            else due_groups(system, name)
        )
        yield from _evaluate_groups(context, system, name, groups, verdicts, full=config.full, repair=repair)
    observe_totals(context, system, entities)
    for name in entities:
        report_if_in_sync(context, system, name)
    verdicts.require_some()
    yield dg.Output(None, metadata=verdicts.build_metadata())


def due_groups(system: SystemResource, name: str) -> list[str]:
    """The groups of an entity whose validation is due, the longest unseen first.

    Those that would be due before the schedule fires next are due now. None is due while the third party is known not
    to respond: a validation each minute would only fail.
    """
    if waits_for_third_party(system, name) is not None:
        return []
    every = system.get_entity(name).settings.validation.every
    every -= min(_TICK_SECONDS, every) / 2
    with system.context.engine.begin() as connection:
        return groups_due(connection, name, every, _MAX_GROUPS)


def waits_for_third_party(system: SystemResource, name: str) -> str | None:
    """Why an entity cannot be validated now: an open circuit breaker, or a suspension; None where it can be."""
    with system.context.engine.begin() as connection:
        pause = pauses_of(connection, {name: system.get_entity(name).system_name}).get(name)
    return None if pause is None or pause.is_paused else pause.reason


def _evaluate_groups(
    context: Context,
    system: SystemResource,
    name: str,
    groups: Sequence[str],
    verdicts: Verdicts,
    *,
    full: bool = False,
    repair: Repair | None = None,
) -> Iterator[dg.AssetCheckEvaluation]:
    """Validates groups and yields an evaluation of each: those in sync as they end, then the others, drift last."""
    entity = system.get_entity(name)

    def validate_group(group: str) -> Awaitable[GroupValidation]:
        return validate(system.context, entity, group, full=full, repair=repair)

    shown = _shown_with_drift(system, name)

    def yield_validated_groups() -> Iterator[GroupValidation]:
        for group, result in by_group(context, system, name, groups, validate_group, "validated"):
            context.log.info(f"{name} {group}: {summarize_validation(result)}")
            verdicts.add_verdict(name, group, result.verdict, result.reason, _collect_figures(result))
            if _changes_the_plot(result, shown):
                report_events(context, [drift_observation(name, result)])
            yield result

    for result in verdicts.worst_last(yield_validated_groups()):
        yield group_evaluation(context, name, result)


def group_evaluation(context: Context, name: str, result: GroupValidation) -> dg.AssetCheckEvaluation:
    """What the check of the mirror says of one group; a warning where it could not be validated."""
    unknown = result.verdict == "not_validated"
    return make_evaluation(
        context,
        mirror_key(name),
        CHECK,
        result.group,
        passed=result.verdict == "in_sync",
        description=summarize_validation(result),
        metadata=metadata_of(result),
        severity=dg.AssetCheckSeverity.WARN if unknown else dg.AssetCheckSeverity.ERROR,
    )


def _collect_figures(result: GroupValidation) -> dict[str, int]:
    return {
        "differences": len(result.drift),
        "sent_to_repair": result.repaired,
        "dead": result.dead,
        "unmanaged": result.unmanaged,
        "expected": result.expected,
        "counted": result.counted or 0,
        "compared": result.compared or 0,
    }


def _shown_with_drift(system: SystemResource, name: str) -> dict[str, bool]:
    """The groups of which drift was found that is open still, and whether all of it is unmanaged records."""
    with system.context.engine.begin() as connection:
        return groups_with_drift(connection, name)


def _changes_the_plot(result: GroupValidation, shown: Mapping[str, bool]) -> bool:
    """Whether a group's drift is to be reported: there is some, or the last of it may be gone.

    A count says nothing new of unmanaged records, which stay where they are.
    """
    if result.verdict == "not_validated" or result.group not in shown:
        return bool(result.drift)
    return bool(result.drift) or not shown[result.group] or result.compared is not None


def validate_jobs(config: Config) -> list[dg.JobDefinition]:
    """The jobs that validate: what is due, or everything."""
    options = with_choices(ValidateOptions, entity=entity_choices(config))
    validate_op = op_with(validate_groups, options)

    @dg.job(
        name=VALIDATE,
        **IN_ONE_RUN,
        config=all_defaults(validate_op.name, options),
        description="Validates the business groups that are due, or those named.",
    )
    def validate_job() -> None:
        validate_op()

    @dg.job(
        name=VALIDATE_FULLY,
        **IN_ONE_RUN,
        config=all_defaults(validate_op.name, options, full=True),
        description="Compares every record of every business group, whatever the counts say, due or not.",
    )
    def validate_fully_job() -> None:
        validate_op()

    return [validate_job, validate_fully_job]

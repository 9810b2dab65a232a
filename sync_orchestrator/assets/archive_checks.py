"""The asset check of the archive: the sources against it, for each business group; and the job that checks many.

The partitioned check stands as the declaration and works when it is launched by itself; the job's op evaluates it for
every group that is due, in one run. A group that could not be checked gets a warning that says so, and a run in which
no group could be checked fails. Behind a full sync the check has nothing to do: the full sync evaluates it from what it
has listed.
"""

from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.cancellation import cancelable
from sync_orchestrator.assets.jobs.by_group import (
    IN_ONE_RUN,
    Context,
    by_group,
    named_groups,
    requested_entities,
    requested_groups,
)
from sync_orchestrator.assets.lineage import archive_key
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
from sync_orchestrator.assets.partitions import business_groups_of
from sync_orchestrator.assets.ticks import source_check_tick_minutes
from sync_orchestrator.assets.totals import Verdicts
from sync_orchestrator.config import Config
from sync_orchestrator.config.entities import Repair
from sync_orchestrator.core.validation.source_check import (
    SourceCheckResult,
    check_sources,
    checks_by_itself,
    groups_due,
)
from sync_orchestrator.resources.instance.dagster_internals import (
    check_output,
    is_materialized_here,
    make_evaluation,
    partitioned_check,
)
from sync_orchestrator.resources.job_names import CHECK_SOURCES
from sync_orchestrator.resources.system import SystemResource

SOURCE_CHECK = "source_then_archive"
"""The name of the archive's check."""

_MAX_SAMPLES = 50
_MAX_GROUPS = 500


class SourceCheckOptions(dg.Config):
    """What an operator may set when launching a check; by default every group that is due."""

    entity: str = Field(default=ALL_ENTITIES, description=ENTITY)
    groups: list[str] = Field(default=[], description=f"{GROUPS} They are checked whether they are due or not.")
    repair: RepairChoice = Field(default=AS_CONFIGURED, description=REPAIR)


def archive_check(name: str, repair: Repair = "auto") -> dg.AssetChecksDefinition:
    """The check of one entity's archive; ``repair`` is the configured one, for the description."""

    @cancelable
    def check_archive(
        context: dg.AssetCheckExecutionContext, system: SystemResource
    ) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
        if is_materialized_here(context, archive_key(name)):
            context.log.info("the full sync has evaluated this check from what it listed")
        else:
            verdicts = _make_verdicts()
            yield from evaluate_groups(context, system, name, requested_groups(context, system, name), verdicts)
            verdicts.require_some()
        yield check_output(context, archive_key(name), SOURCE_CHECK)

    return partitioned_check(
        check_archive,
        f"{name}_archive_{SOURCE_CHECK}",
        archive_key(name),
        SOURCE_CHECK,
        business_groups_of(name),
        _DESCRIPTION.format(effect=_EFFECTS[repair]),
    )


_DESCRIPTION = """Lists a business group at its sources and finds records whose notification never came: newer there, \
missing here, or gone there. Records with a change event on its way are left out.

- A full sync evaluates this check from what it has listed.
- **Execute all** starts at once, without a dialog, and works on all business groups. {effect}
- A group whose sources give no usable response shows a warning. If no group could be checked, the run fails."""

_EFFECTS: dict[Repair, str] = {
    "auto": "With the setting `repair: auto` a lost notification becomes a change event, which is **pushed to the "
    "third party**.",
    "ask": "With the setting `repair: ask` it changes nothing: the job `repair` does.",
    "off": "With the setting `repair: off` it changes nothing.",
}


def _make_verdicts() -> Verdicts:
    return Verdicts(("lost", "not_checked", "in_sync"), "checked")


def check_source_groups(
    context: dg.OpExecutionContext, config: SourceCheckOptions, system: SystemResource
) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
    """Checks the groups that are due, or those asked for, and reports each as an evaluation of the check."""
    entities, repair = requested_entities(system, config.entity), chosen_repair(config.repair)
    named = named_groups(system, entities, config.groups) if config.groups else {}
    verdicts = _make_verdicts()
    for name in entities:
        groups = named[name] if config.groups else due_groups(system, name)
        yield from evaluate_groups(context, system, name, groups, verdicts, repair=repair)
    verdicts.require_some()
    yield dg.Output(None, metadata=verdicts.build_metadata())


def due_groups(system: SystemResource, name: str) -> list[str]:
    """The groups of an entity whose sources are due to be checked; none where that is switched off.

    Those that would be due before the middle of the time until the schedule fires next are due now.
    """
    entity = system.get_entity(name)
    every = entity.settings.source_check.every
    if every is None or not checks_by_itself(entity):
        return []
    with system.context.engine.begin() as connection:
        tick_seconds = 60 * source_check_tick_minutes(system.context.config)
        return groups_due(connection, name, every - min(tick_seconds, every) / 2, _MAX_GROUPS)


def evaluate_groups(
    context: Context,
    system: SystemResource,
    name: str,
    groups: Sequence[str],
    verdicts: Verdicts,
    *,
    repair: Repair | None = None,
) -> Iterator[dg.AssetCheckEvaluation]:
    """Checks groups and yields an evaluation of each: those in sync as they end, then the others, lost ones last."""
    entity = system.get_entity(name)

    def check_group(group: str) -> Awaitable[SourceCheckResult]:
        return check_sources(system.context, entity, group, repair=repair)

    def yield_checked_groups() -> Iterator[SourceCheckResult]:
        for group, result in by_group(context, system, name, groups, check_group, "checked"):
            context.log.info(f"{name} {group}: {summarize_source_check(result)}")
            verdicts.add_verdict(
                name,
                group,
                result.verdict,
                result.reason,
                {
                    "lost_notifications": len(result.lost),
                    "sent_to_repair": result.repaired,
                    "on_the_way": result.on_the_way,
                    "records_listed": result.listed.get(entity.settings.owner, 0),
                },
            )
            yield result

    for result in verdicts.worst_last(yield_checked_groups()):
        yield _make_evaluation(context, name, result)


def _make_evaluation(context: Context, name: str, result: SourceCheckResult) -> dg.AssetCheckEvaluation:
    unknown = result.verdict == "not_checked"
    return make_evaluation(
        context,
        archive_key(name),
        SOURCE_CHECK,
        result.group,
        passed=result.verdict == "in_sync",
        description=summarize_source_check(result),
        metadata=metadata_of(result),
        severity=dg.AssetCheckSeverity.WARN if unknown else dg.AssetCheckSeverity.ERROR,
    )


def summarize_source_check(result: SourceCheckResult) -> str:
    """The verdict in one line."""
    if result.verdict == "not_checked":
        return f"not checked: {result.reason}"
    listed = "listed " + ", ".join(f"{count} of {part}" for part, count in result.listed.items())
    counts = [f"{n} {kind}" for kind, n in sorted(Counter(lost.kind for lost in result.lost).items())]
    line = ", ".join([result.verdict.replace("_", " "), listed, *counts])
    return f"{line}; {result.reason}" if result.reason else line


def metadata_of(result: SourceCheckResult) -> dict[str, Any]:
    """What people look at: the verdict, the counts, and a table of what was lost."""
    metadata: dict[str, Any] = {
        "verdict": result.verdict,
        "listed": result.listed,
        "on_the_way": result.on_the_way,
        "lost": len(result.lost),
        "found_now": result.new,
        "sent_to_repair": result.repaired,
    }
    if result.lost:
        metadata["notifications"] = dg.MetadataValue.table(
            [
                dg.TableRecord({"source": lost.part, "key": lost.key, "kind": lost.kind, "version": lost.version})
                for lost in result.lost[:_MAX_SAMPLES]
            ],
            schema=dg.TableSchema([dg.TableColumn(name) for name in ("source", "key", "kind", "version")]),
        )
    return metadata


def check_sources_job(config: Config) -> dg.JobDefinition:
    """The job that compares the archive with its sources."""
    options = with_choices(SourceCheckOptions, entity=entity_choices(config))
    check_op = op_with(check_source_groups, options)

    @dg.job(
        name=CHECK_SOURCES,
        **IN_ONE_RUN,
        config=all_defaults(check_op.name, options),
        description="Compares the archive with the sources, in the business groups that are due, or those named.",
    )
    def check_sources() -> None:
        check_op()

    return check_sources

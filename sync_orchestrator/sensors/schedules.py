"""The schedules: validation, the check of the sources, and looking after the ledger."""

from __future__ import annotations

import dagster as dg

from sync_orchestrator.assets.archive_checks import due_groups as groups_to_check
from sync_orchestrator.assets.jobs.incremental import maintenance_job
from sync_orchestrator.assets.mirror_checks import due_groups, waits_for_third_party
from sync_orchestrator.assets.ticks import cron_line, source_check_tick_minutes, validation_tick_minutes
from sync_orchestrator.config import Config
from sync_orchestrator.resources.instance.config import under_way
from sync_orchestrator.resources.job_names import CHECK_SOURCES, VALIDATE
from sync_orchestrator.resources.system import SystemResource


def build_schedules(config: Config) -> list[dg.ScheduleDefinition]:
    """Validation and source checks as often as needed to meet every entity's interval; the ledger's round each day."""

    @dg.schedule(
        cron_schedule=cron_line(validation_tick_minutes(config)),
        job_name=VALIDATE,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Validates the business groups that are due.",
    )
    def validate_due_groups(
        context: dg.ScheduleEvaluationContext, system: SystemResource
    ) -> dg.RunRequest | dg.SkipReason:
        if under_way(context.instance, VALIDATE):
            return dg.SkipReason("a validation is under way")
        if not any(due_groups(system, name) for name in system.context.entities):
            waits = {
                reason
                for name in system.context.entities
                if (reason := waits_for_third_party(system, name)) is not None
            }
            return dg.SkipReason("; ".join(["no business group is due", *sorted(waits)]))
        return dg.RunRequest()

    @dg.schedule(
        cron_schedule=cron_line(source_check_tick_minutes(config)),
        job_name=CHECK_SOURCES,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description="Holds the sources against the archive, in the business groups that are due.",
    )
    def check_due_sources(
        context: dg.ScheduleEvaluationContext, system: SystemResource
    ) -> dg.RunRequest | dg.SkipReason:
        if under_way(context.instance, CHECK_SOURCES):
            return dg.SkipReason("a check is under way")
        if not any(groups_to_check(system, name) for name in system.context.entities):
            return dg.SkipReason("no business group is due")
        return dg.RunRequest()

    return [
        validate_due_groups,
        check_due_sources,
        dg.ScheduleDefinition(
            name="ledger_maintenance",
            job=maintenance_job,
            cron_schedule="17 3 * * *",
            default_status=dg.DefaultScheduleStatus.RUNNING,
            description="Creates upcoming partitions of the ledger's tables, checks that its totals add up, and "
            "deletes history that is over.",
        ),
    ]

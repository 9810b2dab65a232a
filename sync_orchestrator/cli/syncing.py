"""The commands that bring the third party in sync: ``drain``, ``plan``, ``full-sync``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.existing import entity_named, existing_context
from sync_orchestrator.cli.options import AllowDeletions, Group, JsonLines
from sync_orchestrator.cli.terminal import Steps, as_json, print_error, print_line, print_table, track_steps
from sync_orchestrator.errors import CannotPlan, SyncError

if TYPE_CHECKING:
    from sync_orchestrator.core.context import Context, EntityContext
    from sync_orchestrator.core.drain.drain import DrainReport
    from sync_orchestrator.core.full_sync.plan import GroupPlan
    from sync_orchestrator.core.full_sync.progress import SyncProgress

commands = typer.Typer()

_MAX_SAMPLES_SHOWN = 60


@commands.command()
def drain() -> None:
    """Work off what is due, once, without Dagster."""
    from sync_orchestrator.core.drain.drain import drain as run_drain
    from sync_orchestrator.core.runtime import perform
    from sync_orchestrator.core.systems.suspension import list_suspended_systems

    context = existing_context()
    with track_steps("drain") as bar:
        report = perform(
            context, run_drain(context, linger=0, progress=lambda so_far: bar.show_current(_so_far(so_far)))
        )
    settled = report.settled
    print_line(
        f"{settled.done} events done, {settled.superseded} superseded, {settled.acknowledged} records mirrored, "
        f"{settled.failed} failed, {settled.dead} dead"
    )
    with context.engine.begin() as connection:
        for name, reason in list_suspended_systems(connection).items():
            print_line(f"nothing was pushed to {name}: {reason}. Run `sync-orchestrator adopt`.")


@commands.command()
def plan(
    entity: str,
    group: Group = None,
    allow_deletions: AllowDeletions = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan to a file, for full-sync --plan.")] = None,
    json: JsonLines = False,
) -> None:
    """Show what a full sync would create, update and delete at the third party; nothing is written anywhere.

    Exit status: 0 it can be done as it stands, 1 something in it needs a person, 2 something cannot be read.
    """
    from sync_orchestrator import composition
    from sync_orchestrator.core.full_sync import plan_tables
    from sync_orchestrator.core.full_sync.plan_file import Plan, save_plan
    from sync_orchestrator.core.runtime import perform

    context = composition.open_context(only_look=True)
    chosen = entity_named(context, entity)
    with track_steps(f"plan of {entity}") as bar:
        plans, failures, ungrouped = perform(
            context, _plan_groups(context, chosen, [group] if group else None, allow_deletions, bar)
        )
    if json:
        for made in plans:
            as_json(asdict(made))
    else:
        print_table("a full sync would", *plan_tables.counts_table(plans))
        print_table("for example", *plan_tables.samples_table(plans, _MAX_SAMPLES_SHOWN))
        for note in [*plan_tables.list_notes(plans), *ungrouped]:
            print_line(note)
    for failure in failures:
        print_error(failure)
    if out is not None and not failures:
        save_plan(Plan(entity, datetime.now(UTC), group is None, allow_deletions, plans), out)
    raise typer.Exit(2 if failures else 1 if any(made.worries for made in plans) else 0)


async def _plan_groups(
    context: Context, entity: EntityContext, groups: Sequence[str] | None, allow_deletions: int | None, bar: Steps
) -> tuple[list[GroupPlan], list[str], list[str]]:
    """The plans, why others could not be made, and what no plan shows; all groups by default."""
    from sync_orchestrator.core.full_sync.plan import groups_to_plan, plan_group, ungrouped_notes

    todo = await groups_to_plan(context, entity) if groups is None else groups
    bar.set_total(len(todo))
    plans: list[GroupPlan] = []
    failures: list[str] = []
    for name in todo:
        try:
            plans.append(
                await plan_group(
                    context, entity, name, allow_deletions=allow_deletions, progress=partial(bar.show_phase, name)
                )
            )
        except SyncError as error:
            failures.append(f"{name}: {error}")
            bar.finish_step(f"{name}: cannot be planned")
            continue
        counts = ", ".join(f"{count} {what}" for what, count in plans[-1].counts.items())
        bar.finish_step(f"{name}: {counts or 'nothing'}")
    return plans, failures, await ungrouped_notes(entity)


@commands.command(name="full-sync")
def full_sync_command(
    entity: str,
    group: Group = None,
    allow_deletions: AllowDeletions = None,
    plan: Annotated[Path | None, typer.Option(help="Only if it would still do what this file of `plan` says.")] = None,
) -> None:
    """Fill business groups from the sources, bring the third party in sync, try again all that failed meanwhile.

    Exit status: 0 in sync, 1 something is left, 3 it would do something else than planned, and nothing was done.
    """
    from sync_orchestrator import composition
    from sync_orchestrator.core.runtime import perform

    groups = [group] if group else None
    if plan is not None:
        groups, allow_deletions = _as_planned(entity, group, allow_deletions, plan)
    context = composition.open_context()
    chosen = entity_named(context, entity)
    with track_steps(f"full sync of {entity}") as bar:
        failures = perform(context, _sync_groups(context, chosen, groups, allow_deletions, bar))
    for failure in failures:
        print_error(failure)
    left = _left_over(context, entity, groups)
    if left:
        print_line(left)
    if failures:
        print_line(
            f"not finished: {len(failures)} business groups, such as {failures[0]}. Next: fix the cause, then run "
            f"`sync-orchestrator full-sync {entity}` again"
        )
    elif not left:
        print_line("all of it is in sync")
    raise typer.Exit(1 if failures or left else 0)


def _as_planned(
    entity: str, group: str | None, allow_deletions: int | None, path: Path
) -> tuple[list[str], int | None]:
    """The groups of a plan and its cap, if a full sync would do now what it says; otherwise ends the command."""
    from sync_orchestrator import composition
    from sync_orchestrator.core.full_sync.plan_file import compare_plans, load_plan
    from sync_orchestrator.core.runtime import perform

    planned = load_plan(path, entity)
    if allow_deletions is not None:
        raise CannotPlan("--allow-deletions is part of a plan: say it to `sync-orchestrator plan`")
    chosen = [made for made in planned.groups if group in (None, made.group)]
    if group is not None and not chosen:
        raise CannotPlan(f"{path} has no business group '{group}'")
    context = composition.open_context(only_look=True)
    names = None if planned.every_group and group is None else [made.group for made in chosen]
    with track_steps(f"is the plan of {entity} still true") as bar:
        now, failures, _ = perform(
            context, _plan_groups(context, entity_named(context, entity), names, planned.allow_deletions, bar)
        )
    if failures:
        raise CannotPlan("; ".join(failures))
    differ = compare_plans(chosen, now)
    for name, how in differ.items():
        print_error(f"{name}: {how}")
    if differ:
        print_error(f"Nothing was done: it would be something else than {path} says. Make a new plan.")
        raise typer.Exit(3)
    return [made.group for made in chosen], planned.allow_deletions


async def _sync_groups(
    context: Context, entity: EntityContext, chosen: Sequence[str] | None, allow_deletions: int | None, bar: Steps
) -> list[str]:
    import asyncio

    from sync_orchestrator.core.drain.drain import drain as run_drain
    from sync_orchestrator.core.full_sync.progress import SyncProgress, report_regularly
    from sync_orchestrator.core.groups.concurrency import GROUPS_SYNCED_AT_ONCE
    from sync_orchestrator.core.groups.registry import discover_groups

    groups = await discover_groups(context, entity) if chosen is None else chosen
    bar.set_total(len(groups))
    failures: list[str] = []
    places = asyncio.Semaphore(GROUPS_SYNCED_AT_ONCE)
    progress = SyncProgress(context, entity)

    async def sync_one_group(name: str) -> None:
        async with places:
            await _sync_group(context, entity, name, allow_deletions, bar, failures, progress)
            progress.note_ended(name)

    async with report_regularly(progress, bar.print_lines):
        await asyncio.gather(*(sync_one_group(name) for name in groups))
        bar.show_current("what failed meanwhile")
        await run_drain(context, linger=0, progress=lambda so_far: bar.show_current(_so_far(so_far)))
        if _failed_events(context, entity.name, chosen):
            first_wait = entity.retry.first_wait * (1 + entity.retry.jitter)
            bar.show_current(f"what is confirmed or tried again within {first_wait:.0f} s")
            await run_drain(context, linger=first_wait + 1, progress=lambda so_far: bar.show_current(_so_far(so_far)))
    return failures


async def _sync_group(
    context: Context,
    entity: EntityContext,
    name: str,
    allow_deletions: int | None,
    bar: Steps,
    failures: list[str],
    progress: SyncProgress,
) -> None:
    from sync_orchestrator.core.full_sync.full_sync import full_sync
    from sync_orchestrator.core.full_sync.retrying import retry_full_sync

    reports = progress.of_group(name)

    def report_progress(phase: str, count: int) -> None:
        reports(phase, count)
        bar.show_phase(name, phase, count)

    try:
        filled, stepped = await retry_full_sync(
            entity,
            lambda: full_sync(context, entity, name, allow_deletions=allow_deletions, progress=report_progress),
            lambda wait: bar.print_lines([f"{name}: {wait}"]),
        )
    except SyncError as error:
        failures.append(f"{name}: {error.describe_with_system()}")
        bar.finish_step(f"{name}: failed: {error.describe_with_system()}")
        return
    for phase, count in (("read", filled.listed), ("changed", filled.changed), ("push", stepped.acknowledged)):
        reports(phase, count)
    if filled.unusable:
        failures.append(
            f"{name}: {filled.unusable} parts cannot be used and were passed over, such as "
            + "; ".join(filled.problems[:3])
        )
    if stepped.suspended is not None:
        failures.append(
            f"{name}: nothing was pushed to {entity.system_name}, whose pushes are suspended "
            f"({stepped.suspended}): run `sync-orchestrator adopt`"
        )
    bar.finish_step(
        f"{name}: {filled.listed} listed, {filled.changed} changed, {filled.deleted} deleted, "
        f"{stepped.acknowledged} mirrored, {stepped.redriven} events tried again"
    )


def _so_far(report: DrainReport) -> str:
    return f"{report.events} events, {report.settled.acknowledged} records mirrored"


def _failed_events(context: Context, entity: str, groups: Sequence[str] | None) -> int:
    """Events that failed: of the one group that is synced, or of the entity."""
    from sync_orchestrator.core.ledger.lookups import count_failed_of_entity

    group = groups[0] if groups is not None and len(groups) == 1 else None
    with context.engine.begin() as connection:
        return count_failed_of_entity(connection, entity, group)


def _left_over(context: Context, entity: str, groups: Sequence[str] | None) -> str | None:
    """What of the groups, all by default, is not in sync, why, and the next command."""
    from sync_orchestrator.core.full_sync.progress import left_over
    from sync_orchestrator.core.groups.registry import known_groups

    failed = _failed_events(context, entity, groups)
    with context.engine.begin() as connection:
        return left_over(connection, entity, groups or known_groups(connection, entity), failed)

"""The commands ``validate``, which compares the third party with the archive, ``drift`` and ``repair``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from sync_orchestrator.cli.existing import entity_named, existing_context, groups_of, say_who_pushes
from sync_orchestrator.cli.options import AllowDeletions, Group, JsonLines
from sync_orchestrator.cli.terminal import Steps, as_json, print_line, print_table, track_steps

if TYPE_CHECKING:
    from sync_orchestrator.core.context import Context, EntityContext
    from sync_orchestrator.core.operations.repair import Repaired
    from sync_orchestrator.core.validation.source_check import SourceCheckResult
    from sync_orchestrator.core.validation.validate import GroupValidation

Result = TypeVar("Result", "SourceCheckResult", "GroupValidation")

Repair = Literal["auto", "ask", "off"]  # as in config/entities.py, which takes long to import

commands = typer.Typer()

_MAX_DRIFT_SHOWN = 20
_STATUS = {"repairing": "marked for repair"}
"""How a status of drift is shown, where its name says more than is known: a mark repairs nothing by itself."""


@commands.command()
def validate(
    entity: Annotated[str | None, typer.Argument(help="All entities by default.")] = None,
    group: Group = None,
    full: Annotated[bool, typer.Option(help="Compare record by record, whatever the counts say.")] = False,
    sources: Annotated[bool, typer.Option("--sources", help="The archive against its sources instead.")] = False,
    repair: Annotated[Repair | None, typer.Option(help="What to do about drift; as configured by default.")] = None,
    json: JsonLines = False,
) -> None:
    """Validate by count, then by diff.

    Exit status: 0 in sync, 1 drift or dead records, 2 something could not be validated.
    """
    context = existing_context()
    chosen = [entity_named(context, entity)] if entity else list(context.entities.values())
    if sources:
        raise typer.Exit(_check_sources(context, chosen, group, repair, json))
    with track_steps("validate") as bar:
        results = _validate_groups(context, chosen, group, full, repair, bar)
    if json:
        for result in results:
            as_json(validation_as_json(result))
    else:
        show_validations(results)
        if under_repair := sum(found.status == "repairing" for result in results for found in result.drift):
            say_who_pushes(context.engine, f"{under_repair} differences are marked for repair")
    verdicts = {result.verdict for result in results}
    is_wrong = "drift" in verdicts or (group is None and any(result.dead_without_group for result in results))
    raise typer.Exit(1 if is_wrong else 0 if verdicts == {"in_sync"} else 2)


def _check_sources(
    context: Context, entities: Sequence[EntityContext], group: str | None, repair: Repair | None, json: bool
) -> int:
    from sync_orchestrator.core.validation.source_check import check_sources

    with track_steps("check the sources") as bar:
        results = _each_group(
            context, entities, group, bar, lambda entity, name: check_sources(context, entity, name, repair=repair)
        )
    if json:
        for result in results:
            as_json(asdict(result))
    else:
        print_table(
            "sources",
            ["entity", "group", "verdict", "listed", "on the way", "lost", "to repair", ""],
            [
                [
                    result.entity,
                    result.group,
                    result.verdict,
                    max(result.listed.values(), default=0),
                    result.on_the_way,
                    len(result.lost),
                    result.repaired,
                    result.reason,
                ]
                for result in results
            ],
        )
        lost = [[result.group, lost.part, lost.key, lost.kind] for result in results for lost in result.lost]
        print_table("lost notifications", ["group", "source", "key", "kind"], lost[:_MAX_DRIFT_SHOWN])
        if len(lost) > _MAX_DRIFT_SHOWN:
            print_line(f"and {len(lost) - _MAX_DRIFT_SHOWN} more; --json shows all")
        if recorded := sum(result.repaired for result in results):
            say_who_pushes(context.engine, f"{recorded} change events are recorded for what was lost")
    verdicts = {result.verdict for result in results}
    return 1 if "lost" in verdicts else 0 if verdicts == {"in_sync"} else 2


def _validate_groups(
    context: Context,
    entities: Sequence[EntityContext],
    group: str | None,
    full: bool,
    repair: Repair | None,
    bar: Steps,
) -> list[GroupValidation]:
    from sync_orchestrator.core.validation.validate import validate

    return _each_group(
        context, entities, group, bar, lambda entity, name: validate(context, entity, name, full=full, repair=repair)
    )


def _each_group(
    context: Context,
    entities: Sequence[EntityContext],
    group: str | None,
    bar: Steps,
    work: Callable[[EntityContext, str], Awaitable[Result]],
) -> list[Result]:
    """What comes of the groups, in their order, a few being worked on at once."""
    from sync_orchestrator.core.groups.concurrency import GROUPS_COMPARED_AT_ONCE
    from sync_orchestrator.core.runtime import perform_each

    todo = [(entity, name) for entity in entities for name in ([group] if group else groups_of(context, entity))]
    bar.set_total(len(todo))
    results: list[Result | None] = [None] * len(todo)

    async def work_on_group(number: int) -> Result:
        return await work(*todo[number])

    for number, result in perform_each(context, range(len(todo)), work_on_group, GROUPS_COMPARED_AT_ONCE):
        if isinstance(result, Exception):
            raise result
        results[number] = result
        entity, name = todo[number]
        bar.finish_step(f"{entity.name} {name}: {result.verdict}")
    return [result for result in results if result is not None]


@commands.command()
def drift(
    entity: Annotated[str | None, typer.Argument(help="All entities by default.")] = None,
    group: Group = None,
    since: Annotated[datetime | None, typer.Option(help="Found at this time (UTC) or later.")] = None,
    open_only: Annotated[bool, typer.Option("--open", help="Without what is repaired.")] = False,
    to: Annotated[Path | None, typer.Option(help="Write the whole list to this file, .csv or .parquet.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw what was found over time in this file, .svg.")] = None,
) -> None:
    """What validation has found, a row a differing field: the newest of it, or all of it in a file."""
    from sync_orchestrator.cli import drift_export
    from sync_orchestrator.core.validation.drift_log import Chosen, over_time, read_drift, read_newest_drift

    context = existing_context()
    if entity is not None:
        entity_named(context, entity)
    chosen = Chosen(entity, group, since if since is None or since.tzinfo else since.replace(tzinfo=UTC), open_only)
    if to is not None:
        print_line(f"{to}: {drift_export.write_drift(to, read_drift(context.engine, chosen))} rows")
    if plot is not None:
        drift_export.plot_drift(plot, over_time(context.engine, chosen))
        print_line(f"{plot}: drawn")
    if to is None and plot is None:
        shown = read_newest_drift(context.engine, chosen, _MAX_DRIFT_SHOWN)
        names = ["group", "key", "kind", "status", "field", "ours", "theirs", "found_at"]
        print_table("drift", names, [[row[name] for name in names] for row in shown])
        print_line("--to FILE.csv writes all of it" if shown else "nothing was found")


@commands.command(name="repair")
def repair_command(
    entity: str,
    group: Group = None,
    key: Annotated[str | None, typer.Option(help="Only this record.")] = None,
    allow_deletions: AllowDeletions = None,
    json: JsonLines = False,
) -> None:
    """Repair what was found and waits for a person, and validate again.

    Exit status: 0 in sync, 1 drift is left, 2 something could not be validated.
    """
    from sync_orchestrator.core.operations.repair import groups_to_repair
    from sync_orchestrator.core.runtime import perform

    context = existing_context()
    chosen = entity_named(context, entity)
    with context.engine.begin() as connection:
        groups = [group] if group else groups_to_repair(connection, entity, key)
    if not groups:
        print_line("nothing was found that waits for a repair")
        return
    with track_steps(f"repair of {entity}") as bar:
        results = perform(context, _repair_groups(context, chosen, groups, key, allow_deletions, bar))
    if json:
        for result in results:
            as_json({**asdict(result), "validation": result.validation and validation_as_json(result.validation)})
    else:
        print_table(
            "repair",
            ["group", "sent", "changed since", ""],
            [[result.group, result.sent, result.overtaken, result.held] for result in results],
        )
        show_validations([result.validation for result in results if result.validation is not None])
    verdicts = {result.validation.verdict for result in results if result.validation is not None}
    raise typer.Exit(1 if "drift" in verdicts else 0 if verdicts == {"in_sync"} else 2)


async def _repair_groups(
    context: Context,
    entity: EntityContext,
    groups: Sequence[str],
    key: str | None,
    allow_deletions: int | None,
    bar: Steps,
) -> list[Repaired]:
    from sync_orchestrator.core.operations.repair import repair

    bar.set_total(len(groups))
    results = []
    for name in groups:
        results.append(
            await repair(
                context, entity, name, key=key, allow_deletions=allow_deletions, progress=partial(bar.show_phase, name)
            )
        )
        bar.finish_step(f"{name}: {results[-1].sent} sent to repair")
    return results


def validation_as_json(result: GroupValidation) -> dict[str, object]:
    """A validation as the commands print it for programs."""
    return {
        "entity": result.entity,
        "group": result.group,
        "verdict": result.verdict,
        "reason": result.reason,
        "expected": result.expected,
        "counted": result.counted,
        "in_flight": result.ambiguous,
        "unmanaged": result.unmanaged,
        "compared": result.compared,
        "repaired": result.repaired,
        "persistent": result.persistent,
        "dead": result.dead,
        "discarded": result.discarded,
        "dead_without_group": result.dead_without_group,
        "dead_records": [
            {
                "key": record.key,
                "kind": record.kind,
                "state": record.state,
                "cause": record.cause,
                "error": record.error,
                "since": record.since.isoformat(),
            }
            for record in result.dead_records
        ],
        "drift": [{"key": drift.key, "kind": drift.kind, "status": drift.status} for drift in result.drift],
    }


def show_validations(results: Sequence[GroupValidation]) -> None:
    """Validations and the differences that they found, as tables."""
    print_table(
        "validation",
        ["entity", "group", "verdict", "expected", "counted", "in flight", "drift", "to repair", "dead", ""],
        [
            [
                result.entity,
                result.group,
                result.verdict,
                result.expected,
                result.counted,
                result.ambiguous,
                len(result.drift),
                result.repaired,
                result.dead,
                result.reason,
            ]
            for result in results
        ],
    )
    drift = [(result, found) for result in results for found in result.drift]
    print_table(
        "drift",
        ["group", "key", "kind", "status"],
        [
            [result.group, found.key, found.kind, _STATUS.get(found.status, found.status)]
            for result, found in drift[:_MAX_DRIFT_SHOWN]
        ],
    )
    if len(drift) > _MAX_DRIFT_SHOWN:
        print_line(f"and {len(drift) - _MAX_DRIFT_SHOWN} more; --json shows all")
    _show_dead(results)
    if not results:
        print_line("no business group is known yet: run a full sync first")


def _show_dead(results: Sequence[GroupValidation]) -> None:
    dead = [(result, record) for result in results for record in result.dead_records]
    print_table(
        "dead records",
        ["entity", "group", "key", "cause", "since"],
        [
            [result.entity, result.group, record.key, record.cause, record.since.isoformat(timespec="seconds")]
            for result, record in dead[:_MAX_DRIFT_SHOWN]
        ],
    )
    for entity in dict.fromkeys(result.entity for result in results if result.dead or result.dead_without_group):
        print_line(f"`sync-orchestrator records list {entity} --dead` lists what is dead")

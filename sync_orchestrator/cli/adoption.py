"""``adopt``: the way on after a restore or a change of the account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.existing import entity_named, existing_context
from sync_orchestrator.cli.options import AllowDeletions, JsonLines
from sync_orchestrator.cli.terminal import as_json, print_error, print_line, print_table, track_steps
from sync_orchestrator.cli.validation import show_validations, validation_as_json
from sync_orchestrator.errors import NotFound

if TYPE_CHECKING:
    from sync_orchestrator.core.context import Context, EntityContext
    from sync_orchestrator.core.operations.adoption_report import Adoption

commands = typer.Typer()

_MAX_SHOWN = 20


@commands.command(name="adopt")
def adopt_command(
    entity: Annotated[
        str | None, typer.Argument(help="By default all entities of third parties whose pushes are suspended.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="A business group; may be given several times. By default all groups.")
    ] = None,
    recreate_missing: Annotated[
        bool,
        typer.Option(
            "--recreate-missing",
            help=("Create records again even when more of them are missing than the cap on deletions."),
        ),
    ] = False,
    allow_deletions: AllowDeletions = None,
    json: JsonLines = False,
) -> None:
    """Link our records by key to those that the third party holds, and let pushes go on.

    Use it after a restore on either side, or after a change of the account. The archive is filled from the sources,
    each business group of the third party is listed, and records are linked by key. When all entities of the third
    party are adopted, pushes go on, the sources are checked, and the groups are validated in full. Records that
    nobody here manages are left alone.

    Exit status: 0 in sync, 1 differences or entities are left, 2 something could not be adopted or validated.
    """
    from sync_orchestrator.core.operations.adoption import adopt
    from sync_orchestrator.core.runtime import perform

    context = existing_context()
    chosen = [entity_named(context, entity)] if entity else _select_suspended_entities(context)
    with track_steps("adopt") as bar:
        results = perform(
            context,
            adopt(
                context,
                chosen,
                groups=group,
                recreate_missing=recreate_missing,
                allow_deletions=allow_deletions,
                progress=bar.show_current,
            ),
        )
    for result in results:
        if json:
            as_json({**asdict(result), "validations": [validation_as_json(each) for each in result.validations]})
        else:
            _show_adoption(result)
    raise typer.Exit(max(_exit_status(result) for result in results))


def _select_suspended_entities(context: Context) -> list[EntityContext]:
    from sync_orchestrator.core.systems.suspension import list_suspended_systems

    with context.engine.begin() as connection:
        names = set(list_suspended_systems(connection))
    chosen = [entity for entity in context.entities.values() if entity.system_name in names]
    if not chosen:
        raise NotFound(
            "no pushes are suspended; to adopt all the same, name an entity: one of " + ", ".join(context.entities)
        )
    return chosen


def _exit_status(result: Adoption) -> int:
    verdicts = {validation.verdict for validation in result.validations}
    if result.stopped is not None or "not_validated" in verdicts:
        return 2
    held = any(listing.held is not None for listing in result.groups)
    return 1 if "drift" in verdicts or result.still_to_adopt or result.duplicates or held else 0


def _show_adoption(result: Adoption) -> None:
    print_table(
        f"{result.entity} at {result.system}",
        ["group", "listed", ""],
        [[listing.group, listing.listed, listing.error or listing.held] for listing in result.groups],
    )
    print_table("records", ["what follows", "count"], [[what, count] for what, count in result.linked.items()])
    _show_some("unmanaged records, left alone", result.unmanaged_examples, result.unmanaged)
    print_table(
        "several records with one key",
        ["key", "ids"],
        [[key, ", ".join(ids)] for key, ids in list(result.duplicates.items())[:_MAX_SHOWN]],
    )
    if result.stopped is not None:
        print_error(f"{result.entity}: {result.stopped}. Pushes to {result.system} stay suspended.")
    elif result.still_to_adopt:
        print_line(
            f"Pushes to {result.system} stay suspended until these entities are adopted, too: "
            f"{', '.join(result.still_to_adopt)}."
        )
    elif result.lifted:
        print_line(f"Pushes to {result.system} go on.")
    lost = [check for check in result.checks if check.verdict != "in_sync"]
    print_table(
        "sources",
        ["group", "verdict", "lost", "to repair", ""],
        [[check.group, check.verdict, len(check.lost), check.repaired, check.reason] for check in lost],
    )
    if result.validations:
        show_validations(result.validations)


def _show_some(title: str, examples: Sequence[str], count: int) -> None:
    if count:
        more = "" if count <= len(examples) else f" and {count - len(examples)} more"
        print_line(f"{title}: {', '.join(examples)}{more}")

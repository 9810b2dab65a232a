"""The commands about whole systems: pushes that stop and go on, versions that count anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.existing import existing_context
from sync_orchestrator.cli.terminal import print_error, print_line
from sync_orchestrator.errors import NotFound, UsageError

if TYPE_CHECKING:
    from sync_orchestrator.core.context import Context
    from sync_orchestrator.core.systems.suspension import Suspension

System = Annotated[str, typer.Argument(help="An entity or a third party.")]

commands = typer.Typer()


@commands.command()
def pause(name: System) -> None:
    """Stop pushes; events go on being recorded and archived."""
    _switch_pushes(name, paused=True)


@commands.command()
def resume(
    name: System,
    without_adopting: Annotated[
        bool,
        typer.Option(
            "--without-adopting",
            help=("End a suspension although nothing was adopted: for a failover that lost nothing."),
        ),
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why nothing has to be adopted; it is logged.")] = None,
) -> None:
    """Let pushes go on. A suspended third party has to be adopted first."""
    from sync_orchestrator.core.systems.suspension import suspension_of

    context = existing_context()
    system = context.entities[name].system_name if name in context.entities else name
    with context.engine.begin() as connection:
        suspension = suspension_of(connection, system)
    if without_adopting:
        _end_suspension(context, system, suspension, reason)
    _switch_pushes(name, paused=False)
    if suspension is not None and not without_adopting:
        print_error(
            f"Pushes to {system} stay suspended: {suspension.reason}. Run `sync-orchestrator adopt`, or, if "
            f"nothing was lost, `sync-orchestrator resume {system} --without-adopting --reason TEXT`."
        )
        raise typer.Exit(1)


def _end_suspension(context: Context, system: str, suspension: Suspension | None, reason: str | None) -> None:
    """Lets pushes go on with the ids that the archive has."""
    from sync_orchestrator.core.systems.suspension import lift_suspension

    if suspension is None:
        raise NotFound(f"pushes to '{system}' are not suspended")
    if not reason:
        raise UsageError("--without-adopting needs a --reason: records of others may be overwritten where ids changed")
    with context.engine.begin() as connection:
        lift_suspension(connection, system, reason=reason)
    print_line(f"the suspension of {system} is over, nothing was adopted: {reason}")


def _switch_pushes(name: str, *, paused: bool) -> None:
    from sync_orchestrator.core.systems.pauses import set_paused as set_paused

    context = existing_context()
    if name not in (*context.entities, *context.config.third_parties):
        raise NotFound(f"neither an entity nor a third party is called '{name}'")
    set_paused(context.engine, name, set(context.entities), paused=paused)
    print_line(f"pushes of {name} are {'paused' if paused else 'going on'}")


@commands.command()
def epoch(source: Annotated[str, typer.Argument(help="A source system.")]) -> None:
    """Start a new count of versions, after a source system was restored from a backup."""
    from sync_orchestrator.core.operations import records

    context = existing_context()
    if source not in context.config.sources:
        raise NotFound(f"there is no source system '{source}'; there is {', '.join(context.config.sources)}")
    print_line(
        f"{source} is in epoch {records.begin_epoch(context.engine, source)} now; a full sync takes over what it holds"
    )

"""The commands about whole systems: pushes that stop and go on, versions that count anew.

Not here: what that does (``core/status.py``, ``core/records.py``).
"""

from __future__ import annotations

from typing import Annotated

import typer

from sync_orchestrator.cli.existing import existing_context
from sync_orchestrator.core import records
from sync_orchestrator.core.errors import NotFound
from sync_orchestrator.core.status import pause as set_paused
from sync_orchestrator.terminal import say

System = Annotated[str, typer.Argument(help="An entity or a third party.")]

commands = typer.Typer()


@commands.command()
def pause(name: System) -> None:
    """Stop pushes; events go on being recorded and archived."""
    _pause(name, paused=True)


@commands.command()
def resume(name: System) -> None:
    """Let pushes go on."""
    _pause(name, paused=False)


def _pause(name: str, *, paused: bool) -> None:
    context = existing_context()
    if name not in (*context.entities, *context.config.third_parties):
        raise NotFound(f"neither an entity nor a third party is called '{name}'")
    set_paused(context.engine, name, set(context.entities), paused=paused)
    say(f"pushes of {name} are {'paused' if paused else 'going on'}")


@commands.command()
def epoch(source: Annotated[str, typer.Argument(help="A source system.")]) -> None:
    """Start a new count of versions, after a source system was restored from a backup."""
    context = existing_context()
    if source not in context.config.sources:
        raise NotFound(f"there is no source system '{source}'; there is {', '.join(context.config.sources)}")
    say(f"{source} is in epoch {records.step_epoch(context.engine, source)} now; a full sync takes over what it holds")

"""The commands that run the system: all of it, its worker, its consumers, its API service, and the demo."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from sync_orchestrator.cli.terminal import print_line
from sync_orchestrator.errors import NotFound

commands = typer.Typer()


@commands.command()
def up(
    port: Annotated[int, typer.Option(help="Of the Dagster UI.")] = 3000,
    api_port: Annotated[int, typer.Option(help="Of POST /v1/events.")] = 8700,
) -> None:
    """Start everything on loopback: database, API service, worker, Dagster's UI and daemon. Ctrl-C ends it all."""
    from sync_orchestrator.supervisor import system

    raise typer.Exit(system.run_system(port, api_port, print_line))


@commands.command()
def worker() -> None:
    """Send alerts and outcomes, and poll sources, until SIGINT or SIGTERM.

    `up` runs one. Where Dagster's daemon runs by itself, run at least one worker beside it. Several may run at once.
    """
    from sync_orchestrator import composition
    from sync_orchestrator.worker.process import run_worker

    config = composition.load_config()
    composition.require_database()
    _log_to_stderr()
    run_worker(composition.open_context(config=config))


@commands.command()
def consume(
    name: Annotated[str | None, typer.Argument(help="One of the consumers; all of them by default.")] = None,
) -> None:
    """Record the messages of brokers as change events, until SIGINT or SIGTERM; what is recorded is acknowledged."""
    from sync_orchestrator import composition
    from sync_orchestrator.brokers.consume import consume as run_consumers

    config = composition.load_config()
    composition.require_database()
    _log_to_stderr()
    run_consumers(composition.open_database(), config, name)


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("sync_orchestrator").setLevel(logging.INFO)


@commands.command()
def api(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8700,
    host: Annotated[
        str, typer.Option(help="The address to listen at; behind a proxy that does TLS, not by itself.")
    ] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1,
) -> None:
    """Serve the API service alone: change events in, and what became of them."""
    from sync_orchestrator.api.serve import serve

    serve(host, port, workers)


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def demo(context: typer.Context) -> None:
    """Play the demo: three internal systems, a third party that misbehaves, and the proof at the end."""
    from sync_orchestrator.supervisor import system

    project = system.find_workspace().parent
    if not (project / "demo" / "story.py").exists():
        raise NotFound("the demo is not here: run this in a clone of the project")
    os.chdir(project)
    os.execv(sys.executable, [sys.executable, "-m", "demo.story", *context.args])

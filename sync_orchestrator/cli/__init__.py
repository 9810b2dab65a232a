"""The command line: one function a command, each a few lines over the core; a file a subject, a file a subcommand.

Here: which commands there are, in the order that ``--help`` shows.
"""

from __future__ import annotations

import typer

from sync_orchestrator.cli import (
    adoption,
    capture,
    configuration,
    conflicts,
    database,
    events,
    init,
    keys,
    links,
    records,
    rejected,
    rollout,
    running,
    status,
    syncing,
    systems,
    validation,
)
from sync_orchestrator.cli.terminal import OneLineErrors

app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Keeps a third party's copy of your business data in sync, and proves it.",
)
for subject in (running, init, configuration, status, syncing, validation, systems, adoption):
    app.add_typer(subject.commands)
for name, subcommand in (
    ("events", events),
    ("records", records),
    ("rejected", rejected),
    ("capture", capture),
    ("conflicts", conflicts),
    ("links", links),
    ("rollout", rollout),
    ("keys", keys),
    ("db", database),
):
    app.add_typer(subcommand.commands, name=name)

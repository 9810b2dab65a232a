"""``capture``: changes captured from the logs of source databases."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sync_orchestrator.cli.existing import existing_database, existing_database_to_read
from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.status import STREAM_COLUMNS, describe_stream
from sync_orchestrator.cli.terminal import as_json, print_line, print_table
from sync_orchestrator.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sync_orchestrator.config import Config

Name = Annotated[str, typer.Argument(metavar="NAME", help="The source system.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not prompt.")]


class _RunByDefault(TyperGroup):
    """``capture`` and ``capture NAME`` mean ``capture run``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts ``run`` before arguments that name no command."""
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


commands = typer.Typer(
    cls=_RunByDefault,
    help="Changes captured from the logs of source databases. Without a command: run.",
)


@commands.command("run")
def capture_run(
    name: Annotated[str | None, typer.Argument(help="A source system; by default all that are captured.")] = None,
) -> None:
    """Record the changes of source databases by their logs, until SIGINT or SIGTERM.

    The word "run" may be left out. `up` runs it where a source is captured. Of several
    processes one reads a stream; another takes over when that one ends.
    """
    from sync_orchestrator import composition
    from sync_orchestrator.capture.stream import capture

    config = composition.load_config()
    composition.require_database()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("sync_orchestrator").setLevel(logging.INFO)
    capture(composition.open_database(), config, name)


@commands.command("prepare")
def capture_prepare(
    name: Annotated[str | None, typer.Argument(help="A source system; by default all that are captured.")] = None,
) -> None:
    """Print the SQL that a source needs before its changes can be captured. Nothing is changed.

    Exit status: 0 nothing is missing, 1 something is.
    """
    from sync_orchestrator import composition
    from sync_orchestrator.capture.stream import list_captured_sources

    config = composition.load_config()
    is_missing = False
    for each in list_captured_sources(config, name):
        problems, lines = _prepare_source(config, each)
        is_missing |= problems
        for line in lines:
            print_line(line)
    raise typer.Exit(1 if is_missing else 0)


def _prepare_source(config: Config, name: str) -> tuple[bool, list[str]]:
    from sync_orchestrator.capture.engines import open_capture_source
    from sync_orchestrator.capture.parts import list_captured_tables
    from sync_orchestrator.config.sources import SqlSourceSettings

    settings = config.sources[name]
    assert isinstance(settings, SqlSourceSettings)
    source = open_capture_source(name, settings)
    try:
        found = source.inspect(list_captured_tables(config, name))
    finally:
        source.close()
    lines = []
    if found.statements:
        lines.append(f"-- {name}: run this SQL in the database of the source, as a user with administrator rights")
    lines += [f"-- {name}: {problem}" for problem in found.problems]
    lines += [f"-- {name}: warning: {warning}" for warning in found.warnings]
    if not found.problems:
        lines.append(f"-- {name}: nothing is missing; `sync-orchestrator capture {name}` begins the stream")
    return bool(found.problems), [*lines, *dict.fromkeys(found.statements)]


@commands.command("list")
def capture_list(json: Json = False) -> None:
    """List the streams: how far they are, how much the sources keep for them, and what is wrong."""
    from sync_orchestrator.core.capture.streams import list_streams
    from sync_orchestrator.core.operations.captured_streams import read_stream_reports

    with existing_database_to_read().begin() as connection:
        rows, reports = list_streams(connection), read_stream_reports(connection)
    if json:
        as_json(rows)
        return
    print_table(
        "captured changes",
        STREAM_COLUMNS,
        [[name, *describe_stream(report.to_document())] for name, report in reports.items()],
    )
    if not rows:
        print_line("there are none")


@commands.command("reset")
def capture_reset(name: Name, yes: Yes = False) -> None:
    """Begin a stream anew, at the present end of the source's log. What is before is not captured.

    Its business groups are not validated until a full sync that begins later completes. Stop the stream's reader first.
    """
    from sync_orchestrator.capture.operations import reset_stream

    _confirm(yes, f"changes of {name} that are not captured yet will be missing until full syncs; go on?")
    engine, config = existing_database(), _load_config()
    print_line(
        f"{name} begins anew at {reset_stream(engine, config, name)}; run full syncs: {_full_syncs(config, name)}"
    )


@commands.command("drop")
def capture_drop(name: Name, yes: Yes = False) -> None:
    """Drop a stream: its slot at the source, which then keeps no log for it any more, and what is known of it here.

    Stop the stream's reader first. The publication is left; drop it at the source where nothing else uses it.
    """
    from sync_orchestrator.capture.operations import drop_stream

    _confirm(yes, f"the slot of {name} is dropped, and changes are not captured any more; go on?")
    had_slot = drop_stream(existing_database(), _load_config(), name)
    print_line(
        f"{name} is dropped; " + ("so is its slot at the source" if had_slot else "there was no slot at the source")
    )


def _load_config() -> Config:
    from sync_orchestrator import composition

    return composition.load_config()


def _full_syncs(config: Config, name: str) -> str:
    def commands_of_entities() -> Iterator[str]:
        for entity, _, _ in config.captured_parts(name):
            yield f"`sync-orchestrator full-sync {entity}`"

    return ", ".join(commands_of_entities())


def _confirm(yes: bool, question: str) -> None:
    if not yes and not typer.confirm(question):
        raise UsageError("nothing was changed")

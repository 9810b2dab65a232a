"""The commands about ``sync.yaml``: to check it, try it out, and its schema.

Not here: what a setting means (``config/``), what is tried (``conformance/live_check/``, ``conformance/``).
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import as_json, complain, say, show_endings, show_step, steps, table
from sync_orchestrator.errors import UsageError

if TYPE_CHECKING:
    from sync_orchestrator.conformance.report import Ending

commands = typer.Typer()


@commands.command()
def check(
    live: Annotated[bool, typer.Option("--live", help="Talk to each system as well; nothing is written.")] = False,
    group: Annotated[str | None, typer.Option(help="The business group to try; the first one unless told.")] = None,
    json: Json = False,
) -> None:
    """Check the configuration, and with --live all that it says of the systems. Exit status: 1 something failed."""
    import asyncio

    from sync_orchestrator import composition
    from sync_orchestrator.cli import overview
    from sync_orchestrator.conformance import live_check

    path = composition.config_path()
    config = composition.load_config()
    if (reason := composition.check_database()) is not None:
        complain(f"the database was not checked: {reason}")
    if not live:
        if json:
            as_json(
                {
                    "file": str(path),
                    "entities": overview.entities(config),
                    "systems": overview.systems(config),
                    "notes": overview.notes(config),
                }
            )
            return
        _show_rows("systems", overview.systems(config))
        _show_rows("entities", overview.entities(config))
        for note in overview.notes(config):
            say(f"note: {note}")
        say(f"{path.name} is in order: {', '.join(config.entities)}")
        return
    found = asyncio.run(live_check.check(config, group, told=None if json else show_step))
    if json:
        as_json({"ok": found.ok, "steps": [asdict(step) for step in found.steps]}, indent=2)
    else:
        say(found.verdict)
    raise typer.Exit(0 if found.ok else 1)


@commands.command(name="conformance")
def conformance_command(
    name: Annotated[
        str | None,
        typer.Argument(help="An entity, a third party, a source system, or a class; all entities by default."),
    ] = None,
    sample: Annotated[
        Path | None,
        typer.Option(help="A JSON file: a record as the mapping makes it. One is read from the sources unless told."),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="The business group to work in. By default that of the sample, or the first of the owner's groups.",
        ),
    ] = None,
    other_group: Annotated[
        str | None, typer.Option(help="A group that records may move to. By default the next that the owner names.")
    ] = None,
    text: Annotated[str | None, typer.Option(help="A mapped field that takes any text.")] = None,
    prefix: Annotated[str | None, typer.Option(help="How the keys begin that it makes.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A behaviour that is not to be tried.")] = None,
    odd_keys: Annotated[
        bool,
        typer.Option(
            "--odd-keys",
            help="Try keys with slashes, quotes, blanks and other scripts, too. Some servers break on them.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    json: Json = False,
) -> None:
    """Run the conformance suite against a test system. Records it creates are deleted. Exit status 1: it failed."""
    import asyncio

    from sync_orchestrator import composition
    from sync_orchestrator.conformance import conformance as try_out
    from sync_orchestrator.conformance.report import Report
    from sync_orchestrator.conformance.run import samples_in, trials

    config = composition.load_config()
    todo = trials(config, name)
    written = sorted({config.entities[entity].third_party.system for entity, part in todo if part is None})
    if written and not yes:
        typer.confirm(
            f"It writes some records to {', '.join(written)}, with keys that nobody has, and deletes them. "
            "Is this a test system?",
            abort=True,
            err=True,
        )
    samples = None if sample is None else samples_in(sample)
    if samples is not None and sum(part is None for _, part in todo) > 1:
        raise UsageError(f"a sample is of one entity: name one, {', '.join(config.entities)}")
    endings: list[Ending] = []
    with steps("conformance") as bar:
        for entity, part in todo:
            report = asyncio.run(
                try_out(
                    config,
                    entity,
                    part=part,
                    samples=samples,
                    group=group,
                    other_group=other_group,
                    text=text,
                    prefix=prefix,
                    skip=skip or (),
                    odd_keys=odd_keys,
                    told=lambda ending: bar.at(f"{ending.system} {ending.behaviour}"),
                )
            )
            bar.done(f"{entity} at {part or config.entities[entity].third_party.system}: {report.verdict}")
            endings += report.endings
    if json:
        as_json({"ok": Report(endings).ok, "behaviours": [asdict(ending) for ending in endings]}, indent=2)
    else:
        show_endings(endings)
        say(Report(endings).verdict)
    raise typer.Exit(0 if Report(endings).ok else 1)


def _show_rows(title: str, rows: list[dict[str, Any]]) -> None:
    table(title, list(rows[0]), [list(row.values()) for row in rows])


@commands.command()
def schema() -> None:
    """Print the JSON Schema of sync.yaml, by which editors complete and check it."""
    from sync_orchestrator.config.schema import json_schema

    as_json(json_schema(), indent=2)

"""The commands about ``sync.yaml``: to check it, try it out, and its schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sync_orchestrator.cli.options import Json
from sync_orchestrator.cli.terminal import (
    as_json,
    print_error,
    print_line,
    print_table,
    show_endings,
    show_step,
    track_steps,
)
from sync_orchestrator.errors import UsageError

if TYPE_CHECKING:
    from sync_orchestrator.conformance.report import BehaviourResult

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
        print_error(f"the database was not checked: {reason}")
    if not live:
        if json:
            as_json(
                {
                    "file": str(path),
                    "entities": overview.list_entities(config),
                    "systems": overview.list_systems(config),
                    "notes": overview.list_notes(config),
                }
            )
            return
        _show_rows("systems", overview.list_systems(config))
        _show_rows("entities", overview.list_entities(config))
        for note in overview.list_notes(config):
            print_line(f"note: {note}")
        print_line(f"{path.name} is in order: {', '.join(config.entities)}")
        return
    found = asyncio.run(live_check.check_live(config, group, told=None if json else show_step))
    if json:
        as_json({"ok": found.ok, "steps": [asdict(step) for step in found.steps]}, indent=2)
    else:
        print_line(found.verdict)
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
    from sync_orchestrator.conformance import run_conformance as try_out
    from sync_orchestrator.conformance.report import ConformanceReport
    from sync_orchestrator.conformance.run import find_trials, samples_in

    config = composition.load_config()
    todo = find_trials(config, name)
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
    endings: list[BehaviourResult] = []
    with track_steps("conformance") as bar:
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
                    told=lambda ending: bar.show_current(f"{ending.system} {ending.behaviour}"),
                )
            )
            bar.finish_step(f"{entity} at {part or config.entities[entity].third_party.system}: {report.verdict}")
            endings += report.endings
    if json:
        as_json({"ok": ConformanceReport(endings).ok, "behaviours": [asdict(ending) for ending in endings]}, indent=2)
    else:
        show_endings(endings)
        print_line(ConformanceReport(endings).verdict)
    raise typer.Exit(0 if ConformanceReport(endings).ok else 1)


def _show_rows(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    print_table(title, list(rows[0]), [list(row.values()) for row in rows])


@commands.command()
def schema() -> None:
    """Print the JSON Schema of sync.yaml, by which editors complete and check it."""
    from sync_orchestrator.config.schema import json_schema

    as_json(json_schema(), indent=2)

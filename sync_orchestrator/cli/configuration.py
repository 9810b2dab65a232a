"""The commands about ``sync.yaml``: to begin one, check it, try it out, and its schema.

Not here: what a setting means (``config/``), what is tried (``live_check.py``, ``conformance/``).
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sync_orchestrator.cli.options import Json
from sync_orchestrator.core.errors import NotFound
from sync_orchestrator.terminal import as_json, complain, say, show_endings, show_step, steps, table

if TYPE_CHECKING:
    from sync_orchestrator.conformance.report import Ending

commands = typer.Typer()


@commands.command()
def init(
    entity: Annotated[str | None, typer.Option(help="What a record is, such as product.")] = None,
    source_url: Annotated[str | None, typer.Option(help="Where your own system is.")] = None,
    third_party_url: Annotated[str | None, typer.Option(help="Where the service is that is kept in step.")] = None,
    key: Annotated[str | None, typer.Option(help="The field that names a record.")] = None,
    version: Annotated[str | None, typer.Option(help="The field that grows with each change.")] = None,
    version_kind: Annotated[Literal["time", "number"], typer.Option(help="What that field holds.")] = "time",
    group: Annotated[str | None, typer.Option(help="The field that splits the records in groups.")] = None,
    fields: Annotated[str | None, typer.Option(help="The fields to copy, separated by commas.")] = None,
    source: Annotated[str, typer.Option(help="A name for your own system.")] = "backoffice",
    third_party: Annotated[str, typer.Option(help="A name for the service.")] = "partner",
    source_path: Annotated[str, typer.Option(help="Where its records are listed; /<entity>s unless told.")] = "",
    third_party_path: Annotated[str, typer.Option(help="The same of the service.")] = "",
    source_items: Annotated[str, typer.Option(help="Where the list stands in its answer; @ is all of it.")] = "@",
    third_party_items: Annotated[str, typer.Option(help="The same of the service.")] = "@",
    groups_path: Annotated[str, typer.Option(help="Where your own system lists the groups.")] = "",
    ids: Annotated[Literal["theirs", "ours"], typer.Option(help="Who gives the ids at the service.")] = "theirs",
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    force: Annotated[bool, typer.Option(help="Overwrite a configuration.")] = False,
) -> None:
    """Write a commented start of sync.yaml from a few questions."""
    from sync_orchestrator import app as composition
    from sync_orchestrator import starter

    path = composition.config_path()
    starter.check_free(path, force=force)
    asked = partial(_asked, yes=yes)
    answers = starter.Answers(
        entity=asked("--entity", entity, "What is a record? (product, order, stock …)"),
        source_url=asked("--source-url", source_url, "Where is your own system? (https://…)"),
        third_party_url=asked("--third-party-url", third_party_url, "Where is the service that is kept in step?"),
        key=asked("--key", key, "Which field names a record?", "id"),
        version=asked("--version", version, "Which field grows with each change?", "updated_at"),
        group=asked("--group", group, "Which field splits the records in groups? (shop, store, merchant …)", "shop"),
        fields=_words(asked("--fields", fields, "Which fields are copied? (separated by commas)", "name")),
        version_kind=version_kind, source=source, third_party=third_party, source_path=source_path,
        third_party_path=third_party_path, source_items=source_items, third_party_items=third_party_items,
        groups_path=groups_path, ids=ids)
    starter.write(starter.start_of(answers), path)
    say(f"{path} is written, with {starter.SCHEMA} beside it for your editor. Read it through, then:")
    for command, what in (
            ("check", "says what is wrong with it"), ("check --live", "tries it out, and writes nothing"),
            (f"plan {answers.entity}", "says what a full sync would do, and writes nothing"),
            (f"full-sync {answers.entity}", "fills the service for the first time"),
            ("up", "keeps it in step from then on")):
        say(f"  sync-orchestrator {command:<20} {what}")


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _asked(option: str, value: str | None, question: str, default: str | None = None, *, yes: bool) -> str:
    if value is None and yes:
        value = default
    if value is None and yes:
        raise NotFound(f"{option} is needed with --yes")
    return (typer.prompt(question, default=default) if value is None else value).strip()


@commands.command()
def check(
    live: Annotated[bool, typer.Option("--live", help="Talk to each system as well; nothing is written.")] = False,
    group: Annotated[str | None, typer.Option(help="The business group to try; the first one unless told.")] = None,
    json: Json = False,
) -> None:
    """Check the configuration, and with --live all that it says of the systems. Exit status: 1 something failed."""
    import asyncio

    from sync_orchestrator import app as composition
    from sync_orchestrator import live_check, overview

    path = composition.config_path()
    config = composition.load_config()
    if (reason := composition.check_database()) is not None:
        complain(f"the database was not checked: {reason}")
    if not live:
        if json:
            as_json({"file": str(path), "entities": overview.entities(config), "systems": overview.systems(config)})
            return
        _show_rows("systems", overview.systems(config))
        _show_rows("entities", overview.entities(config))
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
    name: Annotated[str | None, typer.Argument(
        help="An entity, a third party, a source system, or a class; all entities by default.")] = None,
    sample: Annotated[Path | None, typer.Option(
        help="A JSON file: a record as the mapping makes it. One is read from the sources unless told.")] = None,
    group: Annotated[str | None, typer.Option(help="The business group to work in.")] = None,
    other_group: Annotated[str | None, typer.Option(help="One that records may move to.")] = None,
    text: Annotated[str | None, typer.Option(help="A mapped field that takes any text.")] = None,
    prefix: Annotated[str | None, typer.Option(help="How the keys begin that it makes.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="A behaviour that is not to be tried.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing.")] = False,
    json: Json = False,
) -> None:
    """Try all that is relied on of an adapter on a test system; what it makes there, it deletes. Exit status: 1 failed.
    """
    import asyncio

    from sync_orchestrator import app as composition
    from sync_orchestrator.conformance import conformance as try_out
    from sync_orchestrator.conformance.report import Report
    from sync_orchestrator.conformance.run import samples_in, trials

    config = composition.load_config()
    todo = trials(config, name)
    written = sorted({config.entities[entity].third_party.system for entity, part in todo if part is None})
    if written and not yes:
        typer.confirm(f"It writes some records to {', '.join(written)}, with keys that nobody has, and deletes them. "
                      "Is this a test system?", abort=True, err=True)
    samples = None if sample is None else samples_in(sample)
    if samples is not None and sum(part is None for _, part in todo) > 1:
        raise NotFound(f"a sample is of one entity: name one, {', '.join(config.entities)}")
    endings: list[Ending] = []
    with steps("conformance") as bar:
        for entity, part in todo:
            report = asyncio.run(try_out(
                config, entity, part=part, samples=samples, group=group, other_group=other_group, text=text,
                prefix=prefix, skip=skip or (), told=lambda ending: bar.at(f"{ending.system} {ending.behaviour}")))
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

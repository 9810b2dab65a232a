"""The command line: one function a command, each a few lines over the core.

Not here: how things are shown (``terminal.py``), what is done (``core/``, ``processes.py``).
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from sync_orchestrator import app as composition
from sync_orchestrator import config as configuration
from sync_orchestrator import live_check, overview, processes, starter
from sync_orchestrator.config.schema import json_schema
from sync_orchestrator.core import ledger, records
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.drain import DrainReport
from sync_orchestrator.core.drain import drain as run_drain
from sync_orchestrator.core.errors import NotFound, SyncError
from sync_orchestrator.core.full_sync import discover_groups, full_sync, known_groups
from sync_orchestrator.core.sql import run
from sync_orchestrator.core.statements import full_sync as full_sync_statements
from sync_orchestrator.core.statements import ledger as ledger_statements
from sync_orchestrator.core.status import pause as set_paused
from sync_orchestrator.core.status import status as read_status
from sync_orchestrator.database import embedded
from sync_orchestrator.terminal import OneLineErrors, Steps, as_json, complain, say, show_step, steps, table

if TYPE_CHECKING:
    from sync_orchestrator.core.validation import GroupValidation

_MOST_DRIFT_SHOWN = 20

Seqs = Annotated[list[int] | None, typer.Argument(help="Numbers of events, as `events list` shows them.")]
Group = Annotated[str | None, typer.Option(help="One business group; all of them by default.")]
Repair = Literal["auto", "ask", "off"]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
System = Annotated[str, typer.Argument(help="An entity or a third party.")]

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Keeps a third party's copy of your business data in step, and proves it.")
events_app = typer.Typer(no_args_is_help=True, help="Change events in the ledger.")
records_app = typer.Typer(no_args_is_help=True, help="Single records.")
db_app = typer.Typer(no_args_is_help=True, help="The embedded database.")
app.add_typer(events_app, name="events")
app.add_typer(records_app, name="records")
app.add_typer(db_app, name="db")


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Of the Dagster UI.")] = 3000,
    api_port: Annotated[int, typer.Option(help="Of POST /v1/events.")] = 8700,
) -> None:
    """Start everything on loopback: database, intake, Dagster's UI and daemon. Ctrl-C ends it all."""
    raise typer.Exit(processes.up(port, api_port, say))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def demo(context: typer.Context) -> None:
    """Play the demo: three internal systems, a third party that misbehaves, and the proof at the end."""
    project = processes.workspace().parent
    if not (project / "demo" / "story.py").exists():
        raise NotFound("the demo is not here: run this in a clone of the project")
    os.chdir(project)
    os.execv(sys.executable, [sys.executable, "-m", "demo.story", *context.args])


@app.command()
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


@app.command()
def check(
    live: Annotated[bool, typer.Option("--live", help="Talk to each system as well; nothing is written.")] = False,
    group: Annotated[str | None, typer.Option(help="The business group to try; the first one unless told.")] = None,
    json: Json = False,
) -> None:
    """Check the configuration, and with --live all that it says of the systems. Exit status: 1 something failed."""
    path = composition.config_path()
    config = configuration.load(path)
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


def _show_rows(title: str, rows: list[dict[str, Any]]) -> None:
    table(title, list(rows[0]), [list(row.values()) for row in rows])


@app.command()
def schema() -> None:
    """Print the JSON Schema of sync.yaml, by which editors complete and check it."""
    as_json(json_schema(), indent=2)


@app.command()
def status(json: Json = False) -> None:
    """Show how much is where, how old the oldest due work is, and what is wrong."""
    found = read_status(_database())
    if json:
        as_json(found)
        return
    for name in ("events", "records"):
        table(name, ["", ""], [[what.replace("_", " "), "no" if number is False else number]
                               for what, number in found[name].items() if number is not True])
    table("business groups", ["entity", "known", "synced"],
          [[name, row["known"], row["synced"]] for name, row in found["groups"].items()])
    table("systems", ["name", "breaker", "pushes", "epoch"],
          [[name, row["breaker"], "paused" if row["paused"] else "on", row["epoch"]]
           for name, row in found["systems"].items()])
    table("alive", ["what", "seconds ago"], list(found["heartbeats"].items()))
    alerts = found["alerts"]
    table("open alerts", ["kind", "cause", "count", "since"],
          [[alert["kind"], alert["cause"], alert["count"], alert["since"][:19]] for alert in alerts["open"]])
    if alerts["send_error"]:
        say(f"Alerts do not arrive ({alerts['unsent']} unsent): {alerts['send_error']}.")
    say(f"The oldest due work has waited {found['oldest_due_seconds']:.1f} s.")
    say(f"The database is {composition.database_place()}.")


@app.command()
def drain() -> None:
    """Work off what is due, once, without Dagster."""
    context = _context()
    with steps("drain") as bar:
        report = composition.perform(context, run_drain(
            context, linger=0, progress=lambda so_far: bar.at(_so_far(so_far))))
    settled = report.settled
    say(f"{settled.done} events done, {settled.superseded} superseded, {settled.acknowledged} records mirrored, "
        f"{settled.failed} failed, {settled.dead} dead")


@app.command(name="full-sync")
def full_sync_command(
    entity: str, group: Group = None,
    allow_deletions: Annotated[int | None, typer.Option(min=0, help="Raise the cap of deletions, for once.")] = None,
) -> None:
    """Fill business groups from the sources, bring the third party in step, try again all that failed meanwhile.

    Exit status: 0 in step, 1 something is left.
    """
    context = composition.open_context()
    chosen = _entity(context, entity)
    with steps(f"full sync of {entity}") as bar:
        failures = composition.perform(context, _sync_groups(context, chosen, group, allow_deletions, bar))
    for failure in failures:
        complain(failure)
    left, failed = _left(context, entity, group)
    if left or failed:
        say(f"{left} records out of step and {failed} failed events are left")
    elif not failures:
        say("all of it is in step")
    raise typer.Exit(1 if failures or left or failed else 0)


async def _sync_groups(
    context: Context, entity: EntityContext, group: str | None, allow_deletions: int | None, bar: Steps
) -> list[str]:
    groups = [group] if group else await discover_groups(context, entity)
    bar.of(len(groups))
    failures: list[str] = []
    for name in groups:
        try:
            filled, stepped = await full_sync(context, entity, name, allow_deletions=allow_deletions,
                                              progress=partial(_at, bar, name))
        except SyncError as error:
            failures.append(f"{name}: {error}")
            bar.done(f"{name}: failed")
            continue
        if filled.unusable:
            failures.append(f"{name}: {filled.unusable} parts cannot be used and were passed over, such as "
                            + "; ".join(filled.problems[:3]))
        bar.done(f"{name}: {filled.listed} listed, {filled.changed} changed, {filled.deleted} deleted, "
                 f"{stepped.acknowledged} mirrored, {stepped.redriven} events tried again")
    bar.at("what failed meanwhile")
    await run_drain(context, linger=0, progress=lambda so_far: bar.at(_so_far(so_far)))
    if _left(context, entity.name, group)[1]:
        first_wait = entity.retry.first_wait * (1 + entity.retry.jitter)
        bar.at(f"what is confirmed or tried again within {first_wait:.0f} s")
        await run_drain(context, linger=first_wait + 1, progress=lambda so_far: bar.at(_so_far(so_far)))
    return failures


def _at(bar: Steps, group: str, phase: str, count: int) -> None:
    bar.at(f"{group}: {phase} {count}")


def _so_far(report: DrainReport) -> str:
    return f"{report.events} events, {report.settled.acknowledged} records mirrored"


def _left(context: Context, entity: str, group: str | None) -> tuple[int, int]:
    """Records of the groups that are out of step, and events that failed."""
    with context.engine.begin() as connection:
        groups = [group] if group else known_groups(connection, entity)
        rows = [run(connection, full_sync_statements.OUTSTANDING, entity=entity, group=name)[0] for name in groups]
        failed = run(connection, ledger_statements.FAILED_OF, entity=entity, group=group)[0].n
    return sum(row.open + row.parked for row in rows), failed


@app.command()
def verify(
    entity: Annotated[str | None, typer.Argument(help="All entities by default.")] = None, group: Group = None,
    full: Annotated[bool, typer.Option(help="Compare record by record, whatever the counts say.")] = False,
    repair: Annotated[Repair | None, typer.Option(help="What to do about drift; as configured by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a group.")] = False,
) -> None:
    """Validate by count, then by diff. Exit status: 0 in step, 1 drift, 2 something could not be validated."""
    context = _context()
    chosen = [_entity(context, entity)] if entity else list(context.entities.values())
    with steps("validate") as bar:
        results = composition.perform(context, _validate(context, chosen, group, full, repair, bar))
    if json:
        for result in results:
            as_json(_validation(result))
    else:
        _show_validations(results)
    verdicts = {result.verdict for result in results}
    raise typer.Exit(1 if "drift" in verdicts else 0 if verdicts == {"in_step"} else 2)


async def _validate(
    context: Context, entities: Sequence[EntityContext], group: str | None, full: bool, repair: Repair | None,
    bar: Steps,
) -> list[GroupValidation]:
    from sync_orchestrator.core.validation import validate  # brings pandas, which the other commands need not wait for

    todo = [(entity, name) for entity in entities for name in ([group] if group else _groups(context, entity))]
    bar.of(len(todo))
    results = []
    for entity, name in todo:
        bar.at(f"{entity.name} {name}")
        results.append(await validate(context, entity, name, full=full, repair=repair))
        bar.done(f"{entity.name} {name}: {results[-1].verdict}")
    return results


@app.command()
def pause(name: System) -> None:
    """Stop pushes; events go on being recorded and archived."""
    _pause(name, paused=True)


@app.command()
def resume(name: System) -> None:
    """Let pushes go on."""
    _pause(name, paused=False)


@app.command()
def epoch(source: Annotated[str, typer.Argument(help="A source system.")]) -> None:
    """Start a new count of versions, after a source system was restored from a backup."""
    context = _context()
    if source not in context.config.sources:
        raise NotFound(f"there is no source system '{source}'; there is {', '.join(context.config.sources)}")
    say(f"{source} is in epoch {records.step_epoch(context.engine, source)} now; a full sync takes over what it holds")


@events_app.command("list")
def events_list(
    state: Annotated[Literal["pending", "leased", "waiting", "dead"] | None, typer.Option()] = None,
    entity: str | None = None, key: str | None = None, most: Annotated[int, typer.Option(min=1)] = 50,
    json: Json = False,
) -> None:
    """List events that are not finished, newest first."""
    rows = [dict(row._mapping) for row in _query(
        ledger_statements.LIST, state=state, entity=entity, key=key, most=most)]
    if json:
        as_json(rows)
        return
    names = ["seq", "entity", "key", "source", "action", "version", "state", "attempts", "due_at", "error"]
    table("events", names, [[row[name] for name in names] for row in rows])
    if not rows:
        say("there are none")


@events_app.command("show")
def events_show(seq: int) -> None:
    """Show one event, finished or not, as JSON."""
    rows = _query(ledger_statements.SHOW, seq=seq)
    if not rows:
        raise NotFound(f"there is no event {seq}")
    as_json(dict(rows[0]._mapping), indent=2)


@events_app.command("redrive")
def events_redrive(
    seqs: Seqs = None,
    every: Annotated[bool, typer.Option("--all", help="All dead and waiting events.")] = False,
    entity: Annotated[str | None, typer.Option(help="Only those of this entity.")] = None,
) -> None:
    """Put dead or waiting events back to pending, with fresh attempts."""
    if not seqs and not every:
        raise NotFound("name events by number, or say --all")
    say(f"{ledger.redrive(_database(), seqs or None, entity)} events re-driven")


@events_app.command("discard")
def events_discard(seqs: Seqs, reason: Annotated[str, typer.Option(help="Why; it is kept.")]) -> None:
    """End dead events for good."""
    say(f"{ledger.discard(_database(), seqs or [], reason)} events discarded")


@records_app.command("show")
def records_show(entity: str, key: str, json: Json = False) -> None:
    """Show everything known of a record: its parts, events, pushes and drift."""
    with _database().begin() as connection:
        found = records.show(connection, entity, key)
    if json:
        as_json(found, indent=2)
        return
    for name, value in (found["record"] or {"not archived": "yet"}).items():
        if value is not None:
            say(f"{name:<17} {value.hex() if isinstance(value, bytes) else value}")
    say("")
    for name in ("parts", "events", "pushes", "drift"):
        rows = found[name]
        columns = [column for column in (rows[0] if rows else ()) if any(row[column] is not None for row in rows)]
        table(name, columns, [[row[column] for column in columns] for row in rows])


@records_app.command("refresh")
def records_refresh(entity: str, key: str) -> None:
    """Reread a record from its sources, whatever version the archive has."""
    context = _context()
    found = composition.perform(context, records.refresh(context, _entity(context, entity), key))
    say(", ".join(f"{part}: {what}" for part, what in found.items()))


@db_app.command("url")
def db_url() -> None:
    """Print the database's URL, for psql and the like; starts the embedded server if need be."""
    typer.echo(make_url(composition.database_url()).set(drivername="postgresql").render_as_string(hide_password=False))


@db_app.command("stop")
def db_stop() -> None:
    """Stop the embedded server."""
    stopped = embedded.stop(composition.home() / "postgres")
    say("stopped" if stopped else "it was not running")


def _database() -> Engine:
    composition.require_database()
    return composition.open_database()


def _context() -> Context:
    composition.require_database()
    return composition.open_context()


def _entity(context: Context, name: str) -> EntityContext:
    if name not in context.entities:
        raise NotFound(f"there is no entity '{name}'; there is {', '.join(context.entities)}")
    return context.entities[name]


def _groups(context: Context, entity: EntityContext) -> list[str]:
    with context.engine.begin() as connection:
        return known_groups(connection, entity.name)


def _pause(name: str, *, paused: bool) -> None:
    context = _context()
    if name not in (*context.entities, *context.config.third_parties):
        raise NotFound(f"neither an entity nor a third party is called '{name}'")
    set_paused(context.engine, name, set(context.entities), paused=paused)
    say(f"pushes of {name} are {'paused' if paused else 'going on'}")


def _query(statement: str, **parameters: Any) -> Sequence[Any]:
    with _database().begin() as connection:
        return run(connection, statement, **parameters)


def _validation(result: GroupValidation) -> dict[str, Any]:
    return {
        "entity": result.entity, "group": result.group, "verdict": result.verdict, "reason": result.reason,
        "expected": result.expected, "counted": result.counted, "in_flight": result.ambiguous,
        "compared": result.compared, "repaired": result.repaired, "foreign": result.foreign,
        "stubborn": result.stubborn,
        "drift": [{"key": drift.key, "kind": drift.kind, "status": drift.status} for drift in result.drift],
    }


def _show_validations(results: Sequence[GroupValidation]) -> None:
    table("validation", ["entity", "group", "verdict", "expected", "counted", "in flight", "drift", "to repair", ""],
          [[result.entity, result.group, result.verdict, result.expected, result.counted, result.ambiguous,
            len(result.drift), result.repaired, result.reason] for result in results])
    drift = [(result, found) for result in results for found in result.drift]
    table("drift", ["group", "key", "kind", "status"],
          [[result.group, found.key, found.kind, found.status] for result, found in drift[:_MOST_DRIFT_SHOWN]])
    if len(drift) > _MOST_DRIFT_SHOWN:
        say(f"and {len(drift) - _MOST_DRIFT_SHOWN} more; --json shows all")
    if not results:
        say("no business group is known yet: run a full sync first")

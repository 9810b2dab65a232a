"""The command line: one function a command, each a few lines over the core.

Not here: how things are shown (``terminal.py``), what is done (``core/``, ``processes.py``).
"""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from sync_orchestrator import app as composition
from sync_orchestrator import live_check, overview, plan_tables, processes, starter
from sync_orchestrator.config.schema import json_schema
from sync_orchestrator.conformance import conformance as try_out
from sync_orchestrator.conformance.report import Ending, Report
from sync_orchestrator.conformance.run import samples_in, trials
from sync_orchestrator.core import access, ledger, records, rejected, rollout
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.drain import DrainReport
from sync_orchestrator.core.drain import drain as run_drain
from sync_orchestrator.core.errors import CannotPlan, NotFound, SyncError
from sync_orchestrator.core.full_sync import discover_groups, full_sync, known_groups
from sync_orchestrator.core.full_sync_plan import GroupPlan, groups_to_plan, plan_group
from sync_orchestrator.core.plan_file import Plan, differences, load, save
from sync_orchestrator.core.source_check import SourceCheck, check_sources
from sync_orchestrator.core.sql import run
from sync_orchestrator.core.statements import full_sync as full_sync_statements
from sync_orchestrator.core.statements import ledger as ledger_statements
from sync_orchestrator.core.status import pause as set_paused
from sync_orchestrator.core.status import status as read_status
from sync_orchestrator.database import embedded
from sync_orchestrator.terminal import (
    OneLineErrors,
    Steps,
    as_json,
    complain,
    say,
    show_endings,
    show_step,
    steps,
    table,
)

if TYPE_CHECKING:
    from sync_orchestrator.core.repair import Repaired
    from sync_orchestrator.core.validation import GroupValidation

_MOST_DRIFT_SHOWN = 20
_MOST_SAMPLES_SHOWN = 60

Seqs = Annotated[list[int] | None, typer.Argument(help="Numbers of events, as `events list` shows them.")]
Ids = Annotated[list[int] | None, typer.Argument(help="Numbers of messages, as `rejected list` shows them.")]
Consumer = Annotated[str | None, typer.Option(help="Only those of this consumer.")]
Group = Annotated[str | None, typer.Option(help="One business group; all of them by default.")]
AllowDeletions = Annotated[int | None, typer.Option(min=0, help="Raise the cap of deletions, for once.")]
Repair = Literal["auto", "ask", "off"]
Json = Annotated[bool, typer.Option("--json", help="For programs.")]
RouteName = Annotated[str, typer.Argument(metavar="ROUTE", help="A route with a legacy upstream.")]
Values = Annotated[list[str], typer.Argument(help="Values of the header or the part that the route goes by.")]
Why = Annotated[str, typer.Option(help="Why; it is kept.")]
Override = Annotated[bool, typer.Option(help="Whatever validation says; it is kept that it spoke against it.")]
Remove = Annotated[bool, typer.Option(help="Take them off the list.")]
System = Annotated[str, typer.Argument(help="An entity or a third party.")]

app = typer.Typer(cls=OneLineErrors, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="Keeps a third party's copy of your business data in step, and proves it.")
events_app = typer.Typer(no_args_is_help=True, help="Change events in the ledger.")
records_app = typer.Typer(no_args_is_help=True, help="Single records.")
rejected_app = typer.Typer(no_args_is_help=True, help="Messages of brokers that cannot be read.")
rollout_app = typer.Typer(no_args_is_help=True, help="The shares of the proxy's routes that take the new path.")
keys_app = typer.Typer(no_args_is_help=True, help="Keys of those who may call the API service.")
db_app = typer.Typer(no_args_is_help=True, help="The embedded database.")
app.add_typer(events_app, name="events")
app.add_typer(records_app, name="records")
app.add_typer(rejected_app, name="rejected")
app.add_typer(rollout_app, name="rollout")
app.add_typer(keys_app, name="keys")
app.add_typer(db_app, name="db")


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Of the Dagster UI.")] = 3000,
    api_port: Annotated[int, typer.Option(help="Of POST /v1/events.")] = 8700,
) -> None:
    """Start everything on loopback: database, API service, Dagster's UI and daemon. Ctrl-C ends it all."""
    raise typer.Exit(processes.up(port, api_port, say))


@app.command()
def consume(
    name: Annotated[str | None, typer.Argument(help="One of the consumers; all of them by default.")] = None,
) -> None:
    """Record the messages of brokers as change events, until SIGINT or SIGTERM; what is recorded is acknowledged."""
    from sync_orchestrator.brokers.consume import consume as run_consumers  # brings kombu, which no other command needs

    config = composition.load_config()
    composition.require_database()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("sync_orchestrator").setLevel(logging.INFO)
    run_consumers(composition.open_database(), config, name)


@app.command()
def api(
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8700,
    host: Annotated[str, typer.Option(help="The address to listen at; behind a proxy that does TLS, not by itself.")
                    ] = "127.0.0.1",
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that share the port.")] = 1,
) -> None:
    """Serve the API service alone: change events in, and what became of them."""
    from sync_orchestrator.api.serve import serve

    serve(host, port, workers)


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


@app.command()
def check(
    live: Annotated[bool, typer.Option("--live", help="Talk to each system as well; nothing is written.")] = False,
    group: Annotated[str | None, typer.Option(help="The business group to try; the first one unless told.")] = None,
    json: Json = False,
) -> None:
    """Check the configuration, and with --live all that it says of the systems. Exit status: 1 something failed."""
    path = composition.config_path()
    config = composition.load_config()
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


@app.command(name="conformance")
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
    table("lost notifications", ["day", "entity", "source", "count"],
          [[row["day"], row["entity"], row["source"], row["count"]] for row in found["lost_notifications"]])
    table("systems", ["name", "breaker", "pushes", "epoch"],
          [[name, row["breaker"], "paused" if row["paused"] else "on", row["epoch"]]
           for name, row in found["systems"].items()])
    table("alive", ["what", "seconds ago"], list(found["heartbeats"].items()))
    table("messages that cannot be read", ["consumer", "count"], list(found["rejected"].items()))
    table("outcomes to be sent", ["receiver", "count", "error"],
          [[name, row["unsent"], row["error"]] for name, row in found["outcomes"].items()])
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


@app.command()
def plan(
    entity: str, group: Group = None, allow_deletions: AllowDeletions = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan to a file, for full-sync --plan.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a group.")] = False,
) -> None:
    """Show what a full sync would create, update and delete at the third party; nothing is written anywhere.

    Exit status: 0 it can be done as it stands, 1 something in it needs a person, 2 something cannot be read.
    """
    context = composition.open_context(only_look=True)
    chosen = _entity(context, entity)
    with steps(f"plan of {entity}") as bar:
        plans, failures = composition.perform(
            context, _plan_groups(context, chosen, [group] if group else None, allow_deletions, bar))
    if json:
        for made in plans:
            as_json(asdict(made))
    else:
        table("a full sync would", *plan_tables.counts_table(plans))
        table("for example", *plan_tables.samples_table(plans, _MOST_SAMPLES_SHOWN))
        for note in plan_tables.notes(plans):
            say(note)
    for failure in failures:
        complain(failure)
    if out is not None and not failures:
        save(Plan(entity, datetime.now(UTC), group is None, allow_deletions, plans), out)
    raise typer.Exit(2 if failures else 1 if any(made.worries for made in plans) else 0)


async def _plan_groups(
    context: Context, entity: EntityContext, groups: Sequence[str] | None, allow_deletions: int | None, bar: Steps
) -> tuple[list[GroupPlan], list[str]]:
    """The plans, and why others could not be made; all groups unless told."""
    todo = await groups_to_plan(context, entity) if groups is None else groups
    bar.of(len(todo))
    plans: list[GroupPlan] = []
    failures: list[str] = []
    for name in todo:
        try:
            plans.append(await plan_group(context, entity, name, allow_deletions=allow_deletions,
                                          progress=partial(_at, bar, name)))
        except SyncError as error:
            failures.append(f"{name}: {error}")
            bar.done(f"{name}: cannot be planned")
            continue
        counts = ", ".join(f"{count} {what}" for what, count in plans[-1].counts.items())
        bar.done(f"{name}: {counts or 'nothing'}")
    return plans, failures


@app.command(name="full-sync")
def full_sync_command(
    entity: str, group: Group = None, allow_deletions: AllowDeletions = None,
    plan: Annotated[Path | None, typer.Option(help="Only if it would still do what this file of `plan` says.")] = None,
) -> None:
    """Fill business groups from the sources, bring the third party in step, try again all that failed meanwhile.

    Exit status: 0 in step, 1 something is left, 3 it would do something else than planned, and nothing was done.
    """
    groups = [group] if group else None
    if plan is not None:
        groups, allow_deletions = _as_planned(entity, group, allow_deletions, plan)
    context = composition.open_context()
    chosen = _entity(context, entity)
    with steps(f"full sync of {entity}") as bar:
        failures = composition.perform(context, _sync_groups(context, chosen, groups, allow_deletions, bar))
    for failure in failures:
        complain(failure)
    left, failed = _left(context, entity, group)
    if left or failed:
        say(f"{left} records out of step and {failed} failed events are left")
    elif not failures:
        say("all of it is in step")
    raise typer.Exit(1 if failures or left or failed else 0)


def _as_planned(
    entity: str, group: str | None, allow_deletions: int | None, path: Path
) -> tuple[list[str], int | None]:
    """The groups of a plan and its cap, if a full sync would do now what it says; otherwise ends the command."""
    planned = load(path, entity)
    if allow_deletions is not None:
        raise CannotPlan("--allow-deletions is part of a plan: say it to `sync-orchestrator plan`")
    chosen = [made for made in planned.groups if group in (None, made.group)]
    if group is not None and not chosen:
        raise CannotPlan(f"{path} has no business group '{group}'")
    context = composition.open_context(only_look=True)
    names = None if planned.every_group and group is None else [made.group for made in chosen]
    with steps(f"is the plan of {entity} still true") as bar:
        now, failures = composition.perform(
            context, _plan_groups(context, _entity(context, entity), names, planned.allow_deletions, bar))
    if failures:
        raise CannotPlan("; ".join(failures))
    differ = differences(chosen, now)
    for name, how in differ.items():
        complain(f"{name}: {how}")
    if differ:
        complain(f"Nothing was done: it would be something else than {path} says. Make a new plan.")
        raise typer.Exit(3)
    return [made.group for made in chosen], planned.allow_deletions


async def _sync_groups(
    context: Context, entity: EntityContext, chosen: Sequence[str] | None, allow_deletions: int | None, bar: Steps
) -> list[str]:
    groups = await discover_groups(context, entity) if chosen is None else chosen
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
    if _left(context, entity.name, chosen[0] if chosen is not None and len(chosen) == 1 else None)[1]:
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
    sources: Annotated[bool, typer.Option("--sources", help="The archive against its sources instead.")] = False,
    repair: Annotated[Repair | None, typer.Option(help="What to do about drift; as configured by default.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a group.")] = False,
) -> None:
    """Validate by count, then by diff. Exit status: 0 in step, 1 drift, 2 something could not be validated."""
    context = _context()
    chosen = [_entity(context, entity)] if entity else list(context.entities.values())
    if sources:
        raise typer.Exit(_verify_sources(context, chosen, group, repair, json))
    with steps("validate") as bar:
        results = composition.perform(context, _validate(context, chosen, group, full, repair, bar))
    if json:
        for result in results:
            as_json(_validation(result))
    else:
        _show_validations(results)
    verdicts = {result.verdict for result in results}
    raise typer.Exit(1 if "drift" in verdicts else 0 if verdicts == {"in_step"} else 2)


def _verify_sources(
    context: Context, entities: Sequence[EntityContext], group: str | None, repair: Repair | None, json: bool
) -> int:
    with steps("check the sources") as bar:
        results = composition.perform(context, _check_sources(context, entities, group, repair, bar))
    if json:
        for result in results:
            as_json(asdict(result))
    else:
        table("sources", ["entity", "group", "verdict", "listed", "on the way", "lost", "to repair", ""],
              [[result.entity, result.group, result.verdict, max(result.listed.values(), default=0), result.on_the_way,
                len(result.lost), result.repaired, result.reason] for result in results])
        lost = [[result.group, lost.part, lost.key, lost.kind] for result in results for lost in result.lost]
        table("lost notifications", ["group", "source", "key", "kind"], lost[:_MOST_DRIFT_SHOWN])
        if len(lost) > _MOST_DRIFT_SHOWN:
            say(f"and {len(lost) - _MOST_DRIFT_SHOWN} more; --json shows all")
    verdicts = {result.verdict for result in results}
    return 1 if "lost" in verdicts else 0 if verdicts == {"in_step"} else 2


async def _check_sources(
    context: Context, entities: Sequence[EntityContext], group: str | None, repair: Repair | None, bar: Steps
) -> list[SourceCheck]:
    todo = [(entity, name) for entity in entities for name in ([group] if group else _groups(context, entity))]
    bar.of(len(todo))
    results = []
    for entity, name in todo:
        bar.at(f"{entity.name} {name}")
        results.append(await check_sources(context, entity, name, repair=repair))
        bar.done(f"{entity.name} {name}: {results[-1].verdict}")
    return results


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


@app.command(name="repair")
def repair_command(
    entity: str, group: Group = None,
    key: Annotated[str | None, typer.Option(help="Only this record.")] = None,
    allow_deletions: AllowDeletions = None, json: Annotated[
        bool, typer.Option("--json", help="One JSON object a group.")] = False,
) -> None:
    """Repair what was found and waits for a person, and validate again.

    Exit status: 0 in step, 1 drift is left, 2 something could not be validated.
    """
    from sync_orchestrator.core.repair import groups_to_repair  # brings pandas, which others need not wait for

    context = _context()
    chosen = _entity(context, entity)
    with context.engine.begin() as connection:
        groups = [group] if group else groups_to_repair(connection, entity, key)
    if not groups:
        say("nothing was found that waits for a repair")
        return
    with steps(f"repair of {entity}") as bar:
        results = composition.perform(context, _repair(context, chosen, groups, key, allow_deletions, bar))
    if json:
        for result in results:
            as_json({**asdict(result), "validation": result.validation and _validation(result.validation)})
    else:
        table("repair", ["group", "sent", "changed since", ""],
              [[result.group, result.sent, result.overtaken, result.held] for result in results])
        _show_validations([result.validation for result in results if result.validation is not None])
    verdicts = {result.validation.verdict for result in results if result.validation is not None}
    raise typer.Exit(1 if "drift" in verdicts else 0 if verdicts == {"in_step"} else 2)


async def _repair(
    context: Context, entity: EntityContext, groups: Sequence[str], key: str | None, allow_deletions: int | None,
    bar: Steps,
) -> list[Repaired]:
    from sync_orchestrator.core.repair import repair

    bar.of(len(groups))
    results = []
    for name in groups:
        results.append(await repair(context, entity, name, key=key, allow_deletions=allow_deletions,
                                    progress=partial(_at, bar, name)))
        bar.done(f"{name}: {results[-1].sent} sent to repair")
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


@records_app.command("push")
def records_push(entity: str, key: str) -> None:
    """Push a record once more, whatever was acknowledged or refused. Exit status: 0 acknowledged, 1 not yet."""
    context = _context()
    _entity(context, entity)
    with context.engine.begin() as connection:
        group = records.push_again(connection, entity, key)
    composition.perform(context, run_drain(context, linger=0, group=(entity, group)))
    with context.engine.begin() as connection:
        found = records.show(connection, entity, key)
    record = found["record"]
    if record["out_of_step"]:
        say(f"not acknowledged yet: {record['error'] or 'it is due'}")
    else:
        say(f"acknowledged: {found['pushes'][-1]['step'] if found['pushes'] else 'nothing to do'}")
    raise typer.Exit(1 if record["out_of_step"] else 0)


@rejected_app.command("list")
def rejected_list(
    consumer: Consumer = None, most: Annotated[int, typer.Option(min=1)] = 50, json: Json = False,
) -> None:
    """List messages that cannot be read, newest first."""
    with _database().begin() as connection:
        rows = rejected.listed(connection, consumer, most)
    if json:
        as_json(rows)
        return
    names = ["id", "consumer", "reason", "size", "times", "last_seen_at"]
    table("rejected", names, [[row[name] for name in names] for row in rows])
    if not rows:
        say("there are none")


@rejected_app.command("show")
def rejected_show(number: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Show one message with its reason, headers and body, as JSON."""
    with _database().begin() as connection:
        as_json(rejected.show(connection, number), indent=2)


@rejected_app.command("retry")
def rejected_retry(
    ids: Ids = None, every: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    consumer: Consumer = None,
) -> None:
    """Put messages through again, after the configuration was mended. Exit status: 1 some still cannot be read."""
    from sync_orchestrator.brokers.consume import retry_rejected

    if not ids and not every:
        raise NotFound("name messages by number, or say --all")
    config = composition.load_config()
    went, left = retry_rejected(_database(), config, ids or None, consumer)
    say(f"{went} messages recorded, {left} still cannot be read")
    raise typer.Exit(1 if left else 0)


@rejected_app.command("discard")
def rejected_discard(ids: Ids, reason: Annotated[str, typer.Option(help="Why; it is kept.")]) -> None:
    """End messages for good."""
    say(f"{rejected.discard(_database(), ids or [], reason)} messages discarded")


@rollout_app.command("list")
def rollout_list(json: Json = False) -> None:
    """Show the share of each route that has a legacy upstream."""
    config = composition.load_config()
    with _database().begin() as connection:
        found = [rollout.described(each) for each in rollout.of_routes(config, rollout.rollouts(connection))]
    if json:
        as_json(found)
        return
    table("rollouts", ["route", "share", "shadow", "allow", "deny", ""], [
        [each["route"], f"{each['percent']:g} %", "on" if each["shadow"] else "", len(each["allow"]),
         len(each["deny"]), "fell back" if each["halted"] else ""] for each in found])


@rollout_app.command("show")
def rollout_show(route: RouteName, json: Json = False) -> None:
    """Show a route's share and lists, and what was counted since its last change."""
    config = composition.load_config()
    rollout.switched(config, route)
    with _database().begin() as connection:
        found = rollout.rollouts(connection).get(route, rollout.Rollout(route))
        told = {**rollout.described(found), **rollout.fared(connection, found)}
    if json:
        as_json(told)
        return
    table(route, ["", ""], [[name, " ".join(value) if isinstance(value, list) else value]
                            for name, value in told.items() if name != "route"])


@rollout_app.command("set")
def rollout_set(
    route: RouteName, percent: Annotated[float, typer.Argument(min=0, max=100)], why: Why, override: Override = False,
) -> None:
    """Set the share. A step up needs a clean validation of the route's entity."""
    _roll(route, lambda now: rollout.Change(percent=percent), why, override=override)


@rollout_app.command("shadow")
def rollout_shadow(route: RouteName, why: Why, off: Annotated[bool, typer.Option("--off", help="No longer.")] = False
                   ) -> None:
    """Copy reads to the new path and compare its answers; callers get those of legacy."""
    _roll(route, lambda now: rollout.Change(shadow=not off), why)


@rollout_app.command("allow")
def rollout_allow(route: RouteName, values: Values, why: Why, remove: Remove = False, override: Override = False
                  ) -> None:
    """Have values take the new path whatever the share is."""
    _roll(route, lambda now: rollout.Change(allow=now.allow - {*values} if remove else now.allow | {*values}), why,
          override=override)


@rollout_app.command("deny")
def rollout_deny(route: RouteName, values: Values, why: Why, remove: Remove = False, override: Override = False
                 ) -> None:
    """Have values never take the new path, allowed or not."""
    _roll(route, lambda now: rollout.Change(deny=now.deny - {*values} if remove else now.deny | {*values}), why,
          override=override)


@rollout_app.command("history")
def rollout_history(route: RouteName, json: Json = False) -> None:
    """Show who changed a route's share and why, the last first."""
    rollout.switched(composition.load_config(), route)
    with _database().begin() as connection:
        rows = [dict(row._mapping) for row in rollout.history(connection, route)]
    if json:
        as_json(rows)
        return
    table(f"changes of {route}", ["at", "who", "share", "shadow", "allow", "deny", "why", "against validation"], [
        [str(row["at"])[:19], row["who"], f"{row['percent']:g} %", "on" if row["shadow"] else "", len(row["allow"]),
         len(row["deny"]), row["why"], row["overrode"]] for row in rows])


def _roll(route: str, wanted: Callable[[rollout.Rollout], rollout.Change], why: str, *, override: bool = False) -> None:
    config = composition.load_config()
    try:
        with _database().begin() as connection:
            after = rollout.change(connection, config, route, wanted(rollout.current(connection, config, route)),
                                   who=_user(), why=why, override=override)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    say(f"{route}: {after.percent:g} %" + (", shadowed" if after.shadow else "")
        + (" (fell back; set the share to go on)" if after.halted else "") + "; replicas know within a second")


def _user() -> str:
    try:
        return f"{getpass.getuser()}, in the shell"
    except (KeyError, OSError):  # a container may run under a number without a name
        return "the shell"


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose it is.")],
    scope: Annotated[list[str], typer.Option(help="events:SOURCE, events:*, proxy, metrics, admin; repeatable.")],
    days: Annotated[float | None, typer.Option(min=0.01, help="How long it is good for; for ever by default.")] = None,
) -> None:
    """Make a key and print it, this once: only its hash is kept."""
    config = composition.load_config()
    with composition.open_database().begin() as connection:
        key = access.make_key(connection, name, scope, config.sources, None if days is None else days * 86_400)
    print(key)


@keys_app.command("list")
def keys_list(json: Json = False) -> None:
    """Show all keys, without their secrets."""
    with _database().begin() as connection:
        rows = [dict(row._mapping) for row in access.keys(connection)]
    if json:
        as_json(rows)
        return
    table("keys", ["id", "name", "scopes", "made", "last used", ""], [
        [row["id"], row["name"], " ".join(row["scopes"]), str(row["created_at"])[:19], str(row["used_at"] or "")[:19],
         "revoked" if row["revoked_at"] else f"until {row['expires_at']:%Y-%m-%d}" if row["expires_at"] else ""]
        for row in rows])


@keys_app.command("revoke")
def keys_revoke(key: Annotated[str, typer.Argument(help="Its id, as `keys list` shows it, or the key.")]) -> None:
    """End a key. Services forget it within seconds."""
    with _database().begin() as connection:
        access.revoke(connection, key)
    say("it is good for nothing from now on")


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

"""The story of the demo, from going live to the proof. ``make demo`` plays it; exit status 0 means VERIFIED."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from demo import access, catalogue
from demo.broker import broker
from demo.captured import CaptureWatch, Figures, Write
from demo.dagster_api import Dagster
from demo.grey import Grey
from demo.processes import Systems, running
from demo.traffic import Traffic
from demo.truth import Truth, compare
from sync_orchestrator.composition import open_context
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.core.service.api_keys import make_key
from sync_orchestrator.core.validation.validate import GroupValidation, validate
from sync_orchestrator.database import embedded
from sync_orchestrator.errors import SyncError
from sync_orchestrator.private_files import make_private_home
from sync_orchestrator.supervisor.system import start_all

_OUTAGE = 15.0
_STALL_SECONDS = 90
_DAMAGE = {"lose": 24, "alter": 24, "revive": 12, "seed": 7}
_AT_ONCE = 6
_KEPT = ("lab", "pricing", "erp")
"""The systems that hold their data in memory."""

console = Console(highlight=False)


@dataclass
class Report:
    """What the end is judged by."""

    events: dict[str, Any] = field(default_factory=dict)
    injected: set[tuple[str, str]] = field(default_factory=set)
    found: set[tuple[str, str]] = field(default_factory=set)
    repaired: set[tuple[str, str]] = field(default_factory=set)
    false_alarms: int = 0
    unclean: list[str] = field(default_factory=list)
    truth: Truth = field(default_factory=Truth)
    by_hand: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    grey: list[str] = field(default_factory=list)
    captured: Figures = field(default_factory=Figures)

    def wrong(self) -> list[str]:
        """Everything that is not as it should be, in words."""
        checks = {
            f"{len(self.truth.wrong)} records out of sync: {list(self.truth.wrong.items())[:5]}": self.truth.wrong,
            f"{self.truth.duplicates} duplicates": self.truth.duplicates,
            f"events do not add up: {self.events}": not self.events.get("balanced"),
            "events left unfinished": sum(
                self.events.get(state, 0) for state in ("pending", "leased", "waiting", "dead")
            ),
            f"{self.false_alarms} false alarms before anything was damaged": self.false_alarms,
            f"drift found is not what was injected: {sorted(self.injected ^ self.found)[:5]}": self.injected
            != self.found,
            f"drift not repaired: {sorted(self.found - self.repaired)[:5]}": self.found - self.repaired,
            f"the last validation is not clean: {self.unclean[:3]}": self.unclean,
            f"records made by hand were touched: {self.truth.by_hand} of {self.by_hand}": self.truth.by_hand
            != self.by_hand,
            f"traffic did not move as it should: {self.grey[:3]}": self.grey,
            "fewer than 10,000 records were mirrored": self.truth.in_sync < 10_000,
        }
        return [*(words for words, failed in checks.items() if failed), *self.captured.find_faults()]


class Story:
    """The chapters, in order."""

    def __init__(
        self,
        systems: Systems,
        client: httpx.Client,
        dagster: Dagster,
        context: Context,
        traffic: Traffic,
        grey: Grey,
        watch: CaptureWatch,
    ) -> None:
        self._systems = systems
        self._client = client
        self._dagster = dagster
        self._context = context
        self._traffic = traffic
        self._grey = grey
        self._watch = watch
        self.report = Report()

    def play(self) -> Report:
        self._go_live()
        self._full_sync()
        self._settle("all changes, and everything that failed meanwhile, are compensated")
        self._write_sql()
        self._validate_first()
        self._damage_and_repair()
        self._move_traffic()
        self._judge()
        return self.report

    def _go_live(self) -> None:
        _chapter("Going live: incremental first. Live changes come in while the ERP knows nothing yet")
        _wait("the catalogue's changes are captured from its log", self._watch.is_open, 60)
        for warehouse in self._groups()[:3]:
            self.report.by_hand += len(self._control("erp", "by_hand", {"warehouse": warehouse, "count": 2}))
        self._control("erp", "faults", {"errors": 0.03, "lost": 0.02})
        console.print(
            f"  the ERP: 20 ms, 3 % 5xx, 2 % of answers lost after the work, 429 above 800 calls a second, "
            f"{self.report.by_hand} records made by hand"
        )
        self._traffic.start()

    def _full_sync(self) -> None:
        _chapter("Full sync of all business groups: a Dagster backfill, with live changes going on")
        groups = self._groups()
        asset = ["stone", "mirror"]
        _wait("Dagster knows every business group", lambda: set(self._dagster.partitions(asset)) >= set(groups), 60)
        backfill = self._dagster.launch_backfill([["stone", "archive"], asset], groups)
        console.print(f"  backfill {backfill} over {len(groups)} business groups launched")
        began = moved_at = time.monotonic()
        progress, outage, killed = (0, 0), False, False
        while True:
            state, done, targeted = self._dagster.backfill(backfill)
            records = collect_status(self._context.engine)["records"]
            if progress != (done, records["in_sync"]):
                progress, moved_at = (done, records["in_sync"]), time.monotonic()
            if not outage and records["in_sync"] > 2000:
                outage = True
                self._control("erp", "faults", {"outage": _OUTAGE})
                console.print(f"  [yellow]the ERP goes down for {_OUTAGE:.0f} s[/yellow]")
            elif outage and not killed:
                killed = True
                self._watch.kill_reader()
                console.print("  [yellow]the reader of the catalogue's log is killed (SIGKILL); writes go on[/yellow]")
            console.print(
                f"  {time.monotonic() - began:4.0f} s  {done} of {targeted} partitions, "
                f"{records['archived']} records archived, {records['in_sync']} in sync"
            )
            if state.startswith(("COMPLETED", "FAILED", "CANCELED")):
                break
            if time.monotonic() - moved_at > _STALL_SECONDS:
                raise SyncError(f"the backfill has made no progress for {_STALL_SECONDS} s")
            time.sleep(4)
        if not state.startswith("COMPLETED") or "FAILED" in state:
            raise SyncError(f"the backfill ended as {state}")

    def _settle(self, what: str) -> None:
        if self._traffic.is_alive():
            self._traffic.stop()
            console.print("  live changes: " + ", ".join(f"{n} {kind}" for kind, n in self._traffic.done.items()))
        _wait(what, self._is_settled, 60)

    def _is_settled(self) -> bool:
        found = collect_status(self._context.engine)
        unfinished = sum(found["events"][state] for state in ("pending", "leased", "waiting"))
        heard = found["events"]["received"] + found["events"]["duplicates"] - self._watch.count_events()
        is_quiet = heard >= self._traffic.sent and unfinished == 0 and found["records"]["out_of_sync"] == 0
        return is_quiet and not self._watch.find_missing(self._traffic.written)

    def _write_sql(self) -> None:
        _chapter("Plain SQL in the catalogue's database: no notification, no trigger, and the ERP has it")
        changed, deleted = sorted(self._systems.catalogue.read_rows())[:2]
        self._write_statement(changed, catalogue.build_update(changed, name="River stone"))
        self._wait_for_erp(
            f"UPDATE stones SET name = 'River stone' … WHERE sku = '{changed}'", changed, ["River stone"]
        )
        self._write_statement(deleted, catalogue.build_delete(deleted), is_delete=True)
        self._wait_for_erp(f"DELETE FROM stones WHERE sku = '{deleted}'", deleted, [])

    def _write_statement(self, key: str, statement: tuple[str, list[object]], *, is_delete: bool = False) -> None:
        [row] = self._systems.catalogue.execute(*statement)
        self._traffic.written.append(Write(key, catalogue.to_microseconds(row["at"]), is_delete))

    def _wait_for_erp(self, what: str, key: str, titles: list[str]) -> None:
        """Waits until the ERP shows a stone under these titles, by its own API."""
        began = time.monotonic()
        headers, asked = {"X-Api-Key": access.erp_key()}, {"itemCode": key}

        def is_there() -> bool:
            try:
                answer = self._client.get(f"{self._systems.url('erp')}/api/v2/items", params=asked, headers=headers)
            except httpx.TransportError:  # it loses answers
                return False
            return answer.status_code == 200 and [item["title"] for item in answer.json()["data"]["items"]] == titles

        _wait(what, is_there, 30, pause=0.05, told=lambda: f"{what}: there after {time.monotonic() - began:.1f} s")

    def _validate_first(self) -> None:
        _chapter("Validation: every business group, record by record")
        results = self._validate()
        with self._context.engine.begin() as connection:  # the checks of the backfill's own runs count as well
            told = run(connection, "SELECT count(*) FROM sync.drift WHERE kind <> 'unmanaged'")[0][0]
        self.report.false_alarms = int(told)
        _tell_validation(results)

    def _damage_and_repair(self) -> None:
        _chapter("The ERP silently loses and alters records, and brings deleted ones back")
        with self._context.engine.begin() as connection:
            since = run(connection, "SELECT sync.clock() AS now")[0].now
        done = self._control("erp", "damage", _DAMAGE)
        self.report.injected = {(row["key"], row["kind"]) for row in done}
        console.print(f"  {len(done)} records damaged; no notification, no trace in the API")
        _tell_validation(self._validate())
        self._grey.refused()
        self._settle("the repair, through the normal queue, is done")
        last = self._validate()
        _tell_validation(last)
        self.report.unclean = [f"{result.group}: {result.verdict}" for result in last if result.verdict != "in_sync"]
        with self._context.engine.begin() as connection:
            rows = run(
                connection,
                "SELECT key, kind, status FROM sync.drift WHERE kind <> 'unmanaged' AND found_at >= %(since)s",
                since=since,
            )
        self.report.found = {(row.key, row.kind) for row in rows}
        self.report.repaired = {(row.key, row.kind) for row in rows if row.status == "repaired"}

    def _move_traffic(self) -> None:
        _chapter("The shops' reads move to the new path: from the catalogue to the ERP, step by step")
        for percent in (10, 50, 100):
            self._grey.step(percent)
        self.report.grey = self._grey.wrong

    def _judge(self) -> None:
        self.report.events = collect_status(self._context.engine)["events"]
        self.report.captured = self._watch.measure(self._traffic.written)
        self.report.truth = compare(self._client, self._systems)
        self.report.stats = self._client.get(f"{self._systems.url('erp')}/_control/stats").json()

    def _validate(self) -> list[GroupValidation]:
        entity = self._context.entities["stone"]

        async def work() -> list[GroupValidation]:
            limit = asyncio.Semaphore(_AT_ONCE)

            async def one(group: str) -> GroupValidation:
                async with limit:
                    return await validate(self._context, entity, group, full=True)

            return list(await asyncio.gather(*(one(group) for group in self._groups())))

        return perform(self._context, work())

    def _groups(self) -> list[str]:
        return self._systems.catalogue.list_collections()

    def _control(self, system: str, what: str, order: dict[str, Any]) -> Any:
        answer = self._client.post(f"{self._systems.url(system)}/_control/{what}", json=order)
        answer.raise_for_status()
        return answer.json()


def show(report: Report, seconds: float) -> int:
    """Prints the report; returns the exit status."""
    table = Table(title="Report", title_justify="left")
    table.add_column("")
    table.add_column("figure", justify="right")
    for state in ("received", "done", "superseded", "dead", "duplicates"):
        table.add_row(f"events {state}", f"{report.events.get(state, 0):,}")
    truth = report.truth
    table.add_row("records in the source systems", f"{truth.expected:,}")
    table.add_row("records in sync at the ERP", f"{truth.in_sync:,}")
    table.add_row("duplicates", str(truth.duplicates))
    table.add_row("made by hand there, left alone", f"{truth.by_hand} of {report.by_hand}")
    for name in ("injected", "found", "repaired"):
        table.add_row(f"drift {name}", str(len(getattr(report, name))))
    captured = report.captured
    table.add_row("changes in the catalogue's database", f"{captured.written:,}")
    table.add_row("captured change events", f"{captured.events:,}")
    table.add_row("change to ledger, p50 and p95", f"{captured.p50_ms:,.0f} and {captured.p95_ms:,.0f} ms")
    table.add_row("changes while the reader was dead", f"{captured.killed_writes:,}")
    table.add_row("reader killed, captures again after", f"{captured.restart_seconds:.1f} s")
    for fault, struck in sorted(report.stats.get("faults", {}).items()):
        table.add_row(f"ERP's faults: {fault.replace('_', ' ')}", f"{sum(struck.values()):,}")
    table.add_row("seconds", f"{seconds:.0f}")
    console.print(table)
    wrong = report.wrong()
    for line in wrong:
        console.print(f"[red]wrong:[/red] {line}")
    console.print("[bold green]VERIFIED[/bold green]" if not wrong else "[bold red]NOT VERIFIED[/bold red]")
    return 1 if wrong else 0


def _tell_validation(results: list[GroupValidation]) -> None:
    kinds = Counter(drift.kind for result in results for drift in result.drift)
    found = ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())) or "no difference"
    compared = sum(result.compared or 0 for result in results)
    unasked = sum(result.verdict == "not_validated" for result in results)
    console.print(
        f"  {len(results)} groups, {compared:,} records compared: {found}"
        + (f"; {unasked} groups could not be validated" if unasked else "")
    )


def _chapter(title: str) -> None:
    console.print(f"\n[bold]{title}[/bold]")


def _wait(
    what: str,
    is_so: Callable[[], bool],
    seconds: float,
    *,
    pause: float = 0.5,
    told: Callable[[], str] | None = None,
) -> None:
    ends = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > ends:
            raise SyncError(f"not so after {seconds:.0f} s: {what}")
        time.sleep(pause)
    console.print(f"  {what if told is None else told()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _fresh_home() -> Path:
    home = Path(".sync").resolve() / "demo"
    for name in ("postgres", "catalogue"):
        if embedded.find_running_url(home / name):
            embedded.stop(home / name)
    shutil.rmtree(home, ignore_errors=True)
    make_private_home(home)
    return home


def main() -> int:
    """Plays the story from nothing; returns the exit status."""
    began = time.monotonic()
    home = _fresh_home()
    os.environ.pop("SYNC_DATABASE_URL", None)
    configured = Path(__file__).with_name("sync.yaml")
    os.environ.update(SYNC_HOME=str(home), SYNC_CONFIG=str(configured))
    console.print(
        "[bold]sync_orchestrator demo[/bold]: three internal systems, one ERP that misbehaves.\n"
        "The catalogue is a Postgres, whose changes are captured; lab and pricing have APIs and send notifications.\n"
        "Waits are shortened: retries after 1, 2, 4 s instead of 10, 20, 40 s."
    )
    with running(home) as systems, httpx.Client(timeout=60, trust_env=False) as client, broker() as messages:
        os.environ.update(systems.environment)
        if messages is None:
            console.print("No RabbitMQ runs here: notifications are posted.")
        else:
            console.print("RabbitMQ runs here: pricing tells it of its changes, the lab posts its own.")
            os.environ["SYNC_CONFIG"] = str(messages.configuration(configured, home / "sync.yaml"))
        _chapter("The operator of the catalogue's database runs what `sync-orchestrator capture prepare` prints")
        for statement in systems.catalogue.prepare_capture(Path(os.environ["SYNC_CONFIG"])):
            console.print(f"  {statement}")
        _chapter("Starting database, API service, worker, Dagster's webserver and daemon")
        system = start_all(_free_port(), _free_port(), told=lambda line: console.print(f"  {line}"))
        try:
            context = open_context()
            with context.engine.begin() as connection:
                key = make_key(connection, "the demo's systems", ["events:*"], context.config.sources)
                everything = make_key(connection, "the demo", ["admin"], context.config.sources)
            traffic = Traffic(systems, system.api_url, key, messages)
            grey = Grey(client, system.api_url, everything)
            watch = CaptureWatch(system, context.engine)
            story = Story(systems, client, Dagster(client, system.ui_url), context, traffic, grey, watch)
            report = story.play()
            _keep(client, systems, home)
            context.engine.dispose()
        finally:
            system.stop()
    outcome = show(report, time.monotonic() - began)
    console.print("See it in the Dagster UI: [bold]make up[/bold]")
    return outcome


def _keep(client: httpx.Client, systems: Systems, home: Path) -> None:
    """Keeps what the systems hold in memory, so that ``make up`` shows the same world."""
    for name in _KEPT:
        (home / f"{name}.json").write_text(
            json.dumps(client.get(f"{systems.url(name)}/_control/dump").json()), encoding="utf-8"
        )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SyncError as error:
        console.print(f"[red]error:[/red] {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)

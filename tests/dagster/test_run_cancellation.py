"""A run that is canceled ends in order: calls under way are settled, nothing new begins, and the next run goes on.

Real processes, a real source and a real third party over HTTP, which hold a call back until the test lets it go. The
run's process is ended by what the UI's termination does there, by SIGTERM, and by SIGINT.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import cancel_worker
import dagster as dg
import pytest
import yaml
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from http_server import Server
from paths import SUPPORT
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.assets.archive_checks import SOURCE_CHECK
from sync_orchestrator.assets.mirror_checks import CHECK
from sync_orchestrator.composition import open_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.runtime import perform
from sync_orchestrator.core.validation.validate import validate
from sync_orchestrator.resources.instance.config import DATABASE_VARIABLE

pytestmark = pytest.mark.slow

__all__ = ["instance", "storage", "storage_url"]

WITHIN_SECONDS = 60.0
"""The bound of each wait. The product promises ten seconds; a loaded machine may take longer for Dagster's part."""

GROUPS = ["A", "B"]
KEYS = {f"{group}{number}": group for group in GROUPS for number in range(4)}
UI, SIGTERM, SIGINT = "ui", signal.SIGTERM, signal.SIGINT
WAYS = [UI, SIGTERM, SIGINT]
READING_WAYS = [UI, SIGTERM, pytest.param(SIGINT, marks=pytest.mark.long)]
"""The termination of the UI ends in SIGINT, too: each way has one more set-up that takes seconds."""

Held = Callable[[str, str], bool]


def settings(url: str) -> dict[str, Any]:
    """One entity of a source and a third party at one server. The third party bears two calls at once."""
    return {
        "sources": {"shop": {"base_url": f"{url}/shop", "timeout": 50}},
        "third_parties": {"erp": {"base_url": f"{url}/erp", "timeout": 50, "concurrency": 2, "search_lag": 0}},
        "entities": {
            "item": {
                "owner": "shop",
                "parts": {
                    "shop": {
                        "key": "code",
                        "version": {"path": "v", "kind": "number"},
                        "group": "store",
                        "list": {"path": "/items", "params": {"store": "{{ group }}"}},
                        "read": {"path": "/items/{{ key }}"},
                        "groups": {"path": "/groups"},
                    }
                },
                "mapping": {"code": "key", "store": "group", "name": "shop.name"},
                "validation": {"confirm_after": 0},
                "source_check": {"confirm_after": 0},
                "third_party": {
                    "system": "erp",
                    "key_field": "code",
                    "group": "store",
                    "create": {"path": "/items"},
                    "update": {"method": "PUT", "path": "/items/{{ id }}"},
                    "delete": {"path": "/items/{{ id }}"},
                    "read": {"path": "/items/{{ id }}"},
                    "lookup": {"path": "/items", "params": {"code": "{{ key }}"}},
                    "list": {"path": "/items", "params": {"store": "{{ group }}"}},
                },
            }
        },
        "limits": {"linger": 600, "lease": 300},
        "alerts": {"group_wait": 0},
    }


class Systems:
    """The source and the third party. Calls that ``on_hold`` says are held back until ``let_go``."""

    def __init__(self, server: Server) -> None:
        self.items: dict[str, dict[str, Any]] = {}
        self.rows = {key: {"code": key, "store": group, "name": "n", "v": 1} for key, group in KEYS.items()}
        self.held: Held = lambda method, path: False
        self.reached = threading.Semaphore(0)
        self.calls: list[tuple[str, str]] = []
        self._free: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._seen = server.seen
        server.handler = self._handle

    def writes(self) -> int:
        return sum(1 for method, path in self.calls if method != "GET")

    def let_go(self) -> None:
        """Answers what is held, and holds nothing more."""
        self.held = lambda method, path: False
        if self._loop is not None and self._free is not None:
            self._loop.call_soon_threadsafe(self._free.set)
        self._free = None

    async def _handle(self, request: Request) -> Response:
        method, path = request.method, request.url.path
        self.calls.append((method, path))
        if self.held(method, path):
            self._loop, self._free = asyncio.get_running_loop(), self._free or asyncio.Event()
            free = self._free
            self.reached.release()
            await free.wait()
        return await self._answer(request, *path.strip("/").split("/"))

    async def _answer(self, request: Request, system: str, resource: str, *rest: str) -> Response:
        if resource == "groups":
            return JSONResponse(GROUPS)
        known = self.rows if system == "shop" else self.items
        if request.method == "POST":
            made = {**await request.json(), "id": f"i{len(self.items)}"}
            self.items[made["id"]] = made
            return JSONResponse(made, 201)
        if not rest:
            wanted = dict(request.query_params)
            return JSONResponse([row for row in known.values() if all(row[name] == wanted[name] for name in wanted)])
        if rest[0] not in known:
            return JSONResponse({"error": "no such thing"}, 404)
        if request.method == "PUT":
            known[rest[0]] |= await request.json()
        return JSONResponse(known[rest[0]])


@dataclass
class Runs:
    """Runs of one instance in processes of their own."""

    engine: Engine
    instance: dg.DagsterInstance
    systems: Systems
    context: Context
    worker: subprocess.Popen[str]
    environment: dict[str, str]
    output: Path
    run_id: str = ""
    pid: int = 0
    _left: list[str] = field(default_factory=list)

    def start(
        self,
        job: str,
        *,
        groups: Sequence[str] = (),
        checks: Sequence[tuple[Sequence[str], str]] = (),
        tags: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        self.run_id = str(uuid4())
        ranged = (
            {"dagster/asset_partition_range_start": groups[0], "dagster/asset_partition_range_end": groups[-1]}
            if groups
            else {}
        )
        self.pid = int(
            self._order(
                do="run",
                job=job,
                run_id=self.run_id,
                checks=checks,
                tags={**ranged, **(tags or {})},
                config=config,
                environment=self.environment,
                dagster_home=self.instance.root_directory,
                output=str(self.output),
            )
        )

    def cancel(self, way: Any) -> None:
        """Ends the run; the first half of ``ui`` is what the launcher does, the second what the code server does."""
        if way != UI:
            os.kill(self.pid, way)
            return
        run = self.instance.get_run_by_id(self.run_id)
        assert run is not None
        self.instance.report_run_canceling(run)
        self._order(do="terminate")

    def ended(self) -> dg.DagsterRunStatus:
        """The status, after the process has ended by itself."""
        assert self._order(do="wait") == "0", self.output.read_text()
        run = self.instance.get_run_by_id(self.run_id)
        assert run is not None
        return run.status

    def _order(self, **order: Any) -> str:
        assert self.worker.stdin is not None
        assert self.worker.stdout is not None
        self.worker.stdin.write(json.dumps(order) + "\n")
        self.worker.stdin.flush()
        return self.worker.stdout.readline().strip()

    def query(self, statement: str) -> Any:
        with self.engine.begin() as connection:
            return run(connection, statement)

    def leases(self) -> int:
        """Records, events and groups that somebody holds."""
        return int(
            self.query(
                "SELECT (SELECT count(*) FROM sync.records WHERE lease_until IS NOT NULL)"
                " + (SELECT count(*) FROM sync.events WHERE state = 'leased')"
                " + (SELECT count(*) FROM sync.groups WHERE lease_until IS NOT NULL) AS n"
            )[0].n
        )

    def holds_only(self, calls: int) -> None:
        """Waits until only the records of calls under way are leased."""
        eventually(
            lambda: self.query("SELECT count(*) AS n FROM sync.records WHERE lease_until IS NOT NULL")[0].n == calls
        )

    def archive_all(self) -> None:
        """The system in sync, as after a full sync of each group."""
        for group in GROUPS:
            perform(self.context, full_sync(self.context, self.context.entities["item"], group, patience=5))

    def in_sync(self) -> None:
        """Asserts that each record is at the third party once, as its source has it."""
        assert sorted((item["code"], item["store"], item["name"]) for item in self.systems.items.values()) == sorted(
            (row["code"], row["store"], row["name"]) for row in self.systems.rows.values()
        )
        assert not self.query("SELECT FROM sync.records WHERE out_of_sync")


def eventually(check: Callable[[], Any]) -> None:
    ends = time.monotonic() + WITHIN_SECONDS
    while not check():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.fixture(scope="module")
def worker() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, cancel_worker.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=SUPPORT,
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def systems(server: Server) -> Iterator[Systems]:
    systems = Systems(server)
    yield systems
    systems.let_go()


@pytest.fixture
def runs(
    engine: Engine,
    database_url: str,
    instance: dg.DagsterInstance,
    systems: Systems,
    server: Server,
    worker: subprocess.Popen[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Runs:
    file = tmp_path / "sync.yaml"
    file.write_text(yaml.safe_dump(settings(server.url)))
    environment = {
        "SYNC_CONFIG": str(file),
        "SYNC_HOME": str(tmp_path),
        "SYNC_DATABASE_URL": database_url,
        DATABASE_VARIABLE: os.environ[DATABASE_VARIABLE],
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    instance.add_dynamic_partitions("item_business_group", GROUPS)
    context = open_context(engine, Config.model_validate(settings(server.url)))
    with engine.begin() as connection:
        run(connection, "INSERT INTO sync.groups (entity, group_key) VALUES ('item', 'A'), ('item', 'B')")
    return Runs(engine, instance, systems, context, worker, environment, tmp_path / "output")


def reached(systems: Systems, calls: int) -> None:
    """Waits until calls are held back."""
    for _ in range(calls):
        assert systems.reached.acquire(timeout=WITHIN_SECONDS)


def writes(method: str, path: str) -> bool:
    return method != "GET"


def listings_of(system: str) -> Held:
    return lambda method, path: (method, path) == ("GET", f"/{system}/items")


@pytest.mark.parametrize("way", WAYS)
def test_full_sync(runs: Runs, way: Any) -> None:
    runs.systems.held = writes
    runs.start("full_sync_item", groups=GROUPS)
    reached(runs.systems, 2)
    runs.cancel(way)
    runs.holds_only(2)
    runs.systems.let_go()
    assert runs.ended() is dg.DagsterRunStatus.CANCELED, runs.output.read_text()
    assert runs.systems.writes() == 2
    assert runs.query("SELECT count(*) AS n FROM sync.records WHERE NOT out_of_sync")[0].n == 2
    assert runs.leases() == 0
    runs.start("full_sync_item", groups=GROUPS)
    assert runs.ended() is dg.DagsterRunStatus.SUCCESS
    runs.in_sync()
    assert runs.systems.writes() == len(KEYS)


@pytest.mark.parametrize("way", WAYS)
def test_drain(runs: Runs, way: Any) -> None:
    """SIGTERM ends the whole system, and a drain that it ends has done what it is for."""
    record_events(
        runs.engine,
        [ChangeEvent("shop", f"e {key}", "item", key, "create", 1, row) for key, row in runs.systems.rows.items()],
    )
    runs.systems.held = writes
    runs.start("incremental_sync")
    reached(runs.systems, 2)
    runs.cancel(way)
    runs.holds_only(2)
    runs.systems.let_go()
    ended = dg.DagsterRunStatus.SUCCESS if way == SIGTERM else dg.DagsterRunStatus.CANCELED
    assert runs.ended() is ended, runs.output.read_text()
    assert runs.systems.writes() == 2
    assert runs.leases() == 0
    runs.start("incremental_sync")
    eventually(
        lambda: runs.systems.writes() == len(KEYS) and not runs.query("SELECT FROM sync.records WHERE out_of_sync")
    )
    runs.cancel(way)  # while it lingers
    assert runs.ended() is ended
    runs.in_sync()


@pytest.mark.parametrize("way", READING_WAYS)
@pytest.mark.parametrize(
    ("system", "job", "checks"),
    [
        ("erp", "validate", []),
        ("erp", "__ASSET_JOB", [(["item", "mirror"], CHECK)]),
        ("shop", "check_sources", []),
        ("shop", "__ASSET_JOB", [(["item", "archive"], SOURCE_CHECK)]),
        ("shop", "plan", []),
    ],
    ids=["validation", "mirror check", "source check", "archive check", "plan"],
)
def test_reading(runs: Runs, way: Any, system: str, job: str, checks: Any) -> None:
    """A read has no outcome to be settled: it is cut off."""
    at_once = 1 if job == "plan" else 2
    held = listings_of(system)
    runs.archive_all()
    runs.systems.calls.clear()
    runs.systems.held = held
    runs.start(job, checks=checks)
    reached(runs.systems, at_once)
    runs.cancel(way)
    assert runs.ended() is dg.DagsterRunStatus.CANCELED, runs.output.read_text()
    assert len([call for call in runs.systems.calls if held(*call)]) == at_once
    assert runs.leases() == 0
    runs.systems.let_go()
    if way == UI:
        runs.start(job, checks=checks)
        assert runs.ended() is dg.DagsterRunStatus.SUCCESS
        runs.in_sync()


@pytest.mark.parametrize("way", READING_WAYS)
def test_repair(runs: Runs, way: Any) -> None:
    runs.archive_all()
    for item in runs.systems.items.values():
        item["name"] = "altered"
    found = perform(runs.context, validate(runs.context, runs.context.entities["item"], "A", full=True, repair="ask"))
    assert len(found.drift) == 4
    runs.systems.calls.clear()
    runs.systems.held = writes
    runs.start("repair", tags={"dagster/partition": "A"})
    reached(runs.systems, 2)
    runs.cancel(way)
    runs.holds_only(2)
    runs.systems.let_go()
    assert runs.ended() is dg.DagsterRunStatus.CANCELED, runs.output.read_text()
    assert runs.systems.writes() == 2
    assert runs.leases() == 0
    runs.start("full_sync_item", groups=["A"])
    assert runs.ended() is dg.DagsterRunStatus.SUCCESS
    assert runs.systems.writes() == 4
    assert {item["name"] for item in runs.systems.items.values() if item["store"] == "A"} == {"n"}


@pytest.mark.parametrize(
    ("command", "system"),
    [(["full-sync", "item"], "shop"), (["validate", "item", "--full"], "erp")],
    ids=["full sync", "validate"],
)
def test_command_that_is_interrupted(runs: Runs, command: list[str], system: str) -> None:
    """Ctrl-C."""
    if command[0] == "validate":
        runs.archive_all()
    runs.systems.held = listings_of(system)
    with subprocess.Popen(
        [sys.executable, "-m", "sync_orchestrator", *command],
        text=True,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        reached(runs.systems, 1)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=WITHIN_SECONDS)[1]
    assert (process.returncode, errors) == (130, "canceled: run it again, and it goes on where it stopped\n")
    assert runs.leases() == 0

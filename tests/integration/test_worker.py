"""The worker as real processes: killed, stopped, ended, and several at once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from alert_servers import Webhook
from fakes import two_part_config
from http_server import Server
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.systems.worker_presence import WorkerReport, read_workers
from sync_orchestrator.errors import SyncError
from sync_orchestrator.worker.tasks import MAX_PAUSE_SECONDS, Task

pytestmark = pytest.mark.slow

PATIENCE = 90.0
KEYS = ("a", "b", "c")


def eventually(check: Callable[[], Any], what: str) -> Any:
    """Waits for another process's doing."""
    ends = time.monotonic() + PATIENCE
    while not (found := check()):
        assert time.monotonic() < ends, f"{what} did not come about"
        time.sleep(0.05)
    return found


class Site:
    """A source that is polled, a receiver of outcomes, one of alerts, and the workers between them."""

    def __init__(self, folder: Path, database_url: str, engine: Engine, server: Server, webhook: Webhook) -> None:
        self.engine = engine
        self.webhook = webhook
        self.told: list[tuple[str, int]] = []
        self.changes: list[dict[str, Any]] = []
        self.polls = 0
        self.hook_seconds = 0.0
        self._server = server
        server.handler = self._handle
        part = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}, "group": "store"}
        config = two_part_config(
            shop={"base_url": server.url},
            entity={
                "parts": {
                    "shop": {**part, "changes": {"path": "/changes"}, "poll_every": 1, "overlap": 0},
                    "stock": {name: value for name, value in part.items() if name != "group"},
                }
            },
            outcomes={"audit": {"url": f"{server.url}/hook"}},
            alerts={"urls": [webhook.url], "group_wait": 0},
        )
        (folder / "sync.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("SYNC_")},
            "SYNC_HOME": str(folder / "home"),
            "SYNC_CONFIG": str(folder / "sync.yaml"),
            "SYNC_DATABASE_URL": database_url,
        }
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []

    async def _handle(self, request: Request) -> Response:
        if request.url.path == "/changes":
            self.polls += 1
            return JSONResponse(self.changes)
        event = json.loads(await request.body())
        await asyncio.sleep(self.hook_seconds)
        self.told.append((event["subject"], event["data"]["revision"]))
        return Response(status_code=202)

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        """Starts a worker."""
        with self.log(len(self._workers)).open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "sync_orchestrator", "worker"],
                env={**self._environment, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        self._workers.append(process)
        return process

    def log(self, number: int) -> Path:
        return self._folder / f"worker{number}.log"

    def close(self) -> None:
        """Ends what a test left."""
        for process in self._workers:
            process.kill()
            process.wait()

    def tell_alert(self, cause: str = "work") -> None:
        with self.engine.begin() as connection:
            alerts.raise_alert(connection, "run_failed", cause, f"a run of {cause} failed")

    def write_outcomes(self, revisions: range, keys: tuple[str, ...] = KEYS) -> None:
        routing = outcomes.OutcomeRouting("item", "erp", {"mirrored": ["audit"]})
        with self.engine.begin() as connection:
            for revision in revisions:
                outcomes.record_outcomes(
                    connection, routing, "mirrored", [(key, {"revision": revision}) for key in keys]
                )

    def change(self, *keys: str) -> None:
        """Records change at the source, which notifies nobody."""
        self.changes = [{"key": key, "name": "n", "store": "A", "v": number + 1} for number, key in enumerate(keys)]

    def recorded(self) -> int:
        with self.engine.begin() as connection:
            return count_conservation(connection).received

    def unsent(self) -> dict[str, Any]:
        with self.engine.begin() as connection:
            return outcomes.count_unsent(connection)

    def workers(self) -> WorkerReport:
        with self.engine.begin() as connection:
            return read_workers(connection)

    def end_leases(self) -> None:
        """As when the minute of a sender that was killed is over."""
        with self.engine.begin() as connection:
            run(connection, "UPDATE sync.alert_receivers SET not_before = NULL")
            run(connection, "UPDATE sync.outcome_receivers SET lease_until = NULL")
            run(connection, "UPDATE sync.polls SET lease_until = NULL")

    def told_of(self, key: str) -> list[int]:
        return [revision for told, revision in self.told if told == key]


@pytest.fixture
def webhook() -> Iterator[Webhook]:
    webhook = Webhook()
    webhook.up()
    yield webhook
    webhook.close()


@pytest.fixture
def site(tmp_path: Path, database_url: str, engine: Engine, server: Server, webhook: Webhook) -> Iterator[Site]:
    site = Site(tmp_path, database_url, engine, server, webhook)
    yield site
    site.close()


def in_order(revisions: list[int]) -> bool:
    """Whether nothing older comes after something newer."""
    return revisions == sorted(revisions)


def test_it_sends_and_polls_and_sigterm_ends_it_in_order(site: Site) -> None:
    site.tell_alert()
    site.write_outcomes(range(3))
    site.change("a", "b")
    process = site.start()
    eventually(lambda: site.webhook.titles and len(site.told) == 9 and site.recorded() == 2, "all of it")
    found = eventually(lambda: len((found := site.workers()).tasks) == 5 and found, "the heartbeat")
    assert [task.name for task in found.tasks] == [
        "alerts",
        "outcomes audit",
        "polling item shop",
        "removed receivers",
        "watch",
    ]
    eventually(lambda: "outcomes audit: 9 sent" in site.workers().to_text(), "what it did in its heartbeat")
    for key in KEYS:
        assert site.told_of(key) == [0, 1, 2]
    process.terminate()
    assert process.wait(20) == 0
    assert site.log(0).read_text().endswith("ended; all rounds were over\n")
    assert site.workers().count == 0


def test_it_ends_within_seconds_though_a_receiver_hangs_and_nothing_is_lost(site: Site) -> None:
    site.hook_seconds = 15
    site.write_outcomes(range(1), ("a",))
    process = site.start()
    eventually(lambda: any(path == "/hook" for _, path, _ in site._server.seen), "the call")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert time.monotonic() - began < 12
    assert "ended within a round of outcomes audit" in site.log(0).read_text()
    assert site.unsent()["audit"]["unsent"] == 1


@pytest.mark.parametrize(
    "point", ["alerts.taken", "alerts.delivered", "outcomes.taken", "outcomes.delivered", "polling.page_taken"]
)
def test_killed_there_another_worker_goes_on_and_nothing_is_lost(site: Site, point: str) -> None:
    site.tell_alert()
    site.write_outcomes(range(3))
    site.change("a", "b")
    assert site.start(SYNC_CRASH_AT=point).wait(PATIENCE) == -signal.SIGKILL, site.log(0).read_text()
    site.change("a", "b", "c")
    site.end_leases()
    process = site.start()
    eventually(lambda: site.recorded() == 3 and not site.unsent(), "all of it")
    eventually(lambda: site.webhook.titles, "the alert")
    process.terminate()
    process.wait(20)
    assert site.recorded() == 3  # what was polled before is not recorded again
    assert len(site.webhook.titles) in (1, 2)  # other tasks may have been killed within a message, too
    for key in KEYS:
        told = site.told_of(key)
        before, after = told[:-3], told[-3:]
        assert (before, after) == ([0, 1, 2][: len(before)], [0, 1, 2])
        assert point != "outcomes.delivered" or before == [0, 1, 2]


def test_two_at_once_send_each_message_once_and_in_order(site: Site) -> None:
    processes = [site.start(), site.start()]
    eventually(lambda: site.workers().count == 2, "both")
    for number in range(10):
        site.change(*(f"k{each}" for each in range(number + 1)))
        site.write_outcomes(range(number * 4, number * 4 + 4))
        site.tell_alert(f"job {number}")
        time.sleep(0.2)
    eventually(lambda: site.recorded() == 10 and not site.unsent(), "all of it")
    eventually(lambda: " ".join(site.webhook.titles).count("a run of") + _together(site) >= 10, "the alerts")
    for process in processes:
        process.terminate()
    assert [process.wait(20) for process in processes] == [0, 0]
    for key in KEYS:
        assert site.told_of(key) == list(range(40))
    assert site.recorded() == 10
    told = sum(message["message"].count("What: ") for message in site.webhook.heard)
    assert told == 10


def _together(site: Site) -> int:
    """How many alerts came in messages about several."""
    return sum(message["message"].count("What: ") for message in site.webhook.heard if "jobs" in message["title"])


def test_one_that_stood_still_past_its_lease_sends_nothing_older_after_what_is_newer(site: Site) -> None:
    site.write_outcomes(range(3))
    stopped = site.start(SYNC_STOP_AT="outcomes.taken")
    state = os.waitid(os.P_PID, stopped.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert state is not None
    assert state.si_code == os.CLD_STOPPED, site.log(0).read_text()
    stopped_at = time.monotonic()
    site.write_outcomes(range(3, 5))
    site.end_leases()
    other = site.start()
    eventually(lambda: not site.unsent(), "what the other sends")
    eventually(lambda: time.monotonic() - stopped_at > outcomes.MAX_HAND_OVER_SECONDS, "the end of its claim")
    stopped.send_signal(signal.SIGCONT)
    eventually(lambda: "is given back" in site.log(0).read_text(), "the end of its batch")
    for process in (stopped, other):
        process.terminate()
        process.wait(20)
    for key in KEYS:
        assert site.told_of(key) == [0, 1, 2, 3, 4]


# A task -------------------------------------------------------------------------------------------------------------


def test_an_error_of_a_task_is_logged_with_growing_pauses_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    failures = iter([SyncError("the receiver is down"), ValueError("of whatever kind"), None])
    stop = threading.Event()
    pauses: list[float] = []

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0)
            return self.is_set()

    stop = Stop()

    def work() -> str:
        if (failure := next(failures)) is not None:
            raise failure
        stop.set()
        return "3 sent"

    task = Task("alerts", 5, work)
    with caplog.at_level(logging.INFO, "sync_orchestrator.worker"):
        task.run(stop)
    assert pauses == [2, 4]
    assert [record.getMessage() for record in caplog.records] == [
        "alerts: the receiver is down; the next try is in 2 s",
        "alerts: unexpected ValueError; the next try is in 4 s",
        "alerts: works again",
    ]
    assert task.state.make_report().did == "3 sent"
    assert max(task.state.note_failure(SyncError("down")) for _ in range(50)) == MAX_PAUSE_SECONDS


def test_a_task_that_fails_is_quiet_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    task = Task("alerts", 5, lambda: "")
    monkeypatch.setattr("sync_orchestrator.worker.tasks.time.monotonic", lambda: now + 100)
    task.state.note_failure(SyncError("down\x00 with a NUL"))
    report = task.state.make_report()
    assert (round(report.quiet_seconds), "\x00" in str(report.error)) == (100, False)
    task.state.note_success("")
    assert (task.state.make_report().quiet_seconds, task.state.make_report().error) == (0, None)

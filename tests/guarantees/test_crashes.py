"""SIGKILL at every crash point of a real process: after a restart nothing is lost, nothing is twice, all is in sync."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import crash_worker
import pytest
from paths import SUPPORT
from sqlalchemy import Engine

from sync_orchestrator.config import AlertSettings
from sync_orchestrator.core.crash_points import REGISTERED
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.notifications import alerts, outcomes

pytestmark = pytest.mark.slow

# test_consume.py, test_capture_crashes.py, test_worker.py, test_field_restore.py and test_linked_calls.py have those
ELSEWHERE = ("consume.", "capture.", "polling.", "adoption.", "writes.", "push.half_deleted")
_PATIENCE = 90.0
POINTS = sorted(point for point in set(REGISTERED) if not point.startswith(ELSEWHERE))


class Workers:
    """Starts one worker after the other, each a fork of a process that has all libraries."""

    def __init__(self, folder: Path) -> None:
        self._output = folder / "output"
        environment = {name: value for name, value in os.environ.items() if name != "SYNC_CRASH_AT"}
        self._process = subprocess.Popen(
            [sys.executable, crash_worker.__file__],
            env=environment,
            text=True,
            cwd=SUPPORT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, database_url: str, crash_at: str | None = None) -> tuple[int, str]:
        """Has one do everything; returns its exit code and what it printed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {"database_url": database_url, "crash_at": crash_at, "output": str(self._output)}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        watchdog = threading.Timer(_PATIENCE, os.killpg, (self._process.pid, signal.SIGKILL))
        watchdog.start()
        try:
            return int(self._process.stdout.readline()), self._output.read_text()
        finally:
            watchdog.cancel()

    def end(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    made = Workers(tmp_path_factory.mktemp("workers"))
    yield made
    made.end()


@pytest.mark.parametrize("point", POINTS)
def test_killed_there_and_started_again_all_is_in_sync(
    point: str, engine: Engine, database_url: str, workers: Workers
) -> None:
    code, said = workers.run(database_url, point)
    assert code == -signal.SIGKILL, f"{point} was never reached: {said[-2000:]}"
    _, said = workers.run(database_url)
    assert said.strip().endswith("ended"), said[-2000:]
    shop, stock = crash_worker.sources()
    with engine.begin() as connection:
        # as when the killed sender's minute is over
        run(connection, "UPDATE sync.alert_receivers SET not_before = NULL")
        run(connection, "UPDATE sync.outcome_receivers SET lease_until = NULL")
    alerts.send_due_alerts(engine, AlertSettings(group_wait=0))
    outcomes.send_due_outcomes(engine, {"audit": crash_worker.TableReceiver(engine)}, AlertSettings())
    with engine.begin() as connection:
        told = [row.event for row in run(connection, "SELECT event FROM told ORDER BY n")]
        untold = outcomes.count_unsent(connection)
        revisions = {row.key: row.revision for row in run(connection, "SELECT key, revision FROM sync.records")}
        held = [row.item for row in run(connection, "SELECT item FROM third_party")]
        totals = count_conservation(connection)
        recorded, ids = tuple(
            run(
                connection,
                """
            SELECT count(*), count(DISTINCT (source, event_id))
            FROM (SELECT source, event_id FROM sync.events UNION ALL
                  SELECT source, event_id FROM sync.event_history) e""",
            )[0]
        )
        unsent = run(
            connection,
            "SELECT count(*) FROM sync.alerts WHERE resolved_at IS NULL AND id NOT IN "
            "(SELECT alert_id FROM sync.alert_receivers WHERE told_at IS NOT NULL)",
        )[0][0]
    expected = [
        {"code": key, "store": "A", "name": shop.rows[key].data["name"], "count": stock.rows[key].data["count"]}
        for key in crash_worker.KEYS
    ]
    assert sorted(held, key=lambda item: str(item["code"])) == sorted(expected, key=lambda item: str(item["code"]))
    assert totals.balanced
    # A thin notification that was looked for already is a new request to look (rule 31).
    assert ids == len(crash_worker.notifications(shop, stock)) + 1  # and one that the check made up for
    assert recorded == totals.received
    assert {state for state, n in totals.states.items() if n} <= {"done", "superseded"}
    assert unsent == 0
    assert untold == {}
    newest = {event["subject"]: event["data"]["revision"] for event in told if event["type"] == "item.mirrored"}
    assert newest == revisions
    assert any(event["type"] == "item.drift" for event in told)
    repeated = len(told) - len({event["id"] for event in told})
    assert (repeated > 0) == (point == "outcomes.delivered"), "only what was sent and not noted is told again"

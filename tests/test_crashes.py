"""SIGKILL at every crash point of a real process: after a restart nothing is lost, nothing is twice, all is in step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import crash_worker
import pytest
from sqlalchemy import Engine

from sync_orchestrator.config import Alerts
from sync_orchestrator.core import alerts, outcomes
from sync_orchestrator.core.crash_points import REGISTERED
from sync_orchestrator.core.ledger import conservation
from sync_orchestrator.core.sql import run

ELSEWHERE = ("consume.", "adoption.")  # test_consume.py and test_field_restore.py have those
POINTS = sorted(point for point in set(REGISTERED) if not point.startswith(ELSEWHERE))


def run_worker(database_url: str, crash_at: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "SYNC_CRASH_AT"}
    if crash_at:
        environment["SYNC_CRASH_AT"] = crash_at
    return subprocess.run([sys.executable, crash_worker.__file__, database_url], env=environment, text=True,
                          cwd=Path(__file__).parent, capture_output=True, timeout=90)


@pytest.mark.parametrize("point", POINTS)
def test_killed_there_and_started_again_all_is_in_step(point: str, engine: Engine, database_url: str) -> None:
    killed = run_worker(database_url, point)
    assert killed.returncode == -signal.SIGKILL, f"{point} was never reached: {killed.stderr[-2000:]}"
    again = run_worker(database_url)
    assert again.stdout.strip().endswith("ended"), again.stderr[-2000:]
    shop, stock = crash_worker.sources()
    with engine.begin() as connection:
        # as when the killed sender's minute is over
        run(connection, "UPDATE sync.alert_receivers SET not_before = NULL")
        run(connection, "UPDATE sync.outcome_receivers SET lease_until = NULL")
    alerts.send_due(engine, Alerts(group_wait=0))
    outcomes.send_due(engine, {"audit": crash_worker.TableReceiver(engine)}, Alerts())
    with engine.begin() as connection:
        told = [row.event for row in run(connection, "SELECT event FROM told ORDER BY n")]
        untold = outcomes.unsent(connection)
        revisions = {row.key: row.revision for row in run(connection, "SELECT key, revision FROM sync.records")}
        held = [row.item for row in run(connection, "SELECT item FROM third_party")]
        totals = conservation(connection)
        recorded, ids = run(connection, """
            SELECT count(*), count(DISTINCT (source, event_id))
            FROM (SELECT source, event_id FROM sync.events UNION ALL
                  SELECT source, event_id FROM sync.event_history) e""")[0]
        unsent = run(connection, "SELECT count(*) FROM sync.alerts WHERE resolved_at IS NULL AND id NOT IN "
                             "(SELECT alert_id FROM sync.alert_receivers WHERE told_at IS NOT NULL)")[0][0]
    expected = [{"code": key, "store": "A", "name": shop.rows[key].data["name"],
                 "count": stock.rows[key].data["count"]} for key in crash_worker.KEYS]
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

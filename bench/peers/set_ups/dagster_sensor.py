"""A plain Dagster project: a sensor that asks for a run per 500 changes of a table, and an op that pushes them.

Loaded by ``dagster-daemon``; ``PEER_DATABASE`` is the SQLite file. The sensor looks as often as the daemon lets it; the
job runs in its run's one process, the shortest way there is. Calls are retried by urllib3, creates too, the op by
Dagster's retry policy. Annotations are not postponed: Dagster looks at them.
"""

import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import requests
from urllib3.util import Retry

BATCH = 500
DATABASE = Path(os.environ["PEER_DATABASE"])


@dg.op(
    config_schema={"after": int, "until": int},
    retry_policy=dg.RetryPolicy(max_retries=3, delay=1, backoff=dg.Backoff.EXPONENTIAL),
)
def push(context: dg.OpExecutionContext) -> None:
    with sqlite3.connect(DATABASE) as database:
        rows = database.execute(
            "SELECT how, url, record FROM changes WHERE id > ? AND id <= ? ORDER BY id",
            (context.op_config["after"], context.op_config["until"]),
        ).fetchall()
    session = requests.Session()
    session.mount(
        "http://",
        requests.adapters.HTTPAdapter(
            max_retries=Retry(
                total=5, backoff_factor=0.05, status_forcelist=[429, 500, 502, 503, 504], allowed_methods=None
            )
        ),
    )
    how, url = rows[0][:2]
    records = [json.loads(row[2]) for row in rows]
    if how == "bulk":
        session.post(f"{url}/bulk", json={"items": records}, timeout=30).raise_for_status()
        return
    for record in records:
        session.post(f"{url}/items", json=record, timeout=30).raise_for_status()


@dg.job(executor_def=dg.in_process_executor)
def push_changes() -> None:
    push()


@dg.sensor(job=push_changes, minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def new_changes(context: dg.SensorEvaluationContext) -> Iterator[dg.RunRequest]:
    after = int(context.cursor or 0)
    with sqlite3.connect(DATABASE) as database:
        newest = database.execute("SELECT coalesce(max(id), 0) FROM changes").fetchone()[0]
    for start in range(after, newest, BATCH):
        until = min(start + BATCH, newest)
        yield dg.RunRequest(
            run_key=f"{start}-{until}", run_config={"ops": {"push": {"config": {"after": start, "until": until}}}}
        )
    context.update_cursor(str(newest))
    DATABASE.with_name("looked").touch()


definitions = dg.Definitions(jobs=[push_changes], sensors=[new_changes])

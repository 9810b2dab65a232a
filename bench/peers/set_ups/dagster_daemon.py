"""A plain Dagster project's daemon, in a DAGSTER_HOME of its own, with the changes recorded while it looks.

``python dagster_daemon.py``.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol import Case, serve

HOME = Path.cwd() / "home"
DATABASE = Path.cwd() / "changes.sqlite"


@contextmanager
def prepared(case: Case) -> Iterator[Callable[[], None]]:
    """To go is to record the changes, in one transaction."""
    rows = [(case.how, case.url, json.dumps(record)) for record in case.records]

    def go() -> None:
        with sqlite3.connect(DATABASE) as database:
            database.executemany("INSERT INTO changes (how, url, record) VALUES (?, ?, ?)", rows)

    yield go


@contextmanager
def daemon() -> Iterator[None]:
    """The daemon, from the first look of the sensor until the end of the block."""
    HOME.mkdir()
    (HOME / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with sqlite3.connect(DATABASE) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE changes (id INTEGER PRIMARY KEY, how, url, record)")
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("dagster-daemon")),
            "run",
            "-f",
            str(Path(__file__).with_name("dagster_sensor.py")),
        ],
        env={**os.environ, "DAGSTER_HOME": str(HOME), "PEER_DATABASE": str(DATABASE)},
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
    )
    try:
        ends = time.monotonic() + 60
        while not DATABASE.with_name("looked").exists():
            if process.poll() is not None or time.monotonic() > ends:
                raise SystemExit("the sensor does not look")
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


if __name__ == "__main__":
    with daemon():
        serve(prepared)

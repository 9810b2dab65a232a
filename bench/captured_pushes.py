"""How soon a change that is committed at the source is at the third party, through the whole running system."""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import psycopg

from bench.drain import settings, third_party
from bench.serving import free_port
from bench.steady import until
from sync_orchestrator.supervisor.system import start_all

WARM_UP_CHANGES = 400
TABLE = """
CREATE TABLE wares (sku text PRIMARY KEY, store text, v bigint, name text, price float8);
CREATE PUBLICATION wares FOR TABLE wares
"""
INSERT = "INSERT INTO wares VALUES (%s, 'north', 1, 'a lamp that stands on a table', 12.5)"
FINISHED = """
SELECT key, EXTRACT(epoch FROM finished_at)::float8 AS at FROM sync.event_history WHERE state = 'done'
"""


def measure_pushes(source_url: str, changes_per_second: int, seconds: float) -> list[float]:
    """Milliseconds from each commit at the source until the third party's answer was noted.

    Everything runs as ``sync-orchestrator up`` starts it, on a database of its own. The first two seconds do not count,
    nor does what the first drain of a system that has just begun needs.
    """
    number = WARM_UP_CHANGES + int(seconds * changes_per_second)
    plain_url = source_url.replace("postgresql+psycopg://", "postgresql://", 1)
    with (
        psycopg.connect(plain_url, autocommit=True) as source,
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place,
        third_party() as port,
    ):
        source.execute(TABLE.encode())
        config = Path(place) / "sync.yaml"
        config.write_text(json.dumps(_configure(port, source_url)))
        os.environ.update(SYNC_HOME=str(Path(place) / "home"), SYNC_CONFIG=str(config))
        system = start_all(free_port(), free_port(), told=lambda line: None)
        try:
            ledger_url = system.environment["SYNC_DATABASE_URL"].replace("postgresql+psycopg://", "postgresql://", 1)
            with psycopg.connect(ledger_url, autocommit=True) as ledger:
                until(lambda: _is_read(source), "the stream")
                source.execute(INSERT, ("first",))
                until(lambda: len(ledger.execute(FINISHED).fetchall()) == 1, "the first change")
                committed = _write(source, number, changes_per_second)
                until(lambda: len(ledger.execute(FINISHED).fetchall()) > number, "the end of the work")
                finished: dict[str, float] = dict(ledger.execute(FINISHED).fetchall())
        finally:
            system.stop()
            source.execute("SELECT pg_drop_replication_slot('pushes')")
    return [(finished[key] - at) * 1000 for key, at in list(committed.items())[WARM_UP_CHANGES:]]


def _configure(port: int, source_url: str) -> dict[str, Any]:
    """The configuration of the drain's measurement, with a captured source."""
    made = settings(port)
    capture = {"slot": "pushes", "publication": "wares"}
    made["sources"] = {"shop": {"kind": "sql", "url": source_url, "capture": capture}}
    made["entities"]["product"]["parts"]["shop"] = {
        "sql": {"table": "wares"},
        "key": "sku",
        "group": "store",
        "version": {"path": "v", "kind": "number"},
        "changes": {"by": "log"},
    }
    return made


def _is_read(source: psycopg.Connection[Any]) -> bool:
    row = source.execute("SELECT active FROM pg_replication_slots WHERE slot_name = 'pushes'").fetchone()
    return bool(row and row[0])


def _write(source: psycopg.Connection[Any], number: int, changes_per_second: int) -> dict[str, float]:
    """Commits one row after another, each at its time; returns by key when that was, in seconds since 1970."""
    committed, began = {}, time.monotonic()
    for at in range(number):
        time.sleep(max(0.0, began + at / changes_per_second - time.monotonic()))
        source.execute(INSERT, (f"w{at}",))
        committed[f"w{at}"] = time.time()
    return committed

"""Changes captured from a source database's log, beside the recording of the same changes from a list in memory.

``python -m bench.capture [--quick | --long]``. The source is an embedded server with ``wal_level = logical``; the
ledger is on another server. The reader is a process of its own, as in operation. Rates are those of a stream that
catches up. Where MariaDB is installed, its binlog is captured, too: of that, events only say which records are read.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import psycopg

from bench.mariadb_source import connect_mariadb, find_program, mariadb_source
from bench.memory import peak_megabytes
from bench.serving import database
from bench.table import Line, show
from sync_orchestrator.capture.stream import capture
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.database import embedded

BATCH = 1000
WANTED_RATIO = 0.8
WANTED_MARIADB_RATE = 2000
CHANGES_PER_SECOND = 200
WARM_UP_CHANGES = 400
PATIENCE_SECONDS = 600.0
TIME = "2026-01-01T00:00:00Z"
TABLE = """
CREATE TABLE items (sku text PRIMARY KEY, store text, v timestamptz, name text, price float8);
CREATE PUBLICATION sync_orchestrator FOR TABLE items
"""
ROWS = "SELECT 'k' || n, 'north', '2026-01-01T00:00:00Z'::timestamptz, 'a lamp that stands on a table', 12.5"


def make_config(source_url: str) -> Config:
    """An entity with one captured part."""
    capture = {"slot": "bench"} if source_url.startswith("postgresql") else {}
    return Config.model_validate(
        {
            "sources": {"shop": {"kind": "sql", "url": source_url, "capture": capture}},
            "third_parties": {"erp": {"base_url": "http://127.0.0.1:1"}},
            "entities": {
                "product": {
                    "owner": "shop",
                    "parts": {
                        "shop": {
                            "sql": {"table": "items"},
                            "key": "sku",
                            "group": "store",
                            "version": {"path": "v"},
                            "changes": {"by": "log"},
                        }
                    },
                    "mapping": {"code": "key", "name": "shop.name"},
                    "third_party": {
                        "system": "erp",
                        "key_field": "code",
                        "create": {"path": "/"},
                        "update": {"path": "/{{ id }}"},
                        "delete": {"path": "/{{ id }}"},
                        "read": {"path": "/{{ id }}"},
                        "list": {"path": "/"},
                    },
                }
            },
        }
    )


def make_event(number: int, name: str) -> ChangeEvent:
    """The change event that a row of the table becomes; ``name``: of the measurement, for its id."""
    data = {
        "sku": f"k{number}",
        "store": "north",
        "v": TIME,
        "name": "a lamp that stands on a table",
        "price": 12.5,
    }
    version = 1_767_225_600_000_000
    event_id = f"{name}/00000000/0/{number:08x}/1/product/k{number}"
    return ChangeEvent("shop", event_id, "product", f"k{number}", "create", version, data, "north", "capture")


def connect(url: str) -> psycopg.Connection[Any]:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), autocommit=True)


class Stream:
    """The stream of the source ``source_url`` into the ledger ``ledger_url``, and looks at how far it is."""

    def __init__(self, source_url: str, ledger_url: str) -> None:
        self.source_url = source_url
        self.ledger_url = ledger_url
        self.source: Any = self.connect_source()
        self.ledger = connect(ledger_url)
        self.written = 0

    def connect_source(self) -> Any:
        """A connection to the source."""
        return connect(self.source_url)

    def count_events(self) -> int:
        """How many change events the stream has recorded."""
        row = self.ledger.execute("SELECT sum(events)::bigint FROM sync.streams").fetchone()
        return int(row[0] or 0) if row else 0

    def is_open(self) -> bool:
        """Whether the reader reads the log."""
        row = self.source.execute("SELECT active FROM pg_replication_slots WHERE slot_name = 'bench'").fetchone()
        return bool(row and row[0])

    @contextmanager
    def reading(self) -> Iterator[list[float]]:
        """A reader in a process of its own; behind the block the list has its most memory, in megabytes."""
        peak: list[float] = []
        words = [sys.executable, "-m", "bench.capture", "--reader", self.source_url, self.ledger_url]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        try:
            yield peak
        finally:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            peak.append(float(said.split()[-1]))

    def begin(self) -> None:
        """Has the stream begin, so that what is written from now on is captured."""
        with self.reading():
            wait_until(self.is_open, 0.05)

    def write(self, number: int, per_transaction: int) -> None:
        """Writes new rows at the source, so many in each transaction."""
        first, self.written = self.written, self.written + number
        statement = (
            "DO $$ BEGIN SET synchronous_commit = off; "
            f"FOR i IN 0..{number // per_transaction - 1} LOOP INSERT INTO items {ROWS} FROM "
            f"generate_series({first} + i * {per_transaction}, {first} + (i + 1) * {per_transaction} - 1) n; "
            "COMMIT; END LOOP; END $$"
        )
        self.source.execute(statement.encode())
        self.source.execute("RESET synchronous_commit")  # the log tells a commit once it is on disk


class MariadbStream(Stream):
    """The stream of a MariaDB."""

    def connect_source(self) -> Any:
        """A connection to the source."""
        return connect_mariadb(self.source_url, "shop")

    def is_open(self) -> bool:
        """Whether the position is known, from which on all is captured."""
        row = self.ledger.execute("SELECT 1 FROM sync.streams WHERE position LIKE 'mariadb:%'").fetchone()
        return row is not None

    def write(self, number: int, per_transaction: int) -> None:
        """Writes new rows at the source, so many in each transaction."""
        first, self.written = self.written, self.written + number
        with self.source.cursor() as cursor:
            cursor.execute("SET GLOBAL innodb_flush_log_at_trx_commit = 2")
            cursor.execute(
                f"BEGIN NOT ATOMIC FOR i IN 0..{number // per_transaction - 1} DO "
                f"INSERT INTO items SELECT concat('k', {first} + i * {per_transaction} + seq), 'north', '2026-01-01', "
                f"'a lamp that stands on a table', 12.5 FROM seq_1_to_{per_transaction}; END FOR; END"
            )


def wait_until(check: Callable[[], bool], pause_seconds: float) -> None:
    """Waits for another process's doing."""
    ends = time.monotonic() + PATIENCE_SECONDS
    while not check():
        if time.monotonic() > ends:
            raise SystemExit("the stream did not come that far")
        time.sleep(pause_seconds)


def measure_captured(stream: Stream, number: int, per_transaction: int) -> float:
    """Events a second from the log into the ledger, from the first one that is recorded."""
    stream.write(number, per_transaction)
    before = stream.count_events()
    with stream.reading():
        wait_until(lambda: stream.count_events() > before, 0.002)
        began, first = time.monotonic(), stream.count_events()
        wait_until(lambda: stream.count_events() >= before + number, 0.01)
        return (before + number - first) / (time.monotonic() - began)


def measure_recorded(ledger_url: str, number: int, name: str) -> float:
    """Events a second into the ledger, in batches of 1,000 from one thread."""
    engine = open_engine(ledger_url)
    batches = [[make_event(at + one, name) for one in range(BATCH)] for at in range(0, number, BATCH)]
    began = time.monotonic()
    for events in batches:
        record_events(engine, events)
    rate = number / (time.monotonic() - began)
    engine.dispose()
    return rate


def measure_latencies(stream: Stream, seconds: float) -> list[float]:
    """Milliseconds from each commit at the source to its event in the ledger, at 200 changes a second.

    The first two seconds do not count: a reader that has just begun describes tables and opens connections.
    """
    number = WARM_UP_CHANGES + int(seconds * CHANGES_PER_SECOND)
    committed: list[float] = []
    seen: list[float] = []

    def write() -> None:
        began = time.monotonic()
        for at in range(number):
            time.sleep(max(0.0, began + at / CHANGES_PER_SECOND - time.monotonic()))
            stream.source.execute(
                "INSERT INTO items VALUES (%s, 'north', now(), 'a lamp that stands on a table', 12.5)", (f"l{at}",)
            )
            committed.append(time.monotonic())

    with stream.reading():
        wait_until(stream.is_open, 0.05)
        before = stream.count_events()
        writer = threading.Thread(target=write)
        writer.start()

        def look() -> bool:
            count, now = stream.count_events() - before, time.monotonic()
            seen.extend([now] * (count - len(seen)))
            return len(seen) >= number

        wait_until(look, 0.001)
        writer.join()
    latencies = [max(0.0, (there - here) * 1000) for here, there in zip(committed, seen, strict=True)]
    return latencies[WARM_UP_CHANGES:]


def measure_memory(stream: Stream, number: int) -> float:
    """The most memory of a reader that reads a transaction of so many rows, in megabytes."""
    before = stream.count_events()
    if number:
        stream.write(number, number)
    with stream.reading() as peak:
        wait_until(stream.is_open, 0.05)
        wait_until(lambda: stream.count_events() >= before + number, 0.1)
    return peak[0]


def run_reader(source_url: str, ledger_url: str) -> None:
    """Reads the stream until SIGTERM, and prints the most memory that this process had."""
    capture(open_engine(ledger_url), make_config(source_url), None)
    print(peak_megabytes())


@contextmanager
def logical_source() -> Iterator[str]:
    """An embedded server with ``wal_level = logical`` and the published table; its URL."""
    wanted = (*embedded._SETTINGS, "wal_level = logical", "max_wal_senders = 10", "max_replication_slots = 10")
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "postgres"
        with patch.object(embedded, "_SETTINGS", wanted):
            url = embedded.start(folder)
        try:
            with connect(url) as connection:
                connection.execute(TABLE.encode())
            yield url
        finally:
            embedded.stop(folder)


def measure_mariadb(ledger_url: str, single: int, hundreds: int) -> list[Line]:
    """Events a second from a binlog; none where MariaDB is not installed."""
    if find_program() is None:
        return [Line("captured from MariaDB", 0, "/s", "not measured: MariaDB is not installed")]
    lines = []
    with mariadb_source() as source_url:
        stream = MariadbStream(source_url, ledger_url)
        stream.begin()
        for per_transaction, number in ((1, single), (100, hundreds)):
            rate = measure_captured(stream, number, per_transaction)
            rows = "1 row" if per_transaction == 1 else f"{per_transaction} rows"
            lines.append(
                Line(
                    f"captured from MariaDB, {rows} a transaction",
                    rate,
                    "/s",
                    "events that lead to reads",
                    None,
                    f"{WANTED_MARIADB_RATE:,} /s",
                    rate >= WANTED_MARIADB_RATE,
                )
            )
    return lines


def measure(stream: Stream, numbers: tuple[int, int, int, float]) -> list[Line]:
    """All of it. ``numbers``: rows by one, rows by a hundred, rows of the large transaction, seconds of changes."""
    single, hundreds, large, seconds = numbers
    stream.begin()
    lines = []
    for per_transaction, number in ((1, single), (100, hundreds)):
        alone = measure_recorded(stream.ledger_url, number, f"bench{per_transaction}")
        captured = measure_captured(stream, number, per_transaction)
        lines.append(
            Line(
                f"captured, {per_transaction} {'row' if per_transaction == 1 else 'rows'} a transaction",
                captured,
                "/s",
                f"recorded in batches of 1,000: {alone:,.0f} /s",
                captured / alone,
                f"{WANTED_RATIO}",
                captured / alone >= WANTED_RATIO,
            )
        )
    latencies = sorted(measure_latencies(stream, seconds))
    cuts = statistics.quantiles(latencies, n=20)
    said = f"at {CHANGES_PER_SECOND} changes a second"
    lines += [
        Line("from commit to ledger, p50", statistics.median(latencies), "ms", said),
        Line("from commit to ledger, p95", cuts[18], "ms", said),
    ]
    idle, peak = measure_memory(stream, 0), measure_memory(stream, large)
    lines.append(
        Line(f"memory, a transaction of {large:,} rows", peak, "MB", f"without rows: {idle:,.0f} MB", peak / idle)
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--mariadb", action="store_true", help="measure MariaDB alone")
    parser.add_argument("--reader", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reader:
        run_reader(*options.reader)
        return
    numbers = (5_000, 50_000, 200_000, 5.0) if options.quick else (20_000, 200_000, 200_000, 30.0)
    if options.long:
        numbers = (*numbers[:2], 1_000_000, numbers[3])
    if options.mariadb:
        with database() as ledger_url:
            show("capture", measure_mariadb(ledger_url, *numbers[:2]))
        return
    with database() as ledger_url, logical_source() as source_url:
        lines = measure(Stream(source_url, ledger_url), numbers)
    with database() as ledger_url:
        show("capture", [*lines, *measure_mariadb(ledger_url, *numbers[:2])])


if __name__ == "__main__":
    main()

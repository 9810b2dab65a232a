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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
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
AT_REST_SECONDS = 3.0
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


def connect(url: str, **settings: Any) -> psycopg.Connection[Any]:
    return psycopg.connect(url.replace("postgresql+psycopg://", "postgresql://", 1), autocommit=True, **settings)


@dataclass(slots=True)
class ReaderFigures:
    """What a reader's process used."""

    process: psutil.Process | None = None
    peak_megabytes: float = 0.0

    def read_cpu_seconds(self) -> float:
        """Seconds of processor time so far."""
        assert self.process is not None
        times = self.process.cpu_times()
        return float(times.user + times.system)


class Stream:
    """The stream of the source ``source_url`` into the ledger ``ledger_url``, and looks at how far it is."""

    def __init__(self, source_url: str, ledger_url: str) -> None:
        self.source_url = source_url
        self.ledger_url = ledger_url
        self.source: Any = self.connect_source()
        self.ledger = connect(ledger_url)
        self.written = 0
        self.ends = ""

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

    def read_retained_bytes(self) -> int:
        """How much log the source keeps for the stream."""
        row = self.source.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::bigint FROM pg_replication_slots "
            "WHERE slot_name = 'bench'"
        ).fetchone()
        return int(row[0]) if row else 0

    @contextmanager
    def reading(self) -> Iterator[ReaderFigures]:
        """A reader in a process of its own; its figures are whole behind the block."""
        figures = ReaderFigures()
        words = [sys.executable, "-m", "bench.capture", "--reader", self.source_url, self.ledger_url]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        figures.process = psutil.Process(process.pid)
        try:
            yield figures
        finally:
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=60)
            figures.peak_megabytes = float(said.split()[-1])

    def begin(self) -> None:
        """Has the stream begin, so that what is written from now on is captured."""
        with self.reading():
            wait_until(self.is_open, 0.05)

    def write(self, number: int, per_transaction: int) -> None:
        """Writes new rows at the source. ``per_transaction``: how many of them are committed together."""
        first, self.written = self.written, self.written + number
        statement = (
            "DO $$ BEGIN SET synchronous_commit = off; "
            f"FOR i IN 0..{number // per_transaction - 1} LOOP INSERT INTO items {ROWS} FROM "
            f"generate_series({first} + i * {per_transaction}, {first} + (i + 1) * {per_transaction} - 1) n; "
            "COMMIT; END LOOP; END $$"
        )
        self.source.execute(statement.encode())
        self.source.execute("RESET synchronous_commit")  # the log tells a commit once it is on disk
        self.ends = self.read_position()

    def read_position(self) -> str:
        """Where the source's log ends."""
        row = self.source.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None
        return str(row[0])

    def is_acknowledged(self) -> bool:
        """Whether all that was written is acknowledged: nothing of it is read again."""
        query = "SELECT confirmed_flush_lsn >= %s FROM pg_replication_slots WHERE slot_name = 'bench'"
        row = self.source.execute(query, (self.ends,)).fetchone()
        return bool(row and row[0])


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
        """Writes new rows at the source. ``per_transaction``: how many of them are committed together."""
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
    with stream.reading() as figures:
        wait_until(stream.is_open, 0.05)
        wait_until(lambda: stream.count_events() >= before + number and stream.is_acknowledged(), 0.1)
    return figures.peak_megabytes


def measure_idle(stream: Stream, seconds: float) -> float:
    """The share of one core, in percent, that a reader takes while nothing is changed."""
    with stream.reading() as figures:
        wait_until(stream.is_open, 0.05)
        time.sleep(AT_REST_SECONDS)
        before, began = figures.read_cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (figures.read_cpu_seconds() - before) / (time.monotonic() - began) * 100


def measure_retained(stream: Stream, megabytes: int) -> tuple[float, float]:
    """Megabytes of log that the source keeps while another of its databases writes ``megabytes``: peak and end.

    The end is one minute after the last write, or sooner where little is kept.
    """
    stream.source.execute("CREATE DATABASE neighbour")
    most = 0.0
    with connect(stream.source_url, dbname="neighbour") as neighbour, stream.reading():
        wait_until(stream.is_open, 0.05)
        neighbour.execute("CREATE TABLE filler (text text)")
        begin = stream.read_position()

        def read_written() -> float:
            query = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), %s)::float8"
            found = stream.source.execute(query, (begin,)).fetchone()
            return float(found[0]) / 1024**2 if found else 0.0

        while read_written() < megabytes:
            neighbour.execute("INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, 8000) n")
            neighbour.execute("TRUNCATE filler")
            most = max(most, stream.read_retained_bytes() / 1024**2)
        ends = time.monotonic() + 60
        while (left := stream.read_retained_bytes() / 1024**2) > 32 and time.monotonic() < ends:
            time.sleep(1)
    return most, left


def run_reader(source_url: str, ledger_url: str) -> None:
    """Reads the stream until SIGTERM, and prints the most memory that this process had."""
    capture(open_engine(ledger_url), make_config(source_url), None)
    print(peak_megabytes())


@contextmanager
def logical_source() -> Iterator[str]:
    """An embedded server with ``wal_level = logical`` and the published table; its URL."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "postgres"
        url = embedded.start(folder, ("wal_level = logical", "max_wal_senders = 10", "max_replication_slots = 10"))
        try:
            with connect(url) as connection:
                connection.execute(TABLE.encode())
            yield url
        finally:
            embedded.stop(folder)


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured: rows, seconds of changes and of rest, megabytes of a neighbour's log."""

    single_rows: int = 20_000
    hundreds_rows: int = 200_000
    large_rows: int = 200_000
    seconds: float = 30.0
    idle_seconds: float = 30.0
    neighbour_megabytes: int = 256


QUICK = Extent(5_000, 50_000, 200_000, 5.0, 5.0, 128)
LONG = Extent(large_rows=1_000_000, seconds=60.0, idle_seconds=120.0, neighbour_megabytes=1024)


def measure_mariadb(ledger_url: str, extent: Extent) -> list[Line]:
    """Events a second from a binlog; none where MariaDB is not installed."""
    if find_program() is None:
        return [Line("captured from MariaDB", 0, "/s", "not measured: MariaDB is not installed")]
    lines = []
    with mariadb_source() as source_url:
        stream = MariadbStream(source_url, ledger_url)
        stream.begin()
        for per_transaction, number in ((1, extent.single_rows), (100, extent.hundreds_rows)):
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


def measure_rates(stream: Stream, extent: Extent) -> Iterator[Line]:
    """Captured changes beside changes that are recorded from memory."""
    for per_transaction, number in ((1, extent.single_rows), (100, extent.hundreds_rows)):
        alone = measure_recorded(stream.ledger_url, number, f"bench{per_transaction}")
        captured = measure_captured(stream, number, per_transaction)
        yield Line(
            f"captured, {per_transaction} {'row' if per_transaction == 1 else 'rows'} a transaction",
            captured,
            "/s",
            f"recorded in batches of 1,000: {alone:,.0f} /s",
            captured / alone,
            f"{WANTED_RATIO}; 5,000 /s",
            captured / alone >= WANTED_RATIO and captured >= 5_000,
        )


def measure_soon(stream: Stream, extent: Extent) -> Iterator[Line]:
    """How soon a change is recorded, and how soon it is at the third party."""
    from bench.captured_pushes import measure_pushes  # its imports would count as memory of the reader

    said = f"at {CHANGES_PER_SECOND} changes a second"
    ledger = cut_at_95(measure_latencies(stream, extent.seconds))
    yield Line("from commit to ledger, p95", ledger, "ms", said, None, "100 ms", ledger <= 100)
    there = cut_at_95(measure_pushes(stream.source_url, CHANGES_PER_SECOND, extent.seconds))
    yield Line("from commit to third party, p95", there, "ms", said, None, "1,000 ms", there <= 1000)


def measure_needs(stream: Stream, extent: Extent) -> Iterator[Line]:
    """Memory, processor time and log that a stream takes."""
    idle, peak = measure_memory(stream, 0), measure_memory(stream, extent.large_rows)
    what = f"memory, a transaction of {extent.large_rows:,} rows"
    yield Line(what, peak, "MB", f"without rows: {idle:,.0f} MB", peak / idle, "150 MB", peak <= 150)
    share = measure_idle(stream, extent.idle_seconds)
    yield Line(f"idle for {extent.idle_seconds:.0f} s: share of one core", share, "%", "", None, "1 %", share <= 1)
    most, left = measure_retained(stream, extent.neighbour_megabytes)
    what = f"log kept after {extent.neighbour_megabytes:,} MB of another database's"
    yield Line(what, left, "MB", f"peak: {most:,.0f} MB", None, "64 MB", left <= 64)


def cut_at_95(values: list[float]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(sorted(values), n=20)[18]


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
    extent = QUICK if options.quick else LONG if options.long else Extent()
    lines: list[Line] = []
    if not options.mariadb:
        with database() as ledger_url, logical_source() as source_url:
            stream = Stream(source_url, ledger_url)
            stream.begin()
            parts = (measure_rates, measure_soon, measure_needs)
            lines += [line for measure in parts for line in measure(stream, extent)]
    with database() as ledger_url:
        show("capture", [*lines, *measure_mariadb(ledger_url, extent)])


if __name__ == "__main__":
    main()

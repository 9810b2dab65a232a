"""How soon a full sync that was killed goes on: the time until another process has taken over its business group.

``python -m bench.killed_full_sync [--quick]``. The full sync runs as the command ``sync-orchestrator full-sync`` in a
process of its own, with the default ``limits``. It is ended in the middle, once by SIGTERM and once by SIGKILL, and the
same command is started again at once. The third party is ``third_party.py`` with a latency.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import Engine

from bench.drain import settings, stats, third_party
from bench.serving import database
from bench.table import Line, show
from sync_orchestrator.core.db.session import open_engine, run

_TABLES = ("events", "event_ids", "event_history", "records", "parts", "push_attempts", "groups", "full_sync_keys")
_TAKE_OVER_SECONDS = 15.0


def write_folder(folder: Path, port: int, records: int) -> None:
    """A sync.yaml and a file of products of one business group."""
    rows = "".join(f"k{number},a lamp,{number},one,1\n" for number in range(records))
    (folder / "products.csv").write_text(f"sku,name,price,store,v\n{rows}")
    config = settings(port)
    config["sources"] = {"shop": {"kind": "files", "folder": str(folder)}}
    config["entities"]["product"]["parts"]["shop"] = {
        "key": "sku",
        "group": "store",
        "version": {"path": "v", "kind": "number"},
        "files": {"glob": "*.csv"},
    }
    (folder / "sync.yaml").write_text(yaml.safe_dump(config))


@contextmanager
def full_sync(folder: Path, url: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process of its own, which is killed at the end of the block if it is still there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sync_orchestrator", "full-sync", "product", "--group", "one"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={
            **os.environ,
            "SYNC_CONFIG": str(folder / "sync.yaml"),
            "SYNC_HOME": str(folder),
            "SYNC_DATABASE_URL": url,
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(found: Any, seconds: float = 120.0) -> float:
    """Waits until ``found()`` is true; the monotonic time then."""
    ends = time.monotonic() + seconds
    while not found():
        if time.monotonic() > ends:
            raise TimeoutError
        time.sleep(0.02)
    return time.monotonic()


def take_over(url: str, number: signal.Signals, records: int) -> tuple[float, float, bool]:
    """Seconds from the signal until another process holds the group, and until all is in sync; whether it is."""
    engine = open_engine(url)
    with engine.begin() as connection:
        run(connection, f"TRUNCATE {', '.join(f'sync.{table}' for table in _TABLES)} CASCADE")
    with tempfile.TemporaryDirectory() as place, third_party("--latency", "0.1") as port:
        folder = Path(place)
        write_folder(folder, port, records)
        with full_sync(folder, url) as first:
            wait_for(lambda: stats(port)["writes"] > records / 4 or first.poll() is not None)
            assert first.poll() is None, first.communicate()[0]
            holder = _holder(engine)
            assert holder is not None
            began = time.monotonic()
            first.send_signal(number)
            with full_sync(folder, url) as second:
                taken = wait_for(lambda: _holder(engine) not in (None, holder))
                said = second.communicate(timeout=300)[0]
                ended = time.monotonic()
                whole = second.returncode == 0 and stats(port)["records"] == records
                if not whole:
                    print(said)
    engine.dispose()
    return taken - began, ended - began, whole


def _holder(engine: Engine) -> str | None:
    with engine.begin() as connection:
        rows = run(connection, "SELECT lease_holder FROM sync.groups WHERE lease_until IS NOT NULL")
    return rows[0].lease_holder if rows else None


def lines(url: str, records: int) -> Iterator[Line]:
    """Each line as soon as it is measured."""
    for number, wanted in ((signal.SIGTERM, _TAKE_OVER_SECONDS), (signal.SIGKILL, _TAKE_OVER_SECONDS)):
        taken, ended, whole = take_over(url, number, records)
        yield Line(
            f"killed full sync ({number.name}): taken over after",
            taken * 1000,
            "ms",
            f"all {records:,} records in sync: {ended:.1f} s" if whole else "not in sync",
            taken,
            f"{wanted:g} s",
            whole and taken <= wanted,
            note="From the signal until another process holds the business group, the start of that process "
            "(about two seconds) included. The calls that a SIGKILL interrupts have an unknown outcome: "
            "their records are claimed when their holder is gone, and looked up until timeout and in-flight window "
            "are over; the others do not wait.",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    with database() as url:
        show("killed full sync", list(lines(url, 2_000 if parser.parse_args().quick else 6_000)))


if __name__ == "__main__":
    main()

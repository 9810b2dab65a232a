"""Whether what is done again and again stays as fast while the ledger grows: claim, insert and status, few and many.

``python -m bench.growth [--quick | --long]``. Two databases of one server, one with few finished events and one with
many, measured in turns; the ratio is that of the medians. Rows are made by the database in the shape that finished
events have.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from bench.drain import change
from bench.table import Line, show
from sync_orchestrator.core.db.session import force_index_scans, open_engine, run
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.ledger.recording import record_events
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.database import embedded
from sync_orchestrator.database.migrate import migrate

ROUNDS = 15
_AT_ONCE = 1_000_000

_HISTORY = """
INSERT INTO sync.event_history (seq, source, event_id, entity, key, group_key, action, epoch, version, thin, data,
                                origin, conflicting, received_at, attempts, revision, state)
SELECT -n, 'shop', 'old-' || n, 'product', 'k' || mod(n, %(records)s), 'store 1', 'update', 0, n, false,
       '{"name": "a lamp that stands on a table", "price": 12.5}', 'notification', false, now(), 0, 1, 'done'
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
_IDS = """
INSERT INTO sync.event_ids (source, event_id, content_hash)
SELECT 'shop', 'old-' || n, decode(md5(n::text), 'hex') FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
_RECORDS = """
INSERT INTO sync.records (entity, key, group_key, revision, ready, applied_revision, applied_digest, applied_group,
                          applied_at, first_applied_at, external_id)
SELECT 'product', 'k' || n, 'store ' || mod(n, 100), 1, true, 1, decode(md5(n::text), 'hex'), 'store ' || mod(n, 100),
       now(), now(), 'k' || n
FROM generate_series(0, %(records)s - 1) n
"""
_TALLIES = """
INSERT INTO sync.tallies (entity, source, what, slot, n)
SELECT 'product', 'shop', what, 0, %(events)s FROM unnest('{received,done}'::text[]) what
"""


def fill(engine: Engine, events: int, records: int) -> None:
    """So many finished events of so many records, all in sync."""
    for first in range(1, events + 1, _AT_ONCE):
        with engine.begin() as connection:
            span = {"first": first, "last": min(events, first + _AT_ONCE - 1)}
            run(connection, _HISTORY.replace("%(records)s", str(records)), **span)
            run(connection, _IDS, **span)
    with engine.begin() as connection:
        run(connection, _RECORDS, records=records)
        run(connection, _TALLIES, events=events)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        run(connection, "VACUUM ANALYZE")
        run(connection, "CHECKPOINT")


def insert(engine: Engine, versions: Iterator[int]) -> None:
    """A thousand events."""
    version = next(versions)
    record_events(engine, [change(at, version) for at in range(1000)])


def claim(engine: Engine, versions: Iterator[int]) -> None:
    """A thousand events, given back."""
    with engine.connect() as connection:
        force_index_scans(connection)
        rows = run(connection, ledger_queries.SELECT_DUE_EVENTS, entities=["product"], most=1000)
        assert len(rows) == 1000
        connection.rollback()


def look(engine: Engine, versions: Iterator[int]) -> None:
    """All that ``status`` says."""
    collect_status(engine)


def lines(few: tuple[Engine, int], many: tuple[Engine, int]) -> Iterator[Line]:
    """Each line as soon as it is measured."""
    versions = count(2)
    for name, work, times in (
        ("insert of 1,000 events", insert, ROUNDS),
        ("claim of 1,000 events", claim, ROUNDS),
        ("status", look, ROUNDS),
    ):
        took: dict[int, list[float]] = {few[1]: [], many[1]: []}
        for _ in range(times):
            for engine, events in (few, many):
                took[events].append(_seconds(partial(work, engine, versions)))
        one, other = (statistics.median(took[events]) for events in (few[1], many[1]))
        yield Line(
            f"{name} at {many[1]:,} finished events",
            other * 1000,
            "ms",
            f"at {few[1]:,}: {one * 1000:.1f} ms",
            other / one,
            "1.30",
            other <= 1.3 * one,
        )


def _seconds(work: Callable[[], None]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    words = parser.parse_args()
    small, large = (20_000, 200_000) if words.quick else (100_000, 10_000_000 if words.long else 1_000_000)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "postgres"
        url = embedded.start(folder)
        try:
            admin = open_engine(url)
            sizes = []
            for events in (small, large):
                with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                    run(connection, f"CREATE DATABASE growth_{events}")
                made = make_url(url).set(database=f"growth_{events}").render_as_string(hide_password=False)
                engine = open_engine(made)
                migrate(engine)
                fill(engine, events, small // 2)
                sizes.append((engine, events))
            show("growth", list(lines(*sizes)))
            for engine, _ in sizes:
                engine.dispose()
            admin.dispose()
        finally:
            embedded.stop(folder)


if __name__ == "__main__":
    main()

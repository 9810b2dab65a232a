"""Readers of streams in processes of their own, and what has to hold whatever was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import capture_worker
from captured_sources import AnySource, captured_config, query, recorded
from paths import SUPPORT
from sqlalchemy import Engine

from sync_orchestrator.core.ledger.conservation import count_conservation


@contextmanager
def worker(database_url: str, source: AnySource, crash_at: str | None = None) -> Iterator[subprocess.Popen[str]]:
    """A reader in a process of its own; it is asked to end when the block is left."""
    environment = {name: value for name, value in os.environ.items() if name != "SYNC_CRASH_AT"}
    if crash_at is not None:
        environment["SYNC_CRASH_AT"] = crash_at
    config = json.dumps(captured_config(source).model_dump(mode="json", exclude_defaults=True, by_alias=True))
    process = subprocess.Popen(
        [sys.executable, capture_worker.__file__, database_url, config],
        env=environment,
        cwd=SUPPORT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        yield process
    finally:
        process.communicate(timeout=30)


def release_lease(engine: Engine) -> None:
    """Lets the next reader begin at once, as when the lease of one that was killed has ended."""
    query(engine, "UPDATE sync.streams SET lease_until = NULL RETURNING name")


def expected_events(source: AnySource) -> int:
    """One for each row, where rows were only inserted."""
    return int(source.execute("SELECT count(*) FROM items")[0][0])


def require_each_once(engine: Engine, source: AnySource) -> None:
    """Every row was inserted once, so each is one event; none was offered twice, or is missing."""
    rows = [row.key for row in recorded(engine)]
    assert len(rows) == len(set(rows)), "a change was recorded twice"
    assert set(rows) == {row[0] for row in source.execute("SELECT sku FROM items")}, "a change was lost"
    with engine.begin() as connection:
        totals = count_conservation(connection)
    assert totals.balanced
    assert totals.duplicates == 0

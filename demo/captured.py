"""The capture of the catalogue's changes, as the story follows it: the reader that is killed, and what is recorded.

What was written at the catalogue is held against the ledger of the sync, change by change.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine

from sync_orchestrator.core.db.session import run
from sync_orchestrator.supervisor.system import RunningSystem

_PROGRAM = "capture"
_STREAM = """
SELECT s.events, s.is_read, s.lost FROM (
    SELECT events, lost, coalesce(lease_until > sync.clock(), false) AND identity <> '' AND error IS NULL AS is_read
    FROM sync.streams WHERE name = 'catalogue'
) s
"""
_CAPTURED = """
SELECT key, action, version, (EXTRACT(epoch FROM received_at) * 1e6)::bigint AS received FROM (
    SELECT key, action, version, received_at FROM sync.events WHERE origin = 'capture'
    UNION ALL SELECT key, action, version, received_at FROM sync.event_history WHERE origin = 'capture'
) e ORDER BY received
"""


@dataclass(frozen=True, slots=True)
class Write:
    """A change in the catalogue's database: the key, its time in microseconds since 1970, and whether it deletes."""

    key: str
    at: int
    is_delete: bool = False


@dataclass(frozen=True, slots=True)
class Recorded:
    """A captured change event of the ledger; times are in microseconds since 1970."""

    key: str
    is_delete: bool
    version: int
    received: int

    def covers(self, write: Write) -> bool:
        """Whether it brings this change, or a later one of the stone: changes that come together are one event."""
        if self.key != write.key or self.received < write.at:
            return False
        return self.version >= write.at or (write.is_delete and self.is_delete)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the report says of the capture.

    Attributes:
        written: Changes in the catalogue's database.
        missing: Changes of which the ledger does not know.
        events: Captured change events in the ledger.
        p50_ms: From the change to its event in the ledger, in milliseconds, while a reader ran.
        killed_writes: Changes while no reader ran.
        restart_seconds: From the reader's end to the next captured change event.
    """

    written: int = 0
    missing: int = 0
    events: int = 0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    killed_writes: int = 0
    restart_seconds: float = 0.0

    def find_faults(self) -> list[str]:
        """Everything that is not as it should be, in words."""
        checks = {
            f"{self.missing} of {self.written} changes of the catalogue were not captured": self.missing,
            "no change of the catalogue was captured": not self.events,
            "nothing was written while no reader ran": not self.killed_writes,
        }
        return [words for words, failed in checks.items() if failed]


class CaptureWatch:
    """The reader of the catalogue's log, and what it has recorded.

    Args:
        system: The running system, of which the reader is a program.
        engine: The ledger's database.
    """

    def __init__(self, system: RunningSystem, engine: Engine) -> None:
        self._system = system
        self._engine = engine
        self._killed_at = 0

    def is_open(self) -> bool:
        """Whether a reader reads the log, so that every change from now on is captured."""
        rows = self._query(_STREAM)
        return bool(rows and rows[0].is_read)

    def count_events(self) -> int:
        rows = self._query(_STREAM)
        return int(rows[0].events) if rows else 0

    def kill_reader(self) -> None:
        """Kills the reader (SIGKILL) and starts another one, as a service manager does."""
        [program] = [each for each in self._system.tree.programs if each.name == _PROGRAM]
        program.process.kill()
        program.process.wait()
        self._killed_at = time.time_ns() // 1000
        self._system.tree.programs.remove(program)
        self._system.tree.start_program(_PROGRAM, [sys.executable, "-m", "sync_orchestrator", "capture"])

    def find_missing(self, writes: Sequence[Write]) -> list[Write]:
        """The changes that no captured event brings."""
        return find_missing(writes, self._read_recorded())

    def measure(self, writes: Sequence[Write]) -> Figures:
        """What the report says of these changes."""
        recorded = self._read_recorded()
        restarted = next((each.received for each in recorded if each.received > self._killed_at), self._killed_at)
        lags = measure_lags(recorded, writes, (self._killed_at, restarted))
        cuts = statistics.quantiles(lags, n=20) if len(lags) > 1 else [0.0] * 19
        return Figures(
            written=len(writes),
            missing=len(find_missing(writes, recorded)),
            events=len(recorded),
            p50_ms=cuts[9],
            p95_ms=cuts[18],
            killed_writes=sum(self._killed_at <= write.at <= restarted for write in writes),
            restart_seconds=(restarted - self._killed_at) / 1e6,
        )

    def _read_recorded(self) -> list[Recorded]:
        return [
            Recorded(row.key, row.action == "delete", int(row.version), int(row.received))
            for row in self._query(_CAPTURED)
        ]

    def _query(self, statement: str) -> list[Any]:
        with self._engine.begin() as connection:
            return list(run(connection, statement))


def find_missing(writes: Sequence[Write], recorded: Iterable[Recorded]) -> list[Write]:
    """The changes that no captured event brings."""
    by_key: dict[str, list[Recorded]] = {}
    for each in recorded:
        by_key.setdefault(each.key, []).append(each)
    return [write for write in writes if not any(each.covers(write) for each in by_key.get(write.key, []))]


def measure_lags(recorded: Iterable[Recorded], writes: Sequence[Write], without: tuple[int, int]) -> list[float]:
    """Milliseconds from changes to their events, but for those within an interval of time.

    A change is found by its time, which is its version. Deletes have none of their own.
    """
    received = {(each.key, each.version): each.received for each in reversed(list(recorded)) if not each.is_delete}
    return [
        (at - write.at) / 1000
        for write in writes
        if not write.is_delete
        and not without[0] <= write.at <= without[1]
        and (at := received.get((write.key, write.at))) is not None
    ]

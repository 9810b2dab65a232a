"""Heartbeats of workers: that they are there, and how each of their tasks fares.

Every reader judges a worker by this: the command ``status``, the API service and the sensor ``worker``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from sync_orchestrator.core.db.session import run, to_jsonb
from sync_orchestrator.core.systems import queries

if TYPE_CHECKING:
    from sqlalchemy import Connection

BEAT_SECONDS = 5.0
"""The time between two heartbeats of a worker."""

SILENT_SECONDS = 30.0
"""A worker that was not heard of for this long does not run, or cannot reach the database."""


@dataclass(frozen=True, slots=True)
class TaskReport:
    """How a task of a worker fares.

    Attributes:
        name: The task, such as ``alerts`` or ``polling item stock``.
        quiet_seconds: The time since its last round that succeeded, or since its start.
        did: What it did when it last had something to do; empty for nothing yet.
        did_seconds_ago: How long ago that was.
        error: Why its last round failed; None where it succeeded.
    """

    name: str
    quiet_seconds: float
    did: str = ""
    did_seconds_ago: float | None = None
    error: str | None = None

    def to_text(self) -> str:
        """The report in a few words."""
        if self.error is not None:
            return f"{self.name} fails: {self.error}"
        if self.did_seconds_ago is None:
            return f"{self.name}: nothing yet"
        return f"{self.name}: {self.did} {self.did_seconds_ago:.0f} s ago"


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """All workers together, by their heartbeats.

    Attributes:
        seconds: The time since one was heard of, or since one is expected; None where nobody expects one yet.
        count: How many were heard of within SILENT_SECONDS.
        tasks: Of these workers, each task as the worker reports it that fares best.
    """

    seconds: float | None
    count: int
    tasks: tuple[TaskReport, ...]

    def stalled_tasks(self, after: float) -> list[TaskReport]:
        """The tasks whose last successful round is longer ago than ``after`` seconds."""
        return [task for task in self.tasks if task.quiet_seconds > after]

    def is_silent(self, after: float) -> bool:
        """Whether no worker was heard of for ``after`` seconds, though one is expected."""
        return self.seconds is not None and self.seconds > after

    def to_text(self) -> str:
        """When a worker was last heard of, and what its tasks did."""
        if not self.count:
            heard = "never" if self.seconds is None else f"not heard of for {self.seconds:.0f} s"
            return f"no worker runs ({heard}): start `sync-orchestrator worker`"
        several = f"{self.count} workers, one" if self.count > 1 else "worker"
        return "; ".join(
            [f"{several} heard of {self.seconds or 0:.0f} s ago", *(task.to_text() for task in self.tasks)]
        )


def record_worker(connection: Connection, worker_id: str, process: str, tasks: Iterable[TaskReport]) -> None:
    """Records that a worker is there, and how its tasks fare."""
    detail = {"process": process, "tasks": {task.name: asdict(task) for task in tasks}}
    run(connection, queries.UPSERT_HEARTBEAT, name=f"worker {worker_id}", detail=to_jsonb(detail))


def delete_gone_workers(connection: Connection) -> None:
    """Removes the heartbeats of workers that were killed long ago; a new worker calls it."""
    run(connection, queries.DELETE_GONE_WORKERS)


def end_worker(connection: Connection, worker_id: str) -> None:
    """Removes the heartbeat of a worker that ends in order; from now on another one is expected."""
    run(connection, queries.DELETE_HEARTBEAT, name=f"worker {worker_id}")
    expect_worker_from_now(connection)


def expect_worker(connection: Connection) -> None:
    """Notes that a worker is needed: where none was ever heard of, its silence counts from the first such note."""
    run(connection, queries.EXPECT_WORKER)


def expect_worker_from_now(connection: Connection) -> None:
    """Notes that a worker is about to start, so that a silence before is none."""
    run(connection, queries.EXPECT_WORKER_FROM_NOW)


def read_workers(connection: Connection) -> WorkerReport:
    """Reads the heartbeats of all workers."""
    rows = run(connection, queries.LIST_WORKERS)
    alive = [row for row in rows if row.detail.get("tasks") and row.age <= SILENT_SECONDS]
    return WorkerReport(
        min((max(0.0, float(row.age)) for row in rows), default=None),
        len(alive),
        _merge_reports([_build_report(task, float(row.age)) for row in alive for task in row.detail["tasks"].values()]),
    )


def _build_report(task: Mapping[str, Any], age: float) -> TaskReport:
    did_ago = task["did_seconds_ago"]
    return TaskReport(
        task["name"],
        task["quiet_seconds"] + age,
        task["did"],
        None if did_ago is None else did_ago + age,
        task["error"],
    )


def _merge_reports(reports: Sequence[TaskReport]) -> tuple[TaskReport, ...]:
    """Of each task, the report of the worker that did something last; it has succeeded if any of them has."""
    found: dict[str, list[TaskReport]] = {}
    for report in reports:
        found.setdefault(report.name, []).append(report)
    best = []
    for name in sorted(found):
        some = found[name]
        last = min(some, key=lambda each: (each.did_seconds_ago is None, each.did_seconds_ago or 0.0))
        calmest = min(some, key=lambda each: each.quiet_seconds)
        best.append(TaskReport(name, calmest.quiet_seconds, last.did, last.did_seconds_ago, calmest.error))
    return tuple(best)

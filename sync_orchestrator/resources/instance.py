"""Dagster's own instance: its configuration in our database, and its clean start after everything was killed."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import yaml
from dagster import DagsterRunStatus

DATABASE_VARIABLE = "SYNC_DAGSTER_DATABASE_URL"
"""Holds the URL of Dagster's storage, so that no password is written to a file."""

_SETTINGS = {
    "storage": {"postgres": {"postgres_url": {"env": DATABASE_VARIABLE}}},
    "run_coordinator": {
        "module": "dagster.core.run_coordinator", "class": "QueuedRunCoordinator",
        "config": {"max_concurrent_runs": 4, "dequeue_interval_seconds": 1},
    },
    "sensors": {"use_threads": True, "num_workers": 4},
    "schedules": {"use_threads": True, "num_workers": 4},
    "run_monitoring": {"enabled": True, "start_timeout_seconds": 120, "max_runtime_seconds": 86400},
    "retention": {
        "sensor": {"purge_after_days": {"skipped": 1, "success": 7, "failure": 30, "started": 1}},
        "schedule": {"purge_after_days": {"skipped": 1, "success": 7, "failure": 30, "started": 1}},
    },
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
}

_UNDER_WAY = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def write_instance(home: Path) -> Path:
    """Writes ``dagster.yaml`` into a folder to be ``DAGSTER_HOME``; returns the file."""
    home.mkdir(parents=True, exist_ok=True)
    file = home / "dagster.yaml"
    file.write_text(yaml.safe_dump(_SETTINGS, sort_keys=False), encoding="utf-8")
    return file


def reap(instance: dg.DagsterInstance) -> int:
    """Ends runs that claim to be under way though every worker is gone; returns how many.

    To be called before the daemon starts, when no run of this instance can be alive.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=_UNDER_WAY))
    for run in runs:
        instance.report_run_failed(run, "The process of this run was gone when the system started again.")
        if instance.event_log_storage.supports_global_concurrency_limits:
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    return len(runs)

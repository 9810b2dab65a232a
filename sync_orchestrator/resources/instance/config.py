"""Dagster's own instance: its configuration in our database, and its clean start after everything was killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import yaml
from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
from sqlalchemy import Engine

from sync_orchestrator.core.systems.run_heartbeats import Watched, forget_run, watch_runs
from sync_orchestrator.private_files import make_private_folder, write_private_file

DATABASE_VARIABLE = "SYNC_DAGSTER_DATABASE_URL"
"""Holds the URL of Dagster's storage (``postgresql+psycopg2://…``), so that no password is written to a file."""

FULL_SYNC_POOL = "full_sync"

SHARED_PARTITIONS = "business_group"
"""The set of dynamic partitions that earlier versions used for all entities."""

GONE_TAG = "sync_orchestrator/process_gone"
"""Marks runs that were ended because nothing was left of their process."""

_RETENTION = {"purge_after_days": {"skipped": 1, "started": 1, "success": 7, "failure": 30}}

_SETTINGS: dict[str, object] = {
    # Each tick of a sensor opens the storage anew: looking each time whether its tables are there costs more than it.
    "storage": {
        "custom": {
            "module": "sync_orchestrator.resources.instance.storage",
            "class": "KeptConnections",
            "config": {"postgres_url": {"env": DATABASE_VARIABLE}, "should_autocreate_tables": False},
        }
    },
    "run_coordinator": {
        "module": "sync_orchestrator.resources.instance.run_coordinator",
        "class": "DrainsAtOnce",
        "config": {"dequeue_interval_seconds": 5},
    },
    # Full syncs are held to a few runs at once, and leave room for what must never wait for them.
    "concurrency": {
        "runs": {"max_concurrent_runs": 10},
        "pools": {"default_limit": 2, "granularity": "run"},
    },
    "sensors": {"use_threads": True, "num_workers": 6},
    "schedules": {"use_threads": True, "num_workers": 2},
    # A run whose worker crashed starts again where the database says it stopped; what failed in order does not.
    "run_retries": {"enabled": True, "max_retries": 2, "retry_on_asset_or_op_failure": False},
    "run_monitoring": {
        "enabled": True,
        "poll_interval_seconds": 20,
        "start_timeout_seconds": 120,
        "cancel_timeout_seconds": 120,
        "max_runtime_seconds": 86_400,
        "free_slots_after_run_end_seconds": 60,
    },
    # The badge of each mirror (`assets/freshness.py`).
    "freshness": {"enabled": True},
    "retention": {"sensor": _RETENTION, "schedule": _RETENTION},
    "telemetry": {"enabled": False},
    "nux": {"enabled": False},
}

_LAUNCHED_WITHIN_SECONDS = 600
_COMING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
_UNDER_WAY = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def write_instance(home: Path) -> Path:
    """Writes ``dagster.yaml`` into a folder to be ``DAGSTER_HOME``; returns the file.

    The database is named by the environment variable DATABASE_VARIABLE.
    """
    make_private_folder(home.resolve())
    file = home / "dagster.yaml"
    write_private_file(file, yaml.safe_dump(_SETTINGS, sort_keys=False))
    return file


def make_tables() -> None:
    """Makes the tables of Dagster's storage where they are not there yet."""
    url = os.environ[DATABASE_VARIABLE]
    for storage in (PostgresRunStorage, PostgresEventLogStorage, PostgresScheduleStorage):
        storage(url, should_autocreate_tables=True).dispose()


def delete_shared_partitions(instance: dg.DagsterInstance) -> int:
    """Deletes the set of partitions that all entities shared in earlier versions; returns how many partitions it had.

    Only for an instance that is ours alone: another project may have a set of this name. What was materialized stays,
    since the sets of the entities have the same keys.
    """
    groups = instance.get_dynamic_partitions(SHARED_PARTITIONS)
    for group in groups:
        instance.delete_dynamic_partition(SHARED_PARTITIONS, group)
    return len(groups)


def end_abandoned_runs(instance: dg.DagsterInstance) -> int:
    """Ends runs that claim to be under way though every worker is gone; returns how many.

    To be called before the daemon starts, when no run of this instance can be alive on this machine.
    """
    runs = instance.get_runs(dg.RunsFilter(statuses=_UNDER_WAY))
    for run in runs:
        end_gone(instance, run, "The process of this run was gone when the system started again.")
    return len(runs)


def end_gone(instance: dg.DagsterInstance, run: dg.DagsterRun, reason: str) -> None:
    """Marks a run as failed whose process is gone, and frees its places."""
    instance.add_run_tags(run.run_id, {GONE_TAG: "true"})
    instance.report_run_failed(run, reason)
    if instance.event_log_storage.supports_global_concurrency_limits:
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def under_way(instance: dg.DagsterInstance, job: str) -> bool:
    """Whether a run of a job is queued, about to start, or at work.

    Runs whose process has died are ended by the sensor ``dead_runs``; a run that was to start and never did is not
    waited for.
    """
    records = instance.get_run_records(dg.RunsFilter(job_name=job, statuses=[*_COMING, *_UNDER_WAY]))
    return any(not never_started(record) for record in records)


def never_started(record: dg.RunRecord) -> bool:
    """Whether a run was made and never launched: the process that made it died in between."""
    made = record.create_timestamp.replace(tzinfo=UTC)
    return (
        record.dagster_run.status is dg.DagsterRunStatus.NOT_STARTED
        and (datetime.now(UTC) - made).total_seconds() > _LAUNCHED_WITHIN_SECONDS
    )


def end_dead_runs(
    instance: dg.DagsterInstance,
    engine: Engine,
    is_watched: Callable[[dg.DagsterRun], bool],
    known: Mapping[str, Watched],
    gap_seconds: float,
) -> tuple[dict[str, Watched], list[str]]:
    """Ends watched runs that are said to be at work and whose heartbeat has stopped.

    Args:
        is_watched: Whether a run is one that has heartbeats; those of other projects have none.
        known: What the last look found.
        gap_seconds: How long ago that was.

    Returns:
        What this look found, for the next one, and the ids of the runs that were ended.
    """
    started = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])
    runs = {run.run_id: run for run in instance.get_runs(started) if is_watched(run)}
    found = watch_runs(engine, known, runs.keys(), gap_seconds)
    dead = [run_id for run_id, each in found.items() if each.is_dead]
    for run_id in dead:
        end_gone(
            instance,
            runs[run_id],
            f"The process of this run is gone: it has not been heard of for {found.pop(run_id).still_seconds:.0f} s.",
        )
        forget_run(engine, run_id)
    return found, dead

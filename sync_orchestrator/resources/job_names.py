"""The names of the jobs, in one place: definitions, sensors, schedules and the instance's settings use them."""

from __future__ import annotations

from collections.abc import Iterable

INCREMENTAL_SYNC = "incremental_sync"
MAINTENANCE = "maintenance"
REPORT_ALERTS = "report_alerts"
SHOW_RECORD = "show_record"
VALIDATE = "validate"
VALIDATE_FULLY = "validate_fully"
CHECK_SOURCES = "check_sources"
PLAN = "plan"
REPAIR = "repair"
PAUSE = "pause"
RESUME = "resume"
RESOLVE_CONFLICTS = "resolve_conflicts"

JOBS_OF_ALL_ENTITIES = (
    INCREMENTAL_SYNC,
    MAINTENANCE,
    REPORT_ALERTS,
    SHOW_RECORD,
    VALIDATE,
    VALIDATE_FULLY,
    CHECK_SOURCES,
    PLAN,
    REPAIR,
    PAUSE,
    RESUME,
    RESOLVE_CONFLICTS,
)
"""The jobs that exist once for each ``sync.yaml``."""


def full_sync_job_name(entity: str) -> str:
    """The name of an entity's full sync; its partitions are the business groups of that entity alone."""
    return f"full_sync_{entity}"


def list_job_names(entities: Iterable[str]) -> set[str]:
    """The names of all jobs of a ``sync.yaml`` with these entities."""
    return {*JOBS_OF_ALL_ENTITIES, *map(full_sync_job_name, entities)}

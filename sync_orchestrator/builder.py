"""Builds the definitions of a ``sync.yaml``: the project's own ``definitions.py`` and the component use it.

Nothing here connects to a database or to a system.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from sync_orchestrator.assets.alert_checks import alerts_check, report_alerts
from sync_orchestrator.assets.archive_checks import archive_check, check_sources_job
from sync_orchestrator.assets.capture_checks import capture_check
from sync_orchestrator.assets.entity import entity_assets, full_sync_job
from sync_orchestrator.assets.jobs.incremental import incremental_sync, maintenance_job
from sync_orchestrator.assets.jobs.pause import pause_jobs
from sync_orchestrator.assets.jobs.plan import plan_job
from sync_orchestrator.assets.jobs.repair import repair_job
from sync_orchestrator.assets.jobs.resolve_conflicts import resolve_job
from sync_orchestrator.assets.jobs.show_record import record_job
from sync_orchestrator.assets.lineage import captured_assets, external_assets
from sync_orchestrator.assets.mirror_checks import mirror_check, validate_jobs
from sync_orchestrator.assets.two_way_checks import two_way_checks
from sync_orchestrator.config import Config
from sync_orchestrator.resources.system import SystemResource
from sync_orchestrator.sensors.alerts import failed_runs, recovered_runs
from sync_orchestrator.sensors.capture import captured_changes
from sync_orchestrator.sensors.changes import business_groups, change_events
from sync_orchestrator.sensors.runs import dead_runs
from sync_orchestrator.sensors.schedules import build_schedules
from sync_orchestrator.sensors.worker import worker_report


def build_entities(config: Config, names: Sequence[str], system: SystemResource) -> dg.Definitions:
    """Builds the assets, the checks and the full sync of some entities.

    Args:
        config: The configuration.
        names: The entities.
        system: The resource that the definitions work through.
    """
    entities = {name: config.entities[name] for name in names}
    return dg.Definitions(
        assets=[
            *(
                entity_assets(name, entity, config.third_parties[entity.third_party.system])
                for name, entity in entities.items()
            ),
            *(spec for name, entity in entities.items() for spec in external_assets(name, entity, config)),
        ],
        asset_checks=[
            check
            for name, entity in entities.items()
            for check in (
                archive_check(name, entity.source_check.repair),
                mirror_check(name, entity.validation.repair),
                alerts_check(name),
                *([two_way_checks(name, entity.two_way.back)] if entity.two_way is not None else []),
            )
        ],
        jobs=[full_sync_job(name) for name in entities],
        resources={"system": system},
    )


def build_operations(config: Config, system: SystemResource) -> dg.Definitions:
    """Builds the jobs, sensors and schedules that work on all entities of a configuration, once for each configuration.

    Args:
        config: The configuration.
        system: The resource that the definitions work through.
    """
    captured = config.captured_sources()
    return dg.Definitions(
        assets=captured_assets(config),
        asset_checks=[capture_check(source) for source in captured],
        jobs=[
            incremental_sync,
            maintenance_job,
            report_alerts,
            *validate_jobs(config),
            *pause_jobs(config),
            *([resolve_job(config)] if any(entity.two_way is not None for entity in config.entities.values()) else []),
            *(job(config) for job in (plan_job, check_sources_job, repair_job, record_job)),
        ],
        sensors=[
            change_events,
            business_groups,
            worker_report,
            dead_runs,
            failed_runs,
            recovered_runs,
            *([captured_changes] if captured else []),
        ],
        schedules=build_schedules(config),
        resources={"system": system},
    )


def build_definitions(config: Config, system: SystemResource | None = None) -> dg.Definitions:
    """Builds the definitions of a project of its own, whose runs are one process each.

    Args:
        config: The configuration.
        system: The resource that the definitions work through; by default that of the environment.
    """
    system = system or SystemResource()
    return dg.Definitions.merge(
        build_entities(config, list(config.entities), system),
        build_operations(config, system),
        dg.Definitions(executor=dg.in_process_executor),
    )

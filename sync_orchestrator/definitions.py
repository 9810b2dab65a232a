"""Dagster's entry: every asset, check, job, sensor and schedule, from ``sync.yaml``. No database is touched here."""

from __future__ import annotations

import dagster as dg

from sync_orchestrator.assets.alert_checks import alerts_check, report_alerts
from sync_orchestrator.assets.archive_checks import archive_check, check_sources_job
from sync_orchestrator.assets.entity import archive_key, entity_assets, mirror_key
from sync_orchestrator.assets.jobs.incremental import incremental_sync, maintenance
from sync_orchestrator.assets.jobs.pause import pause_jobs
from sync_orchestrator.assets.jobs.plan import plan_job
from sync_orchestrator.assets.jobs.repair import repair_job
from sync_orchestrator.assets.jobs.show_record import record_job
from sync_orchestrator.assets.lineage import external_assets
from sync_orchestrator.assets.mirror_checks import mirror_check, validate_jobs
from sync_orchestrator.composition import load_config
from sync_orchestrator.config import Config
from sync_orchestrator.resources.system import System
from sync_orchestrator.sensors.alerts import failed_runs, recovered_runs
from sync_orchestrator.sensors.changes import business_groups, change_events
from sync_orchestrator.sensors.runs import dead_runs
from sync_orchestrator.sensors.schedules import schedules
from sync_orchestrator.sensors.worker import worker_report


def build(config: Config) -> dg.Definitions:
    """The definitions for a configuration."""
    keys = [key for name in config.entities for key in (archive_key(name), mirror_key(name))]
    full_sync = dg.define_asset_job(
        "full_sync",
        selection=dg.AssetSelection.assets(*keys).without_checks(),
        executor_def=dg.in_process_executor,
        description="Fills business groups from the sources and brings the third party in sync: launch a backfill. Its "
        "figures move only at the daemon's ticks, every 20 to 30 s; the log of its run is the live "
        "progress. A group that is not in sync at the end fails, the others stay materialized.",
    )
    return dg.Definitions(
        assets=[
            *(
                entity_assets(name, entity, config.third_parties[entity.third_party.system])
                for name, entity in config.entities.items()
            ),
            *(spec for name, entity in config.entities.items() for spec in external_assets(name, entity, config)),
        ],
        asset_checks=[
            check
            for name, entity in config.entities.items()
            for check in (
                archive_check(name, entity.source_check.repair),
                mirror_check(name, entity.validation.repair),
                alerts_check(name),
            )
        ],
        jobs=[
            full_sync,
            incremental_sync,
            maintenance,
            report_alerts,
            *validate_jobs(config),
            *pause_jobs(config),
            *(job(config) for job in (plan_job, check_sources_job, repair_job, record_job)),
        ],
        sensors=[
            change_events,
            business_groups,
            worker_report,
            dead_runs,
            failed_runs,
            recovered_runs,
        ],
        schedules=schedules(config),
        resources={"system": System()},
        executor=dg.in_process_executor,
    )


@dg.definitions
def defs() -> dg.Definitions:
    """Loads ``sync.yaml`` (or what SYNC_CONFIG names)."""
    return build(load_config())

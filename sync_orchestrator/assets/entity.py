"""An entity's two assets, the archive and the mirror, filled by one step that takes group after group through both.

What a full sync does is in ``core/full_sync/full_sync.py``, and how its run goes through the groups in
``full_sync_run.py``.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from sync_orchestrator.assets.cancellation import cancelable
from sync_orchestrator.assets.freshness import freshness_of
from sync_orchestrator.assets.full_sync_run import FullSyncRun
from sync_orchestrator.assets.lineage import (
    archive_dependencies,
    archive_key,
    archive_metadata,
    mirror_key,
    mirror_metadata,
)
from sync_orchestrator.assets.options import ALLOW_DELETIONS
from sync_orchestrator.assets.partitions import business_groups_of, groups_of
from sync_orchestrator.assets.totals import observe_totals
from sync_orchestrator.config import EntitySettings
from sync_orchestrator.config.targets import ThirdPartySettings
from sync_orchestrator.resources.instance.config import FULL_SYNC_POOL
from sync_orchestrator.resources.instance.dagster_internals import reported_output
from sync_orchestrator.resources.job_names import full_sync_job_name
from sync_orchestrator.resources.system import SystemResource

__all__ = ["FullSyncOptions", "archive_key", "entity_assets", "full_sync_job", "mirror_key"]

MAX_GROUPS_PER_RUN = 500


class FullSyncOptions(dg.Config):
    """What an operator may set when launching a full sync."""

    allow_deletions: int | None = Field(default=None, description=ALLOW_DELETIONS)


_ARCHIVE = """The newest known state of each {name}, from {parts}.

- **Materialize it together with the mirror** for a full sync: fill the archive from the sources, then push.
- **Alone** it reads the sources and pushes nothing itself; the drain pushes what changed.
- A backfill's figures move only at the daemon's ticks (every 20 to 30 s). The run's log is the live progress.
- Drains report observations here: a materialization is a full sync's."""

_MIRROR = """The {name} records that {system} has acknowledged. A group is materialized only if all of it is in sync.

- **Alone** it pushes what the archive holds and does not read the sources. With the archive it is a full sync.
- A group with dead, on-hold or unacknowledged records fails, with the causes; the other groups stay materialized.
- A backfill's figures move only at the daemon's ticks (every 20 to 30 s). The run's log is the live progress.
- Observations without a partition (`total_…`) are the totals of all groups: see Plots."""

_FULL_SYNC = """Fills the business groups of {name} from the sources and brings the third party in sync: launch a \
backfill. Its figures move only at the daemon's ticks, every 20 to 30 s; the log of its run is the live progress. A \
group that is not in sync at the end fails, the others stay materialized."""


def entity_assets(name: str, entity: EntitySettings, system: ThirdPartySettings) -> dg.AssetsDefinition:
    """The archive and the mirror of one entity; each can be materialized alone."""

    @dg.multi_asset(
        name=f"{name}_full_sync",
        specs=_build_asset_specs(name, entity, system),
        can_subset=True,
        partitions_def=business_groups_of(name),
        pool=FULL_SYNC_POOL,
        backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=MAX_GROUPS_PER_RUN),
    )
    @cancelable
    def full_sync_of_groups(
        context: dg.AssetExecutionContext, config: FullSyncOptions, system: SystemResource
    ) -> Iterator[dg.AssetCheckEvaluation | dg.Output[None]]:
        run = FullSyncRun(context, system.context, system.get_entity(name), config.allow_deletions)
        system.perform(run.sync_groups(groups_of(system.context, name)))
        yield from run.archive_evaluations()
        observe_totals(context, system, [name])
        metadata = run.build_totals()
        if run.failed:
            raise dg.Failure(run.failure_text(), metadata=metadata, allow_retries=False)
        for asset in (archive_key(name), mirror_key(name)):
            if asset in context.selected_asset_keys:
                yield reported_output(context, asset, metadata)

    return full_sync_of_groups


def _build_asset_specs(name: str, entity: EntitySettings, system: ThirdPartySettings) -> list[dg.AssetSpec]:
    common: dict[str, Any] = {"group_name": name, "owners": entity.owners, "tags": {"entity": name}}
    archive = dg.AssetSpec(
        archive_key(name),
        deps=archive_dependencies(name, entity),
        kinds={"postgres"},
        **common,
        description=_ARCHIVE.format(name=name, parts=", ".join(entity.parts)),
        metadata=archive_metadata(name, entity),
    )
    mirror = dg.AssetSpec(
        mirror_key(name),
        deps=[archive.key],
        kinds={"api" if system.base_url else "python", entity.third_party.system},
        **common,
        description=_MIRROR.format(name=name, system=entity.third_party.system),
        metadata=mirror_metadata(name, entity, system),
        freshness_policy=freshness_of(entity),
    )
    return [archive, mirror]


def full_sync_job(name: str) -> Any:
    """The job of an entity's full sync, without the checks behind it: the schedule validates what is due."""
    return dg.define_asset_job(
        full_sync_job_name(name),
        selection=dg.AssetSelection.assets(archive_key(name), mirror_key(name)).without_checks(),
        executor_def=dg.in_process_executor,
        description=_FULL_SYNC.format(name=name),
    )

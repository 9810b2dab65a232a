"""The freshness of a mirror: how long ago all of an entity's business groups were last confirmed to be in sync.

Dagster evaluates the freshness of an asset as a whole, from its newest materialization. Full syncs materialize business
groups, and may be months apart. So a validation that leaves every group in sync reports one materialization, at most
twice in the time between two validations. It is that of a partition that no business group can be: one without a
partition would take the status of the check of every group, and one of a group the figures of its full sync.

Dagster does not evaluate the freshness of single partitions: for a business group, see the check of the mirror.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg

from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.config import EntitySettings
from sync_orchestrator.core.validation.in_sync_since import find_in_sync_since
from sync_orchestrator.resources.instance.dagster_internals import Execution, report_events
from sync_orchestrator.resources.system import SystemResource

ALL_GROUPS = "all business groups ..."
"""The partition that such a materialization names. Dagster refuses to add a partition of this name."""

WARN_AFTER_VALIDATIONS = 2
FAIL_AFTER_VALIDATIONS = 4
GRACE = timedelta(minutes=5)
"""The time that a run may take to start and to validate."""


def freshness_of(entity: EntitySettings) -> dg.FreshnessPolicy:
    """The policy of an entity's mirror: a warning, then a failure, when validations stop to confirm it."""
    every = timedelta(seconds=entity.validation.every)
    return dg.FreshnessPolicy.time_window(
        warn_window=WARN_AFTER_VALIDATIONS * every + GRACE, fail_window=FAIL_AFTER_VALIDATIONS * every + 2 * GRACE
    )


def report_if_in_sync(context: Execution, system: SystemResource, name: str) -> None:
    """Reports that all business groups of an entity are in sync, if their latest validations say so and it is due."""
    every = timedelta(seconds=system.get_entity(name).settings.validation.every)
    with system.context.engine.begin() as connection:
        since = find_in_sync_since(connection, name, WARN_AFTER_VALIDATIONS * every + GRACE)
    if since is None or _age_of_newest(context.instance, mirror_key(name)) < every / 2:
        return
    metadata = {"all_groups_in_sync_since": dg.MetadataValue.timestamp(since)}
    description = f"validations found every business group of {name} in sync"
    confirmed = dg.AssetMaterialization(
        mirror_key(name), description=description, metadata=metadata, partition=ALL_GROUPS
    )
    report_events(context, [confirmed])


def _age_of_newest(instance: dg.DagsterInstance, asset: dg.AssetKey) -> timedelta:
    newest = instance.fetch_materializations(asset, limit=1).records
    return datetime.now(UTC) - datetime.fromtimestamp(newest[0].timestamp, UTC) if newest else timedelta.max

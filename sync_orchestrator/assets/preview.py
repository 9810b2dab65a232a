"""What uses preview or less public parts of Dagster, in one place: partitioned asset checks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluation,
    AssetCheckEvaluationTargetMaterializationData,
)

from sync_orchestrator.assets.partitions import business_group


def partitioned_check(
    function: Callable[..., dg.AssetCheckResult], asset: dg.AssetKey, name: str, description: str
) -> dg.AssetChecksDefinition:
    """Declares an asset check that is partitioned by business group."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return dg.asset_check(asset=asset, name=name, description=description, partitions_def=business_group)(function)


def evaluation(
    context: dg.OpExecutionContext, asset: dg.AssetKey, name: str, group: str, *, passed: bool,
    metadata: Mapping[str, Any],
) -> AssetCheckEvaluation:
    """An evaluation for one group, tied to the group's last materialization, without which the UI shows no status."""
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[group]), limit=1).records
    target = None
    if records:
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=records[0].storage_id, run_id=records[0].run_id, timestamp=records[0].timestamp)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        return AssetCheckEvaluation(
            asset_key=asset, check_name=name, partition=group, passed=passed, severity=dg.AssetCheckSeverity.ERROR,
            metadata={key: dg.MetadataValue.int(value) if isinstance(value, int) and not isinstance(value, bool)
                      else dg.MetadataValue.text(value) if isinstance(value, str) else value
                      for key, value in metadata.items()},
            target_materialization_data=target,
        )

"""What uses preview or private parts of Dagster, in one place: partitioned checks, and events stored in batches.

Each import names the issue that would make it unnecessary. ``test_dagster_internals.py`` says which part broke when
Dagster is raised.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import dagster as dg

# Ties an evaluation that an op reports to its materialization. Unnecessary once checks of partitions are no preview:
# https://github.com/dagster-io/dagster/issues/17005
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

# Keeps Dagster from materializing partitions again that were reported one by one:
# https://github.com/dagster-io/dagster/issues/29846
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

# Store materializations and observations of many partitions at once: https://github.com/dagster-io/dagster/issues/18149
from dagster._core.events import AssetObservationData, DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry

AssetEvent = dg.AssetMaterialization | dg.AssetObservation
Execution = dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext


def partitioned_check(
    function: Callable[..., Iterable[dg.AssetCheckEvaluation | dg.Output[None]]],
    op: str,
    asset: dg.AssetKey,
    name: str,
    partitions: dg.PartitionsDefinition[str],
    description: str,
) -> dg.AssetChecksDefinition:
    """Declares an asset check that is partitioned as its asset is.

    The function yields an evaluation for each group it could judge: unlike an ``AssetCheckResult``, that keeps its
    partition in a run over a range, and a group without one shows as skipped.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)
        spec = dg.AssetCheckSpec(name, asset=asset, description=description, partitions_def=partitions)
        return dg.multi_asset_check(name=op, specs=[spec], can_subset=True)(function)


def make_evaluation(
    context: Execution,
    asset: dg.AssetKey,
    name: str,
    group: str,
    *,
    passed: bool,
    description: str,
    metadata: Mapping[str, Any],
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.ERROR,
) -> dg.AssetCheckEvaluation:
    """An evaluation for one group, tied to the group's last materialization, without which the UI shows no status.

    The group comes first in the description and in the metadata: the log of a run shows no partition. The UI shows
    descriptions of evaluations as plain text, so back-ticks are left out.
    """
    records = context.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[group]), limit=1
    ).records
    target = None
    if records:
        target = AssetCheckEvaluationTargetMaterializationData(
            storage_id=records[0].storage_id, run_id=records[0].run_id, timestamp=records[0].timestamp
        )
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=name,
        partition=group,
        passed=passed,
        severity=severity,
        description=f"{group}: {description}".replace("`", ""),
        metadata={"group": group, **metadata},
        target_materialization_data=target,
    )


def report_evaluation(context: Execution, evaluated: dg.AssetCheckEvaluation) -> None:
    """Stores an evaluation at once, as Dagster does with one that an op yields."""
    DagsterEvent.asset_check_evaluation(context.get_step_execution_context(), evaluated)


def reported_output(
    context: dg.AssetExecutionContext, asset: dg.AssetKey, metadata: Mapping[str, Any]
) -> dg.Output[None]:
    """The output of an asset whose partitions were reported one by one, by ``report``.

    Dagster materializes no partition for it again. The steps that depend on it run, as they would not without it.
    """
    return dg.Output(
        None,
        output_name=context.assets_def.get_output_name_for_asset_key(asset),
        metadata={**metadata, SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True},
    )


def check_output(context: dg.AssetCheckExecutionContext, asset: dg.AssetKey, name: str) -> dg.Output[None]:
    """The output of a check whose evaluations were yielded; without it the log says that it is missing."""
    output = context.op_execution_context.job_def.asset_layer.get_op_output_name(dg.AssetCheckKey(asset, name))
    return dg.Output(None, output_name=str(output))


def is_materialized_here(context: dg.AssetCheckExecutionContext, asset: dg.AssetKey) -> bool:
    """Whether the run of a check materializes an asset, too."""
    return asset in context.op_execution_context.job_def.asset_layer.executable_asset_keys


def report_events(context: Execution, events: Sequence[AssetEvent]) -> None:
    """Stores materializations and observations of many groups, at a fraction of a millisecond each."""

    def classify_event(event: AssetEvent) -> tuple[str, list[str]]:
        return type(event).__name__, list(event.asset_key.path)

    for _, alike in groupby(sorted(events, key=classify_event), classify_event):
        _store_events(context, list(alike))


def _store_events(context: Execution, events: Sequence[AssetEvent]) -> None:
    """Events of one type and one asset: the storage updates its index of assets from the last one alone."""
    context.instance.event_log_storage.store_event_batch([_make_log_entry(context, event) for event in events])


def _make_log_entry(context: Execution, event: AssetEvent) -> EventLogEntry:
    step = str(context.op_execution_context.op_handle)
    kind, data = (
        (DagsterEventType.ASSET_MATERIALIZATION, StepMaterializationData(event))
        if isinstance(event, dg.AssetMaterialization)
        else (DagsterEventType.ASSET_OBSERVATION, AssetObservationData(event))
    )
    return EventLogEntry(  # type: ignore[no-untyped-call]
        error_info=None,
        level=logging.DEBUG,
        user_message="",
        run_id=context.run.run_id,
        timestamp=time.time(),
        step_key=step,
        job_name=context.run.job_name,
        dagster_event=DagsterEvent(
            event_type_value=kind.value,
            job_name=context.run.job_name,
            step_key=step,
            event_specific_data=data,
            message=event.description or "",
        ),
    )

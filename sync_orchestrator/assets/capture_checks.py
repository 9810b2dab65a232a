"""What is shown of streams of captured changes: an observation of each, and the check that it is current.

The sensor ``captured_changes`` reports both (``sensors/capture.py``). The check can be executed by hand, too.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from sync_orchestrator.assets.lineage import captured_key
from sync_orchestrator.config import Config
from sync_orchestrator.config.sources import CaptureSettings, SqlSourceSettings
from sync_orchestrator.core.operations.captured_streams import StreamReport, read_stream_reports
from sync_orchestrator.resources.system import SystemResource

CAPTURE_CHECK = "capture_is_current"

_NEVER_OPEN = "the stream was never open: run `sync-orchestrator capture`; `sync-orchestrator up` runs one, too"


def capture_check(source: str) -> dg.AssetChecksDefinition:
    """The check of one source's stream."""
    spec = dg.AssetCheckSpec(
        CAPTURE_CHECK,
        asset=captured_key(source),
        description=(
            "Fails while changes are missing, while no process reads the stream, and while it is behind by more than "
            "capture.max_behind_seconds or capture.max_retained_bytes allow. Evaluated each minute."
        ),
    )

    @dg.multi_asset_check(name=f"{source}_{CAPTURE_CHECK}", specs=[spec], can_subset=True)
    def check_capture(
        context: dg.AssetCheckExecutionContext, system: SystemResource
    ) -> Iterator[dg.AssetCheckEvaluation]:
        yield evaluate_stream(source, system.context.config, read_reports(system).get(source))

    return check_capture


def read_reports(system: SystemResource) -> dict[str, StreamReport]:
    """The streams by source system."""
    with system.context.engine.begin() as connection:
        return read_stream_reports(connection)


def observe_stream(report: StreamReport, events_before: int | None) -> dg.AssetObservation:
    """The observation of a stream.

    Args:
        report: The stream.
        events_before: How many change events it had at the last observation; None for the first one.
    """
    changes = report.events if events_before is None else max(0, report.events - events_before)
    return dg.AssetObservation(
        captured_key(report.source), metadata={**_describe_figures(report), "changes_since_last": changes}
    )


def evaluate_stream(source: str, config: Config, report: StreamReport | None) -> dg.AssetCheckEvaluation:
    """The check of a stream; ``report``: None where it was never open."""
    problems = [_NEVER_OPEN] if report is None else report.find_problems(_limits_of(config, source))
    return dg.AssetCheckEvaluation(
        asset_key=captured_key(source),
        check_name=CAPTURE_CHECK,
        passed=not problems,
        severity=dg.AssetCheckSeverity.ERROR,
        description="; ".join(problems).replace("`", "") or "the stream is read and current",
        metadata={} if report is None else _describe_figures(report),
    )


def _describe_figures(report: StreamReport) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "behind_seconds": report.behind_seconds,
        "changes": report.events,
        "position": report.position,
        "is_read": report.is_read,
    }
    if report.retained_bytes is not None:
        figures["behind_bytes"] = report.retained_bytes
    if report.recorded_at is not None:
        figures["last_change_recorded"] = dg.MetadataValue.timestamp(report.recorded_at)
    return figures | {name: text for name, text in (("lost", report.lost), ("error", report.error)) if text}


def _limits_of(config: Config, source: str) -> CaptureSettings:
    settings = config.sources[source]
    assert isinstance(settings, SqlSourceSettings)
    return settings.capture or CaptureSettings()

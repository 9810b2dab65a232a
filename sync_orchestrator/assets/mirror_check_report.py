"""What the check of the mirror says of one business group: a line, figures, tables of differences and dead records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import dagster as dg

from sync_orchestrator import exact_json
from sync_orchestrator.assets.lineage import mirror_key
from sync_orchestrator.core.push.dead_records import DeadRecord
from sync_orchestrator.core.validation.drift import DriftKind
from sync_orchestrator.core.validation.validate import GroupValidation

_STATES = {"dead": "record", "on_hold": "record, on hold", "discarded": "record, discarded"}
MAX_SAMPLES = 50
MAX_FIELDS = 6
MAX_ERROR_LENGTH = 300


def drift_observation(name: str, result: GroupValidation) -> dg.AssetObservation:
    """The drift of one group by kind, as numbers that the UI plots over time.

    Reported where there is some, and once more when it is gone or was repaired by hand; groups that are in sync add
    nothing to the event log.
    """
    counts = Counter(drift.kind for drift in result.drift)
    return dg.AssetObservation(
        asset_key=mirror_key(name),
        partition=result.group,
        metadata={"drift": len(result.drift), **{f"drift_{kind}": counts[kind] for kind in DriftKind}},
    )


def summarize_validation(result: GroupValidation) -> str:
    """The verdict in one line."""
    if result.verdict == "not_validated":
        return f"not validated: {result.reason}"
    looked = "counted" if result.compared is None else f"compared {result.compared}"
    counts = [f"{n} {kind}" for kind, n in sorted(Counter(drift.kind for drift in result.drift).items())]
    line = ", ".join([result.verdict.replace("_", " "), looked, *counts])
    if waiting := sum(1 for drift in result.drift if drift.status == "found"):
        line += f"; {waiting} to be repaired by hand: launch the job repair"
    return "; ".join(text for text in (line, result.reason) if text)


def metadata_of(result: GroupValidation) -> dict[str, Any]:
    """What people look at: the verdict, the counts, tables of sampled differences and of dead records."""
    metadata: dict[str, Any] = {
        "verdict": result.verdict,
        "expected": result.expected,
        "in_flight": result.ambiguous,
        "drift": len(result.drift),
        "sent_to_repair": result.repaired,
        "unmanaged": result.unmanaged,
        "persistent": result.persistent,
        "dead": result.dead,
        "discarded": result.discarded,
        "method": "count" if result.compared is None else "count, then diff",
    }
    if result.counted is not None:
        metadata["counted"] = result.counted
    if result.compared is not None:
        metadata["compared"] = result.compared
    if result.drift:
        metadata["differences"] = _build_differences_table(result)
    if result.dead_records:
        metadata["dead_records"] = _dead_records(result.dead_records)
    if result.dead_without_group:
        metadata["dead_without_group"] = result.dead_without_group
    return metadata


def _dead_records(records: Sequence[DeadRecord]) -> dg.TableMetadataValue:
    columns = ["key", "kind", "cause", "since", "error"]
    rows = [
        {
            "key": record.key,
            "kind": "change" if record.kind == "event" else _STATES[record.state],
            "cause": record.cause,
            "since": record.since.isoformat(timespec="seconds"),
            "error": (record.error or "")[:MAX_ERROR_LENGTH],
        }
        for record in records
    ]
    return dg.MetadataValue.table(
        [dg.TableRecord(row) for row in rows], schema=dg.TableSchema([dg.TableColumn(name) for name in columns])
    )


def _build_differences_table(result: GroupValidation) -> dg.TableMetadataValue:
    columns = ["key", "kind", "status", "id there", "ours → theirs"]
    drifts = sorted(result.drift, key=lambda drift: (drift.kind, drift.key))
    rows = [
        {
            "key": drift.key,
            "kind": drift.kind.value,
            "status": drift.status.value,
            "id there": drift.external_id or "",
            "ours → theirs": "not there" if drift.kind == "missing" else _format_sample(drift.sample),
        }
        for drift in drifts[:MAX_SAMPLES]
    ]
    return dg.MetadataValue.table(
        [dg.TableRecord(row) for row in rows], schema=dg.TableSchema([dg.TableColumn(name) for name in columns])
    )


def _format_sample(sample: Sequence[dict[str, object]]) -> str:
    """The differing fields of one record in one line: ``price: 12.5 → 99``."""
    lines = [f"{line['field']}: {_format_value(line['ours'])} → {_format_value(line['theirs'])}" for line in sample]
    return "; ".join(lines[:MAX_FIELDS]) + (f"; and {len(lines) - MAX_FIELDS} more" * (len(lines) > MAX_FIELDS))


def _format_value(value: object) -> str:
    if isinstance(value, dict | list | Decimal):
        return exact_json.dump_text(value, spaced=True)[:80]
    return "nothing" if value is None else str(value)[:80]

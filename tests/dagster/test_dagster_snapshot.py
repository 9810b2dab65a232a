"""What Dagster loads, as a text that a review can read: ``dagster_definitions.txt`` beside this file.

With ``SYNC_UPDATE_SNAPSHOTS=1`` the file is written anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
from fakes import two_part_config

from sync_orchestrator.definitions import build_definitions

SNAPSHOT = Path(__file__).parent / "dagster_definitions.txt"


def described(defs: dg.Definitions) -> str:
    """The definitions, one fact a line."""
    sections = {
        "Assets": _assets(defs),
        "Asset checks": _checks(defs),
        "Jobs": _jobs(defs),
        "Schedules": _schedules(defs),
        "Sensors": _sensors(defs),
        "Resources": _resources(defs),
    }
    return "\n\n".join("\n".join([name, "=" * len(name), *lines]) for name, lines in sections.items()) + "\n"


def _assets(defs: dg.Definitions) -> Iterator[str]:
    graph = defs.resolve_asset_graph()
    for key in sorted(graph.get_all_asset_keys()):
        node = graph.get(key)
        yield f"{key.to_user_string()}{' (external)' if node.is_external else ''}"
        yield f"  group: {node.group_name}"
        yield f"  kinds: {_joined(node.kinds)}"
        yield f"  tags: {_joined(f'{name}={value}' for name, value in node.tags.items() if '/kind/' not in name)}"
        yield f"  owners: {_joined(node.owners)}"
        yield f"  upstream: {_joined(parent.to_user_string() for parent in node.parent_keys)}"
        yield f"  partitions: {_partitions(node.partitions_def)}"
        yield f"  pools: {_joined(node.pools or ())}"
        yield f"  freshness: {_freshness(node.freshness_policy)}"
        yield f"  metadata: {_joined(node.metadata)}"


def _checks(defs: dg.Definitions) -> Iterator[str]:
    graph = defs.resolve_asset_graph()
    for key in sorted(graph.asset_check_keys, key=str):
        node = graph.get(key)
        yield f"{key.asset_key.to_user_string()}: {key.name}, partitions: {_partitions(node.partitions_def)}"


def _jobs(defs: dg.Definitions) -> Iterator[str]:
    for job in sorted(defs.resolve_all_job_defs(), key=lambda job: job.name):
        if job.name.startswith("__"):
            continue
        yield job.name
        yield f"  description: {job.description}"
        yield f"  executor: {job.executor_def.name}"
        yield f"  tags: {_joined(f'{name}={value}' for name, value in job.run_tags.items())}"
        yield f"  assets: {_joined(key.to_user_string() for key in job.asset_layer.executable_asset_keys)}"
        yield f"  partitions: {_partitions(job.partitions_def)}"
        ops: Any = job.run_config_schema.config_type.fields["ops"].config_type  # type: ignore[attr-defined]
        for op, field in ops.fields.items():
            config = field.config_type.fields.get("config")
            options: dict[str, Any] = getattr(config and config.config_type, "fields", {})
            yield f"  op {op}"
            for name, option in options.items():
                yield f"    {name}: {_values(option)}, default: {_default(option)}"


def _schedules(defs: dg.Definitions) -> Iterator[str]:
    for schedule in sorted(defs.schedules or (), key=lambda schedule: schedule.name):
        assert isinstance(schedule, dg.ScheduleDefinition)
        status = schedule.default_status.value
        yield f"{schedule.name}: {schedule.cron_schedule}, job {schedule.job_name}, {status}"


def _sensors(defs: dg.Definitions) -> Iterator[str]:
    for sensor in sorted(defs.sensors or (), key=lambda sensor: sensor.name):
        assert isinstance(sensor, dg.SensorDefinition)
        jobs = _joined(target.job_name for target in sensor.targets if hasattr(target, "job_name"))
        yield (
            f"{sensor.name}: {sensor.sensor_type.value}, every {sensor.minimum_interval_seconds} s, jobs: {jobs}, "
            f"{sensor.default_status.value}"
        )


def _resources(defs: dg.Definitions) -> Iterator[str]:
    for name, resource in sorted((defs.resources or {}).items()):
        yield f"{name}: {type(resource).__name__}({_joined(type(resource).model_fields)})"


def _partitions(partitions: dg.PartitionsDefinition[str] | None) -> str:
    return "none" if partitions is None else str(partitions.name)  # type: ignore[attr-defined]


def _freshness(policy: Any) -> str:
    if policy is None:
        return "none"
    return f"warns after {policy.warn_window.to_timedelta()}, fails after {policy.fail_window.to_timedelta()}"


def _values(option: Any) -> str:
    kind = option.config_type
    if hasattr(kind, "enum_values"):
        return "one of " + ", ".join(repr(value.config_value) for value in kind.enum_values)
    return str(kind.key)


def _default(option: Any) -> str:
    return repr(option.default_value) if option.default_provided else "required" if option.is_required else "none"


def _joined(values: Any) -> str:
    return ", ".join(sorted(map(str, values))) or "none"


def test_the_definitions_are_those_of_the_snapshot() -> None:
    found = described(build_definitions(two_part_config()))
    if os.environ.get("SYNC_UPDATE_SNAPSHOTS") == "1":
        SNAPSHOT.write_text(found)
    assert found == SNAPSHOT.read_text(), "see the difference; SYNC_UPDATE_SNAPSHOTS=1 writes the file anew"

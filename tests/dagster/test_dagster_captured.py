"""Streams of captured changes as the Dagster UI shows them: the asset, its observations, and its check."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from captured_sources import CapturedSource, SourceServer, captured_config, query
from dagster._core.storage.defs_state.base import set_defs_state_storage
from dagster_instance import system_of
from sqlalchemy import Engine
from world import World

from sync_orchestrator.assets.capture_checks import CAPTURE_CHECK
from sync_orchestrator.assets.lineage import archive_key, captured_key, source_key
from sync_orchestrator.config import Config
from sync_orchestrator.definitions import build_definitions
from sync_orchestrator.resources.system import SystemResource
from sync_orchestrator.sensors import capture as sensor_module
from sync_orchestrator.sensors.capture import captured_changes

CAPTURED = captured_key("shop")
INSERT = """
INSERT INTO sync.streams (name, identity, position, events, retained, behind, lease_token, lease_until, recorded_at)
VALUES ('shop', 'x', '0/10', 5, 1048576, 2, 1, sync.clock() + interval '1 minute', sync.clock())
"""


@pytest.fixture(autouse=True)
def _of_no_instance() -> Iterator[None]:
    """A storage left over from an instance that is gone may be set."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture
def config() -> Config:
    """A configuration with a captured source, which nothing here connects to."""
    return captured_config(CapturedSource(SourceServer("postgresql+psycopg://nobody@127.0.0.1:1/none"), "none"))


@pytest.fixture
def system(world: World, config: Config) -> SystemResource:
    return system_of(lambda: replace(world.context, config=config))


def tick(system: SystemResource, cursor: str | None = None) -> tuple[Any, Any, dg.SensorResult]:
    """One evaluation of the sensor: its observation, or None, its evaluation of the check, and its result."""
    result: Any = captured_changes(dg.build_sensor_context(cursor=cursor), system=system)
    observation = next((event for event in result.asset_events if isinstance(event, dg.AssetObservation)), None)
    evaluation = next((event for event in result.asset_events if isinstance(event, dg.AssetCheckEvaluation)), None)
    return observation, evaluation, result


def figures(event: Any) -> dict[str, Any]:
    return {name: entry.value for name, entry in event.metadata.items()}


def test_captured_changes_are_an_asset_between_a_source_and_the_archive(config: Config) -> None:
    definitions = build_definitions(config)
    dg.Definitions.validate_loadable(definitions)
    graph = definitions.resolve_asset_graph()
    assert graph.get(CAPTURED).parent_keys == {source_key("item", "shop")}
    assert graph.get(archive_key("item")).parent_keys == {source_key("item", "shop"), CAPTURED}
    assert CAPTURED in graph.external_asset_keys
    assert dg.AssetCheckKey(CAPTURED, CAPTURE_CHECK) in graph.asset_check_keys
    assert "captured_changes" in {sensor.name for sensor in definitions.sensors or ()}


def test_a_stream_is_observed_and_its_check_evaluated_once_a_minute(
    system: SystemResource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    query(engine, INSERT + " RETURNING name")
    observation, evaluation, first = tick(system)
    shown = figures(observation)
    assert observation.asset_key == evaluation.asset_key == CAPTURED
    assert (shown["behind_seconds"], shown["behind_bytes"]) == (2.0, 1024**2)
    assert (shown["position"], shown["is_read"], shown["changes_since_last"]) == ("0/10", True, 5)
    assert (evaluation.passed, evaluation.check_name) == (True, CAPTURE_CHECK)
    assert tick(system, first.cursor)[:2] == (None, None)
    query(engine, "UPDATE sync.streams SET events = 12 RETURNING name")
    monkeypatch.setattr(sensor_module, "REPORT_SECONDS", 0)
    observation, _, _ = tick(system, first.cursor)
    assert figures(observation)["changes_since_last"] == 7


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("lost = 'the replication slot is gone'", "changes are missing: the replication slot is gone"),
        ("lease_until = NULL", "no process reads it"),
        ("at = sync.clock() - interval '10 minutes'", "it is behind by 60"),
        ("at = sync.clock() - interval '20 seconds', error = 'refused'", "it is not open: refused"),
        ("behind = 61", "capture.max_behind_seconds is 60"),
        ("retained = 3::bigint * 1024 * 1024 * 1024", "keeps 3072 MiB"),
    ],
)
def test_the_check_fails_while_a_stream_is_lost_not_read_or_behind(
    system: SystemResource, engine: Engine, change: str, reason: str
) -> None:
    query(engine, INSERT + " RETURNING name")
    query(engine, f"UPDATE sync.streams SET {change} RETURNING name")
    _, evaluation, result = tick(system)
    assert not evaluation.passed
    assert reason in evaluation.description
    assert reason in str(result.skip_reason)


def test_the_check_fails_while_a_stream_was_never_open(system: SystemResource) -> None:
    observation, evaluation, _ = tick(system)
    assert (observation, evaluation.passed) == (None, False)
    assert "was never open" in evaluation.description


def test_dagster_stores_what_the_sensor_reports_and_the_check_can_be_executed_by_hand(
    config: Config, system: SystemResource, engine: Engine
) -> None:
    query(engine, INSERT + " RETURNING name")
    key = dg.AssetCheckKey(CAPTURED, CAPTURE_CHECK)
    _, _, result = tick(system)
    with dg.DagsterInstance.ephemeral() as instance:
        for event in result.asset_events:
            instance.report_runless_asset_event(event)
        [observed] = instance.fetch_observations(CAPTURED, limit=10).records
        assert observed.asset_key == CAPTURED
        [record] = instance.event_log_storage.get_asset_check_execution_history(key, limit=10)
        assert record.evaluation is not None
        assert record.evaluation.passed
        job = build_definitions(config, system).resolve_implicit_global_asset_job_def()
        ran = job.get_subset(asset_check_selection={key}).execute_in_process(instance=instance)
        assert ran.success
        assert len(instance.event_log_storage.get_asset_check_execution_history(key, limit=10)) == 2

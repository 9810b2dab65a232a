"""A Dagster instance on storage in Postgres, with the project's definitions over a world."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.storage.defs_state.base import set_defs_state_storage
from databases import create, drop
from sqlalchemy import text
from world import World

from sync_orchestrator.assets.entity import archive_key, mirror_key
from sync_orchestrator.assets.mirror_checks import CHECK
from sync_orchestrator.assets.partitions import business_groups_of
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.database.embedded import pgurl_for_dagster
from sync_orchestrator.definitions import build_definitions
from sync_orchestrator.resources.instance.config import DATABASE_VARIABLE, make_tables, write_instance
from sync_orchestrator.resources.system import SystemResource
from sync_orchestrator.sensors import changes

ARCHIVE, MIRROR = archive_key("item"), mirror_key("item")


CHECK_KEY = dg.AssetCheckKey(MIRROR, CHECK)


def system_of(context: Callable[[], Context]) -> SystemResource:
    """A resource whose context is that of a test."""

    class SystemOfTest(SystemResource):
        @property
        def context(self) -> Context:
            return context()

    return SystemOfTest()


class Dagster:
    """The definitions of the test's world, on an instance with its storage in the test's database."""

    def __init__(self, world: World, instance: dg.DagsterInstance) -> None:
        self.world = world
        self.instance = instance
        self.context = world.context
        self.system = system_of(lambda: self.context)
        self.defs = build_definitions(world.config, self.system)

    def tick(self, sensor: dg.SensorDefinition, cursor: str | None = None) -> Any:
        """One evaluation of a sensor, its partitions added as the daemon does."""
        context = dg.build_sensor_context(
            self.instance, cursor=cursor, definitions=self.defs, resources={"system": self.system}
        )
        result: Any = sensor.evaluate_tick(context)
        for request in result.dynamic_partitions_requests:
            self.instance.add_dynamic_partitions(request.partitions_def_name, request.partition_keys)
        return result

    def run(
        self,
        job: str,
        *,
        groups: Sequence[str] = (),
        assets: Sequence[dg.AssetKey] | None = None,
        checks: Sequence[dg.AssetCheckKey] | None = None,
        tags: dict[str, str] | None = None,
        **options: Any,
    ) -> dg.ExecuteInProcessResult:
        """Executes a job over the groups, as the runs of a backfill do."""
        ranged = (
            {"dagster/asset_partition_range_start": groups[0], "dagster/asset_partition_range_end": groups[-1]}
            if groups
            else {}
        )
        definition = self.defs.resolve_job_def(job)
        if assets is not None or checks is not None:
            definition = definition.get_subset(
                asset_selection=set(assets or ()), asset_check_selection=set(checks or ())
            )
        return definition.execute_in_process(
            instance=self.instance, tags={**ranged, **(tags or {})}, raise_on_error=False, **options
        )

    def events(self, asset: dg.AssetKey, kind: str) -> dict[str, Any]:
        """The newest event of that kind by group, as the storage has it."""
        return {str(event.partition): event for event in self.all_events(asset, kind) if event.partition is not None}

    def all_events(self, asset: dg.AssetKey, kind: str) -> list[Any]:
        """All events of that kind, the oldest first."""
        fetch = {
            "materialization": self.instance.fetch_materializations,
            "observation": self.instance.fetch_observations,
        }[kind]
        records = fetch(dg.AssetRecordsFilter(asset_key=asset), limit=1000, ascending=True).records
        return [getattr(record, f"asset_{kind}") for record in records]

    def totals(self) -> dict[str, Any]:
        """The newest totals of all groups, as the plots of the mirror show them."""
        found = [event for event in self.all_events(MIRROR, "observation") if event.partition is None]
        return {name: entry.value for name, entry in found[-1].metadata.items()}

    def partitions(self, asset: dg.AssetKey) -> dict[str, str]:
        """The status of the groups of an asset, as the UI shows it."""
        groups = self.instance.get_dynamic_partitions("item_business_group")
        found = self.instance.get_status_by_partition(asset, groups, business_groups_of("item"))
        return {group: "missing" if status is None else status.name for group, status in (found or {}).items()}

    def checked(self, check: dg.AssetCheckKey = CHECK_KEY) -> dict[str, list[str]]:
        """The groups by the check's status, as the UI shows it."""
        storage = self.instance.event_log_storage
        with partition_loading_context(dynamic_partitions_store=self.instance):
            state = storage.get_asset_check_state([(check, business_groups_of("item"))])[check]
            found = {
                status.name: sorted(subset.subset_value.get_partition_keys())
                for status, subset in state.subsets.items()
            }
        return {status: groups for status, groups in found.items() if groups}

    def evaluation(self, group: str) -> dg.AssetCheckEvaluation:
        """The newest evaluation of a group."""
        records = self.instance.event_log_storage.get_asset_check_execution_history(CHECK_KEY, limit=100)
        found = next(record.evaluation for record in records if record.partition == group)
        assert found is not None
        return found

    def evaluated(self, ran: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
        """What a run stored of its checks, by group."""
        return {str(evaluation.partition): evaluation for evaluation in self.evaluations(ran)}

    def evaluations(self, ran: dg.ExecuteInProcessResult) -> list[dg.AssetCheckEvaluation]:
        """What a run stored of its checks, in order."""
        records = self.instance.get_records_for_run(
            ran.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION, ascending=True
        ).records
        return [record.event_log_entry.get_dagster_event().asset_check_evaluation_data for record in records]

    def open_alerts(self) -> dict[str, str]:
        return {
            row.kind: row.cause
            for row in self.world.query("SELECT kind, cause FROM sync.alerts WHERE resolved_at IS NULL")
        }


@pytest.fixture(scope="module")
def storage_url(server_url: str) -> Iterator[str]:
    """A database for Dagster's own tables; making them takes seconds, so the module has one."""
    url = create(server_url, f"dagster_{os.getpid()}")
    yield url
    drop(server_url, url)


@pytest.fixture(scope="module")
def storage(storage_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATABASE_VARIABLE, pgurl_for_dagster(storage_url))
        home = write_instance(tmp_path_factory.mktemp("dagster")).parent
        make_tables()
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield instance


@pytest.fixture
def instance(storage: dg.DagsterInstance, storage_url: str) -> Iterator[dg.DagsterInstance]:
    """The instance, emptied after the test."""
    yield storage
    engine = open_engine(storage_url)
    with engine.begin() as connection:
        names = connection.execute(
            text(
                "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables "
                "WHERE schemaname = 'public' AND tablename NOT IN ('alembic_version', 'secondary_indexes')"
            )
        ).scalar_one()
        connection.execute(text(f"TRUNCATE {names}"))
    engine.dispose()


@pytest.fixture
def dagster(
    make_world: Callable[..., World], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Dagster]:
    world = make_world(limits={"linger": 0})
    monkeypatch.setattr(changes, "LONG_POLL_SECONDS", 0.2)
    with set_defs_state_storage(None):  # a storage left over from an instance that is gone may be set
        yield Dagster(world, instance)


@pytest.fixture
def synced(dagster: Dagster) -> Dagster:
    """Groups A, B and C of three records each, after their full sync."""
    for group in "ABC":
        for number in range(3):
            dagster.world.put_record(f"{group}{number}", group=group, notify=False)
    dagster.instance.add_dynamic_partitions("item_business_group", ["A", "B", "C"])
    dagster.tick(changes.business_groups)
    assert dagster.run("full_sync_item", groups=["A", "B", "C"]).success
    return dagster


def failure_of(ran: dg.ExecuteInProcessResult) -> tuple[str, dict[str, Any]]:
    """Why the first step that failed did so, and its metadata."""
    data = next(event for event in ran.all_events if event.is_step_failure).step_failure_data
    metadata = {} if data.user_failure_data is None else data.user_failure_data.metadata
    return str(data.user_failure_data and data.user_failure_data.description), dict(metadata)


def plotted(dagster: Dagster) -> dict[str, tuple[Any, Any, Any]]:
    """The newest numbers of drift by group: all of it, missing, different."""
    found = {group: event.metadata for group, event in dagster.events(MIRROR, "observation").items()}
    return {
        group: (numbers["drift"].value, numbers["drift_missing"].value, numbers["drift_different"].value)
        for group, numbers in found.items()
        if "drift" in numbers
    }


def output(ran: dg.ExecuteInProcessResult, node: str) -> dict[str, Any]:
    """The metadata of a run's output."""
    [event] = [event for event in ran.events_for_node(node) if event.is_successful_output]
    return {name: value.value for name, value in event.step_output_data.metadata.items()}


def failure(ran: dg.ExecuteInProcessResult) -> str:
    """Why a run's step failed."""
    assert not ran.success
    [event] = [event for event in ran.all_events if event.is_step_failure]
    return str(event.step_failure_data.error_display_string)

"""What Dagster loads, and the small decisions of sensors and schedules: no database, no run."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster import DagsterRunStatus as Status
from dagster._core.storage.defs_state.base import set_defs_state_storage
from dagster._utils.schedules import schedule_execution_time_iterator
from fakes import two_part_config
from paths import ROOT

from demo.up import home_of_demo
from sync_orchestrator import config as configuration
from sync_orchestrator.assets.lineage import archive_key, captured_key, mirror_key, source_key, third_party_key
from sync_orchestrator.assets.ticks import cron_line, tick_minutes
from sync_orchestrator.definitions import build_definitions
from sync_orchestrator.expressions.mapping_columns import paths_of
from sync_orchestrator.resources.instance.config import DATABASE_VARIABLE, write_instance
from sync_orchestrator.sensors.alerts import cause_of, goes_on
from sync_orchestrator.sensors.changes import unless_needed
from sync_orchestrator.texts.nearest_names import unknown_name


@pytest.fixture(scope="module", autouse=True)
def of_no_instance() -> Iterator[None]:
    """An instance of another module's tests leaves its storage set though it is gone."""
    with set_defs_state_storage(None):
        yield


@pytest.fixture(scope="module")
def defs() -> dg.Definitions:
    return build_definitions(two_part_config())


def test_definitions_are_loadable_without_a_database(defs: dg.Definitions) -> None:
    """Nothing is connected to when Dagster loads the project."""
    dg.Definitions.validate_loadable(defs)


def test_each_entity_has_an_archive_and_a_mirror_by_business_group(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()
    assert graph.materializable_asset_keys == {archive_key("item"), mirror_key("item")}
    assert graph.get(mirror_key("item")).parent_keys == {archive_key("item")}
    for key in graph.materializable_asset_keys:
        assert graph.get(key).partitions_def.name == "item_business_group"  # type: ignore[union-attr]
        assert graph.get(key).group_name == "item"


def test_lineage_begins_at_the_sources_and_ends_at_the_third_party(defs: dg.Definitions) -> None:
    """External assets, which nothing materializes."""
    graph = defs.resolve_asset_graph()
    sources = {source_key("item", "shop"), source_key("item", "stock")}
    assert graph.get(archive_key("item")).parent_keys == sources
    assert graph.get(mirror_key("item")).child_keys == {third_party_key("item", "erp")}
    assert graph.external_asset_keys == {*sources, third_party_key("item", "erp")}


def test_the_metadata_of_the_assets_says_where_each_field_comes_from() -> None:
    config = two_part_config(
        entity={"owners": ["team:stones", "ann@example.org"]},
        shop={"base_url": "https://user:word@shop.example/api?token=x"},
    )
    graph = build_definitions(config).resolve_asset_graph()
    archive, mirror = graph.get(archive_key("item")), graph.get(mirror_key("item"))
    assert list(archive.owners) == list(mirror.owners) == ["team:stones", "ann@example.org"]
    assert (archive.kinds, mirror.kinds) == ({"postgres"}, {"api", "erp"})
    columns = mirror.metadata["dagster/column_schema"].columns
    assert {column.name: column.description for column in columns} == config.entities["item"].mapping
    assert dict(mirror.metadata["dagster/column_lineage"].deps_by_column) == {
        "code": [dg.TableColumnDep(archive_key("item"), "key")],
        "store": [dg.TableColumnDep(archive_key("item"), "group")],
        "name": [dg.TableColumnDep(archive_key("item"), "shop.name")],
        "count": [dg.TableColumnDep(archive_key("item"), "stock.count")],
    }
    lineage = archive.metadata["dagster/column_lineage"].deps_by_column
    assert lineage["stock.count"] == [dg.TableColumnDep(source_key("item", "stock"), "count")]
    assert lineage["group"] == [dg.TableColumnDep(source_key("item", "shop"), "store")]
    assert graph.get(source_key("item", "shop")).metadata["dagster/uri"] == "https://shop.example/api"
    assert mirror.metadata["dagster/uri"] == "http://127.0.0.1:1"
    assert mirror.metadata["validation"] == (
        "every 15 min; full comparison at least every 1 d; drift: repair auto; unmanaged records: report"
    )
    assert archive.metadata["source_check"] == "every 1 d; lost notifications: repair auto"


@pytest.mark.parametrize(
    ("expression", "paths"),
    [
        ("shop.name", [("shop", "name")]),
        ("shop.{a: b.c, d: e}", [("shop", "b", "c"), ("shop", "e")]),
        ("shop.price || shop.old", [("shop", "old"), ("shop", "price")]),
        ("shop.items[?kind == 'x'].name | [0]", [("shop", "items", "kind"), ("shop", "items", "name")]),
        ("max_by(shop.items, &price)", [("shop", "items"), ("shop", "items", "price")]),
        ("`1`", []),
    ],
)
def test_the_fields_that_an_expression_reads(expression: str, paths: list[tuple[str, ...]]) -> None:
    assert list(paths_of(expression)) == paths


@pytest.mark.parametrize(
    ("owner", "good"),
    [("team:stones", True), ("ann@example.org", True), ("stones", False), ("team:", False), ("a b@c.d", False)],
)
def test_owners_are_addresses_or_teams(owner: str, good: bool) -> None:
    if good:
        assert two_part_config(entity={"owners": [owner]}).entities["item"].owners == [owner]
    else:
        with pytest.raises(ValueError, match="owners"):
            two_part_config(entity={"owners": [owner]})


def test_the_descriptions_say_what_a_launch_may_write() -> None:
    for repair, said in (("auto", "writes to the third party"), ("ask", "writes nothing to the third party")):
        graph = build_definitions(two_part_config(entity={"validation": {"repair": repair}})).resolve_asset_graph()
        check = graph.get(dg.AssetCheckKey(mirror_key("item"), "count_then_diff"))
        assert said in str(check.description)
        assert "works on all business groups" in str(check.description)
    assert "pushes what the archive holds" in str(graph.get(mirror_key("item")).description)


def test_the_check_of_the_mirror_is_partitioned_too(defs: dg.Definitions) -> None:
    key = dg.AssetCheckKey(mirror_key("item"), "count_then_diff")
    assert defs.resolve_asset_graph().get(key).partitions_def.name == "item_business_group"  # type: ignore[union-attr]


def test_one_full_sync_job_covers_every_asset_and_can_be_backfilled(defs: dg.Definitions) -> None:
    job = defs.resolve_job_def("full_sync_item")
    assert job.partitions_def is not None
    assert set(job.asset_layer.executable_asset_keys) == {archive_key("item"), mirror_key("item")}
    assert not job.asset_layer.asset_graph.asset_check_keys


def test_sensors_and_schedules_run_without_being_switched_on(defs: dg.Definitions) -> None:
    sensors = list(defs.sensors or [])
    assert {sensor.name for sensor in sensors if isinstance(sensor, dg.SensorDefinition)} == {
        "change_events",
        "business_groups",
        "worker",
        "dead_runs",
        "failed_runs",
        "recovered_runs",
    }
    for sensor in sensors:
        assert sensor.default_status is dg.DefaultSensorStatus.RUNNING
    for schedule in defs.schedules or []:
        assert schedule.default_status is dg.DefaultScheduleStatus.RUNNING


def test_the_schedules_say_what_they_do(defs: dg.Definitions) -> None:
    schedules = {schedule.name: schedule for schedule in defs.schedules or []}
    assert set(schedules) == {"validate_due_groups", "check_due_sources", "ledger_maintenance"}
    assert "partitions of the ledger's tables" in (schedules["ledger_maintenance"].description or "")


@pytest.mark.parametrize(
    ("periods", "line"),
    [
        ([1], "*/1 * * * *"),  # never more often than each minute
        ([60], "*/1 * * * *"),
        ([90], "*/1 * * * *"),
        ([900], "*/15 * * * *"),
        ([2700], "*/15 * * * *"),  # */45 would fire 15 and 45 minutes apart
        ([420], "*/1 * * * *"),
        ([3600], "0 */1 * * *"),
        ([5400], "*/30 * * * *"),
        ([7200], "0 */2 * * *"),
        ([18_000], "0 */1 * * *"),  # */5 would fire 4 and 5 hours apart
        ([86_400], "0 0 * * *"),
        ([604_800], "0 0 * * *"),  # never more seldom than each day: the core knows what is due
        ([1200, 1800], "*/10 * * * *"),
        ([], "0 0 * * *"),
    ],
)
def test_schedules_look_at_a_regular_interval_of_which_every_period_is_a_multiple(
    periods: list[float], line: str
) -> None:
    assert cron_line(tick_minutes(*periods)) == line


@pytest.mark.parametrize("minutes", [7, 15, 20, 45, 50, 90, 300])
def test_what_is_due_every_so_often_is_found_that_often(minutes: int) -> None:
    """By the cron line that Dagster evaluates, and by the core's query: due when it is as old as its period."""
    ticks = schedule_ticks(cron_line(tick_minutes(60 * minutes)))
    done = [next(ticks)]
    for at in itertools.islice(ticks, 3 * 1440):
        if (at - done[-1]).total_seconds() >= 60 * minutes - 30:
            done.append(at)
    assert {(later - before).total_seconds() / 60 for before, later in itertools.pairwise(done)} == {minutes}


def schedule_ticks(line: str) -> Iterator[datetime]:
    """The times at which Dagster fires a schedule."""
    return schedule_execution_time_iterator(datetime(2026, 1, 1, tzinfo=UTC).timestamp(), line, "UTC", ascending=True)


NOW = 1000.0


@pytest.mark.parametrize(
    ("runs", "needed"),
    [
        ([], True),
        ([(Status.QUEUED, None, None)], False),
        ([(Status.STARTING, None, None)], False),
        ([(Status.STARTED, NOW - 5, None)], False),  # its drain has not been heard of yet
        ([(Status.STARTED, NOW - 31, None)], True),  # it never will: its process is gone
        ([(Status.SUCCESS, NOW - 9, NOW - 1)], True),
        ([(Status.CANCELED, NOW - 9, NOW - 1)], True),
        ([(Status.FAILURE, NOW - 9, NOW - 9)], False),  # one failure: a pause of 10 s
        ([(Status.FAILURE, NOW - 11, NOW - 11)], True),
        ([(Status.FAILURE, NOW, NOW - 30)] * 3, False),  # three: 40 s
        ([(Status.FAILURE, NOW, NOW - 299)] * 8, False),  # never more than 300 s
        ([(Status.FAILURE, NOW, NOW - 301)] * 8, True),
        ([(Status.SUCCESS, NOW, NOW - 1), (Status.FAILURE, NOW, NOW - 2)], True),
    ],
)
def test_whether_a_drain_is_requested_when_none_is_heard_of(runs: list[Any], needed: bool) -> None:
    assert (unless_needed(runs, NOW) is None) is needed


@pytest.mark.parametrize(
    ("job", "tags", "cause"),
    [
        ("incremental_sync", {}, "incremental_sync"),
        ("full_sync", {"dagster/partition": "A"}, "full_sync A"),
        (
            "full_sync",
            {"dagster/asset_partition_range_start": "A", "dagster/asset_partition_range_end": "C"},
            "full_sync A to C",
        ),
        ("__ASSET_JOB", {"dagster/partition": "A"}, "assets A"),
    ],
)
def test_failed_runs_of_the_same_are_one_alert(job: str, tags: dict[str, str], cause: str) -> None:
    assert cause_of(dg.DagsterRun(job_name=job, tags=tags)) == cause


@pytest.mark.parametrize(
    ("job", "reason", "silent"),
    [
        ("incremental_sync", "UNEXPECTED_TERMINATION", True),
        ("maintenance", "UNEXPECTED_TERMINATION", True),
        ("incremental_sync", "STEP_FAILURE", False),
        ("validate", "UNEXPECTED_TERMINATION", False),
    ],
)
def test_only_an_interrupted_run_whose_next_goes_on_is_no_alert(job: str, reason: str, silent: bool) -> None:
    assert goes_on(dg.DagsterRun(job_name=job, tags={"dagster/failure_reason": reason})) is silent


def test_instance_settings_hold_no_password_and_keep_full_syncs_from_filling_the_queue(tmp_path: Path) -> None:
    settings = yaml.safe_load(write_instance(tmp_path / "home").read_text())
    assert settings["storage"]["custom"]["config"] == {
        "postgres_url": {"env": DATABASE_VARIABLE},
        "should_autocreate_tables": False,
    }
    assert settings["telemetry"] == settings["nux"] == {"enabled": False}
    assert settings["concurrency"]["pools"]["default_limit"] < settings["concurrency"]["runs"]["max_concurrent_runs"]


def dg_check(config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).parent / "dg"), "check", "defs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "SYNC_CONFIG": str(config), "DAGSTER_HOME": ""},
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_dg_check_defs_is_content_and_silent() -> None:
    """The command people run; no warning comes from our code."""
    checked = dg_check(ROOT / "demo" / "sync.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "Warning" not in checked.stdout + checked.stderr


@pytest.mark.slow
def test_what_is_wrong_with_the_configuration_is_told_line_by_line(tmp_path: Path) -> None:
    config = tmp_path / "sync.yaml"
    config.write_text("sources: {}\nthird_parties: {}\nentities: {}\n")
    checked = dg_check(config)
    told = [line for line in (checked.stdout + checked.stderr).splitlines() if str(config) in line]
    assert checked.returncode != 0
    for number, (line, name) in enumerate(zip(told, ("sources", "third_parties", "entities"), strict=True), 1):
        assert f"{config}:{number}: {name}:" in line


JOB_OPS = {
    "validate": "validate_groups",
    "validate_fully": "validate_groups",
    "check_sources": "check_source_groups",
    "plan": "plan_full_sync",
    "repair": "repair_groups",
    "pause": "pause_pushes",
    "resume": "resume_pushes",
    "show_record": "show_one_record",
    "full_sync_item": "item_full_sync",
}


def options_of(defs: dg.Definitions, job: str) -> dict[str, dg.Field]:
    """The options of a job's op, as the launchpad has them."""
    schema = defs.resolve_job_def(job).run_config_schema
    ops: Any = schema.config_type.fields["ops"].config_type  # type: ignore[attr-defined]
    found: dict[str, dg.Field] = ops.fields[JOB_OPS[job]].config_type.fields["config"].config_type.fields
    return found


@pytest.mark.parametrize("job", JOB_OPS)
def test_the_launchpad_explains_every_option(defs: dg.Definitions, job: str) -> None:
    options = options_of(defs, job)
    assert options
    assert {name for name, option in options.items() if not option.description} == set()


@pytest.mark.parametrize(
    ("job", "option", "values"),
    [
        ("validate", "entity", ["all entities", "item"]),
        ("validate", "repair", ["as configured", "auto", "ask", "off"]),
        ("check_sources", "repair", ["as configured", "auto", "ask", "off"]),
        ("plan", "entity", ["all entities", "item"]),
        ("repair", "entity", ["all entities", "item"]),
        ("pause", "name", ["item", "erp"]),
        ("show_record", "entity", ["item"]),
    ],
)
def test_the_launchpad_completes_names_and_refuses_others(
    defs: dg.Definitions, job: str, option: str, values: list[str]
) -> None:
    offered: Any = options_of(defs, job)[option].config_type
    assert [value.config_value for value in offered.enum_values] == values
    wrong = {"ops": {JOB_OPS[job]: {"config": {option: "itm", **({"key": "k"} if job == "show_record" else {})}}}}
    with pytest.raises(dg.DagsterInvalidConfigError, match="itm"):
        defs.resolve_job_def(job).execute_in_process(run_config=wrong)


@pytest.mark.parametrize("job", [job for job in JOB_OPS if job not in ("pause", "resume", "full_sync_item")])
def test_the_launchpad_shows_every_default(defs: dg.Definitions, job: str) -> None:
    definition = defs.resolve_job_def(job)
    config: Any = definition.run_config
    assert set(config["ops"][JOB_OPS[job]]["config"]) == set(options_of(defs, job))


def test_definitions_of_several_configurations_keep_their_own_names(defs: dg.Definitions) -> None:
    other = build_definitions(
        two_part_config(entities={"thing": two_part_config().entities["item"].model_dump(by_alias=True)})
    )
    assert [value.config_value for value in options_of(other, "plan")["entity"].config_type.enum_values] == [  # type: ignore[attr-defined]
        "all entities",
        "thing",
    ]
    assert [value.config_value for value in options_of(defs, "plan")["entity"].config_type.enum_values] == [  # type: ignore[attr-defined]
        "all entities",
        "item",
    ]


def test_each_mirror_has_an_unpartitioned_check_of_its_alerts(defs: dg.Definitions) -> None:
    node = defs.resolve_asset_graph().get(dg.AssetCheckKey(mirror_key("item"), "open_alerts"))
    assert node.partitions_def is None


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("goodj", ["good-j", "ideal-h"], "unknown group; did you mean good-j?"),
        ("GOOD-J", ["good-j", "ideal-h"], "unknown group; did you mean good-j?"),
        ("xx", ["a", "b"], "unknown group; expected one of: a, b"),
        (
            "xx",
            [f"{n:02}" for n in range(14)],
            "unknown group; expected one of: 00, 01, 02, 03, 04, 05, 06, 07, 08, 09, 10, 11 and 2 more",
        ),
        ("xx", [], "unknown group; none is known yet: run a full sync first"),
    ],
)
def test_nearest_names(name: str, known: list[str], said: str) -> None:
    assert unknown_name("group", name, known) == said


def test_the_demo_shows_its_captured_catalogue_before_the_archive() -> None:
    graph = build_definitions(configuration.load(ROOT / "demo" / "sync.yaml")).resolve_asset_graph()
    captured = captured_key("catalogue")
    assert captured in graph.get(archive_key("stone")).parent_keys
    assert graph.get(captured).parent_keys == {source_key("stone", "catalogue")}


def test_the_demo_keeps_its_state_where_it_is_configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SYNC_HOME", raising=False)
    assert home_of_demo() == tmp_path / ".sync" / "demo"
    monkeypatch.setenv("SYNC_HOME", str(tmp_path / "elsewhere"))
    assert home_of_demo() == tmp_path / "elsewhere"

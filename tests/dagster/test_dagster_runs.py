"""Dagster at work, on its storage in Postgres: sensors, runs, backfill ranges, checks, alerts, the boot reaper."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import dagster as dg
import pytest
from dagster_instance import ARCHIVE, CHECK_KEY, MIRROR, Dagster, failure_of, plotted
from dagster_instance import dagster as dagster
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from dagster_instance import synced as synced
from fakes import answer, two_part_config
from sqlalchemy import text
from world import World

from sync_orchestrator.adapters.containment import ContainedSource, Containment
from sync_orchestrator.assets import freshness
from sync_orchestrator.assets.archive_checks import SOURCE_CHECK
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.drain import presence
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.progress import group_left_over
from sync_orchestrator.core.systems.heartbeats import record_heartbeat
from sync_orchestrator.core.systems.pauses import set_paused
from sync_orchestrator.core.systems.rate_limit import shared_rate
from sync_orchestrator.resources.instance.config import (
    delete_shared_partitions,
    end_abandoned_runs,
)
from sync_orchestrator.sensors import changes
from sync_orchestrator.sensors.alerts import failed_runs, recovered_runs

SOURCES_KEY = dg.AssetCheckKey(ARCHIVE, SOURCE_CHECK)


def test_dagsters_storage_keeps_its_connections(storage: dg.DagsterInstance, storage_url: str) -> None:
    """Also from one instance to the next, as each tick of a sensor makes one."""

    def backends() -> set[int]:
        with engine.connect() as connection:
            return set(
                connection.execute(
                    text(
                        "SELECT pid FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
                ).scalars()
            )

    def look(instance: dg.DagsterInstance) -> None:
        instance.get_runs_count()
        instance.get_dynamic_partitions("item_business_group")
        instance.all_instigator_state()

    engine = open_engine(storage_url)
    look(storage)
    before = backends()
    for _ in range(5):
        with dg.DagsterInstance.from_ref(storage.get_ref()) as another:
            look(another)
    assert backends() == before
    assert len(before) <= 2
    engine.dispose()


def test_change_event_is_mirrored_by_the_run_its_sensor_requests(dagster: Dagster) -> None:
    """From the ledger to the third party, and the touched group is reported."""
    dagster.world.put_record("k1")
    ticked = dagster.tick(changes.change_events)
    assert [request.run_key for request in ticked.run_requests] == [None]
    ran = dagster.run("incremental_sync")
    assert ran.success
    assert dagster.world.mirror_by_key() == dagster.world.expected_mirror()
    assert dagster.events(ARCHIVE, "observation")["A"].metadata["records_mirrored"].value == 1
    [output] = [event for event in ran.events_for_node("drain_ledger") if event.is_successful_output]
    told = output.step_output_data.metadata
    assert (told["events_done"].value, told["records_mirrored"].value, told["dead"].value) == (2, 1, 0)
    assert {"events_per_second", "calls_per_second", "slowest_seconds"} <= told.keys()
    observed = dagster.events(MIRROR, "observation")
    assert set(observed) == {"A"}
    assert observed["A"].metadata["records"].value == "k1"
    assert observed["A"].metadata["show_record"].value == "sync-orchestrator records show item k1"
    assert not dagster.all_events(MIRROR, "materialization")
    assert not dagster.all_events(ARCHIVE, "materialization")
    assert "item: mirrored k1. See one: sync-orchestrator records show item KEY" in messages(dagster, ran)
    assert dagster.totals() == {
        "total_in_sync": 1,
        "total_pending": 0,
        "total_dead": 0,
        "total_on_hold": 0,
        "total_drift": 0,
        "total_unmanaged": 0,
        "total_open_alerts": 0,
    }


def test_a_drain_names_the_first_twenty_records_of_a_group(dagster: Dagster) -> None:
    for number in range(25):
        dagster.world.put_record(f"k{number:02}")
    ran = dagster.run("incremental_sync")
    named = dagster.events(ARCHIVE, "observation")["A"].metadata["records"].value.split(", ")
    assert len(named) == 20
    assert any("mirrored" in line and "KEY" in line for line in messages(dagster, ran))


def messages(dagster: Dagster, ran: dg.ExecuteInProcessResult, level: str | None = None) -> list[str]:
    """The lines that our code wrote to a run's log."""
    return [
        entry.user_message
        for entry in dagster.instance.all_logs(ran.run_id)
        if entry.dagster_event is None and level in (None, logging.getLevelName(entry.level))
    ]


def by_group(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a run's table."""
    return [dict(record.data) for record in metadata["by_group"].value.records]


def output_of(ran: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """The metadata of a run's first output."""
    output = next(event for event in ran.all_events if event.is_successful_output)
    return dict(output.step_output_data.metadata)


def test_sigterm_lets_a_drain_finish_what_is_under_way(dagster: Dagster, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would linger for a minute otherwise."""
    lingering = replace(dagster.world.context, config=two_part_config(limits={"linger": 60}))
    dagster.context = lingering
    dagster.world.put_record("k1")
    dagster.world.erp.before = lambda verb, key: os.kill(os.getpid(), signal.SIGTERM)
    started = time.monotonic()
    assert dagster.run("incremental_sync").success
    assert time.monotonic() - started < 30
    assert dagster.world.mirror_by_key() == dagster.world.expected_mirror()


def test_sensor_adds_the_partition_of_a_group_that_a_change_brought(dagster: Dagster) -> None:
    dagster.world.put_record("k1", group="new")
    dagster.run("incremental_sync")
    dagster.tick(changes.change_events)
    assert dagster.instance.get_dynamic_partitions("item_business_group") == ["new"]


def test_sensor_says_why_it_requests_nothing(dagster: Dagster) -> None:
    """A quiet ledger, and a drain at work: each is a reason with figures."""
    assert "0 events received" in dagster.tick(changes.change_events).skip_message
    dagster.world.put_record("k1")
    record_heartbeat(dagster.world.engine, "drain")
    assert "a drain is at work" in dagster.tick(changes.change_events).skip_message


def test_stale_heartbeat_does_not_hold_up_the_next_drain(dagster: Dagster) -> None:
    """A drain that was killed is gone, whatever its run's status says."""
    dagster.world.put_record("k1")
    record_heartbeat(dagster.world.engine, "drain")
    dagster.world.advance_clock(presence.ALIVE_SECONDS + 1)
    assert len(dagster.tick(changes.change_events).run_requests) == 1


def test_no_second_drain_while_one_is_queued(dagster: Dagster) -> None:
    dagster.world.put_record("k1")
    dagster.instance.create_run_for_job(
        dagster.defs.resolve_job_def("incremental_sync"), status=dg.DagsterRunStatus.NOT_STARTED
    )
    assert dagster.tick(changes.change_events).skip_message == "a drain is about to start"


def test_groups_are_discovered_at_the_owner(dagster: Dagster, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuses() -> None:
        raise answer(503)

    dagster.world.put_record("k1", group="A", notify=False)
    dagster.world.put_record("k2", group="B", notify=False)
    assert dagster.tick(changes.business_groups).skip_message == "business groups known: item: 2"
    assert set(dagster.instance.get_dynamic_partitions("item_business_group")) == {"A", "B"}
    monkeypatch.setattr(dagster.world.shop, "groups", refuses)
    assert "could not be asked" in dagster.tick(changes.business_groups).skip_message


def test_full_sync_of_a_range_tells_of_each_group(synced: Dagster) -> None:
    assert synced.world.mirror_by_key() == synced.world.expected_mirror()
    archived, mirrored = synced.events(ARCHIVE, "materialization"), synced.events(MIRROR, "materialization")
    assert set(archived) == set(mirrored) == {"A", "B", "C"}
    assert archived["B"].metadata["listed"].value == 3
    assert (mirrored["B"].metadata["calls"].value, mirrored["B"].metadata["mirrored"].value) == (3, 3)


def test_a_full_sync_materializes_each_group_once(synced: Dagster) -> None:
    """Its figures stay: a row count, the records in sync, and the time of the last validation."""
    for asset in (ARCHIVE, MIRROR):
        assert sorted(event.partition for event in synced.all_events(asset, "materialization")) == ["A", "B", "C"]
        assert synced.partitions(asset) == dict.fromkeys("ABC", "MATERIALIZED")
    synced.run("validate")
    assert synced.run("full_sync_item", groups=["A", "C"]).success
    mirrored = synced.events(MIRROR, "materialization")["B"].metadata
    assert (mirrored["dagster/partition_row_count"].value, mirrored["records"].value, mirrored["in_sync"].value) == (
        3,
        3,
        3,
    )
    assert isinstance(mirrored["last_validated"], dg.TimestampMetadataValue)
    assert synced.events(ARCHIVE, "materialization")["B"].metadata["dagster/partition_row_count"].value == 3


def test_a_full_sync_shows_its_totals_and_evaluates_the_check_of_the_archive(synced: Dagster) -> None:
    synced.world.put_record("B0", name="changed", group="B", notify=False)
    ran = synced.run("full_sync_item", groups=["A", "C"])
    told = output_of(ran)
    assert (told["groups"].value, told["listed"].value, told["mirrored"].value) == (3, 9, 1)
    assert [(row["group"], row["result"], row["mirrored"]) for row in by_group(told)] == [
        ("B", "in sync", 1),
        ("A", "in sync", 0),
        ("C", "in sync", 0),
    ]
    assert synced.checked(SOURCES_KEY) == {"SUCCEEDED": ["A", "B", "C"]}
    synced.world.put_record("B1", name="again", group="B")
    assert synced.run("incremental_sync").success
    assert synced.checked(SOURCES_KEY) == {"SUCCEEDED": ["A", "B", "C"]}  # a drain only observes
    assert synced.events(ARCHIVE, "materialization")["B"].metadata["listed"].value == 3
    assert synced.totals()["total_in_sync"] == 9


def test_a_group_that_is_not_in_sync_is_not_materialized_and_fails_the_step(synced: Dagster) -> None:
    """The others stay materialized, and the failure says which group, which system, how many and why."""
    synced.world.erp.before = lambda verb, key: answer(422) if key in ("B0", "B1") else None
    for number in range(3):
        synced.world.put_record(f"B{number}", name="changed", group="B", notify=False)
    ran = synced.run("full_sync_item", groups=["A", "C"])
    assert not ran.success
    reason, told = failure_of(ran)
    assert reason == "1 of 3 business groups of item are not in sync: B: 2 records failing (erp: 2: answer 422)"
    assert by_group(told)[0]["group"] == "B"
    assert (by_group(told)[0]["dead"], told["dead"].value) == (2, 2)
    assert synced.partitions(MIRROR) == {"A": "MATERIALIZED", "B": "FAILED", "C": "MATERIALIZED"}
    assert synced.partitions(ARCHIVE) == dict.fromkeys("ABC", "MATERIALIZED")
    observed = synced.events(MIRROR, "observation")["B"].metadata
    assert (observed["dead"].value, observed["in_sync"].value) == (2, 1)
    assert synced.totals()["total_dead"] == 2


@pytest.fixture
def impatient(
    make_world: Callable[..., World], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> Dagster:
    """A group A of one record before its full sync, which waits for retries only shortly."""
    world = make_world(limits={"linger": 0, "drain_seconds": 0.5})
    made = Dagster(world, instance)
    world.put_record("k1", notify=False)
    instance.add_dynamic_partitions("item_business_group", ["A"])
    made.tick(changes.business_groups)
    return made


def test_a_full_sync_whose_third_party_is_down_materializes_no_mirror(impatient: Dagster) -> None:
    impatient.world.erp.before = lambda verb, key: answer(503)
    ran = impatient.run("full_sync_item", groups=["A"])
    assert failure_of(ran)[0].startswith(
        "1 of 1 business groups of item are not in sync: A: 1 records failing (erp: 1: answer 503)"
    )
    assert impatient.partitions(MIRROR) == {"A": "FAILED"}
    assert impatient.partitions(ARCHIVE) == {"A": "MATERIALIZED"}


def test_a_full_sync_while_the_entity_is_paused_says_so_and_ends(impatient: Dagster) -> None:
    set_paused(impatient.world.engine, "item", {"item"}, paused=True)
    ran = impatient.run("full_sync_item", groups=["A"])
    waits = "pushes wait: item is paused; launch the job `resume`, or run `sync-orchestrator resume item`"
    assert waits in messages(impatient, ran, "WARNING")
    assert failure_of(ran)[0].endswith(f"A: 1 records waiting; {waits}")


def test_a_change_that_comes_after_the_completion_of_a_group_is_not_left_over(synced: Dagster) -> None:
    synced.world.put_record("A0", name="changed")
    synced.world.query("SELECT pg_sleep(0.01)")
    with synced.world.engine.begin() as connection:
        assert group_left_over(connection, synced.world.entity, "A") is None
    asyncio.run(drain_archive_only(synced.world))
    with synced.world.engine.begin() as connection:
        assert group_left_over(connection, synced.world.entity, "A") is None
    synced.world.query("UPDATE sync.groups SET completed_at = sync.clock()")
    with synced.world.engine.begin() as connection:
        assert group_left_over(connection, synced.world.entity, "A") == "1 records waiting"


async def drain_archive_only(world: World) -> None:
    """Archives what has come in while the pushes of the entity are paused."""
    set_paused(world.engine, "item", {"item"}, paused=True)
    await drain(world.context, linger=0, most_seconds=5)
    set_paused(world.engine, "item", {"item"}, paused=False)


def test_second_full_sync_of_unchanged_data_calls_nothing(synced: Dagster) -> None:
    assert synced.run("full_sync_item", groups=["A", "B", "C"]).success
    assert synced.events(MIRROR, "materialization")["A"].metadata["calls"].value == 0


def test_archive_alone_can_be_filled(dagster: Dagster) -> None:
    dagster.world.put_record("k1", notify=False)
    dagster.instance.add_dynamic_partitions("item_business_group", ["A"])
    dagster.tick(changes.business_groups)
    assert dagster.run("full_sync_item", groups=["A"], assets=[ARCHIVE]).success
    assert set(dagster.events(ARCHIVE, "materialization")) == {"A"}
    assert not dagster.events(MIRROR, "materialization")
    assert not dagster.world.mirror_by_key()


def test_the_groups_of_another_entity_are_no_partitions_of_this_one(synced: Dagster) -> None:
    """And one that was added by hand fails, without an empty materialization."""
    synced.world.query("INSERT INTO sync.groups (entity, group_key) VALUES ('order', 'other')")
    synced.tick(changes.business_groups)
    assert "other" not in synced.instance.get_dynamic_partitions("item_business_group")
    synced.instance.add_dynamic_partitions("item_business_group", ["other"])
    ran = synced.run("full_sync_item", tags={"dagster/partition": "other"})
    assert "unknown business group 'other' of item" in failure_of(ran)[0]
    assert not synced.world.query("SELECT FROM sync.groups WHERE entity = 'item' AND group_key = 'other'")
    assert "other" not in synced.events(MIRROR, "materialization")


def test_a_partition_that_no_entity_has_fails(synced: Dagster) -> None:
    synced.instance.add_dynamic_partitions("item_business_group", ["misspelt"])
    ran = synced.run("full_sync_item", tags={"dagster/partition": "misspelt"})
    assert "misspelt: unknown business group 'misspelt' of item; expected one of: A, B, C" in failure_of(ran)[0]
    assert synced.partitions(MIRROR)["misspelt"] == "FAILED"


def test_held_deletions_fail_the_run_after_the_other_groups_were_done(synced: Dagster) -> None:
    """The failure names the group and the hint; what was done counts as done."""
    for number in range(6):
        synced.world.put_record(f"B{number}", group="B", notify=False)
    assert synced.run("full_sync_item", groups=["B"]).success
    for number in range(6):
        synced.world.shop.remove(f"B{number}")
    synced.world.put_record("C9", group="C", notify=False)
    ended = synced.run("full_sync_item", groups=["A", "B", "C"])
    assert not ended.success
    failure = next(event for event in ended.all_events if event.is_step_failure)
    assert "1 of 3 business groups of item are not in sync: B: item B: 6 of 6 records would be deleted" in str(
        failure.step_failure_data.error_display_string
    )
    assert "C9" in synced.world.mirror_by_key()
    newest = synced.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=MIRROR, asset_partitions=["A", "B", "C"]), limit=2
    ).records
    assert {record.partition_key for record in newest} == {"A", "C"}
    assert {record.run_id for record in newest} == {ended.run_id}
    assert synced.open_alerts()["delete_cap"] == "item B"
    options = dg.RunConfig(ops={"item_full_sync": {"config": {"allow_deletions": 6}}})
    assert synced.run("full_sync_item", groups=["B"], run_config=options).success
    assert not [key for key in synced.world.mirror_by_key() if key.startswith("B")]


def test_source_that_fails_for_a_while_is_asked_again(
    make_world: Any, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the entity's retry rule, within the run."""
    world: World = make_world(entity={"retry": {"retries": 3, "first_wait": 0.2, "jitter": 0}})
    dagster = Dagster(world, instance)
    world.put_record("k1", notify=False)
    instance.add_dynamic_partitions("item_business_group", ["A"])
    dagster.tick(changes.business_groups)
    refusals = [answer(503), answer(503)]

    def refuse_at_first() -> None:
        if refusals:
            raise refusals.pop()

    monkeypatch.setattr(world.shop, "_answer", refuse_at_first)
    assert dagster.run("full_sync_item", groups=["A"]).success
    assert not refusals
    assert set(world.mirror_by_key()) == {"k1"}


def test_a_source_that_fails_is_named_with_its_group(
    make_world: Callable[..., World], instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each warning, and in the failure at the end."""
    world = make_world(entity={"retry": {"retries": 1, "first_wait": 0.1, "jitter": 0}})
    contained = ContainedSource(world.stock, Containment("sources.stock", str))
    context = replace(
        world.context, entities={"item": replace(world.entity, sources={**world.entity.sources, "stock": contained})}
    )
    dagster = Dagster(world, instance)
    dagster.context = context
    world.put_record("k1", notify=False)
    instance.add_dynamic_partitions("item_business_group", ["A"])
    dagster.tick(changes.business_groups)
    world.stock.down = True
    ran = dagster.run("full_sync_item", groups=["A"])
    assert messages(dagster, ran, "WARNING")[0] == (
        "item A: source system stock: the source does not answer; again in 0 s"
    )
    assert failure_of(ran)[0].endswith("A: source system stock: the source does not answer")


def test_validation_reports_every_group_and_a_failing_check_raises_an_alert(synced: Dagster) -> None:
    lost = next(ref for ref, record in synced.world.erp.store.items() if record["code"] == "B1")
    del synced.world.erp.store[lost]
    synced.world.advance_clock(60)
    assert synced.run("validate").success
    assert synced.checked() == {"SUCCEEDED": ["A", "C"], "FAILED": ["B"]}
    told = synced.evaluation("B")
    assert told.description == "B: drift, compared 2, 1 missing"
    assert told.metadata["group"].value == "B"
    assert (told.metadata["expected"].value, told.metadata["counted"].value) == (3, 2)
    [row] = told.metadata["differences"].value.records  # type: ignore[union-attr]
    assert (row.data["key"], row.data["kind"], row.data["status"]) == ("B1", "missing", "repairing")
    assert row.data["ours → theirs"] == "not there"
    assert synced.open_alerts() == {"drift": "item B"}


def test_what_counts_do_not_show_is_found_by_the_job_that_compares_all(synced: Dagster) -> None:
    synced.run("validate_fully")
    synced.world.advance_clock(60)
    for record in synced.world.erp.store.values():
        record["name"] = "altered"
    assert synced.run("validate").success
    assert set(synced.checked()) == {"SUCCEEDED"}
    assert synced.run("validate_fully").success
    assert synced.checked() == {"FAILED": ["A", "B", "C"]}


def test_repaired_group_is_validated_again_at_once(synced: Dagster) -> None:
    """Drift, repair by the normal path, the next validation: the check is green and the alert over."""
    lost = next(ref for ref, record in synced.world.erp.store.items() if record["code"] == "B1")
    del synced.world.erp.store[lost]
    synced.world.advance_clock(60)
    synced.run("validate")
    assert plotted(synced) == {"B": (1, 1, 0)}
    synced.run("incremental_sync")
    synced.world.advance_clock(10)
    ended = synced.run("validate")
    assert plotted(synced) == {"B": (0, 0, 0)}
    assert list(synced.evaluated(ended)) == ["B"]
    assert synced.checked() == {"SUCCEEDED": ["A", "B", "C"]}
    assert synced.open_alerts() == {}


def test_observation_keeps_the_status_of_a_check_and_a_materialization_takes_it(synced: Dagster) -> None:
    """Trap 13, confirmed: so a drain observes the mirror, and only a full sync materializes it."""
    synced.world.advance_clock(60)
    synced.run("validate")
    synced.world.put_record("A0", name="changed")
    synced.run("incremental_sync")
    assert set(synced.events(MIRROR, "observation")) == {"A"}
    assert synced.checked() == {"SUCCEEDED": ["A", "B", "C"]}
    assert synced.checked(SOURCES_KEY) == {"SUCCEEDED": ["A", "B", "C"]}
    synced.instance.report_runless_asset_event(dg.AssetMaterialization(MIRROR, partition="A"))
    assert synced.checked() == {"SUCCEEDED": ["B", "C"]}


def test_a_run_that_could_validate_nothing_fails_and_each_group_has_a_warning(synced: Dagster) -> None:
    """With the third party paused nothing can be said: an earlier green must not stay, and no drift is claimed."""
    synced.run("validate")
    synced.world.query("UPDATE sync.systems SET paused = true WHERE name = 'erp'")
    synced.world.advance_clock(3600)
    ended = synced.run("validate")
    reason, told = failure_of(ended)
    assert reason.startswith("none of 3 business groups could be validated, such as item A: ")
    assert (told["not_validated"].value, told["drift"].value, told["in_sync"].value) == (3, 0, 0)
    assert synced.checked() == {"FAILED": ["A", "B", "C"]}
    assert synced.evaluation("B").severity is dg.AssetCheckSeverity.WARN
    assert str(synced.evaluation("B").description).startswith("B: not validated: ")
    job = synced.defs.resolve_implicit_global_asset_job_def().name
    assert not synced.run(job, checks=[CHECK_KEY]).success


def test_a_validation_of_which_some_groups_failed_is_a_success_that_shows_them_first(synced: Dagster) -> None:
    """The evaluations of groups with drift come last: the UI shows the last one as that of the asset."""
    synced.run("validate")
    synced.world.advance_clock(3600)
    del synced.world.erp.store[next(ref for ref, record in synced.world.erp.store.items() if record["code"] == "A1")]
    count = synced.world.erp.count

    async def counts(group: str) -> Any:
        if group == "B":
            raise answer(503)
        return await count(group)

    synced.world.erp.count = counts  # type: ignore[method-assign]
    ended = synced.run("validate")
    assert ended.success
    rows = by_group(output_of(ended))
    assert [(row["group"], row["verdict"]) for row in rows] == [
        ("A", "drift"),
        ("B", "not_validated"),
        ("C", "in_sync"),
    ]
    assert [evaluation.partition for evaluation in synced.evaluations(ended)] == ["C", "B", "A"]
    assert "third party erp" in rows[1]["reason"]
    assert synced.totals()["total_drift"] == 1


def test_a_check_launched_by_itself_yields_what_dagster_expects(synced: Dagster) -> None:
    """No line that looks like an error, and no literal back-ticks."""
    job = synced.defs.resolve_implicit_global_asset_job_def().name
    for key in (CHECK_KEY, SOURCES_KEY):
        ran = synced.run(job, checks=[key])
        assert ran.success
        assert not [line for line in messages(synced, ran) if "did not yield" in line or "implicit" in line]
    ran = synced.run(job, assets=[ARCHIVE, MIRROR], checks=[CHECK_KEY, SOURCES_KEY], groups=["A", "C"])
    assert ran.success
    assert not [line for line in messages(synced, ran) if "did not yield" in line or "implicit" in line]
    assert synced.checked() == synced.checked(SOURCES_KEY) == {"SUCCEEDED": ["A", "B", "C"]}
    assert sorted(evaluation.partition or "" for evaluation in synced.evaluations(ran)) == [*"AABBCC"]


def test_unmanaged_records_are_plotted_when_found_and_when_gone_and_not_in_between(synced: Dagster) -> None:
    def observed() -> list[int]:
        return [
            event.metadata["drift"].value
            for event in synced.all_events(MIRROR, "observation")
            if event.partition == "A"
        ]

    ref = synced.world.erp.by_hand({"code": "theirs", "store": "A"}, "A")
    synced.run("validate_fully")
    assert observed() == [1]
    for _ in range(2):
        synced.world.advance_clock(3600)
        synced.run("validate")
    assert observed() == [1]
    del synced.world.erp.store[ref]
    synced.run("validate_fully")
    synced.run("validate_fully")
    assert observed() == [1, 0]


def test_schedule_of_validation_starts_no_run_for_nothing_and_none_beside_another(synced: Dagster) -> None:
    schedule = synced.defs.resolve_schedule_def("validate_due_groups")

    def asked() -> Any:
        return schedule.evaluate_tick(
            dg.build_schedule_context(
                synced.instance, repository_def=synced.defs.get_repository_def(), resources={"system": synced.system}
            )
        )

    assert len(asked().run_requests) == 1
    synced.world.advance_clock(60)
    synced.run("validate")
    assert asked().skip_message == "no business group is due"
    synced.instance.create_run_for_job(synced.defs.resolve_job_def("validate"), status=dg.DagsterRunStatus.STARTED)
    assert asked().skip_message == "a validation is under way"


def test_schedule_of_validation_waits_while_the_third_party_is_known_to_be_down(synced: Dagster) -> None:
    """Each of its runs would fail, and a person would look at one a minute."""
    schedule = synced.defs.resolve_schedule_def("validate_due_groups")
    synced.world.query("UPDATE sync.systems SET open_since = sync.clock() WHERE name = 'erp'")
    asked = schedule.evaluate_tick(
        dg.build_schedule_context(
            synced.instance, repository_def=synced.defs.get_repository_def(), resources={"system": synced.system}
        )
    )
    assert not asked.run_requests
    assert asked.skip_message is not None
    assert asked.skip_message.startswith("no business group is due; the circuit breaker of erp is open since")
    assert synced.run("validate").success
    assert synced.checked() == {}


def test_validation_of_named_groups(synced: Dagster) -> None:
    synced.world.advance_clock(60)
    options = dg.RunConfig(ops={"validate_groups": {"config": {"entity": "item", "groups": ["B"], "full": True}}})
    assert synced.run("validate", run_config=options).success
    assert synced.checked() == {"SUCCEEDED": ["B"]}
    assert synced.run("validate", tags={"dagster/partition": "C"}).success
    assert synced.checked() == {"SUCCEEDED": ["B", "C"]}
    wrong = dg.RunConfig(ops={"validate_groups": {"config": {"groups": ["nothing"]}}})
    assert not synced.run("validate", run_config=wrong).success


@pytest.mark.parametrize(
    ("launched", "judged"),
    [
        ({"tags": {"dagster/partition": "B"}}, ["B"]),
        ({"groups": ["A", "C"]}, ["A", "B", "C"]),  # a range
        ({}, ["A", "B", "C"]),
    ],
)
def test_check_launched_by_itself_judges_each_group(synced: Dagster, launched: Any, judged: list[str]) -> None:
    synced.world.advance_clock(60)
    job = synced.defs.resolve_implicit_global_asset_job_def().name
    assert synced.run(job, checks=[CHECK_KEY], **launched).success
    assert synced.checked() == {"SUCCEEDED": judged}


def test_validations_that_find_every_group_in_sync_keep_the_mirror_fresh(synced: Dagster) -> None:
    """By a materialization that takes no check's status and is no partition, if the newest one is not recent."""

    def confirmed() -> int:
        return sum(
            1 for event in synced.all_events(MIRROR, "materialization") if event.partition == freshness.ALL_GROUPS
        )

    assert synced.run("validate_fully").success
    assert confirmed() == 0  # the full sync has just materialized the groups
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(freshness, "_age_of_newest", lambda instance, asset: timedelta(minutes=8))
        assert synced.run("validate_fully").success
        assert confirmed() == 1
        assert synced.checked() == {"SUCCEEDED": ["A", "B", "C"]}
        next(iter(synced.world.erp.store.values()))["name"] = "altered"
        assert synced.run("validate_fully").success
        assert confirmed() == 1
    assert synced.partitions(MIRROR) == dict.fromkeys("ABC", "MATERIALIZED")


def test_the_partitions_that_entities_shared_are_deleted_in_order(synced: Dagster) -> None:
    """What was materialized stays, since the partitions of the entity have the same names."""
    synced.instance.add_dynamic_partitions("business_group", ["A", "B"])
    assert delete_shared_partitions(synced.instance) == 2
    assert synced.instance.get_dynamic_partitions("business_group") == []
    assert synced.partitions(MIRROR) == dict.fromkeys("ABC", "MATERIALIZED")
    assert delete_shared_partitions(synced.instance) == 0


def test_failed_run_raises_one_alert_that_the_next_success_ends(synced: Dagster) -> None:
    wrong = dg.RunConfig(ops={"validate_groups": {"config": {"groups": ["nothing"]}}})
    for _ in range(2):
        ended = synced.run("validate", run_config=wrong)
        failed_runs(
            dg.build_run_status_sensor_context(
                "failed_runs",
                ended.get_run_failure_event(),
                synced.instance,
                ended.dagster_run,
                resources={"system": synced.system},
            ).for_run_failure()
        )
    [alert] = synced.world.query("SELECT n, cause, title FROM sync.alerts WHERE kind = 'run_failed'")
    assert (alert.n, alert.cause, alert.title) == (2, "validate", "a run of validate failed")
    ended = synced.run("validate")
    recovered_runs(
        dg.build_run_status_sensor_context(
            "recovered_runs",
            ended.get_run_success_event(),
            synced.instance,
            ended.dagster_run,
            resources={"system": synced.system},
        )
    )
    assert "run_failed" not in synced.open_alerts()


def test_maintenance_counts_everything(synced: Dagster) -> None:
    synced.world.put_record("k1")
    ended = synced.run("maintenance")
    assert ended.success
    output = next(event for event in ended.all_events if event.is_successful_output)
    assert (output.step_output_data.metadata["received"].value, output.step_output_data.metadata["pending"].value) == (
        2,
        2,
    )
    assert output.step_output_data.metadata["balanced"].value is True


def test_reaper_ends_runs_whose_processes_are_gone(dagster: Dagster) -> None:
    """And only those: what is queued will start."""
    job = dagster.defs.resolve_job_def("incremental_sync")
    runs = {
        status: dagster.instance.create_run_for_job(job, status=status).run_id
        for status in (
            dg.DagsterRunStatus.NOT_STARTED,
            dg.DagsterRunStatus.STARTING,
            dg.DagsterRunStatus.STARTED,
            dg.DagsterRunStatus.CANCELING,
            dg.DagsterRunStatus.SUCCESS,
        )
    }
    assert end_abandoned_runs(dagster.instance) == 3
    after = {status: dagster.instance.get_run_by_id(run) for status, run in runs.items()}
    assert [run.status for run in after.values() if run is not None] == [
        dg.DagsterRunStatus.NOT_STARTED,
        *[dg.DagsterRunStatus.FAILURE] * 3,
        dg.DagsterRunStatus.SUCCESS,
    ]
    assert end_abandoned_runs(dagster.instance) == 0


def test_an_end_of_the_system_is_no_alert(dagster: Dagster) -> None:
    """The next drain goes on, and Dagster starts a full sync again."""
    for job in ("incremental_sync", "full_sync_item"):
        definition = dagster.defs.resolve_job_def(job)
        dagster.instance.create_run_for_job(definition, status=dg.DagsterRunStatus.STARTED)
    assert end_abandoned_runs(dagster.instance) == 2
    for run in dagster.instance.get_runs():
        [entry] = dagster.instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
        assert entry.dagster_event is not None
        failed_runs(
            dg.build_run_status_sensor_context(
                "failed_runs", entry.dagster_event, dagster.instance, run, resources={"system": dagster.system}
            ).for_run_failure()
        )
    assert dagster.open_alerts() == {}


def test_shared_rate_serves_one_event_loop_after_another(dagster: Dagster) -> None:
    """A step of Dagster's works in several event loops, and each has many calls under way."""
    wait = shared_rate(dagster.world.engine, "erp", 1000)

    async def calls() -> None:
        await asyncio.gather(*(wait() for _ in range(200)))

    started = time.monotonic()
    for _ in range(2):
        asyncio.run(calls())
    assert time.monotonic() - started >= 0.3

"""The jobs by which a person plans, holds the sources against the archive, and repairs, on Dagster's storage."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context
from test_dagster_runs import Dagster, failure_of, instance, plotted, storage, storage_url, synced
from test_dagster_runs import dagster as dagster

from sync_orchestrator.assets.entity import archive_key
from sync_orchestrator.assets.partitions import business_group
from sync_orchestrator.assets.source_checks import SOURCE_CHECK
from sync_orchestrator.resources.system import System

CHECK = dg.AssetCheckKey(archive_key("item"), SOURCE_CHECK)

__all__ = ["dagster", "instance", "storage", "storage_url", "synced"]


def rows(ran: dg.ExecuteInProcessResult, node: str, name: str) -> list[dict[str, object]]:
    """A table of a run's metadata."""
    [output] = [event for event in ran.events_for_node(node) if event.is_successful_output]
    value = output.step_output_data.metadata[name]
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def test_the_plan_of_all_groups_stands_in_its_run_as_tables(synced: Dagster) -> None:
    synced.world.put("A0", name="changed", tell=False)
    ran = synced.run("plan")
    assert ran.success
    counts = {row["group"]: row for row in rows(ran, "plan_full_sync", "item: counts")}
    assert (counts["A"]["update"], counts["B"]["update"], counts["all"]["unchanged"]) == (1, 0, 8)
    [sample] = rows(ran, "plan_full_sync", "item: samples")
    assert sample == {"group": "A", "action": "update", "key": "A0", "field": "name", "ours": "changed", "theirs": "n"}
    assert synced.world.mirrored()["A0"]["name"] == "n"


def test_a_plan_that_cannot_be_made_fails_the_run_and_says_why(synced: Dagster) -> None:
    synced.world.stock.down = True
    options = {"ops": {"plan_full_sync": {"config": {"entity": "item", "groups": ["B"]}}}}
    ran = synced.run("plan", run_config=options)
    [failure] = [event for event in ran.events_for_node("plan_full_sync") if event.is_step_failure]
    assert "item B: its sources cannot be read" in str(failure.step_failure_data.error)
    assert not synced.run("plan", run_config={"ops": {"plan_full_sync": {"config": {"entity": "order"}}}}).success


def checked(dagster: Dagster) -> dict[str, list[str]]:
    """The groups by the status of the archive's check, as the UI shows it."""
    with partition_loading_context(dynamic_partitions_store=dagster.instance):
        state = dagster.instance.event_log_storage.get_asset_check_state([(CHECK, business_group)])[CHECK]
        found = {status.name: sorted(subset.subset_value.get_partition_keys())  # type: ignore[union-attr]
                 for status, subset in state.subsets.items()}
    return {status: groups for status, groups in found.items() if groups}


def test_the_sources_are_held_against_the_archive_group_by_group(synced: Dagster) -> None:
    synced.world.put("B0", name="silent", group="B", tell=False)
    ran = synced.run("check_sources")
    assert ran.success
    assert checked(synced) == {"SUCCEEDED": ["A", "C"], "FAILED": ["B"]}
    lost = synced.evaluated(ran)["B"]
    assert lost.description == "B: lost, listed 3 of shop, 3 of stock, 2 newer"
    assert synced.open_alerts()["lost_notifications"] in ("item shop", "item stock")
    assert synced.run("incremental_sync").success
    assert synced.world.mirrored() == synced.world.truth()
    again = synced.run("check_sources")  # of those under repair alone
    assert list(synced.evaluated(again)) == ["B"]
    assert checked(synced) == {"SUCCEEDED": ["A", "B", "C"]}


def test_the_schedule_of_the_check_starts_no_run_for_nothing_and_none_beside_another(synced: Dagster) -> None:
    schedule = synced.defs.resolve_schedule_def("check_due_sources")

    def asked() -> Any:
        return schedule.evaluate_tick(dg.build_schedule_context(
            synced.instance, repository_def=synced.defs.get_repository_def(), resources={"system": System()}))

    assert len(asked().run_requests) == 1
    synced.run("check_sources")
    assert asked().skip_message == "no business group is due"
    synced.world.later(86_400)
    synced.instance.create_run_for_job(
        synced.defs.resolve_job_def("check_sources"), status=dg.DagsterRunStatus.STARTED)
    assert asked().skip_message == "a check is under way"


def test_the_check_of_the_archive_can_be_launched_by_itself(synced: Dagster) -> None:
    synced.world.remove("C1")
    synced.world.put("A1", tell=False)
    assert synced.run("__ASSET_JOB", groups=["A", "C"], checks=[CHECK]).success
    assert checked(synced) == {"SUCCEEDED": ["B", "C"], "FAILED": ["A"]}


def test_a_group_whose_sources_give_no_response_gets_a_warning(synced: Dagster) -> None:
    """And a run that could check no group fails."""
    synced.world.shop.down = True
    ran = synced.run("check_sources", run_config={
        "ops": {"check_source_groups": {"config": {"groups": ["B"], "repair": "off"}}}})
    [found] = synced.evaluated(ran).values()
    assert (found.partition, found.passed, found.severity) == ("B", False, dg.AssetCheckSeverity.WARN)
    assert str(found.description).startswith("B: not checked: ")
    assert failure_of(ran)[0].startswith("none of 1 business groups could be checked, such as item B: ")
    synced.world.shop.down = False
    ran = synced.run("check_sources")
    assert ran.success
    table = rows(ran, "check_source_groups", "by_group")
    assert [(row["group"], row["verdict"], row["records_listed"]) for row in table] == [
        ("A", "in_step", 3), ("B", "in_step", 3), ("C", "in_step", 3)]
    bad = {"ops": {"check_source_groups": {"config": {"repair": "perhaps"}}}}
    assert not synced.run("check_sources", run_config=bad).success


def test_a_person_repairs_a_group_and_sees_what_came_of_it(synced: Dagster) -> None:
    fields = next(record for record in synced.world.erp.store.values() if record["code"] == "B0")
    fields["name"] = "altered"
    synced.world.later(1)
    ask = {"ops": {"validate_groups": {"config": {"full": True, "repair": "ask"}}}}
    assert synced.run("validate", run_config=ask).success
    assert synced.checked()["FAILED"] == ["B"]
    assert plotted(synced) == {"B": (1, 0, 1)}
    synced.world.later(1)
    ran = synced.run("repair", partition_key="B")
    assert ran.success
    [output] = [event for event in ran.events_for_node("repair_group") if event.is_successful_output]
    told = output.step_output_data.metadata
    assert (told["item: sent"].value, told["item: verdict"].value) == (1, "in_step")
    assert synced.world.mirrored() == synced.world.truth()
    assert synced.checked() == {"SUCCEEDED": ["A", "B", "C"]}
    assert plotted(synced) == {"B": (0, 0, 0)}

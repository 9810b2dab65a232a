"""The jobs by which a person plans, holds the sources against the archive, and repairs, on Dagster's storage."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster_instance import Dagster, failure, failure_of, output, plotted, synced
from dagster_instance import dagster as dagster
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from fakes import answer

from sync_orchestrator.assets.archive_checks import SOURCE_CHECK
from sync_orchestrator.assets.entity import archive_key
from sync_orchestrator.assets.partitions import business_groups_of
from sync_orchestrator.sensors import changes

CHECK = dg.AssetCheckKey(archive_key("item"), SOURCE_CHECK)

__all__ = ["dagster", "instance", "storage", "storage_url", "synced"]


def rows(ran: dg.ExecuteInProcessResult, node: str, name: str) -> list[dict[str, object]]:
    """A table of a run's metadata."""
    [output] = [event for event in ran.events_for_node(node) if event.is_successful_output]
    value = output.step_output_data.metadata[name]
    assert isinstance(value, dg.TableMetadataValue)
    return [dict(record.data) for record in value.records]


def test_the_plan_of_all_groups_stands_in_its_run_as_tables(synced: Dagster) -> None:
    synced.world.put_record("A0", name="changed", notify=False)
    ran = synced.run("plan")
    assert ran.success
    counts = {row["group"]: row for row in rows(ran, "plan_full_sync", "item: counts")}
    assert (counts["A"]["update"], counts["B"]["update"], counts["all"]["unchanged"]) == (1, 0, 8)
    [sample] = rows(ran, "plan_full_sync", "item: samples")
    assert sample == {"group": "A", "action": "update", "key": "A0", "field": "name", "ours": "changed", "theirs": "n"}
    assert synced.world.mirror_by_key()["A0"]["name"] == "n"


def test_a_plan_that_cannot_be_made_fails_the_run_and_says_why(synced: Dagster) -> None:
    synced.world.stock.down = True
    options = {"ops": {"plan_full_sync": {"config": {"entity": "item", "groups": ["B"]}}}}
    ran = synced.run("plan", run_config=options)
    [failure] = [event for event in ran.events_for_node("plan_full_sync") if event.is_step_failure]
    assert "item B: its sources cannot be read" in str(failure.step_failure_data.error)


def checked(dagster: Dagster) -> dict[str, list[str]]:
    """The groups by the status of the archive's check, as the UI shows it."""
    with partition_loading_context(dynamic_partitions_store=dagster.instance):
        state = dagster.instance.event_log_storage.get_asset_check_state([(CHECK, business_groups_of("item"))])[CHECK]
        found = {
            status.name: sorted(subset.subset_value.get_partition_keys()) for status, subset in state.subsets.items()
        }
    return {status: groups for status, groups in found.items() if groups}


def test_the_sources_are_held_against_the_archive_group_by_group(synced: Dagster) -> None:
    synced.world.put_record("B0", name="silent", group="B", notify=False)
    ran = synced.run("check_sources")
    assert ran.success
    assert checked(synced) == {"SUCCEEDED": ["A", "C"], "FAILED": ["B"]}
    lost = synced.evaluated(ran)["B"]
    assert lost.description == "B: lost, listed 3 of shop, 3 of stock, 2 newer"
    assert synced.open_alerts()["lost_notifications"] in ("item shop", "item stock")
    assert synced.run("incremental_sync").success
    assert synced.world.mirror_by_key() == synced.world.expected_mirror()
    again = synced.run("check_sources")  # of those under repair alone
    assert list(synced.evaluated(again)) == ["B"]
    assert checked(synced) == {"SUCCEEDED": ["A", "B", "C"]}


def test_the_schedule_of_the_check_starts_no_run_for_nothing_and_none_beside_another(synced: Dagster) -> None:
    schedule = synced.defs.resolve_schedule_def("check_due_sources")

    def asked() -> Any:
        return schedule.evaluate_tick(
            dg.build_schedule_context(
                synced.instance, repository_def=synced.defs.get_repository_def(), resources={"system": synced.system}
            )
        )

    assert len(asked().run_requests) == 1
    synced.run("check_sources")
    assert asked().skip_message == "no business group is due"
    synced.world.advance_clock(86_400)
    synced.instance.create_run_for_job(synced.defs.resolve_job_def("check_sources"), status=dg.DagsterRunStatus.STARTED)
    assert asked().skip_message == "a check is under way"


def test_the_check_of_the_archive_can_be_launched_by_itself(synced: Dagster) -> None:
    synced.world.delete_record("C1")
    synced.world.put_record("A1", notify=False)
    assert synced.run("__ASSET_JOB", groups=["A", "C"], checks=[CHECK]).success
    assert checked(synced) == {"SUCCEEDED": ["B", "C"], "FAILED": ["A"]}


def test_a_group_whose_sources_give_no_response_gets_a_warning(synced: Dagster) -> None:
    """And a run that could check no group fails."""
    synced.world.shop.down = True
    ran = synced.run(
        "check_sources", run_config={"ops": {"check_source_groups": {"config": {"groups": ["B"], "repair": "off"}}}}
    )
    [found] = synced.evaluated(ran).values()
    assert (found.partition, found.passed, found.severity) == ("B", False, dg.AssetCheckSeverity.WARN)
    assert str(found.description).startswith("B: not checked: ")
    assert failure_of(ran)[0].startswith("none of 1 business groups could be checked, such as item B: ")
    synced.world.shop.down = False
    ran = synced.run("check_sources")
    assert ran.success
    table = rows(ran, "check_source_groups", "by_group")
    assert [(row["group"], row["verdict"], row["records_listed"]) for row in table] == [
        ("A", "in_sync", 3),
        ("B", "in_sync", 3),
        ("C", "in_sync", 3),
    ]


def altered(synced: Dagster, *keys: str) -> None:
    """Alters records at the third party, which a validation finds and leaves to an operator."""
    for fields in synced.world.erp.store.values():
        if fields["code"] in keys:
            fields["name"] = "altered"
    synced.world.advance_clock(1)
    ask = {"ops": {"validate_groups": {"config": {"full": True, "repair": "ask"}}}}
    assert synced.run("validate", run_config=ask).success
    synced.world.advance_clock(1)


def test_repair_takes_every_group_that_waits_and_reports_the_result(synced: Dagster) -> None:
    altered(synced, "B0", "C1")
    assert synced.checked()["FAILED"] == ["B", "C"]
    assert {name: plot for name, plot in plotted(synced).items() if plot[0]} == {"B": (1, 0, 1), "C": (1, 0, 1)}
    ran = synced.run("repair")
    assert ran.success
    shown = output(ran, "repair_groups")
    assert (shown["sent"], shown["drift_left"]) == (2, 0)
    assert shown["result"] == "2 sent to repair in 2 business groups; 0 differences and 0 dead records are left"
    assert [(row["group"], row["sent"], row["verdict"]) for row in rows(ran, "repair_groups", "groups")] == [
        ("B", 1, "in sync"),
        ("C", 1, "in sync"),
    ]
    assert synced.world.mirror_by_key() == synced.world.expected_mirror()
    assert synced.checked() == {"SUCCEEDED": ["A", "B", "C"]}
    assert set(plotted(synced).values()) == {(0, 0, 0)}


def test_repair_of_named_groups_leaves_the_others_and_lists_the_worst_first(synced: Dagster) -> None:
    altered(synced, "A0", "B0", "C1")
    synced.world.erp.before = lambda verb, key: answer(400) if key == "C1" and verb == "update" else None
    ran = synced.run("repair", run_config={"ops": {"repair_groups": {"config": {"groups": ["B", "C"]}}}})
    assert [(row["group"], row["verdict"], row["dead"]) for row in rows(ran, "repair_groups", "groups")] == [
        ("C", "drift", 1),
        ("B", "in sync", 0),
    ]
    assert synced.checked()["FAILED"] == ["A", "C"]


def test_repair_says_where_nothing_was_found_open(synced: Dagster) -> None:
    assert output(synced.run("repair"), "repair_groups")["result"] == "nothing was found open in item"
    named = synced.run("repair", run_config={"ops": {"repair_groups": {"config": {"groups": ["B"], "key": "B0"}}}})
    [row] = rows(named, "repair_groups", "groups")
    assert str(row["result"]).startswith("nothing was found open; in sync")
    of_key = synced.run("repair", run_config={"ops": {"repair_groups": {"config": {"key": "B0"}}}})
    assert output(of_key, "repair_groups")["result"] == "nothing was found open in record 'B0' of item"


@pytest.mark.parametrize(
    ("job", "node"),
    [
        ("validate", "validate_groups"),
        ("validate_fully", "validate_groups"),
        ("check_sources", "check_source_groups"),
        ("plan", "plan_full_sync"),
        ("repair", "repair_groups"),
    ],
)
def test_a_group_that_does_not_exist_fails_the_run_with_the_nearest_names(synced: Dagster, job: str, node: str) -> None:
    synced.world.put_record("G1", group="good-j", notify=False)
    synced.tick(changes.business_groups)
    ran = synced.run(job, run_config={"ops": {node: {"config": {"groups": ["A", "goodj"]}}}})
    assert "unknown business group 'goodj' of item; did you mean good-j?" in failure(ran)


def test_a_partition_that_no_entity_has_fails_its_full_sync_and_check(synced: Dagster) -> None:
    synced.instance.add_dynamic_partitions("item_business_group", ["AA"])
    ran = synced.run("full_sync_item", tags={"dagster/partition": "AA"})
    assert "AA: unknown business group 'AA' of item; did you mean A?" in failure(ran)
    assert "AA" not in synced.events(archive_key("item"), "materialization")
    for job, checks in (("__ASSET_JOB", [CHECK]), ("validate", None)):
        ran = synced.run(job, tags={"dagster/partition": "AA"}, checks=checks)
        assert "unknown business group 'AA' of item" in failure(ran)


def test_a_plan_may_name_a_group_that_only_the_source_knows(synced: Dagster) -> None:
    synced.world.put_record("N1", group="new", notify=False)
    ran = synced.run("plan", run_config={"ops": {"plan_full_sync": {"config": {"groups": ["new"]}}}})
    [counts] = rows(ran, "plan_full_sync", "item: counts")
    assert (counts["group"], counts["create"]) == ("new", 1)


def test_show_record_shows_what_is_known_of_it(synced: Dagster) -> None:
    synced.world.put_record("A0", name="changed")
    assert synced.run("incremental_sync").success
    ran = synced.run("show_record", run_config={"ops": {"show_one_record": {"config": {"key": "A0"}}}})
    assert ran.success
    state = {row["field"]: row["value"] for row in rows(ran, "show_one_record", "state")}
    assert (state["key"], state["group_key"]) == ("A0", "A")
    assert [row["part"] for row in rows(ran, "show_one_record", "parts")] == ["shop", "stock"]
    assert "changed" in str(rows(ran, "show_one_record", "parts")[0]["data"])
    assert {row["state"] for row in rows(ran, "show_one_record", "events")} == {"done"}
    assert [row["outcome"] for row in rows(ran, "show_one_record", "pushes")]
    assert output(ran, "show_one_record")["drift"] == "none"
    for key, reason in (("Z9", "nothing is known of item 'Z9'"), ("", "its `key` is empty")):
        assert reason in failure(
            synced.run("show_record", run_config={"ops": {"show_one_record": {"config": {"key": key}}}})
        )

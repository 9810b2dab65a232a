"""Open alerts and pauses as the Dagster UI shows them, and the jobs that pause and resume."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

import dagster as dg
import pytest
from dagster_instance import ARCHIVE, CHECK_KEY, MIRROR, Dagster, failure, output, synced
from dagster_instance import dagster as dagster
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from fakes import answer

from sync_orchestrator.assets.alert_checks import ALERTS_CHECK
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.operations.open_alerts import open_alerts
from sync_orchestrator.core.systems.worker_presence import TaskReport, record_worker
from sync_orchestrator.sensors import changes
from sync_orchestrator.sensors import worker as sensor_module
from sync_orchestrator.sensors.worker import AlertCursor, worker_report

ALERTS_KEY = dg.AssetCheckKey(MIRROR, ALERTS_CHECK)

__all__ = ["dagster", "instance", "storage", "storage_url", "synced"]


def tell(dagster: Dagster, kind: str, cause: str, title: str, **options: Any) -> None:
    with dagster.world.engine.begin() as connection:
        alerts.raise_alert(connection, kind, cause, title, **options)


def resolve(dagster: Dagster, kind: str, cause: str) -> None:
    with dagster.world.engine.begin() as connection:
        alerts.resolve_alert(connection, kind, cause)


def shown(dagster: Dagster) -> dg.AssetCheckEvaluation:
    """The newest evaluation of the check."""
    [record] = dagster.instance.event_log_storage.get_asset_check_execution_history(ALERTS_KEY, limit=1)
    assert record.evaluation is not None
    return record.evaluation


def status(dagster: Dagster) -> tuple[bool, str]:
    """Whether the check passed, and its severity."""
    assert dagster.run("report_alerts").success
    return shown(dagster).passed, shown(dagster).severity.value


def paused(dagster: Dagster, name: str, reason: str = "") -> dg.ExecuteInProcessResult:
    return dagster.run("pause", run_config={"ops": {"pause_pushes": {"config": {"name": name, "reason": reason}}}})


def resumed(dagster: Dagster, name: str) -> dg.ExecuteInProcessResult:
    return dagster.run("resume", run_config={"ops": {"resume_pushes": {"config": {"name": name}}}})


def test_the_check_is_red_while_an_alert_is_open_and_says_what_to_do(dagster: Dagster) -> None:
    assert status(dagster) == (True, "WARN")
    assert shown(dagster).description == "no alert is open"
    tell(dagster, "drift", "item A", "item A: drift", entity="item")
    tell(dagster, "drift", "item B", "item B: drift", entity="item")
    assert status(dagster) == (False, "ERROR")
    assert shown(dagster).description == "2 alerts are open: drift (2)"
    first, _ = [record.data for record in shown(dagster).metadata["alerts"].value.records]  # type: ignore[union-attr]
    assert (first["kind"], first["cause"], first["count"], first["what"]) == ("drift", "item A", 1, "item A: drift")
    assert "launch the job `repair`" in str(first["what to do"])
    for cause in ("item A", "item B"):
        resolve(dagster, "drift", cause)
    assert status(dagster) == (True, "WARN")


def test_an_alert_without_an_entity_concerns_those_of_its_third_party_or_all(dagster: Dagster) -> None:
    systems = {"item": "erp", "order": "shop_system"}
    tell(dagster, "run_failed", "validate", "a run of validate failed")
    tell(dagster, "adoption_needed", "erp", "erp: pushes are suspended")
    tell(dagster, "drift", "item A", "item A: drift", entity="item")
    tell(dagster, "dead", "gone: x", "gone: x", entity="gone")  # of an entity that sync.yaml no longer has
    with dagster.world.engine.begin() as connection:
        found = open_alerts(connection, systems)
    kinds = {entity: [alert.kind for alert in some] for entity, some in found.alerts.items()}
    assert kinds == {"item": ["run_failed", "adoption_needed", "drift", "dead"], "order": ["run_failed", "dead"]}
    assert found.count == 4


def test_the_check_is_a_warning_while_pushes_wait(dagster: Dagster) -> None:
    assert paused(dagster, "item", "the ERP is being updated").success
    dagster.world.put_record("k1")
    assert dagster.run("incremental_sync").success
    assert status(dagster) == (False, "WARN")
    assert shown(dagster).description == "item is paused: 1 wait"
    assert "resume" in str(shown(dagster).metadata["next"].value)
    tell(dagster, "run_failed", "x", "a run of x failed")
    assert status(dagster) == (False, "ERROR")
    resolve(dagster, "run_failed", "x")
    assert resumed(dagster, "item").success
    assert status(dagster) == (True, "WARN")


def test_an_open_breaker_is_a_warning(dagster: Dagster) -> None:
    dagster.world.erp.before = lambda verb, key: answer(503)
    for number in range(6):
        dagster.world.put_record(f"k{number}")
    dagster.run("incremental_sync")
    assert dagster.open_alerts() == {"breaker_open": "erp"}
    assert status(dagster) == (False, "WARN")
    assert "1 alert is open: breaker_open; the circuit breaker of erp is open since" in (
        shown(dagster).description or ""
    )


def test_a_materialization_evaluates_the_check_too_and_leaves_it_without_partition(synced: Dagster) -> None:
    tell(synced, "conservation", "events", "events do not add up")
    for launched in ({"groups": ["A", "B", "C"]}, {"tags": {"dagster/partition": "B"}}):
        ran = synced.run("__ASSET_JOB", assets=[ARCHIVE, MIRROR], checks=[CHECK_KEY, ALERTS_KEY], **launched)
        assert ran.success
        [found] = [each for each in ran.get_asset_check_evaluations() if each.check_name == ALERTS_CHECK]
        assert (found.partition, found.passed) == (None, False)


def test_the_sensor_requests_the_evaluation_when_alerts_or_pauses_change(
    dagster: Dagster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cursor: str | None = None

    def requested() -> bool:
        nonlocal cursor
        ticked = dagster.tick(worker_report, cursor)
        cursor = ticked.cursor
        return bool(ticked.run_requests)

    assert requested()  # nothing is shown yet
    assert not requested()
    for change in (
        lambda: tell(dagster, "drift", "item A", "item A: drift", entity="item"),
        lambda: resolve(dagster, "drift", "item A"),
        lambda: paused(dagster, "erp"),
        lambda: resumed(dagster, "erp"),
    ):
        change()
        assert requested()
        assert not requested()
    tell(dagster, "drift", "item A", "item A: drift", entity="item")
    assert requested()
    tell(dagster, "drift", "item A", "item A: drift", entity="item")
    assert not requested()  # its count alone
    monkeypatch.setattr(sensor_module, "FIGURES_SECONDS", 0)
    assert requested()
    assert not requested()
    dagster.instance.report_runless_asset_event(dg.AssetMaterialization(MIRROR))
    assert requested()  # the UI takes a status that is older than the asset for outdated


def test_the_sensor_waits_for_an_evaluation_that_is_under_way(dagster: Dagster) -> None:
    """It may have read what was open before the change."""
    cursor = dagster.tick(worker_report).cursor
    run = dagster.instance.create_run_for_job(
        dagster.defs.resolve_job_def("report_alerts"), status=dg.DagsterRunStatus.STARTED
    )
    tell(dagster, "drift", "item A", "item A: drift", entity="item")
    waiting = dagster.tick(worker_report, cursor)
    assert not waiting.run_requests
    dagster.instance.report_run_canceled(run)
    assert len(dagster.tick(worker_report, waiting.cursor).run_requests) == 1


def test_the_cursor_can_be_read_and_one_of_an_earlier_version_is_replaced(dagster: Dagster) -> None:
    for earlier in ("1796032410.91", '{"looked_at": "2026-01-01T00:00:00+00:00", "alerts": "x"}'):
        ticked = dagster.tick(worker_report, earlier)
        assert len(ticked.run_requests) == 1
        assert json.loads(ticked.cursor)["shown_at"].endswith("+00:00")
        assert AlertCursor.from_text(ticked.cursor).to_text() == ticked.cursor


def test_an_alert_is_in_the_log_of_the_tick_that_has_it_shown(
    dagster: Dagster, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", written.append)
    context = dg.build_sensor_context(dagster.instance, definitions=dagster.defs, resources={"system": dagster.system})
    context.log.addHandler(handler)
    tell(dagster, "drift", "item A", "item A: drift of 100%", entity="item")
    with context:
        worker_report.evaluate_tick(context)
    [line] = [record for record in written if "ALERT" in record.getMessage()]
    assert line.levelname == "WARNING"
    assert line.getMessage().startswith("ALERT item A: drift of 100% (drift, since 20")
    assert "Do: See the check's samples." in line.getMessage()


# The worker ---------------------------------------------------------------------------------------------------------


def heard(dagster: Dagster, *tasks: TaskReport) -> None:
    """The heartbeat of a worker."""
    with dagster.world.engine.begin() as connection:
        record_worker(connection, "w1", "1 on here", tasks)


def test_the_sensor_reports_what_the_worker_did(dagster: Dagster) -> None:
    heard(dagster, TaskReport("alerts", 1, "2 sent", 12), TaskReport("polling item shop", 3))
    cursor = dagster.tick(worker_report).cursor
    ticked = dagster.tick(worker_report, cursor)
    assert re.fullmatch(
        r"worker heard of \d+ s ago; alerts: 2 sent 1\d s ago; polling item shop: nothing yet; no open alert",
        ticked.skip_message,
    )
    heard(dagster, TaskReport("alerts", 40, "2 sent", 51, "unexpected ValueError"))
    assert "alerts fails: unexpected ValueError" in dagster.tick(worker_report, cursor).skip_message


def test_a_tick_does_none_of_the_workers_work(dagster: Dagster) -> None:
    tell(dagster, "drift", "item A", "item A: drift", entity="item")
    dagster.world.advance_clock(3600)
    dagster.tick(worker_report)
    assert dagster.world.query("SELECT FROM sync.alert_receivers") == []


def test_a_worker_that_is_silent_fails_the_tick_after_the_alert_is_shown(dagster: Dagster) -> None:
    cursor = dagster.tick(worker_report).cursor  # from here on one is expected
    waiting = dagster.tick(worker_report, cursor).skip_message
    assert waiting.startswith("no worker runs (not heard of for 0 s): start `sync-orchestrator worker`")
    dagster.world.advance_clock(301)
    shown = dagster.tick(worker_report, cursor)
    assert len(shown.run_requests) == 1
    assert dagster.open_alerts() == {"worker_stalled": "worker"}
    with pytest.raises(dg.Failure, match=r"no worker runs .*alerts and outcomes are not sent"):
        dagster.tick(worker_report, shown.cursor)
    heard(dagster, TaskReport("alerts", 0))
    ended = dagster.tick(worker_report, shown.cursor)
    assert (len(ended.run_requests), dagster.open_alerts()) == (1, {})
    assert "worker heard of" in dagster.tick(worker_report, ended.cursor).skip_message


def test_a_pause_is_said_by_the_sensor_and_by_the_runs(synced: Dagster) -> None:
    ran = paused(synced, "item", "the ERP is being updated")
    assert output(ran, "pause_pushes") == {
        "result": "pushes of item are paused",
        "reason": "the ERP is being updated",
        "pushes that wait": "item is paused: 0 wait",
    }
    synced.world.put_record("A0", name="changed")
    synced.world.put_record("A1", name="changed")
    ran = synced.run("incremental_sync")
    logged = [entry.user_message for entry in synced.instance.all_logs(ran.run_id)]
    assert [line for line in logged if line.startswith("item is paused: 2 wait; launch the job `resume`")]
    assert synced.tick(changes.change_events).skip_message.startswith("item is paused: 2 wait; nothing else is due: ")
    assert synced.world.mirror_by_key() != synced.world.expected_mirror()
    assert output(resumed(synced, "item"), "resume_pushes")["pushes that wait"] == "none"
    assert synced.run("incremental_sync").success
    assert synced.world.mirror_by_key() == synced.world.expected_mirror()


def test_resume_fails_while_the_third_party_is_suspended(dagster: Dagster) -> None:
    dagster.world.query(
        "UPDATE sync.systems SET suspended_at = sync.clock(), suspended_reason = 'restored' WHERE name = 'erp'"
    )
    assert "pushes to erp stay suspended: restored. Run `sync-orchestrator adopt`" in failure(resumed(dagster, "item"))

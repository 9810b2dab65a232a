"""What is over is forgotten after a while, and nothing else is."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from dagster_instance import Dagster, synced
from dagster_instance import dagster as dagster
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from fakes import answer
from world import World

from sync_orchestrator.config import RetentionSettings
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.operations import retention
from sync_orchestrator.core.operations.retention import delete_expired
from sync_orchestrator.resources.instance.run_retention import delete_old_runs

__all__ = ["dagster", "instance", "storage", "storage_url", "synced"]

DAY = 86_400.0
SETTINGS = RetentionSettings(history_days=30, event_ids_days=80, findings_days=90)


def counts(world: World) -> dict[str, int]:
    tables = ("event_history", "push_attempts", "event_ids", "validations", "drift", "alerts")
    return {table: world.query(f"SELECT count(*) AS n FROM sync.{table}")[0].n for table in tables}


@pytest.fixture
def lived(world: World) -> World:
    """Two records in sync, one of them validated, spoiled and repaired; an alert that is over; a dead record."""
    world.put_record("a")
    world.put_record("b")
    world.run_drain()
    world.run_full_sync()
    world.advance_clock(60)
    name = str(world.read_record_row("a").external_id)
    world.erp.store[name] = {**world.erp.store[name], "count": -1}
    world.run_validation(full=True)
    world.run_drain()
    world.advance_clock(60)
    assert world.run_validation(full=True).verdict == "in_sync"
    with world.engine.begin() as connection:
        alerts.raise_alert(connection, "overdue", "work", "work is due")
        alerts.resolve_alert(connection, "overdue")
    world.erp.before = lambda verb, key: answer(422) if key == "dead" else None
    world.put_record("dead")
    world.run_drain()
    return world


@pytest.mark.parametrize(
    ("days", "gone"),
    [
        (29, set()),
        (62, {"event_history", "push_attempts"}),
        (81, {"event_history", "push_attempts", "event_ids"}),
        (91, {"event_history", "push_attempts", "event_ids", "validations", "drift", "alerts"}),
    ],
)
def test_each_is_forgotten_in_its_time(lived: World, days: int, gone: set[str]) -> None:
    before, received = counts(lived), lived.read_conservation().received
    lived.advance_clock(days * DAY)
    delete_expired(lived.engine, SETTINGS)
    after = counts(lived)
    assert {table for table in before if after[table] < before[table]} == gone
    assert (lived.read_conservation().received, lived.read_conservation().balanced) == (received, True)
    assert delete_expired(lived.engine, SETTINGS).keys() == {
        "history_partitions",
        "attempts_partitions",
        "history",
        "attempts",
        "event_ids",
        "validations",
        "drift",
        "alerts",
    }
    assert counts(lived) == after


def test_what_is_open_stays_and_goes_on(lived: World) -> None:
    lived.advance_clock(1000 * DAY)
    delete_expired(lived.engine, SETTINGS)
    assert lived.read_record_row("dead").stopped == "dead"
    assert lived.count_events_by_state()["dead"] == 2
    assert [row.kind for row in lived.query("SELECT kind FROM sync.alerts WHERE resolved_at IS NULL")] == ["dead"]
    assert [row.n for row in lived.query("SELECT count(*) AS n FROM sync.validations")] == [1]  # the last word
    assert [row.n for row in lived.query("SELECT count(*) AS n FROM sync.event_ids")] == [2]  # of the dead ones
    lived.put_record("a", name="next")
    lived.run_drain()
    assert lived.mirror_by_key()["a"]["name"] == "next"


def test_an_event_that_comes_again_within_its_time_is_known_and_later_it_is_a_new_one(world: World) -> None:
    def again() -> int:
        world.post_event("shop", "a", "create", 5, {"name": "n", "store": "A"}, event_id="same", group="A")
        world.run_drain()
        return world.read_conservation().duplicates

    assert again() == 0
    world.advance_clock(59 * DAY)
    delete_expired(world.engine, SETTINGS)
    assert again() == 1
    world.query("UPDATE sync.records SET ready = ready RETURNING key")
    assert world.read_conservation().balanced


def test_null_is_for_ever(lived: World) -> None:
    before = counts(lived)
    lived.advance_clock(10_000 * DAY)
    delete_expired(lived.engine, RetentionSettings(history_days=None, event_ids_days=None, findings_days=None))
    assert counts(lived) == before


def test_much_is_forgotten_in_small_transactions(lived: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_MAX_ROWS", 1)
    monkeypatch.setattr(retention, "_MAX_BATCHES", 2)
    lived.query(
        "INSERT INTO sync.event_ids (source, event_id, content_hash) "
        "SELECT 'shop', 'x' || n, 'x' FROM generate_series(1, 10) n RETURNING 1"
    )
    lived.advance_clock(81 * DAY)
    assert delete_expired(lived.engine, SETTINGS)["event_ids"] == 2


def test_a_month_that_is_over_is_dropped_as_a_whole_unless_it_is_in_use(world: World) -> None:
    with world.engine.begin() as connection:
        run(
            connection,
            "CREATE TABLE sync.event_history_2020_01 PARTITION OF sync.event_history "
            "FOR VALUES FROM ('2020-01-01') TO ('2020-02-01')",
        )
    with world.engine.begin() as connection:
        run(connection, "SELECT FROM sync.event_history_2020_01")
        assert delete_expired(world.engine, SETTINGS)["history_partitions"] == 0
    assert delete_expired(world.engine, SETTINGS)["history_partitions"] == 1
    assert delete_expired(world.engine, SETTINGS)["history_partitions"] == 0


def test_runs_that_worked_off_changes_are_forgotten_and_what_fills_partitions_stays(synced: Dagster) -> None:
    dagster = synced
    dagster.world.advance_clock(60)
    assert dagster.run("incremental_sync").success
    assert dagster.run("validate").success
    assert dagster.checked() == {"SUCCEEDED": ["A", "B", "C"]}
    now = datetime.now(UTC)
    assert delete_old_runs(dagster.instance, RetentionSettings(runs_days=30), now + timedelta(days=29)) == 0
    assert delete_old_runs(dagster.instance, RetentionSettings(runs_days=None), now + timedelta(days=99)) == 0
    assert delete_old_runs(dagster.instance, RetentionSettings(runs_days=30), now + timedelta(days=31)) == 1
    assert {run.job_name for run in dagster.instance.get_runs()} == {"full_sync_item", "validate"}
    assert dagster.checked() == {"SUCCEEDED": ["A", "B", "C"]}
    going_on = dagster.instance.create_run_for_job(
        dagster.defs.resolve_job_def("incremental_sync"), status=dg.DagsterRunStatus.STARTED
    )
    assert delete_old_runs(dagster.instance, RetentionSettings(runs_days=30), now + timedelta(days=31)) == 0
    assert dagster.instance.get_run_by_id(going_on.run_id) is not None


def test_of_the_evaluations_of_open_alerts_the_newest_is_kept(synced: Dagster) -> None:
    """It holds what the check shows, however long nothing has changed since."""
    ids = [synced.run("report_alerts").run_id for _ in range(3)]
    later = datetime.now(UTC) + timedelta(days=31)
    assert delete_old_runs(synced.instance, RetentionSettings(runs_days=30), later) == 2
    assert [run.run_id for run in synced.instance.get_runs(dg.RunsFilter(job_name="report_alerts"))] == ids[-1:]
    assert delete_old_runs(synced.instance, RetentionSettings(runs_days=30), later) == 0


def test_runs_of_another_project_with_the_same_job_names_stay(synced: Dagster) -> None:
    """A company's instance of Dagster has other code locations."""
    later = datetime.now(UTC) + timedelta(days=31)
    other = synced.run("incremental_sync", tags={".dagster/repository": "__repository__@other"}).run_id
    ours = synced.run("incremental_sync", tags={".dagster/repository": "__repository__@sync"}).run_id
    origin: Any = SimpleNamespace(repository_origin=SimpleNamespace(get_label=lambda: "__repository__@sync"))
    assert delete_old_runs(synced.instance, RetentionSettings(runs_days=30), later, origin) == 1
    assert synced.instance.get_run_by_id(ours) is None
    assert synced.instance.get_run_by_id(other) is not None

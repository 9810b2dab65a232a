"""Rule 38 for runs: a run is under way while its process lives, which its heartbeat says, not its status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from dagster_instance import Dagster
from dagster_instance import dagster as dagster
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from sqlalchemy import Engine, event
from world import World

from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.systems import run_heartbeats
from sync_orchestrator.core.systems.heartbeats import record_heartbeat
from sync_orchestrator.core.systems.run_heartbeats import Watched, keep_run_heartbeat, update_watched
from sync_orchestrator.resources.instance import config as instance_module
from sync_orchestrator.sensors import changes
from sync_orchestrator.sensors import runs as sensor_module
from sync_orchestrator.sensors.alerts import failed_runs
from sync_orchestrator.sensors.runs import dead_runs

pytestmark = pytest.mark.slow

JOBS = (
    "validate",
    "validate_fully",
    "check_sources",
    "full_sync_item",
    "repair",
    "plan",
    "maintenance",
    "incremental_sync",
    "report_alerts",
    "pause",
    "resume",
    "show_record",
)


class Clock:
    """The sensor's time."""

    def __init__(self) -> None:
        self.now = time.time()

    def time(self) -> float:
        return self.now


class Ticks:
    """The sensor, evaluated as the daemon does, with a clock that the test moves."""

    def __init__(self, dagster: Dagster, clock: Clock) -> None:
        self._dagster = dagster
        self._clock = clock
        self._cursor: str | None = None

    def pass_(self, seconds: float, every: float = 15.0, between: Callable[[], object] = lambda: None) -> None:
        """Ticks for so many seconds."""
        ends = self._clock.now + seconds
        while True:
            self._cursor = self._dagster.tick(dead_runs, self._cursor).cursor
            if self._clock.now >= ends:
                return
            between()
            self._clock.now += every


@pytest.fixture
def ticks(dagster: Dagster, monkeypatch: pytest.MonkeyPatch) -> Ticks:
    clock = Clock()
    monkeypatch.setattr(sensor_module, "time", clock)
    return Ticks(dagster, clock)


def started(dagster: Dagster, job: str) -> str:
    definition = dagster.defs.resolve_job_def(job)
    needed = {job: {"ops": {f"{job}_pushes": {"config": {"name": "item"}}}}} if job in ("pause", "resume") else {}
    run = dagster.instance.create_run_for_job(
        definition, status=dg.DagsterRunStatus.STARTED, run_config=needed.get(job), tags=dict(definition.run_tags or {})
    )
    return run.run_id


def status_of(dagster: Dagster, run_id: str) -> dg.DagsterRunStatus:
    run = dagster.instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def beats(engine: Engine) -> dict[str, Any]:
    with engine.begin() as connection:
        return {
            row.name: row.at
            for row in connection.exec_driver_sql("SELECT name, at FROM sync.heartbeats WHERE name LIKE 'run %%'")
        }


# Beating ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_heartbeats, "BEAT_SECONDS", 0.02)


@pytest.mark.usefixtures("quick")
def test_a_heartbeat_moves_while_the_work_goes_on_and_is_gone_afterwards(engine: Engine) -> None:
    with keep_run_heartbeat(engine, "r1"):
        first = beats(engine)
        assert set(first) == {"run r1"}
        ends = time.monotonic() + 20
        while beats(engine) == first:
            assert time.monotonic() < ends
    assert beats(engine) == {}


@pytest.mark.usefixtures("quick")
def test_a_database_that_is_away_ends_no_heartbeat(engine: Engine) -> None:
    from psycopg import OperationalError

    away, refused = threading.Event(), threading.Event()

    def begin(connection: Any) -> None:
        if away.is_set():
            refused.set()
            raise OperationalError("away")

    event.listen(engine, "begin", begin)
    with keep_run_heartbeat(engine, "r1"):
        first = beats(engine)
        away.set()
        assert refused.wait(20)
        away.clear()
        ends = time.monotonic() + 20
        while beats(engine) == first:
            assert time.monotonic() < ends


@pytest.mark.parametrize(
    ("known", "beat", "gap", "found"),
    [
        (None, 5.0, 15, Watched(5.0, 0)),
        (None, None, 15, Watched(None, 0)),
        (Watched(5.0, 45), 5.0, 15, Watched(5.0, 60)),
        (Watched(5.0, 45), 6.0, 15, Watched(6.0, 0)),
        (Watched(None, 45), 6.0, 15, Watched(6.0, 0)),
        (Watched(5.0, 0), 5.0, 3600, Watched(5.0, 30)),  # nobody beat while the database was down, nor looked
    ],
)
def test_how_long_a_run_was_seen_not_to_beat(
    known: Watched | None, beat: float | None, gap: float, found: Watched
) -> None:
    assert update_watched(known, beat, gap) == found


def test_a_run_that_never_beat_has_longer() -> None:
    assert [
        Watched(1.0, 59).is_dead,
        Watched(1.0, 60).is_dead,
        Watched(None, 599).is_dead,
        Watched(None, 600).is_dead,
    ] == [False, True, False, True]


@pytest.fixture
def filled(dagster: Dagster) -> Dagster:
    """A group with a record, after its full sync."""
    dagster.world.put_record("k1", notify=False)
    dagster.instance.add_dynamic_partitions("item_business_group", ["A"])
    dagster.tick(changes.business_groups)
    assert dagster.run("full_sync_item", groups=["A"]).success
    return dagster


@pytest.mark.parametrize(
    "job",
    [
        "validate",
        "validate_fully",
        "plan",
        "repair",
        "incremental_sync",
        "maintenance",
        "report_alerts",
        "pause",
        "show_record",
    ],
)
def test_rule_38_every_run_has_a_heartbeat_while_it_works(filled: Dagster, job: str) -> None:
    seen: list[set[str]] = []
    watched = open_engine(filled.world.engine.url.render_as_string(hide_password=False))

    def executed(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "sync.heartbeats" not in statement:
            seen.append(set(beats(watched)))

    filled.world.put_record("k2")
    event.listen(filled.world.engine, "before_cursor_execute", executed)
    options = {
        "repair": {"ops": {"repair_groups": {"config": {"groups": ["A"]}}}},
        "show_record": {"ops": {"show_one_record": {"config": {"key": "k1"}}}},
        "pause": {"ops": {"pause_pushes": {"config": {"name": "item"}}}},
    }
    ended = filled.run(job, run_config=options.get(job))
    event.remove(filled.world.engine, "before_cursor_execute", executed)
    watched.dispose()
    assert ended.success
    assert {f"run {ended.run_id}"} in [{name for name in names if name.startswith("run ")} for names in seen]
    assert beats(filled.world.engine) == {}


def test_rule_38_a_full_sync_has_a_heartbeat(dagster: Dagster) -> None:
    seen: list[set[str]] = []
    dagster.world.put_record("k1", notify=False)
    dagster.instance.add_dynamic_partitions("item_business_group", ["A"])
    dagster.tick(changes.business_groups)
    dagster.world.erp.before = lambda verb, key: seen.append(set(beats(dagster.world.engine)))
    ended = dagster.run("full_sync_item", groups=["A"])
    assert ended.success
    assert seen == [{f"run {ended.run_id}"}] * len(seen)
    assert seen


def test_a_sensor_has_none(dagster: Dagster) -> None:
    dagster.tick(dead_runs)
    assert beats(dagster.world.engine) == {}


# Dead runs ----------------------------------------------------------------------------------------------------------

BEATS_UNTIL_KILLED = """
import sys, time
from sync_orchestrator.core.systems import run_heartbeats as runs
from sync_orchestrator.core.db.session import open_engine
runs.BEAT_SECONDS = 0.05
with runs.keep_run_heartbeat(open_engine(sys.argv[1]), sys.argv[2]):
    print("beating", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def process(database_url: str) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []

    def start(run_id: str) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(
                [sys.executable, "-c", BEATS_UNTIL_KILLED, database_url, run_id], stdout=subprocess.PIPE, text=True
            )
        )
        assert made[-1].stdout is not None
        assert made[-1].stdout.readline() == "beating\n"
        return made[-1]

    yield start
    for each in made:
        each.kill()
        each.wait()
        assert each.stdout is not None
        each.stdout.close()


@pytest.mark.parametrize("job", ["validate", "full_sync_item"])
def test_case_r38_a_run_that_nobody_carries_any_more_is_ended_within_minutes(
    dagster: Dagster,
    ticks: Ticks,
    process: Any,
    job: str,
) -> None:
    """Its process and those that watched it are killed: the next one begins, and an alert says so.

    A full sync is run again by Dagster itself.
    """
    run_id = started(dagster, job)
    alive = process(run_id)
    ticks.pass_(600, between=lambda: time.sleep(0.1))
    assert status_of(dagster, run_id) is dg.DagsterRunStatus.STARTED
    assert instance_module.under_way(dagster.instance, job)
    with dagster.world.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM sync.heartbeats WHERE name LIKE 'run %%'").scalar_one()
    os.kill(alive.pid, signal.SIGKILL)
    alive.wait()
    ticks.pass_(45)
    assert status_of(dagster, run_id) is dg.DagsterRunStatus.STARTED
    ticks.pass_(45)
    assert status_of(dagster, run_id) is dg.DagsterRunStatus.FAILURE
    assert not instance_module.under_way(dagster.instance, job)
    assert beats(dagster.world.engine) == {}
    [entry] = dagster.instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    run = dagster.instance.get_run_by_id(run_id)
    assert run is not None
    assert entry.dagster_event is not None
    assert "has not been heard of for" in (entry.dagster_event.message or "")
    failed_runs(
        dg.build_run_status_sensor_context(
            "failed_runs", entry.dagster_event, dagster.instance, run, resources={"system": dagster.system}
        ).for_run_failure()
    )
    if job == "full_sync_item":
        assert run.tags["dagster/will_retry"] == "true"
    else:
        assert dagster.open_alerts() == {"run_failed": job}


def test_case_r38_the_schedule_goes_on(dagster: Dagster, ticks: Ticks) -> None:
    dagster.world.put_record("k1", notify=False)
    dagster.instance.add_dynamic_partitions("item_business_group", ["A"])
    dagster.tick(changes.business_groups)
    assert dagster.run("full_sync_item", groups=["A"]).success
    schedule = dagster.defs.resolve_schedule_def("validate_due_groups")

    def scheduled() -> Any:
        return schedule.evaluate_tick(
            dg.build_schedule_context(
                dagster.instance,
                repository_def=dagster.defs.get_repository_def(),
                resources={"system": dagster.system},
            )
        )

    run_id = started(dagster, "validate")
    with keep_run_heartbeat(dagster.world.engine, run_id):
        ticks.pass_(0)
        assert scheduled().skip_message == "a validation is under way"
    record_heartbeat(dagster.world.engine, f"run {run_id}")  # as a process that was killed leaves it
    ticks.pass_(90)
    assert len(scheduled().run_requests) == 1


def test_a_run_that_died_before_its_first_heartbeat_is_ended_too(dagster: Dagster, ticks: Ticks) -> None:
    run_id = started(dagster, "check_sources")
    ticks.pass_(570)
    assert status_of(dagster, run_id) is dg.DagsterRunStatus.STARTED
    ticks.pass_(60)
    assert status_of(dagster, run_id) is dg.DagsterRunStatus.FAILURE


def test_runs_of_others_are_left_alone(dagster: Dagster, ticks: Ticks) -> None:
    """Another code location on the same Dagster has no heartbeats of ours."""

    @dg.job
    def of_others() -> None:
        return None

    run_id = dagster.instance.create_run_for_job(of_others, status=dg.DagsterRunStatus.STARTED).run_id
    ticks.pass_(3600)
    assert status_of(dagster, run_id) is dg.DagsterRunStatus.STARTED


def test_an_outage_of_the_database_ends_no_run(dagster: Dagster, ticks: Ticks) -> None:
    """Neither a beat nor a look for ten minutes; the first look afterwards comes before the first beat."""
    run_id = started(dagster, "validate")
    record_heartbeat(dagster.world.engine, f"run {run_id}")
    ticks.pass_(600, every=600)
    assert status_of(dagster, run_id) is dg.DagsterRunStatus.STARTED


def test_a_run_that_was_never_launched_holds_up_nobody(
    dagster: Dagster,
    world: World,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for job in ("validate", "incremental_sync"):
        dagster.instance.create_run_for_job(dagster.defs.resolve_job_def(job), status=dg.DagsterRunStatus.NOT_STARTED)
    dagster.world.put_record("k1")
    assert instance_module.under_way(dagster.instance, "validate")
    assert dagster.tick(changes.change_events).skip_message == "a drain is about to start"
    monkeypatch.setattr(instance_module, "_LAUNCHED_WITHIN_SECONDS", -1)
    assert not instance_module.under_way(dagster.instance, "validate")
    assert len(dagster.tick(changes.change_events).run_requests) == 1


def test_every_job_of_ours_is_watched(dagster: Dagster, ticks: Ticks) -> None:
    ids = {job: started(dagster, job) for job in JOBS}
    for run_id in ids.values():
        record_heartbeat(dagster.world.engine, f"run {run_id}")
    ticks.pass_(90)
    assert {job for job, run_id in ids.items() if status_of(dagster, run_id) is dg.DagsterRunStatus.STARTED} == set()

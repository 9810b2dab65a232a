"""Each kind of alert, brought about by what it is there for, and received by a webhook that really listens."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import dagster as dg
import pytest
from alert_servers import Webhook
from dagster_instance import Dagster
from dagster_instance import dagster as dagster
from dagster_instance import instance as instance
from dagster_instance import storage as storage
from dagster_instance import storage_url as storage_url
from fakes import FakeThirdParty, answer, lost_answer
from world import World

from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.watchdog import Watchdog
from sync_orchestrator.brokers.consume import Consumption, read_message
from sync_orchestrator.brokers.messages import Message
from sync_orchestrator.config import AlertSettings
from sync_orchestrator.core.capture import streams
from sync_orchestrator.core.intake import rejected_messages
from sync_orchestrator.core.intake.polling import poll_due
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.notifications.alert_messages import ACTIONS
from sync_orchestrator.core.operations.maintenance import run_maintenance, watch_backlog
from sync_orchestrator.core.service import rollout
from sync_orchestrator.core.systems.heartbeats import record_heartbeat
from sync_orchestrator.core.systems.pauses import set_paused
from sync_orchestrator.core.systems.suspension import note_stray_ids
from sync_orchestrator.core.systems.worker_presence import TaskReport, record_worker
from sync_orchestrator.core.two_way.conflict_log import ConflictLog, NewConflict
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.errors import DeletionsHeld
from sync_orchestrator.sensors import changes
from sync_orchestrator.sensors.alerts import failed_runs

__all__ = ["dagster", "instance", "storage", "storage_url"]

Make = Callable[..., World]
HOUR = 3600.0
UI = "https://dagster.example.org"


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    webhook = Webhook()
    webhook.up()
    yield webhook
    webhook.close()


def synced(world: World, number: int = 3) -> World:
    for each in range(number):
        world.put_record(f"k{each}", notify=False)
    world.run_full_sync()
    return world


def minutely(world: World) -> None:
    """The round of every minute."""
    with world.engine.begin() as connection:
        watch_backlog(connection, world.config.alerts, world.config.entities)


# What brings each about ---------------------------------------------------------------------------------------------


def a_change_is_refused(make: Make) -> World:
    world = make()
    world.erp.before = lambda verb, key: answer(422)
    world.put_record("a")
    world.run_drain()
    return world


def a_create_is_lost_that_cannot_be_looked_up(make: Make) -> World:
    world = make(erp=FakeThirdParty(can_lookup=False))
    world.erp.after = lambda verb, key: lost_answer() if verb == "create" else None
    world.put_record("a")
    for _ in range(4):
        world.run_drain()
        world.advance_clock(60)
    return world


def a_third_party_fails_again_and_again(make: Make) -> World:
    world = make()
    world.erp.before = lambda verb, key: answer(500)
    for number in range(10):
        world.put_record(f"k{number}")
    world.run_drain()
    return world


def a_record_is_altered_there(make: Make) -> World:
    world = synced(make())
    name = str(world.read_record_row("k1").external_id)
    world.erp.store[name] = {**world.erp.store[name], "count": -1}
    assert world.run_validation(full=True).verdict == "drift"
    return world


def a_version_is_of_tomorrow(make: Make) -> World:
    part = {"key": "key", "version": {"path": "v"}, "list": {"path": "/"}}
    world = make(entity={"parts": {"shop": {**part, "group": "store"}, "stock": part}})
    version = int((time.time() + 24 * HOUR) * 1e6)
    world.post_event("shop", "a", "create", version, {"name": "n", "store": "A"}, group="A")
    world.run_drain()
    return world


def an_update_comes_whose_record_never_does(make: Make) -> World:
    world = make()
    world.post_event("shop", "a", "update", 5, {"name": "n", "store": "A"}, group="A")
    world.run_drain()
    world.advance_clock(25 * HOUR)
    minutely(world)
    return world


def nobody_drains(make: Make) -> World:
    world = make()
    world.put_record("a")
    world.advance_clock(HOUR)
    minutely(world)
    return world


def a_source_lost_most_of_its_records(make: Make) -> World:
    world = synced(make(), 20)
    for number in range(15):
        world.shop.remove(f"k{number}")
    with suppress(DeletionsHeld):
        world.run_full_sync()
    return world


def a_source_does_not_show_what_it_announced(make: Make) -> World:
    world = synced(make())
    world.post_event("shop", "ghost", "create", 5_000_000)
    for _ in range(3):
        world.run_drain()
        world.advance_clock(500)
    return world


def a_record_holds_what_no_database_takes(make: Make) -> World:
    world = synced(make())
    row = world.shop.rows["k1"]
    world.shop.rows["k1"] = replace(row, data={**row.data, "name": "a\x00b"}, version=row.version + 1)
    world.run_full_sync()
    return world


def a_source_does_not_say_what_has_changed(make: Make) -> World:
    part = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}}
    polled = {**part, "changes": {"path": "/changes"}, "poll_every": 30}
    world = make(entity={"parts": {"shop": {**part, "group": "store"}, "stock": polled}})
    world.stock.can_poll = world.stock.down = True
    asyncio.run(poll_due(world.context))
    return world


def consumer(url: str) -> dict[str, Any]:
    return {"consumers": {"orders": {"url": url, "queue": "orders"}}}


def a_message_is_no_event(make: Make) -> World:
    world = make(**consumer("redis://127.0.0.1:1"))
    found = read_message(Message(b"hello"), "orders", world.config)
    assert isinstance(found, rejected_messages.Rejected)
    with world.engine.begin() as connection:
        rejected_messages.keep_rejected_messages(connection, [found], 1000)
    return world


def a_broker_is_down(make: Make) -> World:
    world = make(**consumer("redis://127.0.0.1:1"), alerts={"overdue_after": 0, "group_wait": 0})
    stop = threading.Event()
    consumption = Consumption(world.engine, world.config, "orders", stop)
    thread = threading.Thread(target=consumption.run)
    thread.start()
    ends = time.monotonic() + 30
    while not world.query("SELECT FROM sync.alerts") and time.monotonic() < ends:
        stop.wait(0.05)
    stop.set()
    thread.join(30)
    return world


class Absent:
    """A receiver of outcomes that does not answer."""

    def deliver(self, told: Any) -> outcomes.Delivery:
        return outcomes.Delivery(down="no connection")


def a_receiver_of_outcomes_is_down(make: Make) -> World:
    world = make(outcomes={"audit": {"url": "https://audit.test"}})
    world.put_record("a")
    world.run_drain()
    for _ in range(2):
        outcomes.send_due_outcomes(world.engine, {"audit": Absent()}, world.config.alerts)
        world.advance_clock(HOUR)
    return world


def a_source_tells_nobody(make: Make) -> World:
    world = synced(make())
    world.put_record("new", notify=False)
    asyncio.run(check_sources(world.context, world.entity, "A"))
    return world


def the_new_path_fails(make: Make) -> World:
    world = make(
        routes={
            "stone": {
                "third_party": "erp",
                "path": "/stones",
                "call": {"path": "/stones"},
                "legacy": {"base_url": "http://127.0.0.1:1"},
                "rollout": {"by_header": "X-Merchant", "min_calls": 5},
            }
        }
    )
    with world.engine.begin() as connection:
        made = rollout.change_rollout(
            connection,
            world.config,
            "stone",
            rollout.RolloutChange(percent=100.0),
            who="somebody",
            why="because",
            override=True,
        )
        assert rollout.record_counts(
            connection, world.config, {("stone", made.version, "tried"): 100, ("stone", made.version, "failed"): 100}
        ) == ["stone"]
    return world


def an_event_vanishes_from_the_ledger(make: Make) -> World:
    world = make()
    world.put_record("a")
    world.query("DELETE FROM sync.events WHERE source = 'shop' RETURNING key")
    with world.engine.begin() as connection:
        assert not run_maintenance(connection).balanced
    return world


def the_third_party_is_down_for_an_hour(make: Make) -> World:
    world = synced(make())
    world.advance_clock(HOUR)
    minutely(world)
    return world


def three_ids_show_other_keys(make: Make) -> World:
    world = synced(make())
    with world.engine.begin() as connection:
        assert note_stray_ids(connection, "erp", [("item", f"k{n}", f"id-{n}", "x") for n in range(3)])
    return world


def one_id_shows_another_key(make: Make) -> World:
    world = synced(make())
    with world.engine.begin() as connection:
        assert not note_stray_ids(connection, "erp", [("item", "k1", "id-1", "x")])
    return world


def hold_stream(world: World) -> int:
    with world.engine.begin() as connection:
        token = streams.claim_stream(connection, "shop", 60)
    assert token is not None
    return token


def a_stream_is_read_by_nobody(make: Make) -> World:
    world = make()
    hold_stream(world)
    world.advance_clock(HOUR)
    minutely(world)
    return world


def a_stream_is_behind(make: Make) -> World:
    world = make()
    with world.engine.begin() as connection:
        streams.note_figures(connection, "shop", ["the source keeps 3000 MiB of its log"])
    return world


def a_slot_is_gone(make: Make) -> World:
    world = synced(make())
    token = hold_stream(world)
    stream = streams.CaptureStream("shop", "system 7", "0/1", None, 0, {"items": "1/2"})
    with world.engine.begin() as connection:
        streams.open_stream(
            connection, stream, token, entities_by_table={"items": ["item"]}, lost="the replication slot is gone"
        )
    minutely(world)
    return world


def a_table_is_emptied(make: Make) -> World:
    world = make()
    with world.engine.begin() as connection:
        streams.note_truncation(connection, "shop", ["items"], ["item"])
    return world


def both_sides_change_a_field(make: Make) -> World:
    world = make()
    with world.engine.begin() as connection:
        log = ConflictLog(connection, "item")
        log.note(NewConflict("a", "17", "A", "price", 10, 11, 12, None, None, "ask", None))
        log.write()
    return world


CAUSES: dict[str, Callable[[Make], World]] = {
    "dead": a_change_is_refused,
    "on_hold": a_create_is_lost_that_cannot_be_looked_up,
    "breaker_open": a_third_party_fails_again_and_again,
    "drift": a_record_is_altered_there,
    "version_in_future": a_version_is_of_tomorrow,
    "stuck_waiting": an_update_comes_whose_record_never_does,
    "overdue": nobody_drains,
    "delete_cap": a_source_lost_most_of_its_records,
    "source_behind": a_source_does_not_show_what_it_announced,
    "invalid_source_records": a_record_holds_what_no_database_takes,
    "poll_failing": a_source_does_not_say_what_has_changed,
    "rejected": a_message_is_no_event,
    "consumer_down": a_broker_is_down,
    "conflicts": both_sides_change_a_field,
    "capture_down": a_stream_is_read_by_nobody,
    "capture_behind": a_stream_is_behind,
    "capture_lost": a_slot_is_gone,
    "source_truncated": a_table_is_emptied,
    "outcome_undeliverable": a_receiver_of_outcomes_is_down,
    "lost_notifications": a_source_tells_nobody,
    "rollout_fell_back": the_new_path_fails,
    "conservation": an_event_vanishes_from_the_ledger,
    "not_validated": the_third_party_is_down_for_an_hour,
    "adoption_needed": three_ids_show_other_keys,
    "id_reused": one_id_shows_another_key,
}
BY_DAGSTER = {"invalid_partition_name", "run_failed"}
BY_THE_SERVICE = {"sensor_stalled", "worker_stalled"}


def test_there_is_no_other_kind() -> None:
    assert CAUSES.keys() | BY_DAGSTER | BY_THE_SERVICE == ACTIONS.keys()


def arrived(world: World, webhook: Webhook, kind: str) -> str:
    """The one message of that kind, with what happened, where to look, and what to do."""
    alerts.send_due_alerts(world.engine, AlertSettings(urls=[webhook.url], group_wait=0, ui_url=UI))
    [message] = [each["message"] for each in webhook.heard if each["message"].endswith(f"Do: {ACTIONS[kind]}")]
    assert message.startswith("What: ")
    assert f"\nWhere: {UI}/" in message
    return str(message)


@pytest.mark.parametrize("kind", CAUSES)
def test_it_arrives_with_what_where_and_what_to_do(kind: str, make_world: Make, webhook: Webhook) -> None:
    arrived(CAUSES[kind](make_world), webhook, kind)


def test_a_worker_that_is_silent_is_told_of_by_the_service_which_sends_all_alerts(
    make_world: Make, webhook: Webhook
) -> None:
    world = make_world(alerts={"urls": [webhook.url], "group_wait": 0, "ui_url": UI})
    watchdog = Watchdog(ApiDatabase(world.engine), world.config)
    assert watchdog.watch_once() == 0  # from here on a worker is expected
    record_heartbeat(world.engine, "sensor")
    world.put_record("a")
    world.advance_clock(200)
    assert watchdog.watch_once() == 0
    world.advance_clock(HOUR)
    assert watchdog.watch_once() == 3
    assert sorted(webhook.titles) == [
        "no worker was heard of for 63 minutes",
        "the sensor has not looked for changes for 63 minutes",
        "work is due for 63 minutes and not done",
    ]
    record_heartbeat(world.engine, "sensor")
    with world.engine.begin() as connection:
        record_worker(connection, "w1", "1 on here", [TaskReport("alerts", 0)])
    minutely(world)
    assert watchdog.watch_once() == 0  # the worker sends them again
    alerts.send_due_alerts(world.engine, world.config.alerts)
    for over in ("Over: the sensor", "Over: no worker"):
        assert any(title.startswith(over) for title in webhook.titles), webhook.titles


@pytest.mark.parametrize(("task", "sent"), [("alerts", 1), ("watch", 1), ("polling item shop", 0)])
def test_the_service_sends_alerts_while_the_worker_does_not_get_on_with_them(
    make_world: Make, webhook: Webhook, task: str, sent: int
) -> None:
    world = make_world(alerts={"urls": [webhook.url], "group_wait": 0, "ui_url": UI})
    with world.engine.begin() as connection:
        reports = [TaskReport("outcomes audit", 1), TaskReport(task, 400, error="unexpected ValueError")]
        record_worker(connection, "w1", "1 on here", reports)
    assert Watchdog(ApiDatabase(world.engine), world.config).watch_once() == sent
    [row] = world.query("SELECT title, examples FROM sync.alerts WHERE kind = 'worker_stalled'")
    assert row.title == f"the worker does not get on with {task} for 7 min"
    assert row.examples == ["unexpected ValueError"]


async def test_the_watchdog_looks_again_and_again_whatever_happens(make_world: Make) -> None:
    looks = 0
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Watched(Watchdog):
        def watch_once(self) -> int:
            nonlocal looks
            looks += 1
            if looks >= 3:
                loop.call_soon_threadsafe(enough.set)
            raise RuntimeError("the database does not answer")

    world = make_world()
    watchdog = Watched(ApiDatabase(world.engine), world.config, every=0.01)
    watchdog.start()
    await asyncio.wait_for(enough.wait(), 20)
    await watchdog.close()


def test_groups_of_a_paused_third_party_raise_no_alert(make_world: Make) -> None:
    world = synced(make_world())
    set_paused(world.engine, "erp", {"item"}, paused=True)
    world.advance_clock(HOUR)
    minutely(world)
    assert world.query("SELECT kind FROM sync.alerts WHERE kind = 'not_validated'") == []


def test_groups_that_are_validated_again_end_it(make_world: Make, webhook: Webhook) -> None:
    world = the_third_party_is_down_for_an_hour(make_world)
    arrived(world, webhook, "not_validated")
    assert world.run_validation().verdict == "in_sync"
    minutely(world)
    assert world.query("SELECT FROM sync.alerts WHERE resolved_at IS NULL") == []


def test_a_group_that_dagster_cannot_name_is_told_of(dagster: Dagster, webhook: Webhook) -> None:
    dagster.world.put_record("k1", group="a...b", notify=False)
    dagster.tick(changes.business_groups)
    assert "'a...b'" in arrived(dagster.world, webhook, "invalid_partition_name")


def test_a_run_that_failed_is_told_of(dagster: Dagster, webhook: Webhook) -> None:
    ended = dagster.run("validate", run_config={"ops": {"validate_groups": {"config": {"groups": ["nothing"]}}}})
    failed_runs(
        dg.build_run_status_sensor_context(
            "failed_runs",
            ended.get_run_failure_event(),
            dagster.instance,
            ended.dagster_run,
            resources={"system": dagster.system},
        ).for_run_failure()
    )
    assert ended.run_id in arrived(dagster.world, webhook, "run_failed")

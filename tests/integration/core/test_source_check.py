"""Notifications that never came: found at the sources, counted once, told of, made up for."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
from command_line import Command
from command_line import command as command
from fakes import answer, two_part_config
from scenes import fill_sources
from world import World

from sync_orchestrator.config import Config
from sync_orchestrator.core.notifications import alerts
from sync_orchestrator.core.operations.events import discard_events
from sync_orchestrator.core.validation import source_check
from sync_orchestrator.core.validation.archive_comparison import ArchiveComparison, compare_with_archive
from sync_orchestrator.core.validation.source_check import (
    SourceCheckResult,
    check_sources,
    checks_by_itself,
    confirmation_pause_seconds,
    groups_due,
)


@pytest.fixture
def synced(world: World) -> World:
    return after_its_first_full_sync(world)


def after_its_first_full_sync(world: World) -> World:
    fill_sources(world, 20)
    world.run_full_sync(patience=30)
    world.advance_clock(1)
    return world


def check(world: World, group: str = "A", **options: Any) -> SourceCheckResult:
    return asyncio.run(check_sources(world.context, world.entity, group, **options))


def found(result: SourceCheckResult) -> list[tuple[str, str, str]]:
    return [(lost.part, lost.key, lost.kind) for lost in result.lost]


def made_up(world: World) -> None:
    """Works off what a check recorded; what looks gone is asked for twice."""
    world.run_drain()
    world.advance_clock(11)
    world.run_drain()


def open_alerts(world: World) -> list[tuple[str, str, int]]:
    return [
        (row.kind, row.cause, row.n)
        for row in world.query("SELECT kind, cause, n FROM sync.alerts WHERE resolved_at IS NULL ORDER BY cause")
    ]


# What is found and made up for ----------------------------------------------------------------------------------------


def test_nothing_was_lost(synced: World) -> None:
    synced.put_record("k001", name="told")
    synced.run_drain()
    result = check(synced)
    assert (result.verdict, result.lost, result.listed) == ("in_sync", [], {"shop": 20, "stock": 20})
    assert synced.read_conservation().states["pending"] == 0


@pytest.mark.slow
def test_a_change_that_nobody_told_of_is_made_up_for(synced: World) -> None:
    synced.shop.put("k001", {**synced.shop.rows["k001"].data, "name": "silent"}, group="A")
    result = check(synced)
    assert (result.verdict, found(result), result.repaired) == ("lost", [("shop", "k001", "newer")], 1)
    made_up(synced)
    assert synced.mirror_by_key() == synced.expected_mirror()
    assert [(row.origin, row.state) for row in synced.query("SELECT origin, state FROM sync.event_history")] == [
        ("audit", "done")
    ]
    assert check(synced).verdict == "in_sync"


def test_a_record_that_nobody_told_of_is_made_up_for(synced: World) -> None:
    synced.put_record("new", notify=False)
    assert found(check(synced)) == [("shop", "new", "missing")]  # its other part comes with it
    made_up(synced)
    assert synced.mirror_by_key() == synced.expected_mirror()
    assert check(synced).verdict == "in_sync"


def test_another_part_that_changed_or_came_in_silence_is_made_up_for(synced: World) -> None:
    stock = synced.stock.rows.pop("k002")
    synced.post_event("stock", "k002", "delete", synced.stock.remove("k002"))
    synced.run_drain()
    synced.stock.put("k002", {**stock.data, "count": 9})
    synced.stock.put("k003", {**synced.stock.rows["k003"].data, "count": 8})
    assert found(check(synced)) == [("stock", "k002", "newer"), ("stock", "k003", "newer")]
    made_up(synced)
    assert synced.mirror_by_key() == synced.expected_mirror()


def test_what_is_gone_in_silence_is_asked_for_and_deleted(synced: World) -> None:
    synced.shop.remove("k004")
    version = synced.query("SELECT version FROM sync.parts WHERE key = 'k004' AND part = 'shop'")[0].version
    assert found(check(synced)) == [("shop", "k004", "gone")]
    made_up(synced)
    assert synced.mirror_by_key() == synced.expected_mirror()
    tombstone = synced.query("SELECT deleted, version FROM sync.parts WHERE key = 'k004' AND part = 'shop'")[0]
    assert (tombstone.deleted, tombstone.version) == (True, version)
    assert check(synced).verdict == "in_sync"
    synced.put_record("k004", name="back")
    synced.run_drain()
    assert synced.mirror_by_key()["k004"]["name"] == "back"


def test_what_comes_back_before_it_is_deleted_stays(synced: World) -> None:
    row = synced.shop.rows["k004"]
    synced.shop.remove("k004")
    check(synced)
    synced.shop.rows["k004"] = row
    synced.run_drain()
    assert "k004" in synced.mirror_by_key()


def test_a_move_to_another_group_is_no_deletion(synced: World) -> None:
    fill_sources(synced, 1, "B", "b")
    synced.run_full_sync("B")
    synced.put_record("k005", group="B", notify=False)
    assert found(check(synced)) == [("shop", "k005", "newer")]
    assert found(check(synced, "B")) == [("stock", "k005", "newer")]
    made_up(synced)
    assert synced.mirror_by_key() == synced.expected_mirror()


def test_a_source_that_is_listed_whole_gives_whole_events(synced: World) -> None:
    """It cannot be read by key, so what it shows is taken over as it stands."""
    synced.shop.can_read = False
    world = World(synced.engine, synced.config, synced.shop, synced.stock, synced.erp, synced.clock_offset_seconds)
    synced.close()
    world.put_record("new", notify=False)
    world.shop.put("k001", {**world.shop.rows["k001"].data, "name": "silent"}, group="A")
    world.shop.remove("k002")
    result = check(world)
    assert found(result) == [("shop", "k001", "newer"), ("shop", "k002", "gone"), ("shop", "new", "missing")]
    assert result.repaired == 2
    made_up(world)
    assert (world.mirror_by_key()["k001"]["name"], "new" in world.mirror_by_key(), "k002" in world.mirror_by_key()) == (
        "silent",
        True,
        True,
    )
    world.run_full_sync()
    assert world.mirror_by_key() == world.expected_mirror()
    world.close()


# What is not judged ---------------------------------------------------------------------------------------------------


def test_what_is_on_its_way_is_not_lost(synced: World) -> None:
    synced.put_record("k001", name="on its way")
    synced.delete_record("k002")
    result = check(synced)
    assert (result.verdict, result.on_the_way, result.repaired) == ("in_sync", 3, 0)


def test_the_pause_leaves_time_for_a_source_that_is_asked(make_world: Callable[..., World]) -> None:
    part = two_part_config().entities["item"].parts["stock"].model_dump(exclude_defaults=True)
    parts = two_part_config().entities["item"].model_dump(exclude_defaults=True)["parts"]
    polled = {**part, "changes": {"path": "/changes"}, "poll_every": 40}
    world = make_world(entity={"parts": {**parts, "stock": polled}})
    assert confirmation_pause_seconds(world.entity) == 80


def test_parts_in_files_are_not_checked_by_themselves(world: World) -> None:
    assert checks_by_itself(world.entity)
    files = Config.model_validate(
        {
            **two_part_config().model_dump(exclude_defaults=True),
            "sources": {"shop": {"base_url": "http://127.0.0.1:1"}, "stock": {"kind": "files", "folder": "/tmp"}},
            "entities": {
                "item": {
                    **two_part_config().entities["item"].model_dump(exclude_defaults=True),
                    "parts": {
                        "shop": two_part_config().entities["item"].parts["shop"].model_dump(exclude_defaults=True),
                        "stock": {"key": "key", "version": {"path": "v", "kind": "number"}, "files": {"glob": "*.csv"}},
                    },
                }
            },
        }
    )
    assert not checks_by_itself(replace(world.entity, settings=files.entities["item"]))


def test_what_comes_within_the_pause_is_not_lost(synced: World, monkeypatch: pytest.MonkeyPatch) -> None:
    row = synced.shop.put("k001", {**synced.shop.rows["k001"].data, "name": "late"}, group="A")
    synced.put_record("new", notify=False)
    compare, looks = compare_with_archive, count(1)

    def told_before_second_look(*arguments: Any) -> ArchiveComparison:
        if next(looks) == 2:
            synced.post_event("shop", "k001", "update", row.version, row.data)
        return compare(*arguments)

    monkeypatch.setattr(source_check, "compare_with_archive", told_before_second_look)
    assert found(check(synced)) == [("shop", "new", "missing")]


def test_a_change_while_the_source_is_listed_is_not_lost(synced: World) -> None:
    pages = synced.shop.keys

    def late(group: str):  # type: ignore[no-untyped-def]
        async def stream() -> AsyncIterator[Any]:
            async for page in pages(group):
                yield page
            synced.put_record("k001", name="live")
            synced.put_record("new")
            synced.delete_record("k002")
            await asyncio.to_thread(synced.run_drain)

        return stream()

    synced.shop.keys = late  # type: ignore[method-assign]
    assert check(synced).lost == []


def test_before_the_first_full_sync_nothing_is_checked(world: World) -> None:
    world.put_record("a", notify=False)
    assert (check(world).verdict, check(world).reason) == ("not_checked", "its first full sync has not completed")


def test_a_source_that_is_down_is_not_checked_and_nothing_is_called_lost(synced: World) -> None:
    synced.stock.down = True
    synced.put_record("new", notify=False)
    result = check(synced)
    assert (result.verdict, result.reason) == (
        "not_checked",
        "its sources gave no usable response: the source does not answer",
    )
    assert not synced.query("SELECT FROM sync.lost_notifications")


def test_a_source_in_a_new_epoch_is_a_full_syncs_affair(synced: World) -> None:
    synced.query("UPDATE sync.systems SET epoch = epoch + 1 WHERE name = 'shop'")
    synced.shop.put("k001", {**synced.shop.rows["k001"].data, "name": "restored"}, group="A")
    assert check(synced).lost == []


def test_a_listing_that_lost_much_deletes_nothing(synced: World) -> None:
    for number in range(10):
        synced.shop.remove(f"k{number:03}")
    result = check(synced)
    assert (result.verdict, result.lost) == ("not_checked", [])
    assert result.reason == "10 of 20 records would be deleted, more than the cap of 5"
    assert open_alerts(synced) == [("delete_cap", "item A: sources", 1)]
    made_up(synced)
    assert len(synced.mirror_by_key()) == 20
    fill_sources(synced, 20)
    check(synced)
    assert ("delete_cap", "item A: sources", 1) not in open_alerts(synced)


# Counting and telling -------------------------------------------------------------------------------------------------


def test_each_is_counted_once_by_source_and_day(synced: World, command: Command) -> None:
    synced.put_record("new", notify=False)
    synced.stock.put("k001", {**synced.stock.rows["k001"].data, "count": 7})
    assert (check(synced, repair="off").new, check(synced, repair="off").new) == (2, 0)
    told = json.loads(command("status", "--json").stdout)["lost_notifications"]
    assert [(row["entity"], row["source"], row["count"]) for row in told] == [("item", "shop", 1), ("item", "stock", 1)]
    assert "lost notifications" in command("status").stdout
    synced.stock.put("k001", {**synced.stock.rows["k001"].data, "count": 8})
    assert check(synced, repair="off").new == 1  # it changed again, and again nobody told


def test_one_alert_a_source_until_nothing_is_lost_any_more(synced: World) -> None:
    for number in range(3):
        synced.put_record(f"new{number}", notify=False)
    check(synced)
    assert (check(synced).verdict, check(synced).reason) == (
        "lost",
        "3 found earlier are not known to be made up for yet",
    )
    assert open_alerts(synced) == [("lost_notifications", "item shop", 3)]
    made_up(synced)
    check(synced)
    assert open_alerts(synced) == []


@pytest.mark.parametrize("repair", ["ask", "off"])
def test_unless_asked_to_it_makes_up_for_nothing(make_world: Callable[..., World], repair: str) -> None:
    world = after_its_first_full_sync(make_world(entity={"source_check": {"confirm_after": 0, "repair": repair}}))
    world.put_record("new", notify=False)
    result = check(world)
    assert (result.verdict, result.repaired, world.read_conservation().received) == ("lost", 0, 0)
    assert open_alerts(world) == [("lost_notifications", "item shop", 1)]
    assert check(world, repair="auto").repaired == 1


def test_the_same_finding_is_one_event_and_a_person_may_end_it(synced: World) -> None:
    synced.put_record("new", notify=False)
    synced.erp.before = lambda verb, key: answer(422)
    assert [check(synced).repaired, check(synced).repaired] == [1, 0]
    synced.run_drain()
    seqs = [row.seq for row in synced.query("SELECT seq FROM sync.events WHERE state = 'dead'")]
    assert discard_events(synced.engine, seqs, "not wanted there") == 1
    assert check(synced).verdict == "in_sync"


def test_a_group_is_due_again_at_once_only_where_something_is_under_repair(synced: World) -> None:
    def due() -> list[str]:
        with synced.engine.begin() as connection:
            return groups_due(connection, "item", 3600, 10)

    assert due() == ["A"]
    check(synced)
    assert due() == []
    synced.put_record("new", notify=False)
    check(synced)
    assert due() == ["A"]
    check(synced)
    assert due() == []
    synced.advance_clock(3601)
    assert due() == ["A"]


# From the shell -------------------------------------------------------------------------------------------------------


def test_verify_sources_tells_by_exit_status(synced: World, command: Command) -> None:
    assert command("validate", "--sources").exit_code == 0
    synced.put_record("new", notify=False)
    result = command("validate", "item", "--sources", "--repair", "off", "--json")
    assert (result.exit_code, json.loads(result.stdout)["lost"][0]["kind"]) == (1, "missing")
    assert "missing" in command("validate", "--sources").stdout
    command("drain")
    assert command("validate", "--sources", "--group", "A").exit_code == 0
    synced.shop.down = True
    assert command("validate", "--sources").exit_code == 2


def test_groups_checked_beside_each_other_do_not_end_each_others_alert(
    synced: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group that found nothing ends no alert that another group raises while it decides."""
    waiting = """SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database
                 WHERE NOT granted AND locktype = 'advisory' AND datname = current_database()"""
    fill_sources(synced, 1, "B", "b")
    synced.run_full_sync("B")
    synced.advance_clock(1)
    synced.shop.put("k001", {**synced.shop.rows["k001"].data, "name": "silent"}, group="A")
    decides, goes_on = threading.Event(), threading.Event()

    def late(*told: Any) -> None:
        if told[1] == "lost_notifications" and not decides.is_set():
            decides.set()
            assert goes_on.wait(60)
        resolve(*told)

    resolve = alerts.resolve_alert
    monkeypatch.setattr(alerts, "resolve_alert", late)
    with ThreadPoolExecutor(2) as pool:
        empty = pool.submit(check, synced, "B")
        assert decides.wait(60)
        losing = pool.submit(check, synced, "A")
        while not losing.done() and not synced.query(waiting):
            assert not empty.done()
        goes_on.set()
        assert (empty.result().verdict, losing.result().verdict) == ("in_sync", "lost")
    assert open_alerts(synced) == [("lost_notifications", "item shop", 1)]

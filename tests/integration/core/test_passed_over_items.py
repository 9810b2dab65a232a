"""Items that are no records (``only_when``): passed over without an alarm on every path, and gone where they were ones.

Of three adapters the full sync and the check of the sources; of an API also polls, reads and notifications.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from captured_sources import (
    CapturedSource,
    begun,
    captured_config,
    eventually,
    reading,
    received,
    recorded,
    wheel_server,
    wheel_shop,
    wheel_source,
)
from captured_sources import _quick as _quick
from fakes import FakeThirdParty, two_part_config
from opposite_systems import Story
from sqlalchemy import Engine

from sync_orchestrator import composition
from sync_orchestrator.adapters.factory import build_sources
from sync_orchestrator.cli.overview import list_notes
from sync_orchestrator.conformance.live_check import check_live
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.plan import plan_group
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.errors import DeletionsHeld

__all__ = ["wheel_server", "wheel_shop", "wheel_source"]

NO_RECORDS = """
SELECT key FROM sync.records WHERE entity = 'stock' AND key NOT IN ('A-1', 'A-2')
"""


@pytest.fixture
async def story(engine: Engine) -> AsyncIterator[Story]:
    """Two items that are records, one without a key, and one of another kind with a key."""
    story = Story(
        engine,
        entities={
            "stock": {
                "parts": {"erp": {"only_when": "sku != `null` && kind != 'service'", "poll_every": 0.05}},
                "validation": {"confirm_after": 0},
                "source_check": {"confirm_after": 0, "contents": 100},
                "absent_after": 0,
            }
        },
    )
    for number in (1, 2):
        story.platform.offer(f"A-{number}", "a thing")
        story.erp.stock(number, f"A-{number}", number)
    story.erp.stock(3, None, 3)
    story.erp.stock(4, "S-4", 4, kind="service")
    story.erp.items[3]["warehouse"] = story.erp.items[4]["warehouse"] = "A"
    await story.sync("stock")
    yield story
    await story.close()


def keys(story: Story) -> list[str]:
    return [
        row.key
        for row in story.query("SELECT key FROM sync.records WHERE entity = 'stock' AND NOT deleted ORDER BY key")
    ]


def is_quiet(story: Story) -> bool:
    """No record of an item that is none, no event that waits, and no alert but that of a check that made up for it."""
    waiting = story.query("SELECT key FROM sync.events WHERE state IN ('waiting', 'dead', 'pending')")
    alerts = story.query("SELECT kind FROM sync.alerts WHERE resolved_at IS NULL AND kind <> 'lost_notifications'")
    return alerts == [] and story.query(NO_RECORDS) == [] and waiting == []


async def test_a_full_sync_passes_them_over(story: Story) -> None:
    assert (keys(story), is_quiet(story)) == (["A-1", "A-2"], True)
    plan = await plan_group(story.context, story.context.entities["stock"], "A")
    assert (plan.listed, plan.counts.get("unusable")) == (2, None)


async def test_a_poll_passes_them_over(story: Story) -> None:
    story.erp.change(3, on_hand=8)
    story.erp.change(4, on_hand=9)
    story.erp.change(1, on_hand=10)
    await story.poll("stock", "erp")
    assert (keys(story), is_quiet(story)) == (["A-1", "A-2"], True)
    assert story.platform.products["A-1"]["stock"] == 10
    assert [row.key for row in story.query("SELECT DISTINCT key FROM sync.event_history")] == ["A-1"]


async def test_a_notification_of_one_is_finished_after_a_read(story: Story) -> None:
    """It is not taken for a record that the source does not show yet, which would wait and alert."""
    await story.post(story.erp.change(4, on_hand=9), "d1")
    await story.drain()
    assert (keys(story), is_quiet(story)) == (["A-1", "A-2"], True)
    (event,) = story.query("SELECT state, reason FROM sync.event_history WHERE key = 'S-4'")
    assert (event.state, "only_when" in event.reason) == ("superseded", True)


@pytest.mark.parametrize("is_readable", [True, False])
async def test_an_event_with_data_is_judged_by_its_data(story: Story, is_readable: bool) -> None:
    context = story.context
    if not is_readable:
        context = without_reads(context)
    data = {"number": 4, "sku": "S-4", "kind": "service", "warehouse": "A", "on_hand": 1, "changed": 50}
    known = {**data, "number": 1, "sku": "A-1", "changed": 51}
    record_events(
        story.engine,
        [
            ChangeEvent("erp", "e1", "stock", "S-4", "update", 50, data, "A"),
            ChangeEvent("erp", "e2", "stock", "A-1", "update", 51, known, "A"),
        ],
    )
    if is_readable:
        story.erp.items[1] |= {"kind": "service", "changed": 51}
    await drain(context, linger=0, most_seconds=20)
    assert (keys(story), is_quiet(story)) == (["A-2"], True)


async def test_an_event_that_contradicts_an_earlier_one_of_its_batch_ends_the_record(story: Story) -> None:
    context = without_reads(story.context)
    data = {"number": 9, "sku": "A-9", "warehouse": "A", "on_hand": 1, "changed": 50}
    record_events(
        story.engine,
        [
            ChangeEvent("erp", "e1", "stock", "A-9", "create", 50, data, "A"),
            ChangeEvent("erp", "e2", "stock", "A-9", "update", 51, {**data, "kind": "service", "changed": 51}, "A"),
        ],
    )
    await drain(context, linger=0, most_seconds=20)
    assert keys(story) == ["A-1", "A-2"]


def without_reads(context: Context) -> Context:
    """The same, as if the source could not be read by key."""
    entity = context.entities["stock"]
    changed = replace(entity, rules=replace(entity.rules, readable=frozenset()))
    return Context(
        context.engine, context.config, {**context.entities, "stock": changed}, call_limits=context.call_limits
    )


async def test_a_condition_that_says_nothing_makes_the_item_unusable(story: Story) -> None:
    """It is not passed over silently: nobody knows whether it is a record."""
    story.config.entities["stock"]
    other = Story(story.engine, entities={"stock": {"parts": {"erp": {"only_when": "sku"}}}})
    try:
        other.erp.stock(1, "A-1", 1)
        await other.sync("stock")
        assert any("cannot be used" in title for title in other.alerts())
    finally:
        await other.close()


# Records that stop being ones ---------------------------------------------------------------------------------------

WAYS: dict[str, Callable[[Story], Any]] = {
    "full sync": lambda story: story.sync("stock"),
    "poll": lambda story: story.poll("stock", "erp"),
    "notification": lambda story: notify(story),
    "source check": lambda story: check(story),
}


async def notify(story: Story) -> None:
    await story.post(story.erp.items[1], "d1")
    await story.drain()


async def check(story: Story) -> None:
    await check_sources(story.context, story.context.entities["stock"], "A", repair="auto")
    await story.drain()


@pytest.mark.parametrize("way", WAYS)
async def test_a_record_that_is_none_any_more_is_gone(story: Story, way: str) -> None:
    story.erp.change(1, kind="service")
    await WAYS[way](story)
    assert (keys(story), is_quiet(story)) == (["A-2"], True)
    story.erp.change(1, kind="good", on_hand=12)
    await WAYS[way](story)
    assert (keys(story), story.platform.products["A-1"]["stock"]) == (["A-1", "A-2"], 12)


async def test_how_many_may_go_is_limited(story: Story) -> None:
    for number in range(10, 30):
        story.erp.stock(number, f"B-{number}", 1)
    await story.sync("stock")
    for number in range(10, 30):
        story.erp.change(number, kind="service")
    with pytest.raises(DeletionsHeld):
        await story.sync("stock")
    assert len(keys(story)) == 22
    await story.poll("stock", "erp")
    assert len(keys(story)) >= 17, "a poll stays within the cap, too"
    assert any("deletion" in title or "cap" in title for title in story.alerts())


async def test_a_count_has_to_count_what_is_selected(story: Story) -> None:
    assert any(
        "parts.erp.count: has to count only what 'only_when' selects" in note for note in list_notes(story.config)
    )
    story.erp.items.pop(4)  # which the server's count knows nothing of
    report = await check_live(story.config)
    assert [
        step.detail for step in report.steps if (step.entity, step.system, step.what) == ("stock", "erp", "count")
    ] == ["2 records in 'A'"]


# Captured changes ---------------------------------------------------------------------------------------------------


def test_captured_rows_lead_to_a_read_where_they_are_no_records(wheel_shop: CapturedSource, engine: Engine) -> None:
    """What was a record before is gone then, and what was none is passed over."""
    config = captured_config(wheel_shop, part={"only_when": "name != 'service'"})
    begun(engine, config, wheel_shop)
    wheel_shop.execute("INSERT INTO items VALUES ('a', 'A', now(), 'good'), ('b', 'A', now(), 'service')")
    wheel_shop.execute("INSERT INTO items VALUES ('c', 'A', now(), 'good')")
    with reading(engine, config):
        eventually(lambda: received(engine) == 3, "three events")
    assert {row.key: row.thin for row in recorded(engine)} == {"a": False, "b": True, "c": False}
    context = composition.build_context(engine, config, build_sources(config), {"item": FakeThirdParty()})
    asyncio.run(drain(context, linger=0, most_seconds=20))
    wheel_shop.execute("UPDATE items SET name = 'service', v = now() WHERE sku = 'a'")
    wheel_shop.execute("DELETE FROM items WHERE sku = 'b'")
    with reading(engine, config):
        eventually(lambda: received(engine) == 5, "two more events")
    asyncio.run(drain(context, linger=0, most_seconds=20))
    asyncio.run(context.close())
    with engine.begin() as connection:
        rows = run(connection, "SELECT key, deleted FROM sync.records ORDER BY key")
        assert {row.key: row.deleted for row in rows if row.key != "b"} == {"a": True, "c": False}
        assert [row.kind for row in run(connection, "SELECT kind FROM sync.alerts WHERE resolved_at IS NULL")] == []


# Other adapters -----------------------------------------------------------------------------------------------------


def sql_part(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Callable[[list[tuple[Any, ...]]], None]]:
    path = folder / "shop.db"

    def write(rows: list[tuple[Any, ...]]) -> None:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("DROP TABLE IF EXISTS items")
            connection.execute(
                "CREATE TABLE items (id INTEGER PRIMARY KEY, sku TEXT, store TEXT, v INTEGER, kind TEXT)"
            )
            connection.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?)", rows)

    return {"kind": "sql", "url": f"sqlite:///{path}"}, {"sql": {"table": "items"}}, write


def file_part(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Callable[[list[tuple[Any, ...]]], None]]:
    def write(rows: list[tuple[Any, ...]]) -> None:
        lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
        (folder / "items.csv").write_text("\n".join(["id,sku,store,v,kind", *lines]) + "\n")

    return {"kind": "files", "folder": str(folder)}, {"files": {"glob": "items.csv"}}, write


ROWS = [(1, "a", "A", 1, "good"), (2, "b", "A", 2, "good"), (3, None, None, 3, "good"), (4, "d", None, 4, "service")]


@pytest.mark.parametrize("kind", [sql_part, file_part])
async def test_databases_and_files_pass_them_over(engine: Engine, tmp_path: Path, kind: Any) -> None:
    system, way, write = kind(tmp_path)
    write(ROWS)
    whole = two_part_config().model_dump(mode="json", exclude_defaults=True)
    only = "sku != `null` && sku != '' && kind == 'good'"
    part = {"key": "sku", "group": "store", "version": {"path": "v", "kind": "number"}, "only_when": only, **way}
    whole["sources"] = {"shop": system}
    whole["entities"]["item"] |= {"parts": {"shop": part}, "mapping": {"code": "key", "store": "group"}}
    config = type(two_part_config()).model_validate(whole)
    erp = FakeThirdParty()
    context = composition.build_context(engine, config, build_sources(config), {"item": erp})
    entity = context.entities["item"]
    nowhere = await entity.owner.ungrouped()
    assert nowhere is None or nowhere.count == 0
    await full_sync(context, entity, "A", patience=1)
    assert sorted(record["code"] for record in erp.store.values()) == ["a", "b"]
    write([(1, "a", "A", 1, "good"), (2, "b", "A", 5, "service"), *ROWS[2:]])
    result = await check_sources(context, entity, "A", repair="auto")
    assert [lost.key for lost in result.lost] == ["b"]
    await drain(context, linger=0, most_seconds=20)
    await full_sync(context, entity, "A", patience=1)
    assert sorted(record["code"] for record in erp.store.values()) == ["a"]
    with engine.begin() as connection:
        alerts = run(connection, "SELECT kind FROM sync.alerts WHERE resolved_at IS NULL")
        assert {row.kind for row in alerts} == {"lost_notifications"}, "of the check, which made up for it"
    await context.close()

"""Records that only others make (``creates: never``) or remove (``deletes: never``) at the third party."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from opposite_systems import Story
from sqlalchemy import Engine

from sync_orchestrator.conformance import run_conformance
from sync_orchestrator.core.full_sync.plan import plan_group
from sync_orchestrator.core.full_sync.progress import group_left_over
from sync_orchestrator.core.operations.maintenance import alert_stuck_waiting
from sync_orchestrator.core.push.absent_records import ABSENT


def make_story(engine: Engine, **third_party: Any) -> Story:
    changes: dict[str, Any] = {"third_party": third_party, "source_check": {"confirm_after": 0}}
    changes["validation"] = {"confirm_after": 0}
    return Story(engine, entities={"stock": changes}, third_parties={"platform": {"search_lag": 0}})


@pytest.fixture
async def story(engine: Engine) -> AsyncIterator[Story]:
    story = make_story(engine)
    story.platform.offer("A-1", "a lamp")
    story.erp.stock(1, "A-1", 5)
    story.erp.stock(2, "A-2", 7)
    yield story
    await story.close()


def waiting(story: Story) -> list[str]:
    rows = story.query(
        "SELECT key FROM sync.records WHERE out_of_sync AND stopped IS NULL AND waiting_since IS NOT NULL "
        "AND attempts = 0 AND error = %(error)s ORDER BY key",
        error=ABSENT,
    )
    return [row.key for row in rows]


def make_due(story: Story) -> None:
    story.query("UPDATE sync.records SET due_at = sync.clock() WHERE out_of_sync RETURNING key")


async def test_a_record_that_is_not_there_waits_and_is_updated_once_it_is(story: Story) -> None:
    await story.sync("stock")
    assert waiting(story) == ["A-2"]
    assert set(story.platform.products) == {"A-1"}
    assert story.query("SELECT breaker_failures.key FROM sync.breaker_failures") == []
    story.platform.offer("A-2", "a chair")
    make_due(story)
    await story.drain()
    assert (waiting(story), story.platform.products["A-2"]["stock"]) == ([], 7)


async def test_a_full_sync_is_not_held_up_and_tries_again(story: Story) -> None:
    stepped = await story.sync("stock")
    assert (stepped.open, stepped.acknowledged) == (0, 1)
    with story.engine.begin() as connection:
        assert group_left_over(connection, story.context.entities["stock"], "A") is None
    story.platform.offer("A-2", "a chair")
    await story.sync("stock")
    assert story.platform.products["A-2"]["stock"] == 7


async def test_an_operator_is_told_after_long_and_the_alert_ends(story: Story) -> None:
    await story.sync("stock")
    with story.engine.begin() as connection:
        alert_stuck_waiting(connection, 3600)
    assert story.alerts() == []
    story.query("UPDATE sync.records SET waiting_since = sync.clock() - interval '2 hours' RETURNING key")
    with story.engine.begin() as connection:
        alert_stuck_waiting(connection, 3600)
    assert story.alerts() == ["stock: records wait, since the third party does not have them (creates: never)"]


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_nothing_is_made_by_an_update(engine: Engine, method: str) -> None:
    """A PUT under our ids makes what is missing: a read goes before it."""
    story = make_story(engine, update={"method": method, "path": "/products/{{ key }}"})
    try:
        story.platform.offer("A-1", "a lamp")
        story.erp.stock(1, "A-1", 5)
        story.erp.stock(2, "A-2", 7)
        await story.sync("stock")
        assert (set(story.platform.products), waiting(story)) == ({"A-1"}, ["A-2"])
        assert story.platform.products["A-1"]["stock"] == 5
        del story.platform.products["A-1"]
        await story.post(story.erp.book_receipt(1, 1), "d1")
        await story.drain()
        assert (set(story.platform.products), waiting(story)) == (set(), ["A-1", "A-2"])
    finally:
        await story.close()


async def test_with_their_ids_the_record_is_found_by_its_key(engine: Engine) -> None:
    story = make_story(engine, **their_ids())
    try:
        story.platform.offer("A-1", "a lamp")
        story.erp.stock(1, "A-1", 5)
        story.erp.stock(2, "A-2", 7)
        await story.sync("stock")
        assert (story.platform.products["A-1"]["stock"], waiting(story)) == (5, ["A-2"])
        del story.platform.products["A-1"]
        await story.post(story.erp.book_receipt(1, 1), "d1")
        await story.drain()
        assert waiting(story) == ["A-1", "A-2"]
        story.platform.offer("A-1", "a lamp again")
        make_due(story)
        await story.drain()
        assert (story.platform.products["A-1"]["stock"], waiting(story)) == (6, ["A-2"])
    finally:
        await story.close()


def their_ids() -> dict[str, Any]:
    return {
        "ids": "theirs",
        "id": "sku",
        "update": {"method": "PATCH", "path": "/products/{{ id }}", "body": {"stock": "{{ payload.stock }}"}},
        "read": {"path": "/products/{{ id }}"},
        "lookup": {"path": "/products", "params": {"store": "A", "sku": "{{ key }}"}, "items": "products"},
    }


# Deletes ------------------------------------------------------------------------------------------------------------


async def test_a_deletion_ends_as_not_sent_and_what_stays_there_is_no_drift(story: Story) -> None:
    story.platform.offer("A-2", "a chair")
    await story.sync("stock")
    del story.erp.items[2]
    await story.sync("stock")
    assert set(story.platform.products) == {"A-1", "A-2"}
    (attempt,) = story.query(
        "SELECT step, outcome, detail FROM sync.push_attempts WHERE key = 'A-2' ORDER BY at DESC LIMIT 1"
    )
    assert tuple(attempt) == ("not sent", "not sent", "deletes: never")
    assert story.query("SELECT key FROM sync.records WHERE entity = 'stock' AND out_of_sync") == []
    tallies = {
        row.outcome: row.n for row in story.query("SELECT outcome, sum(n)::int AS n FROM sync.push_tallies GROUP BY 1")
    }
    assert tallies["not sent"] == 1
    seen = await story.validate("stock")
    assert (seen.verdict, seen.unmanaged) == ("in_sync", 1)
    story.erp.stock(4, "A-2", 3)  # and it comes back
    await story.poll("stock", "erp")
    assert story.platform.products["A-2"]["stock"] == 3


# Validation, plan, conformance --------------------------------------------------------------------------------------


async def test_a_record_that_others_removed_is_no_drift_and_waits(story: Story) -> None:
    await story.sync("stock")
    assert (await story.validate("stock")).verdict == "in_sync"
    del story.platform.products["A-1"]
    seen = await story.validate("stock")
    assert (seen.verdict, len(seen.drift)) == ("in_sync", 0)
    assert "1 not there, where only others make records (creates: never)" in (seen.reason or "")
    await story.drain()
    assert waiting(story) == ["A-1", "A-2"]
    assert story.alerts() == []
    story.platform.offer("A-1", "a lamp again")
    make_due(story)
    await story.drain()
    assert story.platform.products["A-1"]["stock"] == 5
    assert (await story.validate("stock")).verdict == "in_sync"


async def test_an_altered_record_is_drift_as_ever(story: Story) -> None:
    await story.sync("stock")
    story.platform.products["A-1"]["stock"] = 99
    assert (await story.validate("stock")).verdict == "drift"
    await story.drain()
    assert story.platform.products["A-1"]["stock"] == 5


async def test_a_plan_says_what_waits_and_what_stays(story: Story) -> None:
    entity = story.context.entities["stock"]
    first = await plan_group(story.context, entity, "A")
    assert (first.counts.get("absent"), first.counts.get("create"), first.counts.get("update")) == (1, None, 1)
    story.platform.offer("A-2", "a chair")
    await story.sync("stock")
    del story.erp.items[2]
    second = await plan_group(story.context, entity, "A")
    assert (second.counts.get("not_sent"), second.counts.get("delete")) == (1, None)


async def test_conformance_makes_no_records_there(story: Story) -> None:
    report = await run_conformance(story.config, "stock", group="A")
    assert {ending.outcome for ending in report.endings} == {"skipped"}
    assert "'creates: never'" in report.endings[0].came
    assert story.platform.writes == 0

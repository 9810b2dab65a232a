"""The cookbook page about an ERP beside the platform, on two HTTP servers: orders out, stock back, no ping-pong."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import pytest
from cookbook_pages import fences
from opposite_systems import Story
from sqlalchemy import Engine


@pytest.fixture
async def story(engine: Engine) -> AsyncIterator[Story]:
    story = Story(engine)
    for sku, title in (("A-1", "a lamp"), ("A-2", "a chair")):
        story.platform.offer(sku, title)
    story.platform.sell("1001", "A-1", 2)
    story.erp.stock(1, "A-1", 5)
    story.erp.stock(2, "A-2", 7)
    story.erp.stock(3, None, 99)
    for entity in ("order", "stock"):
        await story.sync(entity)
    yield story
    await story.close()


async def test_orders_go_to_the_erp_and_receipts_come_back(story: Story) -> None:
    erp, platform = story.erp, story.platform
    assert [(order["ref"], order["sku"], order["quantity"]) for order in erp.sales_orders.values()] == [
        ("1001", "A-1", 2)
    ]
    assert {sku: product["stock"] for sku, product in platform.products.items()} == {"A-1": 5, "A-2": 7}
    assert platform.products["A-1"]["title"] == "a lamp", "only the stock is written"

    assert (await story.post(erp.book_receipt(1, 3), "delivery-1"))["accepted"] == 1
    await story.drain()
    assert platform.products["A-1"]["stock"] == 8

    erp.book_receipt(2, 1)  # and its webhook gets lost
    await story.poll("stock", "erp")
    assert platform.products["A-2"]["stock"] == 8

    platform.sell("1002", "A-2", 1)
    await story.poll("order", "platform")
    assert sorted(order["ref"] for order in erp.sales_orders.values()) == ["1001", "1002"]
    assert story.alerts() == []


async def test_items_without_our_key_are_passed_over(story: Story) -> None:
    assert await story.post(story.erp.book_receipt(3, 1), "delivery-1") == {
        "accepted": 0,
        "duplicates": 0,
        "passed_over": 1,
    }
    await story.poll("stock", "erp")
    await story.sync("stock")
    assert story.alerts() == []
    assert [row.key for row in story.query("SELECT key FROM sync.records WHERE entity = 'stock' ORDER BY key")] == [
        "A-1",
        "A-2",
    ]


async def test_at_rest_nothing_is_written(story: Story) -> None:
    await story.post(story.erp.book_receipt(1, 3), "delivery-1")
    await story.drain()
    before = story.erp.writes, story.platform.writes
    for _ in range(3):
        await story.poll("stock", "erp")
        await story.poll("order", "platform")
        for entity in ("order", "stock"):
            await story.sync(entity)
            assert (await story.validate(entity)).verdict == "in_sync"
        await story.drain()
    assert (story.erp.writes, story.platform.writes) == before
    assert story.erp.logins == 1


async def test_the_calls_that_the_page_shows_are_made(story: Story) -> None:
    await story.poll("stock", "erp")
    (shown,) = [text for language, text in fences("erp-story") if language == "text"]
    made = [
        f"{method} {path}" + ("?" + "&".join(f"{name}={value}" for name, value in query.items()) if query else "")
        for system in (story.erp, story.platform)
        for method, path, query in system.server.seen
    ]
    for line in shown.splitlines():
        wanted = "".join(
            ".*" if piece == "…" or piece.startswith("{") else re.escape(piece)
            for piece in re.split(r"(\{[^}]*\}|…)", line)
        )
        assert any(re.fullmatch(wanted, call) for call in made), (line, sorted(set(made)))


async def test_receipts_go_as_documents_of_their_own(engine: Engine) -> None:
    story = Story(engine, 2)
    try:
        story.erp.write_receipt("R-1", "A-1", 3)
        story.erp.write_receipt("R-2", None, 4)
        story.erp.write_receipt("R-3", "A-2", 5, status="draft")
        await story.sync("receipt")
        assert set(story.platform.receipts) == {"R-1"}
        story.erp.write_receipt("R-3", "A-2", 6)
        await story.poll("receipt", "erp")
        assert story.platform.receipts["R-3"]["quantity"] == 6
        before = story.platform.writes
        await story.sync("receipt")
        assert (await story.validate("receipt")).verdict == "in_sync"
        assert (story.platform.writes, story.alerts()) == (before, [])
    finally:
        await story.close()

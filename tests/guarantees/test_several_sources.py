"""Records that several source systems make up: the owner decides, the others fill their part (rules 10 and 11)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fakes import FakeSource, two_part_config
from sqlalchemy import Engine
from world import World

from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.errors import DeletionsHeld

NUMBER = {"key": "key", "version": {"path": "v", "kind": "number"}, "list": {"path": "/"}}
STOCK_OPTIONAL = {"parts": {"shop": {**NUMBER, "group": "store"}, "stock": {**NUMBER, "required": False}}}


def blind() -> FakeSource:
    """A source that cannot be read by key."""
    source = FakeSource()
    source.can_read = False
    return source


def counts(world: World) -> dict[str, Any]:
    return {key: record["count"] for key, record in world.mirror_by_key().items()}


def test_another_source_creates_nothing(make_world: Callable[..., World]) -> None:
    world = make_world(entity={"on_missing": "upsert"})
    world.post_event("stock", "a", "create", 1, {"count": 1}, group="A")
    world.run_drain()
    assert world.erp.calls == {}
    assert (world.read_record_row("a").group_key, world.read_record_row("a").ready) == (None, False)
    world.post_event("shop", "a", "create", 1, {"name": "n", "store": "B"})
    world.run_drain()
    assert world.mirror_by_key()["a"] == {"code": "a", "store": "B", "name": "n", "count": 1}
    assert world.count_events_by_state() == {"done": 2}


def test_another_source_does_not_set_the_group(world: World) -> None:
    world.put_record("a", group="A")
    world.run_drain()
    world.post_event("stock", "a", "update", world.stock.version + 1, {"count": 2, "store": "B"}, group="B")
    world.run_drain()
    assert (world.read_record_row("a").group_key, world.mirror_by_key()["a"]["store"], counts(world)) == (
        "A",
        "A",
        {"a": 2},
    )


def test_another_sources_delete_empties_its_part(world: World) -> None:
    world.put_record("a", count=5)
    world.run_drain()
    world.post_event("stock", "a", "delete", world.stock.remove("a"))
    world.run_drain()
    assert world.mirror_by_key()["a"] == {"code": "a", "store": "A", "name": "n", "count": None}
    assert not world.read_record_row("a").deleted
    assert world.erp.calls == {"create": 1, "read": 1, "update": 1}


def test_a_record_is_pushed_once_all_required_parts_are_here(engine: Engine) -> None:
    world = World(engine, two_part_config(), stock=blind())
    world.post_event("shop", "a", "create", 1, {"name": "n", "store": "A"})
    world.run_drain()
    assert (world.erp.calls, world.count_events_by_state()) == ({}, {"waiting": 1})
    world.post_event("stock", "a", "create", 1, {"count": 3})
    world.run_drain()
    assert (counts(world), world.count_events_by_state()) == ({"a": 3}, {"done": 2})


def test_a_part_that_is_not_required_is_not_waited_for(make_world: Callable[..., World]) -> None:
    world = make_world(entity=STOCK_OPTIONAL)
    world.post_event("shop", "a", "create", 1, {"name": "n", "store": "A"})
    world.run_drain()
    assert counts(world) == {"a": None}
    world.post_event("stock", "a", "create", 1, {"count": 3})
    world.run_drain()
    assert counts(world) == {"a": 3}


def test_a_part_under_a_tombstone_is_kept_and_revives_nothing(world: World) -> None:
    world.put_record("a", count=1)
    world.run_drain()
    world.delete_record("a")
    world.run_drain()
    revision = world.read_record_row("a").revision
    world.post_event("stock", "a", "update", world.stock.version + 1, {"count": 7})
    world.run_drain()
    assert (world.erp.store, world.read_record_row("a").revision, world.count_events_by_state()) == (
        {},
        revision,
        {"done": 4},
    )
    world.post_event("shop", "a", "create", world.shop.version + 1, {"name": "again", "store": "A"})
    world.run_drain()
    assert world.mirror_by_key()["a"] == {"code": "a", "store": "A", "name": "again", "count": 7}


def test_only_an_owners_version_above_the_tombstones_makes_the_record_again(world: World) -> None:
    world.put_record("a")
    world.run_drain()
    world.delete_record("a")
    world.run_drain()
    tombstone = world.shop.version
    for version in (tombstone - 1, tombstone):
        world.post_event("shop", "a", "create", version, {"name": "late", "store": "A"})
        world.run_drain()
        world.advance_clock(11)
        world.run_drain()
        assert (world.mirror_by_key(), world.read_record_row("a").deleted) == ({}, True)
    world.post_event("shop", "a", "create", tombstone + 1, {"name": "again", "store": "A"})
    world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "again"


def test_a_delete_of_an_unknown_record_leaves_a_tombstone_and_is_pushed(world: World) -> None:
    world.erp.by_hand({"code": "a", "store": "A"})
    world.post_event("shop", "a", "delete", 9)
    world.run_drain()
    assert (world.erp.store, world.read_record_row("a").deleted, world.count_events_by_state()) == (
        {},
        True,
        {"done": 1},
    )
    world.post_event("shop", "a", "create", 8, {"name": "older", "store": "A"})
    world.run_drain()
    assert (world.erp.store, world.count_events_by_state()) == ({}, {"done": 1, "superseded": 1})


def test_a_full_sync_reads_the_other_parts_by_the_keys_of_the_owners_page(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.shop.page = 2
    for key in "abc":
        world.put_record(key, notify=False)
    world.put_record("elsewhere", group="B", notify=False)
    asked: list[list[str]] = []
    whole = world.stock.read_many

    async def noted(keys: Sequence[str]) -> list[PartRead]:
        asked.append(list(keys))
        return await whole(keys)

    monkeypatch.setattr(world.stock, "read_many", noted)
    world.run_full_sync("A")
    assert asked == [["a", "b"], ["c"]]
    assert sorted(world.mirror_by_key()) == ["a", "b", "c"]


@pytest.mark.parametrize("required", [True, False])
def test_a_full_sync_lists_by_group_a_source_that_cannot_be_read_by_key(engine: Engine, required: bool) -> None:
    world = World(engine, two_part_config(**({} if required else {"entity": STOCK_OPTIONAL})), stock=blind())
    for number, key in enumerate("abc"):
        world.put_record(key, count=number, notify=False)
    world.stock.put("of nobody", {"count": 1})
    world.run_full_sync()
    assert counts(world) == {"a": 0, "b": 1, "c": 2}
    assert not world.read_record_row("of nobody").ready
    world.stock.put("b", {"count": 8})
    world.run_full_sync()
    assert counts(world) == {"a": 0, "b": 8, "c": 2}


@pytest.mark.parametrize("can_read", [True, False])
def test_a_full_sync_empties_a_part_that_its_source_no_longer_has(engine: Engine, can_read: bool) -> None:
    world = World(engine, two_part_config(), stock=FakeSource() if can_read else blind())
    for key in "abc":
        world.put_record(key, notify=False)
    world.run_full_sync()
    world.stock.remove("b")
    world.run_full_sync()
    assert counts(world) == {"a": 1, "b": None, "c": 1}


def test_a_part_that_its_source_shows_when_asked_again_is_not_emptied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put_record("a", notify=False)
    world.run_full_sync()

    async def none(keys: Sequence[str]) -> list[PartRead]:
        return []

    monkeypatch.setattr(world.stock, "read_many", none)
    world.run_full_sync()
    assert counts(world) == {"a": 1}


def test_a_source_that_suddenly_has_nothing_empties_nothing_and_a_person_is_told(world: World) -> None:
    for number in range(20):
        world.put_record(f"k{number}", notify=False)
    world.run_full_sync()
    world.stock.rows.clear()
    with pytest.raises(DeletionsHeld, match="20 of 20 records would be without their part 'stock'"):
        world.run_full_sync()
    assert set(counts(world).values()) == {1}
    world.run_full_sync(allow_deletions=20)
    assert set(counts(world).values()) == {None}


def test_a_listing_by_group_that_may_have_gaps_empties_no_part(engine: Engine) -> None:
    world = World(engine, two_part_config(), stock=blind())
    world.stock.keyset_listing = False
    for key in "abc":
        world.put_record(key, notify=False)
    world.run_full_sync()
    whole = world.stock.rows.copy()
    world.stock.remove("b")
    world.stock.count = lambda group: asyncio.sleep(0, len(whole))  # type: ignore[method-assign]
    with pytest.raises(DeletionsHeld, match="not listed by 'stock', but its listing is not proven complete"):
        world.run_full_sync()
    assert counts(world) == {"a": 1, "b": 1, "c": 1}


def test_a_part_that_came_while_its_source_was_listed_is_not_emptied(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(engine, two_part_config(), stock=blind())
    for key in "ab":
        world.put_record(key, notify=False)
    world.run_full_sync()
    world.stock.remove("b")
    whole = world.stock.pages

    def listing(group: str, after: str | None = None) -> Any:
        async def pages() -> Any:
            async for page in whole(group, after):
                world.put_record("b", count=7)
                await asyncio.to_thread(world.run_drain)
                yield page

        return pages()

    monkeypatch.setattr(world.stock, "pages", listing)
    world.run_full_sync()
    assert counts(world) == {"a": 1, "b": 7}

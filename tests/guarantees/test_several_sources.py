"""Records that several source systems make up: the owner decides, the others fill their part (rules 10 and 11).

Not here: the decisions as a table (``test_version_guard.py``), deletions that a full sync infers
(``test_deletions.py``).
"""

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
    return {key: record["count"] for key, record in world.mirrored().items()}


def test_another_source_creates_nothing(make_world: Callable[..., World]) -> None:
    world = make_world(entity={"on_missing": "upsert"})
    world.tell("stock", "a", "create", 1, {"count": 1}, group="A")
    world.drain()
    assert world.erp.calls == {}
    assert (world.row("a").group_key, world.row("a").ready) == (None, False)
    world.tell("shop", "a", "create", 1, {"name": "n", "store": "B"})
    world.drain()
    assert world.mirrored()["a"] == {"code": "a", "store": "B", "name": "n", "count": 1}
    assert world.states() == {"done": 2}


def test_another_source_does_not_set_the_group(world: World) -> None:
    world.put("a", group="A")
    world.drain()
    world.tell("stock", "a", "update", world.stock.version + 1, {"count": 2, "store": "B"}, group="B")
    world.drain()
    assert (world.row("a").group_key, world.mirrored()["a"]["store"], counts(world)) == ("A", "A", {"a": 2})


def test_another_sources_delete_empties_its_part(world: World) -> None:
    world.put("a", count=5)
    world.drain()
    world.tell("stock", "a", "delete", world.stock.remove("a"))
    world.drain()
    assert world.mirrored()["a"] == {"code": "a", "store": "A", "name": "n", "count": None}
    assert not world.row("a").deleted
    assert world.erp.calls == {"create": 1, "read": 1, "update": 1}


def test_a_record_is_pushed_once_all_required_parts_are_here(engine: Engine) -> None:
    world = World(engine, two_part_config(), stock=blind())
    world.tell("shop", "a", "create", 1, {"name": "n", "store": "A"})
    world.drain()
    assert (world.erp.calls, world.states()) == ({}, {"waiting": 1})
    world.tell("stock", "a", "create", 1, {"count": 3})
    world.drain()
    assert (counts(world), world.states()) == ({"a": 3}, {"done": 2})


def test_a_part_that_is_not_required_is_not_waited_for(make_world: Callable[..., World]) -> None:
    world = make_world(entity=STOCK_OPTIONAL)
    world.tell("shop", "a", "create", 1, {"name": "n", "store": "A"})
    world.drain()
    assert counts(world) == {"a": None}
    world.tell("stock", "a", "create", 1, {"count": 3})
    world.drain()
    assert counts(world) == {"a": 3}


def test_a_part_under_a_tombstone_is_kept_and_revives_nothing(world: World) -> None:
    world.put("a", count=1)
    world.drain()
    world.remove("a")
    world.drain()
    revision = world.row("a").revision
    world.tell("stock", "a", "update", world.stock.version + 1, {"count": 7})
    world.drain()
    assert (world.erp.store, world.row("a").revision, world.states()) == ({}, revision, {"done": 4})
    world.tell("shop", "a", "create", world.shop.version + 1, {"name": "again", "store": "A"})
    world.drain()
    assert world.mirrored()["a"] == {"code": "a", "store": "A", "name": "again", "count": 7}


def test_only_an_owners_version_above_the_tombstones_makes_the_record_again(world: World) -> None:
    world.put("a")
    world.drain()
    world.remove("a")
    world.drain()
    tombstone = world.shop.version
    for version in (tombstone - 1, tombstone):
        world.tell("shop", "a", "create", version, {"name": "late", "store": "A"})
        world.drain()
        world.later(11)
        world.drain()
        assert (world.mirrored(), world.row("a").deleted) == ({}, True)
    world.tell("shop", "a", "create", tombstone + 1, {"name": "again", "store": "A"})
    world.drain()
    assert world.mirrored()["a"]["name"] == "again"


def test_a_delete_of_an_unknown_record_leaves_a_tombstone_and_is_pushed(world: World) -> None:
    world.erp.by_hand({"code": "a", "store": "A"})
    world.tell("shop", "a", "delete", 9)
    world.drain()
    assert (world.erp.store, world.row("a").deleted, world.states()) == ({}, True, {"done": 1})
    world.tell("shop", "a", "create", 8, {"name": "older", "store": "A"})
    world.drain()
    assert (world.erp.store, world.states()) == ({}, {"done": 1, "superseded": 1})


def test_a_full_sync_reads_the_other_parts_by_the_keys_of_the_owners_page(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.shop.page = 2
    for key in "abc":
        world.put(key, tell=False)
    world.put("elsewhere", group="B", tell=False)
    asked: list[list[str]] = []
    whole = world.stock.read_many

    async def noted(keys: Sequence[str]) -> list[PartRead]:
        asked.append(list(keys))
        return await whole(keys)

    monkeypatch.setattr(world.stock, "read_many", noted)
    world.full_sync("A")
    assert asked == [["a", "b"], ["c"]]
    assert sorted(world.mirrored()) == ["a", "b", "c"]


@pytest.mark.parametrize("required", [True, False])
def test_a_full_sync_lists_by_group_a_source_that_cannot_be_read_by_key(engine: Engine, required: bool) -> None:
    world = World(engine, two_part_config(**({} if required else {"entity": STOCK_OPTIONAL})), stock=blind())
    for number, key in enumerate("abc"):
        world.put(key, count=number, tell=False)
    world.stock.put("of nobody", {"count": 1})
    world.full_sync()
    assert counts(world) == {"a": 0, "b": 1, "c": 2}
    assert not world.row("of nobody").ready
    world.stock.put("b", {"count": 8})
    world.full_sync()
    assert counts(world) == {"a": 0, "b": 8, "c": 2}


@pytest.mark.parametrize("can_read", [True, False])
def test_a_full_sync_empties_a_part_that_its_source_no_longer_has(engine: Engine, can_read: bool) -> None:
    world = World(engine, two_part_config(), stock=FakeSource() if can_read else blind())
    for key in "abc":
        world.put(key, tell=False)
    world.full_sync()
    world.stock.remove("b")
    world.full_sync()
    assert counts(world) == {"a": 1, "b": None, "c": 1}


def test_a_part_that_its_source_shows_when_asked_again_is_not_emptied(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.put("a", tell=False)
    world.full_sync()

    async def none(keys: Sequence[str]) -> list[PartRead]:
        return []

    monkeypatch.setattr(world.stock, "read_many", none)
    world.full_sync()
    assert counts(world) == {"a": 1}


def test_a_source_that_suddenly_has_nothing_empties_nothing_and_a_person_is_told(world: World) -> None:
    for number in range(20):
        world.put(f"k{number}", tell=False)
    world.full_sync()
    world.stock.rows.clear()
    with pytest.raises(DeletionsHeld, match="20 of 20 records would be without their part 'stock'"):
        world.full_sync()
    assert set(counts(world).values()) == {1}
    world.full_sync(allow_deletions=20)
    assert set(counts(world).values()) == {None}


def test_a_listing_by_group_that_may_have_gaps_empties_no_part(engine: Engine) -> None:
    world = World(engine, two_part_config(), stock=blind())
    world.stock.keyset_listing = False
    for key in "abc":
        world.put(key, tell=False)
    world.full_sync()
    whole = world.stock.rows.copy()
    world.stock.remove("b")
    world.stock.count = lambda group: asyncio.sleep(0, len(whole))  # type: ignore[method-assign]
    with pytest.raises(DeletionsHeld, match="not listed by 'stock', but its listing is not proven complete"):
        world.full_sync()
    assert counts(world) == {"a": 1, "b": 1, "c": 1}


def test_a_part_that_came_while_its_source_was_listed_is_not_emptied(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(engine, two_part_config(), stock=blind())
    for key in "ab":
        world.put(key, tell=False)
    world.full_sync()
    world.stock.remove("b")
    whole = world.stock.pages

    def listing(group: str, after: str | None = None) -> Any:
        async def pages() -> Any:
            async for page in whole(group, after):
                world.put("b", count=7)
                await asyncio.to_thread(world.drain)
                yield page

        return pages()

    monkeypatch.setattr(world.stock, "pages", listing)
    world.full_sync()
    assert counts(world) == {"a": 1, "b": 7}

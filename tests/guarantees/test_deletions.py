"""What may be deleted, and what not: deletions a full sync infers, and records nobody here made (rules 14 and 15)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import FakeSource, two_part_config
from scenes import fill_sources, plan_full_sync
from sqlalchemy import Engine
from world import World

from sync_orchestrator.core.archive.deletion_caps import alive_groups
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.version_guard import Change, Stamp
from sync_orchestrator.errors import DeletionsHeld


@pytest.fixture
def blind(engine: Engine) -> World:
    """A world whose owner cannot be read by key, so that nothing is confirmed by it."""
    shop = FakeSource(page=10)
    shop.can_read = False
    return World(engine, two_part_config(), shop=shop)


def during_listing(world: World, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> None:
    """Does something once, after the owner's first page was taken."""
    whole, left = world.shop.pages, [work]

    def listing(group: str, after: str | None = None) -> Any:
        async def pages() -> Any:
            async for page in whole(group, after):
                yield page
                if left:
                    await asyncio.to_thread(left.pop())

        return pages()

    monkeypatch.setattr(world.shop, "pages", listing)


def test_what_changed_since_the_listing_began_is_not_taken_for_deleted(
    blind: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_sources(blind, 30)
    blind.run_full_sync()
    blind.shop.rows.pop("k000")

    def comes_behind_the_page() -> None:
        for key in ("k000", "a new one"):
            blind.put_record(key)
        blind.run_drain()

    during_listing(blind, monkeypatch, comes_behind_the_page)
    blind.run_full_sync()
    assert blind.mirror_by_key() == blind.expected_mirror()


def test_what_changes_while_its_deletion_is_confirmed_is_not_deleted(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_sources(world, 20)
    world.run_full_sync()
    world.shop.rows.pop("k005")

    async def gone_a_moment_ago(key: str) -> PartRead | None:
        world.put_record(key, name="here again", count=5)
        await asyncio.to_thread(world.run_drain)
        return None

    monkeypatch.setattr(world.shop, "read", gone_a_moment_ago)
    world.run_full_sync()
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()


def test_an_inferred_tombstone_keeps_the_last_version(blind: World) -> None:
    """Rule 21: it loses to what comes later at the version of the record that was there."""
    fill_sources(blind, 20)
    blind.run_full_sync()
    last = blind.shop.rows["k005"].version
    blind.shop.rows.pop("k005")
    blind.run_full_sync()
    assert blind.query("SELECT version FROM sync.parts WHERE key = 'k005' AND deleted")[0].version == last
    for version, here in ((last - 1, False), (last, True), (last + 1, True)):
        blind.post_event("shop", "k005", "create", version, {"name": "n", "store": "A"})
        blind.run_drain()
        assert ("k005" in blind.mirror_by_key()) is here


@pytest.mark.parametrize("counted", [19, 20, None])
def test_a_listing_that_may_have_gaps_deletes_only_when_the_count_agrees(
    world: World, monkeypatch: pytest.MonkeyPatch, counted: int | None
) -> None:
    monkeypatch.setattr(world.shop, "keyset_listing", False)

    async def count(group: str) -> int | None:
        return counted

    monkeypatch.setattr(world.shop, "count", count)
    fill_sources(world, 20)
    world.run_full_sync()
    world.shop.rows.pop("k005")
    if counted == 19:
        world.run_full_sync()
        assert world.mirror_by_key() == world.expected_mirror()
        return
    with pytest.raises(DeletionsHeld, match="not proven complete"):
        world.run_full_sync()
    assert (len(world.erp.store), world.read_record_row("k005").deleted) == (20, False)
    assert [row.kind for row in world.query("SELECT kind FROM sync.alerts")] == ["delete_cap"]


def test_a_row_that_a_listing_repeats_does_not_stand_for_one_that_it_lacks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages by number, with a row inserted meanwhile: one comes twice, and another not at all."""
    fill_sources(world, 20)
    world.run_full_sync()
    monkeypatch.setattr(world.shop, "keyset_listing", False)
    monkeypatch.setattr(world.shop, "can_read", False)

    def shifted(group: str, after: str | None = None) -> Any:
        async def pages() -> Any:
            rows = list(world.shop.rows.values())
            yield rows[:10], None
            yield rows[9:19], None

        return pages()

    monkeypatch.setattr(world.shop, "pages", shifted)
    with pytest.raises(DeletionsHeld, match="19 listed, 20 counted"):
        world.run_full_sync()
    assert world.mirror_by_key() == world.expected_mirror()


@pytest.mark.parametrize("way", ["full sync", "thin event"])
def test_what_the_source_lists_as_deleted_becomes_a_tombstone(world: World, way: str) -> None:
    fill_sources(world, 5)
    world.run_full_sync()
    for source, key in ((world.shop, "k001"), (world.stock, "k002")):
        row = source.rows[key]
        source.rows[key] = replace(row, version=row.version + 100, deleted=True)
        if way == "thin event":
            world.post_event("shop" if source is world.shop else "stock", key, "update", row.version + 100)
    if way == "full sync":
        world.run_full_sync()
    world.run_drain()
    assert (sorted(world.mirror_by_key()), world.read_record_row("k001").deleted) == (
        ["k000", "k002", "k003", "k004"],
        True,
    )
    assert (world.mirror_by_key()["k002"]["count"], world.read_record_row("k002").deleted) == (None, False)
    assert set(world.count_events_by_state()) <= {"done"}


def test_a_full_sync_deletes_nothing_that_it_did_not_put_there(world: World) -> None:
    fill_sources(world, 3)
    by_hand = world.erp.by_hand({"code": "HAND", "store": "A"})
    for _ in range(2):
        world.run_full_sync()
    assert by_hand in world.erp.store


@pytest.mark.parametrize(("unmanaged", "repair"), [("report", "auto"), ("delete", "auto"), ("delete", "off")])
def test_unmanaged_records_are_deleted_only_where_the_configuration_says_so(
    make_world: Callable[..., World], unmanaged: str, repair: Any
) -> None:
    world = make_world(entity={"validation": {"confirm_after": 0, "unmanaged": unmanaged}})
    fill_sources(world, 3)
    world.run_full_sync()
    world.erp.by_hand({"code": "HAND", "store": "A"})
    world.erp.by_hand({"code": None, "store": "A"})
    world.advance_clock(1)
    result = world.run_validation(full=True, repair=repair)
    assert (result.verdict, result.unmanaged, result.repaired) == ("in_sync", 2, 0)
    assert len(world.erp.store) == (3 if (unmanaged, repair) == ("delete", "auto") else 5)
    assert sorted(drift.kind for drift in world.run_validation(full=True, repair="off").drift) == ["unmanaged"] * (
        len(world.erp.store) - 3
    )


def test_more_unmanaged_records_than_may_be_deleted_at_once_are_left(make_world: Callable[..., World]) -> None:
    world = make_world(entity={"validation": {"confirm_after": 0, "unmanaged": "delete"}})
    fill_sources(world, 3)
    world.run_full_sync()
    for number in range(6):
        world.erp.by_hand({"code": f"HAND{number}", "store": "A"})
    world.advance_clock(1)
    world.run_validation(full=True)
    assert len(world.erp.store) == 9
    assert "delete_cap" in [row.kind for row in world.query("SELECT kind FROM sync.alerts")]


def test_a_full_sync_does_not_end_the_alert_of_what_validation_may_not_delete(make_world: Callable[..., World]) -> None:
    world = make_world(entity={"validation": {"confirm_after": 0, "unmanaged": "delete"}})
    fill_sources(world, 3)
    world.run_full_sync()
    strangers = [world.erp.by_hand({"code": f"HAND{number}", "store": "A"}) for number in range(6)]
    world.advance_clock(1)
    for work in (lambda: world.run_validation(full=True), world.run_full_sync):
        work()
        assert [
            row.cause
            for row in world.query("SELECT cause FROM sync.alerts WHERE resolved_at IS NULL AND kind = 'delete_cap'")
        ] == ["item A: unmanaged"]
    for stranger in strangers:
        world.erp.store.pop(stranger)
    world.run_validation(full=True)
    assert (
        len(world.erp.store),
        world.query("SELECT FROM sync.alerts WHERE resolved_at IS NULL AND kind = 'delete_cap'"),
    ) == (3, [])


def test_a_record_under_a_tombstone_that_was_never_applied_is_unmanaged(world: World) -> None:
    fill_sources(world, 3)
    world.run_full_sync()
    world.post_event("shop", "z", "delete", 9, group="A")
    world.run_drain()
    world.erp.by_hand({"code": "z", "store": "A"})
    world.advance_clock(1)
    assert [(drift.key, drift.kind, drift.status) for drift in world.run_validation(full=True).drift] == [
        ("z", "unmanaged", "left")
    ]
    world.run_drain()
    assert len(world.erp.store) == 4


# Deletions that a delete event announces ------------------------------------------------------------------------------


def _many_announced(world: World) -> None:
    """More records than the cap lets go vanish from their source, which has notified of each."""
    fill_sources(world, 20)
    world.run_full_sync()
    for number in range(10):
        world.delete_record(f"k{number:03}")


def test_deletions_that_the_ledger_has_count_towards_no_cap(world: World) -> None:
    _many_announced(world)
    assert not plan_full_sync(world).counts.get("over_cap")
    world.run_full_sync()
    assert not world.query("SELECT FROM sync.inferred_deletions")
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()
    assert not world.query("SELECT FROM sync.parts WHERE deleted AND inferred"), "they are what their source notified"


def test_flagged_rows_whose_delete_event_the_ledger_has_count_towards_no_cap(world: World) -> None:
    _many_announced(world)
    world.query("UPDATE sync.events SET due_at = sync.clock() + interval '1 hour'")
    changes = [
        Change(f"k{number:03}", "shop", "delete", Stamp(0, 10_000, 0, b"", inferred=True), None) for number in range(10)
    ]
    with world.engine.begin() as connection:
        assert alive_groups(connection, world.entity, changes) == {}


def test_a_delete_event_that_is_older_than_the_record_announces_nothing(world: World) -> None:
    _many_announced(world)
    world.query("UPDATE sync.events SET version = 0")
    with pytest.raises(DeletionsHeld, match="more than the cap"):
        world.run_full_sync()


def test_a_deletion_that_a_check_inferred_is_no_announcement(world: World) -> None:
    _many_announced(world)
    world.query("UPDATE sync.events SET origin = 'audit'")
    with pytest.raises(DeletionsHeld, match="more than the cap"):
        world.run_full_sync()

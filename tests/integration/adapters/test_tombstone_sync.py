"""Deletions and tombstones in drains, full syncs and validations."""

from __future__ import annotations

from typing import Any

import pytest
from http_server import Server
from record_store import THEIRS, Store, http_world
from sqlalchemy import Engine
from tombstone_requests import CANCEL, DEACTIVATE, PATCHES, POSTS, SOFT, refusing


def test_a_soft_deleted_record_is_in_sync_and_neither_extra_nor_missing(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put_record("a")
    world.put_record("b")
    world.run_full_sync()
    world.delete_record("a")
    world.run_drain()
    assert sorted(bool(record.get("deleted")) for record in store.items.values()) == [False, True]
    assert (world.run_validation().verdict, set(world.count_events_by_state())) == ("in_sync", {"done"})
    world.close()


def test_a_live_record_that_somebody_deleted_softly_is_revived(engine: Engine, server: Server) -> None:
    store = Store(server, unique=True)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put_record("a")
    world.run_full_sync()
    store.items["x1"]["deleted"] = True
    assert world.run_validation(repair="auto").verdict == "drift"
    world.run_until_settled()
    assert (store.items["x1"]["deleted"], len(store.items)) == (False, 1)
    assert world.run_validation().verdict == "in_sync"
    world.close()


@pytest.mark.parametrize("unique", [True, False])
def test_a_tombstone_that_keeps_the_unique_key_taken_is_revived_by_an_update(
    engine: Engine, server: Server, unique: bool
) -> None:
    """Where it does not keep the key, another record is made."""
    store = Store(server, unique=unique)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put_record("a")
    world.run_drain()
    world.delete_record("a")
    world.run_drain()
    world.put_record("a", name="again")
    world.run_drain()
    alive = {item_id: record["name"] for item_id, record in store.items.items() if not record.get("deleted")}
    assert alive == {"x1" if unique else "x2": "again"}
    assert (world.read_record_row("a").external_id, world.count_events_by_state()) == (next(iter(alive)), {"done": 5})
    world.put_record("a", name="once more")
    world.run_drain()
    assert store.items[next(iter(alive))]["name"] == "once more"
    world.close()


@pytest.mark.parametrize("landed", [True, False])
def test_a_revival_whose_answer_is_lost_ends_in_sync(engine: Engine, server: Server, landed: bool) -> None:
    store = Store(server, unique=True)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put_record("a")
    world.run_drain()
    world.delete_record("a")
    world.run_drain()
    (store.after if landed else store.instead)["PUT items"] = [504]
    world.put_record("a", name="again")
    world.run_until_settled()
    assert [(record["name"], record["deleted"]) for record in store.items.values()] == [("again", False)]
    assert world.count_events_by_state() == {"done": 5}
    world.close()


@pytest.mark.parametrize("target", [SOFT, CANCEL, DEACTIVATE])
@pytest.mark.parametrize("landed", [True, False])
def test_a_deletion_whose_answer_is_lost_ends_in_sync(
    engine: Engine, server: Server, target: dict[str, Any], landed: bool
) -> None:
    store = refusing(server, 409)
    world = http_world(engine, server, {**THEIRS, **target})
    world.put_record("a")
    world.run_drain()
    lost = POSTS if target is CANCEL else PATCHES
    (store.after if landed else store.instead)[lost] = [504]
    world.delete_record("a")
    world.run_until_settled()
    record = store.items["x1"]
    assert record.get("deleted") or record.get("state") == "cancel"
    assert world.count_events_by_state() == {"done": 3}
    world.close()

"""Deletions and tombstones in drains, full syncs and validations."""

from __future__ import annotations

from typing import Any

import pytest
from http_server import Server
from record_store import THEIRS, Store, http_world
from sqlalchemy import Engine
from tombstone_requests import CANCEL, DEACTIVATE, PATCHES, POSTS, SOFT, refusing


def test_a_soft_deleted_record_is_in_step_and_neither_extra_nor_missing(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put("a")
    world.put("b")
    world.full_sync()
    world.remove("a")
    world.drain()
    assert sorted(bool(record.get("deleted")) for record in store.items.values()) == [False, True]
    assert (world.validate().verdict, world.states().keys()) == ("in_step", {"done"})
    world.close()


def test_a_live_record_that_somebody_deleted_softly_is_revived(engine: Engine, server: Server) -> None:
    store = Store(server, unique=True)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put("a")
    world.full_sync()
    store.items["x1"]["deleted"] = True
    assert world.validate(repair="auto").verdict == "drift"
    world.settled()
    assert (store.items["x1"]["deleted"], len(store.items)) == (False, 1)
    assert world.validate().verdict == "in_step"
    world.close()


@pytest.mark.parametrize("unique", [True, False])
def test_a_tombstone_that_keeps_the_unique_key_taken_is_revived_by_an_update(
    engine: Engine, server: Server, unique: bool
) -> None:
    """Where it does not keep the key, another record is made."""
    store = Store(server, unique=unique)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put("a")
    world.drain()
    world.remove("a")
    world.drain()
    world.put("a", name="again")
    world.drain()
    alive = {item_id: record["name"] for item_id, record in store.items.items() if not record.get("deleted")}
    assert alive == {"x1" if unique else "x2": "again"}
    assert (world.row("a").external_id, world.states()) == (next(iter(alive)), {"done": 5})
    world.put("a", name="once more")
    world.drain()
    assert store.items[next(iter(alive))]["name"] == "once more"
    world.close()


@pytest.mark.parametrize("landed", [True, False])
def test_a_revival_whose_answer_is_lost_ends_in_step(engine: Engine, server: Server, landed: bool) -> None:
    store = Store(server, unique=True)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put("a")
    world.drain()
    world.remove("a")
    world.drain()
    (store.after if landed else store.instead)["PUT items"] = [504]
    world.put("a", name="again")
    world.settled()
    assert [(record["name"], record["deleted"]) for record in store.items.values()] == [("again", False)]
    assert world.states() == {"done": 5}
    world.close()


@pytest.mark.parametrize("target", [SOFT, CANCEL, DEACTIVATE])
@pytest.mark.parametrize("landed", [True, False])
def test_a_deletion_whose_answer_is_lost_ends_in_step(
    engine: Engine, server: Server, target: dict[str, Any], landed: bool
) -> None:
    store = refusing(server, 409)
    world = http_world(engine, server, {**THEIRS, **target})
    world.put("a")
    world.drain()
    lost = POSTS if target is CANCEL else PATCHES
    (store.after if landed else store.instead)[lost] = [504]
    world.remove("a")
    world.settled()
    record = store.items["x1"]
    assert record.get("deleted") or record.get("state") == "cancel"
    assert world.states() == {"done": 3}
    world.close()

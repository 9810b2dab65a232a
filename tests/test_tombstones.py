"""Deleting at third parties that differ, and what is left there of a deleted record (line 14).

Each against a server that behaves that way. Not here: which records are deleted (``test_deletions.py``).
"""

from __future__ import annotations

from typing import Any

import pytest
from http_server import Server, failure_of
from record_store import OURS, THEIRS, Store, adapter, http_world, item
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sync_orchestrator.errors import Failure

DELETES, POSTS, PATCHES = "DELETE items", "POST items", "PATCH items"

GONE: dict[str, Any] = {"gone_when": "deleted"}
SOFT: dict[str, Any] = {
    **GONE,
    "delete": {"method": "PATCH", "path": "/items/{{ id }}", "body": {"deleted": True}},
    "update": {**THEIRS["update"], "body": "{{ payload | plus(deleted=false) }}"},
}
CANCEL: dict[str, Any] = {
    "gone_when": "state == 'cancel'",
    "delete": {"method": "POST", "path": "/items/{{ id }}/cancel"},
}
DEACTIVATE: dict[str, Any] = {
    **GONE,
    "delete": {"path": "/items/{{ id }}", "refused": SOFT["delete"]},
}


def refusing(server: Server, status: int, **manners: Any) -> Store:
    store = Store(server, **manners)
    store.delete_refused = lambda request, item_id: JSONResponse({"error": "it has orders"}, status)
    return store


# The ways to delete.


async def test_hard_delete(server: Server) -> None:
    store = Store(server)
    store.by_hand(code="k1")
    erp = adapter(server, THEIRS)
    for _ in range(2):
        await erp.delete(item(external_id="x1"))
    assert (store.items, store.calls[DELETES]) == ({}, 2)
    await erp.close()


async def test_soft_delete_by_an_update_of_a_field(server: Server) -> None:
    store = Store(server)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **SOFT})
    await erp.delete(item(external_id="x1"))
    assert (store.items["x1"]["deleted"], store.bodies) == (True, [{"deleted": True}])
    await erp.close()


async def test_delete_with_a_force_flag(server: Server) -> None:
    store = Store(server)
    store.by_hand(code="k1")

    def only_by_force(request: Request, item_id: str) -> Response | None:
        return None if request.query_params.get("force") == "true" else JSONResponse({"error": "it is in the bin"}, 409)

    store.delete_refused = only_by_force
    erp = adapter(server, {**THEIRS, "delete": {"path": "/items/{{ id }}", "params": {"force": "true"}}})
    await erp.delete(item(external_id="x1"))
    assert store.items == {}
    await erp.close()


async def test_cancel_by_another_verb(server: Server) -> None:
    """To cancel what is cancelled is refused there; it is gone all the same."""
    store = Store(server)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **CANCEL})
    for _ in range(2):
        await erp.delete(item(external_id="x1"))
    assert (store.items["x1"]["state"], store.calls[POSTS]) == ("cancel", 2)
    assert await erp.read(item(external_id="x1")) is None
    await erp.close()


@pytest.mark.parametrize("status", [400, 405, 409, 422])
async def test_a_delete_that_is_refused_is_followed_by_deactivating(server: Server, status: int) -> None:
    store = refusing(server, status)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **DEACTIVATE})
    await erp.delete(item(external_id="x1"))
    assert store.items["x1"]["deleted"]
    await erp.delete(item(external_id="x1"))
    assert store.calls == {DELETES: 2, "GET items": 2, PATCHES: 1}
    await erp.close()


@pytest.mark.parametrize("status", [401, 403, 429, 500, 302])
async def test_a_delete_that_fails_otherwise_deactivates_nothing(server: Server, status: int) -> None:
    store = refusing(server, status)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **DEACTIVATE})
    assert (await failure_of(erp.delete(item(external_id="x1")))).status == status
    assert store.calls == {DELETES: 1}
    await erp.close()


async def test_a_delete_that_is_refused_with_nothing_to_do_instead_is_no_success(server: Server) -> None:
    store = refusing(server, 409, keeps=True)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **GONE})
    assert (await failure_of(erp.delete(item(external_id="x1")))).kind is Failure.PERMANENT
    await erp.close()


async def test_deactivating_that_is_refused_too_is_no_success(server: Server) -> None:
    store = refusing(server, 409)
    store.by_hand(code="k1")
    store.instead[PATCHES] = [422]
    erp = adapter(server, {**THEIRS, **DEACTIVATE})
    failure = await failure_of(erp.delete(item(external_id="x1")))
    assert (failure.kind, failure.status) == (Failure.PERMANENT, 422)
    await erp.close()


async def test_a_refusal_by_conflict_deactivates_at_the_present_revision(server: Server) -> None:
    """A 409 may mean the revision or the record; at the present revision it means the record."""
    store = refusing(server, 409)
    store.by_hand(code="k1")
    store.shown = lambda shown: JSONResponse(shown, headers={"ETag": f'"{shown["v"]}"'})
    match = {"headers": {"If-Match": "{{ revision }}"}}
    delete = {"path": "/items/{{ id }}", **match, "refused": {**SOFT["delete"], **match}}
    erp = adapter(server, {**THEIRS, **GONE, "revision": {"header": "ETag"}, "delete": delete})
    await erp.delete(item(external_id="x1"))
    assert (store.items["x1"]["deleted"], [headers["if-match"] for headers in store.headers]) == (True, ['"1"'] * 3)
    await erp.close()


# What is left of a deleted record.


async def test_a_tombstone_that_is_still_shown_is_taken_for_gone(server: Server) -> None:
    store = Store(server)
    for key in ("k1", "k2"):
        store.by_hand(code=key, store="A")
    store.items["x1"]["deleted"] = True
    erp = adapter(server, {**THEIRS, **GONE, "filter_check": {"off": True}})
    assert await erp.read(item(external_id="x1")) is None
    assert await erp.lookup("k1", "A") == []
    assert [[found.key for found in page] async for page in erp.pages("A")] == [["k2"]]
    await erp.close()


async def test_what_the_fetch_of_a_revision_shows_as_deleted_is_not_deleted_again(server: Server) -> None:
    store = Store(server)
    store.by_hand(code="k1", deleted=True)
    revision = {"revision": {"path": "v"}, "delete": {"path": "/items/{{ id }}", "params": {"v": "{{ revision }}"}}}
    erp = adapter(server, {**THEIRS, **GONE, **revision})
    await erp.delete(item(external_id="x1"))
    assert store.calls == {"GET items": 1}
    await erp.close()


def test_a_soft_deleted_record_is_in_sync_and_neither_extra_nor_missing(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, {**THEIRS, **SOFT})
    world.put("a")
    world.put("b")
    world.full_sync()
    world.remove("a")
    world.drain()
    assert sorted(bool(record.get("deleted")) for record in store.items.values()) == [False, True]
    assert (world.validate().verdict, world.states().keys()) == ("in_sync", {"done"})
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
    assert world.validate().verdict == "in_sync"
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
def test_a_revival_whose_answer_is_lost_ends_in_sync(engine: Engine, server: Server, landed: bool) -> None:
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


async def test_a_tombstone_that_an_update_does_not_revive_is_no_success(server: Server) -> None:
    store = Store(server, unique=True)
    store.by_hand(code="k1", deleted=True)
    erp = adapter(server, {**THEIRS, **GONE})
    failure = await failure_of(erp.create(item()))
    assert (failure.kind, failure.status) == (Failure.PERMANENT, None)
    assert "no update revives it" in failure.detail
    await erp.close()


async def test_a_live_record_with_the_key_goes_before_a_tombstone(server: Server) -> None:
    """The duplicate is told as one, and the live record taken over."""
    store = Store(server, unique=True)
    store.by_hand(code="k1", deleted=True)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **SOFT})
    assert (await failure_of(erp.create(item()))).duplicate
    assert store.items["x1"]["deleted"]
    await erp.close()


async def test_with_our_ids_a_put_revives_a_tombstone_under_its_key(server: Server) -> None:
    Store(server, our_ids=True, keeps=True)
    erp = adapter(server, {**OURS, **SOFT, "delete": THEIRS["delete"]})
    await erp.create(item())
    await erp.delete(item())
    assert await erp.read(item()) is None
    await erp.create(item(name="again"))
    found = await erp.read(item())
    assert found is not None
    assert found.fields["name"] == "again"
    await erp.close()


@pytest.mark.parametrize("target", [SOFT, CANCEL, DEACTIVATE])
@pytest.mark.parametrize("landed", [True, False])
def test_a_deletion_whose_answer_is_lost_ends_in_sync(
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

"""Deleting at third parties that differ, and what is left there of a deleted record (line 14).

Each against a server that behaves that way.
"""

from __future__ import annotations

import pytest
from http_server import Server, failure_of
from record_store import OURS, THEIRS, Store, adapter, item
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from tombstone_requests import CANCEL, DEACTIVATE, DELETES, GONE, PATCHES, POSTS, SOFT, refusing

from sync_orchestrator.errors import Failure

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
    assert (await failure_of(erp.create(item()))).may_be_duplicate
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

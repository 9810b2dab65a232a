"""Third parties that want to see the revision that a write is meant for: fetch the present one, then write (line 11).

Each against a server that behaves that way.
"""

from __future__ import annotations

from typing import Any

import pytest
from http_server import Server, failure_of
from record_store import OURS, THEIRS, Store, adapter, item
from revision_marks import (
    ASKED,
    DELETES,
    GETS,
    IF_MATCH,
    PUTS,
    REV,
    guarded,
)
from starlette.responses import JSONResponse, Response

from sync_orchestrator.errors import Failure

kinds = pytest.mark.parametrize("kind", ["etag", "etag in body", "rev", "changed at"])


def busy(store: Store, writes: int) -> None:
    """Somebody else writes the item just after each of the next reads."""
    shown, left = store.shown, iter(range(writes))

    def read(item: dict[str, Any]) -> Response:
        answer = shown(item)
        if next(left, None) is not None:
            item["v"] += 1
        return answer

    store.shown = read


@kinds
@pytest.mark.parametrize("without", [428, None])
async def test_the_present_revision_is_fetched_before_a_write(server: Server, kind: str, without: int | None) -> None:
    """ETag in header or body field, ``_rev``, timestamp in the body; required (428) or optional."""
    store = guarded(server, kind, without=without)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **ASKED[kind]})
    for name in ("first", "second"):
        assert await erp.update(item(external_id="x1", name=name)) == "x1"
    assert (store.items["x1"]["name"], store.calls[GETS], store.calls[PUTS]) == ("second", 2, 2)
    await erp.delete(item(external_id="x1"))
    assert (store.items, store.calls[GETS], store.calls[DELETES]) == ({}, 3, 1)
    await erp.close()


@kinds
@pytest.mark.parametrize("stale", [409, 412, 428])
async def test_on_a_conflict_the_revision_is_fetched_again_and_the_write_made_once_more(
    server: Server, kind: str, stale: int
) -> None:
    store = guarded(server, kind, stale=stale)
    store.by_hand(code="k1")
    busy(store, 1)
    erp = adapter(server, {**THEIRS, **ASKED[kind]})
    assert await erp.update(item(external_id="x1")) == "x1"
    assert (store.items["x1"]["name"], store.calls[GETS], store.calls[PUTS]) == ("n", 2, 2)
    busy(store, 1)
    await erp.delete(item(external_id="x1"))
    assert (store.items, store.calls[DELETES]) == ({}, 2)
    await erp.close()


async def test_a_conflict_that_a_rule_tells_inside_a_200(server: Server) -> None:
    store = guarded(server, stale=200)
    store.by_hand(code="k1")
    busy(store, 1)
    rule = {"when": "body.error == 'it has moved on'", "means": "conflict"}
    erp = adapter(server, {**THEIRS, **IF_MATCH, "outcomes": [rule]})
    assert await erp.update(item(external_id="x1")) == "x1"
    assert store.items["x1"]["name"] == "n"
    await erp.close()


async def test_a_second_conflict_in_one_push_leaves_the_record_to_the_next(server: Server) -> None:
    """Others write it all the time: that passes, and is no refusal of the payload."""
    store = guarded(server)
    store.by_hand(code="k1")
    busy(store, 10)
    erp = adapter(server, {**THEIRS, **IF_MATCH})
    for call in (erp.update, erp.delete):
        failure = await failure_of(call(item(external_id="x1")))
        assert (failure.kind, failure.unknown) == (Failure.TRANSIENT, False)
        assert "moved on" in failure.detail
    assert (store.calls[PUTS], store.calls[DELETES]) == (2, 2)
    await erp.close()


async def test_without_a_revision_in_the_call_a_conflict_is_a_refusal(server: Server) -> None:
    store = guarded(server)
    store.by_hand(code="k1")
    erp = adapter(server, THEIRS)
    assert (await failure_of(erp.update(item(external_id="x1")))).kind is Failure.PERMANENT
    assert store.calls == {PUTS: 1}
    await erp.close()


async def test_a_revision_is_sent_to_a_server_that_ignores_it(server: Server) -> None:
    store = Store(server)
    store.by_hand(code="k1")
    store.shown = lambda item: JSONResponse(item, headers={"ETag": '"old"'})
    erp = adapter(server, {**THEIRS, **IF_MATCH})
    assert await erp.update(item(external_id="x1")) == "x1"
    assert (store.headers[0]["if-match"], store.items["x1"]["name"]) == ('"old"', "n")
    await erp.close()


async def test_where_a_record_has_no_revision_none_is_sent(server: Server) -> None:
    """Optional: a server that shows none for some records takes writes of them without."""
    store = Store(server)
    store.by_hand(code="k1")
    erp = adapter(server, {**THEIRS, **IF_MATCH})
    assert await erp.update(item(external_id="x1")) == "x1"
    assert "if-match" not in store.headers[0]
    await erp.close()


async def test_nothing_is_written_where_the_fetch_shows_nothing(server: Server) -> None:
    """A server that asks for the revision first would answer 428 for what is missing, for ever."""
    store = guarded(server)
    erp = adapter(server, {**THEIRS, **IF_MATCH})
    assert await erp.update(item(external_id="x9")) is None
    await erp.delete(item(external_id="x9"))
    assert store.calls == {GETS: 2}
    await erp.close()


async def test_a_revision_that_cannot_be_fetched_is_no_missing_record(server: Server) -> None:
    store = guarded(server)
    store.by_hand(code="k1")
    store.shown = lambda item: JSONResponse({"error": "no rights"}, 403)
    erp = adapter(server, {**THEIRS, **IF_MATCH})
    for call in (erp.update, erp.delete):
        assert (await failure_of(call(item(external_id="x1")))).kind is Failure.AUTH
    assert store.calls[PUTS] == store.calls[DELETES] == 0
    await erp.close()


async def test_with_our_ids_what_is_missing_is_made_without_a_revision(server: Server) -> None:
    """As a document store does: the first PUT has none, each later one the present."""
    store = guarded(server, "rev", our_ids=True)
    erp = adapter(server, {**OURS, **REV})
    assert [await erp.create(item()), await erp.update(item(name="next"))] == ["k1", "k1"]
    assert ["_rev" in body for body in store.bodies] == [False, True]
    assert store.items["k1"]["name"] == "next"
    await erp.close()


@pytest.mark.parametrize("upsert", ["update_first", "create_first"])
async def test_either_order_of_post_and_patch_sends_the_revision_with_the_patch(server: Server, upsert: str) -> None:
    store = guarded(server, our_ids=True, unique=True, put_makes=False)
    erp = adapter(server, {**OURS, **IF_MATCH, "upsert": upsert, "create": THEIRS["create"]})
    assert [await erp.create(item()), await erp.update(item(name="next"))] == ["k1", "k1"]
    assert (store.items["k1"]["name"], store.calls[PUTS]) == ("next", 1)
    await erp.close()

"""Each way of writing in a drain: crashes between requests, lost responses, and what is sent after them."""

from __future__ import annotations

from typing import Any

import pytest
from http_server import Server
from mortals import Killed
from record_store import OURS, THEIRS, HttpWorld, Store, adapter, http_world, item
from sqlalchemy import Engine
from write_requests import CREATE_FIRST, LINKED, POST_ITEMS, PUT_ITEMS, PUT_STOCK, STOCK, UPDATE_FIRST

from sync_orchestrator.adapters.rest.writes import Writes


@pytest.mark.parametrize("target", [CREATE_FIRST, UPDATE_FIRST])
@pytest.mark.parametrize("lost", ["POST items", "PATCH items"])
def test_an_upsert_whose_answer_is_lost_ends_in_sync(
    engine: Engine, server: Server, target: dict[str, Any], lost: str
) -> None:
    store = Store(server, our_ids=True, unique=True)
    world = http_world(engine, server, target)
    store.after[lost] = [504]
    world.put_record("a")
    world.run_until_settled()
    world.put_record("a", name="next")
    world.run_until_settled()
    assert (store.items["a"]["name"], len(store.items), world.count_events_by_state()) == ("next", 1, {"done": 4})
    world.close()


@pytest.fixture
def shared(engine: Engine, server: Server) -> tuple[Store, HttpWorld]:
    """A server that others use, too, and that is searched before every create."""
    return Store(server), http_world(engine, server, {**THEIRS, "search_first": True})


def test_search_by_external_key_then_create(shared: tuple[Store, HttpWorld]) -> None:
    store, world = shared
    world.put_record("a")
    world.run_drain()
    assert (store.of("a"), world.read_record_row("a").external_id) == (["x1"], "x1")
    assert (store.calls["GET items"], store.calls[POST_ITEMS]) == (1, 1)
    world.put_record("a", name="next")
    world.run_drain()
    assert (store.calls["GET items"], store.calls[PUT_ITEMS]) == (2, 1)  # the second one looks whose the id is
    world.close()


def test_search_by_external_key_then_update(shared: tuple[Store, HttpWorld]) -> None:
    """What others have made is taken over, and not made a second time."""
    store, world = shared
    theirs = store.by_hand(code="a", name="theirs", store="A")
    world.put_record("a")
    world.run_drain()
    assert (store.of("a"), store.items[theirs]["name"], world.read_record_row("a").external_id) == (
        [theirs],
        "n",
        theirs,
    )
    assert (store.calls[POST_ITEMS], world.count_events_by_state()) == (0, {"done": 2})
    world.close()


def test_post_then_put_where_the_external_key_is_taken(engine: Engine, server: Server) -> None:
    store = Store(server, unique=True)
    world = http_world(engine, server, THEIRS)
    theirs = store.by_hand(code="a", name="theirs", store="A")
    world.put_record("a")
    world.run_drain()
    assert (store.items[theirs]["name"], len(store.items), world.count_events_by_state()) == ("n", 1, {"done": 2})
    world.close()


def test_put_then_post_where_the_known_id_leads_nowhere(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, THEIRS)
    world.put_record("a")
    world.run_drain()
    store.items.clear()
    world.put_record("a", name="next")
    world.run_drain()
    assert [record["name"] for record in store.items.values()] == ["next"]
    world.close()


LINKED_BY_KEY: dict[str, Any] = {
    **LINKED,
    "ids": "ours",
    "create": None,
    "lookup": None,
    "update": {**LINKED["update"], "then": [{**STOCK, "path": "/stock/{{ id }}"}]},
}


linked = pytest.mark.parametrize(("target", "our_ids"), [(LINKED, False), (LINKED_BY_KEY, True)])


@linked
def test_two_linked_calls_go_in_order_and_are_read_back_together(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool
) -> None:
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)
    world.put_record("a", count=5)
    world.run_drain()
    world.put_record("a", count=6)
    world.run_drain()
    writes = [(method, path.split("/")[1]) for method, path, _ in server.seen if method != "GET"]
    first = "PUT" if our_ids else "POST"
    assert writes == [(first, "items"), ("PUT", "stock"), ("PUT", "items"), ("PUT", "stock")]
    assert list(store.stock.values()) == [6]
    assert "level" not in next(iter(store.items.values()))
    world.close()


@linked
@pytest.mark.parametrize("status", [503, 429, 404, 401])
def test_the_first_of_two_linked_calls_is_not_repeated_as_a_create_when_the_second_failed(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool, status: int
) -> None:
    """The id that it gave is kept; the next attempt makes both calls again."""
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)
    store.instead[PUT_STOCK] = [status]
    world.put_record("a", count=5)
    world.run_drain()
    assert (len(store.items), store.stock, world.count_events_by_state()) == (
        1,
        {},
        {"dead": 2} if status == 404 else {"waiting": 2},
    )
    world.put_record("a", name="next", count=6)
    world.run_until_settled()
    assert (len(store.items), list(store.stock.values())) == (1, [6])
    assert world.read_record_row("a").applied_revision == world.read_record_row("a").revision
    world.close()


@linked
@pytest.mark.parametrize("lost", [POST_ITEMS, PUT_ITEMS, PUT_STOCK])
@pytest.mark.parametrize("landed", [True, False])
def test_two_linked_calls_of_which_an_answer_is_lost_end_in_sync(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool, lost: str, landed: bool
) -> None:
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)
    (store.after if landed else store.instead)[lost] = [504]
    world.put_record("a", count=5)
    world.run_until_settled()
    world.put_record("a", count=6)
    world.run_until_settled()
    assert (len(store.items), list(store.stock.values()), world.count_events_by_state()) == (1, [6], {"done": 4})
    world.close()


@linked
def test_a_process_that_dies_between_two_linked_calls_leaves_the_second_to_the_next(
    engine: Engine, server: Server, target: dict[str, Any], our_ids: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The product alone is there; what it is read back with shows that its stock level is not."""
    store = Store(server, our_ids=our_ids)
    world = http_world(engine, server, target)

    def die(*_: object) -> None:
        world.is_dead = True
        raise Killed

    world.put_record("a", count=5)
    with monkeypatch.context() as between_the_calls:
        between_the_calls.setattr(Writes, "_make_linked_calls", die)
        assert world.run_until_crash(world.run_drain, "there and nowhere else", 1)
    assert (len(store.items), store.stock) == (1, {})
    world.run_until_settled()
    assert (len(store.items), list(store.stock.values()), world.count_events_by_state()) == (1, [5], {"done": 2})
    world.close()


def test_drift_in_the_second_of_two_linked_calls_is_found_and_repaired(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, LINKED)
    for key in "abc":
        world.put_record(key, count=5)
    world.run_full_sync()
    assert world.run_validation().verdict == "in_sync"
    store.stock["x2"] = 7
    del store.stock["x3"]
    world.run_validation(repair="auto")
    world.run_drain()
    assert (list(store.stock.values()), world.run_validation().verdict) == ([5, 5, 5], "in_sync")
    world.close()


def test_duplicates_are_noticed_where_the_external_key_is_not_unique(engine: Engine, server: Server) -> None:
    store = Store(server)
    world = http_world(engine, server, THEIRS)
    world.put_record("a")
    world.run_full_sync()
    duplicate = store.by_hand(code="a", name="n", store="A", count=1)
    assert world.run_validation().verdict == "drift"
    assert world.read_record_row("a").external_id in store.items
    assert duplicate in store.items
    world.close()


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("/items/{{ id }}", "/items/a%2Fb%27c%20%C3%A9"),
        ("/items({{ id | odata }})", "/items(%27a%2Fb%27%27c%20%C3%A9%27)"),
        ("/items/{{ id | tilde }}", "/items/a~2Fb~27c+~C3~A9"),
        ("/items/{{ id | base64 }}", "/items/YS9iJ2Mgw6k%3D"),
    ],
)
async def test_path_encodings(server: Server, template: str, path: str) -> None:
    """Percent, OData quotes, tilde; and one that fits any character set."""
    server.respond_with({"code": "a/b'c é"})
    calls = {"update": {"method": "PUT", "path": template}, "delete": {"path": template}, "read": {"path": template}}
    erp = adapter(server, {**OURS, **calls})
    strange = item("a/b'c é")
    await erp.update(strange)
    await erp.read(strange)
    await erp.delete(strange)
    assert [sent for _, sent, _ in server.seen] == [path] * 3
    await erp.close()


def test_a_create_whose_answer_is_lost_is_repeated_under_its_idempotency_key(engine: Engine, server: Server) -> None:
    store = Store(server, remembers=True)
    world = http_world(engine, server, {**THEIRS, "lookup": None, "idempotency": {}})
    store.after[POST_ITEMS] = [504]
    world.put_record("a")
    world.run_drain()
    world.put_record("a", name="next")
    world.run_until_settled()
    assert [record["name"] for record in store.items.values()] == ["next"]
    world.close()


def test_a_record_made_again_after_it_was_deleted_has_another_idempotency_key(engine: Engine, server: Server) -> None:
    store = Store(server, remembers=True)
    world = http_world(engine, server, {**THEIRS, "idempotency": {}})
    world.put_record("a")
    world.run_drain()
    world.delete_record("a")
    world.run_drain()
    assert store.items == {}
    world.put_record("a")
    world.run_drain()
    assert len(store.of("a")) == 1
    world.close()

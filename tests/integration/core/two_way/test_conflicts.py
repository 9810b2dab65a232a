"""Conflicts and deletions of records that people change on both sides, and what people decide about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine
from two_sides import Book, TwoSides, build_document

from sync_orchestrator.core.two_way.resolving import (
    CannotResolve,
    Choice,
    break_link,
    count_links,
    list_conflicts,
    list_waiting_records,
    make_link,
    resolve_alike,
    resolve_conflict,
)
from sync_orchestrator.core.two_way.rules import TwoWay
from sync_orchestrator.core.two_way.three_way import Winner

Make = Callable[..., TwoSides]


@pytest.fixture
def make(engine: Engine) -> Iterator[Make]:
    made: list[TwoSides] = []

    def make_sides(**options: Any) -> TwoSides:
        made.append(TwoSides(engine, build_document(**options)))
        return made[-1]

    yield make_sides
    for sides in made:
        sides.close()


async def begin(sides: TwoSides) -> TwoSides:
    """A record that is on both sides."""
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    await sides.sync()
    await sides.settle(3)
    return sides


async def change_both(sides: TwoSides, ours: object = 11, theirs: object = 12, sku: str = "L-1") -> int:
    """Both sides change the price; returns the number of the conflict."""
    sides.shop.edit(sides.shop.find(sku).id, price=ours)
    sides.erp.edit(sides.erp.find(sku).id, price=theirs)
    await sides.settle(2)
    return int(conflicts(sides)[0]["id"])


def two_way_of(sides: TwoSides) -> TwoWay:
    two_way = sides.entity("product").two_way
    assert two_way is not None
    return two_way


def conflicts(sides: TwoSides, *states: str) -> list[dict[str, Any]]:
    with sides.engine.begin() as connection:
        return list_conflicts(connection, states=states or ("open",))


def resolve(sides: TwoSides, number: int, choice: Choice, **more: Any) -> dict[str, Any]:
    with sides.engine.begin() as connection:
        return resolve_conflict(connection, {"product": two_way_of(sides)}, number, choice, **more)


def open_alerts(sides: TwoSides) -> list[str]:
    """The causes of the alerts that tell people to decide."""
    rows = sides.query("SELECT cause FROM sync.alerts WHERE kind = 'conflicts' AND resolved_at IS NULL ORDER BY cause")
    return [row.cause for row in rows]


def break_apart(sides: TwoSides) -> str:
    """A person ends the only link; returns the key of their record."""
    (link,) = sides.query("SELECT key FROM sync.links")
    with sides.engine.begin() as connection:
        return break_link(connection, two_way_of(sides), link.key)


def begin_to_delete(sides: TwoSides, side: str) -> tuple[Book, Winner]:
    """One side deletes the record; returns the other system, and the winner that follows the deletion."""
    deleted, left = (sides.shop, sides.erp) if side == "shop" else (sides.erp, sides.shop)
    deleted.remove(deleted.find("L-1").id)
    return left, Winner.OURS if side == "shop" else Winner.THEIRS


def prices(sides: TwoSides) -> tuple[Any, Any]:
    return sides.shop.find("L-1").fields["price"], sides.erp.find("L-1").fields["price"]


@pytest.mark.parametrize("keys", ["same", "ids"])
@pytest.mark.parametrize(
    ("choice", "wanted"),
    [(Choice(Winner.OURS), 11), (Choice(Winner.THEIRS), 12), (Choice(None, 13), 13)],
    ids=["ours", "theirs", "another value"],
)
async def test_what_a_person_decides_goes_to_both_sides(make: Make, keys: str, choice: Choice, wanted: int) -> None:
    sides = await begin(make(keys=keys))
    number = await change_both(sides)
    resolved = resolve(sides, number, choice, by="ada", reason="by phone")
    assert (resolved["state"], resolved["resolved_by"], resolved["reason"]) == ("resolved", "ada", "by phone")
    await sides.settle(3)
    assert prices(sides) == (wanted, wanted)
    assert conflicts(sides) == []
    before = sides.writes
    await sides.sync()
    await sides.settle(3)
    assert sides.writes == before
    for name in ("product", "product_back"):
        assert (await sides.validate(name)).verdict == "in_sync"


async def test_a_decision_that_a_newer_change_has_overtaken_is_refused_and_shown_anew(make: Make) -> None:
    sides = await begin(make())
    number = await change_both(sides)
    sides.erp.edit(sides.erp.find("L-1").id, price=14)
    await sides.settle(2)
    with pytest.raises(CannotResolve, match="a newer change has overtaken it"):
        resolve(sides, number, Choice(Winner.OURS))
    (shown,) = conflicts(sides)
    assert (shown["ours"], shown["theirs"]) == (11, 14)
    resolve(sides, shown["id"], Choice(Winner.OURS))
    await sides.settle(3)
    assert prices(sides) == (11, 11)


async def test_an_edit_that_nobody_has_told_of_is_safe_from_a_decision(make: Make) -> None:
    sides = await begin(make())
    number = await change_both(sides)
    sides.erp.notify = lambda row_id, row: None
    sides.erp.edit(sides.erp.find("L-1").id, price=15)
    resolve(sides, number, Choice(Winner.OURS))
    await sides.settle(3)
    assert prices(sides) == (11, 15)
    (shown,) = conflicts(sides)
    assert (shown["ours"], shown["theirs"]) == (11, 15)


async def test_a_conflict_ends_by_itself_where_both_sides_come_to_the_same(make: Make) -> None:
    sides = await begin(make())
    await change_both(sides)
    sides.shop.edit(sides.shop.find("L-1").id, price=12)
    await sides.settle(2)
    assert conflicts(sides) == []
    assert [row["state"] for row in conflicts(sides, "over")] == ["over"]
    assert open_alerts(sides) == []


async def test_an_alert_lasts_until_the_last_conflict_about_its_field_is_decided(make: Make) -> None:
    fields = {name: {"ours": f"shop.{name}", "theirs": f"erp.{name}", "policy": "ask"} for name in ("price", "note")}
    fields["title"] = {"ours": "shop.title", "theirs": "erp.title", "policy": "ours"}
    sides = await begin(make(fields=fields))
    sides.shop.edit(sides.shop.find("L-1").id, price=11, note="ours")
    sides.erp.edit(sides.erp.find("L-1").id, price=12, note="theirs")
    await sides.settle(2)
    assert open_alerts(sides) == ["product: note", "product: price"]
    numbers = {row["field"]: row["id"] for row in conflicts(sides)}
    resolve(sides, numbers["price"], Choice(Winner.OURS))
    assert open_alerts(sides) == ["product: note"]
    resolve(sides, numbers["note"], Choice(Winner.OURS))
    assert open_alerts(sides) == []


async def test_all_conflicts_about_a_field_are_decided_alike(make: Make) -> None:
    sides = await begin(make())
    sides.shop.add(sku="L-2", title="chair", note="m", price=20)
    await sides.settle(3)
    await change_both(sides)
    number = await change_both(sides, 21, 22, "L-2")
    with sides.engine.begin() as connection:
        assert resolve_alike(connection, {"product": two_way_of(sides)}, number, Choice(Winner.THEIRS)) == 2
    await sides.settle(3)
    assert sides.shop.values("price") == sides.erp.values("price") == {"L-1": (12,), "L-2": (22,)}


async def test_what_cannot_be_resolved_says_why(make: Make) -> None:
    sides = await begin(make(deletes={"ours": "ask", "theirs": "ask"}))
    with pytest.raises(CannotResolve, match="there is no conflict 4711"):
        resolve(sides, 4711, Choice(Winner.OURS))
    number = await change_both(sides)
    resolve(sides, number, Choice(Winner.OURS), by="ada")
    with pytest.raises(CannotResolve, match=f"conflict {number} is not open any more: ada has resolved it"):
        resolve(sides, number, Choice(Winner.OURS))
    await sides.settle(3)
    sides.shop.remove(sides.shop.find("L-1").id)
    await sides.settle(2)
    with pytest.raises(CannotResolve, match="is about a deletion: choose ours or theirs"):
        resolve(sides, conflicts(sides)[0]["id"], Choice(None, 3))


# Deletions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys", ["same", "ids"])
@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_a_deletion_waits_for_a_person_who_has_it_followed(make: Make, side: str, keys: str) -> None:
    sides = await begin(make(keys=keys, deletes={"ours": "ask", "theirs": "ask"}))
    book, other = (sides.shop, sides.erp) if side == "shop" else (sides.erp, sides.shop)
    book.remove(book.find("L-1").id)
    await sides.settle(3)
    assert "L-1" in other.values("price")
    (shown,) = conflicts(sides)
    assert shown["field"] is None
    resolve(sides, shown["id"], Choice(Winner.OURS if side == "shop" else Winner.THEIRS))
    await sides.settle(3)
    assert sides.shop.rows == sides.erp.rows == {}
    assert sides.query("SELECT * FROM sync.links") == []


@pytest.mark.parametrize("keys", ["same", "ids"])
@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_a_deletion_waits_for_a_person_who_has_the_record_made_again(make: Make, side: str, keys: str) -> None:
    sides = await begin(make(keys=keys, deletes={"ours": "ask", "theirs": "ask"}))
    book, other = (sides.shop, sides.erp) if side == "shop" else (sides.erp, sides.shop)
    book.remove(book.find("L-1").id)
    await sides.settle(3)
    resolve(sides, conflicts(sides)[0]["id"], Choice(Winner.THEIRS if side == "shop" else Winner.OURS))
    await sides.settle(5)
    assert sides.shop.values("title", "price") == sides.erp.values("title", "price") == {"L-1": ("lamp", 10)}
    other.edit(other.find("L-1").id, note="both are linked again")
    await sides.settle(3)
    assert book.values("note") == {"L-1": ("both are linked again",)}


@pytest.mark.parametrize("policy", ["ask", "follow"])
@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_a_deletion_is_asked_about_anew_once_the_other_record_has_changed(
    make: Make, side: str, policy: str
) -> None:
    sides = await begin(make(deletes={"ours": policy, "theirs": policy}))
    book = sides.erp if side == "shop" else sides.shop
    book.edit(book.find("L-1").id, note="worked on")
    left, follow = begin_to_delete(sides, side)
    await sides.settle(2)
    (shown,) = conflicts(sides)
    left.edit(left.find("L-1").id, note="worked on again")
    await sides.settle(2)
    with pytest.raises(CannotResolve, match="a newer change has overtaken it"):
        resolve(sides, shown["id"], Choice(follow))
    (anew,) = conflicts(sides)
    assert anew["theirs" if side == "shop" else "ours"]["note"] == "worked on again"
    resolve(sides, anew["id"], Choice(follow))
    await sides.settle(3)
    assert sides.shop.rows == sides.erp.rows == {}
    assert (conflicts(sides), open_alerts(sides)) == ([], [])


@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_an_edit_that_nobody_has_told_of_is_safe_from_a_decided_deletion(make: Make, side: str) -> None:
    sides = await begin(make(deletes={"ours": "ask", "theirs": "ask"}))
    left, follow = begin_to_delete(sides, side)
    await sides.settle(2)
    (shown,) = conflicts(sides)
    left.notify = lambda row_id, row: None
    left.edit(left.find("L-1").id, note="unheard")
    resolve(sides, shown["id"], Choice(follow))
    await sides.settle(4)
    assert left.values("note") == {"L-1": ("unheard",)}
    (anew,) = conflicts(sides)
    assert anew["theirs" if side == "shop" else "ours"]["note"] == "unheard"


@pytest.mark.parametrize("winner", [Winner.OURS, Winner.THEIRS])
async def test_a_deletion_overtakes_the_conflicts_about_fields_of_its_record(make: Make, winner: Winner) -> None:
    sides = await begin(make(deletes={"ours": "ask", "theirs": "ask"}))
    number = await change_both(sides)
    begin_to_delete(sides, "shop")
    await sides.settle(2)
    (shown,) = conflicts(sides)
    assert shown["field"] is None
    assert open_alerts(sides) == ["product: deleted on one side"]
    with pytest.raises(CannotResolve, match="a newer change has overtaken it"):
        resolve(sides, number, Choice(Winner.OURS))
    resolve(sides, shown["id"], Choice(winner))
    await sides.settle(4)
    assert sides.shop.values("price") == sides.erp.values("price") == ({} if winner is Winner.OURS else {"L-1": (12,)})
    assert (conflicts(sides), open_alerts(sides)) == ([], [])


async def test_nothing_is_left_to_decide_where_the_deleted_record_comes_back(make: Make) -> None:
    sides = await begin(make(deletes={"ours": "ask", "theirs": "ask"}))
    begin_to_delete(sides, "shop")
    await sides.settle(2)
    (shown,) = conflicts(sides)
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    await sides.settle(3)
    assert (conflicts(sides), open_alerts(sides)) == ([], [])
    with pytest.raises(CannotResolve, match="is not open any more"):
        resolve(sides, shown["id"], Choice(Winner.OURS))
    assert sides.erp.values("price") == {"L-1": (10,)}


async def test_nothing_is_left_to_decide_where_the_other_side_deletes_the_record_too(make: Make) -> None:
    sides = await begin(make(deletes={"ours": "ask", "theirs": "ask"}))
    begin_to_delete(sides, "shop")
    await sides.settle(2)
    sides.erp.remove(sides.erp.find("L-1").id)
    await sides.settle(3)
    assert (conflicts(sides), open_alerts(sides)) == ([], [])
    assert sides.query("SELECT * FROM sync.links") == []


async def test_a_record_that_was_changed_since_is_not_deleted_unasked(make: Make) -> None:
    sides = await begin(make())
    sides.erp.edit(sides.erp.find("L-1").id, note="worked on")
    sides.shop.remove(sides.shop.find("L-1").id)
    await sides.settle(3)
    assert sides.erp.values("note") == {"L-1": ("worked on",)}
    (shown,) = conflicts(sides)
    assert (shown["field"], shown["theirs"]["note"]) == (None, "worked on")


async def test_with_ignore_the_other_record_stays_and_is_not_followed_any_more(make: Make) -> None:
    sides = await begin(make(deletes={"ours": "ignore", "theirs": "ignore"}))
    sides.shop.remove(sides.shop.find("L-1").id)
    await sides.settle(3)
    sides.erp.edit(sides.erp.find("L-1").id, note="still here")
    await sides.settle(3)
    assert (sides.shop.rows, sides.erp.values("note")) == ({}, {"L-1": ("still here",)})
    assert conflicts(sides) == []


@pytest.mark.parametrize("keys", ["same", "ids"])
async def test_with_restore_it_is_made_again(make: Make, keys: str) -> None:
    sides = await begin(make(keys=keys, deletes={"ours": "restore", "theirs": "restore"}))
    sides.shop.remove(sides.shop.find("L-1").id)
    await sides.settle(5)
    assert sides.shop.values("note") == sides.erp.values("note") == {"L-1": ("n",)}


# Links --------------------------------------------------------------------------------------------------------------


async def test_several_records_with_one_natural_key_are_not_linked_by_themselves(make: Make) -> None:
    sides = make(keys="ids")
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    for price in (10, 11):
        sides.erp.add(sku="L-1", title="lamp", note="n", price=price)
    await sides.sync()
    await sides.settle(3)
    assert (len(sides.shop.rows), len(sides.erp.rows)) == (1, 2), "nothing was made"
    two_way = two_way_of(sides)
    with sides.engine.begin() as connection:
        assert {row["reason"] for row in list_waiting_records(connection, two_way)} == {"ambiguous"}
        assert count_links(connection, two_way).linked == 0
        make_link(connection, two_way, "shop-1", "erp-2")
        with pytest.raises(CannotResolve, match="is linked already"):
            make_link(connection, two_way, "shop-1", "erp-1")
        with pytest.raises(CannotResolve, match="product has no record 'shop-9'"):
            make_link(connection, two_way, "shop-9", "erp-1")
    await sides.settle(3)
    assert conflicts(sides)[0]["field"] == "price", "first: ask"
    resolve(sides, conflicts(sides)[0]["id"], Choice(Winner.THEIRS))
    await sides.settle(3)
    assert sides.shop.rows["shop-1"].fields["price"] == 11


async def test_a_link_that_a_person_breaks_is_not_made_again(make: Make) -> None:
    sides = await begin(make())
    assert break_apart(sides) == "L-1"
    with pytest.raises(CannotResolve, match="is not linked"):
        break_apart(sides)
    sides.shop.edit(sides.shop.find("L-1").id, note="ours alone")
    await sides.settle(3)
    assert (sides.shop.values("note"), sides.erp.values("note")) == ({"L-1": ("ours alone",)}, {"L-1": ("n",)})


@pytest.mark.parametrize("keys", ["same", "ids"])
@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_a_deletion_does_not_follow_a_link_that_a_person_has_broken(make: Make, side: str, keys: str) -> None:
    sides = await begin(make(keys=keys))
    break_apart(sides)
    left, _ = begin_to_delete(sides, side)
    await sides.settle(4)
    await sides.sync()
    await sides.settle(3)
    assert (len(sides.shop.rows) + len(sides.erp.rows), left.values("price")) == (1, {"L-1": (10,)})


async def test_a_link_is_forgotten_once_both_records_are_gone(make: Make) -> None:
    sides = await begin(make())
    break_apart(sides)
    for book in (sides.shop, sides.erp):
        book.remove(book.find("L-1").id)
        await sides.settle(3)
    assert sides.query("SELECT * FROM sync.links") == []
    sides.erp.add(sku="L-1", title="lamp", note="anew", price=10)
    await sides.settle(4)
    assert sides.shop.values("note") == {"L-1": ("anew",)}


async def test_nothing_is_left_to_decide_about_a_link_that_a_person_breaks(make: Make) -> None:
    sides = await begin(make(deletes={"ours": "ask", "theirs": "ask"}))
    number = await change_both(sides)
    break_apart(sides)
    assert (conflicts(sides), open_alerts(sides)) == ([], [])
    with pytest.raises(CannotResolve, match="or are not linked any more"):
        resolve(sides, number, Choice(Winner.OURS))
    await sides.settle(3)
    assert prices(sides) == (11, 12)


async def test_a_deletion_that_waits_is_not_followed_once_a_person_breaks_the_link(make: Make) -> None:
    sides = await begin(make(deletes={"ours": "ask", "theirs": "ask"}))
    begin_to_delete(sides, "shop")
    await sides.settle(2)
    break_apart(sides)
    await sides.settle(3)
    assert (conflicts(sides), open_alerts(sides)) == ([], [])
    assert sides.erp.values("price") == {"L-1": (10,)}
    (row,) = sides.query("SELECT stopped, error FROM sync.records WHERE deleted")
    assert (row.stopped, row.error) == ("discarded", "not followed: separated by a person")


@pytest.mark.parametrize("keys", ["same", "ids"])
async def test_a_link_that_was_broken_can_be_made_again(make: Make, keys: str) -> None:
    sides = await begin(make(keys=keys))
    (link,) = sides.query("SELECT key, theirs_key FROM sync.links")
    break_apart(sides)
    with sides.engine.begin() as connection:
        make_link(connection, two_way_of(sides), link.key, link.theirs_key)
    sides.shop.edit(sides.shop.find("L-1").id, note="linked again")
    await sides.settle(3)
    assert sides.erp.values("note") == {"L-1": ("linked again",)}

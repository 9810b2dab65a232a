"""Fields that people change on both sides: what each side has in the end, and what is written on the way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine
from two_sides import TwoSides, build_document


@pytest.fixture(params=["same", "ids"])
def sides(request: pytest.FixtureRequest, engine: Engine) -> Iterator[TwoSides]:
    sides = TwoSides(engine, build_document(keys=request.param))
    yield sides
    sides.close()


async def begin(sides: TwoSides) -> None:
    """Two records, one made on each side, are on both."""
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    sides.erp.add(sku="C-1", title="chair", note="m", price=20)
    await sides.sync()
    await sides.settle(3)


async def test_records_made_on_either_side_are_made_on_the_other(sides: TwoSides) -> None:
    await begin(sides)
    for book in (sides.shop, sides.erp):
        assert book.values("title", "note", "price") == {"L-1": ("lamp", "n", 10), "C-1": ("chair", "m", 20)}
    before = sides.writes
    # With ids, each side also learns under which id the other one has the record.
    assert before == (2 if sides.is_by_sku else 4)
    await sides.settle(3)
    assert sides.writes == before
    assert (await sides.validate("product")).verdict == "in_sync"
    assert (await sides.validate("product_back")).verdict == "in_sync"


@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_an_edit_on_one_side_goes_to_the_other_by_one_write(sides: TwoSides, side: str) -> None:
    await begin(sides)
    before = sides.writes
    book = getattr(sides, side)
    book.edit(book.find("L-1").id, note="edited", price=11)
    await sides.settle(3)
    for each in (sides.shop, sides.erp):
        assert each.values("note", "price")["L-1"] == ("edited", 11)
    assert sides.writes == before + 1


@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_a_change_of_a_field_that_the_other_side_owns_is_put_back_and_kept(sides: TwoSides, side: str) -> None:
    await begin(sides)
    sides.erp.edit(sides.erp.find("L-1").id, title="a lamp of theirs")
    await sides.settle(3)
    for each in (sides.shop, sides.erp):
        assert each.values("title")["L-1"] == ("lamp",)
    (noted,) = sides.query("SELECT field, ours, theirs, winner, state FROM sync.conflicts")
    assert tuple(noted) == ("title", "lamp", "a lamp of theirs", "ours", "decided")


async def test_the_newer_of_two_changes_wins_and_the_other_is_kept(sides: TwoSides) -> None:
    await begin(sides)
    sides.shop.edit(sides.shop.find("L-1").id, note="older")
    sides.erp.edit(sides.erp.find("L-1").id, note="newer")
    await sides.settle(3)
    for each in (sides.shop, sides.erp):
        assert each.values("note")["L-1"] == ("newer",)
    (noted,) = sides.query("SELECT field, ours, theirs, winner, state FROM sync.conflicts")
    assert tuple(noted) == ("note", "older", "newer", "theirs", "decided")


async def test_a_conflict_that_a_person_decides_holds_its_field_alone(sides: TwoSides) -> None:
    await begin(sides)
    sides.shop.edit(sides.shop.find("L-1").id, price=11, note="x")
    sides.erp.edit(sides.erp.find("L-1").id, price=12)
    await sides.settle(3)
    assert sides.shop.values("price", "note")["L-1"] == (11, "x")
    assert sides.erp.values("price", "note")["L-1"] == (12, "x")
    (noted,) = sides.query("SELECT field, ours, theirs, winner, state FROM sync.conflicts")
    assert tuple(noted) == ("price", 11, 12, None, "open")
    before = sides.writes
    await sides.settle(3)
    assert sides.writes == before


@pytest.mark.parametrize("fault", ["lost_before", "lost_after", "late", "down", "refused"])
@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_an_edit_whose_write_goes_wrong_arrives_all_the_same(sides: TwoSides, side: str, fault: str) -> None:
    await begin(sides)
    book, other = getattr(sides, side), sides.erp if side == "shop" else sides.shop
    other.faults = [fault]  # type: ignore[list-item]
    book.edit(book.find("L-1").id, note="edited")
    await sides.drain()
    other.land()
    if fault == "refused":
        book.edit(book.find("L-1").id, note="edited again")
    await sides.settle()
    wanted = "edited again" if fault == "refused" else "edited"
    for each in (sides.shop, sides.erp):
        assert each.values("note")["L-1"] == (wanted,)
    assert sides.query("SELECT * FROM sync.conflicts") == []


async def test_an_edit_during_a_write_of_the_same_field_is_not_overwritten(sides: TwoSides) -> None:
    await begin(sides)
    notify, sides.erp.notify = sides.erp.notify, lambda row_id, row: None
    sides.erp.edit(sides.erp.find("L-1").id, note="theirs, and nobody told us")
    sides.erp.notify = notify
    sides.shop.edit(sides.shop.find("L-1").id, note="ours")
    await sides.settle(4)
    for each in (sides.shop, sides.erp):
        assert each.values("note")["L-1"] == ("ours",)
    (noted,) = sides.query("SELECT field, ours, theirs, winner, state FROM sync.conflicts")
    assert tuple(noted) == ("note", "ours", "theirs, and nobody told us", "ours", "decided")


@pytest.mark.parametrize("side", ["shop", "erp"])
async def test_a_deletion_follows(sides: TwoSides, side: str) -> None:
    await begin(sides)
    book = getattr(sides, side)
    book.remove(book.find("L-1").id)
    await sides.settle(4)
    for each in (sides.shop, sides.erp):
        assert set(each.values("note")) == {"C-1"}
    assert len(sides.query("SELECT key FROM sync.links")) == 1

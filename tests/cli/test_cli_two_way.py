"""``conflicts`` and ``links``: what they print, and what they do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import Engine
from two_sides import TwoSides, build_document
from typer.testing import CliRunner, Result

from sync_orchestrator import composition
from sync_orchestrator.cli import app

Run = Callable[..., Result]


@pytest.fixture
def sides(engine: Engine) -> Iterator[TwoSides]:
    sides = TwoSides(engine, build_document(keys="ids"))
    yield sides
    sides.close()


@pytest.fixture
def run(sides: TwoSides, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(composition, "load_config", lambda: sides.config)
    monkeypatch.setattr(composition, "open_database", lambda: sides.engine)
    monkeypatch.setattr(composition, "require_database", lambda: None)

    def run_command(*words: object) -> Result:
        result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run_command


def test_a_conflict_is_listed_shown_and_decided(sides: TwoSides, run: Run) -> None:
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    asyncio.run(sides.sync())
    asyncio.run(sides.settle(3))
    none = run("conflicts", "list")
    assert (none.exit_code, none.stdout.strip().splitlines()[-1]) == (0, "there are none")

    sides.shop.edit("shop-1", price=11)
    sides.erp.edit("erp-1", price=12)
    asyncio.run(sides.settle(2))
    listed = run("conflicts", "list", "--json")
    (row,) = json.loads(listed.stdout)
    assert (listed.exit_code, row["key"], row["theirs_key"], row["ours"], row["theirs"], row["agreed"]) == (
        1,
        "shop-1",
        "erp-1",
        11,
        12,
        10,
    )
    assert all(word in run("conflicts", "list").stdout for word in ("shop-1", "price", "11", "12"))
    assert json.loads(run("conflicts", "show", row["id"]).stdout)["policy"] == "ask"

    unclear = run("conflicts", "resolve", row["id"])
    assert (unclear.exit_code, "say one of --ours, --theirs, --value JSON" in unclear.output) == (2, True)
    no_json = run("conflicts", "resolve", row["id"], "--value", "cheap")
    assert (no_json.exit_code, "A text needs quotes" in no_json.output) == (2, True)
    decided = run("conflicts", "resolve", row["id"], "--value", "12.5", "--reason", "by phone")
    assert decided.stdout == f"conflict {row['id']} resolved; the next drain brings the value to both sides\n"
    asyncio.run(sides.settle(3))
    assert sides.shop.values("price") == sides.erp.values("price") == {"L-1": (12.5,)}
    again = run("conflicts", "resolve", row["id"], "--ours")
    assert (again.exit_code, "is not open any more" in again.output) == (2, True)
    (kept,) = json.loads(run("conflicts", "list", "--all", "--json").stdout)
    assert (kept["state"], kept["winner"], kept["reason"]) == ("resolved", "value", "by phone")


def test_what_is_not_linked_is_listed_with_the_reason_and_linked_by_hand(sides: TwoSides, run: Run) -> None:
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    for _ in range(2):
        sides.erp.add(sku="L-1", title="lamp", note="n", price=10)
    asyncio.run(sides.sync())
    asyncio.run(sides.settle(2))
    listed = json.loads(run("links", "list", "product", "--json").stdout)
    assert (listed["linked"], listed["ambiguous"], listed["only_ours"], listed["only_theirs"]) == (0, 3, 1, 2)
    assert "several records have the same sku" in run("links", "list", "product").stdout
    assert run("links", "make", "product", "shop-1", "erp-2").stdout == "product shop-1 is linked with erp-2\n"
    assert json.loads(run("links", "list", "product", "--json").stdout)["linked"] == 1
    ended = run("links", "break", "product", "shop-1").stdout
    assert ended == "product shop-1 and erp-2 are not linked any more\n"
    wrong = run("links", "list", "product_back")
    assert (wrong.exit_code, "entity 'product_back' has no two_way; these have: product" in wrong.output) == (2, True)


def test_a_deletion_is_decided_by_the_side_that_wins(sides: TwoSides, run: Run) -> None:
    sides.shop.add(sku="L-1", title="lamp", note="n", price=10)
    asyncio.run(sides.sync())
    asyncio.run(sides.settle(3))
    sides.erp.edit("erp-1", note="worked on")
    sides.shop.remove("shop-1")
    asyncio.run(sides.settle(2))
    assert "(deleted)" in run("conflicts", "list").stdout
    (row,) = json.loads(run("conflicts", "list", "--json").stdout)
    wrong = run("conflicts", "resolve", row["id"], "--value", "1")
    assert (wrong.exit_code, "is about a deletion: choose ours or theirs, not a value" in wrong.output) == (2, True)
    followed = run("conflicts", "resolve", row["id"], "--ours")
    assert followed.stdout == f"conflict {row['id']} resolved; the next drain carries it out\n"
    asyncio.run(sides.settle(3))
    assert sides.erp.rows == {}


def test_conflicts_are_filtered_and_decided_alike(sides: TwoSides, run: Run) -> None:
    for sku in ("L-1", "L-2"):
        sides.shop.add(sku=sku, title="lamp", note="n", price=10)
    asyncio.run(sides.sync())
    asyncio.run(sides.settle(3))
    for sku in ("L-1", "L-2"):
        sides.shop.edit(sides.shop.find(sku).id, price=11)
        sides.erp.edit(sides.erp.find(sku).id, price=12)
    asyncio.run(sides.settle(2))
    (row,) = json.loads(run("conflicts", "list", "--key", "shop-2", "--field", "price", "--json").stdout)
    assert row["key"] == "shop-2"
    assert json.loads(run("conflicts", "list", "--field", "title", "--json").stdout) == []
    unknown = run("conflicts", "show", 4711)
    assert (unknown.exit_code, "there is no conflict 4711" in unknown.output) == (2, True)
    assert run("conflicts", "resolve", row["id"], "--theirs", "--all-alike").stdout == "2 conflicts resolved\n"
    asyncio.run(sides.settle(3))
    assert sides.shop.values("price") == sides.erp.values("price") == {"L-1": (12,), "L-2": (12,)}

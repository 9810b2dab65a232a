"""Modification times that are coarser than changes: a row that is deleted and comes again within one unit of them."""

from __future__ import annotations

from typing import Any

import pytest
from captured_shop import Assemble, assemble
from captured_sources import (
    AnySource,
    begun,
    captured_config,
    eventually,
    query,
    reading,
    received,
    wheel_server,
    wheel_shop,
    wheel_source,
)
from captured_sources import _quick as _quick
from mariadb_servers import mariadb, mariadb_shop, mariadb_source
from sqlalchemy import Engine

__all__ = ["assemble", "mariadb", "mariadb_shop", "mariadb_source", "wheel_server", "wheel_shop", "wheel_source"]

MINUTE = "2026-01-01 10:00:00"
WHOLE_ROWS: dict[str, Any] = {}
KEYS_ALONE: dict[str, Any] = {"changes": {"by": "log", "tables": {"items": "sku"}}}


@pytest.fixture(params=["whole rows", "keys alone", "mariadb"])
def shop(request: pytest.FixtureRequest) -> tuple[AnySource, dict[str, Any]]:
    """A source, and what is configured of its part: how much the log tells of a row."""
    if request.param == "mariadb":
        return request.getfixturevalue("mariadb_shop"), WHOLE_ROWS
    return request.getfixturevalue("wheel_shop"), WHOLE_ROWS if request.param == "whole rows" else KEYS_ALONE


@pytest.mark.parametrize("known", ["archived", "on its way", "from before the stream"])
@pytest.mark.parametrize("drained_between", [True, False], ids=["drained between", "drained at the end"])
def test_a_row_that_comes_again_with_the_same_modification_time_is_there(
    known: str,
    drained_between: bool,
    shop: tuple[AnySource, dict[str, Any]],
    engine: Engine,
    assemble: Assemble,
) -> None:
    source, part = shop
    config = captured_config(source, part=part)
    made, changes = assemble(config), 0

    def change(statement: str) -> None:
        nonlocal changes
        changes += 1
        with reading(engine, config):
            source.execute(statement)
            eventually(lambda: received(engine) == changes, statement)

    if known == "from before the stream":
        source.execute(f"INSERT INTO items VALUES ('a', 'A', '{MINUTE}', 'old')")
    begun(engine, config, source)
    if known != "from before the stream":
        change(f"INSERT INTO items VALUES ('a', 'A', '{MINUTE}', 'old')")
    if known == "archived":
        made.run_drain()
    change("DELETE FROM items WHERE sku = 'a'")
    if drained_between:
        made.run_drain()
    change(f"INSERT INTO items VALUES ('a', 'A', '{MINUTE}', 'new')")
    made.run_drain()
    assert made.names() == {"a": "new"}
    change("DELETE FROM items WHERE sku = 'a'")
    made.run_drain()
    assert made.names() == {}


def test_a_row_that_comes_and_goes_before_a_drain_leaves_nothing_waiting(
    shop: tuple[AnySource, dict[str, Any]], engine: Engine, assemble: Assemble
) -> None:
    source, part = shop
    config = captured_config(source, part=part)
    made = assemble(config)
    begun(engine, config, source)
    with reading(engine, config):
        source.execute(f"INSERT INTO items VALUES ('a', 'A', '{MINUTE}', 'old')")
        source.execute("DELETE FROM items WHERE sku = 'a'")
        eventually(lambda: received(engine) == 2, "both changes")
    made.run_drain()
    query(engine, "UPDATE sync.events SET due_at = sync.clock() RETURNING seq")
    made.run_drain()
    assert made.names() == {}
    assert not query(engine, "SELECT seq FROM sync.events WHERE revision IS NULL")

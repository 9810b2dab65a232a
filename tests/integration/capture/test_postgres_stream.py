"""Changes captured from the log of a real Postgres: what is recorded, in which order, and what is acknowledged."""

from __future__ import annotations

from captured_sources import (
    CapturedSource,
    begun,
    captured_config,
    eventually,
    machine_server,
    query,
    reading,
    received,
    recorded,
    shop,
    source,
    wheel_server,
    wheel_shop,
    wheel_source,
)
from captured_sources import _quick as _quick
from sqlalchemy import Engine

__all__ = ["machine_server", "shop", "source", "wheel_server", "wheel_shop", "wheel_source"]


def test_rows_become_change_events_in_the_order_of_their_commits(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    with reading(engine, config):
        eventually(lambda: query(engine, "SELECT FROM sync.streams WHERE position <> ''"), "the stream")
        shop.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01T00:00:00Z', 'one')")
        shop.execute("UPDATE items SET name = 'two', v = '2026-01-02T00:00:00Z' WHERE sku = 'a'")
        shop.execute("DELETE FROM items WHERE sku = 'a'")
        eventually(lambda: received(engine) == 3, "three events")
    first, second, third = recorded(engine)
    assert (first.key, first.group_key, first.action, first.version) == ("a", "A", "create", 1_767_225_600_000_000)
    assert first.data == {"sku": "a", "store": "A", "v": "2026-01-01T00:00:00Z", "name": "one"}
    assert (second.action, second.data["name"]) == ("create", "two")
    assert (third.action, third.version, third.data) == ("delete", second.version, None)
    assert {row.origin for row in recorded(engine)} == {"capture"}


def test_what_was_written_while_nobody_read_is_captured_later(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', now(), 'n' FROM generate_series(1, 2500) n")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2500, "2500 events")
    assert [row.position for row in query(engine, "SELECT position FROM sync.streams")]
    with reading(engine, config):
        shop.execute("INSERT INTO items VALUES ('last', 'A')")
        eventually(lambda: received(engine) == 2501, "one more")
    assert len({row.key for row in recorded(engine)}) == 2501

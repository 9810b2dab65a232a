"""Versions that are the numbers of a stream: what has which number, and reads that wait until the stream has passed."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from captured_shop import Assemble, assemble
from captured_sources import (
    CapturedSource,
    begun,
    captured_config,
    connect,
    eventually,
    is_open,
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

from sync_orchestrator.capture import assembly
from sync_orchestrator.capture.operations import drop_stream, reset_stream
from sync_orchestrator.config import Config
from sync_orchestrator.core.capture import holds
from sync_orchestrator.core.drain import event_batch
from sync_orchestrator.core.operations.records import refresh_record
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.errors import CallFailed, Failure

__all__ = ["assemble", "machine_server", "shop", "source", "wheel_server", "wheel_shop", "wheel_source"]

LARGE = "(SELECT string_agg(md5(n::text), '') FROM generate_series(1, 400) n)"


def numbered_config(source: CapturedSource, **changes: Any) -> Config:
    """The entity ``item``, whose versions are the stream's numbers."""
    part = {"version": {"kind": "log"}, **changes.pop("part", {})}
    entity = {"source_check": {"confirm_after": 0}, **changes.pop("entity", {})}
    return captured_config(source, part=part, entity=entity, **changes)


# Numbers ------------------------------------------------------------------------------------------------------------


def test_each_piece_of_a_transaction_has_a_number_and_deletes_have_one(
    wheel_shop: CapturedSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "PIECE_ROWS", 2)
    config = numbered_config(wheel_shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        wheel_shop.execute(
            "INSERT INTO items VALUES ('a', 'A', NULL, 'one'), ('b', 'A', NULL, 'one');"
            "UPDATE items SET name = 'two'; DELETE FROM items WHERE sku = 'a'"
        )
        wheel_shop.execute("DELETE FROM items WHERE sku = 'b'")
        eventually(lambda: received(engine) == 6, "six events")
    told = [(row.key, row.action, row.version) for row in recorded(engine)]
    first = told[0][2]
    assert told == [
        ("a", "create", first),
        ("b", "create", first),
        ("a", "create", first + 1),
        ("b", "create", first + 1),
        ("a", "delete", first + 2),
        ("b", "delete", first + 3),
    ]


@pytest.mark.parametrize("how", ["drop", "reset", "loss"])
def test_numbers_go_on_when_a_stream_begins_anew(
    how: str, wheel_shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config = numbered_config(wheel_shop)
    world = assemble(config)
    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        for number in range(5):
            wheel_shop.execute(f"INSERT INTO items VALUES ('k{number}', 'A', NULL, 'one')")
        eventually(lambda: received(engine) == 5, "five events")
    world.run_drain()
    before = max(row.version for row in world.parts().values())
    assert before >= 5
    if how == "drop":
        drop_stream(engine, config, "shop")
    elif how == "reset":
        reset_stream(engine, config, "shop")
    else:
        wheel_shop.drop_slot()
    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        wheel_shop.execute("UPDATE items SET name = 'two' WHERE sku = 'k4'")
        eventually(lambda: received(engine) == 6, "the sixth event")
    assert recorded(engine)[-1].version > before
    world.run_drain()
    assert world.names()["k4"] == "two"


def test_numbers_begin_behind_the_times_that_were_versions_before(
    wheel_shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    times = captured_config(wheel_shop)
    with reading(engine, times):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        wheel_shop.execute("INSERT INTO items VALUES ('a', 'A', now() + interval '30 min', 'one')")
        eventually(lambda: received(engine) == 1, "the first event")
    assemble(times).run_drain()
    numbered = numbered_config(wheel_shop)
    world = assemble(numbered)
    with reading(engine, numbered):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        wheel_shop.execute("UPDATE items SET name = 'two'")
        eventually(lambda: received(engine) == 2, "the second event")
    world.run_drain()
    assert world.parts()["a"].data["name"] == "two"


# Full syncs ---------------------------------------------------------------------------------------------------------


def test_a_full_sync_takes_over_what_was_there_and_writes_nothing_twice(
    shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config = numbered_config(shop)
    world = assemble(config)
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', NULL, 'n' FROM generate_series(1, 30) n")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        fill, _ = world.run_full_sync()
        assert (fill.listed, fill.changed, len(world.names())) == (30, 30, 30)
        before = world.parts()
        shop.execute("UPDATE items SET name = 'm' WHERE sku = 'k1'")
        eventually(lambda: received(engine) == 1, "the event")
        world.run_drain()
        again, _ = world.run_full_sync()
    assert again.changed == 0
    assert {key: row for key, row in world.parts().items() if key != "k1"} == {
        key: row for key, row in before.items() if key != "k1"
    }
    assert world.names()["k1"] == "m"


def test_an_idle_stream_passes_a_read_at_once(shop: CapturedSource, engine: Engine, assemble: Assemble) -> None:
    config = numbered_config(shop, part={"sql": {"table": "items", "page": 5}})
    world = assemble(config)
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', NULL, 'n' FROM generate_series(1, 50) n")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        began = time.monotonic()
        world.run_full_sync()
        assert time.monotonic() - began < 8, "eleven pages waited for the stream's own pace"
    assert len(world.names()) == 50


def test_a_page_older_than_a_change_is_left_out(shop: CapturedSource, engine: Engine, assemble: Assemble) -> None:
    """The change was recorded and merged before the page that does not show it."""
    config = numbered_config(shop)
    world = assemble(config)
    shop.execute("INSERT INTO items VALUES ('a', 'A', NULL, 'old'), ('b', 'A', NULL, 'old'), ('c', 'A', NULL, 'old')")

    def change() -> None:
        shop.execute("UPDATE items SET name = 'new' WHERE sku = 'a'; DELETE FROM items WHERE sku = 'b'")
        eventually(lambda: received(engine) == 2, "both events")
        world.run_drain()

    world.after_each_page(change)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        world.run_full_sync()
    assert world.names() == {"a": "new", "c": "old"}


def test_a_page_older_than_a_change_on_its_way_waits_for_it(
    shop: CapturedSource, engine: Engine, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change is in the log and not recorded yet when the page is read: the archive never has the older state."""
    config = numbered_config(shop)
    world = assemble(config)
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', NULL, 'old')")
    shop.execute("UPDATE items SET name = 'new' WHERE sku = 'a'")
    seen: list[str] = []
    work = threading.Thread(target=world.run_full_sync)
    looks = threading.Event()
    real = holds._look_at_streams

    def look(connection: Any, wanted: Any) -> Any:
        looks.set()
        seen.extend(row.data["name"] for row in query(engine, "SELECT data FROM sync.parts"))
        return real(connection, wanted)

    monkeypatch.setattr(holds, "_look_at_streams", look)
    work.start()
    assert looks.wait(10)
    with reading(engine, config):
        work.join(20)
    assert not work.is_alive()
    assert set(seen) <= {"new"}
    world.run_drain()
    assert world.names() == {"a": "new"}


@pytest.mark.parametrize("open_transaction", [False, True])
def test_commits_that_are_not_flushed_hold_no_read_up(
    open_transaction: bool, shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    """Nor does what an open transaction has written: no stream shows that before it is flushed."""
    config = numbered_config(shop, capture={"max_stall_seconds": 8})
    world = assemble(config)
    with connect(shop.url) as lazy, connect(shop.url) as writer, reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        lazy.execute("SET synchronous_commit = off")
        if open_transaction:
            writer.execute("BEGIN")
            writer.execute("INSERT INTO items VALUES ('open', 'A', NULL, 'open')")
        lazy.execute("INSERT INTO items VALUES ('a', 'A', NULL, 'lazy')")
        if open_transaction:
            writer.execute("INSERT INTO items VALUES ('more', 'A', NULL, 'open')")
        world.run_full_sync()
        world.run_drain()
        assert world.names() == {"a": "lazy"}
        if open_transaction:
            writer.execute("COMMIT")
            eventually(lambda: received(engine) == 3, "all events")
            world.run_drain()
            assert set(world.names()) == {"a", "open", "more"}


def test_what_the_source_no_longer_has_is_deleted_and_what_came_meanwhile_is_not(
    shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config = numbered_config(shop, entity={"validation": {"deletions": {"min": 50}}})
    world = assemble(config)
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', NULL, 'n' FROM generate_series(1, 10) n")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        world.run_full_sync()
        shop.execute("ALTER PUBLICATION sync_orchestrator DROP TABLE items")  # these are lost
        shop.execute("DELETE FROM items WHERE sku IN ('k1', 'k2')")
    shop.execute("ALTER PUBLICATION sync_orchestrator ADD TABLE items")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")

        def create() -> None:
            shop.execute("INSERT INTO items VALUES ('k1', 'A', NULL, 'again') ON CONFLICT DO NOTHING")

        world.after_each_page(create)
        fill, _ = world.run_full_sync()
        eventually(lambda: received(engine) == 1, "the event")
        world.run_drain()
    assert fill.deleted == 1
    assert world.names() == {"k1": "again", **{f"k{n}": "n" for n in range(3, 11)}}


# A stream that stands still, or begins anew -------------------------------------------------------------------------


def test_a_full_sync_fails_while_no_process_reads_the_stream(
    shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config = numbered_config(shop, capture={"max_stall_seconds": 0.3})
    world = assemble(config)
    with pytest.raises(CallFailed, match="the stream of 'shop' has not begun") as never:
        world.run_full_sync()
    assert never.value.kind is Failure.TRANSIENT
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', NULL, 'n')")
    with pytest.raises(CallFailed, match=r"the stream of 'shop' has not passed .* \(no process reads it\)") as stalled:
        world.run_full_sync()
    assert stalled.value.kind is Failure.TRANSIENT
    assert not world.parts()
    with reading(engine, config):
        world.run_full_sync()
        world.run_drain()
    assert world.names() == {"a": "n"}


def test_a_page_is_not_merged_across_a_loss(shop: CapturedSource, engine: Engine, assemble: Assemble) -> None:
    config = numbered_config(shop)
    world = assemble(config)
    shop.execute("INSERT INTO items VALUES ('a', 'A', NULL, 'old')")
    begun(engine, config, shop)
    world.after_each_page(lambda: reset_stream(engine, config, "shop"))
    with pytest.raises(CallFailed, match="began anew while its source was read"):
        world.run_full_sync()
    assert not world.parts()


# Reads of the drain -------------------------------------------------------------------------------------------------


@pytest.fixture
def large(wheel_shop: CapturedSource) -> CapturedSource:
    """Rows with a large value, which an update leaves out of the log: the drain reads them."""
    wheel_shop.execute("ALTER TABLE items ADD COLUMN big text; ALTER TABLE items ALTER big SET STORAGE EXTERNAL")
    return wheel_shop


def test_thin_events_are_read_and_held(large: CapturedSource, engine: Engine, assemble: Assemble) -> None:
    config = numbered_config(large, entity={"mapping": {"code": "key", "store": "group", "name": "shop.name"}})
    world = assemble(config)
    with reading(engine, config):
        eventually(lambda: is_open(engine, large), "the stream")
        large.execute(f"INSERT INTO items VALUES ('a', 'A', NULL, 'one', {LARGE})")
        large.execute("UPDATE items SET name = 'two' WHERE sku = 'a'")
        eventually(lambda: received(engine) == 2, "both events")
        assert [row.thin for row in recorded(engine)] == [False, True]
        world.run_drain()
        assert world.names() == {"a": "two"}
        assert world.parts()["a"].version == world.number()
        large.execute("UPDATE items SET name = 'three' WHERE sku = 'a'")
        large.execute("DELETE FROM items WHERE sku = 'a'")
        eventually(lambda: received(engine) == 4, "all events")
        world.run_drain()
    assert world.names() == {}


def test_events_go_back_while_the_stream_has_not_passed_their_read(
    large: CapturedSource, engine: Engine, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_batch, "_MAX_HOLD_SECONDS", 0.1)
    config = numbered_config(large)
    world = assemble(config)
    with reading(engine, config):
        eventually(lambda: is_open(engine, large), "the stream")
        large.execute(f"INSERT INTO items VALUES ('a', 'A', NULL, 'one', {LARGE})")
        large.execute("UPDATE items SET name = 'two' WHERE sku = 'a'")
        eventually(lambda: received(engine) == 2, "both events")
    large.execute("UPDATE items SET name = 'three' WHERE sku = 'a'")
    world.run_drain()
    assert world.parts()["a"].data["name"] == "one"
    [waiting] = query(engine, "SELECT * FROM sync.events WHERE revision IS NULL")
    assert (waiting.state, waiting.attempts, waiting.awaiting) == ("waiting", 0, "source")
    assert "has not passed" in waiting.error
    with reading(engine, config):

        def is_there() -> bool:
            world.run_drain()
            return world.names() == {"a": "three"}

        eventually(is_there, "the third name")


def test_a_refresh_reads_what_the_source_has_now(shop: CapturedSource, engine: Engine, assemble: Assemble) -> None:
    config = numbered_config(shop)
    world = assemble(config)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        shop.execute("INSERT INTO items VALUES ('a', 'A', NULL, 'one')")
        eventually(lambda: received(engine) == 1, "the event")
        world.run_drain()
        query(engine, "UPDATE sync.parts SET data = '{\"name\": \"wrong\"}', content_hash = '\\x00' RETURNING key")
        assert asyncio.run(refresh_record(world.context, world.entity, "a")) == {"shop": "present"}
        world.run_drain()
    assert world.parts()["a"].data["name"] == "one"


# The check of the source --------------------------------------------------------------------------------------------


def test_the_source_check_compares_contents_and_finds_nothing_that_is_on_its_way(
    shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config = numbered_config(shop)
    world = assemble(config)
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', NULL, 'n' FROM generate_series(1, 10) n")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        world.run_full_sync()
        clean = asyncio.run(check_sources(world.context, world.entity, "A"))
        assert (clean.verdict, clean.contents) == ("in_sync", 10)
        world.after_each_page(lambda: shop.execute("UPDATE items SET name = 'm'; DELETE FROM items WHERE sku = 'k9'"))
        busy = asyncio.run(check_sources(world.context, world.entity, "A"))
        assert (busy.verdict, busy.lost) == ("in_sync", [])
        eventually(lambda: received(engine) >= 10, "the events")
        world.run_drain()
        assert len(world.names()) == 9


def test_the_source_check_makes_up_for_lost_changes(shop: CapturedSource, engine: Engine, assemble: Assemble) -> None:
    config = numbered_config(shop, entity={"validation": {"deletions": {"min": 50}}})
    world = assemble(config)
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', NULL, 'n' FROM generate_series(1, 10) n")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        world.run_full_sync()
    drop_stream(engine, config, "shop")
    shop.execute(
        "UPDATE items SET name = 'm' WHERE sku = 'k1'; DELETE FROM items WHERE sku = 'k2';"
        "INSERT INTO items VALUES ('new', 'A', NULL, 'n')"
    )
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        found = asyncio.run(check_sources(world.context, world.entity, "A"))
        assert sorted((lost.key, lost.kind) for lost in found.lost) == [
            ("k1", "different"),
            ("k2", "gone"),
            ("new", "missing"),
        ]
        world.run_drain()
        assert world.names() == {"k1": "m", "new": "n", **{f"k{n}": "n" for n in range(3, 11)}}
        assert asyncio.run(check_sources(world.context, world.entity, "A")).verdict == "in_sync"

"""SIGKILL at every crash point of a stream's reader, and of its source: no change is lost, none is recorded twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import fill_worker
import pytest
from capture_processes import expected_events, release_lease, require_each_once, worker
from captured_sources import (
    ITEMS,
    AnySource,
    CapturedSource,
    begun,
    captured_config,
    eventually,
    is_open,
    own_server,
    query,
    reading,
    received,
    wheel_server,
    wheel_shop,
    wheel_source,
)
from captured_sources import _quick as _quick
from mariadb_servers import mariadb, mariadb_shop, mariadb_source
from paths import SUPPORT
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from sync_orchestrator.capture import recording
from sync_orchestrator.capture import stream as stream_module
from sync_orchestrator.capture.assembly import ChangeBatch
from sync_orchestrator.capture.recording import StreamPosition
from sync_orchestrator.core.crash_points import REGISTERED
from sync_orchestrator.database import embedded
from sync_orchestrator.errors import LogDown

pytestmark = pytest.mark.slow

__all__ = ["mariadb", "mariadb_shop", "mariadb_source", "wheel_server", "wheel_shop", "wheel_source"]

PAGE_POINTS = ("capture.page_noted", "full_sync.page_read", "full_sync.before_page_commit", "full_sync.page_merged")
POINTS = sorted(point for point in set(REGISTERED) if point.startswith("capture.") and point not in PAGE_POINTS)
KILLS = int(os.environ.get("SYNC_TEST_KILLS", "6"))


@pytest.fixture(params=["postgres", "mariadb"])
def shop(request: pytest.FixtureRequest) -> AnySource:
    """A database with the table ``items``, of each kind whose log is read."""
    made: AnySource = request.getfixturevalue("wheel_shop" if request.param == "postgres" else "mariadb_shop")
    return made


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_a_reader_that_is_killed_there_loses_nothing_and_repeats_nothing(
    point: str, times: int, shop: AnySource, engine: Engine, database_url: str
) -> None:
    begun(engine, captured_config(shop), shop)
    shop.insert_many("large", 230)
    for number in range(20):
        shop.insert_many(f"k{number}-", 1)
    with worker(database_url, shop, f"{point}:{times}") as killed:
        assert killed.wait(30) == -signal.SIGKILL, f"{point} was never reached"
    release_lease(engine)
    with worker(database_url, shop):
        eventually(lambda: received(engine) == 250, "all events")
        eventually(lambda: query(engine, "SELECT 1 FROM sync.streams WHERE partial IS NULL"), "the end")
    require_each_once(engine, shop)


def test_readers_that_are_killed_anywhere_lose_nothing_and_repeat_nothing(
    shop: AnySource, engine: Engine, database_url: str
) -> None:
    begun(engine, captured_config(shop), shop)
    draw, stop = random.Random(7), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            size = draw.choice([1, 1, 1, 20, 120])
            shop.insert_many(f"k{number}-", size)
            number += 1
            stop.wait(0.05)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(KILLS):
            point, times = draw.choice(POINTS), draw.randint(1, 12)
            with worker(database_url, shop, f"{point}:{times}") as killed:
                assert killed.wait(30) == -signal.SIGKILL
            release_lease(engine)
    finally:
        stop.set()
        writer.join()
    with worker(database_url, shop):
        eventually(lambda: received(engine) == expected_events(shop), "all events")
    require_each_once(engine, shop)


# The source shuts down, or dies -------------------------------------------------------------------------------------


@pytest.fixture
def own_shop() -> Iterator[CapturedSource]:
    """A source on a server of its own, which the test stops and kills."""
    with own_server() as server:
        server.execute("CREATE DATABASE shop")
        made = CapturedSource(server, "shop")
        made.execute(ITEMS)
        made.publish("items")
        yield made


@pytest.mark.parametrize("state", ["idle", "busy", "ledger down", "ledger hangs"])
def test_the_sources_fast_shutdown_waits_for_no_state_of_ours(
    state: str, own_shop: CapturedSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_SLOW_LEDGER_SECONDS", 1.0)
    config, hangs = captured_config(own_shop), threading.Event()

    def trouble(connection: object) -> None:
        if threading.current_thread().name.startswith(("capture", "Thread")) and state == "ledger down":
            raise OperationalError("begin", {}, Exception("the database is down"))
        if threading.current_thread().name.startswith("capture-record") and state == "ledger hangs":
            hangs.wait(30)

    with reading(engine, config):
        eventually(lambda: is_open(engine, own_shop), "the stream")
        if state == "busy":
            own_shop.execute("INSERT INTO items SELECT 'k' || n, 'A', now() FROM generate_series(1, 20000) n")
        if state.startswith("ledger"):
            event.listen(engine, "begin", trouble)
            own_shop.execute("INSERT INTO items VALUES ('a', 'A')")
        try:
            assert own_shop.server.stop() < 5
        finally:
            hangs.set()
            if state.startswith("ledger"):
                event.remove(engine, "begin", trouble)
        own_shop.server.start()
        own_shop.execute("INSERT INTO items VALUES ('last', 'A')")
        eventually(lambda: received(engine) == expected_events(own_shop), "all events")
    require_each_once(engine, own_shop)


def test_a_source_that_is_killed_loses_nothing(own_shop: CapturedSource, engine: Engine) -> None:
    own_shop.server.execute("ALTER SYSTEM SET fsync = on")
    own_shop.server.execute("SELECT pg_reload_conf()")
    folder = own_shop.server.folder
    assert folder is not None
    with reading(engine, captured_config(own_shop)):
        eventually(lambda: is_open(engine, own_shop), "the stream")
        for number in range(3):
            for each in range(50):
                own_shop.execute(f"INSERT INTO items VALUES ('k{number}-{each}', 'A')")
            postmaster = embedded._find_postmaster(folder.resolve())
            assert postmaster is not None
            postmaster.kill()
            postmaster.wait(10)
            own_shop.server.start()
        eventually(lambda: received(engine) == expected_events(own_shop), "all events")
    require_each_once(engine, own_shop)


# Two readers --------------------------------------------------------------------------------------------------------


def test_one_reader_has_a_stream_and_another_takes_over_when_it_dies(
    shop: AnySource, engine: Engine, database_url: str
) -> None:
    begun(engine, captured_config(shop), shop)
    with worker(database_url, shop, "capture.acknowledged:2") as first:
        eventually(lambda: is_open(engine, shop), "the first reader")
        with worker(database_url, shop) as second:
            shop.insert_many("a", 1)
            eventually(lambda: received(engine) == 1, "the first event")
            shop.insert_many("b", 1)
            assert first.wait(30) == -signal.SIGKILL
            shop.insert_many("c", 1)
            eventually(lambda: received(engine) == 3, "what the second reader records")
            assert second.poll() is None
    require_each_once(engine, shop)


# Planted bugs -------------------------------------------------------------------------------------------------------


def test_a_position_that_moves_before_its_events_are_recorded_is_found(
    shop: AnySource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other tests here require does not hold for a reader that moves first and dies then."""
    config = captured_config(shop)
    begun(engine, config, shop)
    shop.insert_many("lost", 1)
    deaths = threading.Event()

    def record_first_half(engine: Engine, at: StreamPosition, batch: ChangeBatch, most_bytes: int) -> StreamPosition:
        moved = ChangeBatch(position=batch.position, partial=batch.partial)
        recording.record_batch(engine, at, moved, most_bytes)
        if batch.has_content:
            deaths.set()
            raise LogDown("it dies before it has recorded")
        return at

    with monkeypatch.context() as planted:
        planted.setattr(stream_module, "record_batch", record_first_half)
        with reading(engine, config):
            assert deaths.wait(15)
    with reading(engine, config):
        shop.insert_many("later", 1)
        eventually(lambda: received(engine) == 1, "the event that came later")
    with pytest.raises(AssertionError, match="a change was lost"):
        require_each_once(engine, shop)


# Reads that wait for the stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("point", PAGE_POINTS)
def test_a_full_sync_that_is_killed_beside_a_stream_ends_as_its_source(
    point: str, times: int, wheel_shop: CapturedSource, engine: Engine, database_url: str
) -> None:
    """A page that was read and not merged is lost with its process: it is read anew, behind the changes since."""
    part = {"version": {"kind": "log"}, "sql": {"table": "items", "page": 5}}
    config = captured_config(wheel_shop, part=part)
    document = json.dumps(config.model_dump(mode="json", exclude_defaults=True, by_alias=True))
    wheel_shop.execute(
        "INSERT INTO items SELECT 'k' || lpad(n::text, 2, '0'), 'A', NULL, 'old' FROM generate_series(1, 20) n"
    )

    def fill(crash_at: str | None) -> int:
        environment = {name: value for name, value in os.environ.items() if name != "SYNC_CRASH_AT"}
        environment |= {"SYNC_CRASH_AT": crash_at} if crash_at else {}
        command = [sys.executable, fill_worker.__file__, database_url, document]
        return subprocess.run(command, env=environment, cwd=SUPPORT, timeout=60).returncode

    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        assert fill(f"{point}:{times}") == -signal.SIGKILL, f"{point} was never reached"
        wheel_shop.execute("UPDATE items SET name = 'new' WHERE sku < 'k11'")
        wheel_shop.execute("DELETE FROM items WHERE sku IN ('k02', 'k12')")
        query(engine, "UPDATE sync.groups SET lease_until = NULL RETURNING entity")
        assert fill(None) == 0
    rows = query(engine, "SELECT key, data FROM sync.parts WHERE NOT deleted")
    archived = {row.key: row.data["name"] for row in rows}
    assert archived == dict(wheel_shop.execute("SELECT sku, name FROM items"))

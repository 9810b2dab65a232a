"""A reader, the ledger's database and the source's are killed in any order while changes are written: none is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psycopg
import psycopg.errors
import pytest
from capture_processes import expected_events, require_each_once, worker
from captured_sources import ITEMS, CapturedSource, SourceServer, own_server, start_server
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.database import embedded
from sync_orchestrator.database.migrate import migrate

KILLS = int(os.environ.get("SYNC_TEST_KILLS", "200"))
PATIENCE = 60.0
VICTIMS = ("reader", "reader", "reader", "ledger", "source")


def wait_for(check: Callable[[], bool], what: str) -> None:
    """Waits; a server that is just coming up again counts as not yet."""
    ends = time.monotonic() + PATIENCE
    while True:
        with suppress(psycopg.Error, OperationalError):
            if check():
                return
        assert time.monotonic() < ends, f"{what} did not come about"
        time.sleep(0.05)


def kill_server(server: SourceServer) -> None:
    """Ends a server as a loss of power would, and starts it again."""
    assert server.folder is not None
    postmaster = embedded._find_postmaster(server.folder.resolve())
    assert postmaster is not None
    postmaster.kill()
    postmaster.wait(10)
    server.url = start_server(server.folder)


@contextmanager
def writing(shop: CapturedSource, draw: random.Random) -> Iterator[None]:
    """Transactions of one row or of many, all the time; those that a killed server did not take are not repeated."""
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.wait(0.03):
            number += 1
            size = draw.choice([1, 1, 1, 5, 70])
            with suppress(psycopg.Error):
                shop.execute(
                    f"INSERT INTO items SELECT 'k{number}-' || n, 'A', now() FROM generate_series(1, {size}) n"
                )

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def count_received(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).received


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_readers_and_servers_that_are_killed_lose_nothing_and_repeat_nothing() -> None:
    draw, killed = random.Random(KILLS), list[str]()
    with own_server() as source_server, own_server() as ledger_server:
        source_server.execute("CREATE DATABASE shop")
        shop = CapturedSource(source_server, "shop")
        shop.execute(ITEMS)
        shop.publish("items")
        engine = open_engine(ledger_server.url)
        migrate(engine)
        with worker(ledger_server.url, shop):
            wait_for(lambda: bool(shop.find_slot() and shop.find_slot()[0]), "the stream")  # type: ignore[index]
        with writing(shop, draw):
            while len(killed) < KILLS:
                with worker(ledger_server.url, shop) as reader:
                    is_alive = True
                    while is_alive and len(killed) < KILLS:
                        before = count_received(engine)
                        wait_for(lambda before=before: count_received(engine) > before, "progress")  # type: ignore[misc]
                        time.sleep(draw.random() * 0.3)  # any moment will do
                        victim = draw.choice(VICTIMS)
                        killed.append(victim)
                        if victim == "reader":
                            reader.send_signal(signal.SIGKILL)
                            reader.wait(10)
                            is_alive = False
                        else:
                            kill_server(ledger_server if victim == "ledger" else source_server)
                            engine.dispose()
                            wait_for(lambda: count_received(engine) >= 0, "the ledger")
        with worker(ledger_server.url, shop):
            wait_for(lambda: count_received(engine) == expected_events(shop), "all events")
        require_each_once(engine, shop)
        engine.dispose()

"""Consumers of real brokers: their configuration, messages, and what became of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from brokers import Broker
from brokers import broker as broker
from brokers import rabbit as rabbit
from fakes import two_part_config
from sqlalchemy import Engine

from sync_orchestrator.brokers.consume import Consumption
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.intake import rejected_messages
from sync_orchestrator.core.ledger.conservation import count_conservation

PATIENCE = 30.0


def cloud_event(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"e{number}",
        "source": "shop",
        "type": "item.updated",
        "subject": f"k{number}",
        "version": number,
        "data": {"key": f"k{number}", "store": "A", "v": number},
        **changes,
    }


def packed(document: Any) -> bytes:
    return json.dumps(document).encode()


def eventually(check: Callable[[], Any], what: str) -> None:
    """Waits for another thread's or process's doing."""
    ends = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < ends, f"{what} did not come about"
        time.sleep(0.02)


def config_for(broker: Broker, **changes: Any) -> Config:
    consumer = {"url": broker.url, "queue": broker.queue, **changes.pop("consumer", {})}
    return two_part_config(consumers={"orders": consumer}, **changes)


def received(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).received


def open_rejected(engine: Engine) -> list[dict[str, Any]]:
    with engine.begin() as connection:
        return rejected_messages.list_rejected_messages(connection, None, 100)


def alerts_of(engine: Engine, kind: str) -> list[tuple[str, str]]:
    with engine.begin() as connection:
        rows = run(
            connection, "SELECT cause, title FROM sync.alerts WHERE resolved_at IS NULL AND kind = %(kind)s", kind=kind
        )
        return [(row.cause, row.title) for row in rows]


@contextmanager
def consuming(engine: Engine, config: Config, name: str = "orders") -> Iterator[Consumption]:
    """A consumer at work in a thread; when the block is left it was asked to stop, and has."""
    stop = threading.Event()
    consumption = Consumption(engine, config, name, stop)
    thread = threading.Thread(target=consumption.run)
    thread.start()
    try:
        yield consumption
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()

"""Processes to be killed: each records events, drains, full-syncs, checks, repairs and sends alerts, then says "ended".

Run again after a kill it does the same once more, as a system that was restarted would. They are forks of this one, so
that the libraries are loaded once; each line on standard input is an order for one, and its exit code the reply. The
third party is a table in the test's database, written at once and outside our transactions, so it outlives the kill as
a real one does.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import traceback
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fakes import FakeSource, two_part_config
from psycopg.types.json import Jsonb
from sqlalchemy import Engine

from sync_orchestrator.composition import build_context
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.notifications import alerts, outcomes
from sync_orchestrator.core.operations.repair import repair
from sync_orchestrator.core.ports import Capabilities, Found, Item
from sync_orchestrator.core.validation.source_check import check_sources
from sync_orchestrator.core.validation.validate import validate

TOLD = "CREATE TABLE IF NOT EXISTS told (n bigint GENERATED ALWAYS AS IDENTITY, event jsonb)"
TABLE = "CREATE TABLE IF NOT EXISTS third_party (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item jsonb)"
KEYS = [f"k{number}" for number in range(12)]


class TableThirdParty:
    """A third party whose store is a table; it gives its own ids and does not refuse duplicates."""

    capabilities = Capabilities(assigns_ids=True, can_lookup=True, idempotent_create=False, group_in_address=False)

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._run(TABLE)

    async def create(self, item: Item) -> str:
        return str(
            self._run("INSERT INTO third_party (item) VALUES (%(item)s) RETURNING id", item=Jsonb(item.payload))[0].id
        )

    async def update(self, item: Item) -> str | None:
        rows = self._run(
            "UPDATE third_party SET item = %(item)s WHERE id = %(id)s RETURNING id",
            item=Jsonb(item.payload),
            id=int(item.external_id or 0),
        )
        return item.external_id if rows else None

    async def delete(self, item: Item) -> None:
        self._run("DELETE FROM third_party WHERE id = %(id)s", id=int(item.external_id or 0))

    async def read(self, item: Item) -> Found | None:
        return next(iter(self._found("id = %(id)s", id=int(item.external_id or 0))), None)

    async def account(self) -> str | None:
        return None

    async def lookup(self, key: str, group: str | None) -> list[Found]:
        return self._found("item ->> 'code' = %(key)s", key=key)

    async def pages(self, group: str) -> AsyncIterator[list[Found]]:
        yield self._found("item ->> 'store' = %(group)s", group=group)

    async def count(self, group: str) -> int | None:
        return len(self._found("item ->> 'store' = %(group)s", group=group))

    async def close(self) -> None:
        return None

    def _found(self, where: str, **parameters: Any) -> list[Found]:
        rows = self._run(f"SELECT id, item FROM third_party WHERE {where}", **parameters)
        return [Found(row.item["code"], str(row.id), row.item["store"], row.item) for row in rows]

    def _run(self, statement: str, **parameters: Any) -> Any:
        with self._engine.begin() as connection:
            return run(connection, statement, **parameters)


def sources() -> tuple[FakeSource, FakeSource]:
    """The truth: always the same."""
    shop, stock = FakeSource(page=5), FakeSource()
    for number, key in enumerate(KEYS):
        shop.put(key, {"key": key, "name": f"name {number}", "store": "A"}, group="A", version=10)
        stock.put(key, {"key": key, "count": number}, version=10)
    return shop, stock


class TableReceiver:
    """Whoever is told of outcomes; what it was told is in a table, written at once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def deliver(self, told: Sequence[outcomes.OutcomeMessage]) -> outcomes.Delivery:
        with self._engine.begin() as connection:
            run(connection, TOLD)
            for each in told:
                run(connection, "INSERT INTO told (event) VALUES (%(event)s)", event=Jsonb(each.cloud_event("test")))
        return outcomes.Delivery(taken=[each.id for each in told])


def notifications(shop: FakeSource, stock: FakeSource) -> list[ChangeEvent]:
    """Creates of the first half, thin where the number is odd, a deletion, and a record whose deletion is not told."""
    events = []
    for number, key in enumerate(KEYS[:6]):
        events.append(
            ChangeEvent("shop", f"s{number}", "item", key, "create", 10, None if number % 2 else shop.rows[key].data)
        )
        events.append(ChangeEvent("stock", f"t{number}", "item", key, "create", 10, stock.rows[key].data))
    events.append(ChangeEvent("shop", "gone1", "item", "gone", "create", 5, {"key": "gone", "name": "g", "store": "A"}))
    events.append(ChangeEvent("shop", "gone2", "item", "gone", "delete", 6))
    events.append(ChangeEvent("shop", "lost1", "item", "lost", "create", 5, {"key": "lost", "name": "l", "store": "A"}))
    events.append(ChangeEvent("stock", "lost2", "item", "lost", "create", 5, {"key": "lost", "count": 1}))
    return events


async def work(engine: Engine, linger: float) -> None:
    """Everything once; ``linger`` in seconds is longer than the leases where another process had some and died."""
    shop, stock = sources()
    config = two_part_config(
        system={"timeout": 0.2, "in_flight_window": 0.2},
        limits={"lease": 1},
        entity={"retry": {"retries": 3, "first_wait": 0.2, "jitter": 0}},
        outcomes={"audit": {"url": "https://audit.test"}},
    )
    third_party = TableThirdParty(engine)
    context = build_context(engine, config, {"item": {"shop": shop, "stock": stock}}, {"item": third_party})
    entity = context.entities["item"]
    record_events(engine, notifications(shop, stock))
    await drain(context, linger=linger, most_seconds=10)
    await full_sync(context, entity, "A", allow_deletions=5, patience=5)
    with engine.begin() as connection:  # as if k5 had changed at its source and nobody had told
        run(connection, "UPDATE sync.parts SET version = 9 WHERE key = 'k5' AND part = 'shop'")
        run(connection, "UPDATE third_party SET item = item || '{\"name\": \"altered\"}' WHERE item ->> 'code' = 'k7'")
    await check_sources(context, entity, "A")
    await validate(context, entity, "A", full=True, repair="ask")
    await repair(context, entity, "A")
    with engine.begin() as connection:
        run(connection, "UPDATE third_party SET item = item || '{\"name\": \"altered\"}' WHERE item ->> 'code' = 'k3'")
        run(connection, "DELETE FROM third_party WHERE item ->> 'code' = 'k4'")
    await validate(context, entity, "A", full=True)
    with engine.begin() as connection:
        alerts.raise_alert(connection, "overdue", "work", "work is overdue")
    alerts.send_due_alerts(engine, config.alerts)
    outcomes.send_due_outcomes(engine, {"audit": TableReceiver(engine)}, config.alerts)
    await drain(context, linger=0.5, most_seconds=10)


def arm(point: str) -> None:
    """As SYNC_CRASH_AT does in a process that is started with it."""
    for found in gc.get_objects():
        if isinstance(found, CrashPoint) and found.name == point:
            found._signals = {"SIGKILL": 1}


def do_it_in_a_child(order: dict[str, Any]) -> int:
    """Everything once in a process of its own, which may be killed; returns its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with open(order["output"], "w", buffering=1) as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                arm(order["crash_at"] or "")
                asyncio.run(work(open_engine(order["database_url"]), 0.5 if order["crash_at"] else 1.5))
                os.write(1, b"ended\n")
                status = 0
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    for line in sys.stdin:
        print(do_it_in_a_child(json.loads(line)), flush=True)

"""Live changes: what people do in the internal systems, notified as carelessly as real systems do it.

The catalogue is changed by plain SQL and notifies nobody. Of the others' notifications some come twice, a fifth come
late and so out of order (an update may come before its create). Where a broker runs, pricing tells it of its changes;
the lab posts its own to the API service.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from typing import Any

import httpx
import psycopg

from demo import catalogue
from demo.broker import Broker
from demo.captured import Write
from demo.data import stones
from demo.processes import Systems
from demo.sources import ROLES

_PER_SECOND = 40
_LATE = 0.2
_TWICE = 0.05
_LATEST = 2.5
_KINDS = {"pricing": 44, "lab": 20, "catalogue": 15, "delete": 8, "recreate": 6, "create": 6, "move": 1}


class Traffic(threading.Thread):
    """Changes at a steady rate until ``stop``; every notification was accepted when the thread has ended."""

    def __init__(
        self, systems: Systems, api_url: str, api_key: str, broker: Broker | None = None, seed: int = 5
    ) -> None:
        super().__init__(name="traffic", daemon=True)
        self._systems = systems
        self._api_url = api_url
        self._broker = broker
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/cloudevents-batch+json"}
        self._random = random.Random(seed)
        self._ended = threading.Event()
        self._here = {stone["sku"]: stone for stone in stones()}
        self._collections = sorted({stone["collection"] for stone in self._here.values()})
        self._gone: list[str] = []
        self._deleted: dict[str, dict[str, Any]] = {}
        self._touched: set[str] = set()
        self._late: list[tuple[float, dict[str, Any]]] = []
        self.done: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self.sent = 0
        """Notifications of which the ledger has to know when all is done, repeated ones included."""
        self.written: list[Write] = []
        """What was written in the catalogue's database, in its order."""

    def stop(self) -> None:
        """Ends the changes, sends what is still held back, and raises what went wrong."""
        self._ended.set()
        self.join()
        if self.failure is not None:
            raise self.failure

    def run(self) -> None:
        try:
            with (
                httpx.Client(timeout=20, trust_env=False) as client,
                self._systems.catalogue.connect() as connection,
            ):
                while not self._ended.wait(0.25):
                    self._round(client, connection)
                self._send(client, [event for _, event in self._late])
        except BaseException as error:
            self.failure = error

    def _round(self, client: httpx.Client, connection: psycopg.Connection[dict[str, Any]]) -> None:
        orders: dict[str, list[dict[str, Any]]] = {name: [] for name in ROLES}
        self._touched.clear()
        for _ in range(_PER_SECOND // 4):
            self._order(self._random.choices(list(_KINDS), list(_KINDS.values()))[0], orders, connection)
        events = [event for name, some in orders.items() if some for event in self._carry_out(client, name, some)]
        now = time.monotonic()
        due = [event for at, event in self._late if at <= now]
        self._late = [(at, event) for at, event in self._late if at > now]
        for event in events:
            if self._random.random() < _LATE:
                self._late.append((now + self._random.uniform(0.3, _LATEST), event))
                self.done["notified out of order"] += 1
            else:
                due.append(event)
        twice = [event for event in due if self._random.random() < _TWICE]
        self._send(client, due + twice)

    def _order(
        self,
        kind: str,
        orders: dict[str, list[dict[str, Any]]],
        connection: psycopg.Connection[dict[str, Any]],
    ) -> None:
        choice = self._random
        key = choice.choice(list(self._here)) if kind != "recreate" else (self._gone.pop(0) if self._gone else "")
        if not key or key in self._touched:
            return
        self._touched.add(key)
        self.done[kind] += 1
        match kind:
            case "pricing":
                orders["pricing"].append(_update(key, price=choice.randrange(300, 19_000)))
            case "lab":
                orders["lab"].append(
                    _update(key, depth=round(choice.uniform(55, 70), 1), x=round(choice.uniform(3, 9), 2))
                )
            case "catalogue":
                self._write(connection, key, catalogue.build_update(key, name=f"Lot {choice.randrange(10_000)}"))
            case "move":
                self._write(connection, key, catalogue.build_update(key, collection=choice.choice(self._collections)))
            case "delete":
                self._write(connection, key, catalogue.build_delete(key), is_delete=True)
                self._gone.append(key)
                self._deleted[key] = self._here.pop(key)
            case "recreate":
                self._here[key] = self._deleted.pop(key)
                self._write(connection, key, catalogue.build_insert(self._here[key]))
            case "create":
                self._create(orders, connection)

    def _create(self, orders: dict[str, list[dict[str, Any]]], connection: psycopg.Connection[dict[str, Any]]) -> None:
        key = f"N-{self.done['create']:06}"
        like = self._random.choice(list(self._here.values()))
        self._here[key] = {**like, "sku": key}
        self._write(connection, key, catalogue.build_insert(self._here[key]))
        for name, role in ROLES.items():
            orders[name].append({"op": "create", "key": key, "set": {field: like[field] for field in role.fields}})

    def _write(
        self,
        connection: psycopg.Connection[dict[str, Any]],
        key: str,
        statement: tuple[str, list[object]],
        *,
        is_delete: bool = False,
    ) -> None:
        """Writes in the catalogue's database, in a transaction of its own."""
        words, parameters = statement
        row = connection.execute(words.encode(), parameters).fetchone()
        assert row is not None, f"there is no {key} in the catalogue"
        self.written.append(Write(key, catalogue.to_microseconds(row["at"]), is_delete))

    def _carry_out(self, client: httpx.Client, name: str, orders: list[dict[str, Any]]) -> list[dict[str, Any]]:
        answer = client.post(f"{self._systems.url(name)}/_control/changes", json=orders)
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()
        return found

    def _send(self, client: httpx.Client, events: list[dict[str, Any]]) -> None:
        if self._broker is not None:
            published = [event for event in events if event["source"] == "pricing"]
            self._broker.publish(published)
            self.sent += len(published)
            self.done["notifications by the broker"] += len(published)
            events = [event for event in events if event["source"] != "pricing"]
        if not events:
            return
        self.sent += len(events)
        answer = client.post(f"{self._api_url}/v1/events", json=events, headers=self._headers)
        answer.raise_for_status()
        self.done["notifications accepted"] += answer.json()["accepted"]
        self.done["notifications sent twice"] += answer.json()["duplicates"]


def _update(key: str, **fields: Any) -> dict[str, Any]:
    return {"op": "update", "key": key, "set": fields}

"""The world of a test: two source systems, a third party, and the system between them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from databases import database_url, engine, fresh_engine, server_url, template, template_shape  # noqa: F401
from fakes import FakeSource, FakeThirdParty
from mortals import Killed, Mortal
from sqlalchemy import Engine, event

from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.drain.drain import DrainReport, drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.full_sync.push_group import StepReport
from sync_orchestrator.core.ledger.conservation import Conservation, count_conservation
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.validation.validate import GroupValidation, validate
from sync_orchestrator.core.version_guard import Action


@dataclass
class World(Mortal):
    """Two source systems, a third party, and the system between them; its clock can be moved."""

    engine: Engine
    config: Config
    shop: FakeSource = field(default_factory=FakeSource)
    stock: FakeSource = field(default_factory=FakeSource)
    erp: FakeThirdParty = field(default_factory=FakeThirdParty)
    clock_offset_seconds: float = 0.0
    _ids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        event.listen(self.engine, "begin", self._set_clock)
        self.context: Context = self.assemble_context()

    def assemble_context(self) -> Context:
        """Its systems, put together."""
        return build_context(
            self.engine, self.config, {"item": {"shop": self.shop, "stock": self.stock}}, {"item": self.erp}
        )

    def _set_clock(self, connection: Any) -> None:
        if self.is_dead:
            raise Killed
        connection.exec_driver_sql(f"SET sync.clock_offset = '{self.clock_offset_seconds} s'")

    def close(self) -> None:
        """Lets go of the engine's clock."""
        if event.contains(self.engine, "begin", self._set_clock):
            event.remove(self.engine, "begin", self._set_clock)

    @property
    def entity(self) -> EntityContext:
        return self.context.entities["item"]

    def advance_clock(self, seconds: float) -> None:
        """Moves the database's clock on."""
        self.clock_offset_seconds += seconds

    def post_event(
        self,
        source: str,
        key: str,
        action: Action,
        version: int,
        data: dict[str, Any] | None = None,
        *,
        event_id: str | None = None,
        group: str | None = None,
    ) -> None:
        """Records one change event."""
        record_events(
            self.engine,
            [ChangeEvent(source, event_id or f"e{next(self._ids)}", "item", key, action, version, data, group)],
        )

    def put_record(self, key: str, name: str = "n", count: int = 1, group: str = "A", *, notify: bool = True) -> None:
        """Writes a record in both sources and, unless told otherwise, notifies of it."""
        action: Action = "update" if key in self.shop.rows else "create"
        shop = self.shop.put(key, {"key": key, "name": name, "store": group, "v": 0}, group=group)
        stock = self.stock.put(key, {"key": key, "count": count, "v": 0})
        if notify:
            self.post_event("shop", key, action, shop.version, shop.data)
            self.post_event("stock", key, action, stock.version, stock.data)

    def delete_record(self, key: str) -> None:
        self.post_event("shop", key, "delete", self.shop.remove(key))

    def run_drain(self) -> DrainReport:
        """One drain that ends when nothing is due."""
        return asyncio.run(drain(self.context, linger=0, most_seconds=60))

    def run_full_sync(self, group: str = "A", **options: Any) -> StepReport:
        return asyncio.run(full_sync(self.context, self.entity, group, **{"patience": 0.3, **options}))[1]

    def run_validation(self, group: str = "A", **options: Any) -> GroupValidation:
        return asyncio.run(validate(self.context, self.entity, group, **options))

    def read_conservation(self) -> Conservation:
        with self.engine.begin() as connection:
            return count_conservation(connection)

    def count_events_by_state(self) -> dict[str, int]:
        """Events by state, those that are not zero."""
        return {state: n for state, n in self.read_conservation().states.items() if n}

    def read_record_row(self, key: str) -> Any:
        with self.engine.begin() as connection:
            return run(connection, "SELECT * FROM sync.records WHERE key = %(key)s", key=key)[0]

    def query(self, statement: str, **params: Any) -> Any:
        with self.engine.begin() as connection:
            return run(connection, statement, **params)

    def mirror_by_key(self) -> dict[str, dict[str, Any]]:
        """The third party's store by our key."""
        return {record["code"]: record for record in self.erp.store.values()}

    def expected_mirror(self) -> dict[str, dict[str, Any]]:
        """What it should hold, from the source systems alone."""
        return {
            key: {
                "code": key,
                "store": row.group,
                "name": row.data["name"],
                "count": self.stock.rows[key].data["count"],
            }
            for key, row in self.shop.rows.items()
        }

"""Items of a source that are no records (``only_when`` of a part): gone where the record is known, else nothing.

A record that does not meet the condition any more is gone from its source. What is archived decides which of the two
an item is, so it is told here, for every read, listing and poll, whatever the adapter.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from sync_orchestrator.core.archive import queries
from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.ports import PartRead, SourceSystem
from sync_orchestrator.core.source_wrapper import SourceWrapper

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine


def list_known_keys(connection: Connection, entity: str, part: str, keys: Collection[str]) -> set[str]:
    """The keys of which the archive has the part, and not as deleted."""
    if not keys:
        return set()
    rows = run(connection, queries.SELECT_LIVE_PARTS, entity=entity, part=part, keys=sorted(keys))
    return {row.key for row in rows}


class SelectedSource(SourceWrapper):
    """A source system of which only some items are records.

    What is passed over is a deletion where the archive has the part. Where it
    has not, listings, polls and reads of many leave it out. A read of one record shows it, so that an event of it is
    not taken for one whose record is still to come. Without a database (``engine`` None) no record is known.
    """

    def __init__(self, inner: SourceSystem, engine: Engine | None, entity: str, part: str) -> None:
        super().__init__(inner)
        self._engine = engine
        self._entity = entity
        self._part = part

    @property
    def confirms_absence(self) -> bool:
        return True  # what is passed over is not among the rows of ``read_many``

    async def read(self, key: str) -> PartRead | None:
        row = await self.inner.read(key)
        if row is None or not row.passed_over:
            return row
        return next(iter(await self.select_rows([row])), row)

    async def select_rows(self, rows: list[PartRead]) -> list[PartRead]:
        suspects = {row.key for row in rows if row.passed_over and row.key}
        if not suspects or self._engine is None:
            return [row for row in rows if not row.passed_over]
        known = await asyncio.to_thread(
            in_transaction,
            self._engine,
            lambda connection: list_known_keys(connection, self._entity, self._part, suspects),
        )
        return [
            replace(row, passed_over=False) if row.passed_over else row
            for row in rows
            if not row.passed_over or row.key in known
        ]

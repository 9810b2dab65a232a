"""A captured source with everything up to the third party: its changes are recorded, archived and pushed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from captured_sources import query
from fakes import FakeThirdParty
from sqlalchemy import Engine

from sync_orchestrator.adapters.factory import build_sources
from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ports import PartRead


class Shop:
    """A captured source whose versions are numbers, with everything up to the third party."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine = engine
        self.config = config
        self.erp = FakeThirdParty()
        self.context: Context = build_context(engine, config, build_sources(config), {"item": self.erp})
        self.entity = self.context.entities["item"]

    def run_full_sync(self, group: str = "A", **options: Any) -> Any:
        return asyncio.run(full_sync(self.context, self.entity, group, patience=0.5, **options))

    def run_drain(self) -> None:
        asyncio.run(drain(self.context, linger=0, most_seconds=30))

    def names(self) -> dict[str, str]:
        return {record["code"]: record["name"] for record in self.erp.store.values()}

    def parts(self) -> dict[str, Any]:
        return {row.key: row for row in query(self.engine, "SELECT * FROM sync.parts")}

    def number(self) -> int:
        return int(query(self.engine, "SELECT number FROM sync.streams")[0].number)

    def after_each_page(self, work: Callable[[], object]) -> None:
        """Has something happen between the read of a page and what is done with it."""
        owner, real = self.entity.sources["shop"], self.entity.sources["shop"].pages

        async def pages(group: str, after: str | None = None) -> AsyncIterator[tuple[list[PartRead], str | None]]:
            async for page in real(group, after):
                await asyncio.to_thread(work)
                yield page

        owner.pages = pages  # type: ignore[method-assign]

    def close(self) -> None:
        asyncio.run(self.context.close())


@pytest.fixture
def assemble(engine: Engine) -> Iterator[Callable[[Config], Shop]]:
    made: list[Shop] = []

    def make(config: Config) -> Shop:
        made.append(Shop(engine, config))
        return made[-1]

    yield make
    for each in made:
        each.close()


Assemble = Callable[[Config], Shop]

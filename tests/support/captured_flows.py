"""Captured sources from end to end: what is at the third party, beside what is in the source's table."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from captured_sources import AnySource, eventually
from fakes import FakeThirdParty
from sqlalchemy import Engine

from sync_orchestrator.adapters.factory import build_sources
from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.drain.drain import drain

Row = tuple[Any, ...]
Assemble = Callable[[Config, FakeThirdParty], Context]


@pytest.fixture
def assemble(engine: Engine) -> Iterator[Assemble]:
    """Puts a system together whose sources are real, and closes these at the end."""
    made: list[Context] = []

    def assemble_context(config: Config, erp: FakeThirdParty) -> Context:
        made.append(build_context(engine, config, build_sources(config), {"item": erp}))
        return made[-1]

    yield assemble_context
    for context in made:
        for system in context.entities["item"].sources.values():
            asyncio.run(system.close())


def work_off(context: Context, is_done: Callable[[], bool]) -> None:
    """Drains until nothing waits; what is still on its way in the log comes, too."""

    def drained() -> bool:
        asyncio.run(drain(context, linger=0, most_seconds=30))
        return is_done()

    eventually(drained, "the same at the third party")


def mirror(erp: FakeThirdParty) -> dict[str, Row]:
    return {record["code"]: (record["store"], record["name"]) for record in erp.store.values()}


def table(source: AnySource) -> dict[str, Row]:
    return {sku: (store, name) for sku, store, name in source.execute("SELECT sku, store, name FROM items")}

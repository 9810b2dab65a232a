"""A process to be stopped: one drain of what is out of sync in group A; it says what it writes, then "ended".

It stops itself (SIGSTOP) where ``SYNC_STOP_AT`` says, or, told ``at-send``, in its first write: past every check of
ours, before the third party has anything.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from crash_worker import TableThirdParty
from fakes import FakeSource, two_part_config
from sqlalchemy import Engine

from sync_orchestrator.composition import build_context
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.ports import Item

AT_SEND = "at-send"
SETTINGS: dict[str, Any] = {"limits": {"lease": 2}, "system": {"timeout": 0.5, "in_flight_window": 0.5}}


class StoppingThirdParty(TableThirdParty):
    """Stops the process once, as it is about to send a write."""

    def __init__(self, engine: Engine, stops: bool, number: signal.Signals = signal.SIGSTOP) -> None:
        super().__init__(engine)
        self._stops = stops
        self._number = number

    async def create(self, item: Item) -> str:
        self._sends("create")
        return await super().create(item)

    async def update(self, item: Item) -> str | None:
        self._sends("update")
        return await super().update(item)

    async def delete(self, item: Item) -> None:
        self._sends("delete")
        await super().delete(item)

    def _sends(self, verb: str) -> None:
        print(verb, flush=True)
        if self._stops:
            self._stops = False
            os.kill(os.getpid(), self._number)


async def work(engine: Engine, stops: bool) -> None:
    """Pushes what is due; the drain of one group does nothing beside that, so it stops with no transaction open."""
    context = build_context(
        engine,
        two_part_config(**SETTINGS),
        {"item": {"shop": FakeSource(), "stock": FakeSource()}},
        {"item": StoppingThirdParty(engine, stops)},
    )
    await drain(context, linger=0, most_seconds=60, group=("item", "A"))


if __name__ == "__main__":
    asyncio.run(work(open_engine(sys.argv[1]), AT_SEND in sys.argv[2:]))
    print("ended")

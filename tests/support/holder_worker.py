"""A process to be killed or stopped while it holds claims under a lease of a minute. It says what it writes.

Its last word is "ended". Arguments: the database, what it does (``push``, ``read`` or ``full_sync``), and the signal
that it sends itself: in its first write at the third party, or as it reads a record from its source. ``SYNC_STOP_AT``
stops it elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from fakes import FakeSource, two_part_config
from sqlalchemy import Engine
from stop_worker import StoppingThirdParty

from sync_orchestrator.composition import build_context
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ports import PartRead

SETTINGS: dict[str, Any] = {"limits": {"lease": 60}, "system": {"timeout": 5, "in_flight_window": 20}}
KEYS = ("a", "b", "c")


class StoppingSource(FakeSource):
    """Sends the process a signal as a record is about to be read by its key."""

    number: signal.Signals | None = None

    async def read(self, key: str) -> PartRead | None:
        self._signal()
        return await super().read(key)

    async def read_many(self, keys: Sequence[str]) -> list[PartRead]:
        self._signal()
        return await super().read_many(keys)

    def _signal(self) -> None:
        if self.number is not None:
            number, self.number = self.number, None
            os.kill(os.getpid(), number)


def fill(shop: FakeSource, stock: FakeSource) -> None:
    """The truth of a full sync: the same in each process."""
    for number, key in enumerate(KEYS):
        shop.put(key, {"key": key, "name": f"name {key}", "store": "A"}, group="A", version=10)
        stock.put(key, {"key": key, "count": number}, version=10)


async def work(engine: Engine, what: str, number: signal.Signals | None) -> None:
    shop, stock = StoppingSource(), FakeSource()
    fill(shop, stock)
    writes = number if what != "read" else None
    third_party = StoppingThirdParty(engine, writes is not None, writes or signal.SIGSTOP)
    context = build_context(
        engine, two_part_config(**SETTINGS), {"item": {"shop": shop, "stock": stock}}, {"item": third_party}
    )
    if what == "full_sync":
        await full_sync(context, context.entities["item"], "A", patience=5)
    elif what == "read":
        shop.number = number
        await drain(context, linger=0, most_seconds=60)
    else:
        await drain(context, linger=0, most_seconds=60, group=("item", "A"))


if __name__ == "__main__":
    asyncio.run(work(open_engine(sys.argv[1]), sys.argv[2], signal.Signals[sys.argv[3]] if sys.argv[3:] else None))
    print("ended")

"""A full sync of a captured source in a process of its own, to be killed; run by ``test_capture_crashes.py``.

It fills the archive of business group A and drains what was recorded. Arguments: the ledger's URL, the configuration.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from fakes import FakeThirdParty

from sync_orchestrator.adapters.factory import build_sources
from sync_orchestrator.composition import build_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import fill_archive

_PATIENCE_SECONDS = 20.0


def main() -> None:
    url, config = sys.argv[1], Config.model_validate(json.loads(sys.argv[2]))
    engine = open_engine(url)
    context = build_context(engine, config, build_sources(config), {"item": FakeThirdParty()})

    async def work() -> None:
        await fill_archive(context, context.entities["item"], "A", allow_deletions=100)
        ends = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < ends:
            await drain(context, linger=0, most_seconds=20)
            with engine.begin() as connection:
                if not run(connection, "SELECT FROM sync.events WHERE revision IS NULL"):
                    break
        await context.close()

    asyncio.run(work())


if __name__ == "__main__":
    main()

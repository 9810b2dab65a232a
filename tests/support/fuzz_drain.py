"""A drain as a process of its own, until the file is there that its argument names."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sync_orchestrator.composition import open_context
from sync_orchestrator.core.drain.drain import drain


async def work(end: Path) -> None:
    """Drains until the file is there, then prints how many pushes it made."""
    context = open_context()
    try:
        report = await drain(context, linger=3600, most_seconds=3600, asked_to_end=end.exists)
        print(report.calls, flush=True)
    finally:
        await context.close()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1])))

"""Scenes of a worker that stands still in the middle of a push."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Callable
from typing import Any

from world import World

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.drain.event_batch import work_off

WRITES = ["create", "update", "delete"]


def archive(world: World) -> None:
    """What was told is in the archive before anything is pushed."""
    asyncio.run(work_off(world.context, 10, set()))


def due_for(world: World, write: str) -> None:
    """Record ``a`` stands before this write, and its older state is archived."""
    if write != "create":
        world.put_record("a", name="first")
        drained_until(world, settled)
    if write == "delete":
        world.delete_record("a")
    else:
        world.put_record("a", name="older")
    archive(world)


def settled(world: World) -> bool:
    return world.count_events_by_state().keys() <= {"done"} and not world.read_record_row("a").out_of_sync


def drained_until(world: World, reached: Callable[[World], bool]) -> None:
    asyncio.run(drain(world.context, linger=20, most_seconds=20, asked_to_end=lambda: reached(world)))
    assert reached(world)


def held(world: World) -> list[dict[str, Any]]:
    return [row.item for row in world.query("SELECT item FROM third_party")]


def went_on(process: subprocess.Popen[str]) -> list[str]:
    """Continues it to its end; returns what it wrote at the third party."""
    process.send_signal(signal.SIGCONT)
    output, errors = process.communicate(timeout=60)
    *written, end = output.split()
    assert (end, process.returncode) == ("ended", 0), errors
    return written


def assert_in_sync(world: World) -> None:
    drained_until(world, settled)
    assert held(world) == list(world.expected_mirror().values())
    assert world.read_conservation().balanced

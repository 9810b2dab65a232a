"""The system as a Dagster resource: assets, checks, ops and sensors work through it.

Not here: how it is put together (``composition.py``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import TypeVar

import dagster as dg
from pydantic import PrivateAttr

from sync_orchestrator.composition import home, open_context
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.runtime import Item, perform, perform_each
from sync_orchestrator.core.systems.run_heartbeats import beating
from sync_orchestrator.database import embedded
from sync_orchestrator.errors import ConfigError

T = TypeVar("T")

_opening = threading.Lock()


@cache
def _opened() -> Context:
    _start_database()
    return open_context()


def _start_database() -> None:
    """Starts the embedded server, if it is wanted and not up, from a process of its own.

    Its start forks, which now and then crashes the child in a process that is full of gRPC's threads.
    """
    if os.environ.get("SYNC_DATABASE_URL") or embedded.running(home() / "postgres"):
        return
    started = subprocess.run(
        [sys.executable, "-m", "sync_orchestrator", "db", "url"], capture_output=True, text=True, check=False
    )
    if started.returncode:
        raise ConfigError(" ".join(started.stderr.split()))


def shared_context() -> Context:
    """The process's one connection to database and systems, opened when it is first needed, by one thread."""
    with _opening:
        return _opened()


class System(dg.ConfigurableResource[None]):
    """The configured system; the database and the APIs are reached only when something runs.

    In a run it keeps up the run's heartbeat while work goes on, by which others know that the run's process lives.
    """

    _run_id: str | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Dagster's hook, before a step, a sensor or a schedule; a teardown would be one more for every sensor."""
        self._run_id = context.run.run_id if context.run is not None else None

    def alive(self) -> AbstractContextManager[None]:
        """Keeps up the heartbeat of the run, where there is one, until the block is left."""
        return nullcontext() if self._run_id is None else beating(self.context.engine, self._run_id)

    @property
    def context(self) -> Context:
        return shared_context()

    def entity(self, name: str) -> EntityContext:
        """One entity's rules and systems."""
        return self.context.entities[name]

    def perform(self, work: Awaitable[T]) -> T:
        """Runs asynchronous work of the core."""
        with self.alive():
            return perform(self.context, work)

    def perform_each(
        self, items: Iterable[Item], work: Callable[[Item], Awaitable[T]], at_once: int
    ) -> Iterator[tuple[Item, T | Exception]]:
        """The same for each of some items, so many at once; results as they come."""
        with self.alive():
            yield from perform_each(self.context, items, work, at_once)

"""The system as a Dagster resource: assets, checks, ops and sensors work through it.

How it is put together is in ``composition.py``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path
from typing import TypeVar

import dagster as dg
from pydantic import Field, PrivateAttr

from sync_orchestrator.composition import database_url, load_config, open_context, open_database, resolve_home_folder
from sync_orchestrator.core.context import Context, EntityContext
from sync_orchestrator.core.runtime import Item, perform, perform_each
from sync_orchestrator.core.systems.run_heartbeats import keep_run_heartbeat
from sync_orchestrator.database import embedded
from sync_orchestrator.errors import ConfigError

T = TypeVar("T")

DATABASE_URL_VARIABLE = "SYNC_DATABASE_URL"
"""The environment variable with the URL of the database, unless another one is configured."""

_opening = threading.Lock()


class SystemResource(dg.ConfigurableResource[None]):
    """The configured system; the database and the APIs are reached only when something runs.

    In a run it keeps up the run's heartbeat while work goes on, by which others know that the run's process lives.
    Tests replace it with a subclass whose ``context`` is another one.
    """

    config_path: str | None = Field(
        default=None,
        description="The path of `sync.yaml`; by default the environment variable `SYNC_CONFIG`, or `sync.yaml` in the "
        "working directory.",
    )
    database_url: str | None = Field(
        default=None,
        description="The URL of the Postgres database; by default the environment variable `SYNC_DATABASE_URL`, or an "
        "embedded server in the folder `SYNC_HOME`.",
    )

    _run_id: str | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Dagster calls it before a step, a sensor or a schedule.

        There is no counterpart that closes the database: the ticks of all sensors share the connections of their
        process.
        """
        self._run_id = context.run.run_id if context.run is not None else None

    def keep_alive(self) -> AbstractContextManager[None]:
        """Keeps up the heartbeat of the run, where there is one, until the block is left."""
        return nullcontext() if self._run_id is None else keep_run_heartbeat(self.context.engine, self._run_id)

    @property
    def context(self) -> Context:
        """The process's one connection to database and systems, opened when it is first needed, by one thread."""
        with _opening:
            return _open_context(self.config_path, self.database_url)

    def get_entity(self, name: str) -> EntityContext:
        """One entity's rules and systems."""
        return self.context.entities[name]

    def perform(self, work: Awaitable[T]) -> T:
        """Runs asynchronous work of the core."""
        with self.keep_alive():
            return perform(self.context, work)

    def perform_each(
        self, items: Iterable[Item], work: Callable[[Item], Awaitable[T]], at_once: int
    ) -> Iterator[tuple[Item, T | Exception]]:
        """Runs the work for each item, at most ``at_once`` at a time, and yields the results as they come."""
        with self.keep_alive():
            yield from perform_each(self.context, items, work, at_once)


@cache
def _open_context(config_path: str | None, url: str | None) -> Context:
    if url is None:
        _start_database()
    config = load_config(Path(config_path).resolve() if config_path else None)
    return open_context(open_database(database_url(url)), config)


def _start_database() -> None:
    """Starts the embedded server, if it is wanted and not up, from a process of its own.

    Its start forks, which now and then crashes the child in a process that is full of gRPC's threads.
    """
    if os.environ.get(DATABASE_URL_VARIABLE) or embedded.find_running_url(resolve_home_folder() / "postgres"):
        return
    started = subprocess.run(
        [sys.executable, "-m", "sync_orchestrator", "db", "url"], capture_output=True, text=True, check=False
    )
    if started.returncode:
        raise ConfigError(" ".join(started.stderr.split()))

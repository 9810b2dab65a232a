"""A third party as a running server, and how tests look at it and change it without the project's adapters."""

from __future__ import annotations

import os
import re
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx
from installing import PLACE
from sqlalchemy.engine import URL

from sync_orchestrator.adapters.http.prepared_calls import Prepared
from sync_orchestrator.supervisor.process_tree import Tree
from sync_orchestrator.supervisor.system import wait_ready

Record = dict[str, Any]

SECRET = "not-much-of-a-secret"
_START_SECONDS = 60.0


class ThirdPartyServer(ABC):
    """One server on a port of its own, on 127.0.0.1.

    ``environment`` holds the values that its page of the cookbook names.
    """

    name: ClassVar[str]
    """Its file in ``packages``, its system in ``third_parties``, and the name of its test parameter."""
    page: ClassVar[str]
    """Its page in docs/cookbook, without ``.md``."""
    skipped_behaviours: ClassVar[frozenset[str]] = frozenset()
    """The behaviours that the conformance test skips for it, and no others."""
    live_steps: ClassVar[frozenset[str]] = frozenset({"list", "filter", "count", "lookup"})
    """The steps that ``check --live`` reports for it."""
    many: ClassVar[int] = 400
    """A number of records that it takes some seconds to write."""
    write_calls: ClassVar[tuple[str, str]]
    """The calls that create and update records: their method, and a regular expression that their URL ends with."""
    keeps_keys_unique: ClassVar[bool] = False
    """Whether it assigns ids and refuses a second record of a key."""

    def __init__(self, folder: Path, database: URL | None = None) -> None:
        """``database``: an empty Postgres database that it may use."""
        self.folder = folder
        self.database = database
        self.port = _find_free_port()
        self.environment: dict[str, str] = {}
        self._client = httpx.Client(base_url=self.url, trust_env=False, timeout=30)
        self._tree = Tree(folder / "logs", {**os.environ, **self._variables()})
        self._prepared = False

    @property
    def url(self) -> str:
        """Its address, without a path."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Starts it, also again after its end, and returns when it responds."""
        self._tree.start_program(
            self.name,
            ["sh", "-c", 'cd "$0" && exec "$@"', str(self.folder), *self._command()],
            self.url + self._ready_path(),
        )
        wait_ready(self._tree, lambda line: None, _START_SECONDS)
        if not self._prepared:
            self._prepare()
            self._prepared = True

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        process = self._tree.programs.pop().process
        process.kill()
        process.wait()

    def stand_still(self) -> None:
        """Stops its process; its connections stay open and unread."""
        self._tree.programs[-1].process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Lets it go on with the requests that it got while it stood still."""
        self._tree.programs[-1].process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ends it and its connections. It can be called more than once."""
        self._client.close()
        self._tree.stop()
        self._tree.dismiss_guard()

    def installed(self, *parts: str) -> str:
        """The path of a file that was installed for it."""
        return str(PLACE.joinpath(self.name, *parts))

    def fit(self, product: Record) -> Record:
        """The product as a business would have it that keeps its products in this third party."""
        return product

    def is_write(self, prepared: Prepared) -> bool:
        """Whether a call creates or updates records."""
        method, ending = self.write_calls
        return prepared.request.method == method and re.search(f"{ending}$", prepared.url) is not None

    def _variables(self) -> Mapping[str, str]:
        """Environment variables of its process, beside those of the tests."""
        return {}

    def _prepare(self) -> None:  # noqa: B027  most need nothing
        """Makes what has to be there once, after its first start."""

    @abstractmethod
    def _command(self) -> Sequence[str]:
        """Its program and arguments; it is started in ``folder``."""

    @abstractmethod
    def _ready_path(self) -> str:
        """A path that responds when it is ready."""

    @abstractmethod
    def clear(self) -> None:
        """Removes all records."""

    @abstractmethod
    def records(self) -> list[Record]:
        """All its records in the plain values of the backoffice, with ``id`` where it assigns one."""

    @abstractmethod
    def change(self, key: str, **fields: Any) -> None:
        """Changes a record without the project's knowledge."""

    @abstractmethod
    def remove(self, key: str, its_id: str | None = None) -> None:
        """Removes a record without the project's knowledge, by its id where several records have the key."""

    @abstractmethod
    def add(self, record: Record) -> str:
        """Makes a record without the project's knowledge, and returns its id."""


def _find_free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

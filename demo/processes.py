"""The demo's four systems as processes, and the catalogue's database: started on free ports, ended together.

``python -m demo.processes`` runs them until Ctrl-C. They end also when whoever started them is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from demo import access, catalogue
from demo.catalogue import Catalogue
from sync_orchestrator.errors import SyncError
from sync_orchestrator.supervisor.process_tree import Tree
from sync_orchestrator.supervisor.system import wait_ready

_START_SECONDS = 60.0


@dataclass(frozen=True)
class Systems:
    """The running systems. ``environment`` is what the sync needs to find them by ``sync.yaml``."""

    tree: Tree
    ports: dict[str, int]
    environment: dict[str, str]
    catalogue: Catalogue

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"


@contextlib.contextmanager
def running(home: Path) -> Iterator[Systems]:
    """The four systems and the catalogue's database, ready; ended at the end of the block, however it ends.

    ``home``: gets their logs and the database, which is used again where it is there.

    Raises ProgramEnded with the end of its log where one does not start, SyncError where one does not answer.
    """
    ports = free_ports()
    environment = {access.port_variable(name): str(port) for name, port in ports.items()}
    places = [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    database = home / "catalogue"
    is_ours = catalogue.find(database) is None
    tree = Tree(
        home / "logs",
        {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, places))},
        database=database if is_ours else None,
    )
    try:
        found = catalogue.start(database)
        systems = Systems(tree, ports, {**environment, catalogue.URL_VARIABLE: found.reader_url}, found)
        for name in ports:
            tree.start_program(name, [sys.executable, "-m", *_command(name, database)], f"{systems.url(name)}/healthz")
        wait_ready(tree, lambda line: None, _START_SECONDS)
        yield systems
    finally:
        tree.stop()
        if is_ours:
            catalogue.stop(database)
        tree.dismiss_guard()


def _command(name: str, database: Path) -> list[str]:
    match name:
        case "erp":
            return ["demo.erp"]
        case "catalogue":
            return ["demo.catalogue_api", str(database)]
    return ["demo.sources", name]


def free_ports() -> dict[str, int]:
    """A port for each system: the one it is set to, or any other where that is taken."""
    with contextlib.ExitStack() as held:
        return {name: _bound(held, access.port(name)) for name in access.PORTS}


def _bound(held: contextlib.ExitStack, wanted: int) -> int:
    """Holds the port until all are chosen, so that no two are the same."""
    for number in (wanted, 0):
        probe = held.enter_context(socket.socket())
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            found: int = probe.getsockname()[1]
            return found
    raise SyncError("there is no free port on 127.0.0.1")


def main() -> int:
    """Runs the systems until Ctrl-C or SIGTERM."""
    asked = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        asked.set()

    home = Path(tempfile.mkdtemp(prefix="sync-demo-"))
    with running(home) as systems:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, ask)
        for name in systems.ports:
            print(f"{name} at {systems.url(name)}", flush=True)
        print(f"{catalogue.URL_VARIABLE}={systems.environment[catalogue.URL_VARIABLE]}", flush=True)
        print(f"Ctrl-C ends them; their logs are in {home / 'logs'}", flush=True)
        while not asked.wait(0.5):
            systems.tree.check_programs()
    shutil.rmtree(home / "catalogue", ignore_errors=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SyncError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)

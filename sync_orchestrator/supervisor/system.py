"""The running system: database, API service, worker, Dagster's webserver and daemon; started and ended together.

``python -m sync_orchestrator.supervisor.system`` prepares Dagster's instance, in a process of its own because Dagster
is large.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

from sync_orchestrator import composition
from sync_orchestrator.core.systems.worker_presence import expect_worker_from_now
from sync_orchestrator.database import embedded
from sync_orchestrator.errors import ConfigError, SyncError
from sync_orchestrator.private_files import close_tree, make_private_home, write_private_file
from sync_orchestrator.supervisor.process_tree import Program, ProgramEnded, Tree, last_lines

Tell = Callable[[str], None]

_START_SECONDS = 120.0
_CHECK_INTERVAL_SECONDS = 0.25


class EndRequested(BaseException):
    """SIGINT, SIGTERM or SIGHUP came."""


@dataclass
class RunningSystem:
    """A running system; ``stop`` ends it. ``environment``: what another program needs to attach to it."""

    tree: Tree
    home: Path
    api_url: str
    ui_url: str
    environment: dict[str, str] = field(default_factory=dict)
    owned_database: Path | None = None
    postgres: psutil.Process | None = None

    def format_export_line(self) -> str:
        """The shell's line after which other commands reach this system; secrets are left to whoever set them."""
        return "export " + " ".join(
            f"{name}={shlex.quote(self.environment[name])}" for name in ("SYNC_HOME", "SYNC_CONFIG")
        )

    def check_running(self) -> None:
        """Raises ProgramEnded where a part of the system has ended."""
        self.tree.check_programs()
        if self.postgres is not None and self.owned_database is not None and not self.postgres.is_running():
            raise ProgramEnded("the database", None, self.owned_database / "log")

    def wait_for_end(self) -> None:
        """Runs until a part of the system ends, and raises ProgramEnded then."""
        while True:
            self.check_running()
            time.sleep(_CHECK_INTERVAL_SECONDS)

    def stop(self) -> None:
        """Ends everything that was started, the database only if it was. Harmless to repeat."""
        self.tree.stop()
        if self.owned_database is not None:
            embedded.stop(self.owned_database)
        (self.home / "up.pid").unlink(missing_ok=True)
        self.tree.dismiss_guard()


def run_system(port: int, api_port: int, told: Tell) -> int:
    """The whole life of a system: until it is asked to end (0) or a part of it ends by itself (1).

    Raises SyncError where it cannot start.
    """
    system: RunningSystem | None = None
    try:
        with _signals_end():
            system = start_all(port, api_port, told=told)
            told(f"logs are in {system.home / 'logs'}")
            told(f"for other commands, in another shell: {system.format_export_line()}")
            told(f"up: the UI is at {system.ui_url}, events go to {system.api_url}/v1/events; Ctrl-C ends it all")
            system.wait_for_end()
    except EndRequested:
        return 0
    except ProgramEnded as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        if system is not None:
            told("ending")
            system.stop()
    return 0


def start_all(port: int = 3000, api_port: int = 8700, *, told: Tell = print) -> RunningSystem:
    """Starts everything on loopback and returns when all of it answers.

    Raises ConfigError for a wrong configuration, ProgramEnded or SyncError where something does not start.
    """
    config = composition.load_config()
    spaces = find_workspace()
    _check_free(port, api_port)
    home = composition.resolve_home_folder()
    make_private_home(home)
    _check_alone(home)
    _close_files(home)
    owned = (
        None
        if os.environ.get("SYNC_DATABASE_URL") or embedded.find_running_url(home / "postgres")
        else home / "postgres"
    )
    system = RunningSystem(
        Tree(home / "logs", {}, database=owned),
        home,
        f"http://127.0.0.1:{api_port}",
        f"http://127.0.0.1:{port}",
        owned_database=owned,
    )
    try:
        guard = psutil.Process(system.tree.guard.pid)
        write_private_file(home / "up.pid", f"{guard.pid} {guard.create_time()}")
        _start_database(system, told)
        _prepare_dagster_instance(system, told)
        _start_programs(
            system, spaces, port, api_port, consumes=bool(config.consumers), captures=bool(config.captured_sources())
        )
        wait_ready(system.tree, told)
    except BaseException:
        system.stop()
        raise
    return system


def _close_files(home: Path) -> None:
    """Takes the rights of others away from files of earlier versions: logs hold data of errors."""
    for name in ("dagster", "logs", "up.pid", composition.MARK_FILE):
        close_tree((home / name).resolve())


def find_workspace() -> Path:
    """The project's ``workspace.yaml``: in the working directory, or beside the package.

    Raises ConfigError where there is none.
    """
    for folder in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (folder / "workspace.yaml").exists():
            return folder / "workspace.yaml"
    raise ConfigError("there is no workspace.yaml here: run this in the project's folder")


def _start_database(system: RunningSystem, told: Tell) -> None:
    url = composition.database_url()
    if system.owned_database is not None:
        pid = int((system.owned_database / "postmaster.pid").read_text().split()[0])
        system.postgres = psutil.Process(pid)
    engine = composition.open_database(url)
    with engine.begin() as connection:
        expect_worker_from_now(connection)
    engine.dispose()
    told("database ready")
    system.environment = {
        **os.environ,
        "SYNC_HOME": str(system.home),
        "SYNC_CONFIG": str(composition.config_path()),
        "SYNC_DATABASE_URL": url,
        "DAGSTER_HOME": str(system.home / "dagster"),
        "SYNC_DAGSTER_DATABASE_URL": embedded.pgurl_for_dagster(url),
        "PYTHONUNBUFFERED": "1",
        "SYNC_UI_URL": system.ui_url,
    }
    system.tree.environment.update(system.environment)


def _prepare_dagster_instance(system: RunningSystem, told: Tell) -> None:
    program = system.tree.start_program("prepare", [sys.executable, "-m", __name__])
    status = program.process.wait(_START_SECONDS)
    system.tree.programs.remove(program)
    if status:
        raise ProgramEnded("preparing Dagster's instance", status, program.log)
    told(f"Dagster's instance ready in {system.environment['DAGSTER_HOME']}; {last_lines(program.log).strip()}")


def _start_programs(
    system: RunningSystem, spaces: Path, port: int, api_port: int, *, consumes: bool, captures: bool
) -> None:
    bin_folder = Path(sys.executable).parent
    tree, load = system.tree, ["-w", str(spaces)]
    tree.start_program(
        "api", [sys.executable, "-m", "sync_orchestrator", "api", "--port", str(api_port)], f"{system.api_url}/readyz"
    )
    tree.start_program(
        "webserver",
        [sys.executable, "-m", "sync_orchestrator.ui", "--workspace", str(spaces), "--port", str(port)],
        f"{system.ui_url}/server_info",
    )
    tree.start_program("worker", [sys.executable, "-m", "sync_orchestrator", "worker"])
    if consumes:
        tree.start_program("consume", [sys.executable, "-m", "sync_orchestrator", "consume"])
    if captures:
        tree.start_program("capture", [sys.executable, "-m", "sync_orchestrator", "capture"])
    tree.start_program("daemon", [str(bin_folder / "dagster-daemon"), "run", *load])


def wait_ready(tree: Tree, told: Tell, seconds: float = _START_SECONDS) -> None:
    """Returns when every program of a tree answers, having told of each.

    Raises ProgramEnded for one that has ended, SyncError for one that does not answer in time.
    """
    ends = time.monotonic() + seconds
    waiting = list(tree.programs)
    while waiting:
        tree.check_programs()
        for program in [program for program in waiting if _is_ready(program)]:
            waiting.remove(program)
            told(f"{program.name} ready" + (f" at {program.url}" if program.url else ""))
        if waiting and time.monotonic() > ends:
            raise SyncError(f"{waiting[0].name} does not answer at {waiting[0].url}; see {waiting[0].log}")
        time.sleep(0.1)


def _is_ready(program: Program) -> bool:
    if program.url is None:
        return True
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(program.url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _check_free(port: int, api_port: int) -> None:
    if port == api_port:
        raise ConfigError(f"the UI and the API service cannot both have port {port}")
    for what, number, option in (("the UI", port, "--port"), ("the API service", api_port, "--api-port")):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError:
                raise ConfigError(f"port {number} for {what} is taken: choose another with {option}") from None


def _check_alone(home: Path) -> None:
    """Two daemons on one home would take each other's runs for dead ones."""
    with contextlib.suppress(OSError, ValueError, psutil.Error):
        pid, began = (home / "up.pid").read_text().split()
        if abs(psutil.Process(int(pid)).create_time() - float(began)) < 5:
            raise ConfigError(f"the system is up already in {home}, or just ending; SYNC_HOME names another folder")


@contextlib.contextmanager
def _signals_end() -> Iterator[None]:
    """Turns the first of the ending signals into EndAsked, and ignores the others from then on."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if os.name == "posix" else [])]

    def raise_end_asked(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise EndRequested

    for number in numbers:
        signal.signal(number, raise_end_asked)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)


def main() -> None:
    """Prepares Dagster's instance: its configuration, its tables, and an end for runs whose processes are gone."""
    import dagster as dg

    from sync_orchestrator.resources.instance.config import (
        delete_shared_partitions,
        end_abandoned_runs,
        make_tables,
        write_instance,
    )

    home = Path(os.environ["DAGSTER_HOME"])
    write_instance(home)
    make_tables()
    with dg.DagsterInstance.from_config(str(home)) as instance:
        ended = end_abandoned_runs(instance)
        delete_shared_partitions(instance)
    print(f"{ended} runs whose processes were gone are marked as failed" if ended else "no run was left over")


if __name__ == "__main__":
    main()

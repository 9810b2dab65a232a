"""`up` for real: everything answers, and whatever ends it, nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from fakes import two_part_config
from ports import free_ports
from sqlalchemy.engine import make_url

from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.database import embedded
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.supervisor import process_tree
from sync_orchestrator.supervisor.process_tree import MARK, ProgramEnded, Tree, find_tree_processes
from sync_orchestrator.supervisor.system import start_all

pytestmark = pytest.mark.slow

PATIENCE = 120.0
"""In seconds, as `up` itself has with its programs: on a busy machine they take more than one minute to start."""

# A program that ignores SIGTERM, with a child in a session of its own whose parent is gone.
PERSISTENT = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(600)
"""


def eventually(check: Callable[[], Any], what: str, patience: float = PATIENCE) -> Any:
    """Waits for another process's doing."""
    ends = time.monotonic() + patience
    while not (found := check()):
        assert time.monotonic() < ends, f"{what} did not come about"
        time.sleep(0.05)
    return found


def read_command(process: psutil.Process) -> list[str]:
    """The words of its command; none of a process that has ended since it was found, as runs do at any time."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


# Any tree -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path / "logs", os.environ)
    yield tree
    tree.stop()
    tree.dismiss_guard()


def python(tree: Tree, text: str) -> process_tree.Program:
    return tree.start_program("program", [sys.executable, "-c", text])


def test_stop_finds_orphans_and_the_persistent(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "_END_SECONDS", 0.5)
    program = python(tree, PERSISTENT)
    eventually(lambda: "ready" in program.log.read_text(), "the program")
    eventually(lambda: len(find_tree_processes(tree.mark)) == 2, "the orphan")
    tree.stop()
    assert find_tree_processes(tree.mark) == []
    assert program.process.returncode == -signal.SIGKILL
    tree.stop()


def test_a_program_that_ends_is_told_of_with_the_end_of_its_log(tree: Tree) -> None:
    program = python(tree, "print('\\n'.join(map(str, range(100)))); raise SystemExit(3)")
    program.process.wait()
    with pytest.raises(ProgramEnded, match=r"program has ended with status 3(?s:.)*\n98\n99$") as caught:
        tree.check_programs()
    assert "\n84\n" not in str(caught.value)


def test_programs_heed_signals_though_we_ignore_them(tree: Tree) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        program = python(tree, "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)")
    finally:
        signal.signal(signal.SIGINT, before)
    program.process.wait()
    assert program.log.read_text() == "True\n"


def test_the_log_of_the_time_before_is_kept(tree: Tree) -> None:
    for text in ("print(1)", "print(2)"):
        python(tree, text).process.wait()
    logs = tree.programs[0].log.parent
    assert ((logs / "program.log.1").read_text(), (logs / "program.log").read_text()) == ("1\n", "2\n")


def test_the_guard_goes_when_it_is_dismissed_and_ends_nothing(tree: Tree) -> None:
    program = python(tree, "import time; time.sleep(600)")
    tree.dismiss_guard()
    assert tree.guard.returncode == 0
    assert program.process.poll() is None


# The system ---------------------------------------------------------------------------------------------------------


class Up:
    """`sync-orchestrator up` in a process of its own, as a shell in the background would start it: SIGINT ignored."""

    def __init__(self, home: Path, settings: dict[str, Any] | None = None, **environment: str) -> None:
        self.home = home
        self.ui_port, self.api_port = free_ports(2)
        self.output = home.parent / "output"
        home.parent.joinpath("sync.yaml").write_text(
            yaml.safe_dump(two_part_config(**settings or {}).model_dump(mode="json", exclude_defaults=True))
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SYNC_", "DAGSTER_"))}
        self.environment = {
            **kept,
            "SYNC_HOME": str(home),
            "SYNC_CONFIG": str(home.parent / "sync.yaml"),
            **environment,
        }
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with self.output.open("wb") as out:
                self.process = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "sync_orchestrator",
                        "up",
                        "--port",
                        str(self.ui_port),
                        "--api-port",
                        str(self.api_port),
                    ],
                    stdout=out,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    env=self.environment,
                )
        finally:
            signal.signal(signal.SIGINT, before)

    def said(self) -> str:
        return self.output.read_text()

    def wait_for(self, line: str) -> None:
        """Until it has said so."""
        eventually(lambda: self.process.poll() is not None or line in self.said(), line)
        assert self.process.poll() is None, self.said()

    def programs(self) -> dict[str, psutil.Process]:
        """Its own children, by what they are."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            words = " ".join(read_command(child))
            for name in ("process_tree", "sync_orchestrator api", "sync_orchestrator.ui", "dagster-daemon"):
                if name in words:
                    found[name] = child
        return found

    def all_processes(self) -> list[psutil.Process]:
        """Everything that it has started, the database too."""
        database = psutil.Process(int((self.home / "postgres" / "postmaster.pid").read_text().split()[0]))
        return [self.process_info(), *find_tree_processes(self.mark()), self.programs()["process_tree"], database]

    def process_info(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    def mark(self) -> str:
        return self.programs()["sync_orchestrator api"].environ()[MARK]

    def drain_worker(self) -> bool:
        """Whether a drain's run is under way, which lingers in a process of its own."""
        return any(
            "multiprocessing.spawn" in " ".join(read_command(process)) for process in find_tree_processes(self.mark())
        )

    def key(self) -> str:
        """A key to its API service, as a person makes it."""
        made = subprocess.run(
            [sys.executable, "-m", "sync_orchestrator", "keys", "create", "a test", "--scope", "events:*"],
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return made.stdout.strip()

    def post(self, document: dict[str, Any]) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.api_port}/v1/events",
            json.dumps(document).encode(),
            {"Content-Type": "application/cloudevents+json", "Authorization": f"Bearer {self.key()}"},
        )
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)


@pytest.fixture
def up_folder() -> Iterator[Path]:
    """Not in pytest's folder: another session of the same user locks that, also against the database's own user."""
    folder = Path(tempfile.mkdtemp(prefix="sync-up-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def start_up(up_folder: Path) -> Iterator[Callable[..., Up]]:
    """Starts systems; whatever a test leaves of them is ended."""
    started: list[Up] = []

    def start(settings: dict[str, Any] | None = None, **environment: str) -> Up:
        started.append(Up(up_folder / "home", settings, **environment))
        return started[-1]

    yield start
    for up in started:
        if up.process.poll() is None:
            up.process.terminate()
        up.process.wait(PATIENCE)


def leave_open_files(folder: Path) -> Path:
    """What older versions left: a home whose folders and files all users can read."""
    home = folder / "home"
    for name in (
        "logs/api.log",
        "dagster/storage/run/compute_logs/x.out",
        "dagster/dagster.yaml",
        "database-mark.json",
    ):
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
        file.chmod(0o644)
    for each in (home, *home.rglob("*")):
        if each.is_dir():
            each.chmod(0o755)
    return home


def read_mode(path: str) -> int:
    """Who may do what with a file; nobody with a link, nor with what was removed since it was found."""
    with suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode
        return 0 if stat.S_ISLNK(mode) else mode
    return 0


def open_to_others(home: Path) -> list[str]:
    """What users other than the owner, and the group of the database's user, can do something with."""
    # not ``rglob``, which fails where a folder is removed while it looks: the system goes on writing there
    every = [os.path.join(folder, name) for folder, *names in os.walk(home) for name in (*names[0], *names[1])]
    return [path for path in every if read_mode(path) & 0o077] + ([str(home)] if home.stat().st_mode & 0o067 else [])


def sockets_open_to_others(up: Up) -> list[str]:
    """The Unix sockets of its processes that other users can connect to."""
    paths: set[str] = set()
    for process in up.all_processes():
        with suppress(psutil.NoSuchProcess):  # runs end at any time
            for connection in process.net_connections("unix"):
                path: Any = connection.laddr  # of a Unix socket it is a text, whatever the stubs say
                if path.startswith("/"):
                    paths.add(path)
    return [path for path in paths if read_mode(path) & 0o022]


def test_everything_answers_and_sigterm_ends_all_of_it(
    start_up: Callable[..., Up], up_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = leave_open_files(up_folder)
    up = start_up({"consumers": {"orders": {"url": "amqp://127.0.0.1:1", "queue": "q"}}})
    up.wait_for("up: ")
    assert up.home == home
    assert f"logs are in {up.home / 'logs'}\n" in up.said()
    assert f"export SYNC_HOME={up.home} SYNC_CONFIG={up.home.parent / 'sync.yaml'}\n" in up.said()
    for url in (f"http://127.0.0.1:{up.ui_port}/server_info", f"http://127.0.0.1:{up.api_port}/readyz"):
        with urllib.request.urlopen(url) as answer:
            assert answer.status == 200
    assert (
        up.post(
            {
                "specversion": "1.0",
                "id": "1",
                "source": "shop",
                "type": "item.created",
                "subject": "a",
                "version": 1,
                "data": {"key": "a", "store": "A"},
            }
        )
        == 202
    )
    eventually(up.drain_worker, "a drain")
    assert open_to_others(up.home) == []
    assert sockets_open_to_others(up) == []
    password = make_url(embedded.find_running_url(up.home / "postgres") or "").password
    assert password
    assert not any(password in word for process in up.all_processes() for word in read_command(process))
    assert password not in up.said()
    consumer_log = up.home / "logs" / "consume.log"
    eventually(lambda: "the next try is in" in consumer_log.read_text(), "the consumer's patience with a broker")
    worker_log = up.home / "logs" / "worker.log"
    eventually(lambda: "has begun: alerts, watch" in worker_log.read_text(), "the worker")
    monkeypatch.setenv("SYNC_HOME", str(up.home))
    monkeypatch.setenv("SYNC_CONFIG", str(up.home.parent / "sync.yaml"))
    with pytest.raises(ConfigError, match="is up already"):
        start_all(*free_ports(2))
    mark, guard = up.mark(), up.programs()["process_tree"]
    up.process.terminate()
    assert up.process.wait(PATIENCE) == 0, up.said()
    assert find_tree_processes(mark) == []
    assert consumer_log.read_text().endswith("orders: ended; what was recorded is acknowledged\n")
    assert worker_log.read_text().endswith("ended; all rounds were over\n")
    assert not guard.is_running()
    assert embedded.find_running_url(up.home / "postgres") is None
    assert not (up.home / "up.pid").exists()


def test_sigint_while_it_starts_ends_it_but_not_a_database_that_is_not_its_own(
    start_up: Callable[..., Up], database_url: str
) -> None:
    password = make_url(database_url).password
    up = start_up(SYNC_DATABASE_URL=database_url)
    up.wait_for("api ready")
    mark = up.mark()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(PATIENCE) == 0, up.said()
    assert find_tree_processes(mark) == []
    assert not (up.home / "postgres").exists()
    engine = open_engine(database_url)
    with engine.begin() as connection:
        assert run(connection, "SELECT count(*) FROM public.runs")[0][0] == 0  # Dagster's tables are in it as well
    engine.dispose()
    written = [
        up.said(),
        *(log.read_text() for log in (up.home / "logs").iterdir()),
        (up.home / "dagster" / "dagster.yaml").read_text(),
    ]
    assert not any(password and password in text for text in written)


def test_a_drain_under_way_ends_in_order(start_up: Callable[..., Up], database_url: str) -> None:
    up = start_up(SYNC_DATABASE_URL=database_url)
    up.wait_for("up: ")
    up.post(
        {
            "specversion": "1.0",
            "id": "1",
            "source": "shop",
            "type": "item.created",
            "subject": "a",
            "version": 1,
            "data": {"key": "a", "store": "A"},
        }
    )
    engine = open_engine(database_url)

    def drains() -> bool:
        with engine.begin() as connection:
            return bool(run(connection, "SELECT FROM sync.heartbeats WHERE name LIKE 'drain %%'"))

    eventually(drains, "a drain")
    up.process.terminate()
    assert up.process.wait(PATIENCE) == 0, up.said()
    with engine.begin() as connection:
        runs = run(connection, "SELECT status FROM public.runs WHERE pipeline_name = 'incremental_sync'")
        assert [row.status for row in runs] == ["SUCCESS"]
    engine.dispose()


def test_sigkill_of_the_supervisor_leaves_nothing_either(start_up: Callable[..., Up]) -> None:
    up = start_up()
    up.wait_for("api ready")
    mark, guard = up.mark(), up.programs()["process_tree"]
    assert len(find_tree_processes(mark)) >= 3
    up.process.kill()
    up.process.wait()
    eventually(lambda: not guard.is_running(), "the guard's end")
    assert find_tree_processes(mark) == []
    assert embedded.find_running_url(up.home / "postgres") is None


def test_a_program_that_dies_ends_the_rest_and_is_named(start_up: Callable[..., Up], database_url: str) -> None:
    up = start_up(SYNC_DATABASE_URL=database_url)
    up.wait_for("api ready")
    mark = up.mark()
    up.programs()["sync_orchestrator api"].kill()
    assert up.process.wait(PATIENCE) == 1
    assert "api has ended with status -9; its log" in up.said()
    assert find_tree_processes(mark) == []


def test_a_program_that_cannot_start_is_named(start_up: Callable[..., Up], database_url: str, tmp_path: Path) -> None:
    (tmp_path / "dagster.py").write_text("raise ImportError('broken on purpose')")
    up = start_up(SYNC_DATABASE_URL=database_url, PYTHONPATH=str(tmp_path))
    assert up.process.wait(PATIENCE) == 1
    assert "preparing Dagster's instance has ended with status 1" in up.said()
    assert "broken on purpose" in up.said()


# Before anything starts ---------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workspace.yaml").touch()
    (tmp_path / "sync.yaml").write_text(
        yaml.safe_dump(two_part_config().model_dump(mode="json", exclude_defaults=True))
    )
    monkeypatch.setenv("SYNC_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SYNC_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_port_that_is_taken_is_named_with_its_option(project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number, other = taken.getsockname()[1], free_ports(1)[0]
        with pytest.raises(ConfigError, match=rf"port {number} for the UI is taken: .* --port"):
            start_all(number, other)
        with pytest.raises(ConfigError, match=rf"port {number} for the API service is taken: .* --api-port"):
            start_all(other, number)
        with pytest.raises(ConfigError, match="cannot both"):
            start_all(other, other)
    assert not (project / "home").exists()


def test_a_wrong_configuration_stops_the_start(project: Path) -> None:
    (project / "sync.yaml").write_text("sources: 3")
    with pytest.raises(ConfigError, match=r"sync\.yaml:1: sources"):
        start_all(*free_ports(2))
    assert not (project / "home").exists()

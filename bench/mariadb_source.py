"""A MariaDB of its own whose binlog can be read, where MariaDB is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

START_SECONDS = 60.0
SETTINGS = ("--log-bin=binlog", "--binlog-format=ROW", "--binlog-row-metadata=FULL", "--server-id=71")
TABLE = """
CREATE TABLE items (sku varchar(40) PRIMARY KEY, store varchar(20), v datetime(6), name varchar(100), price double)
"""


def find_program() -> str | None:
    """The server's program, where it is installed together with what makes its folder."""
    place = f"{os.environ.get('PATH', '')}:/usr/sbin"
    return shutil.which("mariadbd", path=place) if shutil.which("mariadb-install-db") else None


@contextmanager
def mariadb_source() -> Iterator[str]:
    """A server with the table; its URL."""
    program = find_program()
    assert program is not None
    user = ["--user=root"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "data"
        install = ["mariadb-install-db", "--no-defaults", f"--datadir={folder}", "--skip-test-db", *user]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, stdout=subprocess.DEVNULL)
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        words = [program, "--no-defaults", f"--datadir={folder}", f"--socket={place}/s", f"--pid-file={place}/pid"]
        process = subprocess.Popen(
            [*words, f"--port={port}", "--bind-address=127.0.0.1", *SETTINGS, *user], stderr=subprocess.DEVNULL
        )
        try:
            url = f"mysql+pymysql://root@127.0.0.1:{port}/shop"
            _create_table(url)
            yield url
        finally:
            process.terminate()
            process.wait(START_SECONDS)


def connect_mariadb(url: str, database: str | None = None) -> Any:
    """A connection that commits each statement."""
    import pymysql

    place = make_url(url)
    return pymysql.connect(host=place.host, port=place.port or 0, user="root", database=database, autocommit=True)


def _create_table(url: str) -> None:
    ends = time.monotonic() + START_SECONDS
    while True:
        try:
            with closing(connect_mariadb(url)) as connection, connection.cursor() as cursor:
                cursor.execute("CREATE DATABASE shop")
                cursor.execute("USE shop")
                cursor.execute(TABLE)
                return
        except Exception:
            if time.monotonic() > ends:
                raise
            time.sleep(0.1)

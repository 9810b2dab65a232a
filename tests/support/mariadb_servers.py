"""A private MariaDB whose binlog is read: its own folder, port and settings. Tests are skipped where there is none."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ports import free_ports

PATIENCE = 30.0
MARIADB_ITEMS = (
    "CREATE TABLE items (sku varchar(100) PRIMARY KEY, store varchar(20), "
    "v datetime(6) DEFAULT current_timestamp(6), name text) CHARACTER SET utf8mb4"
)
SETTINGS = (
    "--log-bin=binlog",
    "--binlog-format=ROW",
    "--binlog-row-metadata=FULL",
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-buffer-pool-size=32M",
    "--performance-schema=OFF",
)
_numbers = itertools.count(1)


def find_mariadbd() -> str | None:
    """The program of the server, where it is installed."""
    return shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def require_mariadb() -> None:
    """Skips the test where no MariaDB can be started."""
    pytest.importorskip("pymysqlreplication", reason="the extra mysql is not installed")
    if find_mariadbd() is None or shutil.which("mariadb-install-db") is None:
        pytest.skip("no mariadbd is installed: the binlog is not tried")


@dataclass
class MariadbServer:
    """A server with a folder of its own. ``settings``: options beside ``SETTINGS``, of which the last one counts."""

    folder: Path
    settings: Sequence[str] = ()
    server_id: int = 71
    port: int = field(default_factory=lambda: free_ports(1)[0])
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@127.0.0.1:{self.port}"

    def install(self) -> None:
        program = shutil.which("mariadb-install-db")
        assert program is not None
        subprocess.run(
            [
                program,
                "--no-defaults",
                f"--datadir={self.folder}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *self._user(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )

    def start(self) -> None:
        program = find_mariadbd()
        assert program is not None
        log = (self.folder.parent / "server.log").open("ab")
        self.process = subprocess.Popen(
            [
                program,
                "--no-defaults",
                f"--datadir={self.folder}",
                f"--socket={self.folder.parent / 's'}",
                f"--pid-file={self.folder.parent / 'pid'}",
                f"--port={self.port}",
                "--bind-address=127.0.0.1",
                f"--server-id={self.server_id}",
                *SETTINGS,
                *self.settings,
                *self._user(),
            ],
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
        log.close()
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                self.execute("SELECT 1")
                return
            except Exception:
                assert self.process.poll() is None, (self.folder.parent / "server.log").read_text()[-2000:]
                assert time.monotonic() < ends, "MariaDB did not start"
                time.sleep(0.05)

    def stop(self) -> float:
        """An orderly shutdown; returns how many seconds it took."""
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def execute(self, statement: str, database: str | None = None) -> list[tuple[Any, ...]]:
        """Runs a statement in autocommit mode, as an operator of the source would."""
        with self.session(database) as run:
            found: list[tuple[Any, ...]] = run(statement)
            return found

    @contextmanager
    def session(self, database: str | None = None) -> Iterator[Any]:
        """A session; what it gives runs one statement and returns its rows."""
        import pymysql

        connection = pymysql.connect(
            host="127.0.0.1", port=self.port, user="root", database=database, autocommit=True, charset="utf8mb4"
        )

        def run(statement: str, *parameters: object) -> list[tuple[Any, ...]]:
            with connection.cursor() as cursor:
                cursor.execute(statement, parameters or None)
                return list(cursor.fetchall())

        with contextlib.closing(connection):
            yield run

    def end_readers(self) -> None:
        """Ends the threads that send the log; one whose reader is gone keeps a part of the log until it notices."""
        ends = time.monotonic() + PATIENCE
        while found := self.execute("SELECT id FROM information_schema.processlist WHERE command = 'Binlog Dump'"):
            assert time.monotonic() < ends, "a thread that sends the log did not end"
            for (thread,) in found:
                with contextlib.suppress(Exception):  # it has ended
                    self.execute(f"KILL {thread}")
            time.sleep(0.05)

    def _end(self, how: signal.Signals) -> float:
        process, began = self.process, time.monotonic()
        if process is not None:
            process.send_signal(how)
            process.wait(PATIENCE)
        self.process = None
        return time.monotonic() - began

    @staticmethod
    def _user() -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []


@contextmanager
def mariadb_server(*settings: str, server_id: int = 71) -> Iterator[MariadbServer]:
    """A server that runs until the block is left."""
    with tempfile.TemporaryDirectory(prefix="mariadb-", ignore_cleanup_errors=True) as home:
        server = MariadbServer(Path(home) / "data", settings, server_id)
        server.install()
        server.start()
        try:
            yield server
        finally:
            server.kill()


@dataclass
class MariadbSource:
    """A database of a server, whose changes are captured."""

    server: MariadbServer
    database: str

    @property
    def url(self) -> str:
        return f"{self.server.url}/{self.database}"

    def find_slot(self) -> tuple[bool]:
        """There is no slot: a stream loses nothing from the moment that its position is in the ledger."""
        return (True,)

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        with self.server.session(self.database) as run:
            found: list[tuple[Any, ...]] = run(statement, *parameters)
            return found

    def execute_all(self, *statements: str) -> None:
        """Runs statements in one session."""
        with self.server.session(self.database) as run:
            for statement in statements:
                run(statement)

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The source system, for ``sync.yaml``."""
        return {"kind": "sql", "url": self.url, "capture": changes}

    def insert_many(self, prefix: str, number: int) -> None:
        """So many new rows of ``items`` in one transaction, few of them in each event of the log."""
        self.execute(
            f"INSERT INTO items (sku, store, name) SELECT concat('{prefix}', seq), 'A', repeat('n', 500) "
            f"FROM seq_1_to_{number}"
        )


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariadbServer]:
    """A server of this session of pytest."""
    require_mariadb()
    with mariadb_server() as server:
        yield server


@contextmanager
def mariadb_database(server: MariadbServer) -> Iterator[MariadbSource]:
    name = f"captured_{os.getpid()}_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    try:
        yield MariadbSource(server, name)
    finally:
        server.execute(f"DROP DATABASE {name}")


@pytest.fixture
def mariadb_source(mariadb: MariadbServer) -> Iterator[MariadbSource]:
    """An empty database."""
    with mariadb_database(mariadb) as made:
        yield made


@pytest.fixture
def mariadb_shop(mariadb_source: MariadbSource) -> MariadbSource:
    """A database with the table ``items``."""
    mariadb_source.execute(MARIADB_ITEMS)
    return mariadb_source


@contextmanager
def doing(work: Any, *arguments: Any) -> Iterator[threading.Thread]:
    """Something that goes on in a thread of its own, and has ended when the block is left."""
    thread = threading.Thread(target=work, args=arguments)
    thread.start()
    try:
        yield thread
    finally:
        thread.join(PATIENCE)
        assert not thread.is_alive()

"""The catalogue's own Postgres, whose log the sync reads: a second embedded server, with the stones in one table.

The catalogue notifies nobody. ``python -m demo.catalogue "UPDATE stones SET …"`` runs a statement in it, as the
catalogue's own people do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from sqlalchemy.engine import make_url

from demo import access
from demo.data import Stone, stones
from sync_orchestrator.database import embedded
from sync_orchestrator.errors import SyncError

URL_VARIABLE = "DEMO_CATALOGUE_URL"
"""By which ``sync.yaml`` finds the database."""

FIELDS = ("collection", "name", "cut", "color", "clarity")

_SETTINGS = ("wal_level = logical", "max_slot_wal_keep_size = 2GB")
_DATABASE = "catalogue"
_READER = "sync"
_TABLE = """
CREATE TABLE stones (
    sku text PRIMARY KEY,
    collection text NOT NULL,
    name text NOT NULL,
    cut text NOT NULL,
    color text NOT NULL,
    clarity text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX ON stones (collection, sku)
"""


class Catalogue:
    """The catalogue's database, as its owner has it.

    Args:
        owner_url: The database of the owner, for psycopg.
    """

    def __init__(self, owner_url: str) -> None:
        self.owner_url = owner_url

    @property
    def reader_url(self) -> str:
        """The database as the sync reads it: as a role that may read the table."""
        reader = make_url(self.owner_url).set(
            drivername="postgresql+psycopg", username=_READER, password=access.catalogue_password()
        )
        return reader.render_as_string(hide_password=False)

    def connect(self) -> psycopg.Connection[dict[str, Any]]:
        """A connection of the owner; each statement is a transaction."""
        return psycopg.connect(self.owner_url, autocommit=True, row_factory=dict_row)

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[dict[str, Any]]:
        """Runs a statement and returns its rows."""
        with self.connect() as connection:
            cursor = connection.execute(statement.encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def read_rows(self) -> dict[str, dict[str, Any]]:
        """All stones, by SKU."""
        return {row["sku"]: row for row in self.execute("SELECT * FROM stones")}

    def list_collections(self) -> list[str]:
        return [row["collection"] for row in self.execute("SELECT DISTINCT collection FROM stones ORDER BY 1")]

    def prepare_capture(self, configuration: Path) -> list[str]:
        """Runs the SQL that the sync says it needs, as the operator of the catalogue, and returns the statements.

        Raises SyncError where something is missing afterwards.
        """
        statements = [line for line in self._ask_what_is_missing(configuration) if not line.startswith("--")]
        for statement in statements:
            self.execute(statement)
        if statements and (left := self._ask_what_is_missing(configuration, check=True)):
            raise SyncError(f"the catalogue still lacks something: {' '.join(left)}")
        return statements

    def _ask_what_is_missing(self, configuration: Path, *, check: bool = False) -> list[str]:
        command = [sys.executable, "-m", "sync_orchestrator", "capture", "prepare", "catalogue"]
        environment = {**os.environ, "SYNC_CONFIG": str(configuration), URL_VARIABLE: self.reader_url}
        asked = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if asked.returncode not in (0, 1) or (asked.returncode == 1 and not asked.stdout.strip()):
            raise SyncError(f"`capture prepare` has ended with status {asked.returncode}: {asked.stderr.strip()}")
        return [] if check and asked.returncode == 0 else asked.stdout.splitlines()


def start(folder: Path) -> Catalogue:
    """Starts the server in a folder, or attaches to it. The first time it is filled with the stones."""
    return _fill(embedded.start(folder, _SETTINGS), stones())


def find(folder: Path) -> Catalogue | None:
    """The catalogue whose server runs in a folder; None where none does."""
    url = embedded.find_running_url(folder)
    return None if url is None else Catalogue(_name_database(url, _DATABASE))


def stop(folder: Path) -> None:
    embedded.stop(folder)


def build_insert(stone: Stone) -> tuple[str, list[object]]:
    """The statement for a new stone, and its parameters; it returns the time of the change."""
    columns = ("sku", *FIELDS)
    places = ", ".join(["%s"] * len(columns))
    statement = f"INSERT INTO stones ({', '.join(columns)}) VALUES ({places}) RETURNING updated_at AS at"
    return statement, [stone[name] for name in columns]


def build_update(sku: str, **changes: object) -> tuple[str, list[object]]:
    """The statement that changes a stone, and its parameters; it returns the time of the change."""
    assignments = ", ".join(f"{name} = %s" for name in changes)
    statement = f"UPDATE stones SET {assignments}, updated_at = clock_timestamp() WHERE sku = %s"
    return f"{statement} RETURNING updated_at AS at", [*changes.values(), sku]


def build_delete(sku: str) -> tuple[str, list[object]]:
    """The statement that deletes a stone, and its parameters; it returns the time of the change."""
    return "DELETE FROM stones WHERE sku = %s RETURNING clock_timestamp() AS at", [sku]


def to_microseconds(at: datetime) -> int:
    """A time as the ledger has versions: microseconds since 1970."""
    return round(at.timestamp() * 1e6)


def _fill(server_url: str, data: Sequence[Stone]) -> Catalogue:
    with psycopg.connect(_name_database(server_url, "postgres"), autocommit=True) as admin:
        if admin.execute("SELECT FROM pg_database WHERE datname = %s", [_DATABASE]).fetchone() is None:
            admin.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(_DATABASE)))
    found = Catalogue(_name_database(server_url, _DATABASE))
    with psycopg.connect(found.owner_url) as connection:
        if connection.execute("SELECT to_regclass('stones')").fetchone() == (None,):
            connection.execute(_TABLE)
            columns = ("sku", *FIELDS)
            with connection.cursor().copy(f"COPY stones ({', '.join(columns)}) FROM STDIN".encode()) as copy:
                for stone in data:
                    copy.write_row([stone[name] for name in columns])
            password = sql.Literal(access.catalogue_password())
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(_READER), password))
            connection.execute(sql.SQL("GRANT SELECT ON stones TO {}").format(sql.Identifier(_READER)))
    return found


def _name_database(url: str, name: str) -> str:
    return make_url(url).set(drivername="postgresql", database=name).render_as_string(hide_password=False)


def main(arguments: Sequence[str]) -> int:
    """Runs the statements that are given; returns the exit status."""
    from demo.up import home_of_demo

    running = find(home_of_demo() / "catalogue")
    if running is None:
        print("the demo's systems do not run: start them with `make up`", file=sys.stderr)
        return 1
    for statement in arguments:
        for row in running.execute(statement):
            print("  ".join(map(str, row.values())))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

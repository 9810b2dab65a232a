"""Notices that this database was restored to an earlier point, so that pushes stop before they use what it forgot.

Two things are compared: the server and database with those of the last time, and the number that the sequence
``sync.read_sequence`` has reached with the highest one that a file outside the database remembers. The file shows a
restore into the same database of the same server, which keeps all identifiers.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sync_orchestrator.core.db.session import in_transaction, run
from sync_orchestrator.core.systems import queries
from sync_orchestrator.core.systems.suspension import suspend
from sync_orchestrator.errors import ConfigError
from sync_orchestrator.private_files import make_private_home, write_private_file

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

_log = logging.getLogger("sync_orchestrator.installation")

LOOK_INTERVAL_SECONDS = 5.0
_MAX_MARKS = 50

REASON_PREFIX = "this database was restored or moved"


@dataclass(frozen=True, slots=True)
class Installation:
    """The database as its server identifies it; '' and 0 where the server does not say."""

    system_identifier: str
    timeline: int
    database_oid: int


def find_restore(stored: Installation, present: Installation, read_sequence: int, mark: int | None) -> str | None:
    """Why the database must have been restored or moved since it was last seen, or None. Pure.

    ``read_sequence`` is the number that its sequence has reached, ``mark`` the highest one that was seen outside of it.
    """
    if _are_different(stored.system_identifier, present.system_identifier):
        what = "it is on another server"
    elif _are_different(stored.database_oid, present.database_oid):
        what = "it is another database of the same server"
    elif _are_different(stored.timeline, present.timeline):
        what = f"its server is on timeline {present.timeline}, and was on {stored.timeline}"
    elif mark is not None and read_sequence < mark:
        what = f"its sequence is at {read_sequence}, and was at {mark}"
    else:
        return None
    return f"{REASON_PREFIX}: {what}"


def is_about_database(reason: str) -> bool:
    """Whether a suspension's reason is a restore of this database, which may have lost changes of the sources."""
    return reason.startswith(REASON_PREFIX)


def _are_different(stored: object, present: object) -> bool:
    return bool(stored) and bool(present) and stored != present


class InstallationWatch:
    """Compares the database with what is known of it; suspends all ``systems`` when it was restored.

    ``mark_file``: where the sequence's number is kept; None keeps none. A process on a server in recovery looks at
    nothing.
    """

    def __init__(self, engine: Engine, systems: Sequence[str], mark_file: Path | None = None) -> None:
        self._engine = engine
        self._systems = sorted(systems)
        self._marks = None if mark_file is None else Marks(mark_file)
        self._looking = threading.Lock()
        self._refused: set[str] = set()
        self._looked_at: float | None = None

    def check_if_due(self, *, at_most_every: float = 0.0) -> str | None:
        """Looks, unless that was done in the last ``at_most_every`` seconds; returns what was noticed just now."""
        with self._looking:
            now = time.monotonic()
            if self._looked_at is not None and now - self._looked_at < at_most_every:
                return None
            self._looked_at = now
            lineage, read_sequence, noticed = in_transaction(self._engine, self._look_in)
            if self._marks is not None and lineage is not None:
                self._marks.note_reached(lineage, read_sequence)
            if noticed is not None:
                _log.warning("Pushes are suspended: %s.", noticed)
            return noticed

    def _look_in(self, connection: Connection) -> tuple[str | None, int, str | None]:
        """The lineage that marks are kept under, the sequence's number, and what was noticed."""
        present = read_installation(connection, self._refused)
        if present is None:
            return None, 0, None
        rows = run(connection, queries.SELECT_INSTALLATION)
        noticed = None
        if not rows:
            _store_installation(connection, present)
        elif self._detect_restore(connection, rows[0], present) is not None:
            row = run(connection, queries.LOCK_INSTALLATION)[0]  # another process may have noticed it meanwhile
            noticed = self._detect_restore(connection, row, present)
            if noticed is not None:
                self._handle_restore(connection, present, row, noticed)
        read_sequence = int(run(connection, queries.SELECT_LAST_READ_SEQUENCE)[0].value)
        return _build_lineage(present, run(connection, queries.SELECT_INSTALLATION)[0].since), read_sequence, noticed

    def _detect_restore(self, connection: Connection, row: object, present: Installation) -> str | None:
        stored = _from_row(row)
        read_sequence = int(run(connection, queries.SELECT_LAST_READ_SEQUENCE)[0].value)
        return find_restore(stored, present, read_sequence, self._find_mark(stored, row))

    def _find_mark(self, stored: Installation, row: object) -> int | None:
        if self._marks is None:
            return None
        return self._marks.read_mark(_build_lineage(stored, row.since))  # type: ignore[attr-defined]

    def _handle_restore(self, connection: Connection, present: Installation, row: object, reason: str) -> None:
        for name in self._systems:
            suspend(connection, name, reason)
        run(connection, queries.RESTART_LISTINGS)
        run(connection, queries.ADVANCE_READ_SEQUENCE, mark=self._find_mark(_from_row(row), row) or 0)
        _store_installation(connection, present)


def read_installation(connection: Connection, refused: set[str] | None = None) -> Installation | None:
    """The server and database that a connection is on; None on a server in recovery.

    ``refused`` keeps the statements that the server does not answer, so that its log is not filled with errors.
    """
    here = run(connection, queries.SELECT_WAL_POSITION)[0]
    if here.in_recovery:
        return None
    refused = set() if refused is None else refused
    return Installation(
        str(_read_value(connection, queries.SELECT_SYSTEM_IDENTIFIER, refused) or ""),
        int(_read_value(connection, queries.SELECT_TIMELINE, refused) or 0),
        int(here.database_oid),
    )


def _read_value(connection: Connection, statement: str, refused: set[str]) -> str | int | None:
    from sqlalchemy.exc import DBAPIError

    if statement in refused:
        return None
    try:
        with connection.begin_nested():
            value: str | int | None = run(connection, statement)[0].value
            return value
    except DBAPIError as error:
        if error.connection_invalidated:
            raise
        refused.add(statement)
        return None


def _store_installation(connection: Connection, present: Installation) -> None:
    run(
        connection,
        queries.STORE_INSTALLATION,
        system_identifier=present.system_identifier,
        timeline=present.timeline,
        database_oid=present.database_oid,
    )


def _from_row(row: object) -> Installation:
    return Installation(row.system_identifier, row.timeline, row.database_oid)  # type: ignore[attr-defined]


def _build_lineage(installation: Installation, since: str) -> str:
    """What marks are kept under: databases that have the same past share it, and no others."""
    return f"{installation.system_identifier}/{installation.database_oid}/{since}"


class Marks:
    """The highest numbers that sequences were seen at, in a small file outside of any database.

    Each look writes the number of the look before it: after a crash of the server a sequence may be behind a number
    that was read at the last moment, as its transaction was not committed yet.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._before: dict[str, int] = {}
        self._complained = False

    def read_mark(self, lineage: str) -> int | None:
        """The highest number that is known of a lineage."""
        return self._read_file().get(lineage)

    def note_reached(self, lineage: str, number: int) -> None:
        """Notes where a sequence is now."""
        safe = self._before.get(lineage)
        self._before[lineage] = number
        known = self._read_file()
        if safe is None or known.get(lineage, 0) >= safe:
            return
        known.pop(lineage, None)
        known[lineage] = safe
        self._write_file(dict(list(known.items())[-_MAX_MARKS:]))

    def _read_file(self) -> dict[str, int]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {str(name): number for name, number in found.items() if type(number) is int}

    def _write_file(self, marks: dict[str, int]) -> None:
        try:
            make_private_home(self._file.parent)
            write_private_file(self._file, json.dumps(marks, indent=1))
        except (OSError, ConfigError) as error:
            if not self._complained:
                self._complained = True
                _log.warning(
                    "A restore into the same database would not be noticed: %s cannot be written: %s.",
                    self._file,
                    error,
                )

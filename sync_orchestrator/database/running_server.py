"""What the files of the embedded database say of its server, for a quick look: no package of the server is imported."""

from __future__ import annotations

import os
from pathlib import Path

from sync_orchestrator.database.embedded_access import DatabaseAccess

DATABASE = "sync"
SUPERUSER = "postgres"

_PID_FILE_LINES = ("pid", "folder", "started", "port", "socket_folder", "listens_on", "shared_memory", "status")


def has_database(folder: Path) -> bool:
    """Whether a database was ever made in ``folder``."""
    return os.path.exists(folder.expanduser().resolve() / "PG_VERSION")  # False where the folder is another user's


def find_login(folder: Path) -> dict[str, str] | None:
    """How psycopg connects to the server in ``folder``, by what the server's own file says.

    Returns the parameters, or None where the file names no server that is ready at a Unix socket. A server that was
    killed leaves its file: the connection shows whether it is there.
    """
    try:
        lines = (folder / "postmaster.pid").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = dict(zip(_PID_FILE_LINES, (line.strip() for line in lines), strict=False))
    password = DatabaseAccess(folder).read_password()
    if found.get("status") != "ready" or not found["socket_folder"] or password is None:
        return None
    return {
        "host": found["socket_folder"],
        "port": found["port"],
        "user": SUPERUSER,
        "password": password,
        "dbname": DATABASE,
    }

"""The settings of our sessions, and the check of a new one: what needs psycopg alone.

``connections.py`` puts them into SQLAlchemy's URLs, ``database/reading.py`` into the arguments of psycopg.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

IDLE_IN_TRANSACTION_SECONDS = 12
"""The server ends a session that leaves a transaction idle for longer: its process hangs, and others wait for its
locks. Transactions that hold no locks and do long work on the client's side call ``allow_idle``."""

_KEEPALIVE = {"idle": 5, "interval": 2, "count": 3}
_ACKNOWLEDGED_WITHIN_SECONDS = 10
_CONNECT_SECONDS = 10

_CLIENT = {
    "connect_timeout": _CONNECT_SECONDS,
    "client_encoding": "utf8",
    "keepalives": 1,
    **{f"keepalives_{name}": value for name, value in _KEEPALIVE.items()},
    "tcp_user_timeout": _ACKNOWLEDGED_WITHIN_SECONDS * 1000,
}
SERVER_SETTINGS = {
    # Plans are made for each execution: one made while a table was small would be kept while it grows. JIT compilation
    # costs seconds where a plan's estimated cost is high, and these statements take milliseconds.
    "jit": "off",
    "plan_cache_mode": "force_custom_plan",
    # The driver reads these forms only, and a database or role may have others set.
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "default_transaction_isolation": "read committed",
    # The server notices a client whose machine lost its power, and releases its locks.
    **{f"tcp_keepalives_{name}": str(value) for name, value in _KEEPALIVE.items()},
    "tcp_user_timeout": str(_ACKNOWLEDGED_WITHIN_SECONDS * 1000),
    "idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_SECONDS * 1000),
}
_APPLY = "SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[]) AS settings(name, value)"
_SAMPLE = "SELECT pg_backend_pid(), current_setting('jit'), current_setting('plan_cache_mode')"


def add_settings(given: dict[str, Any], *, named: bool = True) -> None:
    """Adds the settings of our sessions to connection parameters of libpq; repeating it changes nothing.

    Args:
        given: The parameters, which take precedence. A value may be a tuple, as in a URL of SQLAlchemy.
        named: Whether ``application_name`` says which process this is; not for a URL that other processes get.
    """
    for name, value in _CLIENT.items():
        given.setdefault(name, str(value))
    if named:
        given.setdefault("application_name", application_name())
    if len(_list_hosts(given)) > 1:
        given.setdefault("target_session_attrs", "read-write")
    ours, options = _format_options(), _join_values(given.get("options", ""))
    if not options.startswith(ours):
        given["options"] = f"{ours} {options}".strip()


def application_name() -> str:
    """Which process this is, for ``pg_stat_activity``: its program, its command and its process id."""
    program = Path(sys.argv[0] or "python")
    words = [program.parent.name if program.name == "__main__.py" else program.stem]
    words += [
        word for word in sys.argv[1:3] if word.replace("-", "").replace("_", "").isalnum() and not word.startswith("-")
    ]
    name = " ".join(
        ["sync-orchestrator", *(word for word in words if word not in ("sync_orchestrator", "sync-orchestrator"))]
    )
    return f"{name[:50]} {os.getpid()}".encode("ascii", "replace").decode()


def apply_settings(driver: psycopg.Connection[Any]) -> None:
    """Checks a new connection with one round trip; sets what a pooler in session mode did not pass on."""
    before, driver.autocommit = driver.autocommit, True
    try:
        if (row := driver.execute(_SAMPLE).fetchone()) is not None and _must_set(driver.info.backend_pid, row):
            driver.execute(_APPLY, (list(SERVER_SETTINGS), list(SERVER_SETTINGS.values())))
    finally:
        driver.autocommit = before


async def settle_async(driver: psycopg.AsyncConnection[Any]) -> None:
    """``apply_settings`` for a connection in autocommit mode in an event loop."""
    row = await (await driver.execute(_SAMPLE)).fetchone()
    if row is not None and _must_set(driver.info.backend_pid, row):
        await driver.execute(_APPLY, (list(SERVER_SETTINGS), list(SERVER_SETTINGS.values())))


def _must_set(backend: int, row: tuple[object, ...]) -> bool:
    return bool(row[0] != backend and row[1:] != (SERVER_SETTINGS["jit"], SERVER_SETTINGS["plan_cache_mode"]))


def _format_options() -> str:
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in SERVER_SETTINGS.items())


def _list_hosts(query: dict[str, Any]) -> list[str]:
    hosts = query.get("host", ())
    return [each for host in ((hosts,) if isinstance(hosts, str) else hosts) for each in host.split(",")]


def _join_values(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else " ".join(value)

"""Runs the tests that matter for SQL on the Postgres of this machine: ``make test-postgres``.

``SYNC_TEST_DATABASE_URL`` names the server; otherwise one at 127.0.0.1:5432 that lets the user postgres in without a
password is used. Where there is none, this says so and succeeds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psycopg

TESTS = Path(__file__).resolve().parent.parent
USUAL = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
MODULES = (
    "test_field_sessions",
    "test_full_sync",
    "test_drain",
    "test_push",
    "test_validation",
    "test_query_plans",
    "test_deadlocks",
    "test_event_states",
    "test_invariants",
)


def version_of(url: str) -> str:
    """The server's version. Raises psycopg.Error where it cannot be reached."""
    plain = url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(plain, connect_timeout=5) as connection:
        row = connection.execute("SHOW server_version").fetchone()
    assert row is not None
    return str(row[0])


def main(options: list[str]) -> int:
    """Returns the exit status of pytest."""
    named = os.environ.get("SYNC_TEST_DATABASE_URL")
    url = named or USUAL
    try:
        version = version_of(url)
    except psycopg.Error as error:
        if named:
            print(f"SYNC_TEST_DATABASE_URL cannot be reached: {error}", file=sys.stderr)
            return 1
        print("SKIPPED: no Postgres at 127.0.0.1:5432, and SYNC_TEST_DATABASE_URL is not set")
        return 0
    print(f"Postgres {version} of this machine", flush=True)
    files = [str(file) for name in MODULES for file in TESTS.rglob(f"{name}.py")]
    environment = {"SYNC_TEST_HISTORIES": "5", "SYNC_TEST_STEPS": "30", **os.environ, "SYNC_TEST_DATABASE_URL": url}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=environment,
        check=False,
    ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

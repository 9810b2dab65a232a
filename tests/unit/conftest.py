"""Keeps databases out of ``tests/unit``: its tests run where no Postgres is installed, in seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from database_guard import no_database
from tenacity import wait_none

from sync_orchestrator.adapters.http import read_retries


@pytest.fixture(scope="session")
def server_url() -> str:
    """Replaces the server of ``databases.py``, which all fixtures of databases stand on."""
    pytest.fail("a test in tests/unit uses no database; move it to tests/integration")


@pytest.fixture(scope="module", autouse=True)
def refuse_databases() -> Iterator[None]:
    """Refuses each way to a database while a module's tests run."""
    with no_database():
        yield


@pytest.fixture(autouse=True)
def retry_reads_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads that fail are tried again without a pause of our own choice."""
    monkeypatch.setattr(read_retries, "_backing_off", wait_none())

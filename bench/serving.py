"""Servers of a measurement: started in processes of their own, waited for, and ended. Not here: what is measured."""

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

from sync_orchestrator.core.sql import connect
from sync_orchestrator.database import embedded
from sync_orchestrator.database.migrate import migrate


@contextmanager
def database() -> Iterator[str]:
    """A migrated database on an embedded server of its own, until the end of the block; its URL."""
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place:
        folder = Path(place) / "postgres"
        url = embedded.start(folder)
        try:
            engine = connect(url)
            migrate(engine)
            engine.dispose()
            yield url
        finally:
            embedded.stop(folder)


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

"""Consumers that are killed while their database is down, one after the other; run by ``test_field_brokers.py``.

Each is a child of this process, so that the libraries are loaded once. Arguments: the database's URL, the configuration
as JSON, a file that exists while the database is down. Each line on standard input starts a consumer; it is killed
once it has complained of the database twice.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from sync_orchestrator.brokers import consume, kombu_queue, redis_queue  # noqa: F401  (loaded before the forks)
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import open_engine


def consumer(url: str, config: Config, down: Path, complaints: int) -> None:
    """What a child does until it is killed."""

    def fail(connection: Any) -> None:
        if down.exists():
            raise OperationalError("begin", {}, Exception("the database is down"))

    def complain(pipe: int) -> None:
        os.write(pipe, b".")

    handler = logging.Handler()
    handler.emit = lambda record: complain(complaints)  # type: ignore[method-assign]
    logging.getLogger("sync_orchestrator.consume").addHandler(handler)
    logging.getLogger("sync_orchestrator.consume").setLevel(logging.WARNING)
    engine = open_engine(url)
    event.listen(engine, "begin", fail)
    consume._FIRST_PAUSE_SECONDS, consume._TAKE_WAIT_SECONDS, consume._PROBE_SECONDS = 0.05, 0.1, 0.0
    consume.Consumption(engine, config, "orders", threading.Event()).run()


def main() -> None:
    url, config, down = sys.argv[1], Config.model_validate(json.loads(sys.argv[2])), Path(sys.argv[3])
    for _ in sys.stdin:
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            try:
                consumer(url, config, down, writes)
            finally:
                os._exit(1)
        os.close(writes)
        print("started", flush=True)
        left = 6
        while left > 0 and (read := os.read(reads, left)):
            left -= len(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reads)
        print("ended" if left else "killed", flush=True)


if __name__ == "__main__":
    main()

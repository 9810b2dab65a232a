"""Celery's worker: it stands ready at its queue, and is stopped while a case is put into it.

``python celery_worker.py BROKER_URL POOL CONCURRENCY``; concurrency 0 is Celery's own, a process a core.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import redis
from protocol import Case, batches, serve

os.environ.update({"PEER_BROKER": sys.argv[1], "PEER_MARK": f"bench-peers-{os.getpid()}-{time.time_ns()}"})

from celery_tasks import BROKER, MARK, app, bulk, create, single  # reads what was set just now

NODE = f"{MARK}@here"


class Worker:
    """A worker that answers; ``end`` takes away what was made at the broker, too."""

    def __init__(self, pool: str, concurrency: int) -> None:
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "celery",
                "-A",
                "celery_tasks",
                "worker",
                "-n",
                NODE,
                "-Q",
                MARK,
                "-P",
                pool,
                *(["-c", str(concurrency)] if concurrency else []),
                "--without-gossip",
                "--without-mingle",
                "-l",
                "WARNING",
            ],
            cwd=Path(__file__).parent,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
        )
        ends = time.monotonic() + 40
        while not app.control.ping(destination=[NODE], timeout=0.5):
            if self.process.poll() is not None or time.monotonic() > ends:
                raise SystemExit("the worker does not answer")

    @contextmanager
    def prepared(self, case: Case) -> Iterator[Callable[[], None]]:
        """All tasks in the queue; to go is to let the worker run on."""
        task = {"bulk": bulk, "single": single, "create": create}[case.how]
        self.process.send_signal(signal.SIGSTOP)
        with app.producer_pool.acquire(block=True) as producer:
            for what in batches(case.records) if case.how == "bulk" else case.records:
                task.apply_async((case.url, what), producer=producer)
        yield lambda: self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        if BROKER.startswith("redis"):
            client = redis.Redis.from_url(BROKER)
            for key in client.scan_iter(f"{MARK}.*"):
                client.delete(key)
            return
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            channel.queue_delete(MARK)
            for exchange in (MARK, f"{MARK}.pidbox", f"reply.{MARK}.pidbox", f"{MARK}.events"):
                channel.exchange_delete(exchange)


if __name__ == "__main__":
    worker = Worker(sys.argv[2], int(sys.argv[3]))
    try:
        serve(worker.prepared)
    finally:
        worker.end()

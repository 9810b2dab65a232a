"""How soon a change is at the third party, through the whole running system, and what it costs while nothing happens.

``python -m bench.steady [--quick | --long]``. Everything runs as ``sync-orchestrator up`` starts it: API service,
daemon, code server, UI, embedded Postgres, all on this machine. A change counts from the time at which it was recorded,
which is before the answer to the caller, until the time at which the third party's answer was noted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import Engine

from bench.drain import change, settings, third_party
from bench.serving import free_port
from bench.table import Line, show
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.service.api_keys import make_key
from sync_orchestrator.supervisor.system import RunningSystem, start_all

RATE = 200
_PATIENCE = 90.0

_SOON = """
SELECT count(*) AS n, percentile_cont(0.5) WITHIN GROUP (ORDER BY took) AS median,
       percentile_cont(0.99) WITHIN GROUP (ORDER BY took) AS most
FROM (SELECT EXTRACT(epoch FROM finished_at - received_at)::float8 AS took FROM sync.event_history
      WHERE state = 'done' AND seq > %(after)s) done
"""


class Running:
    """The running system, and who sends it changes."""

    def __init__(self, system: RunningSystem, engine: Engine) -> None:
        self.system = system
        self.engine = engine
        with engine.begin() as connection:
            key = make_key(connection, "bench", ["events:shop"], ["shop"])
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/cloudevents+json"}
        self._next = 0

    def event(self) -> bytes:
        """A change of a record of its own."""
        self._next += 1
        made = change(self._next)
        return json.dumps(
            {
                "specversion": "1.0",
                "id": made.event_id,
                "source": "shop",
                "type": "product.created",
                "subject": made.key,
                "version": 1,
                "data": made.data,
            }
        ).encode()

    async def send(self, number: int, rate: float) -> None:
        """So many changes, each at its time whatever became of the others."""
        async with httpx.AsyncClient(base_url=self.system.api_url, headers=self._headers, timeout=30) as client:

            async def one() -> None:
                (await client.post("/v1/events", content=self.event())).raise_for_status()

            began, tasks = time.monotonic(), []
            for at in range(number):
                await asyncio.sleep(max(0.0, began + at / rate - time.monotonic()))
                tasks.append(asyncio.create_task(one()))
            await asyncio.gather(*tasks)

    def one(self, statement: str, **params: Any) -> Any:
        with self.engine.begin() as connection:
            return run(connection, statement, **params)[0]

    def newest(self) -> int:
        return int(self.one("SELECT coalesce(max(seq), 0) AS n FROM sync.event_history").n)

    def done(self) -> bool:
        return not self.one("SELECT count(*) AS n FROM sync.events").n

    def at_rest(self) -> bool:
        """No drain is there, and no run goes on."""
        return not self.one(
            "SELECT (SELECT count(*) FROM sync.heartbeats WHERE name LIKE 'drain%%') + (SELECT count(*) FROM "
            "public.runs WHERE status IN ('QUEUED', 'NOT_STARTED', 'STARTING', 'STARTED')) AS n"
        ).n

    def runs(self) -> int:
        return int(self.one("SELECT count(*) AS n FROM public.runs").n)

    def cpu(self) -> float:
        """Seconds of all processes so far, with those that have ended."""
        assert self.system.postgres is not None
        parents = [psutil.Process(), self.system.postgres]
        found = {process.pid: process for parent in parents for process in (parent, *parent.children(recursive=True))}
        found.pop(os.getpid())
        total = 0.0
        for process in found.values():
            try:
                total += sum(process.cpu_times()[:4])
            except psutil.Error:
                continue
        return total


def until(check: Callable[[], bool], what: str) -> None:
    """Waits; raises TimeoutError."""
    ends = time.monotonic() + _PATIENCE
    while not check():
        if time.monotonic() > ends:
            raise TimeoutError(what)
        time.sleep(0.05)


def lines(running: Running, seconds: float, idle: float) -> Iterator[Line]:
    """Each line as soon as it is measured. ``idle`` 0: rests, which take their time, are left out."""
    firsts = [_first(running)]
    before = running.newest()
    asyncio.run(running.send(int(RATE * seconds), RATE))
    until(running.done, "the end of the work")
    told = running.one(_SOON, after=before)
    what = f"{RATE} changes a second for {seconds:.0f} s"
    yield Line(f"{what}: median", told.median * 1000, "ms", f"{told.n:,} changes", None, "50 ms", told.median <= 0.05)
    yield Line(f"{what}: 99th percentile", told.most * 1000, "ms", "", None, "500 ms", told.most <= 0.5)
    if idle:
        until(running.at_rest, "the end of the drain")
        firsts.append(_first(running))
    others = ", ".join(f"{first * 1000:,.0f} ms" for first in firsts[:-1])
    yield Line(
        "first change after a quiet time",
        max(firsts) * 1000,
        "ms",
        f"also: {others}" if others else "",
        None,
        "4,000 ms",
        max(firsts) <= 4,
    )
    if not idle:
        return
    until(running.at_rest, "the end of the drain")
    runs, cpu, began = running.runs(), running.cpu(), time.monotonic()
    time.sleep(idle)
    share = (running.cpu() - cpu) / (time.monotonic() - began)
    yield Line(
        f"idle for {idle:.0f} s: share of one core",
        share * 100,
        "%",
        f"runs: {running.runs() - runs}",
        None,
        "5 %",
        share < 0.05 and running.runs() == runs,
        note="Half of it is the code server, which evaluates a tick of a sensor every two to three seconds and "
        "makes Dagster's instance anew for each; the rest is the daemon's loops, the webserver and "
        "Postgres. Fewer ticks would notice work later.",
    )


def _first(running: Running) -> float:
    before = running.newest()
    asyncio.run(running.send(1, 1))
    until(lambda: bool(running.one(_SOON, after=before).n), "the first change")
    return float(running.one(_SOON, after=before).most)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place, third_party() as port:
        told = Path(place) / "sync.yaml"
        told.write_text(json.dumps(settings(port)))
        os.environ.update(SYNC_HOME=str(Path(place) / "home"), SYNC_CONFIG=str(told))
        system = start_all(free_port(), free_port(), told=lambda line: None)
        try:
            engine = open_engine(system.environment["SYNC_DATABASE_URL"])
            show(
                "steady",
                list(
                    lines(
                        Running(system, engine),
                        15 if words.quick else 60,
                        0 if words.quick else 3600 if words.long else 60,
                    )
                ),
            )
            engine.dispose()
        finally:
            system.stop()


if __name__ == "__main__":
    main()

"""What is measured of each peer: how fast it pushes, in which order versions end, and what faults leave behind.

Time runs from "all input is there", with the peer's program started and idle, to "the third party has all".
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from bench.drain import CONNECTIONS, payload, third_party
from bench.peers.environments import python_of
from bench.peers.programs import PeerFailed, Program, running
from bench.table import Line

REDIS, RABBIT = 6379, 5672
_REDIS_URL, _RABBIT_URL = f"redis://127.0.0.1:{REDIS}/15", f"amqp://guest:guest@127.0.0.1:{RABBIT}//"
MOST_SECONDS = 60.0
_GIVEN_UP = 20.0  # what nothing was heard of for so long does not come any more

_CELERY = (
    "no order per record, no guard against older versions, creates are repeated blindly, no look at what is "
    "there; by default a task is off the queue before it runs; filling the queue is not in the figure"
)
_DLT = (
    "no order between load jobs, no merge at a custom destination, creates are repeated blindly, an outcome for "
    "the package and not for a record, no look at what is there"
)
_DRT = (
    "one call after the other on one connection, any 2xx is a success of the whole call, no guard against older "
    "versions, creates are repeated blindly, no look at what is there over REST; its pace of 10 a second is off"
)
_DAGSTER = (
    "a process for each 500 changes, up to ten at once in any order, no guard against older versions, creates "
    "are repeated blindly, an outcome for the run and not for a record, no look at what is there"
)


@dataclass(frozen=True)
class SetUp:
    """A peer as it is set up: its program, what is measured with how many records, and what of it in a quick run.

    ``still``: the seconds without a call after which its retries are over. ``order``: the calls that order is shown by.
    """

    name: str
    cannot: str
    environment: str
    program: tuple[str, ...]
    numbers: Mapping[str, int]
    quick: tuple[str, ...]
    broker: int | None = None
    still: float = 0.5
    order: str = "single"


def _celery(name: str, broker: int, pool: str, concurrency: int, numbers: Mapping[str, int], *quick: str) -> SetUp:
    url = f"redis://127.0.0.1:{broker}/15" if broker == REDIS else f"amqp://guest:guest@127.0.0.1:{broker}//"
    return SetUp(name, _CELERY, "celery", ("celery_worker.py", url, pool, str(concurrency)), numbers, quick, broker, 4)


SET_UPS = (
    _celery(
        "Celery on Redis",
        REDIS,
        "prefork",
        0,
        {"bulk": 60_000, "single": 4_000, "order": 200, "faults": 2_000},
        "bulk",
        "single",
        "order",
        "faults",
    ),
    _celery(f"Celery on Redis, {CONNECTIONS} processes", REDIS, "prefork", CONNECTIONS, {"latency": 4_000}),
    _celery(
        f"Celery on Redis, {CONNECTIONS} greenlets",
        REDIS,
        "gevent",
        CONNECTIONS,
        {"single": 2_000, "latency": 2_000},
        "latency",
    ),
    _celery(
        "Celery on RabbitMQ",
        RABBIT,
        "prefork",
        0,
        {"bulk": 60_000, "single": 4_000, "order": 200, "faults": 2_000},
        "bulk",
        "single",
    ),
    _celery(f"Celery on RabbitMQ, {CONNECTIONS} processes", RABBIT, "prefork", CONNECTIONS, {"latency": 4_000}),
    SetUp(
        "dlt",
        _DLT,
        "dlt",
        ("dlt_pipeline.py",),
        {"bulk": 60_000, "single": 6_000, "latency": 6_000, "order": 200, "faults": 2_000},
        ("bulk", "single", "latency", "order", "faults"),
    ),
    SetUp(
        "drt",
        _DRT,
        "drt",
        ("drt_sync.py",),
        {"bulk": 60_000, "single": 6_000, "latency": 500, "order": 200, "faults": 2_000},
        ("bulk", "single", "latency", "order", "faults"),
    ),
    SetUp(
        "Dagster sensor, a run per 500",
        _DAGSTER,
        "",
        ("dagster_daemon.py",),
        {"bulk": 5_000, "order": 200, "faults": 2_000},
        ("bulk",),
        still=8,
        order="bulk",
    ),
)
_WHAT = {
    "bulk": "peer, bulk upsert of 500",
    "single": "peer, single records, no latency",
    "latency": f"peer, single records, 20 ms, {CONNECTIONS} connections",
    "order": "peer, versions 3, 1, 2 of each record",
    "faults": "peer, creates, 5 % errors, 2 % lost answers",
}


class Measured:
    """A peer's program beside a third party of one case's own."""

    def __init__(self, program: Program, peer: SetUp) -> None:
        self._program = program
        self._peer = peer

    def line(self, what: str, number: int) -> Line:
        return (
            self._order(number)
            if what == "order"
            else self._faults(number)
            if what == "faults"
            else (self._speed(what, number))
        )

    def _speed(self, what: str, number: int) -> Line:
        how = "bulk" if what == "bulk" else "single"
        with third_party(*(("--latency", "0.02") if what == "latency" else ())) as port, _client(port) as client:
            seconds = self._pushed(client, how, [payload(at) for at in range(number)], "records", number)
            calls = _stats(client)["calls"]
        return Line(
            f"{_WHAT[what]}: {self._peer.name}",
            number / seconds,
            "/s",
            f"{number:,} records in {calls:,} calls, {seconds:.1f} s",
            note=self._peer.cannot,
        )

    def _order(self, number: int) -> Line:
        """All records at version 3, then all at 1, then all at 2: how many end at the newest."""
        records = [{**payload(at), "v": version} for version in (3, 1, 2) for at in range(number)]
        with third_party() as port, _client(port) as client:
            self._pushed(client, self._peer.order, records, "writes", len(records))
            newest = sum(client.get(f"/items/k{at}").json()["v"] == 3 for at in range(number))
        return Line(
            f"{_WHAT['order']}: {self._peer.name}",
            newest,
            f"of {number}",
            "end at the newest",
            newest / number,
            note=self._peer.cannot,
        )

    def _faults(self, number: int) -> Line:
        """Creates, of which some are answered 500, and some are made and not answered: what is missing or too much."""
        with third_party("--errors", "0.05", "--lost", "0.02", "--seed", "7") as port, _client(port) as client:
            self._pushed(client, "create", [payload(at) for at in range(number)], "records", number, self._peer.still)
            told = _stats(client)
        missing, doubled = number - told["records"], told["created"] - told["records"]
        return Line(
            f"{_WHAT['faults']}: {self._peer.name}",
            missing + doubled,
            f"of {number:,}",
            f"missing: {missing:,}, made twice: {doubled:,}",
            note=self._peer.cannot,
        )

    def _pushed(
        self,
        client: httpx.Client,
        how: str,
        records: list[dict[str, Any]],
        counter: str,
        wanted: int,
        still: float = 0.0,
    ) -> float:
        """Seconds until a counter of the third party is there. ``still``: ends only once nothing comes any more."""
        self._program.offer(how, str(client.base_url).rstrip("/"), CONNECTIONS, records, MOST_SECONDS)
        if _stats(client)["calls"]:
            raise PeerFailed("it began before it was told to")
        began = changed = time.monotonic()
        self._program.tell("go")
        seen: dict[str, Any] = {}
        reached, gone = 0.0, False
        while True:
            told, now = _stats(client), time.monotonic()
            if told != seen:
                seen, changed = told, now
            if told[counter] >= wanted and not reached:
                reached = now - began
            gone = self._program.heard(0) == "gone" or gone
            if reached and (not still or (gone and now - changed > still)):
                break
            if still and gone and now - changed > _GIVEN_UP:
                break
            if now - began > MOST_SECONDS:
                raise PeerFailed(f"hung: {told[counter]:,} of {wanted:,} after {MOST_SECONDS:.0f} s")
            time.sleep(0.02)
        if not gone:
            self._program.expect("gone", MOST_SECONDS)
        self._program.tell("end")
        self._program.expect("ended", MOST_SECONDS)
        return reached


def _client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False)


def _stats(client: httpx.Client) -> dict[str, Any]:
    told: dict[str, Any] = client.get("/stats").json()
    return told


def _reachable(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 2).close()
    except OSError:
        return False
    return True


def lines(scale: float) -> Iterator[Line]:
    """Each line as soon as it is measured; what cannot be measured here is told on standard error and left out."""
    for peer in SET_UPS:
        wanted = [what for what in peer.numbers if scale >= 1 or what in peer.quick]
        if not wanted:
            continue
        if peer.broker and not _reachable(peer.broker):
            print(f"{peer.name}: left out, nothing listens on 127.0.0.1:{peer.broker}", file=sys.stderr)
            continue
        try:
            python = str(python_of(peer.environment)) if peer.environment else sys.executable
        except subprocess.SubprocessError as error:
            print(f"{peer.name}: left out, its environment could not be made: {error}", file=sys.stderr)
            continue
        what = wanted[0]
        try:
            with running(python, *peer.program) as program:
                measured = Measured(program, peer)
                for what in wanted:
                    yield measured.line(what, int(peer.numbers[what] * (1 if what == "order" else scale)))
        except PeerFailed as failure:
            yield Line(f"{_WHAT[what]}: {peer.name}", 0, "", str(failure), note="nothing more of it was measured")

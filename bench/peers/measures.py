"""What is measured of each peer: how fast it pushes, in which order versions end, and what faults leave behind.

Time runs from "all input is there", with the peer's program started and idle, to "the third party has all". Not here:
how a peer is set up (``set_ups/``) and spoken to (``programs.py``).
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
from bench.peers.environments import interpreter
from bench.peers.programs import PeerFailed, Program, running
from bench.table import Line

REDIS, RABBIT = 6379, 5672
_REDIS_URL, _RABBIT_URL = f"redis://127.0.0.1:{REDIS}/15", f"amqp://guest:guest@127.0.0.1:{RABBIT}//"
ORDERED, FAULTY = 200, 2000
MOST_SECONDS = 60.0
_CELERY = ("no order per record, no guard against older versions, no look at what is there; taken off the queue before "
           "it runs, by default")


@dataclass(frozen=True)
class SetUp:
    """A peer as it is set up. ``speeds``: calls, and how many records; ``proofs``: by which calls they are made."""

    name: str
    environment: str
    script: str
    cannot: str
    speeds: Mapping[str, int]
    words: tuple[str, ...] = ()
    order: str = ""
    faults: bool = False
    broker: int | None = None
    quiet: float = 0.5
    short: bool = True


SET_UPS = (
    SetUp("Celery on Redis", "celery", "celery_worker.py", _CELERY, {"bulk": 60_000, "single": 6_000},
          (_REDIS_URL, "prefork", "0"), "single", True, REDIS, 5),
    SetUp(f"Celery on Redis, {CONNECTIONS} processes", "celery", "celery_worker.py", _CELERY, {"latency": 6_000},
          (_REDIS_URL, "prefork", str(CONNECTIONS)), broker=REDIS),
    SetUp(f"Celery on Redis, {CONNECTIONS} greenlets", "celery", "celery_worker.py", _CELERY,
          {"single": 4_000, "latency": 4_000}, (_REDIS_URL, "gevent", str(CONNECTIONS)), broker=REDIS),
    SetUp("Celery on RabbitMQ", "celery", "celery_worker.py", _CELERY, {"bulk": 60_000, "single": 6_000},
          (_RABBIT_URL, "prefork", "0"), "single", True, RABBIT, 5),
    SetUp(f"Celery on RabbitMQ, {CONNECTIONS} processes", "celery", "celery_worker.py", _CELERY, {"latency": 6_000},
          (_RABBIT_URL, "prefork", str(CONNECTIONS)), broker=RABBIT, short=False),
    SetUp("dlt", "dlt", "dlt_pipeline.py",
          "no order between load jobs, no merge at a custom destination, the outcome is a package's, not a record's; "
          "no look at what is there", {"bulk": 60_000, "single": 6_000, "latency": 6_000}, (), "single", True),
    SetUp("drt", "drt", "drt_sync.py",
          "one call after the other; any 2xx is a success of the whole call; no guard against older versions; no look at "
          "what is there over REST", {"bulk": 60_000, "single": 6_000, "latency": 500}, (), "single", True),
    SetUp("Dagster sensor, a run per 500", "", "dagster_daemon.py",
          "a process per 500 changes, up to ten at once in any order; no guard against older versions; the outcome is a "
          "run's, not a record's; no look at what is there", {"bulk": 5_000}, (), "bulk", True, quiet=15),
)

_WHAT = {
    "bulk": "peer, bulk upsert of 500", "single": "peer, single records, no latency",
    "latency": f"peer, single records, 20 ms, {CONNECTIONS} connections",
    "order": f"peer, versions 3, 1, 2 of {ORDERED} records",
    "faults": f"peer, {FAULTY:,} creates, 5 % errors, 2 % lost answers"}


class Measured:
    """A peer's program beside a third party of one case's own."""

    def __init__(self, program: Program, peer: SetUp) -> None:
        self._program = program
        self._peer = peer

    def speed(self, what: str, number: int) -> Line:
        how = "bulk" if what == "bulk" else "single"
        with third_party(*(("--latency", "0.02") if what == "latency" else ())) as port, _client(port) as client:
            seconds = self._pushed(client, how, [payload(at) for at in range(number)], "records", number)
            calls = _stats(client)["calls"]
        return Line(f"{_WHAT[what]}: {self._peer.name}", number / seconds, "/s",
                    f"{number:,} records, {calls:,} calls, {seconds:.1f} s", note=self._peer.cannot)

    def order(self) -> Line:
        """Three versions of each record, the newest first; how many end at the newest."""
        records = [{**payload(at), "v": version} for version in (3, 1, 2) for at in range(ORDERED)]
        with third_party() as port, _client(port) as client:
            self._pushed(client, self._peer.order, records, "writes", len(records))
            newest = sum(client.get(f"/items/k{at}").json()["v"] == 3 for at in range(ORDERED))
        return Line(f"{_WHAT['order']}: {self._peer.name}", newest, f"of {ORDERED}", "end at the newest", newest / ORDERED,
                    note=self._peer.cannot)

    def faults(self) -> Line:
        """Creates, of which some are answered 500 and some are made and not answered; what is missing or there twice."""
        with third_party("--errors", "0.05", "--lost", "0.02", "--seed", "7") as port, _client(port) as client:
            self._pushed(client, "create", [payload(at) for at in range(FAULTY)], "records", FAULTY, self._peer.quiet)
            told = _stats(client)
        missing, doubled = FAULTY - told["records"], told["created"] - told["records"]
        return Line(f"{_WHAT['faults']}: {self._peer.name}", missing + doubled, f"of {FAULTY:,}",
                    f"missing: {missing:,}; made once too often: {doubled:,}",
                    note=self._peer.cannot)

    def _pushed(self, client: httpx.Client, how: str, records: list[dict[str, Any]], counter: str, wanted: int,
                quiet: float = 0.0) -> float:
        """Seconds until a counter of the third party is there; with ``quiet``, also waits until nothing comes any more."""
        self._program.offer(how, str(client.base_url).rstrip("/"), CONNECTIONS, records, MOST_SECONDS)
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
            if (reached and not quiet) or (gone and quiet and now - changed > quiet):
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
        if scale < 1 and not peer.short:
            continue
        if peer.broker and not _reachable(peer.broker):
            print(f"{peer.name}: left out, nothing listens on 127.0.0.1:{peer.broker}", file=sys.stderr)
            continue
        try:
            python = interpreter(peer.environment) if peer.environment else sys.executable
        except subprocess.SubprocessError as error:
            print(f"{peer.name}: left out, its environment could not be made: {error}", file=sys.stderr)
            continue
        yield from _measured(peer, python, scale)


def _measured(peer: SetUp, python: str, scale: float) -> Iterator[Line]:
    """A peer's lines; the last one says so where it failed or hung."""
    what = "its start"
    try:
        with running(python, peer.script, peer.words) as program:
            measured = Measured(program, peer)
            for what, number in peer.speeds.items():
                yield measured.speed(what, int(number * scale))
            if peer.order:
                what = "order"
                yield measured.order()
            if peer.faults:
                what = "faults"
                yield measured.faults()
    except PeerFailed as failure:
        yield Line(f"{_WHAT.get(what, what)}: {peer.name}", 0, "", str(failure), note="nothing more of it was measured")

"""How long single events of one source take while another source floods the API service with large batches.

``python -m bench.flood [--quick]``. First the events of ``shop`` alone, by four clients one after the other each; then
the same beside six clients that send batches of ``lab`` as large as they may be, as fast as they are answered.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import yaml

from bench.intake import CONFIG, document
from bench.serving import database, free_port, served
from bench.table import Line, show
from sync_orchestrator.core.db.session import open_engine
from sync_orchestrator.core.service.api_keys import make_key

FLOODING, CALLING = 6, 4
BATCH = 10_000


FLOOD = """
import http.client, json, sys, time
port, key, name, seconds, size = int(sys.argv[1]), sys.argv[2], sys.argv[3], float(sys.argv[4]), int(sys.argv[5])
body = json.dumps([{"specversion": "1.0", "id": f"RUN-{n}", "source": "lab", "type": "product.updated",
                    "subject": f"k{n}", "version": n, "data": {"sku": f"k{n}", "name": "a lamp", "v": n}}
                   for n in range(size)]).encode()
headers = {"X-API-Key": key, "Content-Type": "application/cloudevents-batch+json"}
ends, taken, refused = time.monotonic() + seconds, 0, 0
connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
while time.monotonic() < ends:
    connection.request("POST", "/v1/events", body.replace(b'"RUN-', b'"%s-%d-' % (name.encode(), taken)), headers)
    answer = connection.getresponse()
    answer.read()
    taken, refused = taken + (answer.status == 202), refused + (answer.status != 202)
print(taken, refused)
"""


@dataclass
class Times:
    """Seconds that single events took, and what became of the flood."""

    seconds: list[float] = field(default_factory=list)
    batches: int = 0
    refused: int = 0

    @property
    def p50(self) -> float:
        return quantiles(self.seconds, n=100)[49]

    @property
    def p95(self) -> float:
        return quantiles(self.seconds, n=100)[94]


def config() -> dict[str, Any]:
    made = json.loads(json.dumps(CONFIG))
    made["sources"]["lab"] = {"base_url": "http://127.0.0.1:1"}
    made["entities"]["product"]["parts"]["lab"] = {
        "key": "sku",
        "version": {"path": "v", "kind": "number"},
        "list": {"path": "/"},
        "required": False,
    }
    return made


async def measured(port: int, keys: dict[str, str], seconds: float, name: str, *, flooded: bool) -> Times:
    """Single events of ``shop`` for a time, alone or beside the flood."""
    found, ends = Times(), asyncio.Event()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:

        async def call(number: int) -> None:
            at = 0
            while not ends.is_set():
                body = {**document(at), "id": f"{name}-{number}-{at}"}
                began = time.perf_counter()
                answer = await client.post("/v1/events", json=body, headers={"X-API-Key": keys["shop"]})
                found.seconds.append(time.perf_counter() - began)
                assert answer.status_code == 202, answer.text
                at += 1
                await asyncio.sleep(0.005)

        calls = [asyncio.create_task(call(number)) for number in range(CALLING)]
        floods = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                FLOOD,
                str(port),
                keys["lab"],
                str(number),
                str(seconds),
                str(BATCH),
                stdout=asyncio.subprocess.PIPE,
            )
            for number in range(FLOODING if flooded else 0)
        ]
        if flooded:
            for each in floods:
                said, _ = await each.communicate()
                taken, refused = map(int, said.split())
                found.batches, found.refused = found.batches + taken, found.refused + refused
        else:
            await asyncio.sleep(seconds)
        ends.set()
        await asyncio.gather(*calls)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    seconds = 8.0 if parser.parse_args().quick else 30.0
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place, database() as url:
        engine = open_engine(url)
        with engine.begin() as connection:
            keys = {name: make_key(connection, name, [f"events:{name}"], ["shop", "lab"]) for name in ("shop", "lab")}
        engine.dispose()
        (Path(place) / "sync.yaml").write_text(yaml.safe_dump(config()))
        environment = {"SYNC_CONFIG": str(Path(place) / "sync.yaml"), "SYNC_DATABASE_URL": url}
        port = free_port()
        with served(["-m", "sync_orchestrator", "api", "--port", str(port)], port, environment, "/readyz"):
            alone = asyncio.run(measured(port, keys, seconds, "alone", flooded=False))
            beside = asyncio.run(measured(port, keys, seconds, "beside", flooded=True))
    said = f"alone: p50 {1000 * alone.p50:,.1f} ms, p95 {1000 * alone.p95:,.1f} ms"
    flood = f"{FLOODING} clients, {beside.batches} batches of {BATCH:,}, {beside.refused} refused"
    show(
        "flood",
        [
            Line("single events beside a flood, p50", 1000 * beside.p50, "ms", said, beside.p50 / alone.p50),
            Line(
                "the same, p95",
                1000 * beside.p95,
                "ms",
                flood,
                beside.p95 / alone.p95,
                "2.0",
                beside.p95 / alone.p95 <= 2,
            ),
        ],
    )


if __name__ == "__main__":
    main()

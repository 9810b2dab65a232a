"""How much the API service takes: single events by wrk over 64 connections, batches of 1,000, beside what bounds them.

``python -m bench.intake [--quick]``. Beside it, in the same run: a bare Starlette route that only parses the same body,
and a plain COPY of the same rows into a table of the same columns and indexes. The server's durability is as it comes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import yaml

from bench.serving import database, free_port, served
from bench.table import Line, show
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.service.api_keys import make_key

CONNECTIONS = 64
BATCH = 1000

CONFIG = {
    "sources": {"shop": {"base_url": "http://127.0.0.1:1"}},
    "third_parties": {"erp": {"base_url": "http://127.0.0.1:1"}},
    "entities": {
        "product": {
            "owner": "shop",
            "parts": {
                "shop": {
                    "key": "sku",
                    "group": "store",
                    "version": {"path": "v", "kind": "number"},
                    "list": {"path": "/"},
                }
            },
            "mapping": {"code": "key"},
            "third_party": {
                "system": "erp",
                "key_field": "code",
                "create": {"path": "/"},
                "update": {"path": "/{{ id }}"},
                "delete": {"path": "/{{ id }}"},
                "read": {"path": "/{{ id }}"},
                "list": {"path": "/"},
            },
        }
    },
}

BARE = """
import json
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
async def take(request):
    json.loads(await request.body())
    return JSONResponse({"accepted": 1, "duplicates": 0}, status_code=202)
app = Starlette(routes=[Route("/v1/events", take, methods=["POST"])])
"""

WRK = """
local thread_number = 0
function setup(thread) thread:set("number", thread_number); thread_number = thread_number + 1 end
function init(args) n = 0; run = os.time() end
function request()
  n = n + 1
  local id = run .. "-" .. number .. "-" .. n
  local body = '{"specversion":"1.0","id":"' .. id .. '","source":"shop","type":"product.updated","subject":"k' ..
    (n % 10000) .. '","version":' .. n .. ',"data":{"sku":"k' .. (n % 10000) ..
    '","name":"a lamp that stands on a table","price":12.5,"store":"north","v":' .. n .. '}}'
  return wrk.format("POST", "/v1/events", {["Content-Type"] = "application/cloudevents+json",
    ["Authorization"] = "Bearer KEY"}, body)
end
"""


def document(number: int) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"b{os.getpid()}-{number}",
        "source": "shop",
        "type": "product.updated",
        "subject": f"k{number % 100_000}",
        "version": number,
        "data": {
            "sku": f"k{number % 100_000}",
            "name": "a lamp that stands on a table",
            "price": 12.5,
            "store": "north",
            "v": number,
        },
    }


def wrk(port: int, script: Path, seconds: int) -> float:
    """Requests a second that were answered by 2xx."""
    said = subprocess.run(
        ["wrk", "-t", "2", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "-s", str(script), f"http://127.0.0.1:{port}"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if match := re.search(r"Non-2xx or 3xx responses: (\d+)", said):
        raise SystemExit(f"{match[1]} requests were refused:\n{said}")
    rate = re.search(r"Requests/sec:\s*([\d.]+)", said)
    assert rate is not None, said
    return float(rate[1])


async def batches(port: int, key: str, number: int) -> float:
    """Events a second, by batches over eight connections."""
    bodies = [json.dumps([document(at * BATCH + one) for one in range(BATCH)]).encode() for at in range(number)]
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/cloudevents-batch+json"}
    limit = asyncio.Semaphore(8)
    async with httpx.AsyncClient(timeout=60, trust_env=False) as client:

        async def post(body: bytes) -> None:
            async with limit:
                answer = await client.post(f"http://127.0.0.1:{port}/v1/events", content=body, headers=headers)
                assert answer.json() == {"accepted": BATCH, "duplicates": 0}, answer.text

        began = time.monotonic()
        await asyncio.gather(*(post(body) for body in bodies))
        return number * BATCH / (time.monotonic() - began)


def copied(url: str, number: int) -> float:
    """Rows a second, by COPY in batches of the same size, each a transaction."""
    engine = open_engine(url)
    columns = ("source", "event_id", "entity", "key", "group_key", "action", "version", "thin", "data", "content_hash")
    with engine.begin() as connection:
        run(connection, "CREATE TABLE bench_events (LIKE sync.events INCLUDING ALL)")
        run(connection, "CREATE TABLE bench_ids (LIKE sync.event_ids INCLUDING ALL)")
    raw = engine.raw_connection()
    driver: Any = raw.driver_connection
    began = time.monotonic()
    for at in range(number):
        rows = [document(at * BATCH + one) for one in range(BATCH)]
        with driver.cursor() as cursor:
            with cursor.copy(f"COPY bench_events ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(
                        (
                            "shop",
                            row["id"],
                            "product",
                            row["subject"],
                            "north",
                            "update",
                            row["version"],
                            False,
                            json.dumps(row["data"]),
                            b"0" * 32,
                        )
                    )
            with cursor.copy("COPY bench_ids (source, event_id, content_hash) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(("shop", row["id"], b"0" * 32))
        driver.commit()
    rate = number * BATCH / (time.monotonic() - began)
    raw.close()
    engine.dispose()
    return rate


def recorded(url: str, number: int) -> float:
    """Events a second into the ledger, without HTTP, from one thread."""
    engine = open_engine(url)
    made = [
        [
            ChangeEvent("shop", f"r{at}-{one}", "product", f"k{one}", "update", one, document(one)["data"], "north")
            for one in range(BATCH)
        ]
        for at in range(number)
    ]
    began = time.monotonic()
    for events in made:
        record_events(engine, events)
    rate = number * BATCH / (time.monotonic() - began)
    engine.dispose()
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args().quick
    if shutil.which("wrk") is None:
        sys.exit("wrk is needed: install it with your system's packages")
    seconds, number = (4, 40) if quick else (10, 200)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as place, database() as url:
        folder = Path(place)
        engine = open_engine(url)
        with engine.begin() as connection:
            key = make_key(connection, "bench", ["events:*"], [])
        engine.dispose()
        (folder / "sync.yaml").write_text(yaml.safe_dump(CONFIG))
        (folder / "bare.py").write_text(BARE)
        script = folder / "post.lua"
        script.write_text(WRK.replace("KEY", key))
        environment = {"SYNC_CONFIG": str(folder / "sync.yaml"), "SYNC_DATABASE_URL": url}
        port = free_port()
        with served(["-m", "sync_orchestrator", "api", "--port", str(port)], port, environment, "/readyz"):
            single = wrk(port, script, seconds)
            many = asyncio.run(batches(port, key, number))
        other = free_port()
        with served(
            [
                "-m",
                "uvicorn",
                "--app-dir",
                str(folder),
                "bare:app",
                "--port",
                str(other),
                "--log-level",
                "warning",
                "--no-access-log",
            ],
            other,
            {},
            "/",
        ):
            bare = wrk(other, script, seconds)
        plain, ledger = copied(url, number), recorded(url, number)
    show(
        "intake",
        [
            Line(
                "single events, key checked, committed",
                single,
                "/s",
                f"a bare route: {bare:,.0f} /s",
                single / bare,
                "0.50",
                single / bare >= 0.5,
            ),
            Line("batches of 1,000, committed", many, "/s", "", None, "30,000 /s", many >= 30_000),
            Line(
                "the same",
                many,
                "/s",
                f"COPY of the same rows: {plain:,.0f} /s",
                many / plain,
                "0.33",
                many / plain >= 1 / 3,
            ),
            Line(
                "the ledger alone, one thread", ledger, "/s", f"COPY of the same rows: {plain:,.0f} /s", ledger / plain
            ),
        ],
    )


if __name__ == "__main__":
    main()

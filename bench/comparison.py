"""How fast and in how much memory whole groups are compared, beside a bare loop that only pages them out and parses.

``python -m bench.comparison [--quick | --long]``. The bare loop uses the same HTTP client (httpx on aiohttp's
transport) and parses with orjson; it compares nothing. The comparison runs in a process of its own, whose memory is
measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx
import orjson
import uvloop
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from bench.drain import stats
from bench.memory import peak_megabytes
from bench.peers.environments import told_by
from bench.serving import database, free_port, served
from bench.table import Line, show
from bench.third_party import record
from sync_orchestrator.adapters.http.transport import Transport
from sync_orchestrator.composition import open_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.runtime import perform_each
from sync_orchestrator.core.validation.validate import validate
from sync_orchestrator.core.values.mapping import compute_digest

GROUPS = 100
AT_ONCE = 4
PAGE = 1000


def config(port: int) -> Config:
    """One entity, kept at the third party of that port, which lists a thousand records a page."""
    return Config.model_validate(
        {
            "sources": {"shop": {"base_url": "http://127.0.0.1:1"}},
            "third_parties": {"erp": {"base_url": f"http://127.0.0.1:{port}"}},
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
                    "mapping": {"code": "key", "name": "shop.name", "price": "shop.price", "store": "group"},
                    "third_party": {
                        "system": "erp",
                        "ids": "ours",
                        "key_field": "code",
                        "group": "store",
                        "update": {"method": "PUT", "path": "/items/{{ key }}"},
                        "delete": {"path": "/items/{{ key }}"},
                        "read": {"path": "/items/{{ key }}"},
                        "list": {
                            "path": "/items",
                            "params": {"store": "{{ group }}", "after": "{{ after }}", "limit": "{{ limit }}"},
                            "paging": "after",
                            "size": PAGE,
                        },
                        "count": {"path": "/count", "params": {"store": "{{ group }}"}, "number": "count"},
                    },
                }
            },
        }
    )


def fill(url: str, records: int) -> None:
    """Puts the same records into the database as acknowledged by the third party long ago."""
    engine = open_engine(url)
    ago = "2020-01-01T00:00:00Z"
    with engine.begin() as connection:
        run(connection, "TRUNCATE sync.records, sync.groups, sync.validations, sync.drift CASCADE")
        run(
            connection,
            "INSERT INTO sync.groups (entity, group_key, first_completed_at) "
            "SELECT 'product', 'store ' || n, now() FROM generate_series(0, %(last)s) n",
            last=GROUPS - 1,
        )
        driver: Any = connection.connection.driver_connection
        with driver.cursor().copy(
            "COPY sync.records (entity, key, group_key, revision, ready, changed_at, applied_revision, applied_digest,"
            " applied_group, applied_at, first_applied_at, external_id) FROM STDIN"
        ) as rows:
            for number in range(records):
                made = record(number, GROUPS)
                rows.write_row(
                    (
                        "product",
                        made["code"],
                        made["store"],
                        1,
                        True,
                        ago,
                        1,
                        compute_digest(made),
                        made["store"],
                        ago,
                        ago,
                        made["code"],
                    )
                )
    _rest(engine)
    engine.dispose()


def fill_tables(url: str, records: int) -> None:
    """The same as two plain tables."""
    engine = open_engine(url)
    with engine.begin() as connection:
        driver: Any = connection.connection.driver_connection
        for table in ("ours", "theirs"):
            run(connection, f"DROP TABLE IF EXISTS {table}")
            run(connection, f"CREATE TABLE {table} (code text PRIMARY KEY, name text, price float8, store text)")
            with driver.cursor().copy(f"COPY {table} (code, name, price, store) FROM STDIN") as rows:
                for number in range(records):
                    rows.write_row(tuple(record(number, GROUPS).values()))
    _rest(engine)
    engine.dispose()


def _rest(engine: Engine) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        run(connection, "VACUUM ANALYZE")


async def bare(port: int) -> float:
    """Seconds to page everything out and parse it, as many groups at once as the comparison takes."""
    left = iter(range(GROUPS))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=Transport()) as client:

        async def page_out() -> None:
            for group in left:
                after = ""
                while page := orjson.loads(
                    (
                        await client.get("/items", params={"store": f"store {group}", "after": after, "limit": PAGE})
                    ).content
                ):
                    after = page[-1]["code"]

        began = time.monotonic()
        await asyncio.gather(*(page_out() for _ in range(AT_ONCE)))
        return time.monotonic() - began


def look(url: str, port: int, how: str) -> dict[str, Any]:
    """What one look at all groups takes in this process: ``page`` them out, ``count`` them, ``compare`` them."""
    context = open_context(open_engine(url), config(port))
    entity = context.entities["product"]

    async def work(number: int) -> str:
        if how == "page":
            async for _ in entity.third_party.pages(f"store {number}"):
                pass
            return "in_sync"
        return (await validate(context, entity, f"store {number}", full=how == "compare")).verdict

    began = time.monotonic()
    verdicts = {verdict for _, verdict in perform_each(context, range(GROUPS), work, AT_ONCE)}
    assert verdicts == {"in_sync"}, verdicts
    return {"seconds": time.monotonic() - began, "megabytes": peak_megabytes()}


def looked(url: str, port: int, how: str) -> dict[str, Any]:
    """The same in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench.comparison", "--look", url, str(port), how], check=True, stdout=subprocess.PIPE
    )
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def lines(url: str, records: int) -> Iterator[Line]:
    """Each line as soon as it is measured."""
    port = free_port()
    fill(url, records)
    with served(
        ["-m", "bench.third_party", str(port), "--records", str(records), "--groups", str(GROUPS)], port, {}, "/stats"
    ):
        alone = uvloop.run(bare(port))
        paged, compared = looked(url, port, "page"), looked(url, port, "compare")
        what = f"full comparison of {records:,} records in {GROUPS} groups"
        yield Line(
            what,
            records / compared["seconds"],
            "/s",
            f"bare loop: {records / alone:,.0f} /s",
            compared["seconds"] / alone,
            "1.30",
            compared["seconds"] <= 1.3 * alone,
            note="The bare loop makes no records of what it parses. Making them as the adapter does takes 4 to "
            "5 us each; a digest, a row of the archive and the comparison 6 us more, on one core.",
        )
        yield Line(
            "the same beside our own paging alone",
            records / compared["seconds"],
            "/s",
            f"paging: {records / paged['seconds']:,.0f} /s",
            compared["seconds"] / paged["seconds"],
        )
        yield Line(
            "its memory",
            compared["megabytes"],
            "MB",
            f"paging: {paged['megabytes']:.0f} MB",
            None,
            "300 MB",
            compared["megabytes"] < 300,
        )
        before = stats(port)["calls"]
        counted = looked(url, port, "count")
        calls = stats(port)["calls"] - before
        yield Line(
            "all in sync, counts only: calls",
            calls,
            "",
            f"{counted['seconds']:.2f} s; a few prove the filter",
            calls / GROUPS,
            "1 a group",
            calls <= GROUPS + AT_ONCE,
        )
    yield from _peers(url, records)


def _peers(url: str, records: int) -> Iterator[Line]:
    fill_tables(url, records)
    place = make_url(url)
    words = (str(place.query["host"]), str(place.database), str(place.username))
    for name, how in (("reladiff", "checksums of segments"), ("datacompy", "pandas frames")):
        try:
            told = told_by("tables", "tables.py", name, *words)
        except subprocess.SubprocessError as error:
            yield Line(f"peer {name}", 0, "/s", f"failed: {type(error).__name__}")
            continue
        assert told["differences"] == 0
        yield Line(
            f"peer {name}, both sides in one database",
            records / told["seconds"],
            "/s",
            f"{how}; {told['megabytes']:.0f} MB",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--look", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.look:
        url, port, how = words.look
        print(json.dumps(look(url, int(port), how)))
        return
    with database() as url:
        show("compare", list(lines(url, 100_000 if words.quick else 4_000_000 if words.long else 1_000_000)))


if __name__ == "__main__":
    main()

"""How fast a full sync brings a table to a third party with bulk upserts, beside loops that only read or only push.

``python -m bench.full_sync [--quick | --long]``. The table lies in a database of its own on the same server. The bare
loops read the same pages with psycopg, and push the same calls of 500 with the same HTTP client. The full sync runs in
a process of its own, whose memory is told; its groups go through both halves, as many at once as in a Dagster run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import uvloop
from psycopg.rows import dict_row
from sqlalchemy.engine import make_url

from bench.drain import BULK, CONNECTIONS, bare, stats, third_party
from bench.memory import peak_megabytes
from bench.serving import database
from bench.table import Line, show
from bench.third_party import record
from sync_orchestrator.composition import open_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import open_engine, run
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.groups.concurrency import GROUPS_SYNCED_AT_ONCE
from sync_orchestrator.core.runtime import perform_each

GROUPS = 100
_PAGE = 1000
_TABLES = ("events", "event_ids", "event_history", "records", "parts", "push_attempts", "groups", "full_sync_keys")


def config(port: int, shop: str) -> Config:
    """One entity of one part, from a table to the third party of that port."""
    return Config.model_validate(
        {
            "sources": {"shop": {"kind": "sql", "url": shop, "connections": GROUPS_SYNCED_AT_ONCE}},
            "third_parties": {"erp": {"base_url": f"http://127.0.0.1:{port}", "concurrency": CONNECTIONS}},
            "entities": {
                "product": {
                    "owner": "shop",
                    "parts": {
                        "shop": {
                            "key": "code",
                            "group": "store",
                            "version": {"path": "v", "kind": "number"},
                            "sql": {"table": "products"},
                        }
                    },
                    "mapping": {"code": "key", "name": "shop.name", "price": "shop.price", "store": "group"},
                    "third_party": {
                        "system": "erp",
                        "ids": "ours",
                        "key_field": "code",
                        "group": "store",
                        **BULK,
                        "delete": {"path": "/items/{{ key }}"},
                        "read": {"path": "/items/{{ key }}"},
                        "list": {"path": "/items"},
                    },
                }
            },
        }
    )


def fill(url: str, records: int) -> str:
    """A table of so many products in a database of its own; its URL."""
    server = make_url(url)
    shop = server.set(database=f"{server.database}_shop")
    with psycopg.connect(_plain(url), autocommit=True) as connection:
        if not connection.execute("SELECT FROM pg_database WHERE datname = %s", (shop.database,)).rowcount:
            connection.execute(f'CREATE DATABASE "{shop.database}"'.encode())
    told = shop.render_as_string(hide_password=False)
    with psycopg.connect(_plain(told), autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS products")
        connection.execute("CREATE TABLE products (code text, name text, price float8, store text, v bigint)")
        with connection.cursor().copy("COPY products FROM STDIN") as rows:
            for number in range(records):
                rows.write_row((*record(number, GROUPS).values(), 1))
        connection.execute("ALTER TABLE products ADD PRIMARY KEY (store, code)")
        connection.execute("VACUUM ANALYZE products")
    return told


def empty(url: str) -> None:
    """Nothing is archived yet."""
    engine = open_engine(url)
    with engine.begin() as connection:
        run(connection, f"TRUNCATE {', '.join(f'sync.{table}' for table in _TABLES)} CASCADE")
    engine.dispose()
    rest(url)


def rest(url: str) -> None:
    """The database has done what it does for itself between one full sync and the next."""
    engine = open_engine(url)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        run(connection, "VACUUM ANALYZE")
    engine.dispose()


def bare_reading(shop: str) -> float:
    """Rows a second of a loop that only reads the same pages, group by group."""
    rows = 0
    began = time.monotonic()
    with psycopg.connect(_plain(shop), row_factory=dict_row) as connection:
        for group in range(GROUPS):
            after = ""
            while page := connection.execute(
                "SELECT * FROM products WHERE store = %s AND code > %s ORDER BY code LIMIT %s",
                (f"store {group}", after, _PAGE),
            ).fetchall():
                rows += len(page)
                after = page[-1]["code"]
    return rows / (time.monotonic() - began)


def _plain(url: str) -> str:
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def sync(url: str, shop: str, port: int) -> dict[str, Any]:
    """What a full sync of all groups takes in this process."""
    context = open_context(open_engine(url), config(port, shop))
    entity = context.entities["product"]
    began = time.monotonic()
    told = {"listed": 0, "mirrored": 0}
    for _, came in perform_each(
        context, range(GROUPS), lambda n: full_sync(context, entity, f"store {n}"), GROUPS_SYNCED_AT_ONCE
    ):
        if isinstance(came, Exception):
            raise came
        filled, stepped = came
        told["listed"] += filled.listed
        told["mirrored"] += stepped.acknowledged
    return {**told, "seconds": time.monotonic() - began, "megabytes": peak_megabytes()}


def synced(url: str, shop: str, port: int) -> dict[str, Any]:
    """The same in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "bench.full_sync", "--sync", url, shop, str(port)], check=True, stdout=subprocess.PIPE
    )
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def lines(url: str, records: int) -> Iterator[Line]:
    """Each line as soon as it is measured."""
    few = min(records, 100_000)
    shop = fill(url, few)
    with third_party() as port:
        empty(url)
        small = synced(url, shop, port)
    if records > few:
        shop = fill(url, records)
    reading = bare_reading(shop)
    with third_party() as port:
        pushing = uvloop.run(bare(port, records, bulk=500))
        empty(url)
        before = stats(port)["writes"]
        first = synced(url, shop, port)
        assert first["listed"] == first["mirrored"] == records == stats(port)["writes"] - before, first
        slower, what = min((reading, "reading"), (pushing, "pushing"))
        rate = records / first["seconds"]
        yield Line(
            f"full sync of {records:,} records",
            rate,
            "/s",
            f"bare {what}: {slower:,.0f} /s",
            rate / slower,
            "0.70",
            rate / slower >= 0.7,
            note="Each record is archived, claimed, mapped and acknowledged by itself: about 115 us of Python "
            "and 100 us of Postgres on two cores; to read a row, or to send one of 500, costs 2 us.",
        )
        ratio = first["megabytes"] / small["megabytes"]
        yield Line(
            "its memory",
            first["megabytes"],
            "MB",
            f"{few:,}: {small['megabytes']:.0f} MB",
            ratio,
            "1.20",
            ratio <= 1.2,
            note="It holds a few pages of six groups at once, however long these are. The 100 groups are of one "
            "page each with 100,000 records, and of more, one read ahead, with more; then it stays.",
        )
        rest(url)
        before = stats(port)["writes"]
        again = synced(url, shop, port)
        assert (again["listed"], again["mirrored"], stats(port)["writes"]) == (records, 0, before), again
        ratio = first["seconds"] / again["seconds"]
        yield Line(
            "the same again, nothing changed", records / again["seconds"], "/s", "no push", ratio, "5.00", ratio >= 5
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--sync", nargs=3, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.sync:
        url, shop, port = words.sync
        print(json.dumps(sync(url, shop, int(port))))
        return
    with database() as url:
        show("full sync", list(lines(url, 20_000 if words.quick else 1_000_000 if words.long else 200_000)))


if __name__ == "__main__":
    main()

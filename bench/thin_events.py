"""How fast one drain works off events that name a key only, beside events that bring their data.

``python -m bench.thin_events [--quick]``. The parts are read from a SQL source, an embedded Postgres of its own; the
third party takes upserts in bulk, so that what is measured is the way of the events.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg

from bench.drain import change, drained, settings, third_party
from bench.serving import database
from bench.table import Line, show
from sync_orchestrator.config import Config

TABLE = "CREATE TABLE items (sku text PRIMARY KEY, store text, v bigint, name text, price float8)"
ROWS = """
INSERT INTO items SELECT 'k' || n, 'store ' || n %% 100, 1, 'a lamp that stands on a table', 13.5
FROM generate_series(0, %s) n
"""
WANTED_RATIO = 0.6


def make_config(port: int, source_url: str) -> Config:
    """The entity of ``bench.drain``, whose part is in a table."""
    told: dict[str, Any] = settings(port, bulk=True)
    told["sources"]["shop"] = {"kind": "sql", "url": source_url}
    part = told["entities"]["product"]["parts"]["shop"]
    del part["list"]
    part["sql"] = {"table": "items"}
    return Config.model_validate(told)


def fill_source(source_url: str, number: int) -> None:
    """Makes the table with so many rows."""
    plain = source_url.replace("postgresql+psycopg://", "postgresql://", 1)
    with psycopg.connect(plain, autocommit=True) as connection:
        connection.execute(TABLE.encode())
        connection.execute(ROWS.encode(), (number - 1,))
        connection.execute("ANALYZE items")


def lines(ledger_url: str, source_url: str, number: int) -> Iterator[Line]:
    """Events a second with their data, and without."""
    fill_source(source_url, number)
    fat = [change(at) for at in range(number)]
    thin = [replace(each, data=None) for each in fat]
    with third_party() as port:
        config = make_config(port, source_url)
        beside = number / drained(ledger_url, config, fat).seconds
        rate = number / drained(ledger_url, config, thin).seconds
    yield Line(
        "drain, thin events, parts read from a SQL source",
        rate,
        "/s",
        f"with their data: {beside:,.0f} /s",
        rate / beside,
        f"{WANTED_RATIO}",
        rate / beside >= WANTED_RATIO,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    number = 4_000 if parser.parse_args().quick else 20_000
    with database(embedded_server=True) as ledger_url, database(embedded_server=True) as source_url:
        show("thin_events", list(lines(ledger_url, source_url, number)))


if __name__ == "__main__":
    main()

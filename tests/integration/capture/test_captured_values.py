"""A captured row has the values, and so the digest, that a SELECT of it has: random rows of many types."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from captured_sources import (
    CapturedSource,
    begun,
    captured_config,
    eventually,
    machine_server,
    query,
    reading,
    received,
    recorded,
    source,
    wheel_server,
)
from captured_sources import _quick as _quick
from sqlalchemy import Engine

from sync_orchestrator.adapters.sql.database import SourceDatabase
from sync_orchestrator.adapters.sql.source import SqlSource
from sync_orchestrator.config import Config
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.ports import PartRead
from sync_orchestrator.core.values.mapping import compute_digest

__all__ = ["machine_server", "source", "wheel_server"]

MAPPED = {"mapping": {"code": "key", "store": "group"}}
TYPES: dict[str, list[str]] = {
    "smallint": ["-32768", "0", "7"],
    "integer": ["2147483647", "-1"],
    "bigint": ["9223372036854775807", "-9007199254740993"],
    "numeric": ["1.50", "'NaN'", "12345678901234567890.12", "0.00", "'Infinity'", "1e-20"],
    "numeric(12,3)": ["1.5", "100000", "-0.001"],
    "price": ["9.90", "3"],
    "real": ["0.1", "1e30"],
    "double precision": ["0.1", "1e300", "3"],
    "boolean": ["true", "false"],
    "text": ["''", "'plain'", "'späte Ä𝄞'", "E'line\\nbreak'", "repeat('long ', 2000)"],
    "varchar(10)": ["'ten'", "' x '"],
    "char(5)": ["'ab'", "'abcde'"],
    "bytea": ["'\\x00ff10'", "''"],
    "date": ["'2026-01-02'", "'infinity'", "'0044-03-15 BC'", "'99999-01-01'"],
    "time": ["'10:30:00.5'", "'24:00:00'"],
    "timetz": ["'10:30+02'", "'23:59:59.999999-11'"],
    "timestamp": ["'2026-01-01 10:00'", "'-infinity'", "'2026-03-29 02:30'"],
    "timestamptz": ["'2026-01-01 10:00+05'", "'infinity'", "'2026-06-01 00:00:00.000001Z'"],
    "interval": ["'1 year 2 mons 3 days 04:05:06.7'", "'-1.5 s'", "'0'"],
    "uuid": ["'0191d7a2-0000-7000-8000-000000000001'"],
    "json": ['\'{"b": 1, "a": [1.50, null, "x"]}\'', "'12345678901234567890.123'"],
    "jsonb": ['\'{"b": 1, "a": {"c": 0.1000000000000000055}}\'', "'null'", "'[]'"],
    "integer[]": ["'{1,2,NULL}'", "'{}'", "'{{1,2},{3,4}}'"],
    "text[]": ["'{a,\"b,c\",NULL}'", "ARRAY['d\"e', 'f\\g']"],
    "numeric[]": ["'{1.50,2}'"],
    "timestamptz[]": ["'{2026-01-01 00:00+00}'"],
    "inet": ["'10.0.0.1'", "'10.0.0.0/8'", "'::1'"],
    "cidr": ["'10.0.0.0/8'"],
    "macaddr": ["'08:00:2b:01:02:03'"],
    "money": ["12.34"],
    "bit(4)": ["B'1010'"],
    "int4range": ["'[1,5)'", "'empty'", "'(,5]'"],
    "tstzrange": ["'[2026-01-01 00:00+00,infinity)'"],
    "numrange": ["'[1.5,2.50]'"],
    "mood": ["'sad'", "'happy'"],
    "pair": ["ROW(1,'x')", "ROW(NULL,'a,b')"],
    "point": ["'(1,2.5)'"],
    "tsvector": ["'a fat cat'"],
    "oid": ["42"],
}


@pytest.fixture
def items(source: CapturedSource) -> CapturedSource:
    source.execute(
        "CREATE TYPE mood AS ENUM ('sad', 'happy'); CREATE TYPE pair AS (n integer, t text);"
        "CREATE DOMAIN amount AS numeric(12,2); CREATE DOMAIN price AS amount CHECK (VALUE >= 0)"
    )
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(TYPES))
    source.execute(f"CREATE TABLE items (sku text PRIMARY KEY, store text, v timestamptz, {columns})")
    source.publish("items")
    return source


def random_row(draw: random.Random, number: int) -> str:
    values = [draw.choice([*choices, "NULL"]) for choices in TYPES.values()]
    return f"('k{number}', 'A', '2026-01-01Z'::timestamptz + interval '{number} s', {', '.join(values)})"


def read_by_select(source: CapturedSource, config: Config) -> dict[str, PartRead]:
    settings = config.sources["shop"]
    assert isinstance(settings, SqlSourceSettings)
    database = SourceDatabase("shop", settings)

    async def read_all() -> dict[str, PartRead]:
        found = SqlSource(database, config.entities["item"].parts["shop"])
        rows = {row.key: row async for page, _ in found.pages("A") for row in page}
        await found.close()
        return rows

    return asyncio.run(read_all())


def rejected(engine: Engine) -> list[str]:
    return [row.reason for row in query(engine, "SELECT reason FROM sync.rejected")]


def newest(engine: Engine) -> dict[str, Any]:
    return {row.key: row for row in recorded(engine)}


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin"])
@pytest.mark.parametrize("seed", [1, 2])
def test_random_rows_have_the_digest_of_a_select(seed: int, zone: str, items: CapturedSource, engine: Engine) -> None:
    draw = random.Random(seed)
    config = captured_config(items, part={"zone": zone}, entity=MAPPED)
    # whatever the role of the capture prefers, values keep their form
    items.execute(
        f"ALTER DATABASE {items.database} SET DateStyle = 'SQL, DMY'; "
        f"ALTER DATABASE {items.database} SET IntervalStyle = 'iso_8601'; "
        f"ALTER DATABASE {items.database} SET extra_float_digits = -5; "
        f"ALTER DATABASE {items.database} SET bytea_output = 'escape'; "
        f"ALTER DATABASE {items.database} SET TimeZone = 'Asia/Tokyo'"
    )
    begun(engine, config, items)
    rows = ", ".join(random_row(draw, number) for number in range(150))
    items.execute(f"INSERT INTO items VALUES {rows}")
    with reading(engine, config):
        eventually(lambda: received(engine) + len(rejected(engine)) == 150, "150 events")
    assert rejected(engine) == []
    selected, captured = read_by_select(items, config), newest(engine)
    assert selected.keys() == captured.keys()
    for key, row in selected.items():
        event = captured[key]
        assert row.problem is None
        assert not event.thin
        assert compute_digest(event.data) == compute_digest(row.data)
        assert (event.version, event.group_key) == (row.version, row.group)


def test_columns_are_those_of_the_change_whatever_is_altered(items: CapturedSource, engine: Engine) -> None:
    config = captured_config(items, entity=MAPPED)
    begun(engine, config, items)
    with reading(engine, config):
        items.execute("INSERT INTO items (sku, store, v, c0) VALUES ('a', 'A', now(), 1)")
        eventually(lambda: received(engine) == 1, "the first")
        items.execute("ALTER TABLE items RENAME COLUMN c0 TO renamed; ALTER TABLE items DROP COLUMN c1")
        items.execute("ALTER TABLE items ADD COLUMN added text DEFAULT 'x'")
        items.execute("INSERT INTO items (sku, store, v, renamed) VALUES ('b', 'A', now(), 2)")
        eventually(lambda: received(engine) == 2, "the second")
    first, second = recorded(engine)
    assert first.data["c0"] == 1
    assert (second.data["renamed"], second.data["added"], "c1" in second.data, "c0" in second.data) == (
        2,
        "x",
        False,
        False,
    )


def test_generated_columns_which_the_log_does_not_have_lead_to_a_read(source: CapturedSource, engine: Engine) -> None:
    source.execute(
        "CREATE TABLE items (sku text PRIMARY KEY, store text, v timestamptz, n int, "
        "twice int GENERATED ALWAYS AS (n * 2) STORED)"
    )
    source.publish("items")
    config = captured_config(source, entity=MAPPED)
    begun(engine, config, source)
    source.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01Z', 4)")
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "the event")
    [event] = recorded(engine)
    assert (event.thin, event.data, event.version) == (True, None, 1_767_225_600_000_000)

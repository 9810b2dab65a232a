"""A captured source from end to end: what its applications write arrives at the third party, by its log alone."""

from __future__ import annotations

import asyncio
import random

import pytest
from captured_flows import Assemble, assemble, mirror, table, work_off
from captured_sources import (
    CapturedSource,
    captured_config,
    eventually,
    is_open,
    machine_server,
    open_alerts,
    query,
    reading,
    shop,
    source,
    wheel_server,
    wheel_shop,
    wheel_source,
)
from captured_sources import _quick as _quick
from fakes import FakeThirdParty
from sqlalchemy import Engine

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.operations.maintenance import watch_backlog
from sync_orchestrator.core.validation.validate import validate

__all__ = ["assemble", "machine_server", "shop", "source", "wheel_server", "wheel_shop", "wheel_source"]


@pytest.mark.slow
@pytest.mark.parametrize("version", ["honest", "coarse"])
def test_random_histories_end_as_the_source_does(
    version: str, shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    """Also where several changes of a record have one version, as times in seconds do: the source settles it."""
    clock = "clock_timestamp()" if version == "honest" else "date_trunc('minute', now())"
    draw, erp, config = random.Random(11), FakeThirdParty(), captured_config(shop)
    context = assemble(config, erp)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        for step in range(120):
            key, other = f"k{draw.randrange(12)}", f"k{draw.randrange(12)}"
            statements = draw.choices(
                [
                    f"INSERT INTO items VALUES ('{key}', 'A', {clock}, 'n{step}') "
                    f"ON CONFLICT (sku) DO UPDATE SET v = {clock}, name = 'u{step}'",
                    f"DELETE FROM items WHERE sku = '{key}'",
                    f"DELETE FROM items WHERE sku = '{other}'; UPDATE items SET sku = '{other}', v = {clock} "
                    f"WHERE sku = '{key}'",
                ],
                [6, 2, 1],
                k=draw.choice([1, 1, 2, 4]),
            )
            shop.execute("; ".join(statements))
            if step % 20 == 0:
                asyncio.run(drain(context, linger=0, most_seconds=30))
        work_off(context, lambda: mirror(erp) == table(shop))
    left = query(engine, "SELECT state, error, key, action FROM sync.events WHERE state <> 'pending'")
    assert not [row for row in left if row.state == "dead"], left


def test_records_of_several_tables_arrive_and_end(source: CapturedSource, engine: Engine, assemble: Assemble) -> None:
    source.execute(
        "CREATE TABLE orders (sku text PRIMARY KEY, store text, v timestamptz DEFAULT clock_timestamp());"
        "CREATE TABLE lines (n serial PRIMARY KEY, sku text REFERENCES orders ON DELETE CASCADE, t text);"
        "ALTER TABLE lines REPLICA IDENTITY FULL"
    )
    source.publish("orders", "lines")
    wanted = (
        "SELECT o.sku, o.store, greatest(o.v, '2026-01-01Z') AS v, "
        "(SELECT string_agg(t, ',' ORDER BY n) FROM lines l WHERE l.sku = o.sku) AS name FROM orders o"
    )
    part = {"sql": {"query": wanted}, "changes": {"by": "log", "tables": {"orders": "sku", "lines": "sku"}}}
    erp, config = FakeThirdParty(), captured_config(source, part=part)
    context = assemble(config, erp)
    with reading(engine, config):
        eventually(lambda: is_open(engine, source), "the stream")
        source.execute("INSERT INTO orders VALUES ('a', 'A'), ('b', 'A'); INSERT INTO lines (sku, t) VALUES ('a', 'x')")
        work_off(context, lambda: mirror(erp) == {"a": ("A", "x"), "b": ("A", None)})
        source.execute("INSERT INTO lines (sku, t) VALUES ('a', 'y'); UPDATE orders SET v = clock_timestamp()")
        work_off(context, lambda: mirror(erp) == {"a": ("A", "x,y"), "b": ("A", None)})
        source.execute("UPDATE lines SET sku = 'b' WHERE t = 'x'; UPDATE orders SET v = clock_timestamp()")
        work_off(context, lambda: mirror(erp) == {"a": ("A", "y"), "b": ("A", "x")})
        source.execute("DELETE FROM orders WHERE sku = 'b'")
        work_off(context, lambda: mirror(erp) == {"a": ("A", "y")})


def test_groups_are_not_validated_after_a_loss_until_a_full_sync(
    shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    erp, config = FakeThirdParty(), captured_config(shop)
    context = assemble(config, erp)
    entity = context.entities["item"]
    shop.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01Z', 'one')")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
    asyncio.run(full_sync(context, entity, "A", patience=0.3))
    assert asyncio.run(validate(context, entity, "A")).verdict == "in_sync"
    shop.drop_slot()
    shop.execute("UPDATE items SET name = 'lost', v = now()")
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
        found = asyncio.run(validate(context, entity, "A"))
        assert found.verdict == "not_validated"
        assert "the replication slot is gone" in str(found.reason)
        asyncio.run(full_sync(context, entity, "A", patience=0.3))
        assert asyncio.run(validate(context, entity, "A")).verdict == "in_sync"
        assert mirror(erp) == {"a": ("A", "lost")}
    with engine.begin() as connection:
        watch_backlog(connection, config.alerts, config.entities)
    assert not open_alerts(engine, "capture_lost")


def test_a_delete_is_asked_for_and_takes_no_room_under_the_caps(
    shop: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    erp, config = FakeThirdParty(), captured_config(shop)
    context = assemble(config, erp)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        shop.execute("INSERT INTO items SELECT 'k' || n, 'A', now(), 'n' FROM generate_series(1, 20) n")
        work_off(context, lambda: len(erp.store) == 20)
        shop.execute("DELETE FROM items WHERE sku <> 'k1'")
        work_off(context, lambda: mirror(erp) == {"k1": ("A", "n")})
    assert not open_alerts(engine, "delete_cap")

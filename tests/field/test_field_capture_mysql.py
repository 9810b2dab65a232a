"""A captured MariaDB from end to end: what its applications write arrives at the third party, by its binlog alone."""

from __future__ import annotations

import asyncio
import random

import pytest
from captured_flows import Assemble, assemble, mirror, table, work_off
from captured_sources import _quick as _quick
from captured_sources import captured_config, eventually, is_open, open_alerts, query, reading
from fakes import FakeThirdParty
from mariadb_servers import MariadbSource, mariadb, mariadb_shop, mariadb_source
from sqlalchemy import Engine

from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.validation.validate import validate

pytestmark = pytest.mark.slow

__all__ = ["assemble", "mariadb", "mariadb_shop", "mariadb_source"]


MINUTE = "date_format(now(), '%Y-%m-%d %H:%i:00')"


@pytest.mark.parametrize("clock", ["now(6)", "now(0)", MINUTE], ids=["honest", "coarse", "minutes"])
def test_random_histories_end_as_the_source_does(
    clock: str, mariadb_shop: MariadbSource, engine: Engine, assemble: Assemble
) -> None:
    """Also where several changes of a record have one version, as times in minutes do: the source settles it."""
    draw, erp, config = random.Random(11), FakeThirdParty(), captured_config(mariadb_shop)
    context = assemble(config, erp)
    with reading(engine, config):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        for step in range(120):
            key, other = f"k{draw.randrange(12)}", f"k{draw.randrange(12)}"
            choices = [
                [
                    f"INSERT INTO items VALUES ('{key}', 'A', {clock}, 'n{step}') "
                    f"ON DUPLICATE KEY UPDATE v = {clock}, name = 'u{step}'"
                ],
                [f"DELETE FROM items WHERE sku = '{key}'"],
                [
                    f"DELETE FROM items WHERE sku = '{other}'",
                    f"UPDATE items SET sku = '{other}', v = {clock} WHERE sku = '{key}'",
                ],
            ]
            drawn = draw.choices(choices, [6, 2, 1], k=draw.choice([1, 1, 2, 4]))
            mariadb_shop.execute_all("BEGIN", *(statement for each in drawn for statement in each), "COMMIT")
            if step % 20 == 0:
                asyncio.run(drain(context, linger=0, most_seconds=30))
        work_off(context, lambda: mirror(erp) == table(mariadb_shop))
    left = query(engine, "SELECT state, error, key, action FROM sync.events WHERE state <> 'pending'")
    assert not [row for row in left if row.state == "dead"], left


def test_changes_of_many_records_arrive_and_end(
    mariadb_shop: MariadbSource, engine: Engine, assemble: Assemble
) -> None:
    erp, config = FakeThirdParty(), captured_config(mariadb_shop)
    context = assemble(config, erp)
    with reading(engine, config):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        mariadb_shop.insert_many("k", 300)
        work_off(context, lambda: mirror(erp) == table(mariadb_shop))
        mariadb_shop.execute("UPDATE items SET name = 'new', v = now(6)")
        work_off(context, lambda: mirror(erp) == table(mariadb_shop))
        mariadb_shop.execute("DELETE FROM items WHERE sku <> 'k1'")
        work_off(context, lambda: mirror(erp) == {"k1": ("A", "new")})
    assert not open_alerts(engine, "delete_cap")


def test_groups_are_not_validated_after_unseen_changes_until_a_full_sync(
    mariadb_shop: MariadbSource, engine: Engine, assemble: Assemble
) -> None:
    erp, config = FakeThirdParty(), captured_config(mariadb_shop)
    context = assemble(config, erp)
    entity = context.entities["item"]
    mariadb_shop.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01', 'one')")
    with reading(engine, config):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        asyncio.run(full_sync(context, entity, "A", patience=0.3))
        assert asyncio.run(validate(context, entity, "A")).verdict == "in_sync"
        mariadb_shop.execute_all(
            "SET SESSION binlog_format = 'STATEMENT'", "UPDATE items SET name = 'unseen', v = now(6)"
        )
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
        found = asyncio.run(validate(context, entity, "A"))
        assert found.verdict == "not_validated"
        assert "a session logged a statement instead of rows" in str(found.reason)
        asyncio.run(full_sync(context, entity, "A", patience=0.3))
        assert asyncio.run(validate(context, entity, "A")).verdict == "in_sync"
    assert mirror(erp) == {"a": ("A", "unseen")}

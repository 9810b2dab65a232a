"""The statements that a drain runs again and again find their rows by an index, however many rows are at rest."""

from __future__ import annotations

from typing import Any

import pytest
from busy_tables import EVENTS, HOT, RECORDS
from world import World

from sync_orchestrator.core.archive import queries as archive_queries
from sync_orchestrator.core.db.locks import LOCK_RECORDS_IN_ORDER
from sync_orchestrator.core.db.session import force_index_scans, run
from sync_orchestrator.core.full_sync import queries as full_sync_queries
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.operations.queries import maintenance
from sync_orchestrator.core.push import claim_queries

KEYS = [f"k{number}" for number in range(500)]


BATCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "locks of a merge": (archive_queries.LOCK_RECORDS, {"entity": "item", "keys": KEYS}),
    "stamps of a merge": (archive_queries.SELECT_STAMPS, {"entity": "item", "keys": KEYS, "lag": 900}),
    "what a read brings": (
        archive_queries.SELECT_UNLOCKED_KEYS,
        {
            "entity": "item",
            "key": KEYS,
            "part": ["shop"] * 500,
            "epoch": [0] * 500,
            "version": [1] * 500,
            "content_hash": [b"x"] * 500,
            "numbered": [False] * 250 + [True] * 250,
        },
    ),
    "what a stream recorded since a read": (
        archive_queries.SELECT_READ_BOUNDS,
        {"entity": "item", "key": KEYS, "part": ["shop"] * 500, "noted": [1] * 500},
    ),
    "waking": (ledger_queries.WAKE_WAITING_EVENTS, {"entity": "item", "keys": KEYS}),
    "archived events": (
        ledger_queries.MARK_ARCHIVED,
        {"held": None, "token": 1, "lease": 60, "holder": 1, "seq": list(range(500)), "revision": [1] * 500},
    ),
    "finished events": (ledger_queries.FINISH_REACHED, {"entity": "item", "keys": KEYS}),
    "locks of a settlement": (LOCK_RECORDS_IN_ORDER, {"entity": ["item"] * 500, "key": KEYS}),
    "parts of a claim": (claim_queries.SELECT_PARTS, {"entity": ["item"] * 500, "key": KEYS}),
}
"""Batches of keys, which are joined with tables that a queue fills and empties."""


@pytest.fixture
def fresh(world: World) -> World:
    """Tables that have grown since statistics were taken."""
    with world.engine.begin() as connection:
        run(connection, "ANALYZE sync.records, sync.events, sync.parts")
        run(connection, RECORDS)
        run(connection, EVENTS)
    return world


@pytest.fixture
def full(fresh: World) -> World:
    with fresh.engine.begin() as connection:
        run(connection, "ANALYZE sync.records, sync.events")
    return fresh


def plan_of(world: World, statement: str, params: dict[str, Any], ordered: bool) -> str:
    """As the drain has it planned."""
    with world.engine.connect() as connection:
        force_index_scans(connection, in_order=ordered)
        plan = "\n".join(row[0] for row in run(connection, f"EXPLAIN {statement}", **params))
        connection.rollback()
    return plan


@pytest.mark.slow
@pytest.mark.parametrize("name", [*BATCHES, *(name for name in HOT if "claim" in name or "taking" in name)])
def test_without_statistics_rows_are_found_by_an_index_and_in_order(fresh: World, name: str) -> None:
    statement, params = {**HOT, **BATCHES}[name]
    plan = plan_of(fresh, statement, params, "claim" in name)
    for way in ("Seq Scan on records", "Seq Scan on events", "Seq Scan on parts", "Hash Join", "Merge Join", "Bitmap"):
        assert way not in plan, plan
    if name in ("claim of records", "claim of a group", "claim in turn", "taking events"):
        assert "Sort Key: records" not in plan, plan


def test_nothing_that_is_done_again_and_again_reads_a_whole_table(full: World) -> None:
    wrong = {}
    for name, (statement, params) in HOT.items():
        with full.engine.connect() as connection:
            plan = "\n".join(row[0] for row in run(connection, f"EXPLAIN {statement}", **params))
            connection.rollback()
        if "Seq Scan on records" in plan or "Seq Scan on events" in plan:
            wrong[name] = plan
    assert not wrong, "\n\n".join(f"{name}:\n{plan}" for name, plan in wrong.items())


def test_the_round_of_every_minute_reads_no_record_that_is_in_sync(full: World) -> None:
    with full.engine.begin() as connection:
        plan = "\n".join(row[0] for row in run(connection, f"EXPLAIN {maintenance.COUNT_LONG_REFERRING}", after=60))
    assert "Seq Scan on records" not in plan


def test_what_was_not_listed_is_looked_up_by_key(fresh: World) -> None:
    with fresh.engine.begin() as connection:
        run(
            connection,
            "INSERT INTO sync.groups (entity, group_key, sync_id, sync_started_at) VALUES ('item', 'G0', 7, now())",
        )
        run(
            connection,
            "INSERT INTO sync.full_sync_keys (sync_id, part, key) "
            "SELECT 7, 'shop', 'k' || n FROM generate_series(1, 20000) n",
        )
    plan = plan_of(
        fresh,
        full_sync_queries.SELECT_UNLISTED_KEYS,
        {"entity": "item", "group": "G0", "parts": ["shop", "stock"], "owner": "shop"},
        ordered=False,
    )
    assert plan.count("using full_sync_keys_pkey") == plan.count("(sync_id = g.sync_id) AND (part = ") == 2, plan
    assert plan.count("using events_record") == plan.count("(entity = p.entity) AND (key = p.key)") == 1, plan
    assert plan.count("(key = p.key)") == 3, plan
    assert plan.count("(key = r.key)") == 1, plan
    for way in ("Seq Scan", "Materialize", "Hash", "Merge Join", "Bitmap"):
        assert way not in plan, plan

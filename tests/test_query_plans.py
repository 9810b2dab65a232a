"""The statements that a drain makes again and again find their rows by an index, however much is at rest around them.

Not here: groups of a validation (``test_slices.py``), what the statements do (the tests of the core).
"""

from __future__ import annotations

from typing import Any

import pytest
from conftest import World

from sync_orchestrator.core import wait
from sync_orchestrator.core.sql import run
from sync_orchestrator.core.statements import alerts, ledger, push

RECORDS = """
INSERT INTO sync.records (entity, key, group_key, revision, applied_revision, ready, applied_digest, applied_at)
SELECT 'item', 'k' || n, 'G' || mod(n, 500), 1, CASE WHEN mod(n, 1000) = 0 THEN 0 ELSE 1 END, true, 'x', now()
FROM generate_series(1, 50000) n
"""
EVENTS = """
INSERT INTO sync.events (source, event_id, entity, key, action, version, thin, content_hash, origin, state, due_at)
SELECT 'shop', 'e' || n, 'item', 'k' || n, 'update', 1, true, 'x', 'notification',
       CASE WHEN mod(n, 1000) = 0 THEN 'pending' ELSE 'waiting' END,
       CASE WHEN mod(n, 1000) = 0 THEN now() ELSE 'infinity' END
FROM generate_series(1, 50000) n
"""
HOT: dict[str, tuple[str, dict[str, Any]]] = {
    "taking events": (ledger.TAKE, {"entities": ["item"], "most": 100}),
    "next event": (ledger.NEXT_DUE, {"entities": ["item"]}),
    "oldest due": (ledger.OLDEST_DUE, {}),
    "expired leases": (ledger.RELEASE_EXPIRED, {}),
    "claim of records": (push.CLAIM, {"entities": ["item"], "most": 100, "lease": 60, "landing": 5}),
    "next record": (push.NEXT_DUE, {"entities": ["item"]}),
    "claim of a group": (push.CLAIM_OF_GROUP, {
        "entity": "item", "group": "G0", "most": 100, "lease": 60, "landing": 5}),
    "next record of a group": (push.NEXT_DUE_OF_GROUP, {"entity": "item", "group": "G0"}),
    "work for the sensor": (wait.DUE, {"entities": ["item"], "systems": '{"item": "erp"}', "age": 0}),
    "attempts of a record": (push.ATTEMPTS_OF, {"entity": "item", "key": "k1", "most": 10}),
}


@pytest.fixture
def full(world: World) -> World:
    with world.engine.begin() as connection:
        run(connection, RECORDS)
        run(connection, EVENTS)
        run(connection, "ANALYZE sync.records, sync.events")
    return world


def test_nothing_that_is_done_again_and_again_reads_a_whole_table(full: World) -> None:
    wrong = {}
    for name, (statement, params) in HOT.items():
        with full.engine.connect() as connection:
            plan = "\n".join(row[0] for row in run(connection, f"EXPLAIN {statement}", **params))
            connection.rollback()
        if "Seq Scan on records" in plan or "Seq Scan on events" in plan:
            wrong[name] = plan
    assert not wrong, "\n\n".join(f"{name}:\n{plan}" for name, plan in wrong.items())


def test_the_round_of_every_minute_reads_no_record_that_is_in_step(full: World) -> None:
    with full.engine.begin() as connection:
        plan = "\n".join(row[0] for row in run(connection, f"EXPLAIN {alerts.LONG_REFERRING}", after=60))
    assert "Seq Scan on records" not in plan

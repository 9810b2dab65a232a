"""Tables with many rows at rest and few that are due, and the statements of a drain."""

from __future__ import annotations

from typing import Any

from sync_orchestrator.core.drain import wakeup
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.push import claim_queries, dead_record_queries
from sync_orchestrator.core.push import queries as push_queries

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


HELD = {"holder": 1, "gives_up": 16}


HOT: dict[str, tuple[str, dict[str, Any]]] = {
    "taking events": (ledger_queries.SELECT_DUE_EVENTS, {"entities": ["item"], "most": 100}),
    "next event": (ledger_queries.SECONDS_UNTIL_NEXT_EVENT, {"entities": ["item"]}),
    "oldest due": (ledger_queries.SELECT_OLDEST_DUE, {}),
    "expired leases": (ledger_queries.RELEASE_EXPIRED_EVENTS, {}),
    "claim of records": (
        claim_queries.CLAIM_DUE_RECORDS,
        {"entities": ["item"], "most": 100, "lease": 60, "in_flight_window": 5, **HELD},
    ),
    "next record": (claim_queries.SECONDS_UNTIL_NEXT_PUSH, {"entities": ["item"]}),
    "claim in turn": (
        claim_queries.CLAIM_DUE_RECORDS_IN_TURN,
        {
            "entities": ["item"],
            "most": 100,
            "lease": 60,
            "in_flight_window": 5,
            **HELD,
            "after_entity": "",
            "after_group": "",
            "places": 50,
        },
    ),
    "claim of a group": (
        claim_queries.CLAIM_DUE_RECORDS_OF_GROUP,
        {"entity": "item", "group": "G0", "most": 100, "lease": 60, "in_flight_window": 5, **HELD},
    ),
    "next record of a group": (claim_queries.SECONDS_UNTIL_NEXT_PUSH_OF_GROUP, {"entity": "item", "group": "G0"}),
    "work for the sensor": (wakeup.DUE, {"entities": ["item"], "systems": '{"item": "erp"}', "age": 0}),
    "dead records of a group": (dead_record_queries.COUNT_DEAD_OF_GROUP, {"entity": "item", "group": "G0"}),
    "list of dead records of a group": (
        dead_record_queries.LIST_DEAD,
        {"entity": "item", "keys": None, "group": "G0", "cause": None, "states": ["dead", "on_hold"], "limit": 50},
    ),
    "dead records of an entity": (dead_record_queries.COUNT_DEAD_OF_ENTITY, {"entity": "item"}),
    "attempts of a record": (push_queries.LIST_ATTEMPTS_OF_RECORD, {"entity": "item", "key": "k1", "most": 10}),
}

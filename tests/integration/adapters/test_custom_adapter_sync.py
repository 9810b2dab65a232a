"""Custom adapters that fail while the product works with them: one record or one group suffers, and a breaker opens."""

from __future__ import annotations

import asyncio

from failing_adapters import raising
from odd_adapters import Drawer, Shelf, class_document
from odd_adapters import empty_shelves as empty_shelves
from sqlalchemy import Engine

from sync_orchestrator import composition
from sync_orchestrator.config import Config
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.full_sync.full_sync import full_sync
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_events
from sync_orchestrator.core.validation.validate import validate


def test_a_change_goes_through_a_class(engine: Engine) -> None:
    config = Config.model_validate(class_document())
    context = composition.open_context(engine, config)
    Drawer.rows.extend({"key": f"k{number}", "store": "A", "name": "n", "v": 1} for number in range(5))
    asyncio.run(full_sync(context, context.entities["item"], "A", patience=0.3))
    assert sorted(record["code"] for record in Shelf.kept["things"].values()) == [f"k{number}" for number in range(5)]

    row = {"key": "k1", "store": "A", "name": "new", "v": 2}
    record_events(engine, [ChangeEvent("shop", "e1", "item", "k1", "update", 2, row, "A")])
    asyncio.run(drain(context, linger=0, most_seconds=60))
    assert [each["name"] for each in Shelf.kept["things"].values() if each["code"] == "k1"] == ["new"]
    assert asyncio.run(validate(context, context.entities["item"], "A", full=True)).verdict == "in_sync"


def test_a_class_that_raises_what_it_should_not_does_not_end_the_drain(engine: Engine) -> None:
    """Errors of every call are an outage: the breaker opens, and no attempt is lost."""
    context = composition.open_context(
        engine, Config.model_validate(class_document(system={"breaker": {"probe_after": 0.1}}))
    )
    Drawer.rows.extend({"key": f"k{number}", "store": "A", "name": "n", "v": 1} for number in range(3))
    Shelf.instead["create"] = raising(KeyError("id"))
    asyncio.run(full_sync(context, context.entities["item"], "A", patience=0.3))
    assert Shelf.kept["things"] == {}
    with engine.begin() as connection:
        errors = (
            connection.exec_driver_sql("SELECT detail FROM sync.push_attempts WHERE outcome = 'unknown'")
            .scalars()
            .all()
        )
    assert all("Shelf.create raised KeyError: 'id' (odd_adapters.py" in error for error in errors)
    assert errors
    Shelf.instead.clear()
    asyncio.run(full_sync(context, context.entities["item"], "A", patience=30))
    assert len(Shelf.kept["things"]) == 3

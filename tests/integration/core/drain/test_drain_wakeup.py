"""A drain that does not linger still finishes what comes up while it looks."""

from __future__ import annotations

import time
from typing import Any

import pytest
from world import World

from sync_orchestrator.core.drain import record_claimer
from sync_orchestrator.core.push import claims


def test_a_look_that_was_overtaken_is_repeated(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pusher looks before the events are archived, and hears of the empty result after that."""
    world.put_record("a")
    whole, slow = claims.claim_due_records, iter([0.5])

    def overtaken(*args: Any, **options: Any) -> Any:
        found = whole(*args, **options)
        time.sleep(next(slow, 0))
        return found

    monkeypatch.setattr(record_claimer, "claim_due_records", overtaken)
    world.run_drain()
    assert world.mirror_by_key() == world.expected_mirror()

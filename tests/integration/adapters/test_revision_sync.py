"""Writes with a revision in a drain: another change in between is noticed."""

from __future__ import annotations

import pytest
from http_server import Server
from record_store import THEIRS, http_world
from revision_marks import (
    ASKED,
    PUTS,
    guarded,
)
from sqlalchemy import Engine


@pytest.mark.parametrize("kind", ["etag", "rev"])
def test_a_guarded_update_whose_answer_is_lost_ends_in_sync(engine: Engine, server: Server, kind: str) -> None:
    store = guarded(server, kind)
    world = http_world(engine, server, {**THEIRS, **ASKED[kind]})
    world.put_record("a")
    world.run_drain()
    store.after[PUTS] = [504]
    world.put_record("a", name="next")
    world.run_until_settled()
    store.instead[PUTS] = [504]
    world.put_record("a", name="last")
    world.run_until_settled()
    assert ([record["name"] for record in store.items.values()], world.count_events_by_state()) == (
        ["last"],
        {"done": 6},
    )
    world.close()

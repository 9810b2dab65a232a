"""Late workers and late commits, and the proof that tests would notice: scenes and histories with a bug planted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from field_systems import connected, make_field_world
from histories import replay
from sqlalchemy import Engine
from sqlalchemy.exc import InternalError
from world import World

from sync_orchestrator.adapters.http import responses
from sync_orchestrator.core import version_guard
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.drain import event_decisions
from sync_orchestrator.core.drain.drain import drain
from sync_orchestrator.core.drain.event_batch import work_off
from sync_orchestrator.core.ledger import queries as ledger_queries
from sync_orchestrator.core.ledger.recording import ChangeEvent, record_in
from sync_orchestrator.core.push import queries as push_queries
from sync_orchestrator.core.push.attempt import push_record
from sync_orchestrator.core.push.claims import claim_due_records
from sync_orchestrator.core.push.settlement import settle_pushes
from sync_orchestrator.core.values import identity
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Change, Stamp
from sync_orchestrator.expressions.selectors import compile_selector

pytestmark = pytest.mark.slow


def late_worker_overwrites(world: World) -> None:
    """A worker is stopped just before its send, wakes up after its lease, and sends: it must end in sync."""
    world.put_record("a", name="old")
    world.run_drain()
    world.put_record("a", name="stale")
    world.advance_clock(1)
    system = world.config.third_parties["erp"]
    asleep, woken = asyncio.Event(), asyncio.Event()

    async def sleep_once(verb: str, key: str) -> None:
        if verb == "update" and not asleep.is_set():
            asleep.set()
            await woken.wait()

    async def scene() -> None:
        await work_off(world.context, 10, set())
        late = in_transaction(
            world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5)
        )[0]
        world.erp.gate = sleep_once
        sending = asyncio.create_task(push_record(world.entity, late))
        await asleep.wait()
        world.advance_clock(30)
        world.put_record("a", name="newest")
        await drain(world.context, linger=0, most_seconds=20)
        woken.set()
        ended = await sending
        in_transaction(world.engine, lambda c: settle_pushes(c, "erp", system, world.context.entities, [ended]))
        for _ in range(3):
            world.advance_clock(30)
            await drain(world.context, linger=0, most_seconds=20)

    asyncio.run(scene())
    assert world.mirror_by_key()["a"]["name"] == "newest"
    assert world.read_record_row("a").applied_revision == world.read_record_row("a").revision


def late_settle_changes_nothing(world: World) -> None:
    """While another holds the record, a settle that comes too late leaves its lease alone."""
    world.put_record("a")
    world.run_drain()
    world.put_record("a", name="next")
    system = world.config.third_parties["erp"]

    async def scene() -> None:
        await work_off(world.context, 10, set())
        late = in_transaction(
            world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5)
        )[0]
        ended = await push_record(world.entity, late)
        world.advance_clock(30)
        holder = in_transaction(
            world.engine, lambda c: claim_due_records(c, ["item"], most=1, lease=20, in_flight_window=5)
        )[0]
        in_transaction(world.engine, lambda c: settle_pushes(c, "erp", system, world.context.entities, [ended]))
        assert world.read_record_row("a").lease_token == holder.token
        assert world.read_record_row("a").out_of_sync

    asyncio.run(scene())


def late_commit_is_seen(world: World) -> None:
    """An event whose transaction commits late has a lower number than one that was worked off already."""
    first = ChangeEvent("shop", "e1", "item", "a", "create", 1, {"name": "n", "store": "A"})
    second = ChangeEvent("shop", "e2", "item", "b", "create", 1, {"name": "n", "store": "A"})
    with world.engine.begin() as slow:
        record_in(slow, [first])
        with world.engine.begin() as fast:
            record_in(fast, [second])
        world.run_drain()
    world.run_drain()
    for key in "ab":
        world.post_event("stock", key, "create", 1, {"count": 1})
    world.run_drain()
    assert sorted(world.mirror_by_key()) == ["a", "b"]


def test_a_worker_that_wakes_up_late_leaves_nothing_stale(world: World) -> None:
    late_worker_overwrites(world)


def test_a_settle_that_comes_too_late_changes_nothing(world: World) -> None:
    late_settle_changes_nothing(world)


def test_a_commit_that_comes_late_is_not_passed_over(world: World) -> None:
    late_commit_is_seen(world)


def test_an_unfenced_settle_would_be_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    unfenced = push_queries.ACKNOWLEDGE_PUSHES.replace("AND r.lease_token = v.token", "")
    assert unfenced != push_queries.ACKNOWLEDGE_PUSHES
    monkeypatch.setattr(push_queries, "ACKNOWLEDGE_PUSHES", unfenced)
    with pytest.raises(AssertionError):
        late_settle_changes_nothing(world)


def test_a_cursor_over_ids_would_be_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.query("CREATE TABLE sync.cursor (seq bigint)")
    world.query(
        "CREATE FUNCTION sync.move() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO sync.cursor VALUES (NEW.seq); RETURN NEW; END $$"
    )
    world.query("CREATE TRIGGER move AFTER UPDATE ON sync.events FOR EACH ROW EXECUTE FUNCTION sync.move()")
    cursored = ledger_queries.SELECT_DUE_EVENTS.replace(
        "WHERE revision IS NULL", "WHERE seq > (SELECT coalesce(max(seq), 0) FROM sync.cursor) AND revision IS NULL"
    )
    assert cursored != ledger_queries.SELECT_DUE_EVENTS
    monkeypatch.setattr(ledger_queries, "SELECT_DUE_EVENTS", cursored)
    with pytest.raises((AssertionError, InternalError)):  # or the drain looks for it until the open session is ended
        late_commit_is_seen(world)


def older_change_comes_late(world: World) -> None:
    """The newest version stands, whatever comes after it."""
    world.post_event("stock", "a", "create", 1, {"count": 1})
    for version, name in ((1, "first"), (9, "newest"), (5, "late")):
        world.post_event("shop", "a", "create", version, {"name": name, "store": "A"})
        world.run_drain()
    assert world.mirror_by_key()["a"]["name"] == "newest"


def test_an_older_change_that_comes_late_changes_nothing(world: World) -> None:
    older_change_comes_late(world)


def test_a_missing_version_guard_would_be_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        version_guard, "compare_states", lambda present, offered, **_: version_guard.StateComparison.NEWER
    )
    with pytest.raises(AssertionError):
        older_change_comes_late(world)


# Faults of the field: each is caught by the random histories ----------

MOST_HISTORIES = 60
"""So many histories find each of these."""


def caught(engine: Engine, faults: Sequence[str], more: str) -> bool:
    with connected(make_field_world(engine)) as make:
        for number in range(MOST_HISTORIES):
            try:
                replay(make, number, 60, faults, more)
            except AssertionError:
                return True
    return False


def believe_that_absent_is_deleted(patch: pytest.MonkeyPatch) -> None:
    def believed(self: Any, read: event_decisions.SourceRead, stamps: Any) -> event_decisions.Merge:
        event = read.event
        gone = Stamp(event.epoch, event.version, read.number, TOMBSTONE_HASH)
        return event_decisions.Merge((Change(event.key, event.source, "delete", gone, None, None, event.seq),))

    patch.setattr(event_decisions.EventDecider, "decide_absent", believed)


def trust_an_id(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(identity, "_fold_key", lambda key: "")


def let_the_hash_decide_ties(patch: pytest.MonkeyPatch) -> None:
    real = version_guard.compare_states

    def by_hash(present: Stamp | None, offered: Stamp, **more: Any) -> version_guard.StateComparison:
        verdict = real(present, offered, **more)
        if present is None or present.version != offered.version or verdict is version_guard.StateComparison.SAME:
            return verdict
        return (
            version_guard.StateComparison.NEWER
            if offered.content_hash > present.content_hash
            else version_guard.StateComparison.OLDER
        )

    patch.setattr(version_guard, "compare_states", by_hash)


def take_a_5xx_for_not_done(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(responses, "_may_have_been_done", lambda status: False)


def take_the_truth_of_a_text(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(responses, "applies_to", lambda when, document, **_: bool(compile_selector(when).search(document)))


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("plant", "faults", "more"),
    [
        (believe_that_absent_is_deleted, ["none"], "change"),
        (trust_an_id, ["none", "gone"], "id_is_given_again"),
        (let_the_hash_decide_ties, ["none"], "changes_within_a_version"),
        (take_a_5xx_for_not_done, ["none", "after"], "third_party_turns"),
        (take_the_truth_of_a_text, ["none", "texts"], "third_party_turns"),
    ],
)
def test_random_histories_catch(
    engine: Engine,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[pytest.MonkeyPatch], None],
    faults: list[str],
    more: str,
) -> None:
    """The faults of the third party, and the command that comes often, are those that bring the bug about soon."""
    plant(monkeypatch)
    assert caught(engine, faults, more)

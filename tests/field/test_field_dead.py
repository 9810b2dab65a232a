"""Dead is not in sync: dead records in verdicts, alerts, status and rollouts; redriving and discarding them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from dead_records import accept_all, dead_by_events, dead_by_full_sync, refuse, unreadable_change
from fakes import FakeThirdParty, answer, lost_answer
from scenes import fill_sources, watch_for_alerts
from world import World

from sync_orchestrator.adapters.http.responses import Answer, failure_of
from sync_orchestrator.assets.mirror_check_report import metadata_of, summarize_validation
from sync_orchestrator.config import OutcomeRule
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.failure_causes import MAX_OPEN_CAUSES, cause_of, cause_of_error
from sync_orchestrator.core.operations import events
from sync_orchestrator.core.operations.dead_records import discard_dead_records, redrive_dead_records
from sync_orchestrator.core.operations.metrics import read_figures
from sync_orchestrator.core.operations.records import push_again, refresh_record
from sync_orchestrator.core.operations.status import collect_status
from sync_orchestrator.core.push.dead_records import (
    DeadRecord,
    DeadSelection,
    describe_dead_of_entity,
    list_dead_records,
)
from sync_orchestrator.core.systems.pauses import set_paused
from sync_orchestrator.core.validation.validate import groups_due
from sync_orchestrator.errors import CallFailed, Failure, NotFound, UsageError

MakeWorld = Callable[..., World]
MANY_FAILURES = {"breaker": {"failures": 100}}


def listed(world: World, **selected: Any) -> list[DeadRecord]:
    states = selected.pop("states", ("dead", "on_hold"))
    with world.engine.begin() as connection:
        return list_dead_records(connection, DeadSelection("item", **selected), 100, states)


def redrive(world: World, **selected: Any) -> int:
    return redrive_dead_records(world.engine, DeadSelection("item", **selected))


def discard(world: World, reason: str = "not wanted there", **selected: Any) -> int:
    return discard_dead_records(world.engine, DeadSelection("item", **selected), reason)


def open_alerts(world: World) -> list[tuple[str, str, int]]:
    rows = world.query("SELECT kind, cause, n FROM sync.alerts WHERE resolved_at IS NULL ORDER BY kind, cause")
    return [(row.kind, row.cause, row.n) for row in rows]


# Verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_rule_39_a_group_with_twelve_dead_records_is_not_in_sync(make_world: MakeWorld, full: bool) -> None:
    world = make_world(system=MANY_FAILURES)
    keys = [f"k{number:03}" for number in range(12)]
    dead_by_full_sync(world, *keys, count=30)
    world.run_validation(full=True)  # the first one is an audit anyway; from now on the count suffices
    result = world.run_validation(full=full)
    assert (result.compared is None) is not full
    assert (result.verdict, result.reason) == ("drift", "12 records are dead")
    assert (result.dead, result.ambiguous, result.drift, result.discarded) == (12, 0, [], 0)
    assert [record.key for record in result.dead_records] == keys
    assert {record.cause for record in result.dead_records} == {"answer 422"}


def test_rule_39_records_that_events_brought_are_dead_in_the_verdict_too(world: World) -> None:
    dead_by_events(world, "a")
    result = world.run_validation()
    assert (result.verdict, result.dead, result.reason) == ("drift", 1, "1 record is dead")
    assert result.dead_records[0].brought_by.startswith("event ")


def test_what_is_in_flight_is_not_dead(world: World) -> None:
    dead_by_full_sync(world, "k001")
    set_paused(world.engine, "item", {"item"}, paused=True)
    world.put_record("k002", name="archived and not pushed yet")
    world.run_drain()
    result = world.run_validation(full=True)
    assert (result.dead, result.ambiguous) == (1, 1)


def test_dead_records_and_drift_are_both_named(world: World) -> None:
    dead_by_full_sync(world, "k001")
    world.erp.store[world.read_record_row("k002").external_id]["name"] = "altered"
    result = world.run_validation(full=True, repair="off")
    assert (result.verdict, result.dead, [drift.key for drift in result.drift]) == ("drift", 1, ["k002"])
    again = world.run_validation(repair="off")
    assert again.compared is not None, "drift is compared in full at the next validation"
    assert again.dead == 1


def test_a_record_of_unknown_outcome_on_hold_is_dead_in_the_verdict(make_world: MakeWorld) -> None:
    world = on_hold(make_world)
    assert world.read_record_row("a").stopped == "on_hold"
    result = world.run_validation()
    assert (result.verdict, result.dead, result.reason) == ("drift", 1, "1 record is dead, 1 of them on hold")
    assert result.dead_records[0].state == "on_hold"


def test_a_dead_record_that_moves_counts_for_both_groups(world: World) -> None:
    fill_sources(world, 5)
    world.run_full_sync()
    world.put_record("other", group="B", notify=False)
    world.run_full_sync("B")
    refuse(world, "k001")
    world.put_record("k001", name="moved", group="B")
    world.run_drain()
    assert [world.run_validation(group).dead for group in "AB"] == [1, 1]
    assert listed(world)[0].group == "B"


def test_a_group_without_dead_records_stays_in_sync(world: World) -> None:
    dead_by_full_sync(world, "k001")
    world.put_record("other", group="B", notify=False)
    world.run_full_sync("B")
    result = world.run_validation("B")
    assert (result.verdict, result.dead, result.reason) == ("in_sync", 0, None)


def test_the_verdict_is_clean_again_once_the_record_is_there(world: World) -> None:
    dead_by_full_sync(world, "k001")
    assert world.run_validation().verdict == "drift"
    redrive(world, keys=["k001"])
    assert world.run_validation().dead == 0, "it is in flight"
    world.run_drain()
    world.advance_clock(1)
    result = world.run_validation()
    assert (result.verdict, result.reason, world.mirror_by_key() == world.expected_mirror()) == ("in_sync", None, True)


def test_not_validated_stays_not_validated_and_tells_what_is_dead(world: World) -> None:
    dead_by_full_sync(world, "k001")
    world.query("UPDATE sync.systems SET open_since = now(), probe_at = now() WHERE name = 'erp'")
    result = world.run_validation()
    assert (result.verdict, result.dead) == ("not_validated", 1)


# Changes that died before they were archived ------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(("key", "group"), [("k001", None), ("k001", "A"), ("new", "A")])
def test_rule_39_a_change_that_died_before_it_was_archived_is_dead(
    world: World, key: str, group: str | None, full: bool
) -> None:
    fill_sources(world, 5)
    world.run_full_sync()
    world.run_validation()
    unreadable_change(world, key, group)
    result = world.run_validation(full=full)
    assert (result.verdict, result.dead, result.ambiguous) == ("drift", 1, 0)
    [record] = result.dead_records
    assert (record.key, record.kind, record.group, record.cause) == (key, "event", "A", "answer 400: no access to …")


def test_a_dead_change_of_a_dead_record_counts_once(world: World) -> None:
    dead_by_full_sync(world, "k001")
    unreadable_change(world, "k001")
    assert (world.run_validation().dead, len(listed(world))) == (1, 2)


@pytest.mark.parametrize("group", [None, "Z"])
def test_a_dead_change_without_a_known_group_is_named_by_every_verdict_and_spoils_none(
    world: World, group: str | None
) -> None:
    fill_sources(world, 5)
    world.run_full_sync()
    unreadable_change(world, "new", group)
    result = world.run_validation()
    assert (result.verdict, result.dead, result.dead_without_group) == ("in_sync", 0, 1)
    assert result.reason == "1 record is dead without a known business group"
    with world.engine.begin() as connection:
        assert describe_dead_of_entity(connection, "item") == (
            "item: 1 record is dead, 1 of them without a known business group, such as 'new'"
        )


# The schedule -------------------------------------------------------------------------------------------------------


def due(world: World) -> list[str]:
    with world.engine.begin() as connection:
        return groups_due(connection, "item", 900, 100)


def test_a_group_with_dead_records_waits_for_its_turn_and_is_not_compared_in_full_each_time(world: World) -> None:
    dead_by_full_sync(world, "k001")
    assert world.run_validation().compared == 19
    assert due(world) == []
    world.advance_clock(1000)
    assert due(world) == ["A"]
    world.erp.calls.clear()
    assert world.run_validation().verdict == "drift"
    assert (world.erp.calls, due(world)) == ({"count": 1}, [])


def test_a_validation_done_again_after_a_deadlock_says_the_same(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from sync_orchestrator.core.validation import scope

    dead_by_full_sync(world, "k001")
    world.run_validation()
    once = in_transaction

    def twice(engine: Any, work: Any) -> Any:
        once(engine, work)
        return once(engine, work)

    monkeypatch.setattr(scope, "in_transaction", twice)
    for full in (False, True):
        result = world.run_validation(full=full)
        assert (result.reason, result.ambiguous, result.dead) == ("1 record is dead", 0, 1)
    assert world.query("SELECT compared_at FROM sync.groups WHERE group_key = 'A'")[0].compared_at is not None


# Alerts -------------------------------------------------------------------------------------------------------------


def test_dead_records_raise_their_own_alert_and_none_of_drift(world: World) -> None:
    dead_by_full_sync(world, "k001")
    world.run_validation()
    world.run_validation(full=True)
    assert open_alerts(world) == [("dead", "item: answer 422", 1)]


def test_refusals_of_one_status_with_different_reasons_are_different_alerts(make_world: MakeWorld) -> None:
    world = make_world(system=MANY_FAILURES)
    reasons = {"a": "name 'Lamp 1' is taken", "b": "name 'Chair' is taken", "c": "price 17.5 is too low"}

    def refused(verb: str, key: str) -> CallFailed | None:
        reason = reasons.get(key)
        return (
            None
            if reason is None
            else CallFailed(Failure.PERMANENT, f"invalid, answer 200: {reason}", status=200, reason=reason)
        )

    world.erp.before = refused
    for key in ("a", "b", "c", "fine"):
        world.put_record(key)
    world.run_drain()
    assert open_alerts(world) == [("dead", "item: name … is taken", 2), ("dead", "item: price … is too low", 1)]


def test_the_alert_of_one_cause_ends_while_another_is_open(make_world: MakeWorld) -> None:
    world = make_world(system=MANY_FAILURES)
    world.erp.before = lambda verb, key: answer({"a": 422, "b": 409}.get(key, 400)) if key in "ab" else None
    for key in ("a", "b", "fine"):
        world.put_record(key)
    world.run_drain()
    accept_all(world)
    world.put_record("a", name="better")
    world.run_drain()
    assert watch_for_alerts(world) == [("dead", 1)]
    assert open_alerts(world) == [("dead", "item: answer 409", 1)]


def test_an_alert_stays_while_a_change_of_its_record_is_dead(world: World) -> None:
    fill_sources(world, 3)
    world.run_full_sync()
    unreadable_change(world, "k001")
    assert len(watch_for_alerts(world)) == 1


def test_the_number_of_open_causes_is_bounded(make_world: MakeWorld) -> None:
    world = make_world(system=MANY_FAILURES)
    words = [first + second for first in "abcdef" for second in "uvwxyz"]
    world.erp.before = lambda verb, key: (
        CallFailed(Failure.PERMANENT, f"answer 422: {words[int(key[1:])]} is wrong", status=422)
        if key != "fine"
        else None
    )
    for number in range(30):
        world.put_record(f"k{number:03}")
    world.put_record("fine")
    world.run_drain()
    alerts = open_alerts(world)
    assert len(alerts) == MAX_OPEN_CAUSES + 1
    assert alerts[-1] == ("dead", "item: other refusals", 10)
    assert len(listed(world, cause="item: other refusals")) == 10
    redrive(world, cause="other refusals")
    assert len(open_alerts(world)) == MAX_OPEN_CAUSES


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        ("answer 422", "answer 422"),
        ('answer 422: {"error":"name \'Lamp 17\' is taken"}', "answer 422: name … is taken"),
        (
            'answer 422: {"errors":{"name":["is taken"],"price":["below 17"]}}',
            "answer 422: name: is taken, price: below …",
        ),
        ('answer 403: {"error":{"code":12,"message":"no right to write"}}', "answer 403: no right to write"),
        ('answer 400: {"message":"the name is very l…', "answer 400"),
        ("answer 400: unknown shelf for lamp in row 17", "answer 400: unknown shelf for … in row …"),
        ("answer 502: an HTML page: 502 Bad Gateway id 17", "answer 502"),
        ("invalid, answer 200: name is taken", "name is taken"),
        ("invalid, answer 200: name can't be “Lamp”, isn't free", "name can't be …, isn't free"),
        ('invalid, answer 200: {"code":"E_TAKEN","id":17}', "answer 200: E_TAKEN"),
        ("field 'price': 'abc' is no number", "field 'price': … is no number"),
        ("asked for record 1001, another came: 1002", "asked for record …, another came: …"),
        ("x" * 200, "x" * 80),
        ("", "no error text"),
        (None, "no error text"),
        ("answer 422: 17", "answer 422"),
    ],
)
def test_a_cause_keeps_refusals_apart_and_leaves_single_records_out(error: str | None, cause: str) -> None:
    assert cause_of_error(error, "lamp") == cause


def test_the_message_of_a_rule_is_the_cause() -> None:
    rule = OutcomeRule.model_validate({"when": "body.ok == `false`", "means": "invalid", "message": "body.why"})
    body = b'{"ok": false, "why": "name \\"Lamp\\" is taken, s3cret"}'
    failure = failure_of(Answer(200, {}, body), [rule], write=True, secrets=["s3cret"])
    assert failure is not None
    assert failure.reason == 'name "Lamp" is taken, ***'
    assert cause_of(failure) == cause_of_error(str(failure)) == "name … is taken, ***"


def test_a_class_of_ones_own_may_give_the_reason_apart_from_the_text() -> None:
    assert cause_of(CallFailed(Failure.PERMANENT, "refused", status=422, reason="name taken")) == "name taken"
    assert cause_of(CallFailed(Failure.PERMANENT, "no good 17", status=422)) == "answer 422: no good …"


# Listing ------------------------------------------------------------------------------------------------------------


def test_the_list_names_group_cause_time_attempts_and_what_brought_it(world: World) -> None:
    dead_by_full_sync(world, "k001")
    refuse(world, "a")
    world.put_record("a")
    world.run_drain()
    first, second = listed(world)
    seq = world.query("SELECT max(seq) AS seq FROM sync.events WHERE key = 'a'")[0].seq
    assert (first.key, first.brought_by, second.key, second.brought_by) == ("k001", "full sync", "a", f"event {seq}")
    assert (second.group, second.kind, second.state, second.error, second.attempts) == (
        "A",
        "record",
        "dead",
        "answer 422",
        1,
    )
    assert first.since < second.since == world.read_record_row("a").stopped_at


@pytest.mark.parametrize(
    ("selected", "keys"),
    [
        ({}, ["a", "b", "c"]),
        ({"keys": ["a", "nobody"]}, ["a"]),
        ({"group": "B"}, ["c"]),
        ({"cause": "ANSWER 409"}, ["b"]),
        ({"cause": "item: answer 409"}, ["b"]),
        ({"cause": "50%"}, []),
        ({"group": "A", "cause": "answer 422"}, ["a"]),
    ],
)
def test_records_are_selected_by_key_group_and_cause(
    make_world: MakeWorld, selected: dict[str, Any], keys: list[str]
) -> None:
    world = make_world(system=MANY_FAILURES)
    statuses = {"a": 422, "b": 409, "c": 422}
    world.erp.before = lambda verb, key: answer(statuses[key]) if key in statuses else None
    for key, group in (("a", "A"), ("b", "A"), ("c", "B"), ("fine", "A")):
        world.put_record(key, group=group)
    world.run_drain()
    assert sorted(record.key for record in listed(world, **selected)) == keys
    assert redrive(world, **selected) == len(keys)
    assert sorted(record.key for record in listed(world)) == sorted({"a", "b", "c"} - set(keys))


def test_a_cause_as_it_is_shown_selects_what_it_stands_for(world: World) -> None:
    text = 'answer 422: {"message": "name \'Lamp_17\' is taken", "id": 4}'
    world.erp.before = lambda verb, key: CallFailed(Failure.PERMANENT, text, status=422) if key == "a" else None
    world.put_record("a")
    world.put_record("fine")
    world.run_drain()
    [record] = listed(world)
    assert record.cause == "answer 422: name … is taken"
    assert [found.key for found in listed(world, cause=record.cause)] == ["a"]
    assert listed(world, cause="answer 422: price … is taken") == []


# Redriving ----------------------------------------------------------------------------------------------------------


def test_records_that_a_full_sync_brought_are_redriven(world: World) -> None:
    dead_by_full_sync(world, "k001", "k002")
    assert world.read_conservation().received == 0
    assert redrive(world, keys=["k001"]) == 1
    assert redrive(world, keys=["k001"]) == 0
    refuse(world, "k002")
    world.run_drain()
    accept_all(world)
    assert "k001" in world.mirror_by_key()
    assert [record.key for record in listed(world)] == ["k002"]
    assert redrive(world) == 1
    assert (
        world.read_record_row("k002").stopped,
        world.read_record_row("k002").stopped_at,
        world.read_record_row("k002").attempts,
    ) == (None, None, 0)
    world.run_drain()
    assert (world.mirror_by_key() == world.expected_mirror(), open_alerts(world)) == (True, [])


def test_a_redrive_wakes_the_drain_and_ends_the_alert_at_once(world: World) -> None:
    from sync_orchestrator.core.drain.wakeup import DUE

    dead_by_events(world, "a")
    due_now = {"entities": ["item"], "systems": '{"item": "erp"}', "age": 0}
    assert not world.query(DUE, **due_now)[0].due
    redrive(world)
    assert world.query(DUE, **due_now)[0].due
    assert open_alerts(world) == []
    assert world.count_events_by_state() == {"done": 2, "pending": 2}
    world.run_drain()
    assert (world.count_events_by_state(), world.mirror_by_key() == world.expected_mirror()) == ({"done": 4}, True)


def test_a_record_that_dies_again_after_a_redrive_is_told_of_again(world: World) -> None:
    dead_by_full_sync(world, "k001")
    refuse(world, "k001")
    redrive(world)
    world.run_drain()
    assert (world.read_record_row("k001").stopped, open_alerts(world)) == ("dead", [("dead", "item: answer 422", 1)])


def test_a_change_that_died_before_it_was_archived_is_redriven(world: World) -> None:
    fill_sources(world, 3)
    world.run_full_sync()
    unreadable_change(world, "k001")
    world.shop.put("k001", {"key": "k001", "name": "later", "store": "A", "v": 0}, group="A")
    del world.shop.read, world.stock.read
    assert redrive(world, cause="no access") == 1
    world.run_drain()
    assert (world.mirror_by_key() == world.expected_mirror(), listed(world), world.read_conservation().balanced) == (
        True,
        [],
        True,
    )


def test_events_redrive_leaves_a_discarded_record_alone(world: World) -> None:
    dead_by_full_sync(world, "k001")
    discard(world, keys=["k001"])
    unreadable_change(world, "k001")
    assert events.redrive_events(world.engine) == 1
    assert world.read_record_row("k001").stopped == "discarded"


@pytest.mark.parametrize("again", ["redrive", "push", "refresh"])
async def test_an_operator_who_names_a_discarded_record_takes_the_discard_back(world: World, again: str) -> None:
    import asyncio

    def work() -> None:
        dead_by_full_sync(world, "k001")
        discard(world, keys=["k001"])
        assert redrive(world) == 0
        if again == "redrive":
            assert redrive(world, keys=["k001"]) == 1
        elif again == "push":
            with world.engine.begin() as connection:
                push_again(connection, "item", "k001")
        else:
            asyncio.run(refresh_record(world.context, world.entity, "k001"))
        assert (world.read_record_row("k001").stopped, world.read_record_row("k001").error) == (None, None)
        world.run_drain()
        assert world.mirror_by_key() == world.expected_mirror()

    await asyncio.to_thread(work)


def on_hold(make_world: MakeWorld) -> World:
    """A create of unknown outcome that did nothing, at a third party that cannot be searched by key."""
    world = make_world(erp=FakeThirdParty(can_lookup=False))
    fill_sources(world, 3)
    world.run_full_sync()
    world.erp.before = lambda verb, key: lost_answer() if verb == "create" else None
    world.put_record("a")
    world.run_drain()
    world.advance_clock(60)
    world.run_drain()
    accept_all(world)
    return world


def test_a_record_on_hold_is_created_only_where_an_operator_has_seen_that_it_is_absent(make_world: MakeWorld) -> None:
    world = on_hold(make_world)
    assert redrive(world, keys=["a"]) == 1
    world.run_drain()
    assert (world.read_record_row("a").stopped, "a" in world.mirror_by_key()) == ("on_hold", False)
    assert redrive_dead_records(world.engine, DeadSelection("item", ["a"]), confirmed_absent=True) == 1
    world.run_drain()
    world.advance_clock(1)
    assert (world.mirror_by_key() == world.expected_mirror(), open_alerts(world), world.run_validation().verdict) == (
        True,
        [],
        "in_sync",
    )


# Discarding ---------------------------------------------------------------------------------------------------------


def test_a_discarded_record_is_neither_dead_nor_in_flight_and_is_counted(world: World) -> None:
    dead_by_full_sync(world, "k001", "k002")
    assert discard(world, keys=["k001"]) == 1
    result = world.run_validation()
    assert (result.verdict, result.dead, result.discarded, result.ambiguous) == ("drift", 1, 1, 0)
    discard(world)
    result = world.run_validation()
    assert (result.verdict, result.dead, result.discarded, result.reason) == ("in_sync", 0, 2, None)
    assert metadata_of(result)["discarded"] == 2
    assert open_alerts(world) == []
    [first, second] = listed(world, states=("discarded",))
    assert (first.error, first.state, second.key) == ("not wanted there", "discarded", "k002")


def test_a_discarded_record_is_pushed_by_nothing_but_a_new_revision(world: World) -> None:
    dead_by_full_sync(world, "k001")
    world.query("UPDATE sync.records SET attempts = 2, rejected_digest = NULL WHERE key = 'k001'")
    discard(world)
    world.erp.calls.clear()
    assert world.run_full_sync().stopped == 0
    world.advance_clock(100_000)
    world.run_drain()
    world.run_full_sync()
    assert (world.read_record_row("k001").stopped, world.erp.calls["create"]) == ("discarded", 0)
    world.put_record("k001", name="new")
    world.run_drain()
    assert (world.mirror_by_key() == world.expected_mirror(), world.read_record_row("k001").stopped_at) == (True, None)


def test_a_breaker_that_opens_gives_no_discarded_record_back(make_world: MakeWorld) -> None:
    world = make_world(system={"breaker": {"failures": 2}})
    fill_sources(world, 3)
    world.run_full_sync()
    refuse(world, "a", "b")
    world.put_record("a")
    world.run_drain()
    discard(world)
    world.put_record("b")
    world.run_drain()
    assert world.query("SELECT open_since FROM sync.systems WHERE name = 'erp'")[0].open_since is not None
    assert (world.read_record_row("a").stopped, world.read_record_row("b").stopped) == ("discarded", None)


def test_the_events_of_a_discarded_record_end_with_the_reason(world: World) -> None:
    dead_by_events(world, "a")
    assert discard(world, keys=["a"], reason="a test record") == 1
    assert world.count_events_by_state() == {"done": 2, "discarded": 2}
    assert {row.reason for row in world.query("SELECT reason FROM sync.event_history WHERE state = 'discarded'")} == {
        "a test record"
    }
    row = world.shop.rows["a"]
    world.post_event("shop", "a", "update", row.version, row.data)  # nothing new
    world.run_drain()
    assert (world.count_events_by_state(), world.read_record_row("a").stopped) == (
        {"done": 2, "discarded": 3},
        "discarded",
    )
    assert world.read_conservation().balanced


def test_a_discard_needs_a_reason_and_something_dead(world: World) -> None:
    dead_by_full_sync(world, "k001")
    with pytest.raises(UsageError, match="needs a reason"):
        discard(world, reason=" ")
    with pytest.raises(NotFound, match="records list item --dead"):
        discard(world, keys=["k002"])
    discard(world)
    with pytest.raises(NotFound):
        discard(world)


def test_a_change_that_died_before_it_was_archived_is_discarded(world: World) -> None:
    fill_sources(world, 3)
    world.run_full_sync()
    unreadable_change(world, "new")
    assert discard(world, cause="no access") == 1
    assert (world.count_events_by_state(), listed(world), open_alerts(world)) == ({"discarded": 1}, [], [])
    assert world.run_validation().dead_without_group == 0


# Events and their records -------------------------------------------------------------------------------------------


def dead_seqs(world: World) -> list[int]:
    return [row.seq for row in world.query("SELECT seq FROM sync.events WHERE state = 'dead' ORDER BY seq")]


def test_a_dead_record_is_discarded_with_the_last_of_its_dead_events(world: World) -> None:
    dead_by_events(world, "a")
    first, last = dead_seqs(world)
    events.discard_events(world.engine, [first], "not wanted there")
    assert (world.read_record_row("a").stopped, world.run_validation().dead) == ("dead", 1)
    events.discard_events(world.engine, [last], "not wanted there")
    assert (world.read_record_row("a").stopped, world.read_record_row("a").error) == ("discarded", "not wanted there")
    assert (world.run_validation().verdict, world.run_validation().discarded, open_alerts(world)) == ("in_sync", 1, [])


def test_the_event_of_an_older_state_takes_no_newer_dead_record_with_it(world: World) -> None:
    dead_by_events(world, "a")
    refuse(world, "a")
    world.put_record("a", name="newer", notify=False)
    world.run_full_sync()
    events.discard_events(world.engine, dead_seqs(world), "not wanted there")
    result = world.run_validation()
    assert (world.read_record_row("a").stopped, result.verdict, result.dead) == ("dead", "drift", 1)
    assert result.dead_records[0].brought_by == "full sync"


def test_stopped_at_is_set_and_cleared_with_stopped(world: World) -> None:
    dead_by_events(world, "a")
    died = world.read_record_row("a").stopped_at
    assert died is not None
    events.redrive_events(world.engine, dead_seqs(world))
    assert (world.read_record_row("a").stopped, world.read_record_row("a").stopped_at) == (None, None)
    refuse(world, "a")
    world.advance_clock(100)
    world.run_drain()
    assert world.read_record_row("a").stopped_at > died
    world.put_record("a", name="other")
    assert world.read_record_row("a").stopped_at is not None
    accept_all(world)
    world.run_drain()
    assert world.read_record_row("a").stopped_at is None
    assert world.query("SELECT FROM sync.records WHERE (stopped IS NULL) <> (stopped_at IS NULL)") == []


# Where it is shown --------------------------------------------------------------------------------------------------


def test_the_check_shows_the_number_and_a_table(world: World) -> None:
    dead_by_full_sync(world, "k001")
    result = world.run_validation()
    assert summarize_validation(result) == "drift, compared 19; 1 record is dead"
    metadata = metadata_of(result)
    assert metadata["dead"] == 1
    [row] = metadata["dead_records"].records
    assert (row.data["key"], row.data["cause"], row.data["since"][:2]) == ("k001", "answer 422", "20")


def test_status_names_causes_states_and_since_when(make_world: MakeWorld) -> None:
    world = make_world(system=MANY_FAILURES)
    dead_by_full_sync(world, "k001", "k002", "k003")
    discard(world, keys=["k003"])
    unreadable_change(world, "new")
    found = collect_status(world.engine)
    assert (found["records"]["dead"], found["records"]["discarded"]) == (2, 1)
    assert [(row["entity"], row["state"], row["cause"], row["count"]) for row in found["dead"]] == [
        ("item", "dead", "answer 422", 2),
        ("item", "dead", "answer 400: no access to …", 1),
        ("item", "discarded", "not wanted there", 1),
    ]
    assert found["dead"][0]["since"] == world.read_record_row("k001").stopped_at.isoformat()


def test_metrics_count_dead_records_by_state(world: World) -> None:
    dead_by_full_sync(world, "k001", "k002")
    discard(world, keys=["k002"])
    unreadable_change(world, "new")
    with world.engine.begin() as connection:
        [figure] = [figure for figure in read_figures(connection) if figure.name == "sync_dead_records"]
    assert figure.values == {
        ("item", "dead"): 1,
        ("item", "discarded"): 1,
        ("item", "event"): 1,
    }


def test_status_counts_rare_causes_together(make_world: MakeWorld) -> None:
    world = make_world(system=MANY_FAILURES)
    world.erp.before = lambda verb, key: (
        CallFailed(Failure.PERMANENT, f"answer 422: {key[0]} is wrong", status=422) if key != "fine" else None
    )
    for key in ("a", "b", "c", "d", "e", "f", "g", "fine"):
        world.put_record(f"{key}x" if key != "fine" else key)
    world.run_drain()
    rows = collect_status(world.engine)["dead"]
    assert (len(rows), rows[-1]["cause"], rows[-1]["count"]) == (6, "other causes", 2)


def test_a_rollout_waits_while_anything_is_dead(world: World) -> None:
    with world.engine.begin() as connection:
        assert describe_dead_of_entity(connection, "item") is None
    dead_by_full_sync(world, "k001")
    with world.engine.begin() as connection:
        assert describe_dead_of_entity(connection, "item") == "item: 1 record is dead, such as 'k001'"
    discard(world)
    with world.engine.begin() as connection:
        assert describe_dead_of_entity(connection, "item") is None

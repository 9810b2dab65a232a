"""Two sides that people change, in random histories without a database: nothing is lost, and both come to rest equal.

The model is in ``two_way_model.py``. Each planted bug takes out one rule of the merge or of the engine around it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import two_way_model
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from two_way_model import Call, Fate, SideName, TwoWayMachine, TwoWayModel, replay

from sync_orchestrator.core.two_way import known_state
from sync_orchestrator.core.two_way.known_state import SharedCall, SideRead
from sync_orchestrator.core.two_way.three_way import FieldMerge, FieldState, Policy, SideValue, merge_field, same

HISTORIES = int(os.environ.get("SYNC_TEST_TWO_WAY_HISTORIES", "150"))
STEPS = 40
MAX_HISTORIES = 400
"""So many histories find each planted bug."""


def play(machine: type[TwoWayMachine], histories: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    """Plays random histories, the same ones every time."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=histories,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=True,
            database=None,
            phases=phases,
            report_multiple_bugs=False,
            print_blob=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(3600)
def test_both_sides_come_to_rest_equal_and_no_edit_is_lost() -> None:
    play(TwoWayMachine, HISTORIES * 2 // 3)


@pytest.mark.timeout(3600)
def test_numbered_histories_come_to_rest_too() -> None:
    """They have more writes that are lost and reads that lag than those that Hypothesis draws."""
    for number in range(HISTORIES):
        replay(number, STEPS)


# Histories that have found a fault ----------------------------------------------------------------------------------


def build_model(*, read_lag: int = 3) -> TwoWayModel:
    """Two sides that have the same."""
    values = {name: f"{name}0" for name in two_way_model.FIELDS}
    return TwoWayModel(values, dict(values), Policy.ASK, read_lag=read_lag, guards_late_writes=True)


def edit_ours_and_merge(model: TwoWayModel) -> None:
    model.edit("ours", "note")
    model.read_now("ours")
    model.merge()


def push(model: TwoWayModel, side: SideName, fate: Fate = "acknowledged") -> None:
    assert model.begin_write(side)
    model.finish_write(side, fate)


def read_what_was_before(model: TwoWayModel, changes: int) -> None:
    model.begin_read("theirs")
    model.finish_read("theirs", 0, changes)
    model.merge()


def wanted_notes(model: TwoWayModel) -> tuple[object, object]:
    return model.wanted["ours"]["note"], model.wanted["theirs"]["note"]


def test_what_a_lagging_read_has_shown_is_not_believed_later_either() -> None:
    model = build_model()
    model.merge()
    edit_ours_and_merge(model)
    push(model, "theirs")
    read_what_was_before(model, 1)
    model.pass_time(4)
    model.merge()
    assert wanted_notes(model) == ("v1", "v1")
    model.come_to_rest()
    model.check_end()


def test_a_lagging_read_may_show_what_was_before_several_writes() -> None:
    model = build_model()
    model.merge()
    for _ in range(2):
        edit_ours_and_merge(model)
        push(model, "theirs")
    read_what_was_before(model, 2)
    assert wanted_notes(model) == ("v2", "v2")
    model.come_to_rest()
    model.check_end()


def test_a_lagging_read_may_show_a_write_of_unknown_outcome_after_the_next_one() -> None:
    model = build_model()
    model.merge()
    edit_ours_and_merge(model)
    push(model, "theirs", "lost_after")
    model.pass_time(two_way_model.IN_FLIGHT_WINDOW)
    edit_ours_and_merge(model)
    push(model, "theirs")
    read_what_was_before(model, 1)
    for _ in range(2):
        model.merge()
        assert wanted_notes(model) == ("v2", "v2")
    model.come_to_rest()
    model.check_end()


def test_a_value_of_their_own_that_a_lost_call_sends_again_stays_their_change() -> None:
    model = build_model(read_lag=0)
    model.merge()
    edit_ours_and_merge(model)
    push(model, "theirs", "lost_before")
    push(model, "theirs")
    model.edit("theirs", "note")
    model.edit("ours", "title")
    for side in two_way_model.SIDES:
        model.read_now(side)
    model.merge()
    push(model, "theirs", "lost_before")
    edit_ours_and_merge(model)
    assert [conflict.theirs for _, conflict in model.noted] == ["v2"]
    model.come_to_rest()
    model.check_end()


def test_a_value_that_somebody_chose_for_both_is_agreed_once_both_have_it() -> None:
    model = build_model()
    for side in two_way_model.SIDES:
        model.edit(side, "price")
    model.play_round()
    model.decide("price", "other")
    model.play_round()
    model.edit("ours", "price")
    model.play_round()
    assert not model.open
    model.come_to_rest()
    model.check_end()


# Planted bugs -------------------------------------------------------------------------------------------------------


def forget_what_was_sent(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(two_way_model, "list_sent_values", lambda field, calls: [])


def ignore_how_long_reads_lag(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TwoWayModel, "believed_lag", property(lambda self: 0))


def ignore_when_reads_began(patch: pytest.MonkeyPatch) -> None:
    find = known_state.find_current_values

    def find_by_lag(shown: Any, read: SideRead, calls: Sequence[SharedCall], read_lag: float) -> dict[str, object]:
        return find(shown, replace(read, sequence=10**9), calls, read_lag)

    patch.setattr(two_way_model, "find_current_values", find_by_lag)


def take_the_age_of_a_read_at_the_merge(patch: pytest.MonkeyPatch) -> None:
    """What a read has shown is believed once the lag is over, however old the read is."""

    def list_point(self: TwoWayModel, read: two_way_model.Read) -> SideRead:
        return SideRead(read.sequence, self.clock)

    patch.setattr(TwoWayModel, "point_of", list_point)


def merge_states_with(patch: pytest.MonkeyPatch, change: Callable[[FieldState], FieldState]) -> None:
    """Merges with another state than the one that is known."""

    def merge(ours: SideValue, theirs: SideValue, state: FieldState, policy: Any, **rest: Any) -> FieldMerge:
        return merge_field(ours, theirs, change(state), policy, **rest)

    patch.setattr(two_way_model, "merge_field", merge)


def agree_on_nothing(patch: pytest.MonkeyPatch) -> None:
    merge_states_with(patch, lambda state: replace(state, is_agreed=False))


def forget_decisions(patch: pytest.MonkeyPatch) -> None:
    merge_states_with(patch, lambda state: replace(state, decision=None))


def agree_on_all_that_was_acknowledged(patch: pytest.MonkeyPatch) -> None:
    """Also on what the side that it came from did not have."""
    list_agreed = known_state.list_agreed_values

    def list_all(one: Sequence[SharedCall], other: Sequence[SharedCall]) -> list[tuple[str, object]]:
        return list_agreed(*([replace(call, own=call.carried) for call in calls] for calls in (one, other)))

    patch.setattr(two_way_model, "list_agreed_values", list_all)


def write_whole_records(patch: pytest.MonkeyPatch) -> None:
    """With a look at what is to change alone."""

    def is_as_expected(self: TwoWayModel, real: Mapping[str, Any], call: Call) -> bool:
        return all(any(same(real[name], values[name]) for values in call.known) for name in call.shared.carried)

    patch.setattr(TwoWayModel, "build_body", lambda self, wanted, carried: dict(wanted))
    patch.setattr(TwoWayModel, "is_as_expected", is_as_expected)


def write_without_a_look(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TwoWayModel, "is_as_expected", lambda self, real, call: True)


BUGS = (
    forget_what_was_sent,
    ignore_how_long_reads_lag,
    ignore_when_reads_began,
    take_the_age_of_a_read_at_the_merge,
    agree_on_nothing,
    forget_decisions,
    agree_on_all_that_was_acknowledged,
    write_whole_records,
    write_without_a_look,
)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_random_histories_catch(monkeypatch: pytest.MonkeyPatch, bug: Callable[[pytest.MonkeyPatch], None]) -> None:
    bug(monkeypatch)
    for number in range(MAX_HISTORIES):
        try:
            replay(number, STEPS)
        except AssertionError:
            return
    pytest.fail(f"{MAX_HISTORIES} histories did not notice it")

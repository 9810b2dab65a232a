"""The position of a poll: no transaction commits behind it, however long it was open."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sync_orchestrator.core.intake.poll_position import PollPosition
from sync_orchestrator.core.ports import OpenTransactions

NONE = OpenTransactions()


def opened(*names: str, renamed: bool = False) -> OpenTransactions:
    return OpenTransactions(frozenset(names), renamed)


def poll(position: PollPosition, there: OpenTransactions | None, present: int, newest: int) -> int:
    position.begin_poll(there)
    return position.end_poll(there, present, newest)


def test_without_knowledge_the_newest_version_is_the_position() -> None:
    position = PollPosition()
    assert [poll(position, None, 1, 5), poll(position, None, 5, 9)] == [5, 9]


def test_the_position_follows_one_poll_later() -> None:
    position = PollPosition()
    assert [poll(position, NONE, 1, 5), poll(position, NONE, 1, 9), poll(position, NONE, 5, 9)] == [1, 5, 9]


def test_it_waits_for_what_was_open() -> None:
    position = PollPosition()
    assert poll(position, opened("a"), 1, 5) == 1
    assert poll(position, opened("a", "b"), 1, 7) == 1
    assert poll(position, opened("b", "c"), 1, 8) == 1
    assert poll(position, opened("c"), 1, 9) == 5


def test_a_transaction_that_may_have_another_name_is_waited_for() -> None:
    position = PollPosition()
    poll(position, NONE, 1, 5)
    poll(position, opened("a"), 1, 6)
    assert poll(position, opened("prepared 7", renamed=True), 1, 7) == 1
    assert poll(position, NONE, 1, 8) == 5


@given(st.lists(st.tuples(st.sampled_from(["begin", "commit", "poll", "restart"]), st.integers(0, 5)), max_size=60))
def test_no_history_hides_a_commit(steps: list[tuple[str, int]]) -> None:
    """Each transaction writes one row with the time of its beginning; every row that is committed is read once."""
    position, present = PollPosition(), 0
    begun: dict[int, int] = {}
    committed: set[int] = set()
    read: set[int] = set()
    ends = [*[("commit", each) for each in range(6)], ("poll", 0)]
    for clock, (what, which) in enumerate([*steps, *ends], 1):
        if what == "begin":
            begun.setdefault(which, clock)
        elif what == "commit" and which in begun:
            committed.add(begun.pop(which))
        elif what == "restart":
            position = PollPosition()
        elif what == "poll":
            shown = {version for version in committed if version >= present}
            read |= shown
            there = opened(*map(str, begun.values()))
            present = poll(position, there, present, max([present, *shown]))
    assert read == committed

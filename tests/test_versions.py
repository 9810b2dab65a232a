"""Which change wins: the version guard and the verdicts as tables, and the archive that does not depend on order.

Not here: what becomes of the events behind the changes (``test_drain.py``, ``test_drain_wakes.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine

from sync_orchestrator.core.archive.merge import merge, read_sequence, stamp_of
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.values.mapping import digest
from sync_orchestrator.core.version_guard import (
    TOMBSTONE_HASH,
    Action,
    Change,
    Guard,
    RecordState,
    Rules,
    Stamp,
    Verdict,
    decide,
    guard,
)

LOW, HIGH = b"\x01" * 16, b"\x02" * 16
NEWER, SAME, OLDER, TIE, BEHIND = Guard.NEWER, Guard.SAME, Guard.OLDER, Guard.TIE, Guard.BEHIND
GONE = TOMBSTONE_HASH


def stamp(
    version: int, content: bytes = LOW, *, read_sequence: int = 0, epoch: int = 0, seq: int = 0, inferred: bool = False
) -> Stamp:
    return Stamp(epoch, version, read_sequence, content, seq, inferred)


@pytest.mark.parametrize("can_read", [True, False])
@pytest.mark.parametrize(
    ("present", "offered", "expected"),
    [
        (None, stamp(-5), NEWER),
        # versions
        (stamp(3), stamp(4), NEWER),
        (stamp(3), stamp(2), OLDER),
        (stamp(3), stamp(4, TOMBSTONE_HASH), NEWER),
        (stamp(3, TOMBSTONE_HASH), stamp(2), OLDER),
        (stamp(3, TOMBSTONE_HASH), stamp(4), NEWER),
        # epochs rank before versions
        (stamp(9), stamp(1, epoch=1), NEWER),
        (stamp(1, epoch=1), stamp(9), OLDER),
        (stamp(9, read_sequence=7), stamp(1, epoch=1), NEWER),
        # versions rank before read sequences
        (stamp(3, read_sequence=7), stamp(4), NEWER),
        (stamp(4), stamp(3, read_sequence=7), OLDER),  # of the same content
        # equal version, equal content
        (stamp(3), stamp(3), SAME),
        (stamp(3, read_sequence=7), stamp(3), SAME),
        (stamp(3, TOMBSTONE_HASH), stamp(3, TOMBSTONE_HASH), SAME),
        # equal version, other content: of a read and an event, or of two reads, the later one
        (stamp(3, HIGH), stamp(3, LOW, read_sequence=7), NEWER),
        (stamp(3, TOMBSTONE_HASH), stamp(3, LOW, read_sequence=7), NEWER),
        (stamp(3, HIGH, seq=8), stamp(3, LOW, read_sequence=7), OLDER),
        (stamp(3, HIGH, read_sequence=7), stamp(3, LOW, read_sequence=8), NEWER),
        (stamp(3, LOW, read_sequence=8), stamp(3, HIGH, read_sequence=7), OLDER),
        # of one read (a row listed twice) the content decides
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, read_sequence=7), NEWER),
        (stamp(3, HIGH, read_sequence=7), stamp(3, LOW, read_sequence=7), OLDER),
    ],
)
def test_the_guard_without_ties(present: Stamp | None, offered: Stamp, expected: Guard, can_read: bool) -> None:
    assert guard(present, offered, can_read=can_read) is expected


@pytest.mark.parametrize(
    ("present", "offered", "can_read", "expected"),
    [
        (stamp(3, LOW), stamp(3, HIGH), True, TIE),
        (stamp(3, HIGH, seq=9), stamp(3, LOW, seq=8), True, TIE),
        (stamp(3, LOW), stamp(3, GONE), True, TIE),
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, seq=8), True, TIE),  # read once, and told something else since
        (stamp(3, LOW, read_sequence=7), stamp(3, GONE, seq=8), True, TIE),
        (stamp(3, HIGH, seq=1), stamp(3, LOW, seq=2), False, NEWER),
        (stamp(3, LOW, seq=2), stamp(3, HIGH, seq=1), False, OLDER),
        (stamp(3, HIGH, seq=1), stamp(3, GONE, seq=2), False, NEWER),
        (stamp(3, GONE, seq=1), stamp(3, HIGH, seq=2), False, NEWER),
        (stamp(3, GONE, seq=2), stamp(3, HIGH, seq=1), False, OLDER),
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, seq=8), False, NEWER),
        (stamp(3, LOW, read_sequence=7), stamp(3, HIGH, seq=6), False, OLDER),
    ],
)
def test_rule_30_a_tie_is_read_again_where_it_can_be_and_else_decided_by_arrival(
    present: Stamp, offered: Stamp, can_read: bool, expected: Guard
) -> None:
    assert guard(present, offered, can_read=can_read) is expected


@pytest.mark.parametrize("can_read", [True, False])
@pytest.mark.parametrize(
    ("present", "offered", "settled", "expected"),
    [
        (stamp(4, HIGH, seq=1), stamp(3, LOW, read_sequence=7), False, BEHIND),
        (stamp(4, HIGH, seq=1), stamp(3, LOW, read_sequence=7), True, NEWER),
        (stamp(4, HIGH, read_sequence=6), stamp(3, GONE, read_sequence=7), True, NEWER),
        (stamp(4, GONE, seq=1), stamp(3, LOW, read_sequence=7), False, BEHIND),
        (stamp(4, HIGH, seq=1), stamp(3, HIGH, read_sequence=7), True, OLDER),  # the same content
        (stamp(4, HIGH, seq=8), stamp(3, LOW, read_sequence=7), True, OLDER),  # the read began before the event came
        (stamp(4, HIGH, read_sequence=8), stamp(3, LOW, read_sequence=7), True, OLDER),
        (stamp(4, HIGH, seq=1), stamp(3, LOW, seq=7), True, OLDER),  # an event that comes late
        (stamp(4, HIGH, seq=1, epoch=1), stamp(3, LOW, read_sequence=7), True, OLDER),
    ],
)
def test_rule_32_an_older_version_that_a_read_shows_is_the_truth_once_no_replica_can_lag(
    present: Stamp, offered: Stamp, settled: bool, expected: Guard, can_read: bool
) -> None:
    assert guard(present, offered, can_read=can_read, settled=settled) is expected


@pytest.mark.parametrize(
    ("offered", "can_read", "expected"),
    [
        (stamp(5, LOW, read_sequence=8), True, NEWER),
        (stamp(4, LOW, read_sequence=8), True, NEWER),  # whatever its version
        (stamp(4, LOW, read_sequence=6), True, OLDER),
        (stamp(5, LOW, seq=8), True, TIE),
        (stamp(4, LOW, seq=8), True, TIE),
        (stamp(6, LOW, seq=8), True, NEWER),
        (stamp(5, LOW, seq=8), False, NEWER),
        (stamp(5, LOW, seq=6), False, OLDER),
        (stamp(4, LOW, seq=8), False, OLDER),
        (stamp(5, GONE, seq=8), True, SAME),
    ],
)
def test_rule_21_what_finds_a_record_again_wins_over_an_inferred_tombstone(
    offered: Stamp, can_read: bool, expected: Guard
) -> None:
    assert guard(stamp(5, GONE, read_sequence=7, inferred=True), offered, can_read=can_read) is expected


READABLE = frozenset({"shop", "stock"})
OnMissing = Literal["wait", "fetch", "upsert"]


def rules(on_missing: OnMissing = "wait", readable: frozenset[str] = READABLE) -> Rules:
    return Rules("shop", frozenset({"stock"}), on_missing, readable)


def change(
    part: str,
    action: Action,
    version: int,
    content: bytes = LOW,
    *,
    read_sequence: int = 0,
    epoch: int = 0,
    group: str | None = "A",
    key: str = "k",
    seq: int = 0,
) -> Change:
    """A change; its data tells its content apart."""
    gone = action == "delete"
    content = TOMBSTONE_HASH if gone else content
    return Change(
        key,
        part,
        action,
        stamp(version, content, read_sequence=read_sequence, epoch=epoch, seq=seq),
        None if gone else {"content": content.hex()},
        group if part == "shop" else None,
    )


def record(*changes: Change, by: Rules | None = None) -> RecordState:
    """A record to which these were merged before."""
    state = RecordState()
    for each in changes:
        assert decide(state, each, by or rules()) in (Verdict.ACCEPTED, Verdict.KEPT)
    return state


CREATED = (change("shop", "create", 3), change("stock", "create", 3))
DELETED = (*CREATED, change("shop", "delete", 5))


@pytest.mark.parametrize(
    ("before", "offered", "verdict"),
    [
        # a record that is not here
        ((), change("shop", "create", 1), Verdict.ACCEPTED),
        ((), change("shop", "delete", 1), Verdict.ACCEPTED),
        ((), change("shop", "update", 1), Verdict.MISSING),
        ((), change("stock", "create", 1), Verdict.MISSING),
        ((), change("stock", "update", 1), Verdict.MISSING),
        ((), change("stock", "delete", 1), Verdict.ACCEPTED),
        # a read says what is: it needs no create before it
        ((), change("shop", "update", 1, read_sequence=7), Verdict.ACCEPTED),
        ((), change("stock", "update", 1, read_sequence=7), Verdict.ACCEPTED),
        # another source's part does not make the record
        ((change("stock", "update", 1, read_sequence=7),), change("stock", "update", 2), Verdict.MISSING),
        ((change("stock", "delete", 1),), change("shop", "update", 2), Verdict.MISSING),
        # a record that is here: each part has versions of its own
        (CREATED, change("shop", "update", 4), Verdict.ACCEPTED),
        (CREATED, change("shop", "create", 4), Verdict.ACCEPTED),
        (CREATED, change("shop", "update", 2), Verdict.SUPERSEDED),
        (CREATED, change("shop", "delete", 2), Verdict.SUPERSEDED),
        (CREATED, change("shop", "create", 3), Verdict.DUPLICATE),
        (CREATED, change("shop", "update", 3), Verdict.DUPLICATE),
        ((*CREATED, change("shop", "update", 9)), change("stock", "update", 4), Verdict.ACCEPTED),
        ((*CREATED, change("stock", "update", 9)), change("shop", "update", 4), Verdict.ACCEPTED),
        (CREATED, change("price", "create", 1), Verdict.ACCEPTED),
        # ties
        (CREATED, change("shop", "update", 3, HIGH), Verdict.TIE),
        (CREATED, change("shop", "delete", 3), Verdict.TIE),
        (CREATED, change("shop", "update", 3, HIGH, read_sequence=7), Verdict.ACCEPTED),
        (CREATED, change("price", "create", 3, HIGH), Verdict.ACCEPTED),
        # a source restored from a backup counts anew
        (CREATED, change("shop", "update", 1, epoch=1), Verdict.ACCEPTED),
        ((*CREATED, change("shop", "update", 1, epoch=1)), change("shop", "update", 9), Verdict.SUPERSEDED),
        # a tombstone
        (DELETED, change("shop", "delete", 5), Verdict.DUPLICATE),
        (DELETED, change("shop", "delete", 6), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 4), Verdict.SUPERSEDED),
        (DELETED, change("shop", "update", 6), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 6), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 5), Verdict.TIE),
        (DELETED, change("shop", "create", 5, read_sequence=7), Verdict.ACCEPTED),
        (DELETED, change("stock", "update", 99), Verdict.KEPT),
        (DELETED, change("stock", "update", 99, read_sequence=7), Verdict.KEPT),
        (DELETED, change("stock", "delete", 99), Verdict.KEPT),
        (DELETED, change("price", "create", 1), Verdict.KEPT),
        (DELETED, change("stock", "update", 2), Verdict.SUPERSEDED),
        (DELETED, change("stock", "update", 3), Verdict.DUPLICATE),
        # the owner's part needs a business group, from itself or from before
        ((), change("shop", "create", 1, group=None), Verdict.NO_GROUP),
        ((), change("shop", "update", 1, read_sequence=7, group=None), Verdict.NO_GROUP),
        ((), change("shop", "delete", 1, group=None), Verdict.ACCEPTED),
        (CREATED, change("shop", "update", 4, group=None), Verdict.ACCEPTED),
        (DELETED, change("shop", "create", 6, group=None), Verdict.ACCEPTED),
        ((change("shop", "delete", 1, group=None),), change("shop", "create", 2, group=None), Verdict.NO_GROUP),
        ((change("shop", "delete", 3, group=None),), change("shop", "create", 2, group=None), Verdict.SUPERSEDED),
    ],
)
def test_what_becomes_of_a_change(before: Sequence[Change], offered: Change, verdict: Verdict) -> None:
    assert decide(record(*before), offered, rules()) is verdict


@pytest.mark.parametrize(
    ("offered", "waits", "fetches", "upserts"),
    [
        (change("shop", "update", 1), Verdict.MISSING, Verdict.FETCH, Verdict.ACCEPTED),
        (change("shop", "update", 1, group=None), Verdict.MISSING, Verdict.FETCH, Verdict.NO_GROUP),
        (change("stock", "create", 1), Verdict.MISSING, Verdict.FETCH, Verdict.ACCEPTED),
        (change("stock", "update", 1), Verdict.MISSING, Verdict.FETCH, Verdict.ACCEPTED),
        (change("shop", "create", 1), Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED),
        (change("stock", "delete", 1), Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED),
        (change("shop", "update", 1, read_sequence=7), Verdict.ACCEPTED, Verdict.ACCEPTED, Verdict.ACCEPTED),
    ],
)
def test_on_missing_says_what_happens_to_a_change_whose_record_is_not_here(
    offered: Change, waits: Verdict, fetches: Verdict, upserts: Verdict
) -> None:
    verdicts = [decide(RecordState(), offered, rules(on_missing)) for on_missing in ("wait", "fetch", "upsert")]
    assert verdicts == [waits, fetches, upserts]


@pytest.mark.parametrize(
    "offered",
    [
        change("shop", "update", 2),
        change("shop", "update", 3),
        change("shop", "update", 3, HIGH),
    ],
)
@pytest.mark.parametrize("on_missing", ["wait", "fetch", "upsert"])
def test_a_change_that_is_not_accepted_changes_nothing(offered: Change, on_missing: OnMissing) -> None:
    state, untouched = record(*CREATED), record(*CREATED)
    assert decide(state, offered, rules(on_missing)) not in (Verdict.ACCEPTED, Verdict.KEPT)
    assert state == untouched


@pytest.mark.parametrize(("seq", "verdict"), [(9, Verdict.ACCEPTED), (3, Verdict.SUPERSEDED)])
def test_a_tie_of_a_source_that_cannot_be_read_is_settled_by_arrival(seq: int, verdict: Verdict) -> None:
    state = record(change("shop", "create", 3, seq=5), change("stock", "create", 3, seq=6))
    offered = change("shop", "update", 3, HIGH, seq=seq)
    assert decide(state, offered, rules(readable=frozenset({"stock"}))) is verdict


def test_a_state_that_is_told_again_later_is_the_later_one() -> None:
    """A, then A once more; B came in between and is late: it is not the last word."""
    blind = rules(readable=frozenset())
    state = record(change("shop", "create", 3, LOW, seq=1), by=blind)
    assert decide(state, change("shop", "update", 3, LOW, seq=3), blind) is Verdict.DUPLICATE
    assert decide(state, change("shop", "update", 3, HIGH, seq=2), blind) is Verdict.SUPERSEDED


def test_an_owners_deletion_leaves_a_tombstone_that_keeps_version_group_and_parts() -> None:
    state = record(*DELETED)
    assert (state.deleted, state.group, state.revision, state.ready) == (True, "A", 3, True)
    assert state.parts == {"shop": stamp(5, TOMBSTONE_HASH), "stock": stamp(3)}


def test_another_sources_deletion_empties_its_part_alone() -> None:
    state = record(*CREATED, change("stock", "delete", 4))
    assert (state.deleted, state.group, state.revision, state.ready) == (False, "A", 3, True)
    assert state.parts == {"shop": stamp(3), "stock": stamp(4, TOMBSTONE_HASH)}


def test_parts_kept_under_a_tombstone_revive_nothing_and_count_when_the_record_is_made_again() -> None:
    state = record(change("shop", "create", 3), change("shop", "delete", 5))
    assert decide(state, change("stock", "create", 4), rules()) is Verdict.KEPT
    assert (state.deleted, state.revision) == (True, 2)
    assert decide(state, change("shop", "create", 6, group="B"), rules()) is Verdict.ACCEPTED
    assert (state.deleted, state.revision, state.group, state.ready) == (False, 3, "B", True)
    assert state.parts["stock"] == stamp(4)


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ([change("shop", "create", 1)], False),
        ([change("shop", "create", 1), change("price", "create", 1)], False),
        ([change("shop", "create", 1), change("stock", "create", 1)], True),
        ([change("stock", "update", 1, read_sequence=7)], False),
        ([change("stock", "update", 1, read_sequence=7), change("shop", "create", 1)], True),
        ([change("stock", "delete", 1), change("shop", "create", 1)], True),
        ([change("shop", "delete", 1)], True),
        ([change("shop", "delete", 1), change("shop", "create", 2)], False),
    ],
)
def test_a_record_is_ready_with_all_required_parts_or_as_a_tombstone(changes: list[Change], ready: bool) -> None:
    assert record(*changes).ready is ready


def test_a_change_that_moves_the_record_sets_its_group() -> None:
    assert record(*CREATED, change("shop", "update", 4, group="B")).group == "B"


# The archive ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Archived:
    """What the archive says of a record; ``group`` of a live one only."""

    deleted: bool
    ready: bool
    group: str | None
    parts: dict[str, tuple[Stamp, Any]]


def archived(connection: Connection) -> dict[str, Archived]:
    parts: dict[str, dict[str, tuple[Stamp, Any]]] = {}
    for row in run(connection, "SELECT * FROM sync.parts"):
        found = stamp_of(row)
        assert row.deleted == (found.content_hash == TOMBSTONE_HASH)
        parts.setdefault(row.key, {})[row.part] = found, row.data
    records = run(connection, "SELECT key, group_key, deleted, ready FROM sync.records")
    return {
        row.key: Archived(row.deleted, row.ready, None if row.deleted else row.group_key, parts.pop(row.key))
        for row in records
    } | {key: Archived(False, False, "no record", orphans) for key, orphans in parts.items()}


def rank(each: Change) -> tuple[int, int, int, bytes]:
    return each.stamp.epoch, each.stamp.version, each.stamp.order, each.stamp.content_hash


def expected(changes: Iterable[Change], by: Rules) -> dict[str, Archived]:
    """What the archive has to say, from the set of changes alone."""
    keys: dict[str, list[Change]] = {}
    for each in changes:
        keys.setdefault(each.key, []).append(each)
    return {key: end for key, of_key in keys.items() if (end := _expected_of(of_key, by)) is not None}


def _expected_of(changes: list[Change], by: Rules) -> Archived | None:
    def brings(each: Change) -> bool:
        return each.part == by.owner and (each.action != "update" or each.stamp.read_sequence > 0)

    here = by.on_missing == "upsert" or any(brings(each) for each in changes)
    counting = [each for each in changes if here or each.stamp.read_sequence > 0 or each.deleted]
    newest = {each.part: each for each in sorted(counting, key=rank)}
    if not newest:
        return None
    owner = newest.get(by.owner)
    deleted = owner is not None and owner.deleted
    ready = owner is not None and (deleted or by.required <= newest.keys())
    group = owner.group if owner is not None and not deleted else None
    return Archived(deleted, ready, group, {part: (each.stamp, each.data or {}) for part, each in newest.items()})


def merge_all(connection: Connection, batches: Iterable[Sequence[Change]], by: Rules) -> None:
    """Merges batch by batch; what misses its record is offered again until it settles, as a drain would."""
    missing: list[Change] = []
    highest: dict[tuple[str, str], tuple[int, int]] = {}
    for batch in [*batches, *([[]] * 2)]:
        ends = merge(connection, "item", [*batch, *missing], by)
        missing = [end.change for end in ends if end.verdict is Verdict.MISSING]
        assert {end.verdict for end in ends} <= {
            Verdict.ACCEPTED,
            Verdict.KEPT,
            Verdict.DUPLICATE,
            Verdict.SUPERSEDED,
            Verdict.MISSING,
            Verdict.BEHIND,
        }
        for row in run(connection, "SELECT key, part, epoch, version FROM sync.parts"):
            now = (row.epoch, row.version)
            assert now >= highest.get((row.key, row.part), now), "a version went down"
            highest[row.key, row.part] = now


@st.composite
def some_changes(draw: st.DrawFn) -> Change:
    part = draw(st.sampled_from(["shop", "shop", "stock", "price"]))
    action: Action = draw(st.sampled_from(["create", "update", "delete"]))
    number = draw(st.sampled_from([0, 0, 70, 80]))
    return change(
        part,
        action,
        draw(st.integers(1, 4)),
        digest([number, draw(st.integers(0, 1))]),
        read_sequence=number,
        seq=0 if number else 10 * draw(st.integers(1, 15)) + 1,
        epoch=draw(st.sampled_from([0, 0, 0, 1])),
        group=draw(st.sampled_from("AB")),
        key=draw(st.sampled_from(["a", "a", "b"])),
    )


def place(each: Change) -> tuple[str, str, int, int]:
    return each.key, each.part, each.stamp.epoch, each.stamp.version


def content(each: Change) -> tuple[object, ...]:
    return *place(each), each.stamp.content_hash


def told(each: Change) -> tuple[object, ...]:
    return *place(each), each.stamp.read_sequence, each.stamp.content_hash if each.stamp.read_sequence else b""


def arrival(each: Change) -> tuple[object, ...]:
    """No two events arrive at once; reads of one listing share a number."""
    return (each.stamp.seq,) if each.stamp.seq else content(each)


@st.composite
def histories(draw: st.DrawFn) -> tuple[Rules, list[list[Change]]]:
    """Changes in any order, some of them twice, in batches.

    Where the sources can be read, the events of one version tell one content: ties are settled outside the archive.
    Nothing is both told and read (``test_a_read_that_confirms_an_event_outranks_later_events``).
    """
    readable = draw(st.booleans())
    changes = draw(
        st.lists(
            some_changes(),
            min_size=2,
            max_size=12,
            unique_by=(content, told, arrival) if readable else (content, arrival),
        )
    )
    if readable:
        read = {place(each) for each in changes if each.stamp.is_read}
        changes = [each for each in changes if each.stamp.is_read or place(each) not in read]
    order = draw(st.permutations(changes + draw(st.lists(st.sampled_from(changes), max_size=3))))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=4)))
    batches = [list(order[start:end]) for start, end in zip([0, *cuts], [*cuts, len(order)], strict=True)]
    return rules(draw(st.sampled_from(["wait", "upsert"])), READABLE if readable else frozenset()), batches


def archive_of(engine: Engine, by: Rules, *batches: Sequence[Change]) -> dict[str, Archived]:
    """What an empty archive holds after these batches; nothing of it stays."""
    with engine.connect() as connection:
        merge_all(connection, batches, by)
        return archived(connection)


@settings(
    max_examples=120,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(history=histories())
def test_the_archive_depends_on_the_set_of_changes_alone(
    engine: Engine, history: tuple[Rules, list[list[Change]]]
) -> None:
    by, batches = history
    assert archive_of(engine, by, *batches) == expected([each for batch in batches for each in batch], by)


def test_a_change_that_misses_its_record_leaves_no_trace(engine: Engine) -> None:
    assert archive_of(engine, rules(), [change("shop", "update", 1), change("stock", "create", 1)]) == {}


def test_an_update_does_not_miss_the_record_that_comes_in_the_same_batch(engine: Engine) -> None:
    """A record made and changed within one tick of its source's clock."""
    batch = [change("shop", "update", 3, LOW), change("shop", "create", 3, HIGH)]
    with engine.connect() as connection:
        assert Verdict.MISSING not in {end.verdict for end in merge(connection, "item", batch, rules())}


def test_later_reads_get_larger_tickets(engine: Engine) -> None:
    with engine.begin() as one, engine.begin() as other:
        assert 0 < read_sequence(one) < read_sequence(other) < read_sequence(one)


def test_a_read_that_confirms_an_event_outranks_later_events(engine: Engine) -> None:
    """Rule 6: a part read from the source outranks events of the same version, in whatever order they come."""
    event, read, late = (
        change("shop", "create", 3, LOW, seq=1),
        change("shop", "update", 3, LOW, read_sequence=7),
        change("shop", "update", 3, HIGH, seq=6),
    )
    listed_only = rules(readable=frozenset())
    assert archive_of(engine, listed_only, [event], [read], [late]) == archive_of(
        engine, listed_only, [read], [event], [late]
    )


def test_a_read_that_confirms_an_earlier_read_writes_nothing(engine: Engine) -> None:
    """So a full sync of unchanged data writes nothing. The price: a source that changes a record and back without
    stepping its version, and is read thrice meanwhile, may leave what was read second, until it is read again."""
    first, slow, last = (
        change("shop", "update", 3, content, read_sequence=number)
        for number, content in ((7, LOW), (8, HIGH), (9, LOW))
    )
    assert archive_of(engine, rules(), [first], [slow], [last])["k"].parts["shop"][0] == last.stamp
    assert archive_of(engine, rules(), [first], [last])["k"].parts["shop"][0] == first.stamp


def test_a_change_that_names_no_group_leaves_its_record_where_it_is(engine: Engine) -> None:
    """Where its source can be read it is read instead (``test_order_and_time.py``), since what was there before
    depends on the order of arrival."""
    first, last = change("shop", "create", 1, group="A"), change("shop", "update", 3, group=None)
    assert archive_of(engine, rules(), [first], [last])["k"].group == "A"

"""The version guard as the statements of the archive apply it: they agree with the decision in Python."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine
from version_cases import HIGH, LOW, READABLE, Archived, change, content, expected, place, rules

from sync_orchestrator.core.archive.archived_records import stamp_of
from sync_orchestrator.core.archive.merge import merge
from sync_orchestrator.core.archive.read_sequence import next_read_sequence
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.core.version_guard import TOMBSTONE_HASH, Action, Change, Rules, Stamp, Verdict


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
        compute_digest([number, draw(st.integers(0, 1))]),
        read_sequence=number,
        seq=0 if number else 10 * draw(st.integers(1, 15)) + 1,
        epoch=draw(st.sampled_from([0, 0, 0, 1])),
        group=draw(st.sampled_from("AB")),
        key=draw(st.sampled_from(["a", "a", "b"])),
    )


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
        assert 0 < next_read_sequence(one) < next_read_sequence(other) < next_read_sequence(one)


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

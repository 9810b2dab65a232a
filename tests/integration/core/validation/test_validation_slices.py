"""Large groups: a comparison in slices gives the result of one in memory, and its memory does not grow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import World

from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.validation import queries
from sync_orchestrator.core.validation.spill import ListedRow, Slices, pair_slices

ROWS = st.lists(
    st.tuples(st.none() | st.sampled_from("abcdefghij"), st.sampled_from(["1", "2"]), st.sampled_from([b"x", b"y"])),
    max_size=30,
)


def held(rows: list[ListedRow], at_once: int) -> Slices:
    made = Slices(at_once)
    for start in range(0, len(rows), 7):
        made.add(rows[start : start + 7])
    return made


@given(ours=ROWS, theirs=ROWS, at_once=st.integers(0, 40), theirs_at_once=st.integers(0, 40))
def test_each_row_is_in_one_slice_with_all_of_its_key_in_order(
    ours: list[ListedRow], theirs: list[ListedRow], at_once: int, theirs_at_once: int
) -> None:
    one, other = held(ours, at_once), held(theirs, theirs_at_once)
    found = list(pair_slices(one, other))
    assert (one.size, other.size) == (len(ours), len(theirs))
    for key in {row[0] for row in ours + theirs}:
        [pair] = [pair for pair in found if any(row[0] == key for side in pair for row in side)]
        assert [row for row in pair[0] if row[0] == key] == [row for row in ours if row[0] == key]
        assert [row for row in pair[1] if row[0] == key] == [row for row in theirs if row[0] == key]
    assert sum(len(mine) for mine, _ in found) == len(ours)
    assert sum(len(there) for _, there in found) == len(theirs)
    one.close()
    other.close()


def test_a_group_beyond_what_memory_may_hold_is_validated_as_any_other(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Slices.__init__, "__defaults__", (20,))
    world = make_world(entity={"validation": {"confirm_after": 0}})
    for number in range(100):
        world.put_record(f"k{number:03}", notify=False)
    world.run_full_sync()
    assert world.run_validation(full=True).verdict == "in_sync"
    ids = {world.read_record_row(f"k{number:03}").external_id: number for number in range(100)}
    lost, altered = (
        [name for name, number in ids.items() if number in (3, 50)],
        next(name for name, number in ids.items() if number == 77),
    )
    for name in lost:
        world.erp.store.pop(name)
    world.erp.store[altered] = {**world.erp.store[altered], "count": -1}
    world.erp.by_hand({"code": "stranger", "store": "A", "name": "by hand", "count": 0}, "A")
    result = world.run_validation(full=True)
    assert sorted((drift.key, drift.kind) for drift in result.drift) == [
        ("k003", "missing"),
        ("k050", "missing"),
        ("k077", "different"),
        ("stranger", "unmanaged"),
    ]
    assert (result.compared, result.expected) == (99, 100)


@pytest.mark.parametrize("name", ["SELECT_EXPECTED", "COUNT_EXPECTED"])
def test_one_group_is_read_by_its_indices_however_many_there_are(world: World, name: str) -> None:
    """Also where a group moves away: what belongs to it and what is still there are two indices."""
    with world.engine.begin() as connection:
        run(
            connection,
            """
            INSERT INTO sync.records (entity, key, group_key, revision, ready, applied_group, applied_digest)
            SELECT 'item', 'k' || n, 'G' || mod(n, 500), 1, true, 'G' || mod(n, 500), 'x'::bytea
            FROM generate_series(1, 20000) n
        """,
        )
        run(connection, "ANALYZE sync.records")
        plan = "\n".join(
            row[0]
            for row in run(
                connection,
                f"EXPLAIN {getattr(queries, name)}",
                entity="item",
                group="G7",
                lag=5,
                since="2026-01-01T00:00:00Z",
            )
        )
    assert "records_group" in plan
    assert "records_moving" in plan
    assert "Seq Scan" not in plan


def test_what_was_compared_leaves_no_file_behind(world: World) -> None:
    one = held([(f"k{number}", "1", b"x") for number in range(50)], 10)
    files = list(one._files)
    assert files
    one.close()
    assert all(file.closed for file in files)

"""The decoder of pgoutput: what is written is read, and no bytes make it fail in another way than it says."""

from __future__ import annotations

from contextlib import suppress
from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_orchestrator.adapters.sql.log_positions import format_lsn, parse_lsn
from sync_orchestrator.capture.pgoutput import (
    POSTGRES_EPOCH_MICROSECONDS,
    UNCHANGED,
    DecodeFailed,
    Relation,
    RelationColumn,
    Row,
    RowChange,
    TransactionBegin,
    TransactionEnd,
    TruncatedTables,
    decode_message,
)

OIDS = st.integers(0, 2**32 - 1)
ROWS = st.lists(st.one_of(st.binary(max_size=300), st.none(), st.just(UNCHANGED)), max_size=30).map(tuple)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


def write_row(row: Row) -> bytes:
    values = b""
    for value in row:
        values += b"n" if value is None else b"u" if value is UNCHANGED else b"t" + pack("!i", len(value)) + value
    return pack("!h", len(row)) + values


@given(OIDS, ROWS)
def test_inserts(oid: int, row: Row) -> None:
    data = b"I" + pack("!I", oid) + b"N" + write_row(row)
    assert decode_message(data) == RowChange("insert", oid, None, False, row)


@given(OIDS, ROWS, ROWS, st.sampled_from([b"K", b"O", b""]))
def test_updates_with_and_without_the_old_row(oid: int, old: Row, new: Row, kind: bytes) -> None:
    data = b"U" + pack("!I", oid) + (kind + write_row(old) if kind else b"") + b"N" + write_row(new)
    assert decode_message(data) == RowChange("update", oid, old if kind else None, kind == b"O", new)


@given(OIDS, ROWS, st.sampled_from([b"K", b"O"]))
def test_deletes(oid: int, old: Row, kind: bytes) -> None:
    data = b"D" + pack("!I", oid) + kind + write_row(old)
    assert decode_message(data) == RowChange("delete", oid, old, kind == b"O", None)


@given(NAMES, NAMES, st.lists(st.tuples(st.booleans(), NAMES, OIDS), max_size=20), st.sampled_from("dnfi"))
def test_tables(schema: str, name: str, columns: list[tuple[bool, str, int]], identity: str) -> None:
    data = b"R" + pack("!I", 7) + schema.encode() + b"\0" + name.encode() + b"\0" + identity.encode()
    data += pack("!h", len(columns))
    for is_key, column, oid in columns:
        data += bytes([is_key]) + column.encode() + b"\0" + pack("!Ii", oid, -1)
    expected = tuple(RelationColumn(column, oid, is_key) for is_key, column, oid in columns)
    assert decode_message(data) == Relation(7, schema, name, identity, expected)


def test_transactions_and_truncation() -> None:
    assert decode_message(b"B" + pack("!QqI", 5, 6, 7)) == TransactionBegin(5, 6 + POSTGRES_EPOCH_MICROSECONDS, 7)
    assert decode_message(b"C" + pack("!BQQq", 0, 5, 8, 6)) == TransactionEnd(5, 8, 6 + POSTGRES_EPOCH_MICROSECONDS)
    assert decode_message(b"T" + pack("!iBII", 2, 0, 11, 12)) == TruncatedTables((11, 12))


@pytest.mark.parametrize("data", [b"O\0\0", b"Y\0\0", b"M\0"])
def test_what_says_nothing_about_rows_is_passed_over(data: bytes) -> None:
    assert decode_message(data) is None


@given(st.binary(max_size=200))
def test_other_bytes_are_refused(data: bytes) -> None:
    with suppress(DecodeFailed):
        decode_message(data)


@given(OIDS, ROWS, st.data())
def test_a_message_that_is_cut_is_refused(oid: int, row: Row, data: st.DataObject) -> None:
    whole = b"D" + pack("!I", oid) + b"K" + write_row(row)
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    with pytest.raises(DecodeFailed):
        decode_message(cut)


@given(st.integers(0, 2**64 - 1))
def test_places_in_the_log_as_text(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn

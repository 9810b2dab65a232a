"""What the reader of a stream decides without a database: losses, visibility, pieces of transactions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sync_orchestrator.capture import assembly
from sync_orchestrator.capture.assembly import BatchAssembler, ChangeBatch
from sync_orchestrator.capture.changes import CapturedChange, combine
from sync_orchestrator.capture.pgoutput import DecodeFailed, RowChange, TransactionBegin, TransactionEnd
from sync_orchestrator.capture.postgres import ReplicationSlot, ServerIdentity, VisibleTransactions, find_loss
from sync_orchestrator.capture.postgres_log import PgoutputReader
from sync_orchestrator.capture.recording import StreamPosition, find_next_place

SERVER = ServerIdentity("701", 1, "shop", 0x2000, 180004)
IDENTITY = f"{SERVER.text}; publication 16400"
SLOT = ReplicationSlot("pgoutput", "shop", False, False, 0x1000)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, None),
        ({"slot": replace(SLOT, confirmed=0x800)}, None),
        ({"slot": None}, "the replication slot is gone"),
        ({"slot": replace(SLOT, is_lost=True)}, "removed the log that the replication slot needed"),
        ({"slot": replace(SLOT, confirmed=0x1001)}, "ahead of 0/1000"),
        ({"server": replace(SERVER, system="702")}, "another server or database"),
        ({"server": replace(SERVER, timeline=2)}, "another server or database"),
        ({"server": replace(SERVER, database="lab")}, "another server or database"),
        ({"server": replace(SERVER, end=0xFFF)}, "restored to an earlier state"),
        ({"server_identity": f"{SERVER.text}; publication 16401"}, "publication was dropped and made again"),
    ],
)
def test_each_loss_has_its_own_sentence(changes: dict[str, object], sentence: str | None) -> None:
    given = {"identity": IDENTITY, "position": "0/1000", "server": SERVER, "server_identity": IDENTITY, "slot": SLOT}
    found = find_loss(**{**given, **changes})  # type: ignore[arg-type]
    assert (found is None) if sentence is None else (found is not None and sentence in found)


@pytest.mark.parametrize(
    ("snapshot", "xid", "seen"),
    [
        ("100:105:101,103", 99, True),
        ("100:105:101,103", 101, False),
        ("100:105:101,103", 102, True),
        ("100:105:101,103", 105, False),
        ("100:105:", 104, True),
        (f"{2**32 + 5}:{2**32 + 9}:", 3, True),
        (f"{2**32 + 5}:{2**32 + 9}:{2**32 + 6}", 6, False),
        (f"{2**32 + 5}:{2**32 + 9}:", 2**32 - 1, True),
        (f"{2**32 - 5}:{2**32 - 1}:", 1, False),
    ],
)
def test_which_transactions_a_snapshot_sees(snapshot: str, xid: int, seen: bool) -> None:
    assert VisibleTransactions.parse(snapshot).sees(xid) is seen


class CountingReader:
    """Stands for ``ChangeReader``: each row is a change of a record of its own."""

    def describe_relation(self, relation: object) -> None: ...

    def find_tables(self, relations: Sequence[int]) -> list[object]:
        return []

    def find_missing_key(self, change: RowChange) -> None:
        return None

    def read_change(self, change: RowChange) -> list[CapturedChange]:
        assert change.new is not None
        return [CapturedChange("item", "shop", str(change.new[0]), "create", 1, {"n": 1})]


class Assembler(BatchAssembler):
    """An assembler that takes messages of ``pgoutput``."""

    def __init__(self, partial: str | None = None) -> None:
        super().__init__(partial)
        self.add = PgoutputReader(CountingReader(), self).add  # type: ignore[arg-type]


def run_transaction(assembler: Assembler, rows: int, lsn: int = 50) -> None:
    assembler.add(TransactionBegin(lsn, 0, 7))
    for number in range(rows):
        assembler.add(RowChange("insert", 1, None, False, (str(number).encode(),)))
    assembler.add(TransactionEnd(lsn, lsn + 1, 0))


def assembler_from(partial: str | None = None) -> Assembler:
    return Assembler(partial)


def test_a_transaction_is_divided_into_pieces_that_are_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "PIECE_ROWS", 10)
    first = assembler_from()
    run_transaction(first, 25)
    batch = first.take()
    assert [piece.place for piece in batch.pieces] == ["0/32/1", "0/32/2", "0/32/3"]
    assert (batch.position, batch.partial, batch.marks) == ("0/33", None, {7})
    again = assembler_from("0/32/2")
    run_transaction(again, 25)
    assert [(piece.place, len(piece.changes)) for piece in again.batch.pieces] == [("0/32/3", 5)]


def test_the_position_moves_with_the_last_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "PIECE_ROWS", 10)
    assembler = assembler_from()
    assembler.note_end("0/28")
    assembler.add(TransactionBegin(50, 0, 7))
    for number in range(15):
        assembler.add(RowChange("insert", 1, None, False, (str(number).encode(),)))
    assembler.note_end("0/3C")  # the server has sent more of its log, and not all of this transaction
    batch = assembler.take()
    assert (batch.position, batch.partial, len(batch.pieces)) == ("0/28", "0/32/1", 1)


def test_the_last_state_of_a_record_in_a_piece_is_recorded() -> None:
    assembler = assembler_from()
    assembler.add(TransactionBegin(50, 0, 7))
    for value in (b"a", b"b", b"a"):
        assembler.add(RowChange("insert", 1, None, False, (value,)))
    assembler.add(TransactionEnd(50, 51, 0))
    assert [change.key for change in assembler.batch.pieces[0].changes] == ["b'b'", "b'a'"]


def test_a_doubted_delete_outlives_what_leads_to_the_same_read() -> None:
    gone = CapturedChange("order", "shop", "7", "delete", None, is_doubted=True)
    line = CapturedChange("order", "shop", "7", "create", None)
    row = CapturedChange("order", "shop", "7", "create", 3, {"id": 7})
    assert combine(gone, line) is gone
    assert combine(line, gone) == gone
    assert combine(gone, row) is row
    assert combine(None, line) is line


def test_a_row_outside_of_a_transaction_is_refused() -> None:
    with pytest.raises(DecodeFailed):
        assembler_from().add(RowChange("insert", 1, None, False, (b"a",)))


def test_a_delete_without_a_version_has_that_of_the_row_that_was_there() -> None:
    row = CapturedChange("item", "shop", "7", "create", 3, {"id": 7})
    gone = CapturedChange("item", "shop", "7", "delete", None)
    assert combine(row, gone) == replace(gone, version=3)
    assert combine(row, replace(gone, version=4)).version == 4


@pytest.mark.parametrize(
    ("position", "partial", "batch", "expected"),
    [
        ("0/40", None, {"position": "0/30"}, ("0/40", None)),
        ("0/40", None, {"position": "0/30", "partial": "0/60/1"}, ("0/40", "0/60/1")),
        ("0/40", "0/60/1", {"position": "0/50"}, ("0/50", "0/60/1")),
        ("0/40", "0/60/1", {"position": "0/61"}, ("0/61", None)),
        ("0/40", "0/60/1", {"position": "", "partial": "0/60/2"}, ("0/40", "0/60/2")),
    ],
)
def test_a_position_never_goes_back(
    position: str, partial: str | None, batch: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    at = StreamPosition("shop", 1, 15, position, partial, "id")
    assert find_next_place(at, ChangeBatch(**batch)) == expected

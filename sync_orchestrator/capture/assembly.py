"""From the messages of a log to batches that are recorded at once. Pure.

A transaction is divided into pieces of equally many rows, so a large one needs little memory. Pieces are counted by
rows of the log alone, so a transaction that is sent again has the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sync_orchestrator.capture.changes import CapturedChange, ChangeReader, combine
from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.pgoutput import (
    DecodeFailed,
    PgMessage,
    Relation,
    RowChange,
    TransactionBegin,
    TransactionEnd,
    TruncatedTables,
    format_lsn,
)
from sync_orchestrator.core.intake.rejected_messages import Rejected

PIECE_ROWS = 1000
"""Rows of a transaction that are recorded at once."""


@dataclass(frozen=True, slots=True)
class TransactionPiece:
    """Changes of one transaction that belong together. ``place``: the transaction and the piece's number in it."""

    place: str
    committed_at: int
    changes: tuple[CapturedChange, ...]


@dataclass(slots=True)
class ChangeBatch:
    """What is recorded at once.

    Attributes:
        position: Where the stream goes on once this is recorded; 0 where it does not move.
        partial: The last piece, where more of its transaction follows.
        xids: The transactions, which reads of parts must see before this is recorded.
    """

    pieces: list[TransactionPiece] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    truncated: list[CapturedTable] = field(default_factory=list)
    position: int = 0
    partial: str | None = None
    xids: set[int] = field(default_factory=set)
    size: int = 0

    @property
    def has_content(self) -> bool:
        """Whether there is more to record than a position."""
        return bool(self.pieces or self.rejected or self.truncated)


class BatchAssembler:
    """Gathers messages of a log until they are taken as a batch."""

    def __init__(self, reader: ChangeReader, partial: str | None = None) -> None:
        """``partial``: the last piece that was recorded of the transaction that is sent first."""
        self._reader = reader
        self._recorded = _parse_place(partial)
        self._batch = ChangeBatch()
        self._begin: TransactionBegin | None = None
        self._rows = 0
        self._piece_number = 0
        self._changes: dict[tuple[str, str, str], CapturedChange] = {}
        self._rejected: list[Rejected] = []
        self._truncated: list[CapturedTable] = []

    @property
    def batch(self) -> ChangeBatch:
        """What has been gathered; the piece that is not whole yet is not in it."""
        return self._batch

    @property
    def is_full(self) -> bool:
        """Whether it is time to record what has been gathered."""
        return self._batch.size >= PIECE_ROWS

    @property
    def is_within_transaction(self) -> bool:
        """Whether a transaction has begun and not ended."""
        return self._begin is not None

    def take(self) -> ChangeBatch:
        """Returns what has been gathered, and begins anew."""
        batch, self._batch = self._batch, ChangeBatch()
        return batch

    def note_end(self, position: int) -> None:
        """The server has sent all before a position."""
        if self._begin is None:
            self._batch.position = max(self._batch.position, position)

    def add(self, message: PgMessage) -> None:
        """Takes a message in.

        Raises:
            DecodeFailed: It cannot come here.
        """
        if isinstance(message, RowChange):
            self._require_transaction()
            self._add_row(message)
        elif isinstance(message, Relation):
            self._reader.describe_relation(message)
        elif isinstance(message, TransactionBegin):
            self._begin, self._rows, self._piece_number = message, 0, 0
        elif isinstance(message, TransactionEnd):
            self._require_transaction()
            self._end_piece(is_last=True)
            self._batch.position = message.end_lsn
            self._begin = None
        elif isinstance(message, TruncatedTables):
            self._truncated += self._reader.find_tables(message.relations)

    def _add_row(self, change: RowChange) -> None:
        for found in self._reader.read_change(change):
            if isinstance(found, Rejected):
                self._rejected.append(found)
            else:
                self._changes[found.place] = combine(self._changes.pop(found.place, None), found)
        self._rows += 1
        self._batch.size += 1
        if self._rows % PIECE_ROWS == 0:
            self._end_piece(is_last=False)

    def _end_piece(self, *, is_last: bool) -> None:
        begin = self._begin
        assert begin is not None
        self._piece_number += 1
        changes, rejected, truncated = tuple(self._changes.values()), self._rejected, self._truncated
        self._changes, self._rejected, self._truncated = {}, [], []
        is_new = begin.lsn != self._recorded[0] or self._piece_number > self._recorded[1]
        place = f"{format_lsn(begin.lsn)}/{self._piece_number}"
        if is_new and (changes or rejected or truncated):
            self._batch.xids.add(begin.xid)
            self._batch.rejected += rejected
            self._batch.truncated += truncated
            if changes:
                self._batch.pieces.append(TransactionPiece(place, begin.committed_at, changes))
        self._batch.partial = None if is_last else place if is_new else self._batch.partial

    def _require_transaction(self) -> None:
        if self._begin is None:
            raise DecodeFailed("a change outside of a transaction")


def _parse_place(place: str | None) -> tuple[int, int]:
    if place is None:
        return 0, 0
    high, low, number = place.split("/")
    return int(high, 16) << 32 | int(low, 16), int(number)

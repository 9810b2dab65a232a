"""From the transactions of a log to batches that are recorded at once, whatever database wrote them. Pure.

A transaction is divided into pieces of equally many rows, so a large one needs little memory. Pieces are counted by
rows of the log alone, so a transaction that is sent again has the same ones.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from sync_orchestrator.capture.changes import CapturedChange, combine
from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.positions import find_later
from sync_orchestrator.core.intake.rejected_messages import Rejected

PIECE_ROWS = 1000
"""Rows of a transaction that are recorded at once."""


@dataclass(frozen=True, slots=True)
class TransactionPiece:
    """Changes of one transaction that belong together. ``place``: the transaction and the piece's number in it."""

    place: str
    changes: tuple[CapturedChange, ...]


@dataclass(frozen=True, slots=True)
class MissingChanges:
    """Changes that the log does not tell: ``reason`` is a sentence, ``tables`` are those that they may be of."""

    reason: str
    tables: tuple[CapturedTable, ...]


@dataclass(slots=True)
class ChangeBatch:
    """What is recorded at once.

    Attributes:
        position: Where the stream goes on once this is recorded; empty where it does not move.
        partial: The last piece, where more of its transaction follows.
        marks: The transactions, which reads of parts must see before this is recorded, as the source knows them.
    """

    pieces: list[TransactionPiece] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    truncated: list[CapturedTable] = field(default_factory=list)
    missing: list[MissingChanges] = field(default_factory=list)
    position: str = ""
    partial: str | None = None
    marks: set[Hashable] = field(default_factory=set)
    size: int = 0

    @property
    def has_content(self) -> bool:
        """Whether there is more to record than a position."""
        return bool(self.pieces or self.rejected or self.truncated or self.missing)


class BatchAssembler:
    """Gathers the transactions of a log until they are taken as a batch."""

    def __init__(self, partial: str | None = None) -> None:
        """``partial``: the last piece that was recorded of the transaction that is sent first."""
        self._recorded = _parse_place(partial)
        self._batch = ChangeBatch()
        self._transaction: str | None = None
        self._mark: Hashable = None
        self._rows = 0
        self._piece_number = 0
        self._changes: dict[tuple[str, str, str], CapturedChange] = {}
        self._rejected: list[Rejected] = []
        self._truncated: list[CapturedTable] = []
        self._missing: list[MissingChanges] = []

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
        return self._transaction is not None

    def take(self) -> ChangeBatch:
        """Returns what has been gathered, and begins anew."""
        batch, self._batch = self._batch, ChangeBatch()
        return batch

    def note_end(self, position: str) -> None:
        """The server has sent all before a position."""
        if self._transaction is None:
            self._batch.position = find_later(self._batch.position, position)

    def begin_transaction(self, place: str, mark: Hashable) -> None:
        """A transaction begins.

        Args:
            place: What tells it from all other transactions of this log.
            mark: By which the source says whether reads see it.
        """
        self._transaction, self._mark = place, mark
        self._rows, self._piece_number = 0, 0

    def set_mark(self, mark: Hashable) -> None:
        """The mark of the open transaction, where it is known only as its rows come."""
        self._mark = mark

    def add_row(self, found: Iterable[CapturedChange | Rejected]) -> None:
        """Takes in what a row of the open transaction says."""
        for each in found:
            if isinstance(each, Rejected):
                self._rejected.append(each)
            else:
                self._changes[each.place] = combine(self._changes.pop(each.place, None), each)
        self._rows += 1
        self._batch.size += 1
        if self._rows % PIECE_ROWS == 0:
            self._end_piece(is_last=False)

    def note_truncated(self, tables: Iterable[CapturedTable]) -> None:
        """Tables were emptied within the open transaction."""
        self._truncated += tables

    def note_missing(self, missing: MissingChanges) -> None:
        """Changes of the open transaction are not in the log."""
        if missing not in self._missing:
            self._missing.append(missing)

    def end_transaction(self, position: str) -> None:
        """The open transaction ends; ``position``: where the next one may begin."""
        self._end_piece(is_last=True)
        self._batch.position = position
        self._transaction = None

    def _end_piece(self, *, is_last: bool) -> None:
        transaction = self._transaction
        assert transaction is not None
        self._piece_number += 1
        changes, rejected = tuple(self._changes.values()), self._rejected
        truncated, missing = self._truncated, self._missing
        self._changes, self._rejected, self._truncated, self._missing = {}, [], [], []
        is_new = transaction != self._recorded[0] or self._piece_number > self._recorded[1]
        place = f"{transaction}/{self._piece_number}"
        if is_new and (changes or rejected or truncated or missing):
            self._batch.marks.add(self._mark)
            self._batch.rejected += rejected
            self._batch.truncated += truncated
            self._batch.missing += missing
            if changes:
                self._batch.pieces.append(TransactionPiece(place, changes))
        self._batch.partial = None if is_last else place if is_new else self._batch.partial


def _parse_place(place: str | None) -> tuple[str, int]:
    """The transaction of a piece, and the piece's number in it."""
    if place is None:
        return "", 0
    transaction, _, number = place.rpartition("/")
    return transaction, int(number)

"""Keeps the rows of a business group by slices: few of them in memory, many in temporary files.

A slice has all rows of its keys, so two sides that are split alike can be compared slice by slice, in memory that does
not grow with the group.
"""

from __future__ import annotations

import marshal
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO

ListedRow = tuple[str | None, str | None, bytes | None]
"""Key, id at the third party, digest of the mapped fields."""

MAX_ROWS_IN_MEMORY = 50_000
"""The rows of one side in memory. Above that, a slice of a group of three million has about as many."""

_SLICES = 64


class Slices:
    """The rows of one side of a comparison. To be closed."""

    def __init__(self, at_once: int = MAX_ROWS_IN_MEMORY) -> None:
        self._at_once = at_once
        self._held: list[ListedRow] = []
        self._files: list[IO[bytes]] = []
        self.size = 0

    def add(self, rows: Sequence[ListedRow]) -> None:
        """Takes more rows, in any order."""
        self.size += len(rows)
        self._held += rows
        if len(self._held) > self._at_once:
            self.spill_rows()

    @property
    def is_split(self) -> bool:
        """Whether it is in more than one slice."""
        return bool(self._files)

    def spill_rows(self) -> None:
        """Moves what is in memory into files, a slice each; slices are the same ones on both sides in one process."""
        if not self._files:
            self._files = [tempfile.TemporaryFile() for _ in range(_SLICES)]  # noqa: SIM115 (closed by ``close``)
        slices: list[list[ListedRow]] = [[] for _ in self._files]
        for row in self._held:
            slices[hash(row[0]) % _SLICES].append(row)
        for file, rows in zip(self._files, slices, strict=True):
            marshal.dump(rows, file, 2)
        self._held = []

    def read_slices(self) -> Iterator[list[ListedRow]]:
        """Slice by slice, in the order in which rows came."""
        if not self._files:
            yield self._held
            return
        self.spill_rows()
        for file in self._files:
            end = file.tell()
            file.seek(0)
            rows: list[ListedRow] = []
            while file.tell() < end:
                rows += marshal.load(file)
            yield rows

    def close(self) -> None:
        """Drops the rows and the files."""
        self._held = []
        for file in self._files:
            file.close()
        self._files = []


def pair_slices(one: Slices, other: Slices) -> Iterator[tuple[list[ListedRow], list[ListedRow]]]:
    """Yields the slices of two sides, each with that of the same keys."""
    if one.is_split or other.is_split:
        one.spill_rows()
        other.spill_rows()
    yield from zip(one.read_slices(), other.read_slices(), strict=True)

"""From rows of a binlog to changes of records: a row only says which record is to be read. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from sync_orchestrator.capture.assembly import MissingChanges
from sync_orchestrator.capture.changes import CONSUMER_PREFIX, CapturedChange
from sync_orchestrator.capture.parts import CapturedPart, CapturedTable
from sync_orchestrator.core.intake.rejected_messages import Rejected
from sync_orchestrator.core.values.names import NoName, canonical_name

_MAX_SHOWN_LENGTH = 2000
_INTEGERS = frozenset({1, 2, 3, 8, 9})
_DECIMAL = 246
_TEXTS = frozenset({15, 252, 253, 254})  # VARCHAR, TEXT, VAR_STRING, CHAR
_DECODED = frozenset({1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 13, 15, 16, 17, 18, 19, *range(245, 249), *range(252, 256)})
"""The types that the library knows; behind another one it would read a row at the wrong places."""
KEY_TYPES = "integers, DECIMAL, CHAR, VARCHAR and TEXT"
"""The types of columns whose values in a binlog are those of a SELECT."""


@dataclass(frozen=True, slots=True)
class BinlogColumn:
    """A column of a table as an event describes it.

    Attributes:
        name: None where the server does not log names.
        type_code: The type as the protocol numbers it.
        charset: The name of its character set; None where it is no text.
    """

    name: str | None
    type_code: int
    charset: str | None

    @property
    def can_be_key(self) -> bool:
        """Whether its values are those of a SELECT."""
        if self.type_code in _TEXTS:
            return self.charset not in (None, "binary")
        return self.type_code in _INTEGERS or self.type_code == _DECIMAL


@dataclass(frozen=True, slots=True)
class BinlogRow:
    """A changed row. ``old``, ``new``: the columns that the log has, by name; None where there is no such row."""

    kind: Literal["insert", "update", "delete"]
    old: Mapping[str, object] | None
    new: Mapping[str, object] | None


class UntoldKey(Exception):
    """A row of which the log does not say whose it is; the message says why."""


class BinlogTable:
    """Reads the rows of a table as one event describes it."""

    def __init__(self, table: CapturedTable, columns: Sequence[BinlogColumn]) -> None:
        self.table = table
        self._columns = {column.name: column for column in columns if column.name}
        self._has_names = len(self._columns) == len(columns)
        self.is_decoded = all(column.type_code in _DECODED for column in columns)

    def read_row(self, row: BinlogRow) -> Iterator[CapturedChange | Rejected | MissingChanges]:
        """The changes of records that a change of a row is, or why it is none."""
        for part in self.table.parts:
            try:
                yield from self._read_part(part, row)
            except UntoldKey as error:
                yield MissingChanges(f"table {self.table.name}: {error}", (self.table,))
            except NoName as error:
                yield self._reject(part, row, f"no key at '{part.key_column}': {error}")

    def _read_part(self, part: CapturedPart, row: BinlogRow) -> Iterator[CapturedChange | Rejected]:
        if not self._has_names:
            raise UntoldKey(
                "the log does not name the columns of its rows, since binlog_row_metadata was not FULL: whose rows "
                "were changed is not known"
            )
        column = self._columns.get(part.key_column)
        if column is None:
            yield self._reject(
                part,
                row,
                f"table {self.table.name} had no column {part.key_column} then, which has the key of {part.entity}",
            )
            return
        if not column.can_be_key:
            raise UntoldKey(
                f"column {part.key_column} had a type then whose values in the log are not those of a SELECT; keys "
                f"may be {KEY_TYPES}"
            )
        yield from self._read_keys(part, row)

    def _read_keys(self, part: CapturedPart, row: BinlogRow) -> Iterator[CapturedChange]:
        has_old = row.old is not None and part.key_column in row.old
        has_new = row.new is not None and part.key_column in row.new
        old = self._key_of(part, row.old) if has_old else None
        new = self._key_of(part, row.new) if has_new else old if row.kind == "update" else None
        if old is not None and old != new:
            yield (
                CapturedChange(part.entity, part.source, old, "delete", None, is_doubted=True)
                if part.is_own_table
                else CapturedChange(part.entity, part.source, old, "create", None)
            )
        if new is not None:
            yield CapturedChange(part.entity, part.source, new, "create", None)
        if not (has_new if row.kind == "insert" else has_old):
            raise UntoldKey(
                f"a session logged rows without column {part.key_column}, which has the key (binlog_row_image is not "
                "FULL, and the column is not in the primary key): whose rows were changed is not known"
            )

    @staticmethod
    def _key_of(part: CapturedPart, row: Mapping[str, object] | None) -> str | None:
        """The key of a row; None where it is NULL: such a row is no record. Raises NoName, UntoldKey."""
        assert row is not None
        value = row[part.key_column]
        if value is None:
            return None
        if isinstance(value, bytes) or (isinstance(value, str) and "\0" in value):
            raise UntoldKey(f"column {part.key_column} has the key, in a character set that cannot be read here")
        key = canonical_name(value)
        if key is None:
            raise NoName("it is empty")
        return key

    def _reject(self, part: CapturedPart, row: BinlogRow, reason: str) -> Rejected:
        values = row.new if row.new is not None else row.old or {}
        shown = {name: None if value is None else str(value)[:_MAX_SHOWN_LENGTH] for name, value in values.items()}
        body = {"entity": part.entity, "table": self.table.name, "change": row.kind, "row": shown}
        return Rejected(f"{CONSUMER_PREFIX}{part.source}", reason, json.dumps(body).encode(), "application/json", {})

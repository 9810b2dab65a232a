"""From rows of the log to changes of records: the same values, keys, groups and versions that a SELECT would give."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from sync_orchestrator.adapters.sql.rows import SqlRows
from sync_orchestrator.capture.parts import CapturedPart, CapturedTable
from sync_orchestrator.capture.pgoutput import UNCHANGED, Relation, Row, RowChange, Value
from sync_orchestrator.core.intake.rejected_messages import Rejected
from sync_orchestrator.core.ports import Json, PartRead
from sync_orchestrator.core.values.names import NoName, canonical_name
from sync_orchestrator.core.values.plain_json import as_json
from sync_orchestrator.core.values.source_versions import version_of
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.core.version_guard import Action

CONSUMER_PREFIX = "capture "
"""What rows that cannot be used are kept under, with the source's name behind it."""

Load = Callable[[bytes], object]

_PADDED_TYPE = 1042  # CHAR(n)
_MAX_SHOWN_LENGTH = 2000


@dataclass(frozen=True, slots=True)
class CapturedChange:
    """A change of a part of a record.

    Attributes:
        version: None for a delete whose old row does not tell one, and for a change that leads to a read.
        data: The whole part; None for a delete, and where the part is to be read.
        is_doubted: A delete of a row, after which the record may be there all the same: its source is asked.
        is_numbered: The part's versions are the stream's numbers; ``version`` counts for nothing.
        is_arrival: A row came under this key, whose version may be older than that of a row that had it before.
    """

    entity: str
    source: str
    key: str
    action: Action
    version: int | None
    data: Json | None = None
    group: str | None = None
    is_doubted: bool = False
    is_numbered: bool = False
    is_arrival: bool = False

    @property
    def place(self) -> tuple[str, str, str]:
        """What tells changes of one part of one record from others."""
        return self.entity, self.source, self.key

    @property
    def is_thin(self) -> bool:
        """Whether it leads to a read of the part."""
        return self.data is None and self.action != "delete"


def combine(earlier: CapturedChange | None, later: CapturedChange) -> CapturedChange:
    """What is left of two changes of a part that are recorded at once: the later one, but for a doubted delete.

    A row of another table that changes after the record's own row was deleted leads to the same read. A delete that
    tells no version has that of the row that was there before: the commit's time would hide a row that comes again
    with an older one.
    """
    if earlier is None:
        return later
    if earlier.is_doubted and later.is_thin:
        return earlier
    if later.action == "delete" and later.version is None:
        return replace(later, version=earlier.version)
    if earlier.is_arrival and later.action != "delete":
        return replace(later, is_arrival=True)
    return later


@dataclass(frozen=True, slots=True)
class PresentTable:
    """A table as it is now: its columns, none where it is gone, and whether partitions have its rows."""

    columns: frozenset[str]
    is_partitioned: bool = False


class UnusableRow(Exception):
    """A row that tells no change, though it should; the message says why."""


class TableReader:
    """Reads the rows of one table as it is described by the log at present."""

    def __init__(
        self,
        table: CapturedTable,
        relation: Relation,
        get_loader: Callable[[int], Load],
        present_columns: frozenset[str],
        most_bytes: int,
        *,
        is_partitioned: bool = False,
    ) -> None:
        """Prepares to read rows.

        Args:
            table: The table.
            relation: It as the log describes it.
            get_loader: By type, what makes a value.
            present_columns: The columns that the table has now.
            most_bytes: Larger rows are read, not taken along.
            is_partitioned: Its partitions say for themselves what the log has of an old row, whatever it says itself.
        """
        self.table = table
        self._is_partitioned = is_partitioned
        logged = {column.name for column in relation.columns if column.is_key}
        self._unlogged_keys = sorted(set(table.key_columns) - logged)
        self._relation = relation
        self._names = [column.name for column in relation.columns]
        self._places = {name: place for place, name in enumerate(self._names)}
        self._loaders = [get_loader(column.type_oid) for column in relation.columns]
        self._padded = {column.name for column in relation.columns if column.type_oid == _PADDED_TYPE}
        self._is_whole = present_columns == frozenset(self._names)
        self._most_bytes = most_bytes
        self._rows = {part.entity: SqlRows(part.settings) for part in table.parts if part.is_row}

    def find_missing_key(self, change: RowChange) -> str | None:
        """Why the log does not say whose row was there before; None where it does."""
        if change.kind == "insert":
            return None
        unlogged = self._unlogged_keys or self._find_empty_keys(change)
        if not unlogged:
            return None
        return (
            f"a row of {self.table.name} was changed or deleted while {', '.join(unlogged)}, which has the key, was "
            "not in the replica identity: the log does not say whose row it was"
        )

    def _find_empty_keys(self, change: RowChange) -> list[str]:
        """Columns of keys without a value in an old row that is to have one: only whole rows may have a NULL there."""
        if change.old is None or (change.is_old_whole and not self._is_partitioned):
            return []
        columns = [name for name in self.table.key_columns if name in self._places]
        return [name for name in columns if change.old[self._places[name]] is None]

    def read_change(self, change: RowChange) -> list[CapturedChange | Rejected]:
        """The changes of records that a change of a row is, or why it is none."""
        if change.is_old_whole and self._is_partitioned:
            change = replace(change, is_old_whole=False)
        found: list[CapturedChange | Rejected] = []
        for part in self.table.parts:
            try:
                changes = self._read_row(part, change) if part.is_row else self._read_keys(part, change)
                if part.settings.version.is_numbered:
                    changes = [replace(each, is_numbered=True) for each in changes]
                found += changes
            except UnusableRow as error:
                found.append(self._reject(part, change, str(error)))
        return found

    def _read_row(self, part: CapturedPart, change: RowChange) -> list[CapturedChange]:
        """A row is the part itself."""
        if missing := sorted(part.needed - self._places.keys()):
            raise UnusableRow(
                f"table {self.table.name} has no column {', '.join(missing)} any more, which the key, group, version "
                f"or mapping of {part.entity} needs"
            )
        old_key = None if change.old is None else self._key_of(part, change.old)
        if change.new is None:
            return [] if old_key is None else self._deletions(part, old_key, change)
        new = _fill_unchanged(change.new, change.old, is_whole=change.is_old_whole)
        new_key = self._key_of(part, new)
        found: list[CapturedChange] = []
        if old_key is not None and old_key != new_key:
            found += self._deletions(part, old_key, change)
        if new_key is not None:
            is_arrival = change.kind == "insert" or (old_key is not None and old_key != new_key)
            if part.is_owner and not is_arrival:
                self._require_group(part, new)
            found.append(replace(self._state(part, new_key, new), is_arrival=is_arrival))
        return found

    def _state(self, part: CapturedPart, key: str, row: Row) -> CapturedChange:
        is_whole = self._is_whole and UNCHANGED not in row
        if not is_whole or _count_bytes(row) > self._most_bytes:
            return CapturedChange(part.entity, part.source, key, "create", self._version_of(part, row))
        read = self._rows[part.entity].part_of(self._load_row(part, row))
        if read.passed_over:  # only a read shows whether it was a record before
            return CapturedChange(part.entity, part.source, key, "create", read.version or None)
        good, bad = sort_out([read])
        if bad:
            raise UnusableRow(str(bad[0].problem))
        [read] = good
        return _change_of(part, read)

    def _require_group(self, part: CapturedPart, row: Row) -> None:
        """No full sync lists a row without a group, so its record cannot stay in the group that it was in."""
        column = part.settings.group
        if column in self._places and row[self._places[column]] is None:
            raise UnusableRow(
                f"the row has no business group at '{column}' any more: full syncs do not list it, and delete its "
                "record"
            )

    def _version_of(self, part: CapturedPart, row: Row) -> int | None:
        """The version of a row that is read; None where the log does not tell it."""
        settings, place = part.settings.version, self._places.get(part.settings.version.path)
        if settings.kind == "log" or place is None or not isinstance(value := row[place], bytes):
            return None
        try:
            told = as_json(self._loaders[place](value), part.settings.tz)
            return version_of(told, settings.kind, part.settings.tz)
        except Exception:  # it is read, and judged then
            return None

    def _deletions(self, part: CapturedPart, key: str, change: RowChange) -> list[CapturedChange]:
        """The deletion that a row's end is; none where the row was no record."""
        version = None
        if change.is_old_whole and change.old is not None and UNCHANGED not in change.old:
            read = self._rows[part.entity].part_of(self._load_row(part, change.old))
            if read.passed_over:
                return []
            version = None if read.problem else read.version
        return [CapturedChange(part.entity, part.source, key, "delete", version)]

    def _read_keys(self, part: CapturedPart, change: RowChange) -> list[CapturedChange]:
        """A row names the records that are to be read."""
        if part.key_column not in self._places:
            raise UnusableRow(
                f"table {self.table.name} has no column {part.key_column} any more, which has the key of {part.entity}"
            )
        old = None if change.old is None else self._key_of(part, change.old)
        new = (
            None
            if change.new is None
            else self._key_of(part, _fill_unchanged(change.new, change.old, is_whole=change.is_old_whole))
        )
        found = []
        if old is not None and old != new:
            found.append(
                CapturedChange(part.entity, part.source, old, "delete", None, is_doubted=True)
                if part.is_own_table
                else CapturedChange(part.entity, part.source, old, "create", None)
            )
        if new is not None:
            found.append(CapturedChange(part.entity, part.source, new, "create", None))
        return found

    def _key_of(self, part: CapturedPart, row: Row) -> str | None:
        """The key; None for a row without one, which is no record."""
        value = self._load_value(part.key_column, row[self._places[part.key_column]])
        if value is None:
            return None
        try:
            key = canonical_name(value if isinstance(value, Decimal) else as_json(value, part.settings.tz))
        except NoName as error:
            raise UnusableRow(f"no key at '{part.key_column}': {error}") from None
        if key is None:
            raise UnusableRow(f"no key at '{part.key_column}'")
        return key

    def _load_row(self, part: CapturedPart, row: Row) -> dict[str, object]:
        values: dict[str, object] = {}
        for name, load, value in zip(self._names, self._loaders, row, strict=True):
            if type(value) is not bytes:
                values[name] = None
                continue
            try:
                values[name] = load(value)
            except Exception as error:  # a value that its loader does not know: it spoils its row alone
                raise UnusableRow(f"column '{name}' cannot be read: {type(error).__name__}") from None
        for name in self._padded & {part.settings.key, part.settings.group}:
            if isinstance(values[name], str) and not str(values[name]).isspace():
                values[name] = str(values[name]).rstrip(" ")
        return values

    def _load_value(self, name: str, value: Value) -> Any:
        if value is None:
            return None
        if value is UNCHANGED:
            raise UnusableRow(f"column '{name}' has the key, and its large value is not in the log")
        assert isinstance(value, bytes)
        try:
            loaded = self._loaders[self._places[name]](value)
        except Exception as error:  # a value that its loader does not know
            raise UnusableRow(f"column '{name}' cannot be read: {type(error).__name__}") from None
        return loaded.rstrip(" ") if name in self._padded and isinstance(loaded, str) else loaded

    def _reject(self, part: CapturedPart, change: RowChange, reason: str) -> Rejected:
        shown = {
            name: value.decode("utf-8", "backslashreplace")[:_MAX_SHOWN_LENGTH] if isinstance(value, bytes) else None
            for name, value in zip(self._names, change.new or change.old or (), strict=False)
        }
        body = {"entity": part.entity, "table": self.table.name, "change": change.kind, "row": shown}
        return Rejected(f"{CONSUMER_PREFIX}{part.source}", reason, json.dumps(body).encode(), "application/json", {})


def _change_of(part: CapturedPart, read: PartRead) -> CapturedChange:
    if read.deleted:
        return CapturedChange(part.entity, part.source, read.key, "delete", read.version)
    return CapturedChange(part.entity, part.source, read.key, "create", read.version, read.data, read.group)


def _count_bytes(row: Row) -> int:
    """The size of a row that is whole: its values are bytes, or None."""
    return sum(map(len, filter(None, row)))  # type: ignore[arg-type]  # no value is UNCHANGED


def _fill_unchanged(new: Row, old: Row | None, *, is_whole: bool) -> Row:
    """The row after, with large values that did not change from the row before, where that is known.

    A row before that is not ``is_whole`` has NULL for what the log does not tell.
    """
    if old is None or UNCHANGED not in new:
        return new
    return tuple(
        before if value is UNCHANGED and (is_whole or before is not None) else value
        for value, before in zip(new, old, strict=True)
    )


class ChangeReader:
    """Reads the rows of all captured tables of a source."""

    def __init__(
        self,
        tables: Sequence[CapturedTable],
        oids: Mapping[str, int],
        get_loader: Callable[[int], Load],
        describe_table: Callable[[int], PresentTable],
        most_bytes: int,
    ) -> None:
        """``oids``: by the tables' names, what the log knows them by."""
        self._by_oid = {oids[table.name]: table for table in tables if table.name in oids}
        self._get_loader = get_loader
        self._describe_table = describe_table
        self._most_bytes = most_bytes
        self._readers: dict[int, TableReader] = {}

    def describe_relation(self, relation: Relation) -> None:
        """Takes notice of a table as it is from here on."""
        table = self._by_oid.get(relation.oid)
        if table is not None:
            present = self._describe_table(relation.oid)
            self._readers[relation.oid] = TableReader(
                table,
                relation,
                self._get_loader,
                present.columns,
                self._most_bytes,
                is_partitioned=present.is_partitioned,
            )

    def find_missing_key(self, change: RowChange) -> tuple[CapturedTable, str] | None:
        """The table of a change of which the log does not say whose row was there before, and why; None otherwise."""
        reader = self._readers.get(change.relation)
        reason = None if reader is None else reader.find_missing_key(change)
        return None if reader is None or reason is None else (reader.table, reason)

    def read_change(self, change: RowChange) -> list[CapturedChange | Rejected]:
        """The changes of records that a change of a row is; none for a table that is not captured."""
        reader = self._readers.get(change.relation)
        return [] if reader is None else reader.read_change(change)

    def find_tables(self, relations: Sequence[int]) -> list[CapturedTable]:
        """The captured tables among some."""
        return [self._by_oid[oid] for oid in relations if oid in self._by_oid]

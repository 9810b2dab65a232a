"""The events of a binlog, taken into an assembler as transactions. Needs the extra ``mysql``."""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pymysqlreplication import event as events
from pymysqlreplication import row_event as row_events

from sync_orchestrator.capture.assembly import BatchAssembler, MissingChanges
from sync_orchestrator.capture.binlog_rows import BinlogColumn, BinlogRow, BinlogTable
from sync_orchestrator.capture.binlog_statements import (
    LoggedTable,
    StatementEffect,
    StatementKind,
    format_xid,
    read_statement,
)
from sync_orchestrator.capture.changes import CapturedChange
from sync_orchestrator.capture.gtids import MariadbPosition, MysqlPosition
from sync_orchestrator.capture.port import ReceivedPart
from sync_orchestrator.core.intake.rejected_messages import Rejected
from sync_orchestrator.errors import LogDown

WANTED_EVENTS = (
    events.QueryEvent,
    events.XidEvent,
    events.GtidEvent,
    events.MariadbGtidEvent,
    events.XAPrepareEvent,
    events.HeartbeatLogEvent,
    events.RotateEvent,
    events.ExecuteLoadQueryEvent,
    events.NotImplementedEvent,
    row_events.WriteRowsEvent,
    row_events.UpdateRowsEvent,
    row_events.DeleteRowsEvent,
    row_events.PartialUpdateRowsEvent,
)
_STANDALONE = 1  # flags of MariaDB's GTID events
_PREPARED_XA = 64
_IGNORABLE_FLAG = 0x80
_HARMLESS_TYPES = frozenset({3, 9, 11, 28, 36, 37, 41})
"""Events that change no rows: stop, pieces of a file to load, what is ignorable, contexts of groups, heartbeats."""
_UNNAMED, _TAGGED = 34, 42
_MAX_HELD_ROWS = 10_000
_WRAP = 2**32
RowsEvent = (
    row_events.WriteRowsEvent
    | row_events.UpdateRowsEvent
    | row_events.DeleteRowsEvent
    | row_events.PartialUpdateRowsEvent
)


@dataclass(frozen=True, slots=True)
class BinlogMark:
    """A place in a binlog by which the source says whether reads see a transaction."""

    gtid: str
    file: int
    end: int


@dataclass(slots=True)
class HeldRows:
    """Rows of a distributed transaction, which are logged when it is prepared, and seen when it is committed."""

    xid: str
    rows: list[list[CapturedChange | Rejected | MissingChanges]] = field(default_factory=list)
    is_overflown: bool = False


class BinlogReader:
    """Takes events into an assembler."""

    def __init__(
        self,
        assembler: BatchAssembler,
        position: MariadbPosition | MysqlPosition,
        tables: Sequence[LoggedTable],
    ) -> None:
        """``position``: all before it is recorded."""
        self._assembler = assembler
        self._position = position
        self._tables = tables
        self._by_name = {(each.schema, each.name): each.table for each in tables}
        self._gtid = ""
        self._has_begun = False
        self._is_standalone = False
        self._held: HeldRows | None = None
        self._prepared: dict[str, HeldRows] = {}
        self.file = ""
        self.end = 0
        self.newest_at = 0

    def take(self, event: Any) -> ReceivedPart:
        """Takes an event in.

        Raises:
            LogDown: It cannot be gone on with.
        """
        if isinstance(event, events.HeartbeatLogEvent):
            return ReceivedPart.IDLE if not self._gtid else ReceivedPart.NOTHING
        if isinstance(event, events.RotateEvent):
            self.file, self.end = event.next_binlog, event.position
            return ReceivedPart.CONTENT
        self._note_place(event)
        if isinstance(event, events.MariadbGtidEvent):
            self._begin(event.gtid)
            self._is_standalone = bool(event.flags & _STANDALONE)
            self._held = HeldRows("") if event.flags & _PREPARED_XA else None
        elif isinstance(event, events.GtidEvent):
            self._begin(event.gtid)
            self._is_standalone = True  # until it says BEGIN
        elif isinstance(event, RowsEvent):
            self._take_rows(event)
        elif isinstance(event, events.QueryEvent):
            schema = event.schema.decode("utf-8", "replace")
            self._take_statement(read_statement(event.query, schema, self._tables))
        elif isinstance(event, events.XidEvent):
            self._end()
        elif isinstance(event, events.XAPrepareEvent):
            self._take_prepared(event)
        elif isinstance(event, events.ExecuteLoadQueryEvent):
            shown = "LOAD DATA, logged as a statement"
            tables = tuple(each.table for each in self._tables)
            self._take_statement(StatementEffect(StatementKind.UNSEEN_ROWS, tables, shown))
        else:
            self._take_unknown(event)
        return ReceivedPart.CONTENT

    @staticmethod
    def is_new_file(event: Any) -> bool:
        """Whether what follows is of another file of the log."""
        return isinstance(event, events.RotateEvent)

    def _note_place(self, event: Any) -> None:
        """Where the event ends in its file, of whose place the log has 32 bits."""
        self.newest_at = event.timestamp or self.newest_at
        end = event.packet.log_pos
        if end:
            wraps = self.end // _WRAP + (end < self.end % _WRAP)
            self.end = wraps * _WRAP + end
        if self._assembler.is_within_transaction:
            self._assembler.set_mark(self._make_mark())

    def _make_mark(self) -> Hashable:
        if isinstance(self._position, MysqlPosition):
            return self._gtid
        number = self.file.rpartition(".")[2]
        return BinlogMark(self._gtid, int(number) if number.isdigit() else 0, self.end)

    # Transactions ---------------------------------------------------------------------------------------------------

    def _begin(self, gtid: str) -> None:
        if self._gtid:
            self._end()
        self._gtid = gtid
        self._held = None
        self._assembler.begin_transaction(gtid, self._make_mark())

    def _end(self) -> None:
        if not self._gtid:
            return
        self._position = self._position.add(self._gtid)
        self._assembler.end_transaction(str(self._position))
        self._gtid, self._held = "", None

    def _take_statement(self, effect: StatementEffect) -> None:
        kind = effect.kind
        if not self._gtid:
            raise LogDown("a statement outside of a transaction in the log")
        if kind is StatementKind.BEGIN:
            self._is_standalone = False
            return
        if kind is StatementKind.XA_START:
            self._is_standalone, self._held = False, HeldRows(effect.xid)
            return
        if kind is StatementKind.TRUNCATED:
            self._assembler.note_truncated(effect.tables)
        elif kind in (StatementKind.REPLACED, StatementKind.UNSEEN_ROWS):
            self._assembler.note_missing(MissingChanges(effect.reason, effect.tables))
        elif kind is StatementKind.XA_COMMIT:
            self._take_held(self._prepared.pop(effect.xid, None))
        elif kind is StatementKind.XA_ROLLBACK:
            self._prepared.pop(effect.xid, None)
        if kind is StatementKind.END or self._is_standalone:
            self._end()

    def _take_prepared(self, event: Any) -> None:
        xid = format_xid(event.xid_gtrid, event.xid_bqual, event.xid_format_id)
        held = self._held
        if held is not None and event.one_phase:
            self._take_held(held)
        elif held is not None:
            held.xid = xid
            self._prepared[xid] = held
        self._end()

    def _take_held(self, held: HeldRows | None) -> None:
        """Takes in the rows of a distributed transaction that is committed."""
        if held is None or held.is_overflown:
            why = "it was prepared before this reader began" if held is None else "it has very many rows"
            tables = tuple(each.table for each in self._tables)
            names = ", ".join(sorted(table.name for table in tables))
            reason = f"a distributed (XA) transaction was committed that may have changed {names}, and {why}"
            self._assembler.note_missing(MissingChanges(reason, tables))
            return
        for row in held.rows:
            self._add_row(row)

    def _take_unknown(self, event: Any) -> None:
        kind = int(event.event_type)
        if kind in _HARMLESS_TYPES or event.packet.flags & _IGNORABLE_FLAG:
            return
        if kind == _UNNAMED:
            raise LogDown("the log has transactions without a GTID: set gtid_mode to ON, then `capture reset`")
        if kind == _TAGGED or not self._gtid:
            raise LogDown(f"the log has an event of type {kind}, by which its position cannot be followed")
        tables = tuple(each.table for each in self._tables)
        names = ", ".join(sorted(table.name for table in tables))
        self._assembler.note_missing(
            MissingChanges(
                f"the log has an event of type {kind}, which cannot be read here and may have changed {names}: "
                "binlog compression must be off (log_bin_compress, binlog_transaction_compression)",
                tables,
            )
        )

    # Rows -----------------------------------------------------------------------------------------------------------

    def _take_rows(self, event: Any) -> None:
        table = self._by_name.get((event.schema, event.table))
        if table is None:
            return
        if not self._gtid:
            raise LogDown("a row outside of a transaction in the log")
        for row in self._read_rows(table, event):
            if self._held is None:
                self._add_row(row)
            elif len(self._held.rows) < _MAX_HELD_ROWS:
                self._held.rows.append(row)
            else:
                self._held.is_overflown = True

    def _read_rows(self, table: Any, event: Any) -> Iterator[list[CapturedChange | Rejected | MissingChanges]]:
        columns = [BinlogColumn(each.name, each.type, each.character_set_name) for each in event.columns]
        reader = BinlogTable(table, columns)
        if not reader.is_decoded:
            reason = f"table {table.name} has a column of a type that cannot be read from the log here"
            yield [MissingChanges(reason, (table,))]
            return
        try:
            rows = [_make_row(event, columns, row) for row in event.rows]
        except Exception as error:  # a value that the library cannot decode: of the event's rows, none is known
            reason = f"table {table.name}: rows of the log cannot be read ({type(error).__name__})"
            yield [MissingChanges(reason, (table,))]
            return
        for each in rows:
            yield list(reader.read_row(each))

    def _add_row(self, found: Sequence[CapturedChange | Rejected | MissingChanges]) -> None:
        for each in found:
            if isinstance(each, MissingChanges):
                self._assembler.note_missing(each)
        self._assembler.add_row([each for each in found if not isinstance(each, MissingChanges)])

    def measure_age_seconds(self, ahead_seconds: float) -> float | None:
        """How long ago the newest event was written, by the source's clock; None before there was one."""
        return max(0.0, time.time() + ahead_seconds - self.newest_at) if self.newest_at else None


def _make_row(event: Any, columns: Sequence[BinlogColumn], row: Any) -> BinlogRow:
    if isinstance(event, row_events.WriteRowsEvent):
        return BinlogRow("insert", None, _present(columns, row["values"], event.columns_present_bitmap))
    if isinstance(event, row_events.DeleteRowsEvent):
        return BinlogRow("delete", _present(columns, row["values"], event.columns_present_bitmap), None)
    return BinlogRow(
        "update",
        _present(columns, row["before_values"], event.columns_present_bitmap),
        _present(columns, row["after_values"], event.columns_present_bitmap2),
    )


def _present(columns: Sequence[BinlogColumn], values: dict[str, object], bitmap: bytes) -> dict[str, object]:
    """The values that the log has; the library makes None of others."""
    return {
        column.name: values[column.name]
        for place, column in enumerate(columns)
        if column.name and bitmap[place >> 3] >> (place & 7) & 1
    }

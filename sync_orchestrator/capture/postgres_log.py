"""The log of a Postgres as a stream reads it: messages of ``pgoutput`` become transactions of the assembler."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

from sync_orchestrator.adapters.sql.log_positions import format_lsn, parse_lsn
from sync_orchestrator.capture.assembly import BatchAssembler, MissingChanges
from sync_orchestrator.capture.changes import ChangeReader
from sync_orchestrator.capture.gtids import is_gtid_position
from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.pgoutput import (
    DecodeFailed,
    PgMessage,
    Relation,
    RowChange,
    TransactionBegin,
    TransactionEnd,
    TruncatedTables,
    decode_message,
)
from sync_orchestrator.capture.port import ReceivedPart
from sync_orchestrator.capture.postgres import Keepalive, PostgresLog, PostgresSource, find_loss
from sync_orchestrator.capture.preparation import SourcePreparation, inspect_reading, inspect_source
from sync_orchestrator.core.capture.streams import CaptureStream
from sync_orchestrator.core.capture.table_marks import read_table_identity
from sync_orchestrator.errors import LogDown, LogLost, NotPrepared


class PgoutputReader:
    """Takes messages of a log into an assembler. Pure."""

    def __init__(self, reader: ChangeReader, assembler: BatchAssembler) -> None:
        self._reader = reader
        self._assembler = assembler

    def add(self, message: PgMessage) -> None:
        """Takes a message in.

        Raises:
            DecodeFailed: It cannot come here.
        """
        if isinstance(message, RowChange):
            self._require_transaction()
            if (missing := self._reader.find_missing_key(message)) is not None:
                self._assembler.note_missing(MissingChanges(missing[1], (missing[0],)))
            self._assembler.add_row(self._reader.read_change(message))
        elif isinstance(message, Relation):
            self._reader.describe_relation(message)
        elif isinstance(message, TransactionBegin):
            self._assembler.begin_transaction(format_lsn(message.lsn), message.xid)
        elif isinstance(message, TransactionEnd):
            self._require_transaction()
            self._assembler.end_transaction(format_lsn(message.end_lsn))
        elif isinstance(message, TruncatedTables):
            self._assembler.note_truncated(self._reader.find_tables(message.relations))

    def _require_transaction(self) -> None:
        if not self._assembler.is_within_transaction:
            raise DecodeFailed("a change outside of a transaction")


class PostgresCaptureLog:
    """An open log of a Postgres (``CaptureLog``)."""

    def __init__(self, source: PostgresSource, log: PostgresLog, reader: ChangeReader, partial: str | None) -> None:
        self.assembler = BatchAssembler(partial)
        self._source = source
        self._log = log
        self._reader = PgoutputReader(reader, self.assembler)

    def receive(self, wait_seconds: float, wake: int | None = None) -> ReceivedPart:
        """Takes the messages that are there into the assembler, until it has enough."""
        message = self._log.receive(wait_seconds, wake)
        if message is None:
            return ReceivedPart.NOTHING
        while message is not None:
            if isinstance(message, Keepalive):
                self.assembler.note_end(format_lsn(message.end))
                return ReceivedPart.ASKED if message.wants_reply else ReceivedPart.IDLE
            self._add(message)
            message = None if self.assembler.is_full else self._log.take_buffered()
        return ReceivedPart.CONTENT

    def _add(self, data: bytes) -> None:
        try:
            decoded = decode_message(data)
            if decoded is not None:
                self._reader.add(decoded)
        except DecodeFailed as error:
            raise LogDown(f"the log cannot be read: {error}") from None

    def acknowledge(self, position: str) -> None:
        """Tells the server that all before a position is recorded for good."""
        self._log.acknowledge(parse_lsn(position))

    def ask_for_position(self) -> None:
        """Asks the server how far it has sent."""
        self._log.acknowledge(0, wants_reply=True)

    def hold(self, seconds: float) -> None:
        """Receives nothing for a while, and is heard of."""
        self._log.hold(seconds)

    def read_retained_bytes(self) -> int | None:
        """How much of its log the server keeps for the slot."""
        return self._source.read_retained_bytes()

    def measure_age_seconds(self) -> float | None:
        """Not known: the server says when it has sent all."""
        return None

    def close(self) -> None:
        """Ends the connection."""
        self._log.close()


class PostgresCapture(PostgresSource):
    """A Postgres as the source of a stream (``CaptureSource``)."""

    def inspect(self, tables: Sequence[CapturedTable]) -> SourcePreparation:
        """Looks at catalogs only."""
        with self.connect() as connection:
            found = inspect_source(connection, self.capture, tables)
        with self.connect(reading=True) as connection:
            inspect_reading(connection, tables, found)
        return found

    def try_replication(self) -> None:
        """Opens a connection that speaks the replication protocol."""
        self.identify()

    def resume(
        self, stream: CaptureStream, found: SourcePreparation, on_wait: Callable[[], None]
    ) -> tuple[str, str, str | None]:
        """Compares the server and its slot with the stream; makes the slot where the stream begins."""
        server = self.identify()
        identity = f"{server.text}; {found.identity}"
        slot = self.find_slot()
        if slot is not None and (slot.plugin, slot.database) != ("pgoutput", server.database):
            raise NotPrepared(
                f"the replication slot {self.capture.slot} is of plugin {slot.plugin} and database "
                f"{slot.database}: give this stream a slot of its own (capture.slot)"
            )
        if not stream.identity:
            if slot is not None and not slot.is_lost:
                return identity, format_lsn(slot.confirmed), stream.partial
            self.drop_slot()
            return identity, self.create_slot(on_wait), stream.partial
        if is_gtid_position(stream.position):
            raise LogLost("another kind of server answers than before: a Postgres in place of a MySQL or MariaDB")
        if (loss := find_loss(stream.identity, stream.position, server, identity, slot)) is not None:
            raise LogLost(loss)
        return identity, stream.position, stream.partial

    def begin_anew(self, found: SourcePreparation, on_wait: Callable[[], None]) -> tuple[str, str]:
        """Replaces the slot."""
        self.drop_slot()
        position = self.create_slot(on_wait)
        return f"{self.identify().text}; {found.identity}", position

    @contextmanager
    def open_log(
        self, stream: CaptureStream, tables: Sequence[CapturedTable], most_bytes: int
    ) -> Iterator[PostgresCaptureLog]:
        """The log from a stream's position on, until the block is left."""
        with self.open_messages(stream.position) as log:
            oids = {name: read_table_identity(mark) for name, mark in stream.tables.items()}
            reader = ChangeReader(tables, oids, log.get_loader, self.describe_table, most_bytes)
            yield PostgresCaptureLog(self, log, reader, stream.partial)

    def sees(self, marks: set[Hashable]) -> bool:
        """Whether a snapshot that is taken now sees transactions, by their numbers."""
        snapshot = self.read_snapshot()
        return all(snapshot.sees(xid) for xid in marks if isinstance(xid, int))

    def describe_retained(self, retained_bytes: int, *, is_behind: bool) -> str:
        """A sentence for more retained bytes than ``max_retained_bytes``."""
        why = (
            "since the stream is behind"
            if is_behind
            else "though all is acknowledged: a transaction is open there for long (pg_stat_activity.xact_start)"
        )
        return (
            f"the source keeps {retained_bytes / 1024**2:.0f} MiB of its log {why} (capture.max_retained_bytes is "
            f"{self.capture.max_retained_bytes / 1024**2:.0f} MiB)"
        )

"""A Postgres server as the source of a stream: what it is, its slot, and its log while that is open.

Nothing is written there but the replication slot: it is made where a stream begins, and where a lost one is replaced.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from struct import Struct
from typing import Any, Final

import psycopg
from psycopg import pq
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format
from sqlalchemy import text

from sync_orchestrator.adapters.sql.engines import list_form_settings
from sync_orchestrator.adapters.sql.log_positions import format_lsn, parse_lsn
from sync_orchestrator.capture.changes import PresentTable
from sync_orchestrator.capture.pgoutput import POSTGRES_EPOCH_MICROSECONDS
from sync_orchestrator.capture.source_connections import SourceConnections
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.db.connections import build_arguments
from sync_orchestrator.errors import LogDown, LogLost, NotPrepared

ACKNOWLEDGE_SECONDS: Final = 3.0
"""The longest that the server does not hear of us: it ends connections that are silent for ``wal_sender_timeout``."""

_WAL_DATA = Struct("!cQQq")
_KEEPALIVE = Struct("!cQqB")
_STATUS = Struct("!cQQQqB")
_WAIT_SECONDS = 0.2
_UNDEFINED_OBJECT = "42704"
_WRONG_STATE = "55000"
_XIDS = 2**32
_FAILOVER_FROM = 170000
_BASE_TYPES = """
WITH RECURSIVE base AS (
    SELECT oid, typbasetype, 0 AS depth FROM pg_type WHERE oid = :oid
    UNION ALL
    SELECT t.oid, t.typbasetype, b.depth + 1 FROM base b JOIN pg_type t ON t.oid = b.typbasetype AND b.typbasetype <> 0)
SELECT oid FROM base ORDER BY depth DESC LIMIT 1
"""
_TABLE = """
SELECT c.relkind AS kind, (SELECT array_agg(attname::text) FROM pg_attribute
                           WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns
FROM pg_class c WHERE c.oid = :oid
"""
_SLOT = """
SELECT plugin, database, active, wal_status, confirmed_flush_lsn::text AS confirmed
FROM pg_replication_slots WHERE slot_name = :slot
"""
_RETAINED = """
SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint AS retained
FROM pg_replication_slots WHERE slot_name = :slot AND restart_lsn IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What a position in a log belongs to, and where the log ends now."""

    system: str
    timeline: int
    database: str
    end: int
    version: int

    @property
    def text(self) -> str:
        """It as a stream keeps it."""
        return f"system {self.system}, timeline {self.timeline}, database {self.database}"


@dataclass(frozen=True, slots=True)
class ReplicationSlot:
    """A replication slot as the server shows it; ``confirmed``: what its reader has acknowledged last."""

    plugin: str | None
    database: str | None
    is_active: bool
    is_lost: bool
    confirmed: int


def find_loss(
    identity: str, position: str, server: ServerIdentity, server_identity: str, slot: ReplicationSlot | None
) -> str | None:
    """Why a stream cannot go on from its position, in a sentence with the hint; None where it can. Pure.

    Args:
        identity: What the stream's position belongs to.
        position: The stream's position.
        server: The server that answers now.
        server_identity: Its identity together with that of the publication.
        slot: The slot of the stream, None where there is none.
    """
    at = parse_lsn(position)
    if identity.partition("; ")[0] != server.text:
        return (
            f"another server or database answers than before ({server.text}; before: {identity.partition('; ')[0]}): "
            "it was restored, it failed over, or another one has its address now. Where a backup was restored, begin a "
            "new epoch: `sync-orchestrator epoch SOURCE`"
        )
    if at > server.end:
        return (
            f"the log ends at {format_lsn(server.end)}, before {position}, up to which changes are recorded: the "
            "server was restored to an earlier state. Begin a new epoch: `sync-orchestrator epoch SOURCE`"
        )
    if slot is None:
        return (
            "the replication slot is gone: somebody dropped it, or the server was replaced without its slots. On "
            "Postgres 17 and later a slot made here survives a failover to a standby that synchronizes slots"
        )
    if slot.is_lost:
        return (
            "the server removed the log that the replication slot needed: the reader was away for longer than "
            "max_slot_wal_keep_size (or idle_replication_slot_timeout) allows. Raise it, or alert earlier"
        )
    if slot.confirmed > at:
        return (
            f"the replication slot is at {format_lsn(slot.confirmed)}, ahead of {position}, up to which changes are "
            "recorded: our database was restored from a backup, or something else reads this slot"
        )
    if identity != server_identity:
        return (
            "the publication was dropped and made again: a slot cannot go on across that. Change a publication with "
            "ALTER PUBLICATION"
        )
    return None


class PostgresSource(SourceConnections):
    """The server of a stream. Every method raises LogDown where it does not do its part."""

    def __init__(self, name: str, settings: SqlSourceSettings) -> None:
        super().__init__(name, settings)
        self._base_types: dict[int, int] = {}

    def identify(self) -> ServerIdentity:
        """What answers now, and where its log ends."""
        with self._replicating() as connection:
            row = connection.execute("IDENTIFY_SYSTEM").fetchone()
            assert row is not None
            return ServerIdentity(
                str(row[0]), int(row[1]), str(row[3]), parse_lsn(str(row[2])), connection.info.server_version
            )

    def find_slot(self) -> ReplicationSlot | None:
        """The slot of the stream; None where there is none."""
        with self.connect() as connection:
            row = connection.execute(text(_SLOT), {"slot": self.capture.slot}).one_or_none()
        if row is None:
            return None
        is_lost = row.wal_status == "lost"
        return ReplicationSlot(row.plugin, row.database, row.active, is_lost, parse_lsn(row.confirmed or "0/0"))

    def create_slot(self, on_wait: Callable[[], None]) -> str:
        """Makes the slot and returns the position from which it tells changes.

        Args:
            on_wait: Called from time to time while the server waits for transactions that are open.
        """
        with self._replicating() as connection:
            options = "NOEXPORT_SNAPSHOT"
            if connection.info.server_version >= _FAILOVER_FROM:
                options = "(SNAPSHOT 'nothing', FAILOVER true)"
            command = f"CREATE_REPLICATION_SLOT {self.capture.slot} LOGICAL pgoutput {options}"
            return self._run_waiting(connection, command, on_wait)

    def drop_slot(self) -> bool:
        """Drops the slot; False where there was none."""
        if self.find_slot() is None:
            return False
        with self._replicating() as connection:
            connection.execute(f"DROP_REPLICATION_SLOT {self.capture.slot}".encode())
        return True

    @contextmanager
    def open_messages(self, position: str) -> Iterator[PostgresLog]:
        """The log from a position on, until the block is left.

        Raises:
            LogLost: The slot cannot give it any more.
        """
        with self.connect() as known:
            transformer = Transformer(known.connection.driver_connection)
        with closing(self._open_replication()) as connection:  # errors of the block are the caller's
            try:
                self._start_stream(connection, position)
            except psycopg.Error as error:
                raise LogDown(self.describe(error)) from None
            yield PostgresLog(self, connection, transformer)

    def read_snapshot(self) -> VisibleTransactions:
        """Which transactions reads of parts see now."""
        with self.connect(reading=True) as connection:
            shown = connection.exec_driver_sql("SELECT pg_current_snapshot()::text").scalar_one()
        return VisibleTransactions.parse(str(shown))

    def read_retained_bytes(self) -> int | None:
        """How much of its log the server keeps for the slot."""
        with self.connect() as connection:
            row = connection.execute(text(_RETAINED), {"slot": self.capture.slot}).one_or_none()
        return None if row is None else int(row.retained)

    def describe_table(self, relation: int) -> PresentTable:
        """A table as it is now."""
        with self.connect() as connection:
            row = connection.execute(text(_TABLE), {"oid": relation}).one_or_none()
        return PresentTable(frozenset()) if row is None else PresentTable(frozenset(row.columns or ()), row.kind == "p")

    def find_base_type(self, oid: int) -> int:
        """The type under a domain, as a SELECT names it; the type itself otherwise."""
        if oid not in self._base_types:
            with self.connect() as connection:
                found = connection.execute(text(_BASE_TYPES), {"oid": oid}).scalar()
            self._base_types[oid] = int(found or oid)
        return self._base_types[oid]

    def _start_stream(self, connection: psycopg.Connection[Any], position: str) -> None:
        publication = self.capture.publication.replace('"', '""').replace("'", "''")
        command = (
            f"START_REPLICATION SLOT {self.capture.slot} LOGICAL {position} "
            f"(proto_version '1', publication_names '\"{publication}\"')"
        )
        result = connection.pgconn.exec_(command.encode())
        if result.status == ExecStatus.COPY_BOTH:
            return
        state = result.error_field(pq.DiagnosticField.SQLSTATE)
        message = result.get_error_message("utf-8")
        raise _classify(state.decode() if state else None, self.describe(Exception(message)))

    def _run_waiting(self, connection: psycopg.Connection[Any], command: str, on_wait: Callable[[], None]) -> str:
        """Makes a slot, which waits for open transactions; returns where it begins."""
        pgconn = connection.pgconn
        pgconn.send_query(command.encode())
        while pgconn.is_busy():
            select.select([pgconn.socket], [], [], _WAIT_SECONDS)
            pgconn.consume_input()
            on_wait()
        result = pgconn.get_result()
        if result is None or result.status != ExecStatus.TUPLES_OK:
            message = "no result" if result is None else result.get_error_message("utf-8")
            raise LogDown(self.describe(Exception(message)))
        value = result.get_value(0, 1)
        assert value is not None
        return value.decode()

    @contextmanager
    def _replicating(self) -> Iterator[psycopg.Connection[Any]]:
        with closing(self._open_replication()) as connection:
            try:
                yield connection
            except psycopg.Error as error:
                raise LogDown(self.describe(error)) from None

    def _open_replication(self) -> psycopg.Connection[Any]:
        """A connection that speaks the replication protocol, whose values have the forms that reads of parts have."""
        arguments = {**build_arguments(self._primary.url), "replication": "database", "connect_timeout": 10}
        with self.connect() as known:
            driver: Any = known.connection.driver_connection
            arguments["client_encoding"] = driver.info.parameter_status("client_encoding")
        try:
            connection: psycopg.Connection[Any] = psycopg.connect(**arguments, autocommit=True, prepare_threshold=None)
        except psycopg.Error as error:
            raise LogDown(self.describe(error)) from None
        try:
            for statement in ("SET statement_timeout = 0", *list_form_settings(self.capture_url)):
                connection.execute(statement.encode())
        except psycopg.Error as error:
            connection.close()
            raise LogDown(self.describe(error)) from None
        return connection


def _classify(state: str | None, message: str) -> LogDown | LogLost:
    if state == _WRONG_STATE and "no longer" in message:
        return LogLost(
            "the server removed the log that the replication slot needed: the reader was away for longer than "
            "max_slot_wal_keep_size (or idle_replication_slot_timeout) allows. Raise it, or alert earlier"
        )
    if state == _WRONG_STATE and "invalidated" in message:
        return LogLost(f"the server invalidated the replication slot: {message}")
    if state == _UNDEFINED_OBJECT and "publication" in message:
        return LogLost(
            f"{message}: it was dropped, and a slot cannot go on across that, even where it was made again. Change a "
            "publication with ALTER PUBLICATION"
        )
    if state == _UNDEFINED_OBJECT and "slot" in message:
        return LogLost(f"the replication slot is gone: {message}")
    if "must be superuser" in message or "permission denied" in message:
        return NotPrepared(
            f"{message}: `sync-orchestrator capture prepare` prints the SQL that lets this user replicate"
        )
    return LogDown(message)


@dataclass(frozen=True, slots=True)
class VisibleTransactions:
    """Which transactions a snapshot sees."""

    lowest: int
    next: int
    in_progress: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> VisibleTransactions:
        """Reads a ``pg_snapshot``."""
        lowest, following, running = text.split(":")
        return cls(int(lowest), int(following), frozenset(int(each) for each in running.split(",") if each))

    def sees(self, xid: int) -> bool:
        """Whether it sees a committed transaction, of whose number the log has 32 bits."""
        whole = self.next - self.next % _XIDS + xid
        if whole >= self.next + _XIDS // 2:
            whole -= _XIDS
        elif whole < self.next - _XIDS // 2:
            whole += _XIDS
        return whole < self.lowest or (whole < self.next and whole not in self.in_progress)


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The server has sent all before ``end``. ``wants_reply``: it asks how far we are."""

    end: int
    wants_reply: bool


class PostgresLog:
    """An open log. It acknowledges nothing by itself."""

    def __init__(self, source: PostgresSource, connection: psycopg.Connection[Any], transformer: Any) -> None:
        self._source = source
        self._connection = connection
        self._pgconn: Any = connection.pgconn
        self._transformer = transformer
        self._acknowledged = 0
        self._heard_at = time.monotonic()

    def get_loader(self, type_oid: int) -> Callable[[bytes], object]:
        """What makes a value of a column, as a SELECT gives it."""
        loader = self._transformer.get_loader(self._source.find_base_type(type_oid), Format.TEXT)
        load: Callable[[bytes], object] = loader.load
        return load

    def receive(self, wait_seconds: float, wake: int | None = None) -> bytes | Keepalive | None:
        """The next message of the output plugin, or of the server.

        None where none came in time, or ``wake`` (a file number) can be read before one came.
        """
        ends = time.monotonic() + wait_seconds
        has_looked = False
        while True:
            self._acknowledge_in_time()
            found = self.take_buffered()
            if found is not None:
                return found
            left = ends - time.monotonic()
            if left <= 0 and has_looked:
                return None
            # Also without a wait: the socket may have some.
            if self._wait(max(0.0, min(left, ACKNOWLEDGE_SECONDS)), wake):
                return self.take_buffered()
            has_looked = True

    def acknowledge(self, position: int, *, wants_reply: bool = False) -> None:
        """Tells the server that all before a position is recorded for good: it may forget it.

        ``wants_reply``: it shall say at once how far it has sent.
        """
        self._acknowledged = max(self._acknowledged, position)
        at = time.time_ns() // 1000 - POSTGRES_EPOCH_MICROSECONDS
        status = _STATUS.pack(b"r", self._acknowledged, self._acknowledged, self._acknowledged, at, wants_reply)
        try:
            self._pgconn.put_copy_data(status)
            self._pgconn.flush()
        except psycopg.Error as error:
            raise LogDown(self._source.describe(error)) from None
        self._heard_at = time.monotonic()

    def hold(self, seconds: float) -> None:
        """Receives nothing for a while, and is heard of."""
        self._acknowledge_in_time()
        time.sleep(seconds)

    def close(self) -> None:
        """Ends the connection: a source that shuts down waits for nobody who may not acknowledge."""
        with suppress(psycopg.Error):
            self._connection.close()

    def _acknowledge_in_time(self) -> None:
        if self._acknowledged and time.monotonic() - self._heard_at > ACKNOWLEDGE_SECONDS:
            self.acknowledge(self._acknowledged)

    def _wait(self, seconds: float, wake: int | None) -> bool:
        """Waits for the server; returns whether ``wake`` can be read."""
        watched = [self._pgconn.socket, *(() if wake is None else (wake,))]
        try:
            readable = select.select(watched, [], [], seconds)[0]
            if self._pgconn.socket in readable:
                self._pgconn.consume_input()
        except (psycopg.Error, OSError, ValueError) as error:
            raise LogDown(self._source.describe(error)) from None
        return wake in readable

    def take_buffered(self) -> bytes | Keepalive | None:
        """The next message that has already come; None where there is none."""
        try:
            size, found = self._pgconn.get_copy_data(1)
        except psycopg.Error as error:
            raise LogDown(self._source.describe(error)) from None
        if size == 0:
            return None
        if size < 0:
            self._raise_end()
        if found[0] == 0x77:  # w: data of the log
            return bytes(found[_WAL_DATA.size :])
        _, end, _, wants = _KEEPALIVE.unpack_from(found)
        return Keepalive(end, bool(wants))

    def _raise_end(self) -> None:
        """Raises why the server ended the stream."""
        try:
            result = self._pgconn.get_result()
        except psycopg.Error as error:
            raise LogDown(self._source.describe(error)) from None
        state = result.error_field(pq.DiagnosticField.SQLSTATE) if result is not None else None
        message = result.get_error_message("utf-8") if result is not None else ""
        if not message or state is None:
            raise LogDown("the source ended the stream: it is shutting down, or was told to")
        raise _classify(state.decode(), self._source.describe(Exception(message)))

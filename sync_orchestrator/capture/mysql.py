"""A MySQL or MariaDB as the source of a stream: what it is, where its binlog is, and the binlog while it is open.

Nothing is written there, and the server keeps nothing for a stream: it removes its log by age.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from sync_orchestrator.capture.assembly import BatchAssembler
from sync_orchestrator.capture.binlog_statements import LoggedTable
from sync_orchestrator.capture.gtids import (
    GtidPosition,
    MariadbPosition,
    MysqlPosition,
    is_gtid_position,
    parse_gtid_position,
)
from sync_orchestrator.capture.mysql_preparation import inspect_mysql
from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.port import ReceivedPart
from sync_orchestrator.capture.preparation import SourcePreparation
from sync_orchestrator.capture.source_connections import SourceConnections
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.core.capture.streams import CaptureStream
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.systems.installation import read_installation
from sync_orchestrator.errors import LogDown, LogLost, NotPrepared
from sync_orchestrator.extras import import_from_extra

if TYPE_CHECKING:
    from sync_orchestrator.capture.binlog_reader import BinlogReader

_FIRST_EVENT_SECONDS = 10.0
_FIRST_SERVER_ID = 1_000_000_000
_SERVER_IDS = 3_000_000_000
_ACCESS_DENIED = (1044, 1045, 1142, 1227, 1370)
_NO_BINLOG = 1381
_FATAL = 1236
_REPLACED = 4052
_GONE = (
    "the server has removed the part of its log that the stream needs: the reader was away for longer than "
    "binlog_expire_logs_seconds allows, or the log was purged. Let the server keep it longer, or alert earlier"
)


@dataclass(frozen=True, slots=True)
class BinlogServer:
    """What answers, and where its log is.

    Attributes:
        is_mariadb: Whether it is MariaDB; otherwise it is MySQL.
        identifier: MariaDB's ``server_id``, MySQL's ``server_uuid``.
        executed: All transactions of its log.
        purged: Those of MySQL that are not in the log any more.
        ahead_seconds: By how much its clock is ahead of ours.
    """

    is_mariadb: bool
    identifier: str
    executed: GtidPosition
    purged: GtidPosition
    ahead_seconds: float

    @property
    def text(self) -> str:
        """It as a stream keeps it."""
        return f"MariaDB server_id {self.identifier}" if self.is_mariadb else f"MySQL server_uuid {self.identifier}"


def find_binlog_loss(identity: str, position: str, server: BinlogServer) -> str | None:
    """Why a stream cannot go on from its position, in a sentence with the hint; None where it can. Pure.

    GTIDs of MySQL name the server that made them, so one that has all of a position is the same server or took over
    from it. Those of MariaDB do not prove that.

    Args:
        identity: What the stream's position belongs to.
        position: The stream's position.
        server: The server that answers now.
    """
    known = parse_gtid_position(position) if is_gtid_position(position) else None
    if known is None or isinstance(known, MariadbPosition) != server.is_mariadb:
        return f"another kind of server answers than before ({server.text}; before: {identity}): it was replaced"
    if server.is_mariadb and identity != server.text:
        return (
            f"another server answers than before ({server.text}; before: {identity}): it failed over, or another one "
            "has its address now. Where a backup was restored, begin a new epoch: `sync-orchestrator epoch SOURCE`"
        )
    if not server.executed.covers(known):
        if not server.executed.server_text:
            return (
                "the server's log is empty: it was reset (RESET MASTER, RESET BINARY LOGS AND GTIDS), or the server "
                "was made anew"
            )
        if identity != server.text:
            return (
                f"another server answers than before ({server.text}; before: {identity}), and it lacks transactions "
                "that are recorded: it failed over to one that was behind, or another one has its address now"
            )
        return (
            f"the server's log ends at {server.executed.server_text}, before {known.server_text}, up to which changes "
            "are recorded: it was restored to an earlier state, or its log was reset. After a restore begin a new "
            "epoch: `sync-orchestrator epoch SOURCE`"
        )
    if not known.covers(server.purged):
        return _GONE
    return None


def derive_server_id(name: str, installation: str) -> int:
    """The number by which a stream is known to its server: one of its own for each stream of each installation."""
    return _FIRST_SERVER_ID + zlib.crc32(f"{installation}/{name}".encode()) % _SERVER_IDS


class MysqlCapture(SourceConnections):
    """A MySQL or MariaDB as the source of a stream (``CaptureSource``)."""

    def __init__(self, name: str, settings: SqlSourceSettings, ledger: Engine | None) -> None:
        """``ledger``: our database, by which a stream has a number of its own; None for a look at the source."""
        super().__init__(name, settings)
        self._name = name
        self._ledger = ledger
        self._server: BinlogServer | None = None

    def inspect(self, tables: Sequence[CapturedTable]) -> SourcePreparation:
        """Looks at settings and the information schema only."""
        with self.connect() as connection:
            return inspect_mysql(connection, tables)

    def try_replication(self) -> None:
        """Opens the log at its present end, and closes it again."""
        server = self.identify()
        stream = CaptureStream("", server.text, str(server.executed), None, 0, {})
        with self.open_log(stream, [], 0):
            pass

    def identify(self) -> BinlogServer:
        """What answers now, and where its log ends."""
        with self.connect() as connection:
            is_mariadb = "mariadb" in str(connection.exec_driver_sql("SELECT VERSION()").scalar_one()).lower()
            columns = (
                "@@global.server_id, @@global.gtid_binlog_pos, ''"
                if is_mariadb
                else "@@global.server_uuid, @@global.gtid_executed, @@global.gtid_purged"
            )
            row = connection.exec_driver_sql(f"SELECT {columns}, UNIX_TIMESTAMP(SYSDATE(6))").one()
        parse: Callable[[str], GtidPosition] = MariadbPosition.parse if is_mariadb else MysqlPosition.parse
        try:
            executed, purged = parse(str(row[1] or "")), parse(str(row[2] or ""))
        except ValueError as error:
            raise LogDown(f"its log cannot be followed: {error}") from None
        self._server = BinlogServer(is_mariadb, str(row[0]), executed, purged, float(row[3]) - time.time())
        return self._server

    def resume(
        self, stream: CaptureStream, found: SourcePreparation, on_wait: Callable[[], None]
    ) -> tuple[str, str, str | None]:
        """Compares the server with the stream, which begins at the present end of the log where it was never open."""
        server = self.identify()
        if not stream.identity:
            return server.text, self._find_end(server), None
        if (loss := find_binlog_loss(stream.identity, stream.position, server)) is not None:
            raise LogLost(loss)
        # Pieces are counted by rows of captured tables: with others a transaction has other pieces.
        is_same = found.name_tables() == dict(stream.tables)
        return server.text, stream.position, stream.partial if is_same else None

    def begin_anew(self, found: SourcePreparation, on_wait: Callable[[], None]) -> tuple[str, str]:
        """Begins at the present end of the log."""
        server = self.identify()
        return server.text, self._find_end(server)

    def drop_slot(self) -> bool:
        """The server keeps nothing for a stream."""
        return False

    @contextmanager
    def open_log(
        self, stream: CaptureStream, tables: Sequence[CapturedTable], most_bytes: int
    ) -> Iterator[MysqlCaptureLog]:
        """The binlog from a stream's position on, until the block is left."""
        logged = []
        for table in tables:
            schema, _, relation = stream.tables.get(table.name, "").partition(".")
            if relation:
                logged.append(LoggedTable(schema, relation, table))
        server = self._server or self.identify()
        log = MysqlCaptureLog(self, server, stream, logged)
        try:
            log.open(self._connection_settings(), self._choose_server_id())
            yield log
        finally:
            log.close()

    def sees(self, marks: set[Hashable]) -> bool:
        """Whether a read that begins now sees transactions.

        Events are sent before the engine has committed, so their GTIDs in ``gtid_binlog_pos`` prove nothing. MySQL
        adds to ``gtid_executed`` after the commit. MariaDB says up to where a consistent snapshot would read
        (``binlog_snapshot_position``), under the lock that orders commits; on a replica ``gtid_slave_pos`` is set
        after the commit.
        """
        assert self._server is not None
        with self.connect(reading=True) as connection:
            if not self._server.is_mariadb:
                wanted = ",".join(str(mark) for mark in marks)
                query = "SELECT GTID_SUBSET(%s, @@global.gtid_executed)"
                return bool(connection.exec_driver_sql(query, (wanted,)).scalar_one())
            identifier, applied = connection.exec_driver_sql("SELECT @@global.server_id, @@global.gtid_slave_pos").one()
            if str(identifier) != self._server.identifier:
                position = MariadbPosition.parse(str(applied or ""))
                return all(position.contains(mark.gtid) for mark in marks)  # type: ignore[attr-defined]
            rows = connection.exec_driver_sql("SHOW STATUS LIKE 'binlog_snapshot_%%'").all()
        return _has_committed({str(name): str(value) for name, value in rows}, marks)

    def describe_retained(self, retained_bytes: int, *, is_behind: bool) -> str:
        """A sentence for more bytes than ``max_retained_bytes`` that are not read yet."""
        return (
            f"{retained_bytes / 1024**2:.0f} MiB of the source's log are not read yet (capture.max_retained_bytes is "
            f"{self.capture.max_retained_bytes / 1024**2:.0f} MiB): the server removes its log by age, read or not"
        )

    def _find_end(self, server: BinlogServer) -> str:
        if not server.is_mariadb and not server.executed.server_text:
            raise NotPrepared("the server has no transaction with a GTID yet; the stream begins after the first one")
        return str(server.executed)

    def _choose_server_id(self) -> int:
        if self.capture.server_id is not None:
            return self.capture.server_id
        if self._ledger is None:
            return derive_server_id(self._name, "look")
        found = in_transaction(self._ledger, read_installation)
        return derive_server_id(self._name, f"{found.system_identifier}/{found.database_oid}" if found else "")

    def _connection_settings(self) -> dict[str, Any]:
        _, settings = self._primary.dialect.create_connect_args(self._primary.url)
        return {**settings, "connect_timeout": 10, "read_timeout": 30, "charset": "utf8mb4"}

    def classify(self, error: BaseException) -> LogDown | LogLost:
        """What an error of the server means for the stream."""
        from sync_orchestrator.capture.binlog_connection import describe_error

        number, message = describe_error(error)
        shown = self.describe(Exception(message))
        low = message.lower()
        if number == _REPLACED or "same server_uuid/server_id" in low or "same server_id" in low:
            return LogDown(
                f"another reader has the server_id {self._choose_server_id()} at this server, and took the log over: "
                "give this stream a number of its own (capture.server_id)"
            )
        if number == _FATAL and ("purged" in low or "could not find gtid state" in low or "first log file" in low):
            return LogLost(_GONE)
        if number == _FATAL and ("not in the master's binlog" in low or "more gtids than" in low):
            return LogLost(
                f"the server's log does not have the position of the stream ({shown}): it was restored to an earlier "
                "state, or its log was reset"
            )
        if number == _NO_BINLOG:
            return NotPrepared(f"{shown}: `sync-orchestrator capture prepare` prints what the server needs")
        if number in _ACCESS_DENIED:
            return NotPrepared(
                f"{shown}: `sync-orchestrator capture prepare` prints the SQL that lets this user replicate"
            )
        return LogDown(shown)


class MysqlCaptureLog:
    """An open binlog (``CaptureLog``)."""

    def __init__(
        self, source: MysqlCapture, server: BinlogServer, stream: CaptureStream, tables: Sequence[LoggedTable]
    ) -> None:
        self.assembler = BatchAssembler(stream.partial)
        self._source = source
        self._server = server
        self._position = parse_gtid_position(stream.position)
        self._tables = tables
        self._reader: BinlogReader | None = None
        self._events: Any = None
        self._time: Any = None

    def open(self, settings: dict[str, Any], server_id: int) -> None:
        """Asks the server for its log, and waits for the first event.

        Raises:
            LogDown: The server does not send it.
            LogLost: It has not got it any more.
        """
        with import_from_extra("mysql"):
            from pymysqlreplication import BinLogStreamReader

        from sync_orchestrator.capture.binlog_connection import HEARTBEAT_SECONDS, BinlogConnection, ReadingTime
        from sync_orchestrator.capture.binlog_reader import WANTED_EVENTS, BinlogReader

        self._time = ReadingTime()
        reading_time = self._time
        self._reader = BinlogReader(self.assembler, self._position, self._tables)
        self._events = BinLogStreamReader(
            settings,
            server_id,
            blocking=True,
            auto_position=self._position.server_text,
            is_mariadb=self._server.is_mariadb,
            only_events=WANTED_EVENTS,
            filter_non_implemented_events=False,
            only_schemas=sorted({each.schema for each in self._tables}),
            only_tables=sorted({each.name for each in self._tables}),
            slave_heartbeat=HEARTBEAT_SECONDS,
            pymysql_wrapper=lambda **arguments: BinlogConnection(reading_time, **arguments),
            enable_logging=False,
            freeze_schema=True,  # a table that is altered has another number
        )
        if self.receive(_FIRST_EVENT_SECONDS) is ReceivedPart.NOTHING:
            raise LogDown(f"the source sent nothing of its log within {_FIRST_EVENT_SECONDS:.0f} s")

    def receive(self, wait_seconds: float, wake: int | None = None) -> ReceivedPart:
        """Takes the next event into the assembler."""
        import pymysql

        from sync_orchestrator.capture.binlog_connection import NothingYet

        assert self._reader is not None
        self._time.begin(wait_seconds)
        try:
            event = self._events.fetchone()
        except NothingYet:
            return ReceivedPart.NOTHING
        except pymysql.MySQLError as error:
            raise self._source.classify(error) from None
        except OSError as error:
            raise LogDown(self._source.describe(error)) from None
        if event is None:
            raise LogDown("the source ended the stream: it is shutting down, or was told to")
        if self._reader.is_new_file(event):
            self._events.table_map = {}  # a server that was restarted begins a new file, and numbers tables anew
        return self._reader.take(event)

    def acknowledge(self, position: str) -> None:
        """Nothing: the server keeps its log by age, whoever has read it."""

    def ask_for_position(self) -> None:
        """Nothing: no read waits for a binlog, whose changes lead to reads themselves."""

    def hold(self, seconds: float) -> None:
        """Receives nothing for a while."""
        time.sleep(seconds)

    def read_retained_bytes(self) -> int | None:
        """How much of the log is not read yet; None where the user may not know."""
        assert self._reader is not None
        if not self._reader.file:
            return None
        try:
            with self._source.connect() as connection:
                sizes = [(str(row[0]), int(row[1])) for row in connection.exec_driver_sql("SHOW BINARY LOGS")]
        except LogDown:
            return None
        unread = sum(size for name, size in sizes if name >= self._reader.file)
        return max(0, unread - self._reader.end)

    def measure_age_seconds(self) -> float | None:
        """How long ago the newest event was written that was received; None before there was one."""
        assert self._reader is not None
        return self._reader.measure_age_seconds(self._server.ahead_seconds)

    def close(self) -> None:
        """Ends the connections."""
        if self._events is not None:
            with suppress(Exception):  # an ended connection that cannot be ended again
                self._events.close()


def _has_committed(shown: dict[str, str], marks: set[Hashable]) -> bool:
    """Whether a consistent snapshot of MariaDB is behind all marks."""
    by_name = {name.lower(): value for name, value in shown.items()}
    number = by_name.get("binlog_snapshot_file", "").rpartition(".")[2]
    if not number.isdigit():
        return False
    reached = int(number), int(by_name.get("binlog_snapshot_position", 0))
    return all(reached >= (mark.file, mark.end) for mark in marks)  # type: ignore[attr-defined]

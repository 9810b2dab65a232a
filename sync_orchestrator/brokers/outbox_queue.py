"""An outbox in a database as a queue: rows are taken, recorded, and then deleted.

Nothing is remembered of what was taken but the rows themselves. So a row that is committed late, with a smaller number
than others, is taken like any other, and a row whose consumer dies stays where it is. Rows that are taken twice are
duplicates by their ids.

The user of the database needs SELECT and DELETE. One process at a time takes from a table, by a lock that costs no
further right and that ends with the process: so others do not record the same rows for nothing. Nothing else depends on
the lock. It belongs to one transaction where it can, so that a pooler may share the session.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from psycopg.adapt import Loader
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    CursorResult,
    Engine,
    Select,
    TableClause,
    bindparam,
    column,
    delete,
    event,
    false,
    literal_column,
    or_,
    select,
    table,
)
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from sqlalchemy.types import NullType

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.responses import sanitize_text
from sync_orchestrator.adapters.sql.engines import create_database_engine, parse_database_url, transaction_settings
from sync_orchestrator.brokers.messages import Message
from sync_orchestrator.brokers.queues import ReceivedMessage
from sync_orchestrator.config import ConsumerSettings
from sync_orchestrator.config.outbox import OutboxSettings
from sync_orchestrator.core.values.plain_json import as_json
from sync_orchestrator.errors import BrokerDown

_STATEMENT_SECONDS = 30.0
_SQLITE_SECONDS = 2.0
"""How long another process's transaction is waited for."""
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
"""A server that is gone without a word is noticed, and a thread that waits for it can end."""
_MAX_IDS = 500
"""The largest number of ids in one DELETE."""
_NO_TABLE = {"42P01", "3F000", 1146, 1049}
_NO_RIGHT = {"42501", 1142, 1143, 1044}


@contextmanager
def open_outbox_queue(consumer: ConsumerSettings, name: str) -> Iterator[OutboxQueue]:
    """Opens the consumer's outbox, until the block is left; then what was taken and is not done is as it was.

    Raises:
        BrokerDown: The database cannot be reached, or lacks the table, a column or a right.
        ConfigError: The URL is none, or nothing installed knows the database.
    """
    assert consumer.outbox is not None
    url = parse_database_url(f"consumers.{name}", consumer.url)
    engine = _create_outbox_engine(name, url)
    try:
        with _failures_as_broker_down(url, consumer.outbox, "read"):
            connection = engine.connect()
        queue = OutboxQueue(connection, url, consumer)
        try:
            queue.check_table()
            yield queue
        finally:
            queue.release_queue()
    finally:
        engine.dispose()


class OutboxQueue:
    """An outbox on one connection; ``release_queue`` ends it."""

    def __init__(self, connection: Connection, url: URL, consumer: ConsumerSettings) -> None:
        assert consumer.outbox is not None
        self._connection = connection
        self._url = url
        self._outbox = consumer.outbox
        self._columns = consumer.outbox.columns
        self._needed = self._columns.list_used(of_own_format=consumer.format != "outbox") + consumer.outbox.order_by
        schema, _, name = consumer.outbox.table.rpartition(".")
        self._table: TableClause = table(name, schema=schema or None)
        self._id: ColumnElement[Any] = column(self._columns.id)
        self._turn = _TURNS[url.get_backend_name()](connection, f"{url.database}/{consumer.outbox.table}")
        self._due = 0.0

    def check_table(self) -> None:
        """Raises BrokerDown where the table, a column of it or a right is missing."""
        with _failures_as_broker_down(self._url, self._outbox, "read"):
            nothing: Select[Any] = select(literal_column("*")).select_from(self._table).where(false())
            shown: CursorResult[Any] = self._connection.execute(nothing)
            there = list(shown.keys())
            shown.close()
        if missing := [name for name in self._needed if name not in there]:
            raise BrokerDown(
                f"{_format_address(self._url)}: table {self._outbox.table} has no column '{missing[0]}', which the "
                f"outbox needs; it has {', '.join(there)}. Name it with 'columns' of the outbox"
            )
        with _failures_as_broker_down(self._url, self._outbox, "delete"):
            try:
                self._connection.execute(delete(self._table).where(false()))
            except OperationalError as error:
                if not _is_locked(error):  # SQLite, where somebody writes for a while
                    raise

    def receive_messages(self, most: int, wait: float) -> list[ReceivedMessage]:
        """Takes at most ``most`` rows; waits at most ``wait`` seconds for the first."""
        ends = time.monotonic() + wait
        while True:
            if time.monotonic() >= self._due:
                if taken := self._take(most):
                    return taken
                self._due = time.monotonic() + self._outbox.poll_every
            left = ends - time.monotonic()
            if left <= 0:
                return []
            time.sleep(max(0.0, min(left, self._due - time.monotonic())))

    def acknowledge_messages(self, taken: Sequence[ReceivedMessage]) -> None:
        """Deletes rows.

        Raises BrokerDown, and deletes nothing, where more rows than were taken have their ids: then a row that nobody
        has recorded would be deleted.
        """
        ids = list(dict.fromkeys(each.handle for each in taken))
        with _failures_as_broker_down(self._url, self._outbox, "delete"):
            if not self._turn.is_held:
                self._turn.begin()  # it was given up to wait for the ledger; without it, rows are deleted alike
            deleted = sum(self._delete(ids[at : at + _MAX_IDS]) for at in range(0, len(ids), _MAX_IDS))
            if deleted > len(taken):
                self._turn.end(commit=False)
                raise BrokerDown(
                    f"{_format_address(self._url)}: table {self._outbox.table} has more than one row with the same "
                    f"'{self._columns.id}', so no row is deleted. Give each row an id of its own: make the column the "
                    "primary key"
                )
            self._turn.end(commit=True)

    def hold_messages(self, seconds: float) -> None:
        """Waits, and holds no lock meanwhile: the rows that were taken are in the table anyway."""
        with _failures_as_broker_down(self._url, self._outbox, "read"):
            self._turn.end(commit=False)
        time.sleep(seconds)

    def release_queue(self) -> None:
        """Ends the lock and the connection."""
        with suppress(SQLAlchemyError):
            self._turn.end(commit=False)
        with suppress(SQLAlchemyError):
            self._connection.close()

    def _take(self, most: int) -> list[ReceivedMessage]:
        with _failures_as_broker_down(self._url, self._outbox, "read"):
            self._turn.end(commit=False)
            if self._connection.execute(select(literal_column("1")).select_from(self._table).limit(1)).first() is None:
                return []
            if not self._turn.begin():
                return []  # another process takes
            order = dict.fromkeys([*self._outbox.order_by, self._columns.id])
            chosen: Select[Any] = select(literal_column("*")).select_from(self._table)
            rows = self._connection.execute(chosen.order_by(*map(column, order)).limit(most)).mappings().all()
            if not rows:
                self._turn.end(commit=False)
            return [self._build_message(row) for row in rows]

    def _build_message(self, row: Mapping[Any, Any]) -> ReceivedMessage:
        payload = None if self._columns.payload is None else row[self._columns.payload]
        headers = {str(name): _to_header(value) for name, value in row.items() if name != self._columns.payload}
        return ReceivedMessage(Message(_to_body(payload), None, headers), row[self._columns.id])

    def _delete(self, ids: Sequence[object]) -> int:
        present = [each for each in ids if each is not None]
        wanted: ColumnElement[bool] = self._id.in_(bindparam("ids", present, NullType(), expanding=True))
        if len(present) < len(ids):
            wanted = or_(wanted, self._id.is_(None))
        return int(self._connection.execute(delete(self._table).where(wanted)).rowcount)


class _PostgresTurn:
    """A transaction with an advisory lock of its own."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._number = int.from_bytes(_digest_of(name)[:8], "big", signed=True)
        self._settings = "; ".join(["BEGIN", *transaction_settings("postgresql", _STATEMENT_SECONDS)])
        self.is_held = False

    def begin(self) -> bool:
        """Begins a transaction; returns False, with none begun, where another process has the lock."""
        self._connection.exec_driver_sql(self._settings)
        self.is_held = True
        lock = f"SELECT pg_try_advisory_xact_lock({self._number})"
        if self._connection.exec_driver_sql(lock).scalar():
            return True
        self.end(commit=False)
        return False

    def end(self, *, commit: bool) -> None:
        """Ends the transaction, and the lock with it."""
        if self.is_held:
            self.is_held = False
            self._connection.exec_driver_sql("COMMIT" if commit else "ROLLBACK")


class _MySqlTurn:
    """A transaction with a lock of the session, which both end together. Another server of a cluster has its own."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self._name = f"sync_orchestrator.{_digest_of(name).hex()}"
        self.is_held = False

    def begin(self) -> bool:
        """Begins a transaction; returns False, with none begun, where another process has the lock."""
        if not self._connection.exec_driver_sql(f"SELECT GET_LOCK('{self._name}', 0)").scalar():
            return False
        self.is_held = True
        self._connection.exec_driver_sql("START TRANSACTION")
        return True

    def end(self, *, commit: bool) -> None:
        """Ends the transaction, then the lock."""
        if self.is_held:
            self.is_held = False
            self._connection.exec_driver_sql("COMMIT" if commit else "ROLLBACK")
            self._connection.exec_driver_sql(f"SELECT RELEASE_LOCK('{self._name}')")


class _SqliteTurn:
    """A transaction that writes, of which a file has one at a time."""

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.is_held = False

    def begin(self) -> bool:
        """Begins a transaction; returns False, with none begun, where another process writes for longer than that."""
        try:
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as error:
            if _is_locked(error):
                return False
            raise
        self.is_held = True
        return True

    def end(self, *, commit: bool) -> None:
        """Ends the transaction."""
        if self.is_held:
            self.is_held = False
            self._connection.exec_driver_sql("COMMIT" if commit else "ROLLBACK")


def _is_locked(error: OperationalError) -> bool:
    return "database is locked" in str(error.orig)


Turn = _PostgresTurn | _MySqlTurn | _SqliteTurn
_TURNS: dict[str, Callable[[Connection, str], Turn]] = {
    "postgresql": _PostgresTurn,
    "mysql": _MySqlTurn,
    "mariadb": _MySqlTurn,
    "sqlite": _SqliteTurn,
}


class JsonText(str):
    """JSON of Postgres as it is written there."""

    __slots__ = ()


class _JsonTextLoader(Loader):
    """Leaves JSON as it is written: what is wrong with it is told of its row."""

    def load(self, data: Any) -> JsonText:
        return JsonText(bytes(data).decode("utf-8", "surrogateescape"))


def _create_outbox_engine(name: str, url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        url = url.update_query_dict({key: str(value) for key, value in _KEEPALIVE.items() if key not in url.query})
    timeout = _SQLITE_SECONDS if url.get_backend_name() == "sqlite" else _STATEMENT_SECONDS
    engine = create_database_engine(f"consumers.{name}", url, connections=1, timeout=timeout, is_read_only=False)
    if engine.driver == "psycopg":
        event.listen(engine, "connect", lambda connection, _: _keep_json_as_written(connection))
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def _keep_json_as_written(connection: Any) -> None:
    for kind in ("json", "jsonb"):
        connection.adapters.register_loader(kind, _JsonTextLoader)


def _to_body(payload: object) -> bytes:
    if payload is None:
        return b""
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    if isinstance(payload, str):
        return payload.encode("utf-8", "surrogateescape")
    return exact_json.dumps(as_json(payload))


def _to_header(value: object) -> Any:
    """A time that names no zone stays without one: it is in the zone of the part."""
    if isinstance(value, JsonText):
        try:
            return exact_json.parse(value.encode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError):
            return str(value)
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.isoformat()
    return as_json(value)


def _digest_of(name: str) -> bytes:
    return hashlib.blake2b(f"sync_orchestrator outbox {name}".encode(), digest_size=16).digest()


def _format_address(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)


@contextmanager
def _failures_as_broker_down(url: URL, outbox: OutboxSettings, verb: str) -> Iterator[None]:
    """Turns what the database refuses within the block into BrokerDown. ``verb``: what is done with the table."""
    try:
        yield
    except DBAPIError as error:
        raise BrokerDown(f"{_format_address(url)}: {_explain(error, url, outbox.table, verb)}") from None
    except SQLAlchemyError as error:
        raise BrokerDown(f"{_format_address(url)}: {type(error).__name__}") from None


def _explain(error: DBAPIError, url: URL, name: str, verb: str) -> str:
    """What the database refuses, with what to do about it."""
    came = sanitize_text(str(error.orig).strip().partition("\n")[0], [url.password] if url.password else [])
    arguments = getattr(error.orig, "args", ())
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    codes = {code, arguments[0] if arguments and isinstance(arguments[0], int) else None}
    if codes & _NO_TABLE or "no such table" in came:
        return f"there is no table {name}: create it, or name the outbox with 'outbox.table' ({came})"
    if codes & _NO_RIGHT or "readonly database" in came:
        return (
            f"its user may not {verb} rows of table {name}: give the rights SELECT and DELETE on it, and on its schema "
            f"USAGE ({came})"
        )
    return came or type(error.orig).__name__

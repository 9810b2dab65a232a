"""What a database says of changes: the place of a version in its column, open transactions, indexes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, inspect
from sqlalchemy.exc import DBAPIError

from sync_orchestrator.core.ports import OpenTransactions
from sync_orchestrator.errors import CallFailed, Failure

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOLD = timedelta(hours=3)
"""A clock that is set back is set back by less."""

# Sessions of users in this database; the number of a virtual transaction is never used again while its server runs.
_OPEN_ON_POSTGRES = """
SELECT 'virtual ' || l.virtualtransaction
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'virtualxid' AND l.pid <> pg_backend_pid() AND a.datname = current_database()
  AND a.usesysid IS NOT NULL
UNION
SELECT 'prepared ' || transaction::text FROM pg_catalog.pg_prepared_xacts WHERE database = current_database()
"""

# A transaction's own number changes when it first writes.
_OPEN_ON_MYSQL = """
SELECT CONCAT(trx_mysql_thread_id, ' since ', trx_started) FROM information_schema.innodb_trx
WHERE trx_mysql_thread_id <> CONNECTION_ID()
"""


def list_open_transactions(connection: Connection) -> OpenTransactions | None:
    """Returns the transactions that are open beside the connection's own; None where the database cannot say."""
    match connection.dialect.name:
        case "postgresql":
            return _list_on_postgres(connection)
        case "mysql" | "mariadb":
            try:
                found = connection.exec_driver_sql(_OPEN_ON_MYSQL).scalars()
                return OpenTransactions(frozenset(map(str, found)))
            except DBAPIError as error:
                if error.connection_invalidated:
                    raise
                return None  # the right PROCESS is missing
    return None


def _list_on_postgres(connection: Connection) -> OpenTransactions | None:
    if connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar():
        return None  # a replica does not know those of its primary
    names = frozenset(map(str, connection.exec_driver_sql(_OPEN_ON_POSTGRES).scalars()))
    return OpenTransactions(names, may_have_new_names=any(name.startswith("prepared") for name in names))


def has_index_on(connection: Connection, name: str, column: str) -> bool | None:
    """Whether a table has an index that begins with a column; None for a view, or where the database cannot say."""
    schema, _, table = name.rpartition(".")
    try:
        with connection.begin_nested():
            inspector = inspect(connection)
            if table not in inspector.get_table_names(schema or None):
                return None
            leading: list[object] = [
                next(iter(each["column_names"]), None)
                for each in inspector.get_indexes(table, schema or None)
                if not each.get("dialect_options", {}).get("postgresql_where")
            ]
            for each in inspector.get_unique_constraints(table, schema or None):
                leading += each["column_names"][:1]
            leading += inspector.get_pk_constraint(table, schema or None)["constrained_columns"][:1]
    except Exception:  # a database that SQLAlchemy cannot inspect
        return None
    return column in leading


def place_in_column(since: int, kind: str, samples: Sequence[object], zone: ZoneInfo, what: str) -> object:
    """Returns a version as the value of its column, from which on rows are to be read; a little earlier is harmless.

    Args:
        since: The version: microseconds since 1970 for a time, else the number.
        kind: ``time`` or ``number``.
        samples: Values of the column.
        zone: The zone of times that name none.
        what: The table, for the error.

    Raises:
        CallFailed: The column is of a type that has another order than the versions.
    """
    sample = next((value for value in samples if not isinstance(value, str)), samples[0])
    if kind == "number":
        if isinstance(sample, int | float | Decimal):
            return since
        raise _other_order(what, sample, "a number")
    if isinstance(sample, int):
        return since // 1_000_000
    if isinstance(sample, float):
        return since / 1e6
    if isinstance(sample, Decimal):
        return Decimal(since) / 1_000_000
    moment = _EPOCH + timedelta(microseconds=since)
    if isinstance(sample, datetime):
        return moment if sample.tzinfo else _to_local(moment, zone)
    if isinstance(sample, date):
        return _to_local(moment, zone).date()
    if isinstance(sample, str):
        return _day_before(sample, moment, what)
    raise _other_order(what, sample, "a time")


def _to_local(moment: datetime, zone: ZoneInfo) -> datetime:
    """A time in a zone, without it; earlier where the clock is set back soon, since its hours then come twice."""
    local, later = moment.astimezone(zone), (moment + _FOLD).astimezone(zone)
    back = (local.utcoffset() or timedelta()) - (later.utcoffset() or timedelta())
    return local.replace(tzinfo=None) - max(back, timedelta())


def _day_before(sample: str, moment: datetime, what: str) -> str:
    """ISO 8601 texts are in the order of their days, whatever stands between day and time, and whatever their zone."""
    try:
        date.fromisoformat(sample[:10])
    except ValueError:
        raise _other_order(what, sample, "a time") from None
    return (moment - timedelta(days=1)).date().isoformat()


def _other_order(what: str, sample: object, wanted: str) -> CallFailed:
    return CallFailed(
        Failure.PERMANENT,
        f"{what}: its version is a {type(sample).__name__} ({str(sample)[:40]}), whose order is not that of {wanted}, "
        f"so changes are not found by it: give it as {wanted} with sql.query, or leave out 'changes'",
    )

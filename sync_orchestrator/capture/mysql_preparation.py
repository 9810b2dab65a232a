"""What a MySQL or MariaDB source needs so that its changes can be captured: what is missing, and the SQL for it.

Nothing is done here: an operator of the source runs the SQL.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from sync_orchestrator.capture.binlog_rows import KEY_TYPES
from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.preparation import SourcePreparation

WANTED_EXPIRY_SECONDS = 3 * 24 * 3600
_VARIABLES = (
    "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format', 'binlog_row_metadata', "
    "'binlog_row_image', 'gtid_mode', 'enforce_gtid_consistency', 'server_id', 'binlog_expire_logs_seconds', "
    "'expire_logs_days', 'log_bin_compress', 'binlog_transaction_compression', 'lower_case_table_names')"
)
_TABLE = """
SELECT TABLE_SCHEMA AS table_schema, TABLE_NAME AS table_name, TABLE_TYPE AS table_type FROM information_schema.TABLES
WHERE TABLE_SCHEMA = :schema AND TABLE_NAME = :name
"""
_COLUMNS = """
SELECT COLUMN_NAME AS name, DATA_TYPE AS data_type, COLUMN_TYPE AS column_type, COLUMN_KEY AS column_key,
    CHARACTER_SET_NAME AS charset
FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = :schema AND TABLE_NAME = :name ORDER BY ORDINAL_POSITION
"""
_CASCADES = """
SELECT CONSTRAINT_NAME AS name, REFERENCED_TABLE_NAME AS parent FROM information_schema.REFERENTIAL_CONSTRAINTS
WHERE CONSTRAINT_SCHEMA = :schema AND TABLE_NAME = :name
    AND (DELETE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT') OR UPDATE_RULE IN ('CASCADE', 'SET NULL', 'SET DEFAULT'))
"""
_KEY_TYPES = frozenset(
    {"tinyint", "smallint", "mediumint", "int", "bigint", "decimal", "char", "varchar"}
    | {"tinytext", "text", "mediumtext", "longtext"}
)
_CHARSETS = frozenset({"utf8mb4", "utf8mb3", "utf8", "ascii", "latin1", "latin2", "cp1251"})
_LOG_STATUS = ("SHOW BINARY LOG STATUS", "SHOW MASTER STATUS")  # of MySQL 8.4 and later, and of all others


@dataclass(frozen=True, slots=True)
class _Server:
    """The settings of a server, by their names; ``is_mariadb`` as it says itself."""

    settings: Mapping[str, str]
    is_mariadb: bool
    database: str

    def get(self, name: str) -> str:
        return self.settings.get(name, "").upper()


def inspect_mysql(connection: Connection, tables: Sequence[CapturedTable]) -> SourcePreparation:
    """Looks at what a source has and lacks. It reads settings and the information schema only.

    Args:
        connection: A connection to the server.
        tables: The captured tables.
    """
    rows = connection.exec_driver_sql(_VARIABLES)
    version, database = connection.exec_driver_sql("SELECT VERSION(), DATABASE()").one()
    settings = {str(name).lower(): str(value) for name, value in rows}
    server = _Server(settings, "mariadb" in str(version).lower(), str(database or ""))
    found = MysqlPreparation()
    _check_log(server, found)
    _check_gtid(server, found)
    _check_retention(server, found)
    _check_rights(connection, server, found)
    _check_filters(connection, server, tables, found)
    for table in tables:
        _check_table(connection, server, table, found)
    return found


class MysqlPreparation(SourcePreparation):
    """What a MySQL or MariaDB has and lacks; ``logged``: the captured tables' real names, by name as configured."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, str] = {}

    @property
    def identity(self) -> str:
        """A position belongs to nothing but the server."""
        return ""

    def name_tables(self) -> dict[str, str]:
        """The captured tables as a stream keeps them: by name, as they are in the log."""
        return dict(sorted(self.logged.items()))


def _check_log(server: _Server, found: SourcePreparation) -> None:
    if server.get("log_bin") != "ON":
        found.problems.append("log_bin is off: the server writes no binlog. Set it in my.cnf and restart the server")
        found.statements.append("-- my.cnf, [mysqld]: log_bin = binlog  -- takes effect when the server restarts")
        found.statements.append("-- The restart ends what SET GLOBAL sets: write these settings in my.cnf before it")
    if server.get("binlog_format") != "ROW":
        found.problems.append(f"binlog_format is {server.get('binlog_format')}, and must be ROW")
        found.statements.append("SET GLOBAL binlog_format = 'ROW';  -- and in my.cnf; open sessions keep theirs")
    if server.get("binlog_row_metadata") != "FULL":
        found.problems.append(
            f"binlog_row_metadata is {server.get('binlog_row_metadata') or 'not there'}, and must be FULL: without the "
            "names of columns the log does not say whose row was changed, once the table was altered"
        )
        found.statements.append("SET GLOBAL binlog_row_metadata = 'FULL';  -- and in my.cnf")
    for name in ("log_bin_compress", "binlog_transaction_compression"):
        if server.get(name) == "ON":
            found.problems.append(f"{name} is ON: compressed events of the log cannot be read here")
            found.statements.append(f"SET GLOBAL {name} = OFF;  -- and in my.cnf")


def _check_gtid(server: _Server, found: SourcePreparation) -> None:
    if not server.is_mariadb and server.get("gtid_mode") != "ON":
        found.problems.append(f"gtid_mode is {server.get('gtid_mode') or 'OFF'}, and must be ON")
        found.statements.append(
            "-- my.cnf, [mysqld]: gtid_mode = ON and enforce_gtid_consistency = ON  -- or step by step while it runs"
        )
    identifier = server.get("server_id")
    if identifier in ("", "0"):
        found.problems.append("server_id is 0: a server without a number sends its log to nobody")
        found.statements.append("SET GLOBAL server_id = 11;  -- and in my.cnf; a number of its own for each server")
    elif identifier == "1" and server.is_mariadb:
        found.warnings.append(
            "server_id is 1, as of every server that nobody gave a number: another server behind this address may not "
            "be noticed. Give each server a number of its own"
        )


def _check_retention(server: _Server, found: SourcePreparation) -> None:
    told = server.get("binlog_expire_logs_seconds")
    seconds = float(told) if told else float(server.get("expire_logs_days") or 0) * 24 * 3600
    if 0 < seconds < WANTED_EXPIRY_SECONDS:
        found.warnings.append(
            f"the server removes its log after {seconds / 3600:.0f} h: a reader that is away for longer loses changes, "
            "which is alerted and a full sync restores"
        )
        found.statements.append(f"-- Recommended: SET GLOBAL binlog_expire_logs_seconds = {WANTED_EXPIRY_SECONDS};")


def _check_rights(connection: Connection, server: _Server, found: SourcePreparation) -> None:
    user = str(connection.exec_driver_sql("SELECT CURRENT_USER()").scalar_one())
    grants = " ".join(str(row[0]) for row in connection.exec_driver_sql("SHOW GRANTS")).upper()
    reads_status = "BINLOG MONITOR" if server.is_mariadb else "REPLICATION CLIENT"
    known = (reads_status, "REPLICATION CLIENT", "BINLOG MONITOR")
    everything = "ALL PRIVILEGES ON *.*" in grants
    lacks = [] if everything or "REPLICATION SLAVE" in grants else ["REPLICATION SLAVE"]
    lacks += [] if everything or any(name in grants for name in known) else [reads_status]
    if lacks:
        found.warnings.append(f"user {user} has no right {', '.join(lacks)} of its own; a role may give it")
        name, _, host = user.rpartition("@")
        found.statements.append(f"GRANT {', '.join(lacks)} ON *.* TO {_quote(name)}@{_quote(host)};")


def _check_filters(
    connection: Connection, server: _Server, tables: Sequence[CapturedTable], found: SourcePreparation
) -> None:
    """A server may leave databases out of its log."""
    status = read_log_status(connection)
    if status is None:
        return
    only = [name for name in str(status.get("Binlog_Do_DB") or "").split(",") if name]
    ignored = [name for name in str(status.get("Binlog_Ignore_DB") or "").split(",") if name]
    for schema in sorted({table.schema or server.database for table in tables}):
        if (only and schema not in only) or schema in ignored:
            found.problems.append(
                f"the server leaves database {schema} out of its log (binlog_do_db, binlog_ignore_db)"
            )


def read_log_status(connection: Connection) -> Mapping[str, object] | None:
    """Where the log ends and what it leaves out, as the server shows it; None where that is not allowed."""
    for statement in _LOG_STATUS:
        try:
            row = connection.exec_driver_sql(statement).mappings().one_or_none()
        except DBAPIError:
            continue
        return None if row is None else {str(name): value for name, value in row.items()}
    return None


def _check_table(connection: Connection, server: _Server, table: CapturedTable, found: MysqlPreparation) -> None:
    names = {"schema": table.schema or server.database, "name": table.relation}
    row = connection.execute(text(_TABLE), names).one_or_none()
    if row is None or str(row.table_type) not in ("BASE TABLE", "SYSTEM VERSIONED"):
        found.problems.append(
            f"there is no table {table.name}"
            if row is None
            else f"{table.name} is a view: name its tables in the part's changes.tables"
        )
        return
    columns = {str(each.name): each for each in connection.execute(text(_COLUMNS), names)}
    if gone := sorted(set(table.key_columns) - set(columns)):
        found.problems.append(
            f"table {table.name} has no column {', '.join(gone)}, which has the key; it has {', '.join(columns)}"
        )
        return
    problems = [_find_key_problem(server, table, columns[name]) for name in table.key_columns]
    problems += [
        f"column {name} of table {table.name} is compressed, which cannot be read from the log here"
        for name, each in columns.items()
        if re.search(r"\bcompressed\b", str(each.column_type), re.IGNORECASE)
    ]
    found.problems += [problem for problem in problems if problem]
    if not any(problems):
        found.logged[table.name] = f"{row.table_schema}.{row.table_name}"
    for cascade in connection.execute(text(_CASCADES), names):
        found.warnings.append(
            f"foreign key {cascade.name} of table {table.name} changes its rows when {cascade.parent} changes, and the "
            "server does not log that: capture that table as well, or let the application delete the rows"
        )


def _find_key_problem(server: _Server, table: CapturedTable, column: object) -> str | None:
    name, kind = str(getattr(column, "name", "")), str(getattr(column, "data_type", "")).lower()
    if kind not in _KEY_TYPES:
        return (
            f"column {name} of table {table.name} has the key and the type {kind}, whose values in the log are not "
            f"those of a SELECT; keys may be {KEY_TYPES}"
        )
    charset = getattr(column, "charset", None)
    if charset is not None and charset not in _CHARSETS:
        return (
            f"column {name} of table {table.name} has the key and the character set {charset}, which cannot be read "
            "from the log here"
        )
    is_whole = server.get("binlog_row_image") in ("FULL", "FULL_NODUP")
    if not is_whole and str(getattr(column, "column_key", "")) != "PRI":
        return (
            f"column {name} of table {table.name} has the key and is not in the primary key: with binlog_row_image "
            f"{server.get('binlog_row_image')} the log does not say whose row is changed. Set binlog_row_image to FULL"
        )
    return None


def _quote(name: str) -> str:
    return "'" + name.replace("\\", "\\\\").replace("'", "''") + "'"

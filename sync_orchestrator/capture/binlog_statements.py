"""What a statement in a binlog means for captured tables. Pure.

With ``binlog_format=ROW`` rows are logged as rows, and only DDL as statements. A session may still set another format;
then its rows are not in the log. Statements are not parsed: where one may concern a captured table, it counts as one
that does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from sync_orchestrator.capture.parts import CapturedTable

_MAX_SHOWN = 160
_LEADING = re.compile(r"(?:\s+|;|\(|--[^\n]*(?:\n|$)|#[^\n]*(?:\n|$)|/\*(?!M?!).*?\*/)*", re.DOTALL)
_EXECUTED_COMMENT = re.compile(r"/\*M?!\d*(.*?)\*/", re.DOTALL)
_WORDS = re.compile(r"[A-Za-z_]+")
_XA = re.compile(r"XA\s+(START|BEGIN|END|PREPARE|COMMIT|ROLLBACK)\s+(.*)", re.IGNORECASE | re.DOTALL)
_NO_ROWS = frozenset(
    {"GRANT", "REVOKE", "FLUSH", "ANALYZE", "OPTIMIZE", "REPAIR", "CHECK", "INSTALL", "UNINSTALL", "SAVEPOINT"}
    | {"RELEASE", "CREATE", "ALTER", "DROP", "RENAME", "SET", "BACKUP", "CHANGE", "START", "STOP", "SHUTDOWN", "KILL"}
)
_MOVES_ROWS = re.compile(r"\b(?:PARTITION|TABLESPACE|RENAME\s+(?!COLUMN\b|INDEX\b|KEY\b))", re.IGNORECASE)


class StatementKind(Enum):
    """What a statement does to captured tables, or to the transaction."""

    NONE = "none"
    BEGIN = "begin"
    END = "end"
    WITHIN = "within"
    """It belongs to the open transaction, and changes no row that counts."""
    XA_START = "xa start"
    XA_COMMIT = "xa commit"
    XA_ROLLBACK = "xa rollback"
    TRUNCATED = "truncated"
    REPLACED = "replaced"
    UNSEEN_ROWS = "unseen rows"
    """Rows are changed, and the log does not say which."""


@dataclass(frozen=True, slots=True)
class LoggedTable:
    """A captured table by its real name; ``schema`` is its database."""

    schema: str
    name: str
    table: CapturedTable


@dataclass(frozen=True, slots=True)
class StatementEffect:
    """What a statement means.

    Attributes:
        tables: The captured tables that it concerns.
        shown: The beginning of the statement, for operators.
        xid: What names a distributed transaction.
    """

    kind: StatementKind
    tables: tuple[CapturedTable, ...] = ()
    shown: str = ""
    xid: str = ""

    @property
    def reason(self) -> str:
        """Why changes are missing, in a sentence with the hint."""
        names = ", ".join(sorted(table.name for table in self.tables))
        if self.kind is StatementKind.REPLACED:
            return f"table {names} was dropped, renamed, made anew or moved by partition: {self.shown}"
        return (
            f"a session logged a statement instead of rows, which may have changed {names}: {self.shown}. "
            "Sessions must leave binlog_format at ROW"
        )


def read_statement(text: str, schema: str, tables: Sequence[LoggedTable]) -> StatementEffect:
    """Returns what a logged statement means.

    Args:
        text: The statement.
        schema: The session's database; empty where it has none.
        tables: The captured tables.
    """
    plain = _EXECUTED_COMMENT.sub(r" \1 ", text)
    plain = plain[_LEADING.match(plain).end() :]  # type: ignore[union-attr]
    if (found := _XA.match(plain)) is not None:
        return _read_xa(found[1].upper(), found[2])
    words = [word.upper() for word in _WORDS.findall(plain[:200])[:8]]
    if not words:
        return StatementEffect(StatementKind.NONE)
    if (kind := _read_control(words)) is not None:
        return StatementEffect(kind)
    shown = " ".join(plain.split())[:_MAX_SHOWN]
    kind, concerned = _find_concerned(words, plain, schema, tables)
    if not concerned:
        return StatementEffect(StatementKind.NONE)
    return StatementEffect(kind, tuple(each.table for each in concerned), shown)


def format_xid(global_part: bytes, branch: bytes, kind: int) -> str:
    """The name of a distributed transaction, in one form for events and statements."""
    return f"{global_part.hex()}/{branch.hex()}/{kind}"


def _read_control(words: Sequence[str]) -> StatementKind | None:
    if words[:2] == ["BEGIN", "NOT"]:  # a compound statement
        return None
    if words[0] == "BEGIN" or words[:2] == ["START", "TRANSACTION"]:
        return StatementKind.BEGIN
    if words[0] == "COMMIT":
        return StatementKind.END
    if words[0] == "ROLLBACK":
        return StatementKind.WITHIN if "TO" in words[1:3] else StatementKind.END
    if words[0] in ("SAVEPOINT", "RELEASE"):
        return StatementKind.WITHIN
    return None


def _read_xa(verb: str, rest: str) -> StatementEffect:
    xid = _read_xid(rest)
    if verb in ("START", "BEGIN"):
        return StatementEffect(StatementKind.XA_START, xid=xid)
    if verb == "COMMIT":
        return StatementEffect(StatementKind.XA_COMMIT, xid=xid)
    if verb == "ROLLBACK":
        return StatementEffect(StatementKind.XA_ROLLBACK, xid=xid)
    return StatementEffect(StatementKind.WITHIN, xid=xid)


def _read_xid(text: str) -> str:
    """The name in ``X'6162',X'',1``, as servers log it; empty for another form."""
    found = re.match(r"X'([0-9A-F]*)'\s*,\s*X'([0-9A-F]*)'\s*,\s*(\d+)", text.strip(), re.IGNORECASE)
    return "" if found is None else format_xid(bytes.fromhex(found[1]), bytes.fromhex(found[2]), int(found[3]))


def _find_concerned(
    words: Sequence[str], text: str, schema: str, tables: Sequence[LoggedTable]
) -> tuple[StatementKind, list[LoggedTable]]:
    """What a statement does, and to which captured tables; no table where it does nothing that counts."""
    named = [table for table in tables if _names(text, schema, table)]
    second = words[1] if len(words) > 1 else ""
    match words[0]:
        case "TRUNCATE":
            return StatementKind.TRUNCATED, named
        case "DROP" if second in ("DATABASE", "SCHEMA"):
            return StatementKind.REPLACED, [each for each in tables if _mentions(text, each.schema)]
        case "DROP" if "TABLE" in words[1:3] or "TABLES" in words[1:3]:
            return StatementKind.REPLACED, named
        case "RENAME" if second in ("TABLE", "TABLES"):
            return StatementKind.REPLACED, named
        case "ALTER" if "TABLE" in words[1:4] and _MOVES_ROWS.search(text):
            return StatementKind.REPLACED, named
        case "CREATE" if "TABLE" in words[1:4] and ("REPLACE" in words[1:3] or _mentions(text, "SELECT")):
            return StatementKind.REPLACED, named
        case "SET" if second == "STATEMENT":
            pass
        case word if word in _NO_ROWS:
            return StatementKind.NONE, []
    if any(_same(schema, each.schema) or _mentions(text, each.schema) for each in tables):
        return StatementKind.UNSEEN_ROWS, list(tables)  # it may reach others by triggers, views and foreign keys
    return StatementKind.UNSEEN_ROWS, named


def _names(text: str, schema: str, table: LoggedTable) -> bool:
    """Whether a statement names a table, as far as can be told without parsing."""
    if not _mentions(text, table.name):
        return False
    return _same(schema, table.schema) or _mentions(text, table.schema)


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", text, re.IGNORECASE) is not None


def _same(one: str, other: str) -> bool:
    return one.casefold() == other.casefold()

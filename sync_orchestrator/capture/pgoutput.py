"""The messages of Postgres' ``pgoutput`` (protocol 1) as objects. Pure: values stay the bytes that the server sent.

See https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html. Protocol 1 sends a transaction
once it is committed, whole and in the order of commits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from struct import Struct
from typing import Final, Literal

POSTGRES_EPOCH_MICROSECONDS = 946_684_800_000_000
"""2000-01-01 in microseconds since 1970: times of the protocol count from there."""

_INT16 = Struct("!h")
_INT32 = Struct("!i")
_UINT32 = Struct("!I")
_BEGIN = Struct("!QqI")
_COMMIT = Struct("!BQQq")


class DecodeFailed(Exception):
    """Bytes that are no message of the protocol; the stream cannot be gone on with."""


class Unchanged(Enum):
    """The value of a column whose large value did not change, so that the log does not hold it."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
Value = bytes | None | Unchanged
Row = tuple[Value, ...]
ReplicaIdentity = Literal["d", "n", "f", "i"]


@dataclass(frozen=True, slots=True)
class TransactionBegin:
    """A transaction begins. ``lsn``: that of its commit; ``committed_at``: microseconds since 1970."""

    lsn: int
    committed_at: int
    xid: int


@dataclass(frozen=True, slots=True)
class TransactionEnd:
    """A transaction ends. ``end_lsn``: where the next one may begin."""

    lsn: int
    end_lsn: int
    committed_at: int


@dataclass(frozen=True, slots=True)
class RelationColumn:
    """A column of a table. ``is_key``: it is in the replica identity; ``type_oid`` may be a domain's."""

    name: str
    type_oid: int
    is_key: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table as it is from here on; it is sent before its first change, and again after it was altered."""

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[RelationColumn, ...]


@dataclass(frozen=True, slots=True)
class RowChange:
    """A row was inserted, updated or deleted.

    Attributes:
        old: The row before: whole where ``is_old_whole``, otherwise its replica identity alone, other columns None.
            None where it was not sent, since the replica identity has not changed.
        new: The row after; None for a delete.
    """

    kind: Literal["insert", "update", "delete"]
    relation: int
    old: Row | None
    is_old_whole: bool
    new: Row | None


@dataclass(frozen=True, slots=True)
class TruncatedTables:
    """Tables were emptied at once; their rows are not named."""

    relations: tuple[int, ...]


PgMessage = TransactionBegin | TransactionEnd | Relation | RowChange | TruncatedTables


def decode_message(data: bytes) -> PgMessage | None:
    """Decodes a message; None for one that says nothing about rows.

    Raises:
        DecodeFailed: The bytes are no message of protocol 1.
    """
    try:
        decode = _DECODERS.get(data[:1])
        if decode is None:
            if data[:1] in _IGNORED:
                return None
            raise DecodeFailed(f"message of unknown type {data[:1]!r}")
        return decode(data)
    except DecodeFailed:
        raise
    except Exception as error:  # of whatever kind: bytes of a server are read
        raise DecodeFailed(f"message of type {data[:1]!r} with {len(data)} bytes: {type(error).__name__}") from error


def _decode_begin(data: bytes) -> TransactionBegin:
    lsn, at, xid = _BEGIN.unpack_from(data, 1)
    return TransactionBegin(lsn, at + POSTGRES_EPOCH_MICROSECONDS, xid)


def _decode_commit(data: bytes) -> TransactionEnd:
    _, lsn, end_lsn, at = _COMMIT.unpack_from(data, 1)
    return TransactionEnd(lsn, end_lsn, at + POSTGRES_EPOCH_MICROSECONDS)


def _decode_relation(data: bytes) -> Relation:
    (oid,) = _UINT32.unpack_from(data, 1)
    schema, at = _read_text(data, 5)
    name, at = _read_text(data, at)
    identity = chr(data[at])
    (count,) = _INT16.unpack_from(data, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        is_key = bool(data[at] & 1)
        column, at = _read_text(data, at + 1)
        (type_oid,) = _UINT32.unpack_from(data, at)
        at += 8  # the type and its modifier
        columns.append(RelationColumn(column, type_oid, is_key))
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns))


def _decode_insert(data: bytes) -> RowChange:
    _require(data[5:6] == b"N")
    new, _ = _read_row(data, 6)
    return RowChange("insert", _UINT32.unpack_from(data, 1)[0], None, False, new)


def _decode_update(data: bytes) -> RowChange:
    old, at, kind = None, 5, data[5:6]
    if kind in (b"K", b"O"):
        old, at = _read_row(data, 6)
    _require(data[at : at + 1] == b"N")
    new, _ = _read_row(data, at + 1)
    return RowChange("update", _UINT32.unpack_from(data, 1)[0], old, kind == b"O", new)


def _decode_delete(data: bytes) -> RowChange:
    _require(data[5:6] in (b"K", b"O"))
    old, _ = _read_row(data, 6)
    return RowChange("delete", _UINT32.unpack_from(data, 1)[0], old, data[5:6] == b"O", None)


def _decode_truncate(data: bytes) -> TruncatedTables:
    (count,) = _INT32.unpack_from(data, 1)
    return TruncatedTables(tuple(_UINT32.unpack_from(data, 6 + 4 * number)[0] for number in range(count)))


def _read_row(data: bytes, at: int) -> tuple[Row, int]:
    (count,) = _INT16.unpack_from(data, at)
    at += 2
    values: list[Value] = []
    for _ in range(count):
        kind = data[at]
        at += 1
        if kind == 0x74:  # t: a text
            (length,) = _INT32.unpack_from(data, at)
            at += 4
            if not 0 <= length <= len(data) - at:
                raise DecodeFailed("the bytes are no message of the protocol")
            values.append(data[at : at + length])
            at += length
        elif kind == 0x6E:  # n: NULL
            values.append(None)
        elif kind == 0x75:  # u: unchanged
            values.append(UNCHANGED)
        else:
            raise DecodeFailed(f"value of unknown kind {chr(kind)!r}")
    return tuple(values), at


def _read_text(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode("utf-8", "surrogateescape"), end + 1


def _require(holds: bool) -> None:
    if not holds:
        raise DecodeFailed("a part of a message is missing")


_DECODERS: dict[bytes, Callable[[bytes], PgMessage]] = {
    b"B": _decode_begin,
    b"C": _decode_commit,
    b"R": _decode_relation,
    b"I": _decode_insert,
    b"U": _decode_update,
    b"D": _decode_delete,
    b"T": _decode_truncate,
}
_IGNORED = frozenset({b"O", b"Y", b"M"})
"""Origins, names of types, and messages of applications."""

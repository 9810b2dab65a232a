"""Which relations of a Postgres store the rows of a table, and what its rows look like: catalogs are read only.

The log does not show what a rewrite, a new default or a change of partitions does to rows. The shape of a table differs
afterwards (``core/capture/table_marks.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, text

from sync_orchestrator.capture.parts import CapturedTable

MAX_COMMANDS_OF_CREATION = 3
"""CREATE TABLE … PARTITION OF makes the partition and attaches it within this number of commands of a transaction."""

# A partition is made as one in a single statement, or it is made first and attached later, with rows. Catalog rows keep
# the transaction and the command that wrote them; those of system columns are never written again.
_RELATIONS = """
WITH RECURSIVE tree AS (
    SELECT CAST(:oid AS oid) AS oid, CAST(NULL AS oid) AS parent
    UNION
    SELECT i.inhrelid, i.inhparent FROM pg_inherits i JOIN tree t ON i.inhparent = t.oid)
SELECT c.oid, t.parent, n.nspname AS schema, c.relname AS name, c.relkind AS kind, c.relispartition AS is_partition,
    c.relpersistence AS persistence, c.relreplident AS identity, pg_relation_filenode(c.oid) AS filenode,
    CASE c.relreplident
        WHEN 'f' THEN (SELECT array_agg(attname::text) FROM pg_attribute
                       WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
        ELSE (SELECT array_agg(a.attname::text) FROM pg_index i
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
              WHERE i.indrelid = c.oid AND i.indimmediate
                AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
    END AS identity_columns,
    coalesce((SELECT i.xmin = a.xmin AND i.cmin::text::bigint - a.cmin::text::bigint BETWEEN 0 AND :commands
              FROM pg_inherits i JOIN pg_attribute a ON a.attrelid = i.inhrelid AND a.attname = 'ctid'
              WHERE i.inhrelid = c.oid AND i.inhparent = t.parent), false)
        AND c.relispartition AND coalesce(pg_relation_filenode(c.oid), c.oid) = c.oid AS was_made_empty
FROM tree t JOIN pg_class c ON c.oid = t.oid JOIN pg_namespace n ON n.oid = c.relnamespace
ORDER BY c.oid
"""
_COLUMNS = """
SELECT a.attnum AS number, a.attname AS name, a.atttypid AS type, a.atttypmod AS modifier,
    a.attmissingval::text AS missing,
    CASE WHEN a.attgenerated <> '' THEN pg_get_expr(d.adbin, d.adrelid) END AS generated
FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""
_SEEN = """
SELECT n.nspname AS schema, row_security_active(c.oid) AS is_filtered, current_user AS role
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = :name AND CASE WHEN :schema = '' THEN pg_table_is_visible(c.oid) ELSE n.nspname = :schema END
"""


@dataclass(frozen=True, slots=True)
class StoredRelation:
    """The table, a partition of it, or a table that inherits from it.

    Attributes:
        kind: As in ``pg_class.relkind``.
        is_root: It is the table itself.
        is_partition: It is a partition, whose changes the log tells as those of the table.
        is_logged: Its changes are in the log.
        identity_columns: The columns that the log tells of a deleted row.
        filenode: Another one after each rewrite; None where it stores no rows itself.
        was_made_empty: It was made as a partition, and not rewritten: all of its rows came through the log.
    """

    oid: int
    schema: str
    name: str
    kind: str
    is_root: bool
    is_partition: bool
    is_logged: bool
    identity_columns: frozenset[str]
    filenode: int | None
    was_made_empty: bool


def list_relations(connection: Connection, oid: int) -> list[StoredRelation]:
    """Returns the table, and all partitions and tables that inherit from it."""
    rows = connection.execute(text(_RELATIONS), {"oid": oid, "commands": MAX_COMMANDS_OF_CREATION})
    return [
        StoredRelation(
            oid=int(row.oid),
            schema=row.schema,
            name=row.name,
            kind=row.kind,
            is_root=row.parent is None,
            is_partition=row.is_partition,
            is_logged=row.kind == "p" or (row.kind == "r" and row.persistence == "p"),
            identity_columns=frozenset(row.identity_columns or ()),
            filenode=row.filenode,
            was_made_empty=row.was_made_empty,
        )
        for row in rows
    ]


def read_shape(connection: Connection, oid: int, relations: Iterable[StoredRelation]) -> list[tuple[str, bool]]:
    """Returns the elements of a table's shape, each with whether its arrival changes no row."""
    columns = connection.execute(text(_COLUMNS), {"oid": oid}).all()
    return [*_describe_columns(columns), *_describe_relations(relations)]


def describe_uses(table: CapturedTable) -> dict[str, str]:
    """Returns by entity, both in a short form, how its key and business group are taken from a table's rows."""
    return {
        _shorten(part.entity): _shorten(part.key_column, part.is_row, part.settings.key, part.settings.group)
        for part in table.parts
    }


def _describe_columns(columns: Iterable[Row[Any]]) -> Iterator[tuple[str, bool]]:
    for row in columns:
        yield _shorten("column", *row), row.missing is None and row.generated is None


def _describe_relations(relations: Iterable[StoredRelation]) -> Iterator[tuple[str, bool]]:
    for each in relations:
        yield _shorten("relation", each.oid, each.filenode), each.was_made_empty


def _shorten(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=5).hexdigest()


def find_hidden_rows(connection: Connection, table: CapturedTable, schema: str) -> str | None:
    """Why reads of records do not show what the log tells of a table, in a sentence; None where they do.

    Args:
        connection: A connection as records are read.
        table: The table.
        schema: The schema in which the user of the stream finds it.
    """
    row = connection.execute(text(_SEEN), {"schema": table.schema, "name": table.relation}).one_or_none()
    if row is None:
        return f"there is no table {table.name} for the user who reads records"
    if row.schema != schema:
        return (
            f"table {table.name} is in schema {row.schema} for the user who reads records, and in {schema} for the one "
            "who captures changes, by their search_path: name it with its schema"
        )
    if row.is_filtered:
        return (
            f"row level security hides rows of table {table.name} from role {row.role}, which reads records; the log "
            "has the changes of all rows. Give the role BYPASSRLS"
        )
    return None

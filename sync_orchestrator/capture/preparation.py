"""What a Postgres source needs so that its changes can be captured: what is missing, and the SQL for it.

Nothing is done here: an operator of the source runs the SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.table_shapes import (
    StoredRelation,
    describe_uses,
    find_hidden_rows,
    list_relations,
    read_shape,
)
from sync_orchestrator.config.sources import CaptureSettings
from sync_orchestrator.core.capture.table_marks import build_mark

_TABLE = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind, c.xmin::text AS state,
    (SELECT array_agg(attname::text) FROM pg_attribute
     WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = :name AND CASE WHEN :schema = '' THEN pg_table_is_visible(c.oid) ELSE n.nspname = :schema END
"""
_PUBLICATION = "SELECT *, xmin::text AS state FROM pg_publication WHERE pubname = :name"
_PUBLISHED = "SELECT * FROM pg_publication_tables WHERE pubname = :name"
_MEMBERSHIPS = """
SELECT r.prrelid AS relation, r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
WHERE p.pubname = :name
"""
_HAS_SCHEMAS = "SELECT to_regclass('pg_catalog.pg_publication_namespace') IS NOT NULL"
_SCHEMAS = """
SELECT n.nspname AS schema, s.oid FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid
JOIN pg_namespace n ON n.oid = s.pnnspid WHERE p.pubname = :name
"""
_SETTINGS = """
SELECT name, setting FROM pg_settings
WHERE name IN ('wal_level', 'max_slot_wal_keep_size', 'max_replication_slots', 'max_wal_senders')
"""
_ROLE = "SELECT rolname, rolreplication OR rolsuper AS may_replicate FROM pg_roles WHERE rolname = current_user"


@dataclass(slots=True)
class SourcePreparation:
    """What a source has, and what it lacks.

    Attributes:
        problems: A sentence for each thing without which nothing is captured.
        warnings: A sentence for each thing that is risky.
        statements: The SQL that ends the problems, for an operator of the source.
        oids: The captured tables that are there and published, by name as configured.
        marks: By the names of these tables, what they are known by (``core/capture/table_marks.py``).
        schemas: The schemas in which they are, by name as configured.
        publication: What the publication is known by; empty where there is none.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    oids: dict[str, int] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)
    schemas: dict[str, str] = field(default_factory=dict)
    publication: str = ""

    @property
    def identity(self) -> str:
        """What a stream's position belongs to besides the server."""
        return f"publication {self.publication}"

    def name_tables(self) -> dict[str, str]:
        """The captured tables as a stream keeps them: by name, what they are known by."""
        return {name: self.marks[name] for name in sorted(self.oids)}


@dataclass(frozen=True, slots=True)
class _Publication:
    """A publication with its tables.

    Attributes:
        row: As in ``pg_publication``.
        tables: By schema and name, the rows of ``pg_publication_tables``.
        members: By table, what its place is known by: a table that left and came back has another.
        schemas: The same by schema, where all tables of it are published.
    """

    row: Any
    tables: dict[tuple[str, str], Any]
    members: dict[int, int]
    schemas: dict[str, int]

    def name_membership(self, table: Any) -> str:
        """What the place of a table is known by; a table that is in by its schema may have left that."""
        if table.oid in self.members or table.schema not in self.schemas:
            return str(self.members.get(table.oid, 0))
        return f"{self.schemas[table.schema]}.{table.state}"


def inspect_source(
    connection: Connection, capture: CaptureSettings, tables: Sequence[CapturedTable]
) -> SourcePreparation:
    """Looks at what a source has and lacks. It reads catalogs only."""
    found = SourcePreparation()
    _check_server(connection, found)
    publication = _read_publication(connection, capture.publication)
    if publication is not None:
        found.publication = str(publication.row["oid"])
        _check_publication(publication.row, capture, found)
    missing: list[str] = []
    for table in tables:
        _check_table(connection, table, publication, missing, found)
    _check_children(connection, found)
    _add_tables(publication, capture, missing, found)
    return found


def inspect_reading(connection: Connection, tables: Sequence[CapturedTable], found: SourcePreparation) -> None:
    """Adds the problems of tables whose rows are read otherwise than the log tells them.

    Args:
        connection: A connection as records are read.
        tables: The captured tables.
        found: What was found of them.
    """
    for table in tables:
        if table.name not in found.oids:
            continue
        if (problem := find_hidden_rows(connection, table, found.schemas[table.name])) is not None:
            del found.oids[table.name]
            found.problems.append(problem)


def _read_publication(connection: Connection, name: str) -> _Publication | None:
    row = connection.execute(text(_PUBLICATION), {"name": name}).mappings().one_or_none()
    if row is None:
        return None
    tables = connection.execute(text(_PUBLISHED), {"name": name}).mappings()
    members = connection.execute(text(_MEMBERSHIPS), {"name": name})
    has_schemas = connection.execute(text(_HAS_SCHEMAS)).scalar()
    schemas = connection.execute(text(_SCHEMAS), {"name": name}).all() if has_schemas else []
    return _Publication(
        row,
        {(each["schemaname"], each["tablename"]): each for each in tables},
        {int(each.relation): int(each.oid) for each in members},
        {each.schema: int(each.oid) for each in schemas},
    )


def _check_server(connection: Connection, found: SourcePreparation) -> None:
    settings = {row.name: row.setting for row in connection.execute(text(_SETTINGS))}
    if settings.get("wal_level") != "logical":
        found.problems.append(
            f"wal_level is {settings.get('wal_level')}, and must be logical: set it and restart the server"
        )
        found.statements.append("ALTER SYSTEM SET wal_level = 'logical';  -- takes effect when the server restarts")
    if settings.get("max_slot_wal_keep_size") == "-1":
        found.warnings.append(
            "max_slot_wal_keep_size is -1: while nobody reads the slot, the server keeps its log until the disk is "
            "full. With a limit, changes can be lost instead, which is alerted and a full sync restores"
        )
        found.statements.append(
            "-- Recommended: ALTER SYSTEM SET max_slot_wal_keep_size = '20GB'; SELECT pg_reload_conf();"
        )
    role = connection.execute(text(_ROLE)).one_or_none()
    if role is not None and not role.may_replicate:
        found.warnings.append(
            f"role {role.rolname} has no REPLICATION attribute; some managed services have a role for it instead, "
            "such as rds_replication"
        )
        found.statements.append(f"ALTER ROLE {quote_name(role.rolname)} REPLICATION;")


def _check_publication(publication: Any, capture: CaptureSettings, found: SourcePreparation) -> None:
    name = quote_name(capture.publication)
    lacks = [verb for verb in ("insert", "update", "delete", "truncate") if not publication[f"pub{verb}"]]
    if lacks:
        found.problems.append(f"publication {capture.publication} does not publish {', '.join(lacks)}")
        found.statements.append(f"ALTER PUBLICATION {name} SET (publish = 'insert, update, delete, truncate');")


def _check_table(
    connection: Connection,
    table: CapturedTable,
    publication: _Publication | None,
    missing: list[str],
    found: SourcePreparation,
) -> None:
    row = connection.execute(text(_TABLE), {"schema": table.schema, "name": table.relation}).one_or_none()
    if row is None or row.kind not in ("r", "p"):
        found.problems.append(
            f"there is no table {table.name}"
            if row is None
            else f"{table.name} is a view: name its tables in the part's changes.tables"
        )
        return
    quoted = quote_table(row)
    entry = None if publication is None else publication.tables.get((row.schema, row.name))
    relations = list_relations(connection, row.oid)
    if publication is None or entry is None:
        if publication is not None:
            found.problems.append(
                f"table {table.name} is not in the publication"
                + (": its partitions are, under their own names" if row.kind == "p" else "")
            )
        missing.append(quoted)
        if publication is not None and row.kind == "p" and not publication.row["pubviaroot"]:
            name = quote_name(publication.row["pubname"])
            found.statements.append(f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true);")
    elif entry.get("rowfilter"):
        found.problems.append(
            f"the publication has a WHERE for table {table.name}: changes of other rows would be missed. Leave it out"
        )
    else:
        found.oids[table.name] = int(row.oid)
        found.schemas[table.name] = row.schema
        uses = describe_uses(table)
        membership, shape = publication.name_membership(row), read_shape(connection, row.oid, relations)
        found.marks[table.name] = build_mark(str(row.oid), membership, publication.row["state"], shape, uses)
    gone = sorted(set(table.key_columns) - set(row.columns))
    if gone:
        found.problems.append(
            f"table {table.name} has no column {', '.join(gone)}, which has the key; it has {', '.join(row.columns)}"
        )
        return
    for relation in relations:
        if relation.is_root or relation.is_partition:
            _check_relation(table, relation, found)


def _check_relation(table: CapturedTable, relation: StoredRelation, found: SourcePreparation) -> None:
    """The table itself, or a partition, which has a replica identity of its own."""
    name = f"table {table.name}" if relation.is_root else f"partition {relation.name} of table {table.name}"
    if not relation.is_logged:
        found.oids.pop(table.name, None)
        found.problems.append(f"{name} is unlogged or foreign: the log has none of its changes")
        if relation.kind == "r":
            found.statements.append(f"ALTER TABLE {quote_table(relation)} SET LOGGED;")
        return
    outside = sorted(set(table.key_columns) - relation.identity_columns)
    if outside:
        found.oids.pop(table.name, None)
        found.problems.append(
            f"column {', '.join(outside)} of {name} has the key and is not in the replica identity: the "
            "log would not say whose row is deleted"
        )
        found.statements.append(
            f"ALTER TABLE {quote_table(relation)} REPLICA IDENTITY FULL;  "
            f"-- or USING INDEX, a unique one of NOT NULL columns with {', '.join(outside)}"
        )


def _check_children(connection: Connection, found: SourcePreparation) -> None:
    """A SELECT of a table shows the rows of those that inherit from it; the log has their changes under their names."""
    captured = set(found.oids.values())
    for name, oid in list(found.oids.items()):
        others = [
            quote_table(each)
            for each in list_relations(connection, oid)
            if not each.is_root and not each.is_partition and each.oid not in captured
        ]
        if others:
            del found.oids[name]
            found.problems.append(
                f"{', '.join(others)} inherits from table {name}: its rows are read as rows of {name}, and their "
                "changes are logged under its own name. Name both in the part's changes.tables, or read ONLY the table"
            )


def _add_tables(
    publication: _Publication | None, capture: CaptureSettings, missing: Sequence[str], found: SourcePreparation
) -> None:
    name = quote_name(capture.publication)
    if publication is None:
        found.problems.insert(0, f"there is no publication {capture.publication}")
        found.statements.append(
            f"CREATE PUBLICATION {name} FOR TABLE {', '.join(dict.fromkeys(missing))} "
            "WITH (publish_via_partition_root = true);"
            if missing
            else f"-- CREATE PUBLICATION {name} FOR TABLE …;  -- none of the configured tables is there"
        )
    elif missing:
        found.statements.append(f"ALTER PUBLICATION {name} ADD TABLE {', '.join(dict.fromkeys(missing))};")


def quote_table(table: Any) -> str:
    """A table's schema and name as SQL takes them."""
    return f"{quote_name(table.schema)}.{quote_name(table.name)}"


def quote_name(name: str) -> str:
    """An identifier as SQL takes it, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'

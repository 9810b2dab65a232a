"""What a Postgres source needs so that its changes can be captured: what is missing, and the SQL for it.

Nothing is done here: an operator of the source runs the SQL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, text

from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.config.sources import CaptureSettings

_TABLE = """
SELECT c.oid, n.nspname AS schema, c.relname AS name, c.relkind AS kind, c.relreplident AS identity,
    CASE c.relreplident
        WHEN 'f' THEN (SELECT array_agg(attname::text) FROM pg_attribute
                       WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped)
        ELSE (SELECT array_agg(a.attname::text) FROM pg_index i
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
              WHERE i.indrelid = c.oid
                AND CASE c.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END)
    END AS identity_columns,
    (SELECT array_agg(attname::text) FROM pg_attribute
     WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relname = :name AND CASE WHEN :schema = '' THEN pg_table_is_visible(c.oid) ELSE n.nspname = :schema END
"""
_PUBLICATION = "SELECT * FROM pg_publication WHERE pubname = :name"
_PUBLISHED = "SELECT * FROM pg_publication_tables WHERE pubname = :name"
_MEMBERSHIPS = """
SELECT r.prrelid AS relation, r.oid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid
WHERE p.pubname = :name
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
        memberships: What the tables' places in the publication are known by: one that left and came back has another.
        publication: What the publication is known by; empty where there is none.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    oids: dict[str, int] = field(default_factory=dict)
    memberships: dict[int, int] = field(default_factory=dict)
    publication: str = ""

    @property
    def identity(self) -> str:
        """What a stream's position belongs to besides the server."""
        return f"publication {self.publication}"

    def name_tables(self) -> dict[str, str]:
        """The captured tables as a stream keeps them: by name, what they and their membership are known by."""
        return {name: f"{oid}/{self.memberships.get(oid, 0)}" for name, oid in sorted(self.oids.items())}


def inspect_source(
    connection: Connection, capture: CaptureSettings, tables: Sequence[CapturedTable]
) -> SourcePreparation:
    """Looks at what a source has and lacks. It reads catalogs only."""
    found = SourcePreparation()
    _check_server(connection, found)
    publication = connection.execute(text(_PUBLICATION), {"name": capture.publication}).mappings().one_or_none()
    published: dict[tuple[str, str], Any] = {}
    if publication is not None:
        found.publication = str(publication["oid"])
        _check_publication(publication, capture, found)
        members = connection.execute(text(_MEMBERSHIPS), {"name": capture.publication})
        found.memberships = {int(row.relation): int(row.oid) for row in members}
        rows = connection.execute(text(_PUBLISHED), {"name": capture.publication}).mappings()
        published = {(row["schemaname"], row["tablename"]): row for row in rows}
    missing: list[str] = []
    for table in tables:
        _check_table(connection, table, publication, published, missing, found)
    _add_tables(publication, capture, missing, found)
    return found


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
    publication: Any,
    published: dict[tuple[str, str], Any],
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
    quoted = f"{quote_name(row.schema)}.{quote_name(row.name)}"
    entry = published.get((row.schema, row.name))
    if entry is None:
        if publication is not None:
            found.problems.append(
                f"table {table.name} is not in the publication"
                + (": its partitions are, under their own names" if row.kind == "p" else "")
            )
        missing.append(quoted)
        if publication is not None and row.kind == "p" and not publication["pubviaroot"]:
            name = quote_name(publication["pubname"])
            found.statements.append(f"ALTER PUBLICATION {name} SET (publish_via_partition_root = true);")
    elif entry.get("rowfilter"):
        found.problems.append(
            f"the publication has a WHERE for table {table.name}: changes of other rows would be missed. Leave it out"
        )
    else:
        found.oids[table.name] = int(row.oid)
    _check_identity(table, row, quoted, found)


def _check_identity(table: CapturedTable, row: Any, quoted: str, found: SourcePreparation) -> None:
    gone = sorted(set(table.key_columns) - set(row.columns))
    if gone:
        found.problems.append(
            f"table {table.name} has no column {', '.join(gone)}, which has the key; it has {', '.join(row.columns)}"
        )
        return
    outside = sorted(set(table.key_columns) - set(row.identity_columns or ()))
    if outside:
        found.oids.pop(table.name, None)
        found.problems.append(
            f"column {', '.join(outside)} of table {table.name} has the key and is not in the replica identity: the "
            "log would not say whose row is deleted"
        )
        found.statements.append(
            f"ALTER TABLE {quoted} REPLICA IDENTITY FULL;  -- or USING INDEX, a unique one of NOT NULL columns with "
            + ", ".join(outside)
        )


def _add_tables(publication: Any, capture: CaptureSettings, missing: Sequence[str], found: SourcePreparation) -> None:
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


def quote_name(name: str) -> str:
    """An identifier as SQL takes it, whatever characters it has."""
    return '"' + name.replace('"', '""') + '"'

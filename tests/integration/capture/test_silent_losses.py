"""What the log does not tell is said: rows that change without a trace in it leave their groups not validated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from captured_shop import Assemble, Shop, assemble
from captured_sources import (
    CapturedSource,
    begun,
    captured_config,
    eventually,
    is_open,
    open_alerts,
    query,
    reading,
    wheel_server,
    wheel_source,
)
from captured_sources import _quick as _quick
from sqlalchemy import Engine
from sqlalchemy.engine import make_url

from sync_orchestrator.config import Config

pytestmark = pytest.mark.slow

__all__ = ["assemble", "wheel_server", "wheel_source"]

COLUMNS = "store text, v timestamptz DEFAULT clock_timestamp(), name text"
PLAIN = f"CREATE TABLE items (sku text PRIMARY KEY, {COLUMNS}, other text NOT NULL DEFAULT gen_random_uuid()::text)"
PARTITIONED = (
    f"CREATE TABLE items (sku text PRIMARY KEY, {COLUMNS}) PARTITION BY LIST (sku); "
    "CREATE TABLE items_a PARTITION OF items FOR VALUES IN ('a', 'b'); "
    "CREATE TABLE items_c PARTITION OF items FOR VALUES IN ('c'); "
    "CREATE TABLE items_z PARTITION OF items DEFAULT"
)
PUBLISHED = "CREATE PUBLICATION sync_orchestrator FOR TABLE items WITH (publish_via_partition_root = true)"
OF_SCHEMA = "CREATE PUBLICATION sync_orchestrator FOR TABLES IN SCHEMA public"
ROWS = "INSERT INTO items (sku, store, name) VALUES ('a', 'A', 'one'), ('b', 'A', 'two'), ('c', 'A', 'three')"
DELETE = "DELETE FROM items WHERE sku = 'a'"
ONE_MORE = "(sku, store, v, name) VALUES ('d', 'A', now(), 'four')"
RESTORED = "INSERT INTO items (sku, store, v, name) VALUES ('a', 'A', '2020-01-01', 'restored')"

NOT_CAPTURED = "changes of items are captured only since then"
ALTERED = "its rows may have changed, and the log does not show how"
NO_KEY = "the log does not say whose row it was"


@dataclass(frozen=True)
class Case:
    """Statements on a source; each is a transaction of its own.

    Attributes:
        statements: What happens, while nobody reads the stream.
        said: A part of the sentence by which operators learn that something is missing; None where nothing is.
    """

    name: str
    statements: Sequence[str]
    said: str | None = None
    table: str = PLAIN
    publication: str = PUBLISHED


LOSSES = [
    Case(
        "only inserts are published for a while",
        [
            "ALTER PUBLICATION sync_orchestrator SET (publish = 'insert')",
            DELETE,
            "ALTER PUBLICATION sync_orchestrator SET (publish = 'insert, update, delete, truncate')",
        ],
        NOT_CAPTURED,
    ),
    Case(
        "partitions are published under their names for a while",
        [
            "ALTER PUBLICATION sync_orchestrator SET (publish_via_partition_root = false)",
            DELETE,
            "ALTER PUBLICATION sync_orchestrator SET (publish_via_partition_root = true)",
        ],
        NOT_CAPTURED,
        PARTITIONED,
    ),
    Case(
        "the publication has another name for a while",
        [
            "ALTER PUBLICATION sync_orchestrator RENAME TO other",
            DELETE,
            "ALTER PUBLICATION other RENAME TO sync_orchestrator",
        ],
        NOT_CAPTURED,
    ),
    Case(
        "some rows are published for a while",
        [
            "ALTER PUBLICATION sync_orchestrator SET TABLE items WHERE (sku > 'b')",
            DELETE,
            "ALTER PUBLICATION sync_orchestrator SET TABLE items",
        ],
        NOT_CAPTURED,
    ),
    Case(
        "the table leaves and comes back",
        [
            "ALTER PUBLICATION sync_orchestrator DROP TABLE items",
            DELETE,
            "ALTER PUBLICATION sync_orchestrator ADD TABLE items",
        ],
        NOT_CAPTURED,
    ),
    Case(
        "the schema leaves and comes back",
        [
            "ALTER PUBLICATION sync_orchestrator DROP TABLES IN SCHEMA public",
            DELETE,
            "ALTER PUBLICATION sync_orchestrator ADD TABLES IN SCHEMA public",
        ],
        NOT_CAPTURED,
        publication=OF_SCHEMA,
    ),
    Case(
        "the table is in another schema for a while",
        [
            "CREATE SCHEMA aside; ALTER TABLE items SET SCHEMA aside",
            "DELETE FROM aside.items WHERE sku = 'a'",
            "ALTER TABLE aside.items SET SCHEMA public",
        ],
        NOT_CAPTURED,
        publication=OF_SCHEMA,
    ),
    Case(
        "the table is made anew",
        ["DROP TABLE items", PLAIN, "ALTER PUBLICATION sync_orchestrator ADD TABLE items"],
        NOT_CAPTURED,
    ),
    Case(
        "the key leaves the replica identity for a delete",
        [
            "CREATE UNIQUE INDEX by_other ON items (other); ALTER TABLE items REPLICA IDENTITY USING INDEX by_other",
            DELETE,
            "ALTER TABLE items REPLICA IDENTITY DEFAULT",
        ],
        NO_KEY,
    ),
    Case(
        "the key leaves the replica identity and is changed",
        [
            "CREATE UNIQUE INDEX by_other ON items (other); ALTER TABLE items REPLICA IDENTITY USING INDEX by_other",
            "UPDATE items SET sku = 'e', v = now() WHERE sku = 'a'",
            "ALTER TABLE items REPLICA IDENTITY DEFAULT",
        ],
        NO_KEY,
    ),
    Case("values are rewritten", ["ALTER TABLE items ALTER COLUMN name TYPE text USING name || '!'"], ALTERED),
    Case(
        "a column is replaced by one with a default",
        ["ALTER TABLE items DROP COLUMN name", "ALTER TABLE items ADD COLUMN name text DEFAULT 'x'"],
        ALTERED,
    ),
    Case(
        "columns exchange their names",
        [
            "ALTER TABLE items RENAME COLUMN name TO x; ALTER TABLE items RENAME COLUMN other TO name; "
            "ALTER TABLE items RENAME COLUMN x TO other"
        ],
        ALTERED,
    ),
    Case(
        "a table with rows is attached",
        [
            f"CREATE TABLE items_d (sku text PRIMARY KEY, {COLUMNS})",
            f"INSERT INTO items_d {ONE_MORE}",
            "ALTER TABLE items ATTACH PARTITION items_d FOR VALUES IN ('d')",
        ],
        ALTERED,
        PARTITIONED,
    ),
    Case(
        "a table is made, filled and attached at once",
        [
            "CREATE TABLE items_d (sku text NOT NULL, store text, v timestamptz, name text); "
            f"INSERT INTO items_d {ONE_MORE}; ALTER TABLE items ATTACH PARTITION items_d FOR VALUES IN ('d')"
        ],
        ALTERED,
        PARTITIONED,
    ),
    Case("a partition is detached", ["ALTER TABLE items DETACH PARTITION items_c"], ALTERED, PARTITIONED),
    Case("a partition is dropped", ["DROP TABLE items_c"], ALTERED, PARTITIONED),
    Case("a partition is emptied", ["TRUNCATE items_c"], ALTERED, PARTITIONED),
    Case(
        "a record leaves its group for none",
        ["UPDATE items SET store = NULL, v = now() WHERE sku = 'a'"],
        "the row has no business group at 'store' any more",
    ),
    Case(
        "a table inherits",
        ["CREATE TABLE child (PRIMARY KEY (sku)) INHERITS (items)", f"INSERT INTO child {ONE_MORE}"],
        '"public"."child" inherits from table items',
    ),
    Case(
        "a partition is not logged",
        ["CREATE UNLOGGED TABLE items_d PARTITION OF items FOR VALUES IN ('d')", f"INSERT INTO items {ONE_MORE}"],
        "partition items_d of table items is unlogged or foreign",
        PARTITIONED,
    ),
    Case(
        "a partition has no key in its replica identity",
        [
            "CREATE UNIQUE INDEX by_name ON items_a (name); ALTER TABLE items_a ALTER COLUMN name SET NOT NULL; "
            "ALTER TABLE items_a REPLICA IDENTITY USING INDEX by_name",
            DELETE,
        ],
        "column sku of partition items_a of table items has the key and is not in the replica identity",
        PARTITIONED,
    ),
    Case(
        "a partition had no key in its replica identity",
        [
            "CREATE UNIQUE INDEX by_name ON items_a (name); ALTER TABLE items_a ALTER COLUMN name SET NOT NULL; "
            "ALTER TABLE items_a REPLICA IDENTITY USING INDEX by_name",
            DELETE,
            "ALTER TABLE items_a REPLICA IDENTITY DEFAULT",
        ],
        NO_KEY,
        PARTITIONED,
    ),
]

FOLLOWED = [
    Case("all tables are published", [DELETE], publication="CREATE PUBLICATION sync_orchestrator FOR ALL TABLES"),
    Case("an older row comes again", [DELETE, RESTORED]),
    Case("an older row comes again at once", [f"{DELETE}; {RESTORED}"]),
    Case(
        "an older row comes again and is changed",
        [DELETE, RESTORED, "UPDATE items SET name = 'changed' WHERE sku = 'a'"],
    ),
    Case("an older row comes again and goes", [DELETE, RESTORED, DELETE]),
    Case("an older row comes again with full identity", ["ALTER TABLE items REPLICA IDENTITY FULL", DELETE, RESTORED]),
    Case(
        "keys are exchanged",
        [
            "UPDATE items SET sku = 't' WHERE sku = 'b'",
            "UPDATE items SET sku = 'b' WHERE sku = 'a'",
            "UPDATE items SET sku = 'a' WHERE sku = 't'",
        ],
    ),
    Case(
        "keys are exchanged at once",
        [
            "UPDATE items SET sku = 't' WHERE sku = 'b'; UPDATE items SET sku = 'b' WHERE sku = 'a'; "
            "UPDATE items SET sku = 'a' WHERE sku = 't'"
        ],
    ),
    Case(
        "a row moves to another partition",
        ["DELETE FROM items WHERE sku = 'c'", "UPDATE items SET sku = 'c' WHERE sku = 'a'"],
        table=PARTITIONED,
    ),
    Case(
        "a part is rolled back",
        [f"BEGIN; {DELETE}; SAVEPOINT s; DELETE FROM items WHERE sku = 'b'; ROLLBACK TO s; COMMIT"],
    ),
    Case("odd keys", ["INSERT INTO items SELECT k, 'A' FROM unnest(ARRAY['a/b', ' é', E'a\\tb', repeat('k', 300)]) k"]),
    Case(
        "a long key that the log has with the old row alone",
        [
            "INSERT INTO items SELECT string_agg(md5(n::text), ''), 'A', now(), repeat('x', 9000) "
            "FROM generate_series(1, 70) n",
            "UPDATE items SET other = 'changed', v = now() WHERE length(sku) > 2000",
        ],
        table=PLAIN + "; ALTER TABLE items ALTER COLUMN sku SET STORAGE EXTERNAL",
    ),
    Case("a record moves to another group", ["UPDATE items SET store = 'B', v = now() WHERE sku = 'a'"]),
    Case(
        "what changes no row",
        [
            "CREATE TABLE items_d PARTITION OF items FOR VALUES IN ('d')",
            f"INSERT INTO items {ONE_MORE}",
            "ALTER TABLE items ADD COLUMN more text",
            "CREATE TABLE aside (id int PRIMARY KEY); ALTER PUBLICATION sync_orchestrator ADD TABLE aside",
            "VACUUM items",
            "ANALYZE items",
            "GRANT SELECT ON items TO public",
            "CREATE INDEX ON items (name)",
        ],
        table=PARTITIONED,
    ),
]


def list_said(engine: Engine) -> list[str]:
    """Everything by which an operator learns of a loss."""
    rows = query(engine, "SELECT title, examples FROM sync.alerts WHERE resolved_at IS NULL")
    return [f"{row.title}: {row.examples}" for row in rows]


def list_unproven(engine: Engine) -> list[str]:
    return [
        row.reason
        for row in query(engine, "SELECT unproven_reason AS reason FROM sync.groups WHERE unproven_since IS NOT NULL")
    ]


def prepare(source: CapturedSource, engine: Engine, assemble: Assemble, case: Case) -> tuple[Config, Shop]:
    """A stream that has begun, and a group that a full sync has completed since."""
    source.execute(case.table)
    source.execute(case.publication)
    source.execute(ROWS)
    config = captured_config(source)
    made = assemble(config)
    begun(engine, config, source)
    made.run_full_sync()
    assert list_unproven(engine) == []
    assert list_said(engine) == []
    return config, made


def drain_all(made: Shop) -> None:
    made.run_drain()
    query(made.engine, "UPDATE sync.events SET due_at = sync.clock() WHERE revision IS NULL RETURNING seq")
    made.run_drain()


def is_marker_recorded(engine: Engine) -> bool:
    return bool(query(engine, "SELECT FROM sync.events WHERE key = 'marker'")) or bool(
        query(engine, "SELECT FROM sync.parts WHERE key = 'marker'")
    )


def insert_marker(source: CapturedSource) -> None:
    source.execute("INSERT INTO items (sku, store, name) VALUES ('marker', 'A', 'marker')")


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
def test_what_the_log_does_not_tell_is_said(
    case: Case, wheel_source: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config, _ = prepare(wheel_source, engine, assemble, case)
    for statement in case.statements:
        wheel_source.execute(statement)
    with reading(engine, config):
        insert_marker(wheel_source)
        eventually(lambda: is_marker_recorded(engine) or open_alerts(engine, "capture_down"), "the marker")
    assert case.said is not None
    assert [each for each in list_said(engine) if case.said in each]
    if case.said in (NOT_CAPTURED, ALTERED, NO_KEY):
        assert list_unproven(engine)


@pytest.mark.parametrize(
    "case", [each for each in LOSSES if each.said in (NOT_CAPTURED, ALTERED)], ids=lambda case: case.name
)
def test_the_same_is_said_while_the_stream_is_read(
    case: Case, wheel_source: CapturedSource, engine: Engine, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync_orchestrator.capture.stream._MEASURE_SECONDS", 0.1)
    config, _ = prepare(wheel_source, engine, assemble, case)
    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_source), "the stream")
        for statement in case.statements:
            wheel_source.execute(statement)
        eventually(lambda: list_unproven(engine), "groups that are not validated")


@pytest.mark.parametrize("case", FOLLOWED, ids=lambda case: case.name)
def test_what_the_log_tells_is_followed_and_nothing_is_said(
    case: Case, wheel_source: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config, made = prepare(wheel_source, engine, assemble, case)
    for statement in case.statements:
        wheel_source.execute(statement)
    with reading(engine, config):
        insert_marker(wheel_source)
        eventually(lambda: is_marker_recorded(engine), "the marker")
    drain_all(made)
    assert made.names() == dict(wheel_source.execute("SELECT sku, name FROM items"))
    assert list_said(engine) == []
    assert list_unproven(engine) == []
    assert not query(engine, "SELECT FROM sync.events WHERE revision IS NULL AND state IN ('waiting', 'dead')")


def test_a_row_that_comes_again_is_followed_by_its_next_changes(
    wheel_source: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config, made = prepare(wheel_source, engine, assemble, Case("", []))
    changes: list[tuple[str, Any]] = [
        (DELETE, None),
        (RESTORED, "restored"),
        ("UPDATE items SET name = 'left alone' WHERE sku = 'a'", "left alone"),
        ("UPDATE items SET name = 'later', v = '2020-01-02' WHERE sku = 'a'", "later"),
    ]
    for number, (statement, name) in enumerate(changes):
        with reading(engine, config):
            wheel_source.execute(statement)
            wheel_source.execute(f"INSERT INTO items (sku, store) VALUES ('marker {number}', 'A')")
            marker = f"SELECT FROM sync.events WHERE key = 'marker {number}'"
            eventually(lambda marker=marker: query(engine, marker), "the marker")  # type: ignore[misc]
        drain_all(made)
        assert made.names().get("a") == name


def test_a_column_that_came_without_a_loss_and_is_renamed_later_is_said(
    wheel_source: CapturedSource, engine: Engine, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync_orchestrator.capture.stream._MEASURE_SECONDS", 0.1)
    config, _ = prepare(wheel_source, engine, assemble, Case("", [], table=PARTITIONED))
    marks = "SELECT tables->>'items' AS mark FROM sync.streams"
    [before] = query(engine, marks)
    with reading(engine, config):
        wheel_source.execute("ALTER TABLE items ADD COLUMN more text")
        eventually(lambda: query(engine, marks)[0].mark != before.mark, "the new mark")
        assert list_unproven(engine) == []
        wheel_source.execute("ALTER TABLE items RENAME COLUMN more TO other")
        eventually(lambda: list_unproven(engine), "groups that are not validated")


def configure_anew(config: Config, **part: Any) -> Config:
    document = config.model_dump(mode="json", exclude_unset=True)
    document["entities"]["item"]["parts"]["shop"].update(part)
    return Config.model_validate(document)


@pytest.mark.parametrize("changed", [{"key": "other"}, {"group": "name"}], ids=["key", "group"])
def test_another_key_or_group_is_said(
    changed: dict[str, str], wheel_source: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    case = Case(
        "", [], table=PLAIN.replace("sku text PRIMARY KEY", "sku text") + "; ALTER TABLE items REPLICA IDENTITY FULL"
    )
    config, _ = prepare(wheel_source, engine, assemble, case)
    begun(engine, config, wheel_source)
    assert list_unproven(engine) == []
    begun(engine, configure_anew(config, **changed), wheel_source)
    assert "is configured in another way" in list_unproven(engine)[0]


def test_an_entity_that_is_added_to_a_captured_table_is_not_validated(
    wheel_source: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    config, _ = prepare(wheel_source, engine, assemble, Case("", []))
    query(
        engine,
        "INSERT INTO sync.groups (entity, group_key, first_completed_at) VALUES ('second', 'A', sync.clock())",
    )
    begun(engine, config, wheel_source)
    document = config.model_dump(mode="json", exclude_unset=True)
    second = document["entities"]["second"] = copy.deepcopy(document["entities"]["item"])
    for call in ("create", "update", "delete", "read", "list"):
        second["third_party"][call]["path"] = f"/second{second['third_party'][call]['path']}"
    begun(engine, Config.model_validate(document), wheel_source)
    unproven = query(engine, "SELECT entity FROM sync.groups WHERE unproven_since IS NOT NULL")
    assert [row.entity for row in unproven] == ["second"]


def test_rows_that_are_hidden_from_reads_are_said(
    wheel_source: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    wheel_source.execute(PLAIN)
    wheel_source.execute(PUBLISHED)
    role = f"reader_{wheel_source.database}"
    wheel_source.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT SELECT ON items TO {role}")
    try:
        config = read_as(captured_config(wheel_source, capture={"url": wheel_source.url}), role)
        begun(engine, config, wheel_source)
        wheel_source.execute(
            "ALTER TABLE items ENABLE ROW LEVEL SECURITY; CREATE POLICY few ON items USING (store = 'A')"
        )
        with reading(engine, config):
            eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
        assert "row level security hides rows of table items" in list_said(engine)[0]
    finally:
        wheel_source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_table_that_reads_find_in_another_schema_is_said(
    wheel_source: CapturedSource, engine: Engine, assemble: Assemble
) -> None:
    wheel_source.execute(PLAIN)
    wheel_source.execute(PUBLISHED)
    role = f"reader_{wheel_source.database}"
    wheel_source.execute(
        f"CREATE SCHEMA {role}; CREATE TABLE {role}.items (LIKE public.items); "
        f"CREATE ROLE {role} LOGIN PASSWORD 'reader'; GRANT ALL ON SCHEMA {role} TO {role}; "
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {role} TO {role}"
    )
    try:
        config = read_as(captured_config(wheel_source, capture={"url": wheel_source.url}), role)
        with reading(engine, config):
            eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
        assert f"table items is in schema {role} for the user who reads records" in list_said(engine)[0]
    finally:
        wheel_source.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def read_as(config: Config, role: str) -> Config:
    """The same, where records are read as another role than the one that captures."""
    document = config.model_dump(mode="json", exclude_unset=True)
    url = make_url(document["sources"]["shop"]["url"]).set(username=role, password="reader")
    document["sources"]["shop"]["url"] = url.render_as_string(hide_password=False)
    return Config.model_validate(document)

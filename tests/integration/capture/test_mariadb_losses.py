"""What the binlog of a real MariaDB does not tell, or not any more: each case has its sentence, and groups unproven."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from captured_sources import _quick as _quick
from captured_sources import (
    begun,
    captured_config,
    eventually,
    is_open,
    open_alerts,
    query,
    reading,
    received,
    recorded,
)
from mariadb_servers import (
    MARIADB_ITEMS,
    MariadbServer,
    MariadbSource,
    mariadb,
    mariadb_server,
    mariadb_shop,
    mariadb_source,
    require_mariadb,
)
from sqlalchemy import Engine

from sync_orchestrator.capture import stream as stream_module
from sync_orchestrator.capture.engines import open_capture_source
from sync_orchestrator.capture.operations import drop_stream, reset_stream
from sync_orchestrator.capture.parts import list_captured_tables
from sync_orchestrator.config import Config
from sync_orchestrator.config.sources import SqlSourceSettings
from sync_orchestrator.conformance.live_check.capture_steps import check_captures
from sync_orchestrator.conformance.live_check.report import CheckStep

pytestmark = pytest.mark.slow

__all__ = ["mariadb", "mariadb_shop", "mariadb_source"]

GROUP = "INSERT INTO sync.groups (entity, group_key, first_completed_at) VALUES ('item', 'A', sync.clock())"


def proven_stream(engine: Engine, config: Config, source: MariadbSource) -> None:
    """A stream that has begun, and a business group that is proven."""
    query(engine, GROUP)
    begun(engine, config, source)
    query(engine, "UPDATE sync.groups SET unproven_since = NULL")


def require_missing(engine: Engine, sentence: str) -> None:
    """The loss was alerted with its sentence, and the group is not proven any more."""
    [(title, examples)] = open_alerts(engine, "capture_lost")
    assert title == "shop: captured changes are missing"
    assert sentence in examples[0]
    assert examples[1:] == ["not validated until a full sync: item"]
    [group] = query(engine, "SELECT unproven_since IS NOT NULL AS unproven, unproven_reason FROM sync.groups")
    assert group.unproven
    assert sentence in group.unproven_reason


# The position is not to be had any more -------------------------------------------------------------------------------


def lose(engine: Engine, server: MariadbServer, source: MariadbSource, how: str) -> None:
    """Brings a loss about, while nobody reads."""
    if how == "purged":
        source.insert_many("lost", 3)
        server.end_readers()
        server.execute("FLUSH BINARY LOGS")
        server.execute("FLUSH BINARY LOGS")

        def is_purged() -> bool:  # the engine keeps a part of the log for a moment
            server.execute("PURGE BINARY LOGS BEFORE now() + interval 1 hour")
            return len(server.execute("SHOW BINARY LOGS")) == 1

        eventually(is_purged, "the end of the first part of the log")
    elif how == "reset":
        server.execute("RESET MASTER")
    elif how == "reset and written":
        server.execute("RESET MASTER")
        source.insert_many("lost", 1)
    elif how == "another server":
        query(engine, "UPDATE sync.streams SET identity = 'MariaDB server_id 9'")
    elif how == "another kind":
        query(
            engine, "UPDATE sync.streams SET identity = 'system 7, timeline 1, database shop', position = '0/16B3748'"
        )
    else:
        query(engine, "UPDATE sync.streams SET position = 'mariadb:0-71-99999999'")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("purged", "removed the part of its log that the stream needs"),
        ("reset", "the server's log is empty: it was reset"),
        ("reset and written", "it was restored to an earlier state, or its log was reset"),
        ("another server", "another server answers than before (MariaDB server_id 71; before: MariaDB server_id 9)"),
        ("another kind", "another kind of server answers"),
        ("beyond the end", "it was restored to an earlier state, or its log was reset"),
    ],
)
def test_a_loss_is_told_and_the_stream_goes_on(how: str, sentence: str, engine: Engine) -> None:
    require_mariadb()
    with mariadb_server() as server:  # of its own: others' positions would go with its log
        server.execute("CREATE DATABASE shop")
        source = MariadbSource(server, "shop")
        source.execute(MARIADB_ITEMS)
        config = captured_config(source)
        proven_stream(engine, config, source)
        lose(engine, server, source, how)
        with reading(engine, config):
            eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
            source.execute("INSERT INTO items (sku, store) VALUES ('later', 'A')")
            eventually(lambda: received(engine) == 1, "the event that came later")
    require_missing(engine, sentence)
    assert [row.key for row in recorded(engine)] == ["later"]


def test_a_source_that_is_killed_or_stopped_loses_nothing(engine: Engine) -> None:
    require_mariadb()
    with mariadb_server("--sync-binlog=1", "--innodb-flush-log-at-trx-commit=1") as server:
        server.execute("CREATE DATABASE shop")
        source = MariadbSource(server, "shop")
        source.execute(MARIADB_ITEMS)
        with reading(engine, captured_config(source)):
            eventually(lambda: is_open(engine, source), "the stream")
            for number in range(4):
                for each in range(20):
                    source.insert_many(f"k{number}-{each}-", 1)
                if number % 2:
                    assert server.stop() < 10
                else:
                    server.kill()
                server.start()
            source.insert_many("last", 1)
            eventually(lambda: received(engine) == 81, "all events")
        assert {row.key for row in recorded(engine)} == {row[0] for row in source.execute("SELECT sku FROM items")}
    assert len(recorded(engine)) == 81


# What the log does not tell -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "sentence"),
    [
        (
            ["SET SESSION binlog_format = 'STATEMENT'", "UPDATE items SET name = 'x'"],
            "a session logged a statement instead of rows, which may have changed items: UPDATE items SET name = 'x'",
        ),
        (
            ["SET SESSION binlog_format = 'STATEMENT'", "INSERT INTO other VALUES (1)"],
            "a session logged a statement instead of rows",
        ),
        (["DROP TABLE items", MARIADB_ITEMS], "table items was dropped, renamed, made anew or moved"),
        (
            ["CREATE TABLE new_items LIKE items", "RENAME TABLE items TO old_items, new_items TO items"],
            "table items was dropped, renamed, made anew or moved",
        ),
        (
            ["CREATE OR REPLACE TABLE items (sku varchar(9) PRIMARY KEY, store text, v datetime(6), name text)"],
            "table items was dropped, renamed, made anew or moved",
        ),
        (
            ["ALTER TABLE items PARTITION BY KEY (sku) PARTITIONS 2", "ALTER TABLE items TRUNCATE PARTITION p0"],
            "table items was dropped, renamed, made anew or moved",
        ),
    ],
)
def test_changes_that_no_row_tells_are_told_as_missing(
    statements: list[str], sentence: str, mariadb_shop: MariadbSource, engine: Engine
) -> None:
    config = captured_config(mariadb_shop)
    mariadb_shop.execute("CREATE TABLE other (id int PRIMARY KEY)")
    mariadb_shop.insert_many("a", 2)
    proven_stream(engine, config, mariadb_shop)
    mariadb_shop.execute_all(*statements)
    mariadb_shop.insert_many("later", 1)
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "what came later")
    require_missing(engine, sentence)


@pytest.mark.parametrize(
    "statements",
    [
        ["ALTER TABLE items ADD COLUMN size int", "CREATE INDEX i ON items (store)", "ANALYZE TABLE items"],
        [
            "CREATE TABLE items_2 LIKE items",
            "DROP TABLE items_2",
            "CREATE VIEW w AS SELECT * FROM items",
            "DROP VIEW w",
        ],
        ["CREATE TEMPORARY TABLE t (id int)", "INSERT INTO t VALUES (1)", "DROP TEMPORARY TABLE t"],
    ],
)
def test_other_statements_are_no_loss(statements: list[str], mariadb_shop: MariadbSource, engine: Engine) -> None:
    config = captured_config(mariadb_shop)
    proven_stream(engine, config, mariadb_shop)
    mariadb_shop.execute_all(*statements)
    mariadb_shop.insert_many("later", 1)
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "what came later")
    assert not open_alerts(engine, "capture_lost")


def test_truncate_names_no_rows_and_is_told(mariadb_shop: MariadbSource, engine: Engine) -> None:
    config = captured_config(mariadb_shop)
    proven_stream(engine, config, mariadb_shop)
    mariadb_shop.execute("TRUNCATE TABLE items")
    mariadb_shop.insert_many("later", 1)
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "what came later")
    [(title, _)] = open_alerts(engine, "source_truncated")
    assert title == "shop: items was emptied by TRUNCATE"
    assert query(engine, "SELECT FROM sync.groups WHERE unproven_since IS NOT NULL")


@pytest.mark.parametrize("statement", ["UPDATE items SET name = 'x'", "DELETE FROM items"])
def test_a_row_image_without_the_key_is_told_as_missing(
    statement: str, mariadb_source: MariadbSource, engine: Engine
) -> None:
    mariadb_source.execute(
        "CREATE TABLE items (n int AUTO_INCREMENT PRIMARY KEY, sku varchar(20) UNIQUE, store text, "
        "v datetime(6) DEFAULT now(6), name text)"
    )
    mariadb_source.insert_many("a", 2)
    config = captured_config(mariadb_source)
    proven_stream(engine, config, mariadb_source)
    mariadb_source.execute_all("SET SESSION binlog_row_image = 'MINIMAL'", statement)
    mariadb_source.insert_many("later", 1)
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "what came later")
    require_missing(engine, "a session logged rows without column sku, which has the key")
    assert [row.key for row in recorded(engine)] == ["later1"]


def test_rows_without_names_of_columns_are_told_as_missing_and_never_guessed(
    mariadb_shop: MariadbSource, mariadb: MariadbServer, engine: Engine
) -> None:
    """Today's names would be wrong: the columns change their places before the rows are read."""
    config = captured_config(mariadb_shop)
    proven_stream(engine, config, mariadb_shop)
    mariadb.execute("SET GLOBAL binlog_row_metadata = 'NO_LOG'")
    try:
        mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('a', 'A')")
        mariadb_shop.execute("ALTER TABLE items MODIFY store varchar(20) FIRST")
    finally:
        mariadb.execute("SET GLOBAL binlog_row_metadata = 'FULL'")
    mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('b', 'A')")
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "what came later")
    require_missing(engine, "the log does not name the columns of its rows")
    assert [row.key for row in recorded(engine)] == ["b"]


def test_compressed_events_are_told_as_missing(
    mariadb_shop: MariadbSource, mariadb: MariadbServer, engine: Engine
) -> None:
    config = captured_config(mariadb_shop)
    proven_stream(engine, config, mariadb_shop)
    mariadb.execute("SET GLOBAL log_bin_compress = ON")
    try:
        mariadb_shop.execute("INSERT INTO items (sku, store, name) VALUES ('a', 'A', repeat('x', 5000))")
    finally:
        mariadb.execute("SET GLOBAL log_bin_compress = OFF")
    mariadb_shop.insert_many("later", 1)
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "what came later")
    require_missing(engine, "binlog compression must be off")


# Sources that are not prepared --------------------------------------------------------------------------------------


def inspect(source: MariadbSource, **changes: Any) -> Any:
    config = captured_config(source, **changes)
    settings = config.sources["shop"]
    assert isinstance(settings, SqlSourceSettings)
    opened = open_capture_source("shop", settings)
    try:
        return opened.inspect(list_captured_tables(config, "shop"))
    finally:
        opened.close()


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("CREATE TABLE other (id int)", "there is no table items"),
        ("CREATE VIEW items AS SELECT 1 AS sku", "items is a view"),
        ("CREATE TABLE items (code int PRIMARY KEY)", "table items has no column sku, which has the key; it has code"),
        ("CREATE TABLE items (sku float PRIMARY KEY)", "column sku of table items has the key and the type float"),
        ("CREATE TABLE items (sku binary(16) PRIMARY KEY)", "has the key and the type binary"),
        (
            "CREATE TABLE items (sku varchar(9) CHARACTER SET ucs2 PRIMARY KEY)",
            "has the key and the character set ucs2, which cannot be read from the log here",
        ),
        (
            "CREATE TABLE items (sku int PRIMARY KEY, name text COMPRESSED)",
            "column name of table items is compressed, which cannot be read from the log here",
        ),
    ],
)
def test_a_table_that_cannot_be_captured_is_alerted_at_once(
    statement: str, problem: str, mariadb_source: MariadbSource, engine: Engine
) -> None:
    mariadb_source.execute(statement)
    with reading(engine, captured_config(mariadb_source)):
        eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
    [(title, examples)] = open_alerts(engine, "capture_down")
    assert title == "shop: its changes cannot be captured"
    assert any(problem in example for example in examples)


@pytest.fixture
def plain_source() -> Iterator[MariadbSource]:
    """A server as it is installed."""
    require_mariadb()
    settings = (
        "--binlog-format=MIXED",
        "--binlog-row-metadata=NO_LOG",
        "--log-bin-compress=ON",
        "--binlog-expire-logs-seconds=3600",
        "--binlog-ignore-db=shop",
    )
    with mariadb_server(*settings, server_id=1) as server:
        server.execute("CREATE DATABASE shop")
        source = MariadbSource(server, "shop")
        source.execute("CREATE TABLE parents (id int PRIMARY KEY)")
        source.execute(
            "CREATE TABLE items (sku int PRIMARY KEY, store text, v datetime, name text, parent int, "
            "CONSTRAINT of_parent FOREIGN KEY (parent) REFERENCES parents (id) ON DELETE CASCADE)"
        )
        yield source


def test_what_a_plain_server_lacks_is_named_with_its_sql(plain_source: MariadbSource) -> None:
    plain_source.server.execute("CREATE USER reader@localhost")
    plain_source.server.execute("GRANT SELECT ON *.* TO reader@localhost")
    found = inspect(plain_source)
    problems, warnings = " | ".join(found.problems), " | ".join(found.warnings)
    for each in (
        "binlog_format is MIXED, and must be ROW",
        "binlog_row_metadata is NO_LOG, and must be FULL",
        "log_bin_compress is ON",
        "the server leaves database shop out of its log",
    ):
        assert each in problems
    for each in (
        "removes its log after 1 h",
        "server_id is 1",
        "foreign key of_parent of table items changes its rows",
    ):
        assert each in warnings
    assert "SET GLOBAL binlog_format = 'ROW';  -- and in my.cnf; open sessions keep theirs" in found.statements
    host = plain_source.url.replace("root@127.0.0.1", "reader@localhost")
    plain_source.__class__ = type("Reader", (MariadbSource,), {"url": property(lambda self: host)})
    assert any("has no right REPLICATION SLAVE, BINLOG MONITOR" in each for each in inspect(plain_source).warnings)
    [grant] = [each for each in inspect(plain_source).statements if each.startswith("GRANT")]
    assert grant == "GRANT REPLICATION SLAVE, BINLOG MONITOR ON *.* TO 'reader'@'localhost';"


def test_a_user_who_may_not_replicate_is_alerted_at_once(
    mariadb_shop: MariadbSource, mariadb: MariadbServer, engine: Engine
) -> None:
    mariadb.execute("CREATE OR REPLACE USER weak@localhost")
    mariadb.execute("GRANT SELECT ON *.* TO weak@localhost")
    config = captured_config(mariadb_shop)
    settings: Any = config.sources["shop"]
    settings.__dict__["url"] = mariadb_shop.url.replace("root@127.0.0.1", "weak@localhost")
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
    [(_, examples)] = open_alerts(engine, "capture_down")
    assert any("capture prepare" in each for each in examples)


def test_the_live_check_tries_to_replicate(mariadb_shop: MariadbSource) -> None:
    steps: list[CheckStep] = []
    check_captures(captured_config(mariadb_shop), steps.append)
    assert [step.detail for step in steps if step.outcome == "ok"] == ["the log has the changes of items"]
    assert not [step for step in steps if step.outcome == "failed"]
    mariadb_shop.database = "nowhere"
    steps.clear()
    check_captures(captured_config(mariadb_shop), steps.append)
    assert [step.outcome for step in steps] == ["failed"]


def test_a_setting_that_is_undone_while_the_log_is_read_is_alerted(
    mariadb_shop: MariadbSource, mariadb: MariadbServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_MEASURE_SECONDS", 0.1)
    with reading(engine, captured_config(mariadb_shop)):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        mariadb.execute("SET GLOBAL binlog_format = 'MIXED'")
        try:
            eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
        finally:
            mariadb.execute("SET GLOBAL binlog_format = 'ROW'")
        eventually(lambda: not open_alerts(engine, "capture_down"), "the end of the alert")


# Figures, operators -------------------------------------------------------------------------------------------------


def test_a_log_that_is_not_read_yet_is_alerted(
    mariadb_shop: MariadbSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_MEASURE_SECONDS", 0.0)
    config = captured_config(mariadb_shop, capture={"max_retained_bytes": 1024**2})
    begun(engine, config, mariadb_shop)
    mariadb_shop.execute(
        "INSERT INTO items (sku, store, name) SELECT concat('k', seq), 'A', repeat('x', 2000) FROM seq_1_to_4000"
    )
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_behind"), "the alert")
        assert "MiB of the source's log are not read yet" in open_alerts(engine, "capture_behind")[0][1][0]
        eventually(lambda: received(engine) == 4000, "all events")
        eventually(lambda: not open_alerts(engine, "capture_behind"), "the end of the alert")


def test_a_stream_is_reset_and_dropped(mariadb_shop: MariadbSource, engine: Engine) -> None:
    config = captured_config(mariadb_shop)
    proven_stream(engine, config, mariadb_shop)
    mariadb_shop.insert_many("skipped", 1)
    assert reset_stream(engine, config, "shop").startswith("mariadb:")
    mariadb_shop.insert_many("later", 1)
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "the event")
    assert [row.key for row in recorded(engine)] == ["later1"]
    assert query(engine, "SELECT FROM sync.groups WHERE unproven_since IS NOT NULL")
    assert not drop_stream(engine, config, "shop")
    assert not query(engine, "SELECT name FROM sync.streams")

"""What may be missing is told: each case has its sentence, an alert, a new slot at once, and groups not validated."""

from __future__ import annotations

import re
import threading
from typing import Any

import pytest
from captured_sources import (
    ITEMS,
    CapturedSource,
    SourceServer,
    begun,
    captured_config,
    connect,
    eventually,
    is_open,
    machine_server,
    open_alerts,
    query,
    reading,
    received,
    recorded,
    shop,
    source,
    wheel_server,
    wheel_shop,
    wheel_source,
)
from captured_sources import _quick as _quick
from sqlalchemy import Engine, create_engine

from sync_orchestrator.capture.assembly import ChangeBatch
from sync_orchestrator.capture.operations import drop_stream, reset_stream
from sync_orchestrator.capture.parts import CapturedTable
from sync_orchestrator.capture.postgres import VisibleTransactions
from sync_orchestrator.capture.preparation import inspect_source
from sync_orchestrator.capture.stream import OpenStream
from sync_orchestrator.config.sources import CaptureSettings
from sync_orchestrator.core.capture.streams import watch_streams
from sync_orchestrator.errors import LogDown

__all__ = ["machine_server", "shop", "source", "wheel_server", "wheel_shop", "wheel_source"]


def lose(engine: Engine, source: CapturedSource, how: str) -> None:
    """Brings a loss about, while nobody reads."""
    if how == "slot gone":
        source.drop_slot()
    elif how == "slot ahead":
        source.execute("INSERT INTO items VALUES ('lost', 'A')")
        source.execute(f"SELECT pg_replication_slot_advance('{source.slot}', pg_current_wal_lsn())")
    elif how == "publication made anew":
        source.execute("DROP PUBLICATION sync_orchestrator")
        source.execute("INSERT INTO items VALUES ('lost', 'A')")
        source.publish("items")
    elif how == "another server":
        query(engine, "UPDATE sync.streams SET identity = replace(identity, 'system ', 'system 9')")
    else:
        query(engine, "UPDATE sync.streams SET position = 'FF/0'")


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("slot gone", "the replication slot is gone"),
        ("slot ahead", "ahead of"),
        ("publication made anew", "publication was dropped and made again"),
        ("another server", "another server or database answers"),
        ("position beyond the end", "restored to an earlier state"),
    ],
)
def test_a_loss_is_told_and_the_stream_goes_on(how: str, sentence: str, shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    query(engine, "INSERT INTO sync.groups (entity, group_key, first_completed_at) VALUES ('item', 'A', sync.clock())")
    begun(engine, config, shop)
    query(engine, "UPDATE sync.groups SET unproven_since = NULL")
    lose(engine, shop, how)
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
        eventually(lambda: is_open(engine, shop), "the stream")
        shop.execute("INSERT INTO items VALUES ('later', 'A')")
        eventually(lambda: received(engine) == 1, "the event that came later")
    [(title, examples)] = open_alerts(engine, "capture_lost")
    assert title == "shop: captured changes are missing"
    assert sentence in examples[0]
    assert examples[1:] == ["not validated until a full sync: item"]
    assert [row.key for row in recorded(engine)] == ["later"]
    [group] = query(engine, "SELECT unproven_since IS NOT NULL AS unproven, unproven_reason FROM sync.groups")
    assert group.unproven
    assert sentence in group.unproven_reason


def test_a_loss_is_over_when_full_syncs_that_began_later_have_completed(
    wheel_shop: CapturedSource, engine: Engine
) -> None:
    config = captured_config(wheel_shop)
    query(engine, "INSERT INTO sync.groups (entity, group_key, first_completed_at) VALUES ('item', 'A', sync.clock())")
    begun(engine, config, wheel_shop)
    lose(engine, wheel_shop, "slot gone")
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
    with engine.begin() as connection:
        watch_streams(connection, 900)
    assert open_alerts(engine, "capture_lost")
    query(engine, "UPDATE sync.groups SET unproven_since = NULL")
    with engine.begin() as connection:
        watch_streams(connection, 900)
    assert not open_alerts(engine, "capture_lost")


def test_a_slot_that_the_server_gave_up_is_a_loss(
    wheel_shop: CapturedSource, wheel_server: SourceServer, engine: Engine
) -> None:
    config = captured_config(wheel_shop)
    begun(engine, config, wheel_shop)
    try:
        wheel_server.execute("ALTER SYSTEM SET max_slot_wal_keep_size = '1MB'")
        wheel_server.execute("SELECT pg_reload_conf()")
        wheel_server.execute("CREATE TABLE IF NOT EXISTS filler (t text)")

        def is_lost() -> bool:
            wheel_server.execute("INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, 20000) n")
            wheel_server.execute("SELECT pg_switch_wal()")
            wheel_server.execute("CHECKPOINT")
            found = wheel_shop.find_slot()
            return found is not None and found[3] == "lost"

        eventually(is_lost, "the loss")
    finally:
        wheel_server.execute("ALTER SYSTEM RESET max_slot_wal_keep_size")
        wheel_server.execute("SELECT pg_reload_conf()")
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
    assert "removed the log that the replication slot needed" in open_alerts(engine, "capture_lost")[0][1][0]


def test_a_publication_that_is_made_anew_while_it_is_read_is_a_loss(
    shop: CapturedSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync_orchestrator.capture.stream._MEASURE_SECONDS", 0.1)
    config = captured_config(shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        shop.execute("DROP PUBLICATION sync_orchestrator")
        eventually(lambda: open_alerts(engine, "capture_down"), "the alert that it cannot be read")
        shop.execute("INSERT INTO items VALUES ('lost', 'A')")
        shop.publish("items")
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert of the loss")
        eventually(lambda: not open_alerts(engine, "capture_down"), "the end of the first alert")
        shop.execute("INSERT INTO items VALUES ('later', 'A')")
        eventually(lambda: received(engine) == 1, "the event that came later")
    assert [row.key for row in recorded(engine)] == ["later"]


def test_changes_of_a_table_that_was_out_of_the_publication_are_unproven(
    shop: CapturedSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync_orchestrator.capture.stream._MEASURE_SECONDS", 0.1)
    config = captured_config(shop)
    query(engine, "INSERT INTO sync.groups (entity, group_key, first_completed_at) VALUES ('item', 'A', sync.clock())")
    shop.execute("CREATE TABLE other (id int PRIMARY KEY); ALTER PUBLICATION sync_orchestrator ADD TABLE other")
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        query(engine, "UPDATE sync.groups SET unproven_since = NULL")
        shop.execute("ALTER PUBLICATION sync_orchestrator DROP TABLE items")
        eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
        assert "items is not in the publication" in open_alerts(engine, "capture_down")[0][1][0]
        shop.execute("ALTER PUBLICATION sync_orchestrator ADD TABLE items")
        eventually(lambda: not open_alerts(engine, "capture_down"), "the end of the alert")
    [group] = query(engine, "SELECT unproven_reason FROM sync.groups WHERE unproven_since IS NOT NULL")
    assert "changes of items are captured only since then" in group.unproven_reason


# Sources that are not prepared --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        (ITEMS, "there is no publication sync_orchestrator"),
        (
            f"{ITEMS}; CREATE TABLE o (n int); CREATE PUBLICATION sync_orchestrator FOR TABLE o",
            "not in the publication",
        ),
        ("CREATE VIEW items AS SELECT 1 AS sku; CREATE PUBLICATION sync_orchestrator", "items is a view"),
        ("CREATE PUBLICATION sync_orchestrator", "there is no table items"),
        (
            f"{ITEMS.replace('PRIMARY KEY', '')}; CREATE PUBLICATION sync_orchestrator FOR TABLE items",
            "column sku of table items has the key and is not in the replica identity",
        ),
        (
            f"{ITEMS}; CREATE PUBLICATION sync_orchestrator FOR TABLE items WITH (publish = 'insert')",
            "does not publish update, delete, truncate",
        ),
        (
            f"{ITEMS}; CREATE PUBLICATION sync_orchestrator FOR TABLE items WHERE (sku <> 'x')",
            "has a WHERE for table items",
        ),
    ],
)
def test_what_a_source_lacks_is_alerted_at_once(
    statement: str, problem: str, source: CapturedSource, engine: Engine
) -> None:
    source.execute(statement)
    with reading(engine, captured_config(source)):
        eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
    [(title, examples)] = open_alerts(engine, "capture_down")
    assert title == "shop: its changes cannot be captured"
    assert any(problem in example for example in examples)
    assert source.find_slot() is None


def test_a_server_without_a_logical_log(engine: Engine, machine_plain_source: CapturedSource) -> None:
    with reading(engine, captured_config(machine_plain_source)):
        eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
    assert "wal_level is replica, and must be logical" in open_alerts(engine, "capture_down")[0][1][0]


@pytest.fixture
def machine_plain_source(server_url: str) -> Any:
    """A database on the server of the tests' own databases, whose log is not logical."""
    from captured_sources import a_database

    server = SourceServer(server_url)
    if server.execute("SHOW wal_level")[0][0] == "logical":
        pytest.skip("the log of the tests' own server is logical")
    with a_database(server) as made:
        made.execute(ITEMS)
        made.publish("items")
        yield made


# Sources and readers that are down ----------------------------------------------------------------------------------


def test_a_source_that_is_down_is_alerted_after_a_while(wheel_shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(wheel_shop, alerts={"overdue_after": 0})
    begun(engine, config, wheel_shop)
    away = captured_config(wheel_shop, alerts={"overdue_after": 0})
    settings: Any = away.sources["shop"]
    settings.__dict__["url"] = "postgresql+psycopg://postgres@127.0.0.1:1/away"
    with reading(engine, away):
        eventually(lambda: open_alerts(engine, "capture_down"), "the alert")
    with reading(engine, config):
        eventually(lambda: not open_alerts(engine, "capture_down"), "the end of the alert")


def test_a_stream_that_nobody_reads_is_alerted(wheel_shop: CapturedSource, engine: Engine) -> None:
    begun(engine, captured_config(wheel_shop), wheel_shop)
    query(engine, "UPDATE sync.streams SET at = sync.clock() - interval '20 minutes'")
    with engine.begin() as connection:
        watch_streams(connection, 900)
    [(title, examples)] = open_alerts(engine, "capture_down")
    assert title == "shop: its changes have not been captured for 20 minutes"
    assert examples == ["no process reads the stream"]


def test_the_alert_of_a_short_outage_counts_seconds(wheel_shop: CapturedSource, engine: Engine) -> None:
    begun(engine, captured_config(wheel_shop), wheel_shop)
    query(engine, "UPDATE sync.streams SET at = sync.clock() - interval '40 seconds'")
    with engine.begin() as connection:
        watch_streams(connection, 10)
    [(title, _)] = open_alerts(engine, "capture_down")
    assert re.fullmatch("shop: its changes have not been captured for 4[0-9] seconds", title)


def test_a_missing_publication_is_one_problem(wheel_source: CapturedSource) -> None:
    wheel_source.execute(f"{ITEMS}; CREATE TABLE more (sku text PRIMARY KEY)")
    tables = [CapturedTable("items", ()), CapturedTable("more", ())]
    with create_engine(wheel_source.url).connect() as connection:
        found = inspect_source(connection, CaptureSettings(), tables)
    connection.engine.dispose()
    assert found.problems == ["there is no publication sync_orchestrator"]
    assert [each for each in found.statements if each.startswith("CREATE PUBLICATION")] == [
        'CREATE PUBLICATION "sync_orchestrator" FOR TABLE "public"."items", "public"."more" '
        "WITH (publish_via_partition_root = true);"
    ]


def test_retained_log_is_alerted_and_says_that_a_transaction_is_open(
    wheel_shop: CapturedSource, wheel_server: SourceServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sync_orchestrator.capture.stream._MEASURE_SECONDS", 0.1)
    config = captured_config(wheel_shop, capture={"max_retained_bytes": 1024**2})
    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        with connect(wheel_shop.url) as connection:
            connection.execute("BEGIN")
            connection.execute("INSERT INTO items VALUES ('open', 'A')")
            wheel_server.execute("CREATE TABLE IF NOT EXISTS filler (t text)")
            wheel_server.execute("INSERT INTO filler SELECT repeat(md5(n::text), 30) FROM generate_series(1, 9000) n")
            eventually(lambda: open_alerts(engine, "capture_behind"), "the alert")
            assert "a transaction is open there for long" in open_alerts(engine, "capture_behind")[0][1][0]
            connection.execute("ROLLBACK")


# Operators ----------------------------------------------------------------------------------------------------------


def test_a_stream_is_dropped_with_its_slot(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    assert drop_stream(engine, config, "shop")
    assert shop.find_slot() is None
    assert not query(engine, "SELECT name FROM sync.streams")


def test_a_stream_that_is_reset_begins_at_the_end_and_leaves_groups_unproven(
    shop: CapturedSource, engine: Engine
) -> None:
    config = captured_config(shop)
    query(engine, "INSERT INTO sync.groups (entity, group_key, first_completed_at) VALUES ('item', 'A', sync.clock())")
    begun(engine, config, shop)
    query(engine, "UPDATE sync.groups SET unproven_since = NULL")
    shop.execute("INSERT INTO items VALUES ('skipped', 'A')")
    reset_stream(engine, config, "shop")
    shop.execute("INSERT INTO items VALUES ('later', 'A')")
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "the event")
    assert [row.key for row in recorded(engine)] == ["later"]
    assert query(engine, "SELECT 1 FROM sync.groups WHERE unproven_since IS NOT NULL")


def test_a_stream_that_is_read_is_not_dropped(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        with pytest.raises(LogDown, match="a process reads the stream shop"):
            drop_stream(engine, config, "shop")


# Planted bugs -------------------------------------------------------------------------------------------------------


def test_a_reader_that_acknowledges_before_it_records_is_found(
    wheel_shop: CapturedSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = captured_config(wheel_shop)
    with monkeypatch.context() as planted:

        def acknowledge_first(self: OpenStream, recorder: object, batch: ChangeBatch) -> None:
            if batch.has_content:
                self._log.acknowledge(batch.position)
                raise LogDown("it dies before it has recorded")

        planted.setattr(OpenStream, "_begin_recording", acknowledge_first)
        with reading(engine, config):
            eventually(lambda: is_open(engine, wheel_shop), "the stream")
            [before] = [wheel_shop.find_slot()]
            wheel_shop.execute("INSERT INTO items VALUES ('lost', 'A')")
            eventually(lambda: wheel_shop.find_slot()[1] != before[1], "the acknowledgement")  # type: ignore[index]
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
    assert "ahead of" in open_alerts(engine, "capture_lost")[0][1][0]


def test_a_reader_that_does_not_look_what_is_visible_is_found(
    wheel_shop: CapturedSource, wheel_server: SourceServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VisibleTransactions, "sees", lambda self, xid: True)
    with reading(engine, captured_config(wheel_shop)):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        wheel_server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        wheel_server.execute("SELECT pg_reload_conf()")
        try:
            with connect(wheel_shop.url) as blocked:
                eventually(lambda: blocked.execute("SHOW synchronous_standby_names").fetchone() == ("nobody",), "it")
                writer = threading.Thread(target=blocked.execute, args=("INSERT INTO items VALUES ('a', 'A')",))
                writer.start()
                eventually(lambda: received(engine) == 1, "the event, too early")
                assert wheel_shop.execute("SELECT count(*) FROM items") == [(0,)]
                wheel_server.execute("ALTER SYSTEM RESET synchronous_standby_names")
                wheel_server.execute("SELECT pg_reload_conf()")
                writer.join(15)
        finally:
            wheel_server.execute("ALTER SYSTEM RESET synchronous_standby_names")
            wheel_server.execute("SELECT pg_reload_conf()")

"""Changes captured from the log of a real Postgres: what is recorded, in which order, and what is acknowledged."""

from __future__ import annotations

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
from sqlalchemy import Engine

from sync_orchestrator.brokers.consume import retry_rejected
from sync_orchestrator.capture import recording
from sync_orchestrator.capture import stream as stream_module
from sync_orchestrator.capture.postgres import PostgresSource
from sync_orchestrator.capture.rejected_rows import is_rejected_row, reread_row
from sync_orchestrator.config import Config
from sync_orchestrator.core.intake.rejected_messages import Rejected

__all__ = ["machine_server", "shop", "source", "wheel_server", "wheel_shop", "wheel_source"]

JANUARY = 1_767_225_600_000_000


def test_rows_become_change_events_in_the_order_of_their_commits(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    with reading(engine, config):
        eventually(lambda: query(engine, "SELECT FROM sync.streams WHERE position <> ''"), "the stream")
        shop.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01T00:00:00Z', 'one')")
        shop.execute("UPDATE items SET name = 'two', v = '2026-01-02T00:00:00Z' WHERE sku = 'a'")
        shop.execute("DELETE FROM items WHERE sku = 'a'")
        eventually(lambda: received(engine) == 3, "three events")
    first, second, third = recorded(engine)
    assert (first.key, first.group_key, first.action, first.version) == ("a", "A", "create", 1_767_225_600_000_000)
    assert first.data == {"sku": "a", "store": "A", "v": "2026-01-01T00:00:00Z", "name": "one"}
    assert (second.action, second.data["name"]) == ("create", "two")
    assert (third.action, third.version, third.data) == ("delete", second.version, None)
    assert {row.origin for row in recorded(engine)} == {"capture"}


def test_what_was_written_while_nobody_read_is_captured_later(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', now(), 'n' FROM generate_series(1, 2500) n")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2500, "2500 events")
    assert [row.position for row in query(engine, "SELECT position FROM sync.streams")]
    with reading(engine, config):
        shop.execute("INSERT INTO items VALUES ('last', 'A')")
        eventually(lambda: received(engine) == 2501, "one more")
    assert len({row.key for row in recorded(engine)}) == 2501


# Which rows are changes of which records ----------------------------------------------------------------------------


def test_a_changed_key_deletes_the_old_record_and_creates_the_new(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A'); UPDATE items SET sku = 'b'")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2, "two events")
    assert [(row.key, row.action) for row in recorded(engine)] == [("a", "delete"), ("b", "create")]


def test_a_delete_of_a_table_with_full_identity_tells_the_old_version(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    shop.execute("ALTER TABLE items REPLICA IDENTITY FULL; INSERT INTO items VALUES ('a', 'A', '2026-01-01Z')")
    begun(engine, config, shop)
    shop.execute("DELETE FROM items")
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "the event")
    [gone] = recorded(engine)
    assert (gone.action, gone.version) == ("delete", JANUARY)


def test_a_delete_of_an_unknown_record_has_the_lowest_version(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01Z')")
    begun(engine, config, shop)
    shop.execute("DELETE FROM items")
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "the event")
    [gone] = recorded(engine)
    assert gone.version == 0


def test_a_large_value_that_did_not_change_leads_to_a_read(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    shop.execute("ALTER TABLE items ALTER COLUMN name SET STORAGE EXTERNAL")
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01Z', repeat('x', 9000))")
    shop.execute("UPDATE items SET v = '2026-01-02Z'")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2, "two events")
    whole, thin = recorded(engine)
    assert (whole.thin, len(whole.data["name"])) == (False, 9000)
    assert (thin.thin, thin.data, thin.version) == (True, None, JANUARY + 86_400_000_000)


def test_with_full_identity_a_large_value_is_known(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    shop.execute("ALTER TABLE items ALTER COLUMN name SET STORAGE EXTERNAL; ALTER TABLE items REPLICA IDENTITY FULL")
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', '2026-01-01Z', repeat('x', 9000))")
    shop.execute("UPDATE items SET v = '2026-01-02Z'")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2, "two events")
    assert [len(row.data["name"]) for row in recorded(engine)] == [9000, 9000]


def test_a_row_larger_than_an_event_may_be_leads_to_a_read(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop, limits={"event_bytes": 1000})
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', now(), repeat('x', 2000)), ('b', 'A', now(), 'x')")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2, "two events")
    assert [(row.key, row.thin) for row in recorded(engine)] == [("a", True), ("b", False)]


def test_records_of_several_tables_are_told_by_key(source: CapturedSource, engine: Engine) -> None:
    source.execute(
        "CREATE TABLE orders (id int PRIMARY KEY, store text, v timestamptz DEFAULT now());"
        "CREATE TABLE order_lines (n serial PRIMARY KEY, order_id int REFERENCES orders ON DELETE CASCADE, t text);"
        "ALTER TABLE order_lines REPLICA IDENTITY FULL"
    )
    source.publish("orders", "order_lines")
    part = {
        "sql": {
            "query": "SELECT o.*, (SELECT count(*) FROM order_lines l WHERE l.order_id = o.id) AS name FROM orders o"
        },
        "key": "id",
        "changes": {"by": "log", "tables": {"orders": "id", "order_lines": "order_id"}},
    }
    config = captured_config(source, part=part)
    begun(engine, config, source)
    source.execute("INSERT INTO orders VALUES (7, 'A'); INSERT INTO order_lines (order_id) VALUES (7), (7)")
    source.execute("INSERT INTO orders VALUES (8, 'A')")
    source.execute("UPDATE order_lines SET order_id = 8 WHERE n = 1")
    source.execute("DELETE FROM orders WHERE id = 7")
    with reading(engine, config):
        eventually(lambda: received(engine) == 5, "five events")
    rows = [(row.key, row.action, row.thin, row.version > 0) for row in recorded(engine)]
    assert rows[0] == ("7", "create", True, False)
    assert rows[1] == ("8", "create", True, False)
    assert {row[0] for row in rows[2:4]} == {"7", "8"}
    assert rows[4] == ("7", "delete", True, False)


def test_other_tables_and_rows_without_a_key_are_no_changes(source: CapturedSource, engine: Engine) -> None:
    source.execute(
        f"{ITEMS.replace('PRIMARY KEY', '')}; CREATE TABLE other (id int PRIMARY KEY);"
        "ALTER TABLE items REPLICA IDENTITY FULL"
    )
    source.publish("items", "other")
    config = captured_config(source)
    begun(engine, config, source)
    source.execute("INSERT INTO other VALUES (1); INSERT INTO items VALUES (NULL, 'A'), ('a', 'A')")
    source.execute("UPDATE items SET sku = NULL WHERE sku = 'a'")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2, "two events")
    assert [(row.key, row.action) for row in recorded(engine)] == [("a", "create"), ("a", "delete")]


def test_partitions_are_captured_as_their_table(source: CapturedSource, engine: Engine) -> None:
    source.execute(
        "CREATE TABLE items (sku text, store text, v timestamptz DEFAULT now(), name text, PRIMARY KEY (sku)) "
        "PARTITION BY HASH (sku); CREATE TABLE i0 PARTITION OF items FOR VALUES WITH (modulus 2, remainder 0);"
        "CREATE TABLE i1 PARTITION OF items FOR VALUES WITH (modulus 2, remainder 1);"
        "CREATE PUBLICATION sync_orchestrator FOR TABLE items WITH (publish_via_partition_root = true)"
    )
    config = captured_config(source)
    begun(engine, config, source)
    source.execute("INSERT INTO items SELECT 'k' || n, 'A' FROM generate_series(1, 20) n")
    with reading(engine, config):
        eventually(lambda: received(engine) == 20, "20 events")


# Rows that cannot be used -------------------------------------------------------------------------------------------


def rejected(engine: Engine) -> list[str]:
    return [row.reason for row in query(engine, "SELECT reason FROM sync.rejected WHERE ended_at IS NULL ORDER BY id")]


@pytest.mark.parametrize("column", ["store", "v", "name"])
def test_a_column_that_is_gone_is_told_and_its_rows_are_kept(column: str, shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    shop.execute(f"ALTER TABLE items DROP COLUMN {column}; INSERT INTO items (sku) VALUES ('a')")
    with reading(engine, config):
        eventually(lambda: rejected(engine), "the rejection")
        [reason] = rejected(engine)
        assert f"table items has no column {column} any more" in reason
        assert open_alerts(engine, "rejected")[0][0] == "capture shop: 1 messages cannot be read"


def test_a_row_without_a_version_stops_no_other(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', NULL), ('b', 'A', now()), ('c', 'A', 'infinity')")
    with reading(engine, config):
        eventually(lambda: received(engine) == 1 and len(rejected(engine)) == 2, "one event, two rejections")
    assert all("no version at 'v'" in reason for reason in rejected(engine))


def test_truncate_names_no_rows_and_is_told(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    query(engine, "INSERT INTO sync.groups (entity, group_key, first_completed_at) VALUES ('item', 'A', sync.clock())")
    shop.execute("INSERT INTO items VALUES ('a', 'A')")
    shop.execute("TRUNCATE items")
    shop.execute("INSERT INTO items VALUES ('b', 'A')")
    with reading(engine, config):
        eventually(lambda: received(engine) == 2, "two events")
    [(title, examples)] = open_alerts(engine, "source_truncated")
    assert title == "shop: items was emptied by TRUNCATE"
    assert examples == ["not validated until a full sync: item"]
    [group] = query(engine, "SELECT unproven_reason FROM sync.groups")
    assert group.unproven_reason == "source shop: items was emptied by TRUNCATE"


# Large and open transactions, idle databases ------------------------------------------------------------------------


def test_a_large_transaction_is_recorded_in_pieces(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    [before] = query(engine, "SELECT position FROM sync.streams")
    shop.execute("INSERT INTO items SELECT 'k' || n, 'A', now(), 'n' FROM generate_series(1, 4500) n")
    positions: set[tuple[str, str | None]] = set()
    with pytest.MonkeyPatch.context() as patch:
        record = recording.record_batch

        def note(*arguments: Any) -> Any:
            found = record(*arguments)
            positions.add((found.position == before.position, found.partial and found.partial.rpartition("/")[2]))
            return found

        patch.setattr(stream_module, "record_batch", note)
        with reading(engine, config):
            eventually(lambda: received(engine) == 4500, "4500 events")
            eventually(lambda: query(engine, "SELECT FROM sync.streams WHERE partial IS NULL"), "the end")
    assert {(True, "1"), (True, "2"), (True, "3"), (True, "4"), (False, None)} <= positions


def test_what_was_rolled_back_is_no_change(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        with connect(shop.url) as connection:
            connection.execute("BEGIN; INSERT INTO items VALUES ('a', 'A'); ROLLBACK")
            connection.execute(
                "BEGIN; INSERT INTO items VALUES ('b', 'A'); SAVEPOINT s; "
                "INSERT INTO items VALUES ('c', 'A'); ROLLBACK TO s; COMMIT"
            )
        eventually(lambda: received(engine) == 1, "one event")
    assert [row.key for row in recorded(engine)] == ["b"]


def test_an_idle_database_beside_a_busy_one_holds_no_log(
    wheel_shop: CapturedSource, wheel_server: SourceServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_IDLE_MOVE_SECONDS", 0.2)
    config = captured_config(wheel_shop)
    wheel_server.execute("CREATE TABLE IF NOT EXISTS busy (t text)")
    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        for _ in range(3):
            wheel_server.execute("INSERT INTO busy SELECT repeat(md5(n::text), 30) FROM generate_series(1, 10000) n")
        [(end,)] = wheel_server.execute("SELECT pg_current_wal_lsn()::text")

        def is_let_go() -> bool:
            wheel_server.execute("CHECKPOINT; SELECT pg_log_standby_snapshot()")
            [(held,)] = wheel_server.execute(
                "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots "
                f"WHERE slot_name = '{wheel_shop.slot}'"
            )
            return int(held) < 2**20

        eventually(is_let_go, "an acknowledgement of the neighbour's log")
        wheel_shop.execute("INSERT INTO items VALUES ('a', 'A')")
        eventually(lambda: received(engine) == 1, "the event")
    assert end


def test_a_position_is_in_the_ledger_before_the_slot_has_it(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, shop), "the stream")
        for number in range(20):
            shop.execute(f"INSERT INTO items VALUES ('k{number}', 'A')")
            [slot] = [shop.find_slot()]
            [stream] = query(engine, "SELECT position FROM sync.streams")
            assert slot is not None
            [(ahead,)] = shop.execute(f"SELECT '{slot[1]}'::pg_lsn > '{stream.position}'::pg_lsn")
            assert not ahead
        eventually(lambda: received(engine) == 20, "20 events")


# Reads that rely on what is recorded --------------------------------------------------------------------------------


def test_a_commit_that_others_do_not_see_yet_is_not_recorded(
    wheel_shop: CapturedSource, wheel_server: SourceServer, engine: Engine
) -> None:
    """The log shows a commit that waits for a synchronous standby before any read shows it."""
    config = captured_config(wheel_shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, wheel_shop), "the stream")
        wheel_server.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        wheel_server.execute("SELECT pg_reload_conf()")
        try:
            with connect(wheel_shop.url) as blocked:
                eventually(lambda: blocked.execute("SHOW synchronous_standby_names").fetchone() == ("nobody",), "it")
                writer = threading.Thread(target=blocked.execute, args=("INSERT INTO items VALUES ('a', 'A')",))
                writer.start()
                eventually(
                    lambda: wheel_server.execute("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'SyncRep'"),
                    "the wait",
                )
                looks: list[int] = []
                with pytest.MonkeyPatch.context() as patch:
                    look = PostgresSource.read_snapshot

                    def note(self: PostgresSource) -> Any:
                        looks.append(1)
                        return look(self)

                    patch.setattr(PostgresSource, "read_snapshot", note)
                    eventually(lambda: len(looks) >= 3, "looks at what is visible")
                assert received(engine) == 0
                wheel_server.execute("ALTER SYSTEM RESET synchronous_standby_names")
                wheel_server.execute("SELECT pg_reload_conf()")
                writer.join(15)
                eventually(lambda: received(engine) == 1, "the event")
        finally:
            wheel_server.execute("ALTER SYSTEM RESET synchronous_standby_names")
            wheel_server.execute("SELECT pg_reload_conf()")


def test_a_rejected_row_is_read_anew_when_it_is_retried(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    shop.execute("INSERT INTO items VALUES ('gone', 'A')")
    begun(engine, config, shop)
    shop.execute("ALTER TABLE items DROP COLUMN name; INSERT INTO items VALUES ('a', 'A'); DELETE FROM items")
    with reading(engine, config):
        eventually(lambda: len(rejected(engine)) == 3, "three rejections")

    def reread(found: Rejected, config: Config) -> Any:
        assert is_rejected_row(found)
        return reread_row(found, config)

    assert retry_rejected(engine, config, None, "capture shop", reread) == (3, 0)
    rows = sorted((row.key, row.action, row.thin) for row in recorded(engine))
    assert rows == [("a", "create", True), ("a", "delete", True), ("gone", "delete", True)]
    assert not open_alerts(engine, "rejected")


def test_a_row_that_no_part_wants_any_more_stays_rejected(shop: CapturedSource, engine: Engine) -> None:
    config = captured_config(shop)
    begun(engine, config, shop)
    shop.execute("INSERT INTO items VALUES ('a', 'A', NULL)")
    with reading(engine, config):
        eventually(lambda: rejected(engine), "the rejection")
    other = captured_config(shop, part={"sql": {"table": "others"}})
    assert retry_rejected(engine, other, None, None, reread_row) == (0, 1)
    assert rejected(engine) == ["table items of shop is not captured for item any more"]

"""Changes captured from the binlog of a real MariaDB: what is recorded, in which order, and when."""

from __future__ import annotations

import asyncio
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
    MariadbServer,
    MariadbSource,
    doing,
    mariadb,
    mariadb_database,
    mariadb_server,
    mariadb_shop,
    mariadb_source,
    require_mariadb,
)
from sqlalchemy import Engine

from sync_orchestrator.adapters.factory import build_sources
from sync_orchestrator.capture import mysql as mysql_module
from sync_orchestrator.capture import recording
from sync_orchestrator.capture import stream as stream_module
from sync_orchestrator.capture.mysql import MysqlCapture, MysqlCaptureLog
from sync_orchestrator.capture.stream import StreamReader
from sync_orchestrator.config import Config
from sync_orchestrator.core.capture.streams import CaptureStream
from sync_orchestrator.core.intake.rejected_messages import Rejected
from sync_orchestrator.errors import LogDown

pytestmark = pytest.mark.slow

__all__ = ["mariadb", "mariadb_shop", "mariadb_source"]


def changes(engine: Engine) -> list[tuple[str, str]]:
    """The keys and actions of what was recorded."""
    return [(row.key, row.action) for row in recorded(engine)]


def test_rows_lead_to_reads_in_the_order_of_their_commits(mariadb_shop: MariadbSource, engine: Engine) -> None:
    config = captured_config(mariadb_shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('a', 'A'), ('b', 'A')")
        mariadb_shop.execute("UPDATE items SET name = 'two' WHERE sku = 'a'")
        mariadb_shop.execute("UPDATE items SET sku = 'c' WHERE sku = 'b'")
        mariadb_shop.execute("DELETE FROM items WHERE sku = 'a'")
        eventually(lambda: received(engine) == 6, "six events")
    assert changes(engine) == [
        ("a", "create"),
        ("b", "create"),
        ("a", "create"),
        ("b", "delete"),
        ("c", "create"),
        ("a", "delete"),
    ]
    assert {(row.thin, row.origin) for row in recorded(engine)} == {(True, "capture")}


def test_what_was_written_while_nobody_read_is_captured_once(mariadb_shop: MariadbSource, engine: Engine) -> None:
    config = captured_config(mariadb_shop)
    begun(engine, config, mariadb_shop)
    mariadb_shop.insert_many("k", 2500)
    with reading(engine, config):
        eventually(lambda: received(engine) == 2500, "2500 events")
    with reading(engine, config):
        mariadb_shop.insert_many("last", 1)
        eventually(lambda: received(engine) == 2501, "one more")
    assert len({row.key for row in recorded(engine)}) == 2501


def test_a_large_transaction_is_recorded_in_pieces(
    mariadb_shop: MariadbSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = captured_config(mariadb_shop)
    begun(engine, config, mariadb_shop)
    [before] = query(engine, "SELECT position FROM sync.streams")
    mariadb_shop.insert_many("k", 4500)
    places: set[tuple[bool, str | None]] = set()
    record = recording.record_batch

    def note(*arguments: Any) -> Any:
        found = record(*arguments)
        places.add((found.position == before.position, found.partial and found.partial.rpartition("/")[2]))
        return found

    monkeypatch.setattr(stream_module, "record_batch", note)
    with reading(engine, config):
        eventually(lambda: received(engine) == 4500, "4500 events")
        eventually(lambda: query(engine, "SELECT FROM sync.streams WHERE partial IS NULL"), "the end")
    assert {(True, "1"), (False, None)} <= places  # rows come by events, so a batch may have two pieces
    assert len(places) >= 4


def test_what_was_rolled_back_is_no_change(mariadb_shop: MariadbSource, engine: Engine) -> None:
    config = captured_config(mariadb_shop)
    begun(engine, config, mariadb_shop)
    mariadb_shop.execute_all("BEGIN", "INSERT INTO items (sku) VALUES ('a')", "ROLLBACK")
    mariadb_shop.execute_all(
        "BEGIN",
        "INSERT INTO items (sku) VALUES ('b')",
        "SAVEPOINT s",
        "INSERT INTO items (sku) VALUES ('c')",
        "ROLLBACK TO s",
        "COMMIT",
    )
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "one event")
    assert changes(engine) == [("b", "create")]


def test_records_of_several_tables_are_told_by_key(mariadb_source: MariadbSource, engine: Engine) -> None:
    mariadb_source.execute("CREATE TABLE orders (id int PRIMARY KEY, store text, v datetime(6) DEFAULT now(6))")
    mariadb_source.execute("CREATE TABLE order_lines (n int AUTO_INCREMENT PRIMARY KEY, order_id int)")
    part = {
        "sql": {"query": "SELECT o.*, (SELECT count(*) FROM order_lines WHERE order_id = o.id) AS name FROM orders o"},
        "key": "id",
        "changes": {"by": "log", "tables": {"orders": "id", "order_lines": "order_id"}},
    }
    config = captured_config(mariadb_source, part=part)
    begun(engine, config, mariadb_source)
    mariadb_source.execute_all(
        "BEGIN",
        "INSERT INTO orders (id, store) VALUES (7, 'A')",
        "INSERT INTO order_lines (order_id) VALUES (7), (7)",
        "COMMIT",
    )
    mariadb_source.execute("UPDATE order_lines SET order_id = 8 WHERE n = 1")
    mariadb_source.execute("DELETE FROM orders WHERE id = 7")
    with reading(engine, config):
        eventually(lambda: received(engine) == 4, "four events")
    found = changes(engine)
    assert found[0] == ("7", "create")
    assert sorted(found[1:3]) == [("7", "create"), ("8", "create")]
    assert found[3] == ("7", "delete")


# Keys ---------------------------------------------------------------------------------------------------------------

KEYS: dict[str, list[object]] = {
    "int": [-2147483648, 7],
    "int unsigned": [4294967295],
    "tinyint unsigned": [255],
    "mediumint": [-8388608, 8388607],
    "bigint unsigned": [18446744073709551615],
    "decimal(20,2)": ["12345678901234567.50", "3.00"],
    "char(10)": ["ab", "Ä"],
    "varchar(300) CHARACTER SET utf8mb4": ["späte 𝄞", "x" * 290],
    "varchar(20) CHARACTER SET utf8mb3": ["grün"],
    "varchar(20) CHARACTER SET latin1": ["é€"],
    "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin": ["Bin"],
    "varchar(20) CHARACTER SET latin2 COLLATE latin2_czech_cs": ["ř"],
    "varchar(20) CHARACTER SET cp1251": ["ж"],
    "varchar(20) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin": ["Bin "],
}


@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_the_one_that_a_select_gives(kind: str, mariadb_source: MariadbSource, engine: Engine) -> None:
    mariadb_source.execute(
        f"CREATE TABLE items (a text, f float, sku {kind}, store varchar(9), v datetime(6) DEFAULT now(6), name text, "
        "e enum('x','y'), j json, t time(3), b bit(9), s set('p','q'), y year, z timestamp(6) NULL, PRIMARY KEY (sku))"
    )
    config = captured_config(mariadb_source)
    begun(engine, config, mariadb_source)
    for value in KEYS[kind]:
        mariadb_source.execute(
            "INSERT INTO items (a, f, sku, store, name, e, j, t, b, s, y, z) VALUES "
            "('a', 1.5, %s, 'A', 'n', 'y', '{\"a\": [1]}', '01:02:03.4', 5, 'p,q', 2026, now(6))",
            value,
        )
    with reading(engine, config):
        eventually(lambda: received(engine) == len(KEYS[kind]), "the events")
    listed = asyncio.run(listed_keys(config))
    assert len(listed) == len(KEYS[kind])
    assert sorted(row.key for row in recorded(engine)) == sorted(listed)


async def listed_keys(config: Config) -> list[str]:
    """The keys that a full sync finds."""
    source: Any = build_sources(config)["item"]["shop"]
    rows = [row async for page, _ in source.pages("A") for row in page]
    await source.close()
    assert not [row.problem for row in rows if row.problem]
    return [row.key for row in rows]


def test_keys_are_right_whatever_was_altered_before_they_are_read(mariadb_shop: MariadbSource, engine: Engine) -> None:
    """The log is read by the shape that a table had then, never by that of today."""
    config = captured_config(mariadb_shop)
    begun(engine, config, mariadb_shop)
    mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('a', 'A')")
    mariadb_shop.execute("ALTER TABLE items MODIFY store varchar(20) FIRST, MODIFY name text AFTER store")
    mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('b', 'A')")
    mariadb_shop.execute("ALTER TABLE items ADD COLUMN first_one int DEFAULT 9 FIRST, DROP COLUMN name")
    mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('c', 'A')")
    mariadb_shop.execute("ALTER TABLE items ADD COLUMN name text, MODIFY sku varchar(100) AFTER v")
    mariadb_shop.execute("DELETE FROM items WHERE sku = 'a'")
    with reading(engine, config):
        eventually(lambda: received(engine) == 4, "four events")
    assert changes(engine) == [("a", "create"), ("b", "create"), ("c", "create"), ("a", "delete")]
    assert not open_alerts(engine, "capture_lost")


def test_a_row_from_before_the_key_column_had_its_name_is_rejected(mariadb_shop: MariadbSource, engine: Engine) -> None:
    mariadb_shop.execute("ALTER TABLE items CHANGE sku code varchar(100)")
    mariadb_shop.execute("CREATE TABLE other LIKE items")
    before = captured_config(mariadb_shop, part={"key": "code"})
    begun(engine, before, mariadb_shop)
    mariadb_shop.execute("INSERT INTO items (code, store) VALUES ('a', 'A')")
    mariadb_shop.execute("ALTER TABLE items CHANGE code sku varchar(100)")
    mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('b', 'A')")
    with reading(engine, captured_config(mariadb_shop)):
        eventually(lambda: received(engine) == 1, "the later event")
    [found] = query(engine, "SELECT reason FROM sync.rejected WHERE ended_at IS NULL")
    assert "table items had no column sku then" in found.reason
    assert changes(engine) == [("b", "create")]


def test_a_minimal_row_image_is_enough_where_the_key_is_the_primary_key(
    mariadb_shop: MariadbSource, engine: Engine
) -> None:
    config = captured_config(mariadb_shop)
    mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('a', 'A'), ('b', 'A'), ('c', 'A')")
    begun(engine, config, mariadb_shop)
    for statement in (
        "UPDATE items SET name = 'x' WHERE sku = 'a'",
        "UPDATE items SET sku = 'd' WHERE sku = 'b'",
        "DELETE FROM items WHERE sku = 'c'",
    ):
        mariadb_shop.execute_all("SET SESSION binlog_row_image = 'MINIMAL'", statement)
    with reading(engine, config):
        eventually(lambda: received(engine) == 4, "four events")
    assert changes(engine) == [("a", "create"), ("b", "delete"), ("d", "create"), ("c", "delete")]
    assert not open_alerts(engine, "capture_lost")


# What reads see -----------------------------------------------------------------------------------------------------


@pytest.fixture
def waiting_commits(mariadb: MariadbServer) -> Any:
    """Commits wait between the log and the engine for a replica that does not come; what ends that."""
    mariadb.execute("SET GLOBAL rpl_semi_sync_master_wait_point = 'AFTER_SYNC'")
    mariadb.execute("SET GLOBAL rpl_semi_sync_master_timeout = 60000")
    mariadb.execute("SET GLOBAL rpl_semi_sync_master_enabled = 1")

    def let_go() -> None:
        mariadb.execute("SET GLOBAL rpl_semi_sync_master_enabled = 0")

    yield let_go
    let_go()


def test_a_commit_that_others_do_not_see_yet_is_not_recorded(
    mariadb_shop: MariadbSource, engine: Engine, waiting_commits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = captured_config(mariadb_shop)
    looks: list[bool] = []
    look = MysqlCapture.sees

    def note(self: MysqlCapture, marks: Any) -> bool:
        looks.append(look(self, marks))
        return looks[-1]

    monkeypatch.setattr(MysqlCapture, "sees", note)
    with reading(engine, config):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        with doing(mariadb_shop.execute, "INSERT INTO items (sku, store) VALUES ('a', 'A')"):
            eventually(lambda: len(looks) >= 3, "looks at what is visible")
            assert not any(looks)
            assert (received(engine), mariadb_shop.execute("SELECT count(*) FROM items")) == (0, [(0,)])
            waiting_commits()
        eventually(lambda: received(engine) == 1, "the event")
    assert mariadb_shop.execute("SELECT count(*) FROM items") == [(1,)]


def test_a_reader_that_does_not_look_what_is_visible_is_found(
    mariadb_shop: MariadbSource, engine: Engine, waiting_commits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql_module, "_has_committed", lambda shown, marks: True)
    with reading(engine, captured_config(mariadb_shop)):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        with doing(mariadb_shop.execute, "INSERT INTO items (sku, store) VALUES ('a', 'A')"):
            eventually(lambda: received(engine) == 1, "the event, too early")
            assert mariadb_shop.execute("SELECT count(*) FROM items") == [(0,)]
            waiting_commits()


def test_a_change_is_recorded_when_the_replica_that_is_read_has_it(engine: Engine) -> None:
    require_mariadb()
    with mariadb_server() as primary, mariadb_server("--read-only=0", server_id=72) as replica:
        primary.execute("CREATE DATABASE shop")
        source = MariadbSource(primary, "shop")
        source.execute("CREATE TABLE items (sku varchar(100) PRIMARY KEY, store text, v datetime(6), name text)")
        replica.execute(
            f"CHANGE MASTER TO master_host='127.0.0.1', master_port={primary.port}, master_user='root', "
            "master_use_gtid=slave_pos"
        )
        replica.execute("START SLAVE")
        copy = MariadbSource(replica, "shop")
        eventually(lambda: ("items",) in replica.execute("SELECT table_name FROM information_schema.tables"), "it")
        config = captured_config(copy, capture={"url": source.url})
        with reading(engine, config):
            eventually(lambda: is_open(engine, source), "the stream")
            source.execute("INSERT INTO items (sku, store) VALUES ('a', 'A')")
            eventually(lambda: received(engine) == 1, "the first event")
            replica.execute("STOP SLAVE SQL_THREAD")
            source.execute("INSERT INTO items (sku, store) VALUES ('b', 'A')")
            with pytest.raises(AssertionError):
                wait_briefly(lambda: received(engine) == 2)
            replica.execute("START SLAVE SQL_THREAD")
            eventually(lambda: received(engine) == 2, "the second event")
        assert copy.execute("SELECT count(*) FROM items") == [(2,)]


def wait_briefly(check: Any) -> None:
    """Waits for what must not come; raises AssertionError where it does not."""
    import captured_sources

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured_sources, "PATIENCE", 1.5)
        captured_sources.eventually(check, "it")


# Distributed transactions -------------------------------------------------------------------------------------------


def test_rows_of_a_distributed_transaction_are_told_when_it_is_committed(
    mariadb_shop: MariadbSource, engine: Engine
) -> None:
    config = captured_config(mariadb_shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        for name, end in (("one", "COMMIT"), ("two", "ROLLBACK")):
            mariadb_shop.execute_all(
                f"XA START '{name}'",
                f"INSERT INTO items (sku, store) VALUES ('{name}', 'A')",
                f"XA END '{name}'",
                f"XA PREPARE '{name}'",
            )
            mariadb_shop.execute(f"INSERT INTO items (sku, store) VALUES ('before {name}', 'A')")
            eventually(lambda name=name: f"before {name}" in dict(changes(engine)), "what came between")  # type: ignore[misc]
            assert name not in dict(changes(engine))
            mariadb_shop.execute(f"XA {end} '{name}'")
        mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('last', 'A')")
        eventually(lambda: "last" in dict(changes(engine)), "the last event")
    assert [key for key, _ in changes(engine)] == ["before one", "one", "before two", "last"]
    assert not open_alerts(engine, "capture_lost")


def test_a_distributed_transaction_that_another_reader_saw_prepared_is_told_as_missing(
    mariadb_shop: MariadbSource, engine: Engine
) -> None:
    config = captured_config(mariadb_shop)
    with reading(engine, config):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        mariadb_shop.execute_all(
            "XA START 'x'", "INSERT INTO items (sku, store) VALUES ('x', 'A')", "XA END 'x'", "XA PREPARE 'x'"
        )
        mariadb_shop.execute("INSERT INTO items (sku, store) VALUES ('a', 'A')")
        eventually(lambda: received(engine) == 1, "the event")
    mariadb_shop.execute("XA COMMIT 'x'")
    with reading(engine, config):
        eventually(lambda: open_alerts(engine, "capture_lost"), "the alert")
    assert "a distributed (XA) transaction was committed" in open_alerts(engine, "capture_lost")[0][1][0]


# Idle databases, connections that end -------------------------------------------------------------------------------


def test_the_position_goes_on_beside_a_busy_neighbour(
    mariadb_shop: MariadbSource, mariadb: MariadbServer, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "_IDLE_MOVE_SECONDS", 0.2)
    with mariadb_database(mariadb) as neighbour, reading(engine, captured_config(mariadb_shop)):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        neighbour.execute("CREATE TABLE busy (t text)")
        neighbour.execute("INSERT INTO busy SELECT repeat('x', 1000) FROM seq_1_to_20000")
        [(end,)] = mariadb.execute("SELECT @@gtid_binlog_pos")
        eventually(
            lambda: query(engine, "SELECT FROM sync.streams WHERE position = %(end)s", end=f"mariadb:{end}"),
            "the position behind the neighbour's writes",
        )
    assert received(engine) == 0


def test_a_neighbour_that_writes_without_a_pause_keeps_no_reader_from_its_lease(
    mariadb_shop: MariadbSource, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a log in which something always follows, figures are written and the position moves, too."""
    monkeypatch.setattr(stream_module, "_MEASURE_SECONDS", 0.1)
    monkeypatch.setattr(stream_module, "_IDLE_MOVE_SECONDS", 0.1)
    monkeypatch.setattr(stream_module, "_LOOK_SECONDS", 0.1)
    monkeypatch.setattr(MysqlCaptureLog, "receive", _always_more(MysqlCaptureLog.receive))
    with reading(engine, captured_config(mariadb_shop)):
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        eventually(lambda: query(engine, "SELECT FROM sync.streams WHERE behind IS NOT NULL"), "the figures")
        mariadb_shop.insert_many("a", 1)
        eventually(lambda: received(engine) == 1, "the event")


def _always_more(receive: Any) -> Any:
    from sync_orchestrator.capture.port import ReceivedPart

    def receive_content(self: MysqlCaptureLog, wait_seconds: float, wake: int | None = None) -> ReceivedPart:
        receive(self, wait_seconds, wake)
        return ReceivedPart.CONTENT

    return receive_content


def test_a_connection_that_is_ended_is_opened_again_from_our_position(
    mariadb_shop: MariadbSource, mariadb: MariadbServer, engine: Engine
) -> None:
    """The library would go on from where it once began, without a pause and without a word."""
    ends: list[str] = []
    config = captured_config(mariadb_shop)
    with reading(engine, config) as reader, pytest.MonkeyPatch.context() as patch:
        note_ends(reader, ends, patch)
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        for number in range(3):
            mariadb_shop.insert_many(f"k{number}-", 10)
            eventually(lambda number=number: received(engine) == 10 * (number + 1), "ten events")  # type: ignore[misc]
            for (thread,) in mariadb.execute(
                "SELECT id FROM information_schema.processlist WHERE command = 'Binlog Dump'"
            ):
                mariadb.execute(f"KILL {thread}")
            eventually(lambda number=number: len(ends) > number, "the end of the connection")  # type: ignore[misc]
        mariadb_shop.insert_many("last", 1)
        eventually(lambda: received(engine) == 31, "the last event")
    assert query(engine, "SELECT count(*)::int AS n FROM sync.events")[0].n == 31
    assert len({row.key for row in recorded(engine)}) == 31


def test_two_readers_with_one_server_id_are_told_apart(mariadb_shop: MariadbSource, engine: Engine) -> None:
    config = captured_config(mariadb_shop, capture={"server_id": 4711})
    ends: list[str] = []
    with reading(engine, config) as reader, pytest.MonkeyPatch.context() as patch:
        note_ends(reader, ends, patch)
        eventually(lambda: is_open(engine, mariadb_shop), "the stream")
        mariadb_shop.insert_many("a", 1)
        eventually(lambda: received(engine) == 1, "the event")
        stream = query(engine, "SELECT * FROM sync.streams")[0]
        other = MysqlCapture("other", config.sources["shop"], None)  # type: ignore[arg-type]
        at = CaptureStream("other", stream.identity, stream.position, None, 0, {})
        told: list[str] = []
        while not (ends and told):  # each of them throws the other one out, at once or when it comes again
            try:
                with other.open_log(at, [], 0) as log:
                    receive_until_thrown_out(log)
            except LogDown as error:
                told.append(str(error))
        other.close()
        mariadb_shop.insert_many("b", 1)
        eventually(lambda: received(engine) == 2, "what came later")
    assert all("another reader has the server_id 4711" in each for each in (*ends, *told))


def note_ends(reader: StreamReader, ends: list[str], patch: pytest.MonkeyPatch) -> None:
    """Notes why the reader's log was closed."""
    report = reader._report_down

    def note(error: LogDown) -> None:
        ends.append(str(error))
        report(error)

    patch.setattr(reader, "_report_down", note)


def receive_until_thrown_out(log: MysqlCaptureLog) -> None:
    for _ in range(200):
        log.receive(0.1)


def test_a_rejected_row_names_its_table(mariadb_source: MariadbSource, engine: Engine) -> None:
    mariadb_source.execute("CREATE TABLE items (sku varchar(9), store text, v datetime(6) DEFAULT now(6), name text)")
    config = captured_config(mariadb_source)
    begun(engine, config, mariadb_source)
    mariadb_source.execute("INSERT INTO items (sku, store) VALUES ('', 'A'), (NULL, 'A'), ('a', 'A')")
    with reading(engine, config):
        eventually(lambda: received(engine) == 1, "the event")
    [row] = query(engine, "SELECT * FROM sync.rejected")
    assert row.reason == "no key at 'sku': it is empty"
    assert Rejected(row.consumer, row.reason, row.body, row.content_type, {}).consumer == "capture shop"

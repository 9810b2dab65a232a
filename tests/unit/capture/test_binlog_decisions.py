"""What the reader of a binlog decides without a database: positions, losses, statements, rows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sync_orchestrator.capture.assembly import BatchAssembler, ChangeBatch, MissingChanges
from sync_orchestrator.capture.binlog_rows import BinlogColumn, BinlogRow, BinlogTable
from sync_orchestrator.capture.binlog_statements import LoggedTable, StatementKind, format_xid, read_statement
from sync_orchestrator.capture.changes import CapturedChange
from sync_orchestrator.capture.gtids import MariadbPosition, MysqlPosition, parse_gtid_position
from sync_orchestrator.capture.mysql import BinlogServer, derive_server_id, find_binlog_loss
from sync_orchestrator.capture.parts import CapturedPart, CapturedTable
from sync_orchestrator.capture.positions import find_later, has_passed
from sync_orchestrator.capture.recording import StreamPosition, find_next_place
from sync_orchestrator.config import PartSettings
from sync_orchestrator.core.intake.rejected_messages import Rejected

ONE, TWO = "3e11fa47-71ca-11e1-9e33-c80aa9429562", "4c9e3dfc-9d25-11e9-8d2e-0242ac1cfd7e"

# Positions ----------------------------------------------------------------------------------------------------------

gtids_of_mysql = st.lists(st.tuples(st.sampled_from([ONE, TWO]), st.integers(1, 30)), max_size=40)
gtids_of_mariadb = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(1, 30)), max_size=20)


def mysql_position(gtids: list[tuple[str, int]]) -> MysqlPosition:
    position = MysqlPosition({})
    for server, number in gtids:
        position = position.add(f"{server}:{number}")
    return position


@given(gtids_of_mysql, gtids_of_mysql)
def test_a_position_of_mysql_is_a_set_of_transactions(
    some: list[tuple[str, int]], others: list[tuple[str, int]]
) -> None:
    one, other = mysql_position(some), mysql_position(others)
    assert one == MysqlPosition.parse(one.server_text) == parse_gtid_position(str(one))
    assert all(one.contains(f"{server}:{number}") for server, number in some)
    assert one.covers(other) == (set(others) <= set(some))
    both = one.unite(other)
    assert both == mysql_position([*some, *others])
    assert find_later(str(one), str(other)) == str(both)


@given(gtids_of_mariadb, gtids_of_mariadb)
def test_a_position_of_mariadb_has_the_last_transaction_of_each_domain(
    some: list[tuple[int, int, int]], others: list[tuple[int, int, int]]
) -> None:
    one, other = (MariadbPosition.parse(",".join(f"{d}-{s}-{n}" for d, s, n in each)) for each in (some, others))
    assert one.unite(other).covers(one)
    assert one.unite(other).covers(other)
    assert all(one.contains(f"{domain}-9-{number}") for domain, _, number in some)
    assert MariadbPosition.parse(one.server_text) == one == parse_gtid_position(str(one))
    assert not one.contains("7-1-1")


@pytest.mark.parametrize("text", ["0/16B3748", "", "x:1-2", "mysql:1-2-3", "mariadb:abc"])
def test_what_is_no_position_of_a_binlog_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no (set|position|GTID)"):
        parse_gtid_position(text)


def test_positions_of_two_kinds_of_servers_are_not_united() -> None:
    with pytest.raises(ValueError, match="a position of MySQL, and one of MariaDB"):
        find_later("mysql:", "mariadb:0-1-2")
    with pytest.raises(ValueError, match="a position of MySQL, and one of MariaDB"):
        find_later("mariadb:", f"mysql:{ONE}:1")


@pytest.mark.parametrize(
    ("position", "partial", "batch", "expected"),
    [
        ("mariadb:0-1-4", None, {"position": ""}, ("mariadb:0-1-4", None)),
        ("mariadb:0-1-4", None, {"position": "mariadb:0-1-3"}, ("mariadb:0-1-4", None)),
        ("mariadb:0-1-4", None, {"partial": "0-1-5/2"}, ("mariadb:0-1-4", "0-1-5/2")),
        ("mariadb:0-1-4", "0-1-5/2", {"position": "mariadb:0-1-4"}, ("mariadb:0-1-4", "0-1-5/2")),
        ("mariadb:0-1-4", "0-1-5/2", {"position": "mariadb:0-1-5"}, ("mariadb:0-1-5", None)),
        (f"mysql:{ONE}:1-4", f"{ONE}:5/2", {"position": f"mysql:{ONE}:1-5"}, (f"mysql:{ONE}:1-5", None)),
    ],
)
def test_a_position_never_goes_back(
    position: str, partial: str | None, batch: dict[str, Any], expected: tuple[str, str | None]
) -> None:
    at = StreamPosition("shop", 1, 15, position, partial, "id")
    assert find_next_place(at, ChangeBatch(**batch)) == expected


def test_what_has_passed() -> None:
    assert has_passed("mariadb:0-1-5", "0-1-5")
    assert not has_passed("mariadb:0-1-5", "0-1-6")
    assert has_passed("0/51", "0/50")
    assert not has_passed("0/50", "0/50")


# Losses -------------------------------------------------------------------------------------------------------------

MARIADB = BinlogServer(True, "7", MariadbPosition.parse("0-7-100"), MariadbPosition({}), 0)
MYSQL = BinlogServer(False, ONE, MysqlPosition.parse(f"{ONE}:1-100"), MysqlPosition.parse(f"{ONE}:1-10"), 0)
OTHER_MYSQL = BinlogServer(False, TWO, MysqlPosition.parse(f"{ONE}:1-60,{TWO}:1-3"), MysqlPosition({}), 0)


@pytest.mark.parametrize(
    ("server", "identity", "position", "sentence"),
    [
        (MARIADB, MARIADB.text, "mariadb:0-7-100", None),
        (MARIADB, MARIADB.text, "mariadb:0-7-1", None),
        (MARIADB, MARIADB.text, "mariadb:", None),
        (MARIADB, MARIADB.text, "mariadb:0-7-101", "restored to an earlier state, or its log was reset"),
        (MARIADB, MARIADB.text, "mariadb:1-7-1", "restored to an earlier state, or its log was reset"),
        (MARIADB, "MariaDB server_id 8", "mariadb:0-7-1", "another server answers than before"),
        (MARIADB, MYSQL.text, f"mysql:{ONE}:1", "another kind of server answers"),
        (MARIADB, "system 7, timeline 1, database x", "0/16B3748", "another kind of server answers"),
        (MYSQL, MYSQL.text, f"mysql:{ONE}:1-50", None),
        (MYSQL, MYSQL.text, f"mysql:{ONE}:1-5", "removed the part of its log that the stream needs"),
        (MYSQL, MYSQL.text, f"mysql:{ONE}:1-101", "restored to an earlier state, or its log was reset"),
        (OTHER_MYSQL, MYSQL.text, f"mysql:{ONE}:1-50", None),
        (OTHER_MYSQL, MYSQL.text, f"mysql:{ONE}:1-70", "another server answers than before"),
    ],
)
def test_each_loss_has_its_own_sentence(
    server: BinlogServer, identity: str, position: str, sentence: str | None
) -> None:
    found = find_binlog_loss(identity, position, server)
    assert (found is None) if sentence is None else (found is not None and sentence in found)


def test_a_log_that_was_reset_is_told_as_such() -> None:
    empty = BinlogServer(True, "7", MariadbPosition({}), MariadbPosition({}), 0)
    found = find_binlog_loss(empty.text, "mariadb:0-7-3", empty)
    assert found is not None
    assert "the server's log is empty" in found


def test_streams_and_installations_have_numbers_of_their_own() -> None:
    numbers = {derive_server_id(name, place) for name in ("shop", "crm") for place in ("7/1", "8/1")}
    assert len(numbers) == 4
    assert all(1_000_000_000 <= number < 2**32 for number in numbers)


# Statements ---------------------------------------------------------------------------------------------------------


def part(key_column: str = "sku", *, is_own_table: bool = True) -> CapturedPart:
    settings = PartSettings.model_validate(
        {"sql": {"table": "items"}, "key": "sku", "version": {"path": "v"}, "changes": {"by": "log"}}
    )
    return CapturedPart("item", "shop", settings, key_column, True, is_own_table, frozenset())


ITEMS = CapturedTable("items", (part(),))
LINES = CapturedTable("stock.lines", (part("item", is_own_table=False),))
LOGGED = [LoggedTable("shop", "items", ITEMS), LoggedTable("stock", "lines", LINES)]


@pytest.mark.parametrize(
    ("text", "schema", "kind", "tables"),
    [
        ("BEGIN", "shop", "begin", []),
        ("COMMIT", "", "end", []),
        ("ROLLBACK", "", "end", []),
        ("ROLLBACK TO `s`", "", "within", []),
        ("SAVEPOINT `s`", "", "within", []),
        ("# Dummy event replacing event type 160", "", "none", []),
        ("TRUNCATE TABLE items", "shop", "truncated", [ITEMS]),
        ("truncate `shop`.`items`", "", "truncated", [ITEMS]),
        ("/* by a tool */ TRUNCATE items", "shop", "truncated", [ITEMS]),
        ("/*!50003 TRUNCATE */ items", "shop", "truncated", [ITEMS]),
        ("TRUNCATE items", "other", "none", []),
        ("TRUNCATE items_archive", "shop", "none", []),
        ("DROP TABLE IF EXISTS `items` /* generated by server */", "shop", "replaced", [ITEMS]),
        ("DROP DATABASE stock", "", "replaced", [LINES]),
        ("DROP VIEW items", "shop", "none", []),
        ("RENAME TABLE `shop`.`items` TO `shop`.`_del`, `shop`.`_gho` TO `shop`.`items`", "", "replaced", [ITEMS]),
        ("RENAME USER a TO items", "shop", "none", []),
        ("ALTER TABLE items RENAME TO things", "shop", "replaced", [ITEMS]),
        ("ALTER TABLE items RENAME COLUMN a TO b", "shop", "none", []),
        ("ALTER TABLE items ADD COLUMN size int", "shop", "none", []),
        ("ALTER TABLE other EXCHANGE PARTITION p WITH TABLE items", "shop", "replaced", [ITEMS]),
        ("CREATE OR REPLACE TABLE items (a int)", "shop", "replaced", [ITEMS]),
        ("CREATE TABLE IF NOT EXISTS items (a int)", "shop", "none", []),
        ("CREATE INDEX i ON items (a)", "shop", "none", []),
        ("GRANT SELECT ON items TO x", "shop", "none", []),
        ("INSERT INTO items VALUES (1)", "shop", "unseen rows", [ITEMS, LINES]),
        ("-- why\nUPDATE anything SET a = 1", "shop", "unseen rows", [ITEMS, LINES]),
        ("SET STATEMENT max_statement_time=1 FOR DELETE FROM items", "shop", "unseen rows", [ITEMS, LINES]),
        ("BEGIN NOT ATOMIC DELETE FROM items; END", "shop", "unseen rows", [ITEMS, LINES]),
        ("UPDATE a SET b = 1", "other", "none", []),
        ("UPDATE a JOIN stock.lines SET b = 1", "other", "unseen rows", [ITEMS, LINES]),
        ("XA START X'7831',X'',1", "", "xa start", []),
        ("XA END X'7831',X'',1", "", "within", []),
        ("XA COMMIT X'7831',X'',1", "", "xa commit", []),
        ("XA ROLLBACK X'7831',X'',1", "", "xa rollback", []),
    ],
)  # fmt: skip
def test_what_a_statement_means(text: str, schema: str, kind: str, tables: list[CapturedTable]) -> None:
    found = read_statement(text, schema, LOGGED)
    assert (found.kind, list(found.tables)) == (StatementKind(kind), tables)


def test_a_distributed_transaction_has_one_name_in_events_and_statements() -> None:
    assert read_statement("XA COMMIT X'7831',X'ff',1", "", LOGGED).xid == format_xid(b"x1", b"\xff", 1)


# Rows ---------------------------------------------------------------------------------------------------------------

COLUMNS = [BinlogColumn("sku", 15, "utf8mb4"), BinlogColumn("name", 252, "utf8mb4")]
Found = CapturedChange | Rejected | MissingChanges


def read(row: BinlogRow, columns: list[BinlogColumn] | None = None, table: CapturedTable = ITEMS) -> list[Found]:
    return list(BinlogTable(table, COLUMNS if columns is None else columns).read_row(row))


def told(found: list[Found]) -> list[tuple[str, str, bool]]:
    return [(each.key, each.action, each.is_doubted) for each in found if isinstance(each, CapturedChange)]


@pytest.mark.parametrize(
    ("row", "expected", "is_missing"),
    [
        (BinlogRow("insert", None, {"sku": "a"}), [("a", "create", False)], False),
        (BinlogRow("delete", {"sku": "a"}, None), [("a", "delete", True)], False),
        (BinlogRow("update", {"sku": "a"}, {"sku": "a"}), [("a", "create", False)], False),
        (BinlogRow("update", {"sku": "a"}, {"sku": "b"}), [("a", "delete", True), ("b", "create", False)], False),
        (BinlogRow("update", {"sku": "a"}, {"name": "x"}), [("a", "create", False)], False),
        (BinlogRow("update", {"name": "y"}, {"sku": "b"}), [("b", "create", False)], True),
        (BinlogRow("update", {"name": "y"}, {"name": "x"}), [], True),
        (BinlogRow("delete", {"name": "y"}, None), [], True),
        (BinlogRow("insert", None, {"name": "y"}), [], True),
        (BinlogRow("insert", None, {"sku": None}), [], False),
        (BinlogRow("update", {"sku": None}, {"sku": "b"}), [("b", "create", False)], False),
        (BinlogRow("update", {"sku": "a"}, {"sku": None}), [("a", "delete", True)], False),
        (BinlogRow("insert", None, {"sku": b"\xff"}), [], True),
        (BinlogRow("insert", None, {"sku": "a\0"}), [], True),
    ],
)
def test_which_records_a_row_leads_to(row: BinlogRow, expected: list[Any], is_missing: bool) -> None:
    found = read(row)
    assert told(found) == expected
    assert any(isinstance(each, MissingChanges) for each in found) is is_missing


def test_a_row_of_another_table_leads_to_reads_only() -> None:
    columns = [BinlogColumn("n", 3, None), BinlogColumn("item", 3, None)]
    row = BinlogRow("update", {"n": 1, "item": 7}, {"n": 1, "item": 8})
    assert told(read(row, columns, LINES)) == [("7", "create", False), ("8", "create", False)]


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ([BinlogColumn(None, 15, "utf8mb4")], "the log does not name the columns of its rows"),
        ([BinlogColumn("sku", 254, "binary")], "had a type then whose values in the log are not those of a SELECT"),
        ([BinlogColumn("sku", 4, None)], "had a type then whose values in the log are not those of a SELECT"),
    ],
)
def test_a_key_that_cannot_be_proven_is_not_guessed(columns: list[BinlogColumn], sentence: str) -> None:
    [found] = read(BinlogRow("insert", None, {"sku": "a"}), columns)
    assert isinstance(found, MissingChanges)
    assert sentence in found.reason


def test_a_column_that_the_table_did_not_have_is_rejected() -> None:
    [found] = read(BinlogRow("insert", None, {"code": "a"}), [BinlogColumn("code", 15, "utf8mb4")])
    assert isinstance(found, Rejected)
    assert "had no column sku then" in found.reason


def test_what_is_missing_is_recorded_once_and_with_its_transaction() -> None:
    assembler = BatchAssembler()
    assembler.begin_transaction("0-1-5", "mark")
    for _ in range(3):
        assembler.note_missing(MissingChanges("gone", (ITEMS,)))
        assembler.add_row([])
    assert not assembler.batch.has_content
    assembler.end_transaction("mariadb:0-1-5")
    batch = assembler.take()
    assert batch.missing == [MissingChanges("gone", (ITEMS,))]
    assert (batch.marks, batch.position) == ({"mark"}, "mariadb:0-1-5")

"""Consuming an outbox: rows are deleted after the ledger's commit, whatever dies, commits late, or cannot be read."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from broker_consumers import PATIENCE, consuming, eventually, open_rejected, received
from forked_commands import start_command
from outboxes import Outbox, outbox_config
from outboxes import outbox as outbox
from outboxes import postgres_outbox as postgres_outbox
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from sync_orchestrator.brokers import consume as consuming_module
from sync_orchestrator.brokers.consume import Consumption, retry_rejected
from sync_orchestrator.brokers.outbox_queue import open_outbox_queue
from sync_orchestrator.cli import app
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import run
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.errors import BrokerDown, ConfigError


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming_module, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(consuming_module, "_TAKE_WAIT_SECONDS", 0.1)


def events(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.begin() as connection:
        rows = run(connection, "SELECT event_id, key, action, version, data FROM sync.events ORDER BY key, version")
        return [tuple(row) for row in rows]


def duplicates(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).duplicates


# What a row means ---------------------------------------------------------------------------------------------------


def test_rows_are_recorded_and_deleted(outbox: Outbox, engine: Engine) -> None:
    for number in range(1, 51):
        outbox.send(number)
    with consuming(engine, outbox_config(outbox.url)):
        eventually(lambda: received(engine) == 50 and not outbox.left(), "50 events")
        outbox.send(51)
        eventually(lambda: received(engine) == 51 and not outbox.left(), "one more")
    assert open_rejected(engine) == []


def test_columns_say_what_happened(outbox: Outbox, engine: Engine) -> None:
    outbox.send(1)
    outbox.send(2, type="updated", payload={"key": "k2", "store": "A", "v": 7, "price": 0.1})
    outbox.send(3, type="deleted")
    ids = {row.aggregateid: str(row.id) for row in outbox.run("SELECT id, aggregateid FROM outbox")}
    with consuming(engine, outbox_config(outbox.url)):
        eventually(lambda: received(engine) == 3, "three events")
    assert events(engine) == [
        (ids["k1"], "k1", "create", 1, {"key": "k1", "store": "A", "v": 1}),
        (ids["k2"], "k2", "update", 7, {"key": "k2", "store": "A", "v": 7, "price": 0.1}),
        (ids["k3"], "k3", "delete", 3, None),
    ]


def test_a_row_without_a_payload_has_its_part_read(outbox: Outbox, engine: Engine) -> None:
    outbox.send(4, type="updated", payload=None)
    with consuming(engine, outbox_config(outbox.url, outbox={"columns": {"version": "seq"}})):
        eventually(lambda: received(engine) == 1, "the event")
    assert [event[1:] for event in events(engine)] == [("k4", "update", 4, None)]


def test_names_of_columns_entities_and_actions_are_configured(outbox: Outbox, engine: Engine) -> None:
    outbox.run("DROP TABLE outbox")
    outbox.run(
        "CREATE TABLE outbox (Nr int PRIMARY KEY, what varchar(20), which varchar(20), how varchar(20), stamp text)"
    )
    outbox.run("INSERT INTO outbox VALUES (7, 'Article', 'k7', 'ArticleRemoved', '12')")
    outbox.run("INSERT INTO outbox VALUES (6, 'Article', 'k6', 'ArticleAdded', '11')")
    nr = "nr" if outbox.kind == "postgresql" else "Nr"
    settings = {
        "columns": {
            "id": nr,
            "aggregatetype": "what",
            "aggregateid": "which",
            "type": "how",
            "payload": None,
            "version": "stamp",
        },
        "entities": {"Article": "item"},
        "actions": {"ArticleAdded": "created", "ArticleRemoved": "deleted"},
    }
    with consuming(engine, outbox_config(outbox.url, outbox=settings)):
        eventually(lambda: received(engine) == 2 and not outbox.left(), "two events")
    assert [event[:4] for event in events(engine)] == [("6", "k6", "create", 11), ("7", "k7", "delete", 12)]


def test_a_format_of_the_sources_own_sees_every_column(outbox: Outbox, engine: Engine) -> None:
    shape = {
        "when": "headers.type != 'noise'",
        "id": "headers.id",
        "key": "body.key",
        "version": "headers.seq",
        "action": "headers.type",
        "actions": {"made": "created"},
        "data": "body",
    }
    system = {"base_url": "http://127.0.0.1:1"}
    config = outbox_config(
        outbox.url,
        consumer={"format": "own"},
        sources={"shop": {**system, "events": shape}, "stock": system},
    )
    outbox.send(1, type="noise")
    outbox.send(2, type="made", seq=9)
    with consuming(engine, config):
        eventually(lambda: received(engine) == 1 and not outbox.left(), "the event")
    assert [event[1:4] for event in events(engine)] == [("k2", "create", 9)]


def test_payloads_may_be_cloud_events(outbox: Outbox, engine: Engine) -> None:
    document = {"specversion": "1.0", "id": "e1", "source": "shop", "type": "item.created", "subject": "k1"}
    outbox.send(1, payload={**document, "version": 3, "data": {"key": "k1", "store": "A", "v": 3}})
    with consuming(engine, outbox_config(outbox.url, consumer={"format": "cloudevents"})):
        eventually(lambda: received(engine) == 1 and not outbox.left(), "the event")
    assert [event[:4] for event in events(engine)] == [("e1", "k1", "create", 3)]


def test_json_columns_are_read_as_json_by_a_format_of_the_sources_own(postgres_outbox: Outbox) -> None:
    postgres_outbox.send(1)
    postgres_outbox.run("""UPDATE outbox SET meta = '{"user": {"id": 12345678901234567890.5}}'""")
    with open_outbox_queue(outbox_config(postgres_outbox.url).consumers["orders"], "orders") as queue:
        [taken] = queue.receive_messages(10, 0)
    assert str(taken.message.headers["meta"]) == "{'user': {'id': Decimal('12345678901234567890.5')}}"
    assert taken.message.body.startswith(b'{"v"')


# Rows that cannot be read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"entity": "thing"}, 'entity (headers."aggregatetype"): must be one of item'),
        ({"type": "sold"}, 'action (headers."type"): must be one of created, updated, deleted'),
        ({"key": ""}, 'key (headers."aggregateid"): is needed, as text'),
        ({"payload": {"key": "k1", "store": "A"}}, "version (body | v): is needed (or time): a whole number"),
        ({"payload": [1]}, "data (body): must be a JSON object, the whole part"),
    ],
)
def test_a_row_that_cannot_be_read_is_kept_with_its_reason(
    outbox: Outbox, engine: Engine, values: dict[str, Any], reason: str
) -> None:
    outbox.send(1, **values)
    outbox.send(2)
    config = outbox_config(outbox.url)
    with consuming(engine, config):
        eventually(lambda: received(engine) == 1 and not outbox.left(), "the readable one")
    assert [reason in row["reason"] for row in open_rejected(engine)] == [True], open_rejected(engine)


def test_a_rejected_row_is_read_by_a_later_configuration(outbox: Outbox, engine: Engine) -> None:
    outbox.send(1, type="sold")
    with consuming(engine, outbox_config(outbox.url)):
        eventually(lambda: open_rejected(engine), "the rejection")
    mended = outbox_config(outbox.url, outbox={"actions": {"sold": "updated"}})
    assert retry_rejected(engine, mended, None) == (1, 0)
    assert [event[1:4] for event in events(engine)] == [("k1", "update", 1)]


def test_payloads_that_are_no_json_stop_nothing(engine: Engine, tmp_path: Path) -> None:
    shop = Outbox("sqlite", f"sqlite:///{tmp_path / 'shop.db'}")
    shop.run("INSERT INTO outbox VALUES ('a', 'item', 'k1', 'created', 'no json', 1, NULL)")
    shop.run("INSERT INTO outbox VALUES ('b', 'item', 'k2', 'created', X'7BFF', 1, NULL)")
    shop.run("INSERT INTO outbox VALUES (NULL, 'item', 'k3', 'created', NULL, 1, NULL)")
    shop.send(4)
    with consuming(engine, outbox_config(shop.url)):
        eventually(lambda: received(engine) == 1 and not shop.left(), "the readable one")
    reasons = sorted(str(row["reason"])[:22] for row in open_rejected(engine))
    assert reasons == ['id (headers."id"): is ', "the body is not JSON: ", "the body is not UTF-8"]


# What the database lacks --------------------------------------------------------------------------------------------


def refusal(config: Config) -> str:
    with pytest.raises(BrokerDown) as refused, open_outbox_queue(config.consumers["orders"], "orders"):
        pass
    return str(refused.value)


def test_a_missing_table_is_named(outbox: Outbox) -> None:
    told = refusal(outbox_config(outbox.url, outbox={"table": "outbux"}))
    assert "there is no table outbux: create it, or name the outbox with 'outbox.table'" in told


def test_a_missing_column_is_named(outbox: Outbox) -> None:
    told = refusal(outbox_config(outbox.url, outbox={"columns": {"version": "stamp"}}))
    assert "table outbox has no column 'stamp', which the outbox needs; it has id, aggregatetype" in told
    assert "no column 'when'" in refusal(outbox_config(outbox.url, outbox={"order_by": ["when"]}))


@pytest.mark.parametrize(("granted", "verb"), [("", "read"), ("SELECT", "delete"), ("SELECT, DELETE", None)])
def test_select_and_delete_suffice_on_postgres(
    postgres_outbox: Outbox, engine: Engine, granted: str, verb: str | None
) -> None:
    postgres_outbox.run("DROP ROLE IF EXISTS outbox_reader")
    postgres_outbox.run("CREATE ROLE outbox_reader LOGIN PASSWORD 'se-cret'")
    try:
        if granted:
            postgres_outbox.run(f"GRANT {granted} ON outbox TO outbox_reader")
        url = make_url(postgres_outbox.url).set(username="outbox_reader", password="se-cret")
        config = outbox_config(url.render_as_string(hide_password=False))
        if verb is not None:
            told = refusal(config)
            assert f"its user may not {verb} rows of table outbox: give the rights SELECT and DELETE on it" in told
            assert "se-cret" not in told
            return
        postgres_outbox.send(1)
        with consuming(engine, config):
            eventually(lambda: received(engine) == 1 and not postgres_outbox.left(), "the event")
    finally:
        postgres_outbox.run("DROP OWNED BY outbox_reader")
        postgres_outbox.run("DROP ROLE outbox_reader")


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    assert "unable to open database file" in refusal(outbox_config(f"sqlite:///{tmp_path / 'none.db'}"))
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_down_is_waited_for() -> None:
    told = refusal(outbox_config("postgresql+psycopg://sync:se-cret@127.0.0.1:1/shop"))
    assert told.startswith("postgresql+psycopg://sync:***@127.0.0.1:1/shop: ")
    assert "se-cret" not in told


def test_a_driver_that_is_not_installed_is_named() -> None:
    config = outbox_config("mysql+asyncmy://sync@127.0.0.1/shop")
    with pytest.raises(ConfigError, match=r"consumers\.orders\.url: "):
        open_outbox_queue(config.consumers["orders"], "orders").__enter__()


# Queue, not log -----------------------------------------------------------------------------------------------------


def test_rows_of_overlapping_transactions_are_all_taken(outbox: Outbox, engine: Engine) -> None:
    """Numbers are drawn in one order and committed in another: 637 rows, none is lost, and none counts twice."""
    if outbox.kind == "sqlite":
        pytest.skip("SQLite has one writing transaction at a time")
    left, lock = list(range(1, 638)), threading.Lock()

    def write_rows(seed: int) -> None:
        chance = random.Random(seed)
        own = create_engine(outbox.url)
        while True:
            with lock:
                count = chance.randint(1, 6)
                mine, left[:count] = left[:count], []
            if not mine:
                break
            with own.connect() as connection, connection.begin():
                for number in mine:
                    outbox.write(connection, number)
                connection.execute(text(f"SELECT {SLEEP[outbox.kind]}"), {"seconds": chance.random() / 100})
        own.dispose()

    with consuming(engine, outbox_config(outbox.url, outbox={"order_by": ["seq"]}, consumer={"at_once": 7})):
        writers = [threading.Thread(target=write_rows, args=(seed,)) for seed in range(6)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        written = 637
        eventually(lambda: not outbox.left(), "an empty outbox")
        eventually(lambda: received(engine) == written, "every row")
    assert duplicates(engine) == 0


SLEEP = {"postgresql": "pg_sleep(:seconds)", "mysql": "sleep(:seconds)"}


def test_a_row_that_is_committed_late_with_a_smaller_number_is_taken(outbox: Outbox, engine: Engine) -> None:
    if outbox.kind == "sqlite":
        pytest.skip("SQLite has one writing transaction at a time")
    with (
        consuming(engine, outbox_config(outbox.url, outbox={"order_by": ["seq"]})),
        outbox.engine.connect() as late,
        late.begin(),
    ):
        outbox.write(late, 1)
        outbox.send(2)
        eventually(lambda: received(engine) == 1, "the later row")
        late.commit()
        eventually(lambda: received(engine) == 2, "the row that was committed late")
    assert outbox.left() == 0


def test_several_consumers_record_each_row_once(outbox: Outbox, engine: Engine) -> None:
    config = outbox_config(outbox.url, consumer={"at_once": 5})
    for number in range(1, 101):
        outbox.send(number)
    with consuming(engine, config), consuming(engine, config), consuming(engine, config):
        eventually(lambda: received(engine) == 100 and not outbox.left(), "all rows")
    assert duplicates(engine) == 0


def test_what_is_taken_is_nobody_elses_until_it_is_done(outbox: Outbox) -> None:
    consumer = outbox_config(outbox.url).consumers["orders"]
    outbox.send(1)
    with open_outbox_queue(consumer, "orders") as first:
        assert len(first.receive_messages(10, 0)) == 1
        with open_outbox_queue(consumer, "orders") as second:
            if outbox.kind != "sqlite":  # whose file is locked for a while, which costs seconds
                assert second.receive_messages(10, 0) == []
            first.hold_messages(0)  # the ledger is down: the database is not kept waiting
            assert len(second.receive_messages(10, 1)) == 1
    assert outbox.left() == 1


def test_a_writer_is_not_held_up_while_the_ledger_is_down(outbox: Outbox) -> None:
    outbox.send(1)
    with open_outbox_queue(outbox_config(outbox.url).consumers["orders"], "orders") as queue:
        taken = queue.receive_messages(10, 0)
        queue.hold_messages(0)
        outbox.send(2)
        queue.acknowledge_messages(taken)
    assert [row[0] for row in outbox.run("SELECT aggregateid FROM outbox")] == ["k2"]


def test_a_row_of_the_same_id_that_nobody_recorded_is_not_deleted(outbox: Outbox) -> None:
    outbox.run("DROP TABLE outbox")
    outbox.run("CREATE TABLE outbox (id int, aggregatetype int, aggregateid int, type int, payload int)")
    outbox.run("INSERT INTO outbox (id) VALUES (1)")
    with open_outbox_queue(outbox_config(outbox.url).consumers["orders"], "orders") as queue:
        taken = queue.receive_messages(10, 0)
        queue.hold_messages(0)
        outbox.run("INSERT INTO outbox (id) VALUES (1)")
        with pytest.raises(BrokerDown, match="more than one row with the same 'id', so no row is deleted"):
            queue.acknowledge_messages(taken)
    assert outbox.left() == 2


# Killed -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(outbox: Outbox, database_url: str, tmp_path: Path) -> Iterator[Callable[..., BaseProcess]]:
    """`sync-orchestrator consume` for real."""
    config = outbox_config(outbox.url).model_dump(mode="json", exclude_defaults=True)
    config["consumers"]["orders"]["url"] = outbox.url
    (tmp_path / "sync.yaml").write_text(yaml.safe_dump(config))
    environment = {**os.environ, "SYNC_DATABASE_URL": database_url, "SYNC_CONFIG": str(tmp_path / "sync.yaml")}
    started: list[BaseProcess] = []

    def start(crash_at: str | None = None) -> BaseProcess:
        started.append(start_command("consume", environment=environment, crash_at=crash_at))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.join()
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["consume.taken", "consume.before_commit", "consume.committed", "consume.acknowledged"]
)
def test_killed_there_nothing_is_lost_and_nothing_counts_twice(
    point: str, outbox: Outbox, engine: Engine, process: Callable[..., BaseProcess]
) -> None:
    outbox.send(1)
    outbox.send(2, type="sold")
    killed = process(point)
    killed.join(PATIENCE)
    assert killed.exitcode == -signal.SIGKILL
    before, left = received(engine), outbox.left()
    again = process()
    outbox.send(3)
    eventually(lambda: not outbox.left() and received(engine) == 2, "what was sent")
    os.kill(again.pid or 0, signal.SIGTERM)
    again.join(PATIENCE)
    assert again.exitcode == 0
    assert len(open_rejected(engine)) == 1
    assert (before, left) == {
        "consume.taken": (0, 2),
        "consume.before_commit": (0, 2),
        "consume.committed": (1, 2),
        "consume.acknowledged": (1, 0),
    }[point]
    assert duplicates(engine) == (1 if point == "consume.committed" else 0)


def test_status_and_rejected_know_an_outbox(
    outbox: Outbox, engine: Engine, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.send(1, type="sold")
    with consuming(engine, outbox_config(outbox.url)):
        eventually(lambda: open_rejected(engine), "the rejection")
    monkeypatch.setenv("SYNC_DATABASE_URL", database_url)
    shown = CliRunner().invoke(app, ["rejected", "list"])
    assert (shown.exit_code, "must be one of created" in " ".join(shown.output.split())) == (0, True), shown.output
    shown = CliRunner().invoke(app, ["status"])
    assert (shown.exit_code, "orders" in shown.output) == (0, True), shown.output


def test_a_consumer_of_an_outbox_says_that_its_database_is_down(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    config = outbox_config("postgresql+psycopg://sync@127.0.0.1:1/shop", alerts={"overdue_after": 0})
    with consuming(engine, config):
        eventually(lambda: _alerts(engine), "the alert")
    assert _alerts(engine) == ["consumer_down"]
    assert Consumption.__name__ not in caplog.text


def _alerts(engine: Engine) -> list[str]:
    with engine.begin() as connection:
        return [row.kind for row in run(connection, "SELECT kind FROM sync.alerts WHERE resolved_at IS NULL")]

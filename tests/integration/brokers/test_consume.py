"""Consuming from real brokers: acknowledged after the commit, whatever dies, is down, or cannot be read."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml
from broker_consumers import (
    PATIENCE,
    alerts_of,
    cloud_event,
    config_for,
    consuming,
    eventually,
    open_rejected,
    packed,
    received,
)
from broker_messages import ATTRIBUTES, DATA
from brokers import Broker, Proxy, Rabbit
from brokers import broker as broker
from brokers import rabbit as rabbit
from fakes import two_part_config
from forked_commands import start_command
from kombu import transport
from kombu.transport import zookeeper
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError
from typer.testing import CliRunner

from sync_orchestrator import composition
from sync_orchestrator.brokers import consume as consuming_module
from sync_orchestrator.brokers import messages
from sync_orchestrator.brokers.consume import Consumption, consume, retry_rejected
from sync_orchestrator.brokers.messages import Message
from sync_orchestrator.cli import app
from sync_orchestrator.config import Config, ConsumerSettings
from sync_orchestrator.core.intake import rejected_messages
from sync_orchestrator.core.ledger.conservation import count_conservation
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.errors import ConfigError, NotFound


def duplicates(engine: Engine) -> int:
    with engine.begin() as connection:
        return count_conservation(connection).duplicates


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming_module, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(consuming_module, "_TAKE_WAIT_SECONDS", 0.1)


# What a message means -----------------------------------------------------------------------------------------------


# In order -----------------------------------------------------------------------------------------------------------


def test_what_is_in_the_queue_is_recorded_and_acknowledged(broker: Broker, engine: Engine) -> None:
    for number in range(1, 51):
        broker.send(packed(cloud_event(number)))
    with consuming(engine, config_for(broker)):
        eventually(lambda: received(engine) == 50, "50 events")
        broker.send(packed(cloud_event(51)))
        eventually(lambda: received(engine) == 51, "one more")
    assert broker.left() == 0


def test_what_has_arrived_is_one_commit(broker: Broker, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    write = Consumption._write_events

    def note_size(self: Consumption, connection: Any, understood: Any) -> Any:
        sizes.append(len(understood))
        return write(self, connection, understood)

    monkeypatch.setattr(Consumption, "_write_events", note_size)
    for number in range(1, 101):
        broker.send(packed(cloud_event(number)))
    with consuming(engine, config_for(broker, consumer={"at_once": 60})):
        eventually(lambda: received(engine) == 100, "100 events")
    assert max(sizes) > 10
    assert max(sizes) <= 60


def test_what_kombu_sends_with_headers_is_read_in_binary_mode(broker: Broker, engine: Engine) -> None:
    broker.send(DATA, "application/json", {f"cloudEvents_{name}": value for name, value in ATTRIBUTES.items()})
    with consuming(engine, config_for(broker)):
        eventually(lambda: received(engine) == 1, "the event")
    assert open_rejected(engine) == []


def test_events_of_the_sources_own_shape(broker: Broker, engine: Engine) -> None:
    events = {
        "when": "body.op != 'skip'",
        "id": "body.nr",
        "key": "body.sku",
        "version": "body.v",
        "action": "body.op",
        "actions": {"u": "updated"},
        "data": "body.row",
    }
    system = {"base_url": "http://127.0.0.1:1"}
    config = config_for(
        broker,
        consumer={"format": "own", "source": "shop"},
        sources={"shop": {**system, "events": events}, "stock": system},
    )
    for op in ("skip", "u", "x"):
        broker.send(packed({"op": op, "nr": op, "sku": "k1", "v": 3, "row": {"key": "k1", "store": "A"}}))
    with consuming(engine, config):
        eventually(lambda: received(engine) == 1 and open_rejected(engine), "one event, one rejection")
    assert [row["reason"] for row in open_rejected(engine)] == ["action (body.op): must be one of u"]
    assert broker.left() == 0


def test_a_queue_is_made_and_bound_where_an_exchange_is_named(rabbit: Rabbit, engine: Engine) -> None:
    exchange, queue = f"{rabbit.queue}-exchange", f"{rabbit.queue}-bound"
    rabbit.channel.exchange_declare(exchange, "topic", durable=False, auto_delete=False)
    config = config_for(rabbit, consumer={"exchange": exchange, "bindings": ["shop.*"], "queue": queue})
    try:
        with consuming(engine, config):

            def told() -> bool:
                message = rabbit.channel.prepare_message(packed(cloud_event()))
                rabbit.channel.basic_publish(message, exchange=exchange, routing_key="shop.item")
                rabbit.channel.basic_publish(rabbit.channel.prepare_message(b"x"), exchange=exchange, routing_key="b")
                return received(engine) == 1

            eventually(told, "the event")
        assert open_rejected(engine) == []
    finally:
        rabbit.channel.queue_delete(queue)
        rabbit.channel.exchange_delete(exchange)


def test_a_queue_that_is_not_there_is_waited_for(
    rabbit: Rabbit, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    queue = f"{rabbit.queue}-later"
    with consuming(engine, config_for(rabbit, consumer={"queue": queue})):
        eventually(lambda: "NOT_FOUND - no queue" in caplog.text, "the complaint")
        rabbit.channel.queue_declare(queue, durable=True, auto_delete=False)
        rabbit.channel.basic_publish(rabbit.channel.prepare_message(packed(cloud_event())), routing_key=queue)
        eventually(lambda: received(engine) == 1, "the event")
    rabbit.channel.queue_delete(queue)
    assert "guest:guest" not in caplog.text


# Unreadable ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_stops_nothing_and_is_told_of(broker: Broker, engine: Engine) -> None:
    for body in (packed(cloud_event(1)), b"not json", packed({"specversion": "0.3"}), packed(cloud_event(2))):
        broker.send(body)
    with consuming(engine, config_for(broker)):
        eventually(lambda: received(engine) == 2, "the good ones")
        eventually(lambda: len(open_rejected(engine)) == 2, "the bad ones")
    assert broker.left() == 0
    assert {row["reason"].split(":")[0] for row in open_rejected(engine)} == {"the body is not JSON", "specversion"}
    assert alerts_of(engine, "rejected") == [("orders", "orders: 2 messages cannot be read")]


def test_the_same_unreadable_message_is_kept_once(broker: Broker, engine: Engine) -> None:
    for _ in range(3):
        broker.send(b"not json")
    with consuming(engine, config_for(broker)):
        eventually(lambda: [row["times"] for row in open_rejected(engine)] == [3], "one, three times")


def test_a_large_message_is_kept_as_far_as_it_may_be(broker: Broker, engine: Engine) -> None:
    broker.send(b"x" * 5000)
    config = config_for(broker, limits={"event_bytes": 1000})
    with consuming(engine, config):
        eventually(lambda: open_rejected(engine), "the rejection")
    number = open_rejected(engine)[0]["id"]
    assert retry_rejected(engine, config, [number]) == (0, 1)
    with engine.begin() as connection:
        found = rejected_messages.read_rejected_message(connection, number)
    assert (len(found["body"]), found["size"], found["is_cut"]) == (1000, 5000, True)
    assert "only 1000 of its 5000 bytes were kept" in found["reason"]


def test_what_the_database_cannot_hold_is_found_among_the_others(
    broker: Broker, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = messages.events_of

    def with_nul(message: Message, consumer: ConsumerSettings, config: Config) -> list[ChangeEvent]:
        found = read(message, consumer, config)
        return [
            each if each.key != "k2" else ChangeEvent("shop", "e2", "item", "k\x002", "update", 2) for each in found
        ]

    monkeypatch.setattr(consuming_module, "events_of", with_nul)
    for number in (1, 2, 3):
        broker.send(packed(cloud_event(number)))
    with consuming(engine, config_for(broker)):
        eventually(lambda: received(engine) == 2 and open_rejected(engine), "two events and one rejection")
    assert open_rejected(engine)[0]["reason"].startswith("the database cannot hold it")
    assert broker.left() == 0


def test_retry_takes_what_can_be_read_by_now_and_ends_the_alert(broker: Broker, engine: Engine) -> None:
    broker.send(packed(cloud_event(1, source="/shops/eu")))
    config = config_for(broker)
    with consuming(engine, config):
        eventually(lambda: open_rejected(engine), "the rejection")
    assert retry_rejected(engine, config, None) == (0, 1)
    fixed = config_for(broker, consumer={"source": "shop"})
    assert retry_rejected(engine, fixed, None) == (1, 0)
    assert (received(engine), open_rejected(engine), alerts_of(engine, "rejected")) == (1, [], [])


def test_discard_keeps_the_reason(broker: Broker, engine: Engine) -> None:
    broker.send(b"\x00\xff")
    with consuming(engine, config_for(broker)):
        eventually(lambda: open_rejected(engine), "the rejection")
    number = open_rejected(engine)[0]["id"]
    assert rejected_messages.discard_rejected_messages(engine, [number], "sent by mistake") == 1
    with engine.begin() as connection:
        found = rejected_messages.read_rejected_message(connection, number)
        rejected_messages.delete_old_messages(connection)
        assert rejected_messages.read_rejected_message(connection, number)["ending"] == "discarded"
    assert (found["ending_reason"], found["body"]) == ("sent by mistake", "\x00\\xff")
    assert alerts_of(engine, "rejected") == []
    with pytest.raises(NotFound, match="none of these"):
        rejected_messages.discard_rejected_messages(engine, [number], "again")


# Down ---------------------------------------------------------------------------------------------------------------


def test_while_the_database_is_down_nothing_is_acknowledged(
    broker: Broker, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    down = threading.Event()

    def fail(connection: Any) -> None:
        if down.is_set() and threading.current_thread() is not threading.main_thread():
            raise OperationalError("begin", {}, Exception("the database is down"))

    event.listen(engine, "begin", fail)
    try:
        down.set()
        broker.send(packed(cloud_event(1)))
        with consuming(engine, config_for(broker)):
            eventually(lambda: caplog.text.count("the database does not answer") >= 2, "two tries")
        assert (broker.left(), received(engine)) == (1, 0)
        with consuming(engine, config_for(broker)):
            eventually(lambda: caplog.text.count("the database does not answer") >= 4, "two tries more")
            broker.send(packed(cloud_event(2)))
            down.clear()
            eventually(lambda: received(engine) == 2, "both events")
        assert broker.left() == 0
    finally:
        event.remove(engine, "begin", fail)


def test_a_broker_that_goes_away_and_comes_back(
    broker: Broker, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proxy = Proxy(broker.url)
    config = config_for(broker, consumer={"url": proxy.url}, alerts={"overdue_after": 0})
    try:
        with consuming(engine, config):
            broker.send(packed(cloud_event(1)))
            eventually(lambda: received(engine) == 1, "the first")
            proxy.cut()
            eventually(lambda: caplog.text.count("the next try is in") >= 3, "three tries")
            eventually(lambda: alerts_of(engine, "consumer_down"), "the alert")
            broker.send(packed(cloud_event(2)))
            proxy.open()
            eventually(lambda: received(engine) == 2, "the second")
            eventually(lambda: not alerts_of(engine, "consumer_down"), "the end of the alert")
    finally:
        proxy.cut()
    assert broker.left() == 0


# Killed -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def process(broker: Broker, database_url: str, tmp_path: Path) -> Iterator[Callable[..., BaseProcess]]:
    """`sync-orchestrator consume` for real."""
    config = config_for(broker).model_dump(mode="json", exclude_defaults=True)
    config["consumers"]["orders"]["url"] = broker.url
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


def ended(process: BaseProcess) -> int | None:
    """Waits for its end; returns its exit code."""
    process.join(PATIENCE)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["consume.taken", "consume.before_commit", "consume.committed", "consume.acknowledged"]
)
def test_killed_there_nothing_is_lost_and_nothing_counts_twice(
    point: str,
    broker: Broker,
    engine: Engine,
    process: Callable[..., BaseProcess],
) -> None:
    broker.send(packed(cloud_event(1)))
    broker.send(b"not json")
    assert ended(process(point)) == -signal.SIGKILL
    before = received(engine)
    broker.forget_holder()
    again = process()
    eventually(lambda: received(engine) == 1 and len(open_rejected(engine)) == 1, "both are here")
    broker.send(packed(cloud_event(2)))
    eventually(lambda: received(engine) == 2, "it goes on")
    again.terminate()
    assert ended(again) == 0
    assert broker.left() == 0
    if point == "consume.committed":
        assert before == 1
        assert duplicates(engine) == 1


# The command --------------------------------------------------------------------------------------------------------


def test_a_consumer_that_is_not_there(engine: Engine) -> None:
    with pytest.raises(NotFound, match=r"no 'consumers'"):
        consume(engine, two_part_config())
    config = two_part_config(consumers={"orders": {"url": "amqp://b", "queue": "q"}})
    with pytest.raises(NotFound, match="there is no consumer 'order'; there is orders"):
        consume(engine, config, "order")


@pytest.mark.parametrize("url", ["sqs://user:secret@b", "zookeeper://user:secret@b"])
def test_a_broker_whose_library_is_missing_ends_the_consumer(
    engine: Engine, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_transport_cache", {})
    monkeypatch.setitem(sys.modules, "kombu.transport.SQS", None)  # some cannot be imported without it,
    monkeypatch.setattr(zookeeper, "kazoo", None)  # others not be made
    stop = threading.Event()
    monkeypatch.setattr(stop, "wait", lambda seconds: stop.set())  # a pause would be the end, without an error
    consumption = Consumption(engine, two_part_config(consumers={"orders": {"url": url, "queue": "q"}}), "orders", stop)
    consumption.run()
    assert isinstance(consumption.error, ConfigError)
    assert f"kombu has no transport for {url[: url.index(':')]}:// here" in str(consumption.error)
    assert "secret" not in str(consumption.error)


def test_rejected_messages_by_the_command_line(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = two_part_config(consumers={"orders": {"url": "amqp://b", "queue": "q"}})
    document = config.model_dump(mode="json", exclude_defaults=True)
    document["consumers"]["orders"]["url"] = "amqp://b"
    (tmp_path / "sync.yaml").write_text(yaml.safe_dump(document))
    monkeypatch.setattr(composition, "open_database", lambda: engine)
    monkeypatch.setattr(composition, "require_database", lambda: None)
    monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
    found = [
        consuming_module.read_message(Message(body, None, {"shop": "eu"}), "orders", config)
        for body in (b"not json", packed({"specversion": "0.3"}))
    ]
    with engine.begin() as connection:
        rejected_messages.keep_rejected_messages(
            connection, [each for each in found if isinstance(each, rejected_messages.Rejected)], 1000
        )
    cli = CliRunner()

    def ran(*arguments: str) -> tuple[int, str]:
        result = cli.invoke(app, ["rejected", *arguments])
        return result.exit_code, result.output

    numbers = [str(row["id"]) for row in json.loads(ran("list", "--json")[1])]
    assert len(numbers) == 2
    assert json.loads(ran("show", numbers[1])[1])["headers"] == {"shop": "eu"}
    assert ran("retry", "--all") == (1, "0 messages recorded, 2 still cannot be read\n")
    assert ran("discard", *numbers, "--reason", "never mind") == (0, "2 messages discarded\n")
    assert "there are none" in ran("list")[1]

"""Rule 38 for brokers: a message is taken only when it can be stored."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import kombu
import pytest
from broker_consumers import alerts_of, cloud_event, config_for, consuming, eventually, open_rejected, packed, received
from brokers import Broker, Rabbit
from brokers import broker as broker
from brokers import rabbit as rabbit
from paths import SUPPORT
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError, ProgrammingError

from sync_orchestrator.brokers import consume as consuming_module
from sync_orchestrator.brokers import kombu_queue
from sync_orchestrator.brokers.consume import Consumption
from sync_orchestrator.config import Config

DOWN = "the database does not answer as it should"


def is_received(engine: Engine, count: int) -> bool:
    return received(engine) == count


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consuming_module, "_FIRST_PAUSE_SECONDS", 0.05)
    monkeypatch.setattr(consuming_module, "_TAKE_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(consuming_module, "_PROBE_SECONDS", 0.0)


@pytest.fixture
def down(engine: Engine) -> Iterator[threading.Event]:
    """While it is set, the engine's database is down for all but the test itself."""
    flag = threading.Event()

    def fail(connection: Any) -> None:
        if flag.is_set() and threading.current_thread() is not threading.main_thread():
            raise OperationalError("begin", {}, Exception("the database is down"))

    event.listen(engine, "begin", fail)
    yield flag
    event.remove(engine, "begin", fail)


@pytest.fixture
def limited(rabbit: Rabbit) -> Iterator[tuple[Rabbit, Config]]:
    """A quorum queue as RabbitMQ 4 makes them: a message that was delivered 20 times is dropped."""
    exchange = f"{rabbit.queue}-exchange"
    rabbit.channel.exchange_declare(exchange, "topic", durable=False, auto_delete=False)
    rabbit.channel.queue_delete(rabbit.queue)
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 20}
    rabbit.channel.queue_declare(queue=rabbit.queue, durable=True, auto_delete=False, arguments=arguments)
    yield rabbit, config_for(rabbit, consumer={"exchange": exchange, "bindings": ["#"], "arguments": arguments})
    rabbit.channel.exchange_delete(exchange)


def consumers(rabbit: Rabbit, queue: str) -> int:
    """How many consume from a queue; 0 where there is none."""
    with kombu.Connection(rabbit.url) as connection:
        try:
            return int(connection.channel().queue_declare(queue=queue, passive=True).consumer_count)
        except connection.channel_errors:
            return 0


@pytest.mark.slow
def test_case_r33_a_crash_loop_while_the_database_is_down_loses_nothing(
    limited: tuple[Rabbit, Config], engine: Engine, database_url: str, tmp_path: Path
) -> None:
    """23 kills, the first while messages come in; then the database is there again: 100 of 100."""
    rabbit, config = limited
    flag = tmp_path / "down"
    dumped = config.model_dump(mode="json", exclude_defaults=True)
    dumped["consumers"]["orders"]["url"] = rabbit.url
    worker = subprocess.Popen(
        [
            sys.executable,
            str(SUPPORT / "broker_worker.py"),
            database_url,
            json.dumps(dumped),
            str(flag),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
        start_new_session=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    try:
        for number in range(23):
            worker.stdin.write("go\n")
            assert worker.stdout.readline() == "started\n"
            if number == 0:
                eventually(lambda: consumers(rabbit, rabbit.queue), "the first consumer")
                flag.touch()
                for each in range(1, 101):
                    rabbit.send(packed(cloud_event(each)))
            assert worker.stdout.readline() == "killed\n"
    finally:
        worker.stdin.close()
        os.killpg(worker.pid, signal.SIGKILL)  # and the consumer that it may have
        worker.wait()
        worker.stdout.close()
    assert received(engine) == 0
    with consuming(engine, config):
        eventually(lambda: received(engine) == 100, "100 events")
    eventually(lambda: rabbit.left() == 0, "the acknowledgements")  # a quorum queue applies them by and by


def test_rule_38_no_message_is_taken_that_cannot_be_stored(
    broker: Broker, engine: Engine, down: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    down.set()
    broker.send(packed(cloud_event(1)))
    with consuming(engine, config_for(broker)):
        eventually(lambda: caplog.text.count("no message is taken") >= 3, "three tries")
        assert broker.left() == 1  # ready for others: RabbitMQ does not count what is taken
        down.clear()
        eventually(lambda: received(engine) == 1, "the event")
    assert broker.left() == 0


def test_what_was_taken_when_the_database_went_down_is_given_back(
    rabbit: Rabbit,
    engine: Engine,
    down: threading.Event,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RabbitMQ would otherwise end the connection after ``consumer_timeout``, again and again."""
    monkeypatch.setattr(consuming_module, "_HOLD_SECONDS", 0.2)
    monkeypatch.setattr(consuming_module, "_taken", down.set)
    rabbit.send(packed(cloud_event(1)))
    with consuming(engine, config_for(rabbit)):
        eventually(lambda: "no message is taken" in caplog.text, "the end of waiting")
        assert rabbit.left() == 1
        monkeypatch.setattr(consuming_module, "_taken", lambda: None)
        down.clear()
        eventually(lambda: received(engine) == 1, "the event")
    assert rabbit.left() == 0


def test_a_short_outage_costs_no_delivery(
    rabbit: Rabbit,
    engine: Engine,
    down: threading.Event,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[str] = []
    real = consuming_module.__dict__["open_queue"]

    def open_and_count(settings: Any, name: str) -> Any:
        opened.append(name)
        return real(settings, name)

    monkeypatch.setattr(consuming_module, "open_queue", open_and_count)
    monkeypatch.setattr(consuming_module, "_taken", down.set)
    rabbit.send(packed(cloud_event(1)))
    with consuming(engine, config_for(rabbit)):
        eventually(lambda: caplog.text.count(DOWN) >= 2, "two tries")
        monkeypatch.setattr(consuming_module, "_taken", lambda: None)
        down.clear()
        eventually(lambda: received(engine) == 1, "the event")
    assert opened == ["orders"]


def test_a_message_that_fails_while_others_can_be_stored_is_rejected(
    broker: Broker, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be delivered until the broker drops it."""
    write = Consumption._write_events

    def fails(self: Consumption, connection: Any, understood: Any) -> None:
        if any(getattr(each, "key", None) == "k2" for found in understood if isinstance(found, list) for each in found):
            raise ProgrammingError("insert", {}, Exception("as none should"))
        write(self, connection, understood)

    monkeypatch.setattr(Consumption, "_write_events", fails)
    monkeypatch.setattr(consuming_module, "_MAX_BATCH_ATTEMPTS", 3)
    for number in (1, 2, 3):
        broker.send(packed(cloud_event(number)))
    with consuming(engine, config_for(broker)):
        eventually(lambda: received(engine) == 2 and open_rejected(engine), "two events and one rejection")
    assert broker.left() == 0
    assert alerts_of(engine, "rejected")


def test_a_quorum_queue_of_rabbitmq_4_is_made_without_a_limit(
    rabbit: Rabbit, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that is there, made without that argument, is used as it is."""
    monkeypatch.setattr(kombu_queue, "_major_version", lambda connection: 4)
    exchange, queue = f"{rabbit.queue}-exchange", f"{rabbit.queue}-quorum"
    rabbit.channel.exchange_declare(exchange, "topic", durable=False, auto_delete=False)
    config = config_for(
        rabbit,
        consumer={"exchange": exchange, "bindings": ["#"], "queue": queue, "arguments": {"x-queue-type": "quorum"}},
    )
    arguments: dict[str, Any] = {"x-queue-type": "quorum"}
    try:
        for number, made in ((1, {**arguments, "x-delivery-limit": -1}), (2, arguments)):
            if number == 2:
                rabbit.channel.queue_declare(queue, durable=True, auto_delete=False, arguments=made)
            for again in range(2):
                with consuming(engine, config):
                    eventually(lambda: consumers(rabbit, queue), "the consumer")
                    sent = rabbit.channel.prepare_message(packed(cloud_event(10 * number + again)))
                    rabbit.channel.basic_publish(sent, routing_key=queue)
                    wanted = 2 * number - 1 + again
                    eventually(partial(is_received, engine, wanted), "the event")
            rabbit.channel.queue_declare(queue, durable=True, auto_delete=False, arguments=made)  # else it is refused
            rabbit.channel.queue_delete(queue)
    finally:
        rabbit.channel.exchange_delete(exchange)

"""Messages of brokers: what is read of them, and which configuration of a consumer is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from broker_consumers import (
    cloud_event,
    packed,
)
from broker_messages import ATTRIBUTES, DATA
from brokers import broker as broker
from brokers import rabbit as rabbit
from fakes import two_part_config
from kombu import transport

from sync_orchestrator import composition
from sync_orchestrator.brokers.messages import Message, events_of
from sync_orchestrator.config import ConsumerSettings
from sync_orchestrator.config.brokers import BROKERS
from sync_orchestrator.core.ledger.recording import ChangeEvent
from sync_orchestrator.errors import ConfigError, InvalidEvent

STRUCTURED, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"


def meaning(message: Message, **consumer: Any) -> list[ChangeEvent]:
    settings = ConsumerSettings(url="amqp://b", queue="q", **consumer)
    return events_of(message, settings, two_part_config())


EXPECTED = ChangeEvent("shop", "e1", "item", "k1", "update", 1, {"key": "k1", "store": "A", "v": 1}, "A")


@pytest.mark.parametrize(
    "message",
    [
        Message(packed(cloud_event()), STRUCTURED),
        Message(packed(cloud_event()), "application/cloudevents+json; charset=utf-8"),
        Message(packed(cloud_event()), "application/json"),
        Message(packed(cloud_event())),
        Message(packed([cloud_event()]), BATCH),
        Message(DATA, "application/json", {f"cloudEvents:{name}": value for name, value in ATTRIBUTES.items()}),
        Message(DATA, "application/json", {f"cloudEvents_{name}": value for name, value in ATTRIBUTES.items()}),
        Message(
            DATA, "application/vnd.shop+json", {f"cloudEvents_{name}": value for name, value in ATTRIBUTES.items()}
        ),
        Message(DATA, None, {f"cloudEvents_{name}": value for name, value in {**ATTRIBUTES, "version": "1"}.items()}),
    ],
    ids=str,
)
def test_a_cloud_event_is_understood_however_it_is_packed(message: Message) -> None:
    assert meaning(message) == [EXPECTED]


def test_a_binary_event_without_a_body_is_thin() -> None:
    headers = {f"cloudEvents:{name}": value for name, value in ATTRIBUTES.items()}
    assert meaning(Message(b"", None, headers))[0].data is None


def test_a_time_of_amqp_is_utc() -> None:
    own = {"key": "key", "version": {"path": "v"}, "list": {"path": "/"}, "group": "store"}
    config = two_part_config(entity={"parts": {"shop": own, "stock": own}})
    headers = {f"cloudEvents:{name}": value for name, value in ATTRIBUTES.items() if name != "version"}
    at = datetime(2026, 11, 23, 12, tzinfo=UTC)
    settings = ConsumerSettings(url="amqp://b", queue="q")
    found = [
        events_of(Message(b"", None, {**headers, "cloudEvents:time": time}), settings, config)[0].version
        for time in (at, at.replace(tzinfo=None))
    ]
    assert found == [int(at.timestamp()) * 1_000_000] * 2


def test_a_consumers_source_stands_in_for_what_events_say() -> None:
    found = meaning(Message(packed(cloud_event(source="/shops/eu"))), source="shop")
    assert found == [EXPECTED]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (Message(b"\xff"), "not UTF-8"),
        (Message(b""), "not JSON"),
        (Message(b"[]"), "must be a JSON object"),
        (Message(packed(cloud_event()), BATCH), "must be an array"),
        (Message(b"<a/>", "text/xml", {"cloudEvents:id": "e1"}), "must be JSON"),
        (Message(packed(cloud_event(type="nothing.updated"))), "must begin with the name of an entity"),
        (Message(b" " * 300_000), "has more than 262144 bytes"),
    ],
    ids=[str(number) for number in range(7)],
)
def test_what_cannot_be_read_says_why(message: Message, said: str) -> None:
    with pytest.raises(InvalidEvent, match=said):
        meaning(message)


@pytest.mark.parametrize("section", ["consumers", "outcomes"])
@pytest.mark.parametrize("url", ["nosuch://user:secret@b/x", "nosuch+amqp://user:secret@b/x"])
def test_a_broker_unheard_of_is_refused_at_load(
    section: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = two_part_config().model_dump(mode="json", exclude_defaults=True)
    document[section] = {"orders": {"url": url, "queue": "q"}}
    (tmp_path / "sync.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    monkeypatch.setenv("SYNC_CONFIG", str(tmp_path / "sync.yaml"))
    with pytest.raises(ConfigError) as refused:
        composition.load_config()
    assert f"{section}.orders.url: there is no broker 'nosuch'; there is amqp, amqps, " in str(refused.value)
    assert "secret" not in str(refused.value)


def test_all_brokers_of_kombu_are_known() -> None:
    assert {name.lower() for name in transport.TRANSPORT_ALIASES} == set(BROKERS)


@pytest.mark.parametrize(
    ("consumer", "said"),
    [
        ({"format": "own"}, "source: is needed"),
        ({"format": "own", "source": "shop"}, "sources.shop says nothing of its 'events'"),
        ({"source": "nobody"}, "there is no source system of that name"),
        ({"url": "redis://b", "exchange": "x"}, "there is no such thing in Redis"),
        ({"url": "b:5672"}, "should match pattern"),
        ({"url": "https://b"}, "there is no broker 'https'; there is amqp, "),
    ],
)
def test_a_consumer_that_cannot_work_is_refused(consumer: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        two_part_config(consumers={"orders": {"url": "amqp://b", "queue": "q", **consumer}})

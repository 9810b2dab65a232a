"""Which configuration of an outbox is refused, and what of it a row means."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import two_part_config
from pydantic import ValidationError

from sync_orchestrator.brokers.messages import Message, events_of
from sync_orchestrator.config import Config

URL = "postgresql+psycopg://sync@127.0.0.1/shop"


def config(**changes: Any) -> Config:
    consumer = {"url": URL, "outbox": {"table": "outbox"}, "source": "shop", **changes}
    return two_part_config(consumers={"orders": {name: value for name, value in consumer.items() if value is not None}})


def test_an_outbox_needs_its_table_and_its_source() -> None:
    found = config().consumers["orders"]
    assert (found.format, found.place, found.is_redis) == ("outbox", "outbox", False)


def outbox(**settings: Any) -> dict[str, Any]:
    return {"outbox": {"table": "outbox", **settings}}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"outbox": None}, "url: is a database: say with 'outbox' which of its tables to consume from"),
        ({"url": "amqp://b"}, "url: an outbox is a table of Postgres, MySQL, MariaDB or SQLite: name that database"),
        ({"url": "oracle://b"}, "there is no broker 'oracle'"),
        ({"source": None}, "source: is needed: the source system whose outbox this is"),
        ({"source": "erp"}, "consumers.orders.source: there is no source system of that name"),
        ({"format": "own"}, "consumers.orders.format: sources.shop says nothing of its 'events'"),
        ({"queue": "q"}, "queue: belongs to a broker, and this is an outbox: leave it out"),
        ({"exchange": "x"}, "exchange: belongs to a broker, and this is an outbox: leave it out"),
        ({"url": "amqp://b", "outbox": None}, "queue: is needed"),
        ({"url": "amqp://b", "outbox": None, "queue": "q", "format": "outbox"}, "format: 'outbox' belongs to a table"),
        (outbox(columns={"payload": None}), "outbox.columns: without a payload the version must be in a column"),
        (outbox(columns={"version": "v"}, version="a.b"), "version: 'columns.version' names a column, too"),
        (outbox(columns={"payload": None}, version="a.b"), "version: is a place in the payload, and 'columns.payload'"),
        (outbox(version="a.["), "not a JMESPath expression"),
        (outbox(entities={"Order": "order"}), "outbox.entities.Order: shop is no part of an entity 'order'"),
        (outbox(actions={"x": "sold"}), "Input should be 'created', 'updated' or 'deleted'"),
        (outbox(poll_every=0), "greater than or equal to 0.02"),
        (
            {"format": "own", **outbox(actions={"x": "created"})},
            "outbox.actions: has no effect with format own: the source's 'events' say it. Leave it out",
        ),
        (
            {"format": "cloudevents", **outbox(columns={"type": "x"})},
            "outbox.columns.type: has no effect with format cloudevents: the CloudEvent says it. Leave it out",
        ),
    ],
)
def test_an_outbox_that_cannot_work_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as refused:
        config(**changes)
    assert complaint in str(refused.value)


ROW = {"id": 7, "aggregatetype": "item", "aggregateid": 12, "type": "updated", "Seq": 5, "store": "B"}


def test_keys_and_ids_may_be_numbers_and_the_group_may_be_a_column() -> None:
    told = config(**outbox(columns={"group": "store", "version": "SEQ"}))
    [event] = events_of(Message(b"", None, ROW), told.consumers["orders"], told)
    assert (event.event_id, event.key, event.version, event.group, event.data) == ("7", "12", 5, "B", None)


def test_the_version_may_be_anywhere_in_the_payload() -> None:
    told = config(**outbox(version="meta.v || rev"))
    [event] = events_of(Message(b'{"rev": 9}', None, ROW), told.consumers["orders"], told)
    assert (event.version, event.data) == (9, {"rev": 9})


def test_names_of_columns_may_have_any_letters() -> None:
    told = config(**outbox(columns={"aggregateid": 'the "Key"-no', "version": "Seq"}))
    [event] = events_of(Message(b"", None, {**ROW, 'the "Key"-no': "k"}), told.consumers["orders"], told)
    assert event.key == "k"

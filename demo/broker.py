"""A message broker, where one runs: pricing publishes its changes to it, in place of posting them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from kombu import Connection
from kombu.exceptions import OperationalError

URL = "amqp://guest:guest@127.0.0.1:5672//"
_CONNECT_SECONDS = 2


class Broker:
    """A queue of RabbitMQ of the demo's own."""

    def __init__(self, connection: Connection, queue: str) -> None:
        self._channel = connection.default_channel
        self._producer = connection.Producer(auto_declare=False)
        self.queue = queue
        self._channel.queue_declare(queue, durable=True, auto_delete=False)

    def publish(self, events: Sequence[dict[str, Any]]) -> None:
        for event in events:
            self._producer.publish(
                json.dumps(event),
                exchange="",
                routing_key=self.queue,
                delivery_mode=2,
                content_type="application/cloudevents+json",
                content_encoding="utf-8",
            )

    def configuration(self, configured: Path, path: Path) -> Path:
        """Writes the demo's configuration with a consumer of the queue beside it."""
        document = yaml.safe_load(configured.read_text(encoding="utf-8"))
        document["consumers"] = {"pricing": {"url": URL, "queue": self.queue, "source": "pricing"}}
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path

    def delete(self) -> None:
        self._channel.queue_delete(self.queue)


@contextmanager
def broker() -> Iterator[Broker | None]:
    """The broker of this machine, with a queue that goes with the block; None where none runs."""
    with Connection(URL, connect_timeout=_CONNECT_SECONDS) as connection:
        try:
            connection.ensure_connection(max_retries=1, timeout=_CONNECT_SECONDS)
            found = Broker(connection, f"sync-demo-{os.getpid()}")
        except (OperationalError, OSError):
            yield None
            return
        try:
            yield found
        finally:
            with suppress(Exception):  # it may have gone meanwhile
                found.delete()

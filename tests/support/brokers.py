"""Real brokers for the tests, where they run on this machine's usual ports; every queue is made up and deleted again.

``SYNC_TEST_AMQP_URL`` and ``SYNC_TEST_REDIS_URL`` name others.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import kombu
import pytest
import redis

AMQP = os.environ.get("SYNC_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672")
REDIS = os.environ.get("SYNC_TEST_REDIS_URL", "redis://127.0.0.1:6379")


class Broker(ABC):
    """A broker with one queue of the test's own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.queue = f"sync-test-{os.getpid()}-{secrets.token_hex(4)}"

    @abstractmethod
    def send(
        self, body: bytes, content_type: str | None = None, headers: dict[str, Any] | None = None, **properties: Any
    ) -> None:
        """Puts a message in the queue."""

    @abstractmethod
    def left(self) -> int:
        """Messages that are not acknowledged; asked when nobody consumes."""

    @abstractmethod
    def received(self) -> Iterator[tuple[bytes, str | None]]:
        """Takes what is in the queue: body and content type."""

    @abstractmethod
    def forget_holder(self) -> None:
        """As when the time of a process that died is over."""

    @abstractmethod
    def delete(self) -> None:
        """Leaves nothing behind."""


class Rabbit(Broker):
    def __init__(self, url: str = AMQP) -> None:
        super().__init__(url)
        self._connection = kombu.Connection(url)
        self.channel = self._connection.channel()
        self.channel.queue_declare(queue=self.queue, durable=True, auto_delete=False)

    def send(
        self, body: bytes, content_type: str | None = None, headers: dict[str, Any] | None = None, **properties: Any
    ) -> None:
        message = self.channel.prepare_message(body, content_type=content_type, headers=headers, properties=properties)
        self.channel.basic_publish(message, exchange="", routing_key=self.queue)

    def left(self) -> int:
        return int(self.channel.queue_declare(queue=self.queue, passive=True).message_count)

    def received(self) -> Iterator[tuple[bytes, str | None]]:
        while (message := self.channel.basic_get(self.queue, no_ack=True)) is not None:
            body = message.body
            yield body.encode() if isinstance(body, str) else bytes(body), message.properties.get("content_type")

    def forget_holder(self) -> None:
        return None  # the connection was the holder

    def delete(self) -> None:
        self.channel.queue_delete(self.queue)
        self._connection.release()


class Redis(Broker):
    def __init__(self, url: str = REDIS) -> None:
        super().__init__(url)
        self.client: Any = redis.Redis.from_url(url)

    def send(
        self, body: bytes, content_type: str | None = None, headers: dict[str, Any] | None = None, **properties: Any
    ) -> None:
        """Through kombu where there is more than a body."""
        if content_type is None and not headers:
            self.client.lpush(self.queue, body)
            return
        with kombu.Connection(self.url) as connection:
            producer = kombu.Producer(connection.channel())
            producer.publish(
                body,
                routing_key=self.queue,
                exchange="",
                content_type=content_type,
                content_encoding="binary",
                headers=headers,
                **properties,
            )

    def left(self) -> int:
        taken = self.client.keys(f"{self.queue}:taken:*")
        return int(self.client.llen(self.queue) + sum(self.client.llen(name) for name in taken))

    def received(self) -> Iterator[tuple[bytes, str | None]]:
        while (item := self.client.rpop(self.queue)) is not None:
            yield item, None

    def forget_holder(self) -> None:
        for name in self.client.keys(f"{self.queue}:holder:*"):
            self.client.delete(name)

    def delete(self) -> None:
        self.client.delete(self.queue, *self.client.keys(f"{self.queue}:*"))
        self.client.close()


@contextmanager
def running(kind: type[Broker]) -> Iterator[Any]:
    """A broker, or the test is skipped and says so."""
    url = AMQP if kind is Rabbit else REDIS
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname, place.port), timeout=2).close()
    except OSError:
        pytest.skip(f"no {kind.__name__} runs at {place.hostname}:{place.port}")
    broker = kind()  # type: ignore[call-arg]
    try:
        yield broker
    finally:
        broker.delete()


@pytest.fixture(params=[Rabbit, Redis])
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    with running(request.param) as found:
        yield found


@pytest.fixture
def rabbit() -> Iterator[Rabbit]:
    with running(Rabbit) as found:
        yield found


class Proxy:
    """A way to a server that can be cut and opened again at the same port."""

    def __init__(self, url: str) -> None:
        self._to = urlsplit(url)
        self._listener: socket.socket | None = None
        self._pairs: list[socket.socket] = []
        self.port = 0
        self.open()
        self.url = url.replace(f"{self._to.hostname}:{self._to.port}", f"127.0.0.1:{self.port}")

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """Whoever is connected is thrown out, and nobody comes in."""
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for each in self._pairs:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((self._to.hostname, self._to.port))
                self._pairs += [near, far]
                threading.Thread(target=_pass_on, args=(near, far), daemon=True).start()


def _pass_on(near: socket.socket, far: socket.socket) -> None:
    with suppress(OSError), near, far:
        while True:
            for ready in select.select([near, far], [], [])[0]:
                if not (data := ready.recv(65_536)):
                    return
                (far if ready is near else near).sendall(data)

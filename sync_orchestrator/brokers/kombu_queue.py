"""RabbitMQ, and whatever else kombu has a transport for."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import kombu
from kombu.exceptions import KombuError

from sync_orchestrator.brokers.messages import Message
from sync_orchestrator.brokers.queues import ReceivedMessage
from sync_orchestrator.config import ConsumerSettings
from sync_orchestrator.errors import BrokerDown, ConfigError

_HEARTBEAT = 20.0
_CONNECT_SECONDS = 10.0
_TICK_SECONDS = 1.0
_DELIVERY_LIMIT = "x-delivery-limit"
_DROPS_SINCE = 4
_NO_TRANSPORT = (ImportError, LookupError, AttributeError, NameError, RuntimeError)
"""How transports of kombu fail whose library is not installed."""
_PROPERTIES = ("message_id", "type", "timestamp", "correlation_id", "app_id")


@contextmanager
def connect_broker(url: str, options: Mapping[str, object]) -> Iterator[kombu.Connection]:
    """A connection, until the block is left; what goes wrong with it there is raised as BrokerDown.

    Raises ConfigError for a broker that cannot be known here, such as one whose library is not installed.
    """
    try:
        connection = kombu.Connection(
            url, heartbeat=_HEARTBEAT, connect_timeout=_CONNECT_SECONDS, transport_options=dict(options)
        )
        transport = connection.transport
    except _NO_TRANSPORT as error:
        name = url.partition("://")[0]
        raise ConfigError(f"kombu has no transport for {name}:// here, install what it asks for: {error}") from None
    troubles = (*transport.connection_errors, *transport.channel_errors, KombuError, OSError)
    failed = True
    try:
        connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=False)
        yield connection
        failed = False
    except troubles as error:
        raise BrokerDown(f"{_format_address(url)}: {str(error).strip() or type(error).__name__}") from None
    finally:
        with suppress(Exception):  # what is left of it
            if failed:
                connection.collect(socket_timeout=1)
            else:
                connection.release()


@contextmanager
def open_kombu_queue(consumer: ConsumerSettings) -> Iterator[KombuQueue]:
    """The consumer's queue, made and bound where it names an exchange."""
    with connect_broker(consumer.url, consumer.options) as connection:
        yield KombuQueue(connection, consumer)


class KombuQueue:
    """A queue on one connection; what comes is kept until it is asked for."""

    def __init__(self, connection: kombu.Connection, consumer: ConsumerSettings) -> None:
        self._connection = connection
        self._arrived: list[ReceivedMessage] = []
        channel = connection.channel()
        if consumer.exchange is not None:
            channel = _declare_queue(connection, channel, consumer)
            for key in consumer.bindings:
                channel.queue_bind(queue=consumer.queue, exchange=consumer.exchange, routing_key=key)
        channel.basic_qos(0, consumer.at_once, False)
        queue = kombu.Queue(consumer.queue, no_declare=True)
        self._consumer = kombu.Consumer(channel, [queue], on_message=self._collect_message, auto_declare=False)
        self._consumer.on_decode_error = lambda message, error: self._collect_message(message)
        self._consumer.consume()

    def receive_messages(self, most: int, wait: float) -> list[ReceivedMessage]:
        """Returns at most ``most`` messages; waits at most ``wait`` seconds for the first."""
        self._send_heartbeat()
        if self._arrived or self._drain_events(wait):
            while len(self._arrived) < most and self._drain_events(0):
                pass
        taken, self._arrived = self._arrived[:most], self._arrived[most:]
        return taken

    def acknowledge_messages(self, taken: Sequence[ReceivedMessage]) -> None:
        """Acknowledges messages."""
        for each in taken:
            each.handle.ack()

    def hold_messages(self, seconds: float) -> None:
        """The broker is told that we are still here; it sends no more than it may before we acknowledge."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._send_heartbeat()
            self._drain_events(min(left, _TICK_SECONDS))

    def _drain_events(self, seconds: float) -> bool:
        try:
            self._connection.drain_events(timeout=seconds)
        except TimeoutError:
            return False
        return True

    def _send_heartbeat(self) -> None:
        if self._connection.supports_heartbeats:
            self._connection.heartbeat_check()

    def _collect_message(self, message: Any) -> None:
        properties = message.properties or {}
        told = {name: properties[name] for name in _PROPERTIES if properties.get(name) is not None}
        key = (message.delivery_info or {}).get("routing_key")
        body = message.body.encode() if isinstance(message.body, str) else bytes(message.body or b"")
        self._arrived.append(
            ReceivedMessage(
                Message(body, message.content_type, {**told, "routing_key": key, **message.headers}), message
            )
        )


def _declare_queue(connection: kombu.Connection, channel: Any, consumer: ConsumerSettings) -> Any:
    """Declares the queue, and returns the channel to go on with.

    RabbitMQ 4 drops a message of a quorum queue after 20 deliveries. A queue that is made here has no such limit,
    unless one is configured; a queue that is there already is declared as it was configured.
    """
    if _drops_by_default(connection, consumer):
        try:
            channel.queue_declare(
                queue=consumer.queue,
                durable=True,
                auto_delete=False,
                arguments={**consumer.arguments, _DELIVERY_LIMIT: -1},
            )
            return channel
        except connection.channel_errors:  # the broker closes the channel
            channel = connection.channel()
    channel.queue_declare(queue=consumer.queue, durable=True, auto_delete=False, arguments=consumer.arguments)
    return channel


def _drops_by_default(connection: kombu.Connection, consumer: ConsumerSettings) -> bool:
    return (
        consumer.arguments.get("x-queue-type") == "quorum"
        and _DELIVERY_LIMIT not in consumer.arguments
        and _major_version(connection) >= _DROPS_SINCE
    )


def _major_version(connection: kombu.Connection) -> int:
    """The major version of RabbitMQ; 0 for brokers that do not report one."""
    properties = getattr(connection.connection, "server_properties", None) or {}
    version = str(properties.get("version", "")).partition(".")[0]
    return int(version) if version.isdigit() else 0


def _format_address(url: str) -> str:
    return str(kombu.Connection(url).as_uri())

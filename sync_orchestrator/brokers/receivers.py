"""Those who are told of outcomes through a broker, and the making of all receivers from the configuration.

Every message is a structured CloudEvent in JSON; in Redis it is pushed on a list as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sync_orchestrator import exact_json
from sync_orchestrator.brokers.webhook import WebhookReceiver
from sync_orchestrator.config import Config, OutcomeReceiverSettings
from sync_orchestrator.core.notifications.outcomes import DELIVERY_SECONDS, Delivery, OutcomeMessage, Receiver
from sync_orchestrator.errors import BrokerDown, ConfigError, MissingExtra
from sync_orchestrator.extras import import_from_extra


def build_receivers(config: Config) -> dict[str, Receiver]:
    """All of the configuration's receivers by name."""
    return {name: _build_receiver(settings) for name, settings in config.outcomes.items()}


def _build_receiver(settings: OutcomeReceiverSettings) -> Receiver:
    if settings.is_webhook:
        return WebhookReceiver(settings)
    return RedisReceiver(settings) if settings.is_redis else KombuReceiver(settings)


class RedisReceiver:
    """A list in Redis."""

    def __init__(self, settings: OutcomeReceiverSettings) -> None:
        self._settings = settings

    def deliver(self, outcomes: Sequence[OutcomeMessage]) -> Delivery:
        """All of them at once."""
        try:
            with import_from_extra("redis"):
                from sync_orchestrator.brokers.redis_queue import connect_redis
            with connect_redis(self._settings.url) as client:
                client.lpush(str(self._settings.queue), *(_encode_outcome(each, self._settings) for each in outcomes))
        except (BrokerDown, MissingExtra) as error:
            return Delivery(down=str(error))
        return Delivery(taken=[each.id for each in outcomes])


class KombuReceiver:
    """A queue or an exchange; RabbitMQ confirms each message."""

    def __init__(self, settings: OutcomeReceiverSettings) -> None:
        self._settings = settings

    def deliver(self, outcomes: Sequence[OutcomeMessage]) -> Delivery:
        """One after the other."""
        settings, delivery = self._settings, Delivery()
        is_amqp = settings.url.startswith(("amqp", "pyamqp"))
        options = {"confirm_publish": True, "read_timeout": settings.timeout, "write_timeout": settings.timeout}
        ends = time.monotonic() + DELIVERY_SECONDS
        try:
            with import_from_extra("rabbitmq"):
                from sync_orchestrator.brokers.kombu_queue import connect_broker
            with connect_broker(settings.url, options if is_amqp else {}) as connection:
                producer = self._create_producer(connection)
                for outcome in outcomes:
                    if time.monotonic() > ends:
                        break
                    producer.publish(
                        _encode_outcome(outcome, settings),
                        content_type="application/cloudevents+json",
                        content_encoding="utf-8",
                        exchange=settings.exchange or "",
                        message_id=outcome.event_id,
                        delivery_mode=2,
                        routing_key=settings.queue or settings.routing_key or f"{outcome.entity}.{outcome.kind}",
                    )
                    delivery.taken.append(outcome.id)
        except (BrokerDown, ConfigError) as error:
            delivery.down = str(error)
        return delivery

    def _create_producer(self, connection: Any) -> Any:
        import kombu

        channel = connection.channel()
        if self._settings.queue is not None:
            kombu.Queue(self._settings.queue, durable=True)(channel).queue_declare()
        return kombu.Producer(channel, auto_declare=False)


def _encode_outcome(outcome: OutcomeMessage, settings: OutcomeReceiverSettings) -> bytes:
    return exact_json.dump_text(outcome.cloud_event(settings.source)).encode()

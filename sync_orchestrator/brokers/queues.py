"""A queue of a broker as the consumer sees it, whatever broker it is."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from sync_orchestrator.brokers.messages import Message
from sync_orchestrator.config import ConsumerSettings
from sync_orchestrator.extras import import_from_extra


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message and what its broker knows it by."""

    message: Message
    handle: Any


class Queue(Protocol):
    """An open queue. Every method raises BrokerDown where the broker does not do its part.

    What was taken and is not done goes back to the queue when this one is closed or its process dies.
    """

    def receive_messages(self, most: int, wait: float) -> list[ReceivedMessage]:
        """What is there, at most so many; waits for the first so many seconds, and for no second one."""
        ...

    def acknowledge_messages(self, taken: Sequence[ReceivedMessage]) -> None:
        """These are recorded for good: the broker may forget them."""
        ...

    def hold_messages(self, seconds: float) -> None:
        """Takes nothing for so long, and keeps what was taken."""
        ...


def open_queue(consumer: ConsumerSettings, name: str) -> AbstractContextManager[Queue]:
    """Opens a consumer's queue, until the block is left.

    Raises:
        BrokerDown: The broker cannot be worked with now.
        ConfigError: The broker is not known, or the extra for it is not installed.
    """
    if consumer.outbox is not None:
        from sync_orchestrator.brokers.outbox_queue import open_outbox_queue

        return open_outbox_queue(consumer, name)
    if consumer.is_redis:
        with import_from_extra("redis"):
            from sync_orchestrator.brokers.redis_queue import open_redis_queue

        return open_redis_queue(consumer, name)
    with import_from_extra("rabbitmq"):
        from sync_orchestrator.brokers import kombu_queue

    return kombu_queue.open_kombu_queue(consumer)

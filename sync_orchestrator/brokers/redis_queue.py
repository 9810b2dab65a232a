"""A list in Redis as a queue that loses nothing: what is taken is moved to a list beside it until it is done.

One process at a time takes from a list; another waits, and puts back what one that died has left behind. The messages
are JSON as somebody pushed it, or an envelope of kombu's.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis

from sync_orchestrator.brokers.messages import Message
from sync_orchestrator.brokers.queues import ReceivedMessage
from sync_orchestrator.config import ConsumerSettings
from sync_orchestrator.errors import BrokerDown

HELD_SECONDS = 15
"""So long a list belongs to a process that is not heard of."""

_PROCESS = secrets.token_hex(8)
_TIMEOUT_SECONDS = 10.0
_TICK_SECONDS = 1.0
_RELEASE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end"
_KEEP = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('expire', KEYS[1], ARGV[2]) end"


@contextmanager
def connect_redis(url: str) -> Iterator[redis.Redis]:
    """A client, until the block is left; what goes wrong with it there is raised as BrokerDown."""
    client = redis.Redis.from_url(url, socket_timeout=_TIMEOUT_SECONDS, socket_connect_timeout=_TIMEOUT_SECONDS)
    try:
        yield client
    except (redis.RedisError, OSError) as error:
        raise BrokerDown(f"{_format_address(client)}: {error}") from None
    finally:
        with suppress(redis.RedisError, OSError):
            client.close()


@contextmanager
def open_redis_queue(consumer: ConsumerSettings, name: str) -> Iterator[RedisQueue]:
    """The consumer's list."""
    with connect_redis(consumer.url) as client:
        client.ping()
        queue = RedisQueue(client, consumer.queue, name)
        try:
            yield queue
        finally:
            with suppress(redis.RedisError, OSError):
                queue.release_queue()


class RedisQueue:
    """A list, and beside it what is taken, and who may take."""

    def __init__(self, client: redis.Redis, name: str, consumer: str) -> None:
        self._client: Any = client
        self._list = name
        self._taken = f"{name}:taken:{consumer}"
        self._holder = f"{name}:holder:{consumer}"
        self._holds = False

    def receive_messages(self, most: int, wait: float) -> list[ReceivedMessage]:
        """Moves at most ``most`` messages to the list beside; waits at most ``wait`` seconds for the first."""
        if not self._acquire_hold():
            time.sleep(min(wait, _TICK_SECONDS))
            return []
        first = self._client.blmove(self._list, self._taken, max(wait, 0.01), "RIGHT", "LEFT")
        if first is None:
            return []
        pipeline = self._client.pipeline(transaction=False)
        for _ in range(min(most - 1, self._client.llen(self._list))):
            pipeline.lmove(self._list, self._taken, "RIGHT", "LEFT")
        return [
            ReceivedMessage(_unwrap_envelope(item), item) for item in (first, *pipeline.execute()) if item is not None
        ]

    def acknowledge_messages(self, taken: Sequence[ReceivedMessage]) -> None:
        """Removes messages from the list beside."""
        pipeline = self._client.pipeline(transaction=False)
        for each in taken:
            pipeline.lrem(self._taken, -1, each.handle)
        pipeline.execute()

    def hold_messages(self, seconds: float) -> None:
        """Keeps the hold on the list for some seconds, and takes nothing."""
        ends = time.monotonic() + seconds
        while (left := ends - time.monotonic()) > 0:
            self._acquire_hold()
            time.sleep(min(left, _TICK_SECONDS))

    def release_queue(self) -> None:
        """Puts back what is not done, and lets the next one take."""
        if self._holds:
            self._put_back()
            self._client.eval(_RELEASE, 1, self._holder, _PROCESS)

    def _acquire_hold(self) -> bool:
        held = bool(self._client.eval(_KEEP, 1, self._holder, _PROCESS, HELD_SECONDS))
        if not (held and self._holds):
            self._holds = held or bool(self._client.set(self._holder, _PROCESS, nx=True, ex=HELD_SECONDS))
            if self._holds:
                self._put_back()
        return self._holds

    def _put_back(self) -> None:
        """In the order in which they were taken."""
        while self._client.lmove(self._taken, self._list, "LEFT", "RIGHT") is not None:
            pass


def _unwrap_envelope(item: bytes) -> Message:
    """What kombu put in an envelope, or the item as it is."""
    try:
        envelope = json.loads(item)
        if not isinstance(envelope, dict) or not {"body", "properties", "content-type"} <= envelope.keys():
            return Message(item)
        properties, body = envelope["properties"], envelope["body"]
        whole = base64.b64decode(body, validate=True) if properties.get("body_encoding") == "base64" else body.encode()
        return Message(whole, envelope["content-type"], envelope.get("headers") or {})
    except (ValueError, AttributeError, TypeError, RecursionError, binascii.Error):
        return Message(item)


def _format_address(client: redis.Redis) -> str:
    to = client.connection_pool.connection_kwargs
    return f"redis://{to.get('host', 'localhost')}:{to.get('port', 6379)}/{to.get('db', 0)}"

"""Connections of callers: how long and how large the head of a request may be, and which connections count.

uvicorn gives a request's head no time and httptools no size, and uvicorn's limit counts connections, also those on
which nothing was asked for yet. Here the limit counts requests under way. A connection without one is a guest: it has
``HEAD_SECONDS`` for a whole head, and where there are too many guests the oldest one goes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

HEAD_SECONDS = 10.0
"""From the beginning of a request, or of the connection, to the end of its head; and for a body that nobody reads."""
MAX_HEAD_BYTES = 65_536
MAX_CONNECTIONS = 1000
"""The most guests, and the most requests under way."""
MAX_PIPELINED = 16
"""Requests that were sent before the answers to earlier ones."""
WRITE_SECONDS = 120.0
"""How long a caller may keep an answer waiting that it does not read."""

_SAID = {
    400: "Invalid HTTP request received.",
    408: "The head of the request came too slowly.",
    431: "The head of the request is too large.",
    503: "Too many requests were sent at once.",
}


class Guests:
    """The connections without a request under way, the oldest first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._all: OrderedDict[GuardedProtocol, None] = OrderedDict()

    def add_guest(self, guest: GuardedProtocol) -> None:
        """Adds one at the end; where there are too many the oldest one is closed."""
        self._all[guest] = None
        self._all.move_to_end(guest)
        while len(self._all) > self._limit:
            oldest, _ = self._all.popitem(last=False)
            oldest.transport.abort()

    def remove_guest(self, guest: GuardedProtocol) -> None:
        """Removes one. Harmless to repeat."""
        self._all.pop(guest, None)


_guests: WeakKeyDictionary[ServerState, Guests] = WeakKeyDictionary()


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 by httptools, with limits on what precedes a request and on what follows its answer."""

    def __init__(self, *words: Any, **options: Any) -> None:
        super().__init__(*words, **options)
        self._limit = self.limit_concurrency or MAX_CONNECTIONS
        self._guests = _guests.setdefault(self.server_state, Guests(self._limit))
        self._is_head_awaited = True
        self._stray_bytes = 0
        """What came of a head, or behind a body, and is not known to be whole."""
        self._header_bytes = 0
        self._status = 400
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Counts the connection, and starts the deadline for the head of its first request."""
        super().connection_made(transport)
        self._guests.add_guest(self)
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection and its deadlines."""
        self._guests.remove_guest(self)
        self._stop_deadline()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parses what arrived. Refuses a head that is too large: 431."""
        self._stray_bytes += len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._stray_bytes > MAX_HEAD_BYTES:
            self._answer_and_close(431)
        elif not self._has_request:  # whatever comes, such as line ends, does not let it stay any longer
            self._start_deadline()

    def on_message_begin(self) -> None:
        """Begins to count the bytes of a head."""
        self._header_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Counts the target of the request."""
        self._count_header_bytes(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Also of those behind a body."""
        self._count_header_bytes(len(name) + len(value) + len(b": \r\n"))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begins the request: its head arrived in time. Refuses one pipelined request too many: 503."""
        if len(self.pipeline) >= MAX_PIPELINED:
            raise self._make_parser_error(503)
        self._is_head_awaited = False
        self._stray_bytes = 0
        self._stop_deadline()
        self._guests.remove_guest(self)
        is_full = len(self.tasks) >= self._limit
        self.limit_concurrency = self._limit if is_full else None
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a piece of the body."""
        self._stray_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Waits for the next head."""
        self._is_head_awaited = True
        self._stray_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Counts the connection as idle, and limits how long the rest of an unread body may take."""
        super().on_response_complete()
        if self._has_request or self.transport.is_closing():
            return
        self._guests.add_guest(self)
        if not self._is_head_awaited:  # the answer did not need the body
            self._start_deadline()

    def send_400_response(self, msg: str) -> None:
        """Refuses a request that the parser could not read, with the status that says why."""
        self._answer_and_close(self._status)

    def pause_writing(self) -> None:
        """Starts the deadline for a caller that does not read its response."""
        super().pause_writing()
        if self._write_deadline is None:
            self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stops that deadline."""
        super().resume_writing()
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    @property
    def _has_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count_header_bytes(self, size: int) -> None:
        self._header_bytes += size
        if self._header_bytes > MAX_HEAD_BYTES:
            raise self._make_parser_error(431)

    def _make_parser_error(self, status: int) -> Exception:
        """For the parser, which ends then; uvicorn calls ``send_400_response``."""
        self._status = status
        return ValueError(_SAID[status])

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._too_late)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._stray_bytes and not self.transport.is_closing():
            self._answer_and_close(408)
        else:
            self.transport.abort()

    def _answer_and_close(self, status: int) -> None:
        """Answers and ends the connection; where an answer to an earlier request is under way, just ends it."""
        if self._has_request:
            self.transport.abort()
            return
        said = _SAID[status].encode()
        self.transport.write(
            b"".join(
                [
                    STATUS_LINE[status],
                    b"content-type: text/plain; charset=utf-8\r\n",
                    b"content-length: %d\r\n" % len(said),
                    b"connection: close\r\n\r\n",
                    said,
                ]
            )
        )
        self.transport.close()

"""The connection by which the binlog is read. Needs the extra ``mysql``.

The library that decodes events waits for a packet without an end, and connects again by itself from the position that
it was made with. This connection waits for a limited time, and reports a lost connection to our loop, which knows the
position.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.protocol import MysqlPacket

from sync_orchestrator.errors import LogDown

_DUMP_COMMANDS = (0x12, 0x1E)  # COM_BINLOG_DUMP, COM_BINLOG_DUMP_GTID
_HEADER_BYTES = 4
_LARGEST_PART = 0xFFFFFF
_CHUNK_BYTES = 65536
_SILENCE_SECONDS = 30.0
"""A server that sends nothing for this long, not even a heartbeat, is gone."""
HEARTBEAT_SECONDS = 5.0
_TAKE_SECONDS = 0.1


class NothingYet(Exception):
    """No packet came in time."""


class ReadingTime:
    """Until when packets are waited for; shared by the connections of one reader.

    Packets that are here are taken for a little longer, and at least one of them; then no further one, so events that
    nobody wants do not keep the reader from its other duties.
    """

    def __init__(self) -> None:
        self._wait_ends = self._take_ends = 0.0
        self._has_taken = False

    def begin(self, seconds: float) -> None:
        """Waits this long from now on."""
        now = time.monotonic()
        self._wait_ends, self._take_ends = now + seconds, now + max(seconds, _TAKE_SECONDS)
        self._has_taken = False

    @property
    def left_seconds(self) -> float:
        """How much of the wait is left; 0 where it is over."""
        return max(0.0, self._wait_ends - time.monotonic())

    def note_taken(self) -> None:
        """A packet was taken."""
        self._has_taken = True

    @property
    def is_over(self) -> bool:
        """Whether no further packet may be taken."""
        return self._has_taken and time.monotonic() > self._take_ends


class BinlogConnection(Connection):  # type: ignore[misc]
    """A connection that receives packets of a binlog within the time of its reader, once it has asked for them."""

    def __init__(self, reading_time: ReadingTime, **settings: Any) -> None:
        self._reading_time = reading_time
        self._is_streaming = False
        self._received = bytearray()
        self._heard_at = time.monotonic()
        super().__init__(**settings)

    def _write_bytes(self, data: bytes) -> None:
        super()._write_bytes(data)
        if len(data) > _HEADER_BYTES and data[_HEADER_BYTES] in _DUMP_COMMANDS:
            self._is_streaming = True
            self._heard_at = time.monotonic()

    def _read_packet(self, packet_type: type[Any] = MysqlPacket) -> Any:
        if not self._is_streaming:
            return super()._read_packet(packet_type)
        if self._reading_time.is_over:
            raise NothingYet
        packet = packet_type(self._take_payload(), self.encoding)
        self._reading_time.note_taken()
        if packet.is_error_packet():
            packet.raise_for_error()
        if packet.is_eof_packet():
            raise LogDown("the source ended the stream: it is shutting down, or was told to")
        return packet

    def _take_payload(self) -> bytes:
        """The next packet, whose parts are put together; nothing of it is taken before all of it is here."""
        payload, at = bytearray(), 0
        while True:
            size = self._require_bytes(at, _HEADER_BYTES)
            self._require_bytes(at + _HEADER_BYTES, size)
            payload += self._received[at + _HEADER_BYTES : at + _HEADER_BYTES + size]
            at += _HEADER_BYTES + size
            if size < _LARGEST_PART:
                del self._received[:at]
                return bytes(payload)

    def _require_bytes(self, at: int, size: int) -> int:
        """Waits until bytes are here; returns the first three of them as a number."""
        while len(self._received) < at + size:
            self._receive_chunk()
        return int.from_bytes(self._received[at : at + 3], "little")

    def _receive_chunk(self) -> None:
        sock: socket.socket | None = self._sock
        if sock is None:
            raise LogDown("the connection to the source is closed")
        try:
            sock.settimeout(self._reading_time.left_seconds)
            chunk = sock.recv(_CHUNK_BYTES)
        except (TimeoutError, BlockingIOError, ssl.SSLWantReadError):
            if time.monotonic() - self._heard_at > _SILENCE_SECONDS:
                raise LogDown(f"the source sent nothing for {_SILENCE_SECONDS:.0f} s, not even a heartbeat") from None
            raise NothingYet from None
        except OSError as error:
            raise LogDown(f"the connection to the source was lost: {error}") from None
        if not chunk:
            raise LogDown("the source ended the connection: it is shutting down, or has died")
        self._heard_at = time.monotonic()
        self._received += chunk


def describe_error(error: BaseException) -> tuple[int, str]:
    """The number and the message of an error of the server; 0 where it has none."""
    if isinstance(error, pymysql.MySQLError) and error.args and isinstance(error.args[0], int):
        return error.args[0], str(error.args[1]) if len(error.args) > 1 else ""
    return 0, str(error)

"""The body of a response as it comes in, unpacked piece by piece up to a limit.

A few kilobytes of gzip can unpack to gigabytes, so the limit counts while unpacking and never after it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

ACCEPTED = "gzip, deflate"
"""``Accept-Encoding`` of our calls: the codings that can be unpacked here."""

_WINDOWS = {
    "gzip": (zlib.MAX_WBITS | 16,),
    "x-gzip": (zlib.MAX_WBITS | 16,),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),
}
CODINGS = frozenset(_WINDOWS)
"""The values of ``Content-Encoding`` that can be unpacked here."""

_PLAIN = ("", "identity")
_PIECE_BYTES = 1_048_576


class ResponseTooLarge(Exception):
    """A response has more bytes than it may."""


class ResponseUnreadable(Exception):
    """A response is not packed as its ``Content-Encoding`` says."""


class Unpacker:
    """Collects a body.

    Args:
        coding: The ``Content-Encoding`` of the response.
        max_bytes: The largest body that is taken, in bytes after unpacking.
    """

    def __init__(self, coding: str, max_bytes: int) -> None:
        self._coding = coding.strip().lower()
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._size = 0
        self._engine: zlib._Decompress | None = None

    def unpack_block(self, block: bytes) -> Iterator[int]:
        """Takes the next bytes as they came, a megabyte at a time; yields how many there are in all each time.

        Raises ResponseTooLarge, ResponseUnreadable.
        """
        if self._coding in _PLAIN:
            self._keep_piece(block)
            yield self._size
            return
        try:
            for _ in self._unpack_pieces(block):
                yield self._size
        except zlib.error as error:
            raise ResponseUnreadable(f"it is not {self._coding}: {error}") from None

    def finish_body(self) -> bytes:
        """The whole body. Raises ResponseUnreadable where its packing has not ended."""
        if self._engine is not None and not self._engine.eof:
            raise ResponseUnreadable(f"its {self._coding} ends early")
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def _unpack_pieces(self, block: bytes) -> Iterator[None]:
        if self._engine is None:
            self._engine = self._create_engine(block)
        while block:
            if self._engine.eof:  # gzip may have several members, one after the other
                if "gzip" not in self._coding or not block.strip(b"\x00"):
                    return
                self._engine = zlib.decompressobj(_WINDOWS[self._coding][0])
            self._keep_piece(self._engine.decompress(block, _PIECE_BYTES))
            block = self._engine.unconsumed_tail or self._engine.unused_data
            yield

    def _create_engine(self, block: bytes) -> zlib._Decompress:
        windows = _WINDOWS.get(self._coding)
        if windows is None:
            raise ResponseUnreadable(f"its Content-Encoding is {self._coding[:40]!a}; we accept {ACCEPTED}")
        if len(windows) > 1 and (block[0] & 0x0F != 8 or (len(block) > 1 and int.from_bytes(block[:2]) % 31)):
            return zlib.decompressobj(windows[1])  # some servers send deflate without the header of zlib
        return zlib.decompressobj(windows[0])

    def _keep_piece(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._max_bytes:
            raise ResponseTooLarge
        if piece:
            self._pieces.append(piece)

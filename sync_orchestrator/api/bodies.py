"""Bodies of requests: read whole, up to a cap, before and after decompression, and not for ever."""

from __future__ import annotations

import asyncio
import zlib

from starlette.requests import ClientDisconnect, Request

from sync_orchestrator.api.body_budget import Reservation
from sync_orchestrator.api.problems import Refused

_SECONDS = 30.0
_WINDOW = {"gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


async def read_body(request: Request, limit: int, reservation: Reservation | None = None) -> bytes:
    """The body as it was sent, of at most ``limit`` bytes, taken from a budget where there is one.

    Raises Refused: 400, 408, 413, and 503 where the budget is used up.
    """
    told = request.headers.get("content-length", "0")
    try:
        async with asyncio.timeout(_SECONDS):
            if told.isdecimal() and len(told) < 19 and int(told) <= limit:
                pieces, size = [], 0
                async for piece in request.stream():
                    pieces.append(piece)
                    size += len(piece)
                    if reservation is not None:
                        reservation.add_bytes(len(piece))
                    if size > limit:
                        break
                else:
                    return b"".join(pieces)
    except ClientDisconnect:
        raise Refused(400, "The body was cut off; nothing was recorded.") from None
    except TimeoutError:
        raise Refused(408, "The body came too slowly; nothing was recorded.") from None
    raise Refused(413, f"A request may have at most {limit} bytes; send smaller batches.")


def decode_body(body: bytes, coding: str, limit: int) -> bytes:
    """Returns the body without its compression (``Content-Encoding``), of at most ``limit`` bytes.

    Raises Refused: 400, 413, 415.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in _WINDOW:
        raise Refused(415, "Send the body with gzip, deflate or no compression.")
    engine = zlib.decompressobj(_WINDOW[coding])
    try:
        plain = engine.decompress(body, limit + 1)
    except zlib.error:
        raise Refused(400, "The body is not what its Content-Encoding says; nothing was recorded.") from None
    if len(plain) > limit:
        raise Refused(413, f"A request may have at most {limit} bytes when unpacked; send smaller batches.")
    if not engine.eof or engine.unused_data:
        raise Refused(400, "The body is not what its Content-Encoding says; nothing was recorded.")
    return plain

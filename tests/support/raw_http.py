"""HTTP as bytes: an upstream that responds with exactly these bytes, the service behind a real port, a raw client."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette


class RawUpstream:
    """Responds with the bytes of ``response`` and closes, unless it ``keeps_open``; ``requests`` holds what came."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        self.keeps_open = False
        self.url = ""

    def heads(self) -> list[tuple[str, str]]:
        """The headers of the last request, by lower-case name, bytes read as Latin-1."""
        lines = self.requests[-1].partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
        return [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]

    def body(self) -> bytes:
        return self.requests[-1].partition(b"\r\n\r\n")[2]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request = await reader.readuntil(b"\r\n\r\n")
                length = [
                    line.partition(b":")[2]
                    for line in request.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ]
                self.requests.append(request + await reader.readexactly(int(length[0]) if length else 0))
                writer.write(self.response)
                await writer.drain()
                if not self.keeps_open:
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def raw_upstream() -> AsyncIterator[RawUpstream]:
    upstream = RawUpstream()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    upstream.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield upstream


@asynccontextmanager
async def real_port(app: Starlette) -> AsyncIterator[int]:
    """Serves an application as the command ``api`` does, in a thread, and gives its port."""
    place = socket.socket()
    place.bind(("127.0.0.1", 0))
    place.listen(100)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", server_header=False, proxy_headers=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    try:
        yield place.getsockname()[1]
    finally:
        server.should_exit = True
        await asyncio.to_thread(thread.join, 10)
        place.close()


async def sent(port: int, request: bytes, seconds: float = 20) -> bytes:
    """Sends bytes and returns what comes back until the connection ends; the request should say so."""
    async with asyncio.timeout(seconds):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await writer.drain()
        response = await reader.read()
        writer.close()
        await writer.wait_closed()
    return response

"""A small HTTP server that really listens, for tests where connections matter."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from sync_orchestrator.errors import CallFailed

Handler = Callable[[Request], Awaitable[Response]]

AWKWARD = ["a/b", "a b", "a?b#c", "a%2Fb", "a+b", "a&b=c", "a;b", "100%", "é中", '"', "a\\b", "...", "~"]
"""Keys that are awkward in a path."""


class Server:
    """One handler behind a real port; ``seen`` holds (method, path as sent, query) of every call."""

    def __init__(self) -> None:
        self.handler: Handler = self.respond_with_nothing
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(self._app, interface="asgi3", log_level="critical", lifespan="off")
        )
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(100)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    async def respond_with_nothing(self, request: Request) -> Response:
        return JSONResponse({"error": "no such thing"}, 404)

    def respond_with(self, content: Any, status: int = 200) -> None:
        """Every call gets this document."""

        async def handler(request: Request) -> Response:
            return JSONResponse(content, status)

        self.handler = handler

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request({**scope, "path_params": {"rest": scope["path"][1:]}}, receive)
        self.seen.append((request.method, scope["raw_path"].decode(), dict(request.query_params)))
        response = await self.handler(request)
        await response(scope, receive, send)

    def stop(self) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join(10)
        self._socket.close()


async def failure_of(call: Awaitable[Any]) -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        await call
    return caught.value

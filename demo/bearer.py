"""The door of the demo's systems: without the right header nobody gets in."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class BearerOnly:
    """Refuses calls below a path that do not carry the header's expected value."""

    def __init__(self, app: ASGIApp, token: str, header: bytes, below: str) -> None:
        self._app = app
        self._token = token.encode()
        self._header = header
        self._below = below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(self._below):
            if dict(scope["headers"]).get(self._header) != self._token:
                await JSONResponse({"error": "who are you?"}, 401)(scope, receive, send)
                return
        await self._app(scope, receive, send)

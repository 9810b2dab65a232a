"""A server that checks each way of authentication, and adapters that call it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from http_server import Server
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.config import ReadCallSettings
from sync_orchestrator.core.systems.login_sessions import LoginStore, ProcessLogins, SharedLogins

READ = ReadCallSettings(path="/things")


LOGIN_BODY = {"user": "syncuser", "password": "hunter-2-secret"}


LOGIN: dict[str, Any] = {"kind": "login", "request": {"method": "POST", "path": "/login", "body": LOGIN_BODY}}


REFRESH = {
    "refresh": "body.refresh",
    "refresh_request": {"method": "POST", "path": "/refresh", "body": {"refresh": "{{ refresh }}"}, "content": "form"},
}


class Guard:
    """Lets in who holds a token it has given; ``POST /login`` gives one, ``POST /refresh`` for a refresh token."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.numbers = 0
        self.valid: set[str] = set()
        self.refreshes: set[str] = set()
        self.calls: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[bytes] = []
        self.lifetime: Any = None
        self.login: Callable[[Request, bytes], Response] = self.give
        self.refused: Callable[[], Response] = lambda: JSONResponse({"error": "who are you?"}, 401)
        self.gate = asyncio.Event()
        self.gate.set()
        server.handler = self._handle

    def give(self, request: Request, body: bytes) -> Response:
        self.numbers += 1
        token, refresh = f"token-{self.numbers}-tok", f"refresh-{self.numbers}-ref"
        self.valid.add(token)
        self.refreshes = {refresh}
        return JSONResponse(
            {"token": token, "refresh": refresh, "expires_in": self.lifetime, "shop": {"id": f"shop-{self.numbers}"}},
            headers={"X-Token": token},
        )

    def expire(self) -> None:
        self.valid.clear()

    def wrong(self, status: int = 401) -> None:
        """The password is wrong from now on; the answer repeats what was sent."""
        self.login = lambda request, body: PlainTextResponse(f"no such login: {body.decode()}", status)

    def made(self, path: str) -> int:
        return self.calls.count(path)

    async def _handle(self, request: Request) -> Response:
        path, body = request.url.path, await request.body()
        self.calls.append(path)
        self.headers.append(dict(request.headers))
        self.bodies.append(body)
        if path == "/login":
            return self.login(request, body)
        if path == "/refresh":
            used = body.decode().partition("refresh=")[2]
            return self.give(request, body) if used in self.refreshes else JSONResponse({"error": "used"}, 400)
        if not any(token in value for token in self.valid for value in request.headers.values()):
            return self.refused()
        return JSONResponse({"ok": True})


@pytest.fixture
def guard(server: Server) -> Guard:
    return Guard(server)


def client(
    server: Server, login: dict[str, Any] | None, *, store: LoginStore | None = None, **settings: Any
) -> HttpClient:
    return HttpClient(
        HttpSettings.model_validate({"base_url": server.url, "timeout": 5, "auth": login, **settings}), logins=store
    )


async def called(http: HttpClient, times: int = 1) -> list[Any]:
    return [(await http.read(READ, {})).body for _ in range(times)]


@pytest.fixture(params=["process", "database"])
def store(request: pytest.FixtureRequest) -> LoginStore:
    if request.param == "process":
        return ProcessLogins()
    return SharedLogins(request.getfixturevalue("engine"), "sources.shop")

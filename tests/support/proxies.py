"""A service with routes before a small third party, for the tests of the proxy."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import httpx
from api_client import InProcess, key_for
from fakes import two_part_config
from http_server import Server
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from sync_orchestrator.api.service import create_app
from sync_orchestrator.composition import open_context
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import run

SECRET = "kanarienvogel-4711"


def route(**changes: Any) -> dict[str, Any]:
    """``GET /stones/{sku}``, which reads ``GET /items/{sku}``."""
    return {"path": "/stones/{sku}", "third_party": "erp", "call": {"path": "/items/{{ sku }}"}, **changes}


def proxy_config(third_party: Server, routes: dict[str, Any], **changes: Any) -> Config:
    system = {"base_url": third_party.url, "headers": {"X-Api-Key": SECRET}, **changes.pop("system", {})}
    return two_part_config(system=system, routes=routes, **changes)


def proxy_service(engine: Engine, config: Config) -> Starlette:
    """The service as it is put together for real; its lifespan ends its connections."""
    return create_app(open_context(engine, config))


def dumped(engine: Engine) -> str:
    """All that the database holds, as one text."""
    with engine.begin() as connection:
        tables = run(
            connection,
            "SELECT format('%%I.%%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname = 'sync'",
        )
        return "\n".join(str(row) for table in tables for row in run(connection, f"SELECT * FROM {table.name}"))


class _AsSent(InProcess):
    """Sends the path of the extension ``as_sent`` as it is; httpx itself would tidy it."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        path = request.extensions.get("as_sent")
        if path is None:
            return await super().handle_async_request(request)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "path": unquote(path), "raw_path": path.encode()}, receive, send)

        return await httpx.ASGITransport(app, raise_app_exceptions=False).handle_async_request(request)


def proxy_client(app: Starlette, key: str) -> httpx.AsyncClient:
    transport = _AsSent(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700", headers=headers)


async def until_gone(request: Request) -> Response:
    """An answer that never comes: waits until the caller has given up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    return Response()


def proxy_key(engine: Engine) -> str:
    return key_for(engine, "proxy")

"""The API service in this process, and those who call it."""

from __future__ import annotations

import json
from typing import Any

import httpx
from sqlalchemy import Engine
from starlette.applications import Starlette

from sync_orchestrator.api.service import create_app
from sync_orchestrator.config import Config
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.service.api_keys import make_key

ONE, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
DROP = object()


def event(**changes: Any) -> dict[str, Any]:
    """A good event of the shop's part of an item; DROP leaves an attribute out."""
    whole = {
        "specversion": "1.0",
        "id": "e1",
        "source": "shop",
        "type": "item.updated",
        "subject": "k1",
        "version": 7,
        "data": {"key": "k1", "name": "n", "store": "A", "v": 7},
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not DROP}


def service(engine: Engine, config: Config) -> Starlette:
    return create_app(Context(engine, config, {}))


def key_for(engine: Engine, *scopes: str) -> str:
    """A key; without scopes, one for the events of all sources."""
    with engine.begin() as connection:
        return make_key(connection, "a test", scopes or ["events:*"], ["shop", "stock"])


class InProcess(httpx.ASGITransport):
    """Its end lets go of the connections that belong to the event loop, as the service's own end does."""

    async def aclose(self) -> None:
        await self.app.state.intake.close()  # type: ignore[attr-defined]


def client_of(app: Starlette, key: str | None) -> httpx.AsyncClient:
    transport = InProcess(app, raise_app_exceptions=False)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700", headers=headers)


async def send(client: httpx.AsyncClient, body: Any, kind: str = ONE, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post("/v1/events", content=content, headers={"Content-Type": kind, **headers})

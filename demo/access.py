"""Where the demo's systems are and how they are entered: ports, secrets and the check of a secret.

All of it comes from the environment, by the names that ``sync.yaml`` uses too.
"""

from __future__ import annotations

import os

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

PORTS = {"catalogue": 9101, "lab": 9102, "pricing": 9103, "erp": 9104}
"""Each system's port, unless ``DEMO_<NAME>_PORT`` names another."""


def port_variable(name: str) -> str:
    return f"DEMO_{name.upper()}_PORT"


def port(name: str) -> int:
    """The port on which a system listens."""
    return int(os.environ.get(port_variable(name), PORTS[name]))


def source_token() -> str:
    """The bearer token of the internal systems' APIs."""
    return os.environ.get("DEMO_SOURCE_TOKEN", "demo-source")


def catalogue_password() -> str:
    """The password by which the sync reads the catalogue's database."""
    return os.environ.get("DEMO_CATALOGUE_PASSWORD", "demo-catalogue")


def erp_key() -> str:
    """The API key of the ERP."""
    return os.environ.get("DEMO_ERP_KEY", "demo-erp")


class RequiresHeader:
    """Refuses calls below a path that do not carry a header's expected value."""

    def __init__(self, app: ASGIApp, header: str, value: str, below: str) -> None:
        self._app = app
        self._header = header.lower().encode()
        self._value = value.encode()
        self._below = below

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guarded = scope["type"] == "http" and scope["path"].startswith(self._below)
        if guarded and dict(scope["headers"]).get(self._header) != self._value:
            await JSONResponse({"error": "the credentials are missing or wrong"}, 401)(scope, receive, send)
            return
        await self._app(scope, receive, send)

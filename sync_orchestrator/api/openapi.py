"""What the service says of itself: ``/openapi.json`` and ``/asyncapi.json``. The texts are ``*.yaml`` beside this.

They list every route, so they are for holders of a key, of any scope.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api.auth import Access

_FOLDER = Path(__file__).parent


class Descriptions:
    """``paths``: further paths of the service, as OpenAPI has them, such as those of the proxy's routes."""

    def __init__(self, access: Access, paths: dict[str, Any] | None = None) -> None:
        self._access = access
        self.openapi = _read("openapi.yaml")
        self.openapi["paths"].update(paths or {})
        self.asyncapi = _read("asyncapi.yaml")
        self.asyncapi["components"]["messages"]["change"]["payload"] = deepcopy(
            self.openapi["components"]["schemas"]["CloudEvent"]
        )

    def routes(self) -> list[Route]:
        """The routes of the descriptions; each needs a key."""
        return [Route("/openapi.json", self._openapi), Route("/asyncapi.json", self._asyncapi)]

    async def _openapi(self, request: Request) -> Response:
        await self._access.caller(request)
        return JSONResponse(self.openapi)

    async def _asyncapi(self, request: Request) -> Response:
        await self._access.caller(request)
        return JSONResponse(self.asyncapi)


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))
    return document

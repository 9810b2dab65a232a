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

    def __init__(self, access: Access, paths: dict[str, object] | None = None) -> None:
        self._access = access
        self.openapi = _read_description("openapi.yaml")
        self.openapi["paths"].update(paths or {})
        self.asyncapi = _read_description("asyncapi.yaml")
        self.asyncapi["components"]["messages"]["change"]["payload"] = deepcopy(
            self.openapi["components"]["schemas"]["CloudEvent"]
        )

    def build_routes(self) -> list[Route]:
        """The routes of the descriptions; each needs a key."""
        return [Route("/openapi.json", self._serve_openapi), Route("/asyncapi.json", self._serve_asyncapi)]

    async def _serve_openapi(self, request: Request) -> Response:
        await self._access.identify_caller(request)
        return JSONResponse(self.openapi)

    async def _serve_asyncapi(self, request: Request) -> Response:
        await self._access.identify_caller(request)
        return JSONResponse(self.asyncapi)


def _read_description(name: str) -> dict[str, Any]:
    document: dict[str, object] = yaml.safe_load((_FOLDER / name).read_text(encoding="utf-8"))
    return document

"""``/proxy``: friendlier calls in front of those of the third parties, as ``routes`` in ``sync.yaml`` tells."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as Served

from sync_orchestrator.api import bodies
from sync_orchestrator.api.auth import Access
from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.proxy.canary import Canary
from sync_orchestrator.api.proxy.counters import RouteCounters
from sync_orchestrator.api.proxy.paths import Paths, join_path, split_path
from sync_orchestrator.api.proxy.request import ProxyRequest
from sync_orchestrator.api.proxy.shared_state import SharedState
from sync_orchestrator.api.proxy.third_party_path import ThirdPartyPath
from sync_orchestrator.config import RouteSettings
from sync_orchestrator.core.context import Context
from sync_orchestrator.core.values.mapping import Mapping

_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
_PREFIX = "/proxy"
_PROBLEMS = ("400", "401", "403", "404", "405", "408", "409", "413", "415", "422", "502", "504")


class Proxy:
    """All routes of the proxy, each with its canary and its path to the third party."""

    def __init__(self, database: ApiDatabase, context: Context, access: Access, known: SharedState) -> None:
        self._access = access
        self._settings = context.config.routes
        self._paths = Paths(self._settings)
        self._known = known
        self.tally = RouteCounters(database, context.config, known)
        self._third_party_paths = {
            name: self._build_third_party_path(name, route, context, database) for name, route in self._settings.items()
        }
        self._canaries = {
            name: Canary(name, route, self._third_party_paths[name], known, self.tally)
            for name, route in self._settings.items()
            if route.legacy is not None
        }

    def _build_third_party_path(
        self, name: str, route: RouteSettings, context: Context, database: ApiDatabase
    ) -> ThirdPartyPath:
        mapping = None if route.entity is None else Mapping(context.config.entities[route.entity].mapping)
        return ThirdPartyPath(name, route, context.clients[route.third_party], database, self._known, mapping)

    def build_routes(self) -> list[Served]:
        """The one route of the web framework for all proxied paths; none without proxy routes in ``sync.yaml``."""
        return [Served(_PREFIX + "/{rest:path}", self.serve_call, methods=_METHODS)] if self._settings else []

    async def serve_call(self, request: Request) -> Response:
        """Answers a call of one of the routes; to callers with the scope ``proxy`` only."""
        await self._access.authorise(request, "proxy")
        pieces = split_path(request.scope["raw_path"])[1:]
        name, parts = self._paths.find_route(request.method, pieces)
        limit = self._settings[name].request_bytes
        asked = ProxyRequest(
            request.method,
            join_path(pieces),
            parts,
            request.scope["query_string"].decode("latin-1"),
            request.headers,
            await bodies.read_body(request, limit),
            limit,
        )
        asked.refuse_ambiguous(self._settings[name])
        return await (self._canaries.get(name) or self._third_party_paths[name]).answer_request(asked)

    async def close(self) -> None:
        """Ends what is under way in the background and writes what was counted."""
        for each in self._canaries.values():
            await each.close()
        await self.tally.close()

    def describe_paths(self) -> dict[str, object]:
        """The routes as OpenAPI has them."""
        found: dict[str, Any] = {}
        for name, route in self._settings.items():
            found.setdefault(_PREFIX + route.path, {})[route.method.lower()] = _describe_operation(name, route)
        return found


def _describe_operation(name: str, route: RouteSettings) -> dict[str, object]:
    places = [("path", part) for part in route.list_path_parts()] + [("query", part) for part in route.query]
    places += [("header", part) for part in route.headers]
    operation: dict[str, object] = {
        "operationId": f"proxy_{name}",
        "summary": f"The route {name}",
        "parameters": [
            {"name": part, "in": place, "required": place == "path", "schema": {"type": "string"}}
            for place, part in places
        ],
        "responses": {
            str(route.status or "2XX"): {
                "description": "What was asked for.",
                "content": {"application/json": {"schema": {}}},
            },
            **{
                status: {"$ref": "#/components/responses/Problem"}
                for status in sorted({*_PROBLEMS, *(str(error.status) for error in route.errors)})
            },
            "429": {"$ref": "#/components/responses/Later"},
            "503": {"$ref": "#/components/responses/Later"},
        },
    }
    if route.method != "GET":
        operation["requestBody"] = {"content": {"application/json": {"schema": {}}}}
    return operation

"""``/v1/rollouts``: the shares of the proxy's routes, shown and changed by those whose key is for everything.

Not here: what a change needs (``core/service/rollout.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api import bodies
from sync_orchestrator.api.auth import Access
from sync_orchestrator.api.database import Database
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.api.proxy.shared_state import Known
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.service import rollout
from sync_orchestrator.errors import InvalidEvent, NotFound, NotYet
from sync_orchestrator.event_formats.strict_json import parse

_MOST_BYTES = 1_048_576
_SHOWN_CHANGES = 100


class _Wanted(BaseModel):
    """The body of a change; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)

    why: str = Field(min_length=1, max_length=500)
    percent: float | None = Field(default=None, ge=0, le=100)
    shadow: bool | None = None
    allow: list[str] | None = None
    deny: list[str] | None = None
    override: bool = False

    def change(self) -> rollout.Change:
        return rollout.Change(
            self.percent,
            self.shadow,
            None if self.allow is None else frozenset(self.allow),
            None if self.deny is None else frozenset(self.deny),
        )


class Rollouts:
    """The paths that show and change how much traffic takes the new path."""

    def __init__(self, database: Database, config: Config, access: Access, known: Known) -> None:
        self._database = database
        self._config = config
        self._access = access
        self._known = known

    def routes(self) -> list[Route]:
        """The routes of rollouts."""
        return [
            Route("/v1/rollouts", self.all),
            Route("/v1/rollouts/{route}", self.one),
            Route("/v1/rollouts/{route}", self.change, methods=["PUT"]),
        ]

    async def all(self, request: Request) -> Response:
        """Each route's that has a legacy upstream."""
        await self._access.authorise(request, "admin")
        known = await self._database.ask(self._read)
        return JSONResponse({"rollouts": [rollout.described(each) for each in rollout.of_routes(self._config, known)]})

    async def one(self, request: Request) -> Response:
        """One route's, with the last changes of it."""
        await self._access.authorise(request, "admin")
        name = self._name(request)
        known = await self._database.ask(self._read)
        changes = await self._database.ask(lambda: self._history(name))
        return JSONResponse({**rollout.described(known.get(name, rollout.Rollout(name))), "changes": changes})

    async def change(self, request: Request) -> Response:
        """Changes one; 409 where validation does not allow it."""
        caller = await self._access.authorise(request, "admin")
        name, wanted = self._name(request), await _wanted(request)

        def work(connection: Connection) -> rollout.Rollout:
            return rollout.change(
                connection,
                self._config,
                name,
                wanted.change(),
                who=f"the key {caller.name!r}"[:500],
                why=wanted.why,
                override=wanted.override,
            )

        try:
            after = await self._database.ask(lambda: in_transaction(self._database.engine, work))
        except NotYet as error:
            raise Refused(
                409,
                "Validation does not allow a step up; override: true does it all the same.",
                errors=[{"index": 0, "field": "percent", "reason": str(error)}],
            ) from None
        except ValueError as error:
            raise Refused(
                422, "The change cannot be made.", errors=[{"index": 0, "field": None, "reason": str(error)}]
            ) from None
        self._known.forget()
        return JSONResponse(rollout.described(after))

    def figures(self, connection: Connection) -> Iterator[Metric]:
        """For ``/metrics``."""
        shares = GaugeMetricFamily(
            "sync_rollout_share", "Per cent of a route's values that take the new path.", labels=("route",)
        )
        known = rollout.rollouts(connection)
        for each in rollout.of_routes(self._config, known):
            shares.add_metric([each.route], 0.0 if each.halted else each.percent)
        calls = CounterMetricFamily(
            "sync_rollout_calls", "Calls by the way that they took and how they fared.", labels=("route", "outcome")
        )
        for (route, outcome), count in rollout.count_route_calls(connection).items():
            calls.add_metric([route, outcome], float(count))
        return iter((shares, calls))

    def _name(self, request: Request) -> str:
        name = str(request.path_params["route"])
        try:
            rollout.switched(self._config, name)
        except NotFound:
            raise Refused(404, "There is no route of this name with a legacy upstream.") from None
        return name

    def _read(self) -> dict[str, rollout.Rollout]:
        with self._database.engine.begin() as connection:
            return rollout.rollouts(connection)

    def _history(self, name: str) -> list[dict[str, Any]]:
        with self._database.engine.begin() as connection:
            rows = rollout.history(connection, name)[:_SHOWN_CHANGES]
        return [{**row._mapping, "at": row.at.isoformat()} for row in rows]


async def _wanted(request: Request) -> _Wanted:
    body = await bodies.read(request, _MOST_BYTES)
    try:
        return _Wanted.model_validate(parse(body))
    except InvalidEvent:
        raise Refused(400, "The body cannot be read as JSON.") from None
    except ValidationError as error:
        raise Refused(
            422,
            "The change cannot be made.",
            errors=[
                {"index": 0, "field": ".".join(map(str, each["loc"])) or None, "reason": each["msg"]}
                for each in error.errors(include_input=False, include_url=False)[:100]
            ],
        ) from None

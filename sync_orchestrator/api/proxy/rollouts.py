"""``/v1/rollouts``: the shares of the proxy's routes, shown and changed by those whose key is for everything."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api import bodies
from sync_orchestrator.api.auth import Access
from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.api.proxy.shared_state import SharedState
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.service import rollout
from sync_orchestrator.errors import InvalidEvent, NotFound, NotYet
from sync_orchestrator.event_formats.strict_json import parse

_MAX_BYTES = 1_048_576
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

    def build_change(self) -> rollout.RolloutChange:
        return rollout.RolloutChange(
            self.percent,
            self.shadow,
            None if self.allow is None else frozenset(self.allow),
            None if self.deny is None else frozenset(self.deny),
        )


class Rollouts:
    """The paths that show and change how much traffic takes the new path."""

    def __init__(self, database: ApiDatabase, config: Config, access: Access, known: SharedState) -> None:
        self._database = database
        self._config = config
        self._access = access
        self._known = known

    def build_routes(self) -> list[Route]:
        """The routes of rollouts."""
        return [
            Route("/v1/rollouts", self.list_rollouts),
            Route("/v1/rollouts/{route}", self.show_rollout),
            Route("/v1/rollouts/{route}", self.change_rollout, methods=["PUT"]),
        ]

    async def list_rollouts(self, request: Request) -> Response:
        """Each route's that has a legacy upstream."""
        await self._access.authorise(request, "admin")
        known = await self._database.run_in_thread(self._read_rollouts)
        return JSONResponse(
            {"rollouts": [rollout.describe_rollout(each) for each in rollout.of_routes(self._config, known)]}
        )

    async def show_rollout(self, request: Request) -> Response:
        """One route's, with the last changes of it."""
        await self._access.authorise(request, "admin")
        name = self._require_route_name(request)
        known = await self._database.run_in_thread(self._read_rollouts)
        changes = await self._database.run_in_thread(lambda: self._read_history(name))
        return JSONResponse(
            {**rollout.describe_rollout(known.get(name, rollout.RolloutState(name))), "changes": changes}
        )

    async def change_rollout(self, request: Request) -> Response:
        """Changes one; 409 where validation does not allow it."""
        caller = await self._access.authorise(request, "admin")
        name, wanted = self._require_route_name(request), await _read_wanted(request)

        def apply_change(connection: Connection) -> rollout.RolloutState:
            return rollout.change_rollout(
                connection,
                self._config,
                name,
                wanted.build_change(),
                who=f"the key {caller.name!r}"[:500],
                why=wanted.why,
                override=wanted.override,
            )

        try:
            after = await self._database.run_in_thread(lambda: in_transaction(self._database.engine, apply_change))
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
        self._known.expire_snapshot()
        return JSONResponse(rollout.describe_rollout(after))

    def collect_metrics(self, connection: Connection) -> Iterator[Metric]:
        """For ``/metrics``."""
        shares = GaugeMetricFamily(
            "sync_rollout_share", "Per cent of a route's values that take the new path.", labels=("route",)
        )
        known = rollout.list_rollouts(connection)
        for each in rollout.of_routes(self._config, known):
            shares.add_metric([each.route], 0.0 if each.halted else each.percent)
        calls = CounterMetricFamily(
            "sync_rollout_calls", "Calls by the way that they took and how they fared.", labels=("route", "outcome")
        )
        for (route, outcome), count in rollout.count_route_calls(connection).items():
            calls.add_metric([route, outcome], float(count))
        return iter((shares, calls))

    def _require_route_name(self, request: Request) -> str:
        name = str(request.path_params["route"])
        try:
            rollout.find_switched_route(self._config, name)
        except NotFound:
            raise Refused(404, "There is no route of this name with a legacy upstream.") from None
        return name

    def _read_rollouts(self) -> dict[str, rollout.RolloutState]:
        with self._database.engine.begin() as connection:
            return rollout.list_rollouts(connection)

    def _read_history(self, name: str) -> list[dict[str, object]]:
        with self._database.engine.begin() as connection:
            rows = rollout.list_rollout_changes(connection, name)[:_SHOWN_CHANGES]
        return [{**row._mapping, "at": row.at.isoformat()} for row in rows]


async def _read_wanted(request: Request) -> _Wanted:
    body = await bodies.read_body(request, _MAX_BYTES)
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

"""Fields that people have changed on both sides: ``GET /v1/conflicts``, ``GET`` and ``POST /v1/conflicts/{id}``.

A key of the scope ``conflicts:ENTITY`` sees and decides those of one entity.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sync_orchestrator import exact_json
from sync_orchestrator.api.auth import Access
from sync_orchestrator.api.bodies import read_body
from sync_orchestrator.api.database import ApiDatabase
from sync_orchestrator.api.lookups import ExactJson
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.composition import build_two_ways
from sync_orchestrator.config import Config
from sync_orchestrator.core.db.session import in_transaction
from sync_orchestrator.core.service.api_keys import Caller
from sync_orchestrator.core.two_way.resolving import (
    STATES,
    CannotResolve,
    Choice,
    list_conflicts,
    read_conflict,
    resolve_conflict,
)
from sync_orchestrator.core.two_way.three_way import Winner

_MAX_BODY_BYTES = 65_536
_MOST = 500
_MAX_DIGITS = 18


class _Decision(BaseModel):
    """The body of a decision."""

    model_config = ConfigDict(extra="forbid")

    winner: Literal["ours", "theirs", "value"]
    value: Any = None
    reason: str | None = None

    @model_validator(mode="after")
    def _check_value(self) -> _Decision:
        if (self.winner == "value") != ("value" in self.model_fields_set):
            raise ValueError("'value' goes with winner 'value', and only with that")
        return self

    def build_choice(self) -> Choice:
        return Choice(None, self.value) if self.winner == "value" else Choice(Winner(self.winner))


class Conflicts:
    """The paths by which conflicts are listed and decided."""

    def __init__(self, database: ApiDatabase, config: Config, access: Access) -> None:
        self._database = database
        self._config = config
        self._access = access
        self._two_ways = build_two_ways(config)

    def build_routes(self) -> list[Route]:
        """The routes of conflicts."""
        return [
            Route("/v1/conflicts", self.list_conflicts),
            Route("/v1/conflicts/{id}", self.show_conflict),
            Route("/v1/conflicts/{id}", self.resolve_conflict, methods=["POST"]),
        ]

    async def list_conflicts(self, request: Request) -> Response:
        """The open conflicts of the entities that the key covers, or those in ``?state=``, newest first."""
        caller = await self._access.identify_caller(request)
        query = request.query_params
        allowed = [name for name in self._two_ways if caller.has_scope(f"conflicts:{name}")]
        asked = query.get("entity")
        state = query.get("state", "open")
        if state not in STATES:
            raise Refused(400, f"There is no state '{state[:40]}': there is {', '.join(STATES)}.")
        names = [name for name in allowed if asked in (None, name)]
        if not names:
            raise Refused(404, "There is no entity with two_way that this key covers.")

        def read(connection: Connection) -> list[dict[str, Any]]:
            found = [
                row
                for name in names
                for row in list_conflicts(
                    connection,
                    entity=name,
                    field=query.get("field"),
                    key=query.get("key"),
                    states=[state],
                    most=_MOST,
                )
            ]
            return sorted(found, key=lambda row: -int(row["id"]))[:_MOST]

        rows = await self._database.run_in_thread(lambda: in_transaction(self._database.engine, read))
        return ExactJson({"conflicts": rows})

    async def show_conflict(self, request: Request) -> Response:
        """One conflict, with both values and the one before."""
        caller = await self._access.identify_caller(request)
        return ExactJson(await self._read(caller, _read_number(request)))

    async def resolve_conflict(self, request: Request) -> Response:
        """Decides one; 409 where it is not open any more."""
        caller = await self._access.identify_caller(request)
        number = _read_number(request)
        await self._read(caller, number)
        decision = await _read_decision(request)

        def resolve(connection: Connection) -> dict[str, Any]:
            return resolve_conflict(
                connection,
                self._two_ways,
                number,
                decision.build_choice(),
                by=f"the key {caller.name!r}"[:500],
                reason=decision.reason,
            )

        try:
            return ExactJson(await self._database.run_in_thread(lambda: in_transaction(self._database.engine, resolve)))
        except CannotResolve as error:
            raise Refused(409, f"{str(error)[0].upper()}{str(error)[1:]}.") from None

    async def _read(self, caller: Caller, number: int) -> dict[str, Any]:
        try:
            found = await self._database.run_in_thread(
                lambda: in_transaction(self._database.engine, lambda connection: read_conflict(connection, number))
            )
        except CannotResolve:
            raise Refused(404, "There is no such conflict.") from None
        if not caller.has_scope(f"conflicts:{found['entity']}"):
            raise Refused(404, "There is no such conflict.")
        return found


def _read_number(request: Request) -> int:
    text = str(request.path_params["id"])
    if not text.isascii() or not text.isdigit() or len(text) > _MAX_DIGITS:
        raise Refused(404, "There is no such conflict.")
    return int(text)


async def _read_decision(request: Request) -> _Decision:
    body = await read_body(request, _MAX_BODY_BYTES)
    try:
        return _Decision.model_validate(exact_json.parse(body))
    except ValidationError as error:
        first = error.errors()[0]
        raise Refused(
            422,
            "The decision cannot be used.",
            errors=[{"index": 0, "field": ".".join(map(str, first["loc"])) or None, "reason": first["msg"]}],
        ) from None
    except ValueError:
        raise Refused(400, "The body is not JSON.") from None

"""The intake service: records change events durably before it answers. Starlette; the ledger does the work."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api.cloud_events import change_event
from sync_orchestrator.api.strict_json import parse
from sync_orchestrator.config import Config
from sync_orchestrator.core.errors import InvalidEvent
from sync_orchestrator.core.ledger import ChangeEvent, record
from sync_orchestrator.core.sql import run

_log = logging.getLogger("sync_orchestrator.intake")
_BATCH = "application/cloudevents-batch+json"
_MOST_ERRORS = 100


def create_app(engine: Engine, config: Config) -> Starlette:
    """The intake as an ASGI application."""
    intake = _Intake(engine, config)
    return Starlette(routes=[
        Route("/v1/events", intake.events, methods=["POST"]),
        Route("/healthz", intake.healthz),
        Route("/readyz", intake.readyz),
    ])


class _TooLarge(Exception):
    pass


class _Intake:
    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine = engine
        self._config = config

    async def events(self, request: Request) -> Response:
        """Takes one event or a batch: 202 once they are committed, whole or not at all."""
        try:
            document = parse(await self._body(request))
        except _TooLarge:
            return problem(413, "The body is too large", f"at most {self._config.limits.request_bytes} bytes")
        except ClientDisconnect:
            return problem(400, "The body was cut off", "send it again; nothing was recorded")
        except InvalidEvent as error:
            return problem(400, "The body cannot be read", str(error))
        batch = document if isinstance(document, list) else [document]
        if not isinstance(document, list) and request.headers.get("content-type", "").startswith(_BATCH):
            return problem(400, "The body cannot be read", "a batch must be a JSON array")
        events, errors = self._read(batch)
        if errors:
            return problem(422, "Nothing was recorded: some events cannot be taken",
                           f"{len(errors)} of {len(batch)} events", errors=errors[:_MOST_ERRORS])
        return await self._record(events)

    async def _body(self, request: Request) -> bytes:
        limit = self._config.limits.request_bytes
        if int(request.headers.get("content-length") or 0) > limit:
            raise _TooLarge
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > limit:
                raise _TooLarge
        return bytes(body)

    def _read(self, batch: Sequence[Any]) -> tuple[list[ChangeEvent], list[dict[str, Any]]]:
        events: list[ChangeEvent] = []
        errors: list[dict[str, Any]] = []
        for index, document in enumerate(batch):
            try:
                if len(json.dumps(document)) > self._config.limits.event_bytes:
                    raise InvalidEvent(f"data: the event has more than {self._config.limits.event_bytes} bytes")
                events.append(change_event(document, self._config))
            except InvalidEvent as error:
                field, colon, reason = str(error).partition(": ")
                errors.append({"index": index, "field": field if colon else None, "reason": reason or field})
        return events, errors

    async def _record(self, events: Sequence[ChangeEvent]) -> Response:
        try:
            recorded = await asyncio.to_thread(record, self._engine, events)
        except SQLAlchemyError as error:
            if isinstance(error, DBAPIError) and not _is_outage(error):
                _log.exception("events could not be recorded")
            return problem(503, "The events could not be recorded now", "send them again", retry_after=2)
        return JSONResponse({"accepted": recorded.accepted, "duplicates": recorded.duplicates}, status_code=202)

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Green when events can be recorded now."""
        try:
            await asyncio.to_thread(self._ask)
        except SQLAlchemyError:
            return problem(503, "The database does not answer", "see the log", retry_after=2)
        return JSONResponse({"status": "ready"})

    def _ask(self) -> None:
        with self._engine.begin() as connection:
            run(connection, "SELECT count(*) FROM sync.systems")


def problem(status: int, title: str, detail: str, *, retry_after: int | None = None, **more: Any) -> Response:
    """An error answer as RFC 9457 problem details."""
    headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
    return JSONResponse({"type": "about:blank", "status": status, "title": title, "detail": detail, **more},
                        status_code=status, headers=headers, media_type="application/problem+json")


def _is_outage(error: DBAPIError) -> bool:
    return error.connection_invalidated or getattr(error.orig, "sqlstate", None) in (None, "57P01", "57P02", "57P03")

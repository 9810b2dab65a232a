"""The intake service: records change events durably before it answers. Starlette; the ledger does the work.

Not here: what an event's attributes mean (``cloud_events.py``), what is JSON (``strict_json.py``).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api.cloud_events import change_event
from sync_orchestrator.api.strict_json import parse
from sync_orchestrator.config import Config
from sync_orchestrator.core.errors import InvalidEvent
from sync_orchestrator.core.ledger import ChangeEvent, record
from sync_orchestrator.core.sql import run

T = TypeVar("T")

_log = logging.getLogger("sync_orchestrator.intake")
_ONE, _BATCH, _EITHER = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"
_MOST_ERRORS = 100
_RETRY_AFTER = 2
_BODY_SECONDS = 30.0
_DATABASE_SECONDS = 15.0
_LARGE = 65_536


def create_app(engine: Engine, config: Config) -> Starlette:
    """The intake as an ASGI application."""
    intake = _Intake(engine, config)
    return Starlette(
        routes=[
            Route("/v1/events", intake.events, methods=["POST"]),
            Route("/healthz", intake.healthz),
            Route("/readyz", intake.readyz),
        ],
        exception_handlers={_Refused: _answer_refused, HTTPException: _answer_http, Exception: _answer_unforeseen},
    )


class _Refused(Exception):
    """An answer that is not 2xx."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        self.status = status
        self.detail = detail
        self.more = more


class _Intake:
    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine = engine
        self._config = config

    async def events(self, request: Request) -> Response:
        """Takes one event or a batch: 202 once they are committed, whole or not at all."""
        kind = _content_type(request)
        body = await self._body(request)
        if len(body) > _LARGE:
            events = await asyncio.to_thread(self._understand, body, kind)
        else:
            events = self._understand(body, kind)
        recorded = await self._ask(lambda: record(self._engine, events))
        return JSONResponse({"accepted": recorded.accepted, "duplicates": recorded.duplicates}, status_code=202)

    async def healthz(self, request: Request) -> Response:
        """Green while the process answers."""
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        """Green while events can be recorded."""

        def look() -> None:
            with self._engine.begin() as connection:
                run(connection, "SELECT count(*) FROM sync.systems")

        await self._ask(look)
        return JSONResponse({"status": "ready"})

    async def _body(self, request: Request) -> bytes:
        limit = self._config.limits.request_bytes
        told = request.headers.get("content-length", "0")
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                if told.isdecimal() and len(told) < 19 and int(told) <= limit:
                    async for piece in request.stream():
                        body += piece
                        if len(body) > limit:
                            break
                    else:
                        return bytes(body)
        except ClientDisconnect:
            raise _Refused(400, "The body was cut off; nothing was recorded.") from None
        except TimeoutError:
            raise _Refused(408, "The body came too slowly; nothing was recorded.") from None
        raise _Refused(413, f"A request may have at most {limit} bytes; send smaller batches.")

    def _understand(self, body: bytes, kind: str) -> list[ChangeEvent]:
        try:
            document = parse(body)
        except InvalidEvent as error:
            raise _Refused(400, "The body cannot be read.", errors=[_located(0, error)]) from None
        if isinstance(document, list) != (kind == _BATCH) and kind != _EITHER:
            wanted = "an array" if kind == _BATCH else "an object"
            raise _Refused(400, f"A body of this content type must be {wanted}.")
        batch = document if isinstance(document, list) else [document]
        if len(body) > self._config.limits.event_bytes:
            self._check_sizes(batch)
        return self._read(batch)

    def _check_sizes(self, batch: Sequence[Any]) -> None:
        limit = self._config.limits.event_bytes
        for index, document in enumerate(batch):
            if len(json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()) > limit:
                error = InvalidEvent(f"has more than {limit} bytes")
                raise _Refused(413, "An event is too large; nothing was recorded.", errors=[_located(index, error)])

    def _read(self, batch: Sequence[Any]) -> list[ChangeEvent]:
        events: list[ChangeEvent] = []
        errors: list[dict[str, Any]] = []
        for index, document in enumerate(batch):
            try:
                events.append(change_event(document, self._config))
            except InvalidEvent as error:
                errors.append(_located(index, error))
                if len(errors) == _MOST_ERRORS:
                    break
        if errors:
            raise _Refused(422, "Some events cannot be taken; nothing was recorded.", errors=errors)
        return events

    async def _ask(self, work: Callable[[], T]) -> T:
        """Asks the database in a thread.

        One that does not answer in time may still carry the work out; the events' ids make sending them again safe.
        """
        try:
            async with asyncio.timeout(_DATABASE_SECONDS):
                return await asyncio.to_thread(work)
        except DataError as error:
            _log.error("the database cannot store an event: sqlstate %s", getattr(error.orig, "sqlstate", None))
            raise _Refused(422, "An event cannot be stored; nothing was recorded.") from None
        except (SQLAlchemyError, TimeoutError) as error:
            _log.warning("the database does not answer: %s, sqlstate %s", type(error).__name__,
                         getattr(getattr(error, "orig", None), "sqlstate", None))
            raise _Refused(503, "The database does not answer; try again later.") from None


def problem(status: int, detail: str, **more: Any) -> Response:
    """An error answer as RFC 9457 problem details; a 503 says when to come back."""
    headers = {"Retry-After": str(_RETRY_AFTER)} if status == 503 else None
    return JSONResponse(
        {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail, **more},
        status_code=status, headers=headers, media_type="application/problem+json")


def _content_type(request: Request) -> str:
    kind, *parameters = [piece.strip().lower() for piece in request.headers.get("content-type", "").split(";")]
    charsets = [parameter for parameter in parameters if parameter.startswith("charset=")]
    if kind not in (_ONE, _BATCH, _EITHER) or any(text.replace('"', "") != "charset=utf-8" for text in charsets):
        raise _Refused(415, f"Send {_ONE}, {_BATCH} or {_EITHER}, in UTF-8.")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise _Refused(415, "Send the body without compression.")
    return kind


def _located(index: int, error: InvalidEvent) -> dict[str, Any]:
    return {"index": index, "field": error.field, "reason": str(error)}


async def _answer_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, _Refused)
    return problem(error.status, error.detail, **error.more)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = problem(error.status_code, "There is POST /v1/events, GET /healthz and GET /readyz.")
    answer.headers.update(error.headers or {})
    return answer


async def _answer_unforeseen(request: Request, error: Exception) -> Response:
    return problem(500, "Something is wrong here; nothing is known to have been recorded. Send it again.")

"""``POST /v1/events`` and ``POST /v1/sources/{source}/events``: change events, recorded durably before the answer.

Not here: what an event means (``cloud_events.py``, ``own_events.py``), what is JSON (``strict_json.py``), who may
(``access.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api import bodies
from sync_orchestrator.api.access import Access, require
from sync_orchestrator.api.cloud_events import change_event
from sync_orchestrator.api.database import SECONDS, Database
from sync_orchestrator.api.group_commit import GroupCommit
from sync_orchestrator.api.own_events import change_event_of, is_wanted
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.api.strict_json import parse
from sync_orchestrator.api.throttle import Throttle
from sync_orchestrator.config import Config
from sync_orchestrator.core import exact_json
from sync_orchestrator.core.access import Caller
from sync_orchestrator.core.errors import InvalidEvent
from sync_orchestrator.core.ledger import ChangeEvent, Recorded
from sync_orchestrator.core.trace import trace_of

_ONE, _BATCH, _EITHER = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"
_BINARY = "ce-"
_MOST_ERRORS = 100
_LARGE = 65_536


_Read = Callable[[Any], ChangeEvent | None]
_Split = Callable[[bytes, Mapping[str, str]], Sequence[Any]]


@dataclass(slots=True)
class _Understood:
    events: list[ChangeEvent] = field(default_factory=list)
    passed_over: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)


class Intake:
    """Takes change events of the source systems that ``sync.yaml`` names."""

    def __init__(self, database: Database, config: Config, access: Access) -> None:
        self._database = database
        self._config = config
        self._access = access
        self._group_commit = GroupCommit(database.engine, SECONDS)
        self._throttle = Throttle({name: source.events_per_second for name, source in config.sources.items()})

    async def close(self) -> None:
        await self._group_commit.aclose()

    def routes(self) -> list[Route]:
        return [Route("/v1/events", self.events, methods=["POST"]),
                Route("/v1/sources/{source}/events", self.own_events, methods=["POST"])]

    async def events(self, request: Request) -> Response:
        """Takes one CloudEvent or a batch: 202 once they are committed.

        Whole or not at all, unless ``?partial=true``.
        """
        return await self._answer(request, lambda document: change_event(document, self._config), _cloud_events)

    async def own_events(self, request: Request) -> Response:
        """The same for events in the own shape of a source system that has ``events`` in ``sync.yaml``."""
        source = request.path_params["source"]
        system = self._config.sources.get(source)
        if system is None or system.events is None:
            raise Refused(404, "There is no source system of this name with events of its own shape.")

        def read(document: Any) -> ChangeEvent | None:
            if not is_wanted(document, request.headers, source, self._config):
                return None
            return change_event_of(document, request.headers, source, self._config)

        return await self._answer(request, read, _plain_json)

    async def _answer(self, request: Request, read: _Read, split: _Split) -> Response:
        partial = _flag(request, "partial")
        limit = self._config.limits.request_bytes
        headers = _headers(request)
        sender = await self._access.sender(headers)
        body = await bodies.read(request, limit)
        caller = sender or self._access.signer(headers, body)
        body = bodies.decoded(body, headers.get("content-encoding", ""), limit)
        if len(body) > _LARGE:
            found = await asyncio.to_thread(self._understand, body, headers, read, split, partial=partial)
        else:
            found = self._understand(body, headers, read, split, partial=partial)
        return await self._take(caller, found, partial=partial)

    async def _take(self, caller: Caller, found: _Understood, *, partial: bool) -> Response:
        sources = [event.source for event in found.events]
        for source in sorted(set(sources)):
            require(caller, f"events:{source}")
        self._throttle.take(sources)
        with self._database.answering():
            recorded = await self._group_commit.record(found.events)
        if recorded == _ONE_TAKEN and not (found.passed_over or partial):
            return _TAKEN
        answer: dict[str, Any] = {"accepted": recorded.accepted, "duplicates": recorded.duplicates}
        if found.passed_over:
            answer["passed_over"] = found.passed_over
        if partial:
            answer["refused"] = found.errors
        return JSONResponse(answer, status_code=202)

    def _understand(self, body: bytes, headers: Mapping[str, str], read: _Read, split: _Split, *, partial: bool
                    ) -> _Understood:
        batch = split(body, headers)
        found = _Understood()
        limit = self._config.limits.event_bytes
        if len(body) > limit:
            found.errors = [_located(index, InvalidEvent(f"has more than {limit} bytes"))
                            for index, document in enumerate(batch) if _size(document) > limit]
            if found.errors and not partial:
                raise Refused(413, "An event is too large; nothing was recorded.", errors=found.errors[:_MOST_ERRORS])
        too_large = {error["index"] for error in found.errors}
        for index, document in enumerate(batch):
            if index not in too_large:
                _read_into(found, index, document, read)
                if len(found.errors) >= _MOST_ERRORS and not partial:
                    break
        if (trace := trace_of(headers.get("traceparent"))) is not None:
            found.events = [event if event.trace else replace(event, trace=trace) for event in found.events]
        if found.errors and (not partial or not found.events):
            raise Refused(422, "Some events cannot be taken; nothing was recorded.", errors=found.errors[:_MOST_ERRORS])
        return found


_ONE_TAKEN = Recorded(1, 0)
_TAKEN = JSONResponse({"accepted": 1, "duplicates": 0}, status_code=202)
"""The answer to nearly every request with one event, made once."""


def _headers(request: Request) -> dict[str, str]:
    """The headers by their names in small letters, decoded once; of those sent twice the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(request.headers.raw)}


def _read_into(found: _Understood, index: int, document: Any, read: _Read) -> None:
    try:
        event = read(document)
    except InvalidEvent as error:
        found.errors.append(_located(index, error))
    else:
        if event is None:
            found.passed_over += 1
        else:
            found.events.append(event)


def _plain_json(body: bytes, headers: Mapping[str, str]) -> Sequence[Any]:
    kind = _content_type(headers)
    if kind != _EITHER and not kind.endswith("+json"):
        raise Refused(415, f"Send {_EITHER}, in UTF-8: one event, or an array of them.")
    document = _parsed(body)
    return document if isinstance(document, list) else [document]


def _cloud_events(body: bytes, headers: Mapping[str, str]) -> Sequence[Any]:
    """The events of a request in any of the three modes."""
    if f"{_BINARY}specversion" in headers:
        return [_binary(body, headers)]
    kind = _content_type(headers)
    if kind not in (_ONE, _BATCH, _EITHER):
        raise Refused(415, f"Send {_ONE}, {_BATCH} or {_EITHER}, in UTF-8, or the attributes as ce- headers.")
    document = _parsed(body)
    if isinstance(document, list) != (kind == _BATCH) and kind != _EITHER:
        raise Refused(400, f"A body of this content type must be {'an array' if kind == _BATCH else 'an object'}.")
    return document if isinstance(document, list) else [document]


def _binary(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """An event whose attributes are headers and whose data is the body (HTTP protocol binding of CloudEvents 1.0.2)."""
    attributes = {name.removeprefix(_BINARY): unquote(value) for name, value in headers.items()
                  if name.startswith(_BINARY)}
    if "data" in attributes or "data_base64" in attributes:
        raise Refused(400, "The data of an event in binary mode is the body.")
    if not body:
        return attributes
    kind = _content_type(headers)
    if kind != _EITHER and not kind.endswith("+json"):
        raise Refused(415, f"The data of an event is {_EITHER}, in UTF-8.")
    return {**attributes, "data": _parsed(body)}


def _parsed(body: bytes) -> Any:
    try:
        return parse(body)
    except InvalidEvent as error:
        raise Refused(400, "The body cannot be read.", errors=[_located(0, error)]) from None


def _content_type(headers: Mapping[str, str]) -> str:
    """The media type; empty for one in another encoding than UTF-8."""
    kind, *parameters = [piece.strip().lower() for piece in headers.get("content-type", "").split(";")]
    charsets = [parameter for parameter in parameters if parameter.startswith("charset=")]
    return "" if any(text.replace('"', "") != "charset=utf-8" for text in charsets) else kind


def _size(document: Any) -> int:
    return len(exact_json.dumps(document))


def _located(index: int, error: InvalidEvent) -> dict[str, Any]:
    return {"index": index, "field": error.field, "reason": str(error)}


def _flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false") if request.scope["query_string"] else "false"
    if value not in ("true", "false"):
        raise Refused(400, f"The parameter {name} must be true or false.")
    return value == "true"

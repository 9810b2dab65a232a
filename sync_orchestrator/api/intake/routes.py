"""``POST /v1/events`` and ``POST /v1/sources/{source}/events``: change events, recorded durably before the answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sync_orchestrator.api import bodies
from sync_orchestrator.api.auth import Access, require_any_events, require_scope
from sync_orchestrator.api.body_budget import ByteBudget
from sync_orchestrator.api.database import SECONDS, ApiDatabase
from sync_orchestrator.api.intake import batches
from sync_orchestrator.api.intake.batches import (
    BINARY,
    Caps,
    EventDocument,
    Form,
    form_of_cloud_events,
    form_of_own_events,
)
from sync_orchestrator.api.intake.group_commit import GroupCommit
from sync_orchestrator.api.intake.signatures import SignatureClaim, Signatures
from sync_orchestrator.api.intake.throttle import IntakeThrottle
from sync_orchestrator.api.intake.turns import Turns
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.core.ledger.recording import ChangeEvent, PreparedEvent, Recorded, prepare_event
from sync_orchestrator.core.service.api_keys import Caller
from sync_orchestrator.core.tracing import trace_of
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.cloud_events import change_event
from sync_orchestrator.event_formats.custom_events import change_event_of, is_wanted

_MAX_LISTED_ERRORS = 100
_SMALL_BYTES = 16_384
"""Bodies up to this size are worked on at once; larger ones in slices, in turns with other senders."""
_THREAD_BYTES = 65_536
"""What takes long without Python's interpreter goes to a thread from this size on."""
_UNPROVEN_REQUEST_BYTES = 262_144
"""What a request of an unproven sender counts at least, so that their number is limited, too."""


_Read = Callable[[object, int | None], ChangeEvent | None]
"""Reads the document at a place of a batch; None for one that is no item of a batch."""


@dataclass(slots=True)
class _Understood:
    events: list[PreparedEvent] = field(default_factory=list)
    sources: Counter[str] = field(default_factory=Counter)
    passed_over: int = 0
    errors: list[dict[str, object]] = field(default_factory=list)
    not_listed: int = 0
    """Errors beyond those that are kept."""
    has_too_large: bool = False

    def add_error(self, index: int, error: InvalidEvent) -> None:
        """Keeps an error, or counts it."""
        if len(self.errors) < _MAX_LISTED_ERRORS:
            self.errors.append(batches.locate_error(index, error))
        else:
            self.not_listed += 1

    def format_errors(self, name: str) -> dict[str, Any]:
        """The errors as members of an answer."""
        return {name: self.errors, "not_listed": self.not_listed} if self.not_listed else {name: self.errors}


@dataclass(slots=True)
class _IntakeRequest:
    """A request whose sender is known: its body, plain, and how its documents are read."""

    caller: Caller
    body: bytes
    headers: Mapping[str, str]
    form: Form
    read: _Read
    partial: bool
    trace: str | None


class Intake:
    """Takes change events of the source systems that ``sync.yaml`` names."""

    def __init__(self, database: ApiDatabase, config: Config, access: Access) -> None:
        self._database = database
        self._config = config
        self._access = access
        self._signatures = Signatures(config)
        self._group_commit = GroupCommit(database.engine, SECONDS)
        self._throttle = IntakeThrottle({name: source.events_per_second for name, source in config.sources.items()})
        self._turns = Turns()
        limits = config.limits
        self._caps = Caps(limits.events_per_request, limits.event_bytes)
        under_way = max(limits.bodies_bytes, 4 * limits.request_bytes)
        self._bodies = ByteBudget(under_way, under_way // 2)
        self._unproven = ByteBudget(max(limits.unproven_bytes, limits.request_bytes + _UNPROVEN_REQUEST_BYTES))

    async def close(self) -> None:
        """Closes the connections of the group commit."""
        await self._group_commit.aclose()

    def build_routes(self) -> list[Route]:
        """The routes that take change events."""
        return [
            Route("/v1/events", self.receive_events, methods=["POST"]),
            Route("/v1/sources/{source}/events", self.own_events, methods=["POST"]),
        ]

    async def receive_events(self, request: Request) -> Response:
        """Takes one CloudEvent or a batch: 202 once they are committed.

        Whole or not at all, unless ``?partial=true``.
        """
        return await self._answer_request(request, None)

    async def own_events(self, request: Request) -> Response:
        """The same for events in the own shape of a source system that has ``events`` in ``sync.yaml``."""
        return await self._answer_request(request, request.path_params["source"])

    async def _answer_request(self, request: Request, source: str | None) -> Response:
        partial = _read_flag(request, "partial")
        limit = self._config.limits.request_bytes
        headers = _read_headers(request)
        claim = self._signatures.read_claim(headers, source)
        if claim is None:
            caller = await self._access.caller_by(headers, "" if request.client is None else request.client.host)
            if source is None:
                require_any_events(caller)
            else:
                require_scope(caller, f"events:{source}")
            self._check_source(source)
            with self._bodies.begin_reservation(caller.name) as reservation:
                body = await bodies.read_body(request, limit, reservation)
                return await self._answer_sent(caller, None, body, headers, source, partial=partial)
        if BINARY in headers:
            raise Refused(
                400, "A signature covers no headers, so a signed event must be a JSON document, not binary mode."
            )
        with self._unproven.begin_reservation("", _UNPROVEN_REQUEST_BYTES) as reservation:
            body = await bodies.read_body(request, limit, reservation)
            if len(body) > _THREAD_BYTES:
                caller = await asyncio.to_thread(claim.verify_signer, body)
            else:
                caller = claim.verify_signer(body)
        with self._bodies.begin_reservation(caller.name, len(body)):
            return await self._answer_sent(caller, claim, body, headers, source, partial=partial)

    def _check_source(self, source: str | None) -> None:
        system = None if source is None else self._config.sources.get(source)
        if source is not None and (system is None or system.events is None):
            raise Refused(404, "There is no source system of this name with events of its own shape.")

    async def _answer_sent(
        self,
        caller: Caller,
        claim: SignatureClaim | None,
        body: bytes,
        headers: Mapping[str, str],
        source: str | None,
        *,
        partial: bool,
    ) -> Response:
        """Takes what a known sender sent. ``claim``: its signature, which covers nothing of the headers."""
        coding = headers.get("content-encoding", "")
        with self._bodies.begin_reservation(caller.name, 0) as unpacked:
            if coding.strip().lower() not in ("", "identity"):
                unpacked.add_bytes(self._config.limits.request_bytes)
                body = await asyncio.to_thread(bodies.decode_body, body, coding, self._config.limits.request_bytes)
            if source is None:
                read: _Read = lambda document, at: change_event(document, self._config)  # noqa: E731
            else:
                read = self._reader_of(source, headers, claim)
            form = form_of_cloud_events(headers) if source is None else form_of_own_events(headers)
            sent = _IntakeRequest(caller, body, headers, form, read, partial, trace_of(headers.get("traceparent")))
            found = await self._read_body_events(sent)
            return await self._record_events(sent, found)

    def _reader_of(self, source: str, headers: Mapping[str, str], claim: SignatureClaim | None) -> _Read:
        """Returns how events of a source's custom format are read.

        A signed request is read by its body and its signed headers alone. Where its events have no ``id``, the id of
        the message is used, since a repeated request has that again.
        """
        seen = headers if claim is None else claim.headers

        def read_event(document: object, at: int | None) -> ChangeEvent | None:
            if not is_wanted(document, seen, source, self._config):
                return None
            ident = None if claim is None else claim.ident
            message = ident if ident is None or at is None else f"{ident}#{at}"
            return change_event_of(document, seen, source, self._config, message)

        return read_event

    async def _record_events(self, sent: _IntakeRequest, found: _Understood) -> Response:
        self._throttle.charge_events(found.sources)
        with self._database.refuse_on_failure():
            recorded = await self._group_commit.record_prepared(found.events)
        if recorded == _ONE_TAKEN and not (found.passed_over or sent.partial):
            return _TAKEN
        answer: dict[str, object] = {"accepted": recorded.accepted, "duplicates": recorded.duplicates}
        if found.passed_over:
            answer["passed_over"] = found.passed_over
        if sent.partial:
            answer.update(found.format_errors("refused"))
        return JSONResponse(answer, status_code=202)

    async def _read_body_events(self, sent: _IntakeRequest) -> _Understood:
        found = _Understood()
        if len(sent.body) <= _SMALL_BYTES:
            self._turns.give_way()
            for document in batches.documents_at_once(sent.body, sent.form, sent.headers, self._caps):
                self._read_into(found, sent, document)
        else:
            async with self._turns.make_turn(sent.caller.name) as turn:
                async for some in batches.documents_in_slices(sent.body, sent.form, sent.headers, self._caps, turn):
                    for document in some:
                        self._read_into(found, sent, document)
        if found.has_too_large and not sent.partial:
            raise Refused(413, "An event is too large; nothing was recorded.", **found.format_errors("errors"))
        if found.errors and (not sent.partial or not found.events):
            raise Refused(422, "Some events cannot be taken; nothing was recorded.", **found.format_errors("errors"))
        return found

    def _read_into(self, found: _Understood, sent: _IntakeRequest, document: EventDocument) -> None:
        """Raises Refused (403) for an event of a source that the sender may not send for."""
        if document.is_too_large:
            found.has_too_large = True
            found.add_error(document.at or 0, InvalidEvent(f"has more than {self._caps.event_bytes} bytes"))
            return
        try:
            event = sent.read(document.value, document.at)
        except InvalidEvent as error:
            found.add_error(document.at or 0, error)
            return
        if event is None:
            found.passed_over += 1
            return
        if event.source not in found.sources:
            require_scope(sent.caller, f"events:{event.source}")
        found.sources[event.source] += 1
        if sent.trace is not None and not event.trace:
            event = replace(event, trace=sent.trace)
        found.events.append(prepare_event(event))


_ONE_TAKEN = Recorded(1, 0)
_TAKEN = JSONResponse({"accepted": 1, "duplicates": 0}, status_code=202)
"""The answer to nearly every request with one event, made once."""


def _read_headers(request: Request) -> dict[str, str]:
    """The headers by their names in small letters, decoded once; of those sent twice the first."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(request.headers.raw)}


def _read_flag(request: Request, name: str) -> bool:
    value = request.query_params.get(name, "false") if request.scope["query_string"] else "false"
    if value not in ("true", "false"):
        raise Refused(400, f"The parameter {name} must be true or false.")
    return value == "true"

"""The way of a route to the third party: the call, one more try of a read, and what callers see of the answer."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Prepared
from sync_orchestrator.adapters.http.read_retries import may_pass_soon
from sync_orchestrator.adapters.http.responses import Answer, condition_picks, find_value
from sync_orchestrator.api.database import ApiDatabase, describe_failure
from sync_orchestrator.api.problems import Refused, make_problem
from sync_orchestrator.api.proxy.request import ProxyRequest
from sync_orchestrator.api.proxy.shared_state import SharedState
from sync_orchestrator.config import RouteSettings
from sync_orchestrator.core.operations import records
from sync_orchestrator.core.values.mapping import Mapping as PayloadMapping
from sync_orchestrator.core.values.names import to_nfc
from sync_orchestrator.errors import CallFailed, Failure, MappingFailed, Refusal
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.templates import TemplateFailed

_log = logging.getLogger("sync_orchestrator.api")

_LARGE = 65_536
_NO_USE = "The third party's answer cannot be used."
_SERVED_FROM = {"X-Served-From": "archive"}


class NotSent(Refused):
    """Refused before anything could be done at the third party."""


class ThirdPartyPath:
    """One route's. ``mapping``: of its entity, where the archive may answer."""

    def __init__(
        self,
        name: str,
        route: RouteSettings,
        http: HttpClient,
        database: ApiDatabase,
        known: SharedState,
        mapping: PayloadMapping | None,
    ) -> None:
        self._name = name
        self._route = route
        self._http = http
        self._database = database
        self._known = known
        self._mapping = mapping
        self._answer = compile_selector(route.answer)

    async def answer_request(self, asked: ProxyRequest) -> Response:
        """What the caller gets. Raises Refused: NotSent where nothing can have been done."""
        try:
            values = asked.build_template_values(self._route)
        except Refused as error:
            raise NotSent(error.status, error.detail, error.headers) from None
        read_from = self._route.read_from
        if read_from is not None and read_from.archive == "always":
            return await self._answer_from_archive(values, None)
        try:
            return await self._within_time(values)
        except Refused as error:
            if read_from is None or error.status < 500:
                raise
            return await self._answer_from_archive(values, error)

    async def _within_time(self, values: Mapping[str, object]) -> Response:
        try:
            async with asyncio.timeout(self._route.timeout):
                return await self._call_third_party(values)
        except TimeoutError:
            raise self._respond_unreachable() from None
        except SQLAlchemyError as error:  # the rate, the hold-off and the logins are kept there
            said = describe_failure(error)
            _log.warning("route %s: %s (%s)", self._name, said, type(error).__name__)
            raise NotSent(503, said) from None

    async def _call_third_party(self, values: Mapping[str, object]) -> Response:
        if self._route.third_party in (await self._known.read_snapshot()).open_breakers:
            raise NotSent(503, "The third party does not answer; try again later.")
        try:
            body = None if self._route.is_read else values.get("body")
            prepared = self._http.prepare_request(self._route.call, values, body)
        except CallFailed:
            raise NotSent(400, "What was sent does not fit this route.") from None
        answer, failure = await self._try_call(replace(prepared, most=self._route.answer_bytes))
        if failure is not None:
            raise self._make_refusal(failure, answer)
        assert answer is not None
        try:
            large = len(answer.content) > _LARGE
            return await asyncio.to_thread(self._build_response, answer) if large else self._build_response(answer)
        except CallFailed as error:
            _log.warning("route %s: %s", self._name, error.detail)
            raise Refused(502, _NO_USE) from None

    async def _try_call(self, prepared: Prepared) -> tuple[Answer | None, CallFailed | None]:
        latest = time.monotonic() + self._route.timeout
        answer: Answer | None
        failure: CallFailed | None
        for last in (False, True) if self._route.is_read else (True,):
            try:
                answer, failure = await self._http.send_and_classify(
                    prepared, write=not self._route.is_read, deadline=latest, latest=latest
                )
            except CallFailed as error:
                answer, failure = None, error
            if failure is None or last or not may_pass_soon(failure):
                return answer, failure
            await asyncio.sleep(random.uniform(0.02, 0.1))
        raise AssertionError("unreachable")

    def _build_response(self, answer: Answer) -> Response:
        """A good answer as callers know it. Raises CallFailed where it is another than was thought."""
        document = self._http.search_document(self._answer, answer.document)
        if document is None and answer.body is None and answer.content.strip() not in (b"", b"null"):
            raise self._http.build_unusable_failure("the answer is no JSON", answer.text)
        status = self._route.status or (answer.status if 200 <= answer.status < 300 else 200)
        if status in (204, 205):
            return Response(status_code=status)
        try:
            return _make_json_response(document, status)
        except ValueError:
            raise self._http.build_unusable_failure("no JSON can be made of the answer", answer.text) from None

    def _make_refusal(self, failure: CallFailed, answer: Answer | None) -> Refused:
        for rule in self._route.errors if answer is not None else ():
            assert answer is not None
            if condition_picks(rule.when, answer.document):
                return Refused(rule.status, rule.detail, None, **({"code": rule.code} if rule.code else {}))
        refused = self._by_meaning(failure)
        if refused.status >= 500:
            _log.warning("route %s: %s", self._name, failure.detail)
        return refused

    def _by_meaning(self, failure: CallFailed) -> Refused:
        nothing_done = failure.status is None and not failure.unknown
        if failure.kind is Failure.THROTTLED:
            after = {"Retry-After": str(math.ceil(failure.retry_after))} if failure.retry_after else None
            refused = NotSent if nothing_done else Refused
            return refused(503, "The third party asks to be left alone; try again later.", after)
        if failure.kind is Failure.AUTH:
            return Refused(502, "The third party does not let this service in.")
        if failure.kind is Failure.TRANSIENT:
            if nothing_done:
                return NotSent(503, "The third party cannot be reached; try again later.")
            return (
                self._respond_unreachable()
                if failure.status is None
                else Refused(
                    502,
                    "The third party failed."
                    if self._route.is_read
                    else "The third party failed; it may have been done all the same.",
                )
            )
        if failure.refusal is Refusal.MISSING:
            return Refused(404, "The third party has no such thing.")
        if failure.may_be_duplicate or failure.may_be_conflict or failure.kind is Failure.REFERENCE:
            return Refused(409, "It does not fit what the third party holds by now.")
        if failure.refusal is Refusal.TOO_LARGE:
            return Refused(413, "The third party does not take so much at once.")
        if failure.status is None or 300 <= failure.status < 400:
            return Refused(502, _NO_USE)
        return Refused(422, "The third party refused what was sent.")

    def _respond_unreachable(self) -> Refused:
        return Refused(
            504,
            "The third party did not answer in time."
            if self._route.is_read
            else "The third party did not answer in time; it may have been done all the same.",
        )

    async def _answer_from_archive(self, values: Mapping[str, object], instead_of: Refused | None) -> Response:
        """From the archive; the failure where that does not know the record either. Raises Refused."""
        settings, entity, mapping = self._route.read_from, self._route.entity, self._mapping
        assert settings is not None
        assert entity is not None
        assert mapping is not None

        def find_archived() -> records.Archived | None:
            with self._database.engine.begin() as connection:
                return records.read_archived(connection, entity, key, mapping)

        try:
            key = to_nfc(templates.render_text(settings.key, values))
            record = None if "\x00" in key else await self._database.run_in_thread(find_archived)
        except TemplateFailed:
            raise NotSent(400, "What was sent does not fit this route.") from None
        except MappingFailed:
            record = None
        if record is None or record.payload is None:
            if record is None and instead_of is not None:
                raise instead_of
            return make_problem(404, "The archive has no such record.", _SERVED_FROM)
        shown = find_value(
            settings.answer, {"payload": record.payload, "key": key, "group": record.group, "revision": record.revision}
        )
        response = _make_json_response(shown, 200)
        response.headers.update({**_SERVED_FROM, "X-Archive-Revision": str(record.revision)})
        if record.applied_at is not None:
            response.headers["X-Archive-Applied-At"] = record.applied_at.isoformat()
        return response


def _make_json_response(document: object, status: int) -> Response:
    """Raises ValueError for what is no JSON."""
    text = exact_json.dump_text(document)
    return Response(text.encode("utf-8", "replace"), status, media_type="application/json")

"""The one place that makes HTTP calls: templates filled in, deadlines, no redirects, and every failure classed once."""

from __future__ import annotations

import asyncio
import logging
import reprlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import aiohttp
import httpx
from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, stop_before_delay

from sync_orchestrator.adapters.http.auth import Proof, auth_of
from sync_orchestrator.adapters.http.call_room import Room
from sync_orchestrator.adapters.http.origins import is_below, origin_of, shown_origin
from sync_orchestrator.adapters.http.prepared_calls import Outgoing, Prepared, Values, drop_empty, encode_content
from sync_orchestrator.adapters.http.read_retries import READ_ATTEMPTS, may_pass, wait_before_retry
from sync_orchestrator.adapters.http.responses import (
    About,
    Answer,
    condition_picks,
    failure_of,
    rule_for,
    sanitize_text,
)
from sync_orchestrator.adapters.http.retry_after import RequestedWait, pause_of, wait_of
from sync_orchestrator.adapters.http.transport import Received, Wire
from sync_orchestrator.adapters.http.unpacking import ResponseTooLarge, ResponseUnreadable
from sync_orchestrator.config import CountCallSettings, ListCallSettings, OutcomeRule, RequestSettings
from sync_orchestrator.config import HttpSettings as HttpSettings
from sync_orchestrator.core import tracing
from sync_orchestrator.core.ports import TOO_OLD
from sync_orchestrator.core.systems.call_limit import GATEWAY_STATUSES, CallLimit
from sync_orchestrator.core.systems.claim_holders import is_over
from sync_orchestrator.core.systems.login_sessions import LoginStore
from sync_orchestrator.core.systems.rate_limit import HoldOff
from sync_orchestrator.errors import CallFailed, Failure
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.templates import TemplateFailed
from sync_orchestrator.texts.masking import words_in

logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells each URL, and secrets may stand in a query

_log = logging.getLogger("sync_orchestrator.http")

_NEVER_CONNECTED = (httpx.ConnectError, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxdict, _SHORT.maxlist, _SHORT.maxtuple = 10, 100, 100, 100
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = 2000


class HttpClient:
    """Calls to one system.

    ``before_call`` is awaited before each call: the shared rate limit plugs in there. ``hold_off`` keeps how long the
    system asked to be left alone, ``logins`` what its logins gave; this process alone knows of both unless told.
    ``limit`` is how many calls it gets at once. Error
    texts hold what came, but never a secret: of the settings, of a login, or one of ``secrets``.
    """

    def __init__(
        self,
        settings: HttpSettings,
        before_call: Callable[[], Awaitable[None]] | None = None,
        *,
        hold_off: HoldOff | None = None,
        logins: LoginStore | None = None,
        secrets: Sequence[str] = (),
        limit: CallLimit | None = None,
    ) -> None:
        self.concurrency = settings.concurrency
        self.outcomes = settings.outcomes
        self._settings = settings
        self._hold_off = hold_off or HoldOff()
        self.limit = limit
        self._room = Room(before_call, self._hold_off, limit)
        self._further_secrets = tuple(secrets)
        self._auth = auth_of(settings, self, logins)
        self._masked: tuple[tuple[str, ...] | None, tuple[str, ...]] = None, ()
        self._wire = Wire(
            settings.base_url, settings.headers, connections=settings.concurrency, timeout=settings.timeout
        )

    async def read(
        self,
        request: RequestSettings,
        values: Values,
        outcomes: Sequence[OutcomeRule] = (),
        *,
        about: About | None = None,
    ) -> Answer:
        """A reading call; what may pass is tried again a few times, since reading twice is harmless.

        No attempt begins after one call's deadline, so that a read within a lease ends in twice that time (a login in
        between may take its own). A wait that the system asks for is kept if it fits in, else left to the caller.
        Raises CallFailed.
        """
        prepared = self.prepare_request(request, values)
        return await self.send_with_retries(prepared if about is None else replace(prepared, about=about), outcomes)

    async def follow_address(
        self, url: str, like: RequestSettings, values: Values, outcomes: Sequence[OutcomeRule] = ()
    ) -> Answer:
        """Reads an absolute address that this system itself named; the rest is as of ``like``.

        Only addresses below ``base_url`` and of ``next_origins`` are read, since credentials go with the call. Raises
        CallFailed.
        """
        try:
            target = self._resolve_followed_address(httpx.URL(url))
        except httpx.InvalidURL as error:
            raise self.build_unusable_failure(f"the next page has no address ({error})", url) from None
        return await self.send_with_retries(
            replace(self.prepare_request(like, values), url=str(target), params={}), outcomes
        )

    def _resolve_followed_address(self, target: httpx.URL) -> httpx.URL:
        """The address to request for one that a listing names. Raises CallFailed."""
        base = httpx.URL(self._settings.base_url)
        if target.userinfo:
            bare = self.sanitize_text(shown_origin(target.copy_with(userinfo=b"")))
            raise CallFailed(
                Failure.TRANSIENT,
                f"the address of the next page, on {bare}, holds a user name or a "
                "password; it is not requested with them",
                about_system=True,
            )
        ways = {origin_of(httpx.URL(origin)): way for origin, way in self._settings.next_origins.items()}
        way = ways.get(origin_of(target))
        if way == "follow":
            return target
        if way == "rewrite":
            target = target.copy_with(scheme=base.scheme, netloc=base.netloc)
        if origin_of(target) == origin_of(base):
            if is_below(target.raw_path, base.raw_path):
                return target
            raise CallFailed(
                Failure.TRANSIENT,
                f"the next page is not below base_url: {self.sanitize_text(target.path)}. Shorten base_url "
                "to what all paths have in common, or set 'next_origins: "
                f'{{"{self.sanitize_text(shown_origin(base))}": follow}}'
                "' of this system to request any path there, with our credentials",
                about_system=True,
            )
        there = self.sanitize_text(shown_origin(target))
        raise CallFailed(
            Failure.TRANSIENT,
            f"the next page is on another origin: {there}, and base_url is "
            f"{self.sanitize_text(shown_origin(base))}. Set 'next_origins: {{\"{there}\": rewrite}}' of this system to "
            "request such pages from base_url, or 'follow' to request them there, with our credentials",
            about_system=True,
        )

    async def send(
        self,
        request: RequestSettings,
        values: Values,
        *,
        write: bool,
        outcomes: Sequence[OutcomeRule] = (),
        deadline: float | None = None,
        body: object = None,
        about: About = "record",
    ) -> Answer:
        """Makes one call, once.

        ``deadline``: the monotonic time before which it must begin. ``body`` goes where the request has none of its
        own. Raises CallFailed.
        """
        prepared = replace(self.prepare_request(request, values, body), about=about)
        return await self.send_prepared(prepared, outcomes, write=write, deadline=deadline)

    async def send_prepared(
        self, prepared: Prepared, outcomes: Sequence[OutcomeRule] = (), *, write: bool, deadline: float | None = None
    ) -> Answer:
        """The same as ``send`` for a call that is filled in already. Raises CallFailed."""
        latest = time.monotonic() + self._settings.timeout
        return await self._send_or_raise(
            prepared,
            outcomes,
            write=write,
            deadline=deadline,
            latest=latest if deadline is None else min(latest, deadline),
        )

    async def log_in(self) -> None:
        """Has what goes with a call, by a login where that takes one. Raises CallFailed."""
        await self._auth.get_proof()

    async def close(self) -> None:
        """Ends this event loop's connections."""
        await self._wire.close()

    def build_unusable_failure(
        self, what: str, came: object, *, write: bool = False, about_system: bool = False
    ) -> CallFailed:
        """A response that is not what was requested; it may be another next time.

        ``about_system``: it says nothing about the record, such as one that is not JSON.
        """
        text = came if isinstance(came, str) else _SHORT.repr(came)
        return CallFailed(
            Failure.TRANSIENT, f"{what}: {self.sanitize_text(text)}", unknown=write, about_system=about_system
        )

    def has_rule(self, answer: Answer, request: RequestSettings, outcomes: Sequence[OutcomeRule] = ()) -> bool:
        """Whether a rule of the configuration says what this response means."""
        return rule_for(answer, self._collect_rules(request, outcomes)) is not None

    def sanitize_text(self, text: str) -> str:
        """Text for an error message: on one line, clipped, without secrets."""
        return sanitize_text(text, self._secrets)

    def search_document(self, expression: ParsedResult, document: object, *, write: bool = False) -> Any:
        """What stands in an answer at a place. Raises CallFailed where the expression cannot work on it."""
        try:
            return expression.search(document)
        except JMESPathError:
            raise self.build_unusable_failure(
                f"'{expression.expression}' does not fit the answer", document, write=write
            ) from None

    def prepare_request(
        self, request: RequestSettings, values: Values, body: object = None, *, base_url: str | None = None
    ) -> Prepared:
        """A call with its templates filled in, to this system or to another base address. Raises CallFailed."""
        try:
            path = templates.render_path(request.path, values)
            params = {name: templates.render_text(text, values) for name, text in request.params.items()}
            headers = {name: templates.render_text(text, values) for name, text in request.headers.items()}
            content = templates.render_value(request.body, values) if request.body is not None else body
        except TemplateFailed as error:
            raise CallFailed(Failure.PERMANENT, self.sanitize_text(str(error))) from None
        if request.method == "DELETE" and not all(params.values()):
            empty = next(name for name, text in params.items() if not text)
            raise CallFailed(Failure.PERMANENT, f"a delete is not sent without its '{empty}'")
        for name, text in headers.items():
            if not (text.isascii() and text.isprintable()):
                raise CallFailed(Failure.PERMANENT, f"header '{name}' can hold printable ASCII only")
        url = path if base_url is None else base_url.rstrip("/") + path
        about: About = "collection" if isinstance(request, ListCallSettings | CountCallSettings) else "record"
        return Prepared(request, url, drop_empty(params), drop_empty(headers), content, about=about)

    async def failure_of(
        self,
        answer: Answer,
        request: RequestSettings,
        outcomes: Sequence[OutcomeRule] = (),
        *,
        write: bool = False,
        about: About = "record",
    ) -> CallFailed | None:
        """The failure that an answer stands for; what it asks for in waiting is kept from here on."""
        throttle = self._settings.throttle
        try:
            wait = wait_of(answer, throttle)
            failure = failure_of(
                answer,
                self._collect_rules(request, outcomes),
                write=write,
                about=about,
                secrets=self._secrets,
                retry_after=None if wait is None else wait.seconds,
            )
        except Exception as error:  # the third stage: the call was made, so its outcome is unknown
            _log.exception("a response could not be understood")
            return CallFailed(
                Failure.TRANSIENT,
                f"answer {answer.status} cannot be understood: {self._describe_error(error)}",
                status=answer.status,
                unknown=write,
            )
        try:
            await self._note_waiting(answer, failure, wait)
        except Exception as error:  # the call was made: what came of it must not be lost with a note about waiting
            _log.warning("a wait that was requested could not be shared: %s", type(error).__name__)
        return failure

    async def _note_waiting(self, answer: Answer, failure: CallFailed | None, wait: RequestedWait | None) -> None:
        """Keeps what an answer says about waiting, for all calls to the system."""
        if failure is not None and failure.kind is Failure.THROTTLED:
            await self._hold_off.note_refused()
        elif answer.began:
            self._hold_off.note_served(answer.began)
        if failure is not None and failure.retry_after and wait is not None:
            await self._hold_off.hold_off_calls(failure.retry_after, self.sanitize_text(wait.why))
            return
        pause = pause_of(answer, self._settings.throttle)
        if pause is None or (failure is not None and failure.retry_after is not None):
            return
        if pause.by_header:
            await self._hold_off.ask_by_header(pause.seconds, pause.claimed, self.sanitize_text(pause.why))
        else:
            await self._hold_off.hold_off_calls(pause.seconds, self.sanitize_text(pause.why))

    async def exchange(
        self,
        prepared: Prepared,
        proof: Mapping[str, str],
        *,
        deadline: float | None = None,
        latest: float | None = None,
    ) -> Answer:
        """One call and whatever comes back, without a look at it.

        ``latest``: the monotonic time until which it may be held off, one call's deadline unless told. Raises
        CallFailed where there is no answer.
        """
        latest = time.monotonic() + self._settings.timeout if latest is None else latest
        async with self._room.begin_call(latest, write=prepared.request.method != "GET") as end:
            if is_over(deadline):
                raise CallFailed(Failure.THROTTLED, TOO_OLD)
            request = self._build_request(prepared, {**tracing.get_trace_headers(), **prepared.headers, **proof})
            began = time.monotonic()
            received = await self._exchange_request(request, prepared.most or self._settings.max_response_bytes)
            if received.status in GATEWAY_STATUSES and "retry-after" not in received.headers:
                end.unanswered = f"answer {received.status}"
        return Answer(received.status, received.headers, received.content, str(request.url), began)

    def _build_request(self, prepared: Prepared, headers: dict[str, str]) -> httpx.Request:
        """The request as it goes out; the first of the three stages of a call. Nothing was sent when it fails.

        Raises CallFailed, for anything that a value, a header or a signature of an adapter's may do.
        """
        try:
            request = self._wire.build_request(
                prepared.request.method,
                prepared.url,
                params=prepared.params or None,
                **encode_content(prepared.request, headers, prepared.content),
            )
            if prepared.sign is not None:
                request.headers.update(
                    prepared.sign(
                        Outgoing(
                            request.method, request.url.raw_path.decode("ascii"), dict(request.headers), request.content
                        )
                    )
                )
            return request
        except CallFailed:
            raise
        except httpx.InvalidURL as error:
            raise CallFailed(Failure.PERMANENT, f"no URL can be made: {self.sanitize_text(str(error))}") from None
        except Exception as error:
            _log.exception("a request could not be built")
            raise CallFailed(Failure.PERMANENT, f"the request cannot be built: {self._describe_error(error)}") from None

    async def _exchange_request(self, request: httpx.Request, max_bytes: int) -> Received:
        """Sends a request and reads the response; the second stage.

        Whether it was carried out is unknown after most failures. Raises CallFailed, for anything that a response may
        do to the libraries that read it.
        """
        try:
            async with asyncio.timeout(self._settings.timeout):
                return await self._wire.fetch_response(request, max_bytes)
        except TimeoutError:
            within = f"no answer within {self._settings.timeout:g} s"
            raise CallFailed(Failure.TRANSIENT, within, unknown=True, about_system=True) from None
        except ResponseTooLarge:
            raise CallFailed(
                Failure.PERMANENT,
                f"an answer of more than {max_bytes} bytes, the most that is read of one",
                unknown=True,
            ) from None
        except ResponseUnreadable as error:
            raise CallFailed(
                Failure.TRANSIENT,
                f"an answer that cannot be read: {self.sanitize_text(str(error))}",
                unknown=True,
                about_system=True,
            ) from None
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise _build_no_response_failure(error) from None
        except Exception as error:
            _log.exception("a response could not be read")
            raise CallFailed(
                Failure.TRANSIENT, f"no usable answer: {self._describe_error(error)}", unknown=True, about_system=True
            ) from None

    def _describe_error(self, error: Exception) -> str:
        return self.sanitize_text(f"{type(error).__name__}: {error}")

    async def send_with_retries(self, prepared: Prepared, outcomes: Sequence[OutcomeRule] = ()) -> Answer:
        """The same as ``read`` for a call that is filled in already. Raises CallFailed."""
        latest = time.monotonic() + self._settings.timeout
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(may_pass),
            wait=wait_before_retry,
            reraise=True,
            stop=stop_after_attempt(READ_ATTEMPTS) | stop_before_delay(self._settings.timeout),
        ):
            with attempt:
                return await self._send_or_raise(prepared, outcomes, write=False, deadline=None, latest=latest)
        raise AssertionError("unreachable")

    async def _send_or_raise(
        self, prepared: Prepared, outcomes: Sequence[OutcomeRule], *, write: bool, deadline: float | None, latest: float
    ) -> Answer:
        """The same as ``send_and_classify``, a failure being raised."""
        answer, failure = await self.send_and_classify(
            prepared, outcomes, write=write, deadline=deadline, latest=latest
        )
        if failure is not None:
            raise failure
        return answer

    async def send_and_classify(
        self,
        prepared: Prepared,
        outcomes: Sequence[OutcomeRule] = (),
        *,
        write: bool,
        deadline: float | None = None,
        latest: float | None = None,
    ) -> tuple[Answer, CallFailed | None]:
        """Makes one call; returns the response, and the failure that it stands for.

        Makes another call where the response to the first says that its login is over. Raises CallFailed without a
        response.
        """

        async def try_call(proof: Proof) -> tuple[Answer, CallFailed | None]:
            answer = await self.exchange(prepared, proof.headers, deadline=deadline, latest=latest)
            return answer, await self.failure_of(answer, prepared.request, outcomes, write=write, about=prepared.about)

        proof = await self._auth.get_proof()
        answer, failure = await try_call(proof)
        if failure is not None and self._login_over(failure, answer, prepared.request, outcomes):
            renewed = await self._auth.renew_proof(proof)
            if renewed is not None:
                proof = renewed
                answer, failure = await try_call(proof)
        if failure is None:
            self._auth.note_accepted(proof)
        return answer, failure

    def _login_over(
        self, failure: CallFailed, answer: Answer, request: RequestSettings, outcomes: Sequence[OutcomeRule]
    ) -> bool:
        """Whether another login may fix it: by a 401, or by a rule (a 403 without one is a matter of rights)."""
        return failure.kind is Failure.AUTH and (
            answer.status == 401
            or any(
                rule.means == "auth" and condition_picks(rule.when, answer.document)
                for rule in self._collect_rules(request, outcomes)
            )
        )

    def _collect_rules(self, request: RequestSettings, outcomes: Sequence[OutcomeRule]) -> list[OutcomeRule]:
        return [*request.outcomes, *outcomes, *self._settings.outcomes]

    @property
    def _secrets(self) -> tuple[str, ...]:
        told, masked = self._masked
        if told is not self._auth.secrets:
            told, masked = (
                self._auth.secrets,
                words_in([*self._settings.headers.values(), *self._auth.secrets, *self._further_secrets]),
            )
            self._masked = told, masked
        return masked


def _build_no_response_failure(error: Exception) -> CallFailed:
    """httpx-aiohttp tells a refused connection as a time-out, so the error below it decides."""
    if isinstance(error, _NEVER_CONNECTED) or isinstance(error.__cause__, _NEVER_CONNECTED):
        return CallFailed(Failure.TRANSIENT, "no connection", about_system=True)
    return CallFailed(
        Failure.TRANSIENT, f"no answer ({type(error.__cause__ or error).__name__})", unknown=True, about_system=True
    )

"""The one place that makes HTTP calls: deadlines, no redirects, and every failure classed once.

The client is httpx on aiohttp's transport, whose connection pool stays fast with many connections. Not here: what is
asked of which system (``rest_source.py``, ``rest_third_party.py``).
"""

from __future__ import annotations

import asyncio
import json
import re
import string
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NoReturn
from urllib.parse import quote
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from sync_orchestrator.config import Http as HttpSettings
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.ports import TOO_OLD

_SHOWN = 300
_READ_ATTEMPTS = 4
_SHORTEST_SECRET = 4
_MAY_BE_EMPTY = {"after", "cursor"}
_NEVER_CONNECTED = (httpx.ConnectError, aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class Http:
    """Calls to one system.

    ``before_call`` is awaited before each call: the shared rate limit plugs in there. Error texts hold what came, but
    never the value of a configured header.
    """

    def __init__(self, settings: HttpSettings, before_call: Callable[[], Awaitable[None]] | None = None) -> None:
        self.concurrency = settings.concurrency
        self._settings = settings
        self._before_call = before_call
        self._secrets = _secrets(settings.headers.values())
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    async def read(self, path: str, params: Mapping[str, str]) -> Any:
        """A GET whose answer is JSON; what may pass is tried again a few times, since reading twice is harmless.

        No attempt begins after one call's deadline, so that a read within a lease ends in twice that time. Raises
        CallFailed.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(_READ_ATTEMPTS) | stop_after_delay(self._settings.timeout),
            wait=wait_random_exponential(multiplier=0.1, max=2), reraise=True,
        ):
            with attempt:
                return self._document(await self._send("GET", path, params, None, {}), write=False)
        raise AssertionError("unreachable")

    async def write(
        self, method: str, path: str, params: Mapping[str, str], body: Any, headers: Mapping[str, str], *,
        deadline: float | None = None,
    ) -> Any:
        """One writing call, begun before the monotonic time ``deadline``; the answer's JSON, or None without a body.

        Raises CallFailed.
        """
        response = await self._send(method, path, params, body, headers, deadline)
        return self._document(response, write=True) if response.content else None

    async def close(self) -> None:
        """Ends this event loop's connections."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def garbage(self, what: str, came: Any, *, write: bool = False) -> CallFailed:
        """An answer that is not what was asked for; it may be another next time."""
        return CallFailed(Failure.TRANSIENT, f"{what}: {self.shown(repr(came))}", unknown=write)

    def shown(self, text: str) -> str:
        """Text for an error message: on one line, clipped, without the values of configured headers."""
        return shown(text, self._secrets)

    def search(self, expression: ParsedResult, document: Any) -> Any:
        """What stands in an answer at a place. Raises CallFailed where the expression cannot work on it."""
        try:
            return expression.search(document)
        except JMESPathError:
            raise self.garbage(f"'{expression.expression}' does not fit the answer", document) from None

    async def _send(
        self, method: str, path: str, params: Mapping[str, str], body: Any, headers: Mapping[str, str],
        deadline: float | None = None,
    ) -> httpx.Response:
        if self._before_call is not None:
            await self._before_call()
        if deadline is not None and time.monotonic() > deadline:
            raise CallFailed(Failure.THROTTLED, TOO_OLD)
        try:
            async with asyncio.timeout(self._settings.timeout):
                response = await self._client().request(
                    method, path, params=dict(params) or None, headers=dict(headers),
                    json=body if body is not None else None,
                )
        except TimeoutError:
            within = f"no answer within {self._settings.timeout:g} s"
            raise CallFailed(Failure.TRANSIENT, within, unknown=True) from None
        except httpx.InvalidURL as error:
            raise CallFailed(Failure.PERMANENT, f"no URL can be made: {self.shown(str(error))}") from None
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise _no_answer(error) from None
        failure = classed(response, write=method != "GET", secrets=self._secrets)
        if failure is not None:
            raise failure
        return response

    def _document(self, response: httpx.Response, *, write: bool) -> Any:
        try:
            return json.loads(response.content, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            raise self.garbage("the answer is not JSON", response.text, write=write) from None

    def _client(self) -> httpx.AsyncClient:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            limits = httpx.Limits(max_connections=self._settings.concurrency,
                                  max_keepalive_connections=self._settings.concurrency)
            client = httpx.AsyncClient(
                base_url=self._settings.base_url, headers=self._settings.headers, follow_redirects=False,
                timeout=self._settings.timeout, transport=AiohttpTransport(limits=limits),
            )
            self._clients[loop] = client
        return client


def classed(response: httpx.Response, *, write: bool, secrets: Sequence[str] = ()) -> CallFailed | None:
    """The failure an answer stands for, or None for a good one.

    What a 5xx did before it failed is unknown for a write; a 503 that names a time to come back did nothing (without
    one it may be a gateway's, which lost the answer).
    """
    status = response.status_code
    if 200 <= status < 300:
        return None
    detail = f"answer {status}: {shown(response.text, secrets)}"
    if 300 <= status < 400:
        where = shown(response.headers.get("location", "nowhere"), secrets)
        return CallFailed(Failure.PERMANENT, f"answer {status}: redirects to {where}, which is not followed",
                          status=status)
    if status in (401, 403):
        return CallFailed(Failure.AUTH, detail, status=status)
    if status == 429:
        return CallFailed(Failure.THROTTLED, detail, status=status, retry_after=retry_after(response))
    if status == 408 or status >= 500:
        later = retry_after(response)
        return CallFailed(Failure.TRANSIENT, detail, status=status, retry_after=later,
                          unknown=write and not (status == 503 and later is not None))
    return CallFailed(Failure.PERMANENT, detail, status=status, duplicate=status == 409,
                      missing=status in (404, 410))


def retry_after(response: httpx.Response) -> float | None:
    """The seconds that ``Retry-After`` asks for, told as seconds or as a date (RFC 9110); None for anything else."""
    text = response.headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text, re.ASCII):
        return float(text)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def filled(template: str, values: Mapping[str, str | None], *, in_path: bool) -> str:
    """A template with its ``{placeholders}`` filled in, percent-encoded in a path.

    Raises CallFailed for a value that would make the path that of another resource: nothing, ``.`` or ``..``.
    """
    pieces = []
    for text, name, _, _ in string.Formatter().parse(template):
        pieces.append(text)
        if name is None:
            continue
        value = values.get(name) or ""
        if in_path and not value and name not in _MAY_BE_EMPTY:
            raise CallFailed(Failure.PERMANENT, f"nothing to put for {{{name}}} in the path {template}")
        pieces.append(quote(value, safe="", errors="replace") if in_path else value)
    whole = "".join(pieces)
    if in_path and not {".", ".."}.isdisjoint(whole.split("/")):
        raise CallFailed(Failure.PERMANENT, f"'.' and '..' cannot stand in the path {template}")
    return whole


def shown(text: str, secrets: Sequence[str] = ()) -> str:
    """What came, on one line, clipped, without the given secrets."""
    for secret in secrets:
        text = text.replace(secret, "***")
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"


def _secrets(values: Any) -> tuple[str, ...]:
    """Header values and their words (of ``Bearer abc`` also ``abc``), the longest first."""
    words = {word for value in values for word in (value, *value.split()) if len(word) >= _SHORTEST_SECRET}
    return tuple(sorted(words - {"Bearer", "Basic"}, key=len, reverse=True))


def _no_answer(error: Exception) -> CallFailed:
    """httpx-aiohttp tells a refused connection as a time-out, so the error below it decides."""
    if isinstance(error, _NEVER_CONNECTED) or isinstance(error.__cause__, _NEVER_CONNECTED):
        return CallFailed(Failure.TRANSIENT, "no connection")
    return CallFailed(Failure.TRANSIENT, f"no answer ({type(error.__cause__ or error).__name__})", unknown=True)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, CallFailed) and error.kind is Failure.TRANSIENT and error.retry_after is None


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) != float("inf") else _refuse(text)

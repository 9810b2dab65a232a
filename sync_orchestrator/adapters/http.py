"""The one place that makes HTTP calls: deadlines, no redirects, and every failure classed once.

The client is httpx on aiohttp's transport, whose connection pool stays fast with many connections. Not here: what is
asked of which system (``rest_source.py``, ``rest_third_party.py``).
"""

from __future__ import annotations

import asyncio
import json
import string
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote
from weakref import WeakKeyDictionary

import httpx
from httpx_aiohttp import AiohttpTransport
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from sync_orchestrator.config import Http as HttpSettings
from sync_orchestrator.core.errors import CallFailed, Failure

_SHOWN = 300
_READ_ATTEMPTS = 4


class Http:
    """Calls to one system.

    ``before_call`` is awaited before each call: the shared rate limit plugs in there.
    """

    def __init__(self, settings: HttpSettings, before_call: Callable[[], Awaitable[None]] | None = None) -> None:
        self._settings = settings
        self._before_call = before_call
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient] = WeakKeyDictionary()

    async def read(self, path: str, params: Mapping[str, str]) -> Any:
        """A GET whose answer is JSON; what may pass is tried again a few times, since reading twice is harmless.

        Raises CallFailed.
        """
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_pass), stop=stop_after_attempt(_READ_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.1, max=2), reraise=True,
        ):
            with attempt:
                return _document(await self._send("GET", path, params, None, {}), write=False)
        raise AssertionError("unreachable")

    async def write(
        self, method: str, path: str, params: Mapping[str, str], body: Any, headers: Mapping[str, str]
    ) -> Any:
        """One writing call; the answer's JSON, or None where it has no body. Raises CallFailed."""
        return _document(await self._send(method, path, params, body, headers), write=True)

    async def close(self) -> None:
        """Ends this event loop's connections."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _send(
        self, method: str, path: str, params: Mapping[str, str], body: Any, headers: Mapping[str, str]
    ) -> httpx.Response:
        if self._before_call is not None:
            await self._before_call()
        try:
            async with asyncio.timeout(self._settings.timeout):
                response = await self._client().request(
                    method, path, params=dict(params) or None, headers=dict(headers),
                    json=body if body is not None else None,
                )
        except TimeoutError:
            raise _no_answer(f"no answer within {self._settings.timeout:g} s", landed=True) from None
        except httpx.ConnectError:
            raise _no_answer("no connection", landed=False) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _no_answer(f"no answer ({type(error).__name__})", landed=True) from None
        failure = classed(response, write=method != "GET")
        if failure is not None:
            raise failure
        return response

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


def classed(response: httpx.Response, *, write: bool) -> CallFailed | None:
    """The failure an answer stands for, or None for a good one.

    What a 5xx did before it failed is unknown for a write; a 503 says that it did nothing.
    """
    status = response.status_code
    if 200 <= status < 300:
        return None
    detail = f"answer {status}: {_shown(response.text)}"
    if 300 <= status < 400:
        where = response.headers.get("location", "nowhere")
        return CallFailed(Failure.PERMANENT, f"answer {status}: redirects to {where}, which is not followed",
                          status=status)
    if status in (401, 403):
        return CallFailed(Failure.AUTH, detail, status=status)
    if status == 429:
        return CallFailed(Failure.THROTTLED, detail, status=status, retry_after=retry_after(response))
    if status == 408 or status >= 500:
        return CallFailed(Failure.TRANSIENT, detail, status=status, retry_after=retry_after(response),
                          unknown=write and status != 503)
    return CallFailed(Failure.PERMANENT, detail, status=status, duplicate=status == 409,
                      missing=status in (404, 410))


def retry_after(response: httpx.Response) -> float | None:
    """The seconds that ``Retry-After`` asks for, told as seconds or as a date (RFC 9110)."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def filled(template: str, values: Mapping[str, str | None], *, in_path: bool) -> str:
    """A template with its ``{placeholders}`` filled in, percent-encoded in a path."""
    pieces = []
    for text, name, _, _ in string.Formatter().parse(template):
        pieces.append(text)
        if name is not None:
            value = values.get(name) or ""
            pieces.append(quote(value, safe="") if in_path else value)
    return "".join(pieces)


def garbage(what: str, came: Any, *, write: bool = False) -> CallFailed:
    """An answer that is not what was asked for; it may be another next time."""
    return CallFailed(Failure.TRANSIENT, f"{what}: {_shown(repr(came))}", unknown=write)


def _document(response: httpx.Response, *, write: bool) -> Any:
    if not response.content:
        return None
    try:
        return json.loads(response.content)
    except (ValueError, RecursionError):
        raise garbage("the answer is not JSON", response.text, write=write) from None


def _no_answer(detail: str, *, landed: bool) -> CallFailed:
    return CallFailed(Failure.TRANSIENT, detail, unknown=landed)


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, CallFailed) and error.kind is Failure.TRANSIENT


def _shown(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _SHOWN else plain[:_SHOWN] + "…"

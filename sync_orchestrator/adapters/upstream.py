"""A system that calls are passed through to as they came: method, path, query, headers and body.

Not here: calls that are filled in and understood (``http.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx

from sync_orchestrator.adapters.wire import Transport, capped
from sync_orchestrator.core.errors import CallFailed, Failure

Headers = list[tuple[str, str]]

_OF_ONE_HOP = {"connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
               "trailer", "transfer-encoding", "upgrade", "expect", "host", "content-length", "accept-encoding"}
_FORWARDING = {"forwarded", "via", "x-real-ip", "x-original-url", "x-rewrite-url", "x-original-host",
               "x-host", "true-client-ip", "x-client-ip", "x-http-method-override", "x-method-override"}
_OF_THE_ANSWER = _OF_ONE_HOP - {"accept-encoding"} | {"content-encoding", "date", "server"}
_CONNECTIONS = 100


@dataclass(frozen=True, slots=True, repr=False)
class Passed:
    """What came back; its headers as they may go on."""

    status: int
    headers: Headers
    content: bytes


class _Transport(Transport):
    """Adds no header of its own, and keeps no cookie of one caller for the next."""

    def made_with(self) -> dict[str, Any]:
        return {**super().made_with(), "skip_auto_headers": ("Accept", "User-Agent")}


class Upstream:
    """``headers`` go with each call, in place of the caller's own of these names."""

    def __init__(self, base_url: str, headers: dict[str, str], timeout: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = headers
        self._timeout = timeout
        self._client: httpx.AsyncClient | None = None

    async def call(self, method: str, target: str, headers: Iterable[tuple[str, str]], content: bytes, most: int
                   ) -> Passed:
        """One call; ``target`` is path and query as they go out. Redirects are not followed. Raises CallFailed."""
        own = {name.lower() for name in self._headers}
        sent = [(name, text) for name, text in passed_on(headers, _OF_ONE_HOP) if name.lower() not in own]
        try:
            async with asyncio.timeout(self._timeout):
                client = self._opened()
                told = httpx.Headers([*sent, *self._headers.items(), ("Accept-Encoding", "identity")], "latin-1")
                request = httpx.Request(method, self._base_url + target, content=content, headers=told)
                response = await client.send(request, stream=True)
                body = await capped(response, most)
        except TimeoutError:
            raise CallFailed(Failure.TRANSIENT, "no answer in time", unknown=True) from None
        except (ValueError, httpx.InvalidURL) as error:  # what was sent holds what cannot be said in HTTP
            raise CallFailed(Failure.PERMANENT, f"cannot be sent ({type(error).__name__})") from None
        except (httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            raise CallFailed(Failure.TRANSIENT, f"no answer ({type(error).__name__})", unknown=True) from None
        if body is None:
            raise CallFailed(Failure.PERMANENT, f"an answer of more than {most} bytes", unknown=True)
        return Passed(response.status_code, passed_on(response.headers.multi_items(), _OF_THE_ANSWER), body)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            limits = httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS)
            self._client = httpx.AsyncClient(follow_redirects=False, timeout=self._timeout,
                                             transport=_Transport(limits=limits))
        return self._client


def passed_on(headers: Iterable[tuple[str, str]], left_out: Iterable[str]) -> Headers:
    """Headers without those of one hop, those that tell of forwarding, and those that ``Connection`` names."""
    told = [(name, text) for name, text in headers]
    named = {word.strip().lower() for name, text in told if name.lower() == "connection" for word in text.split(",")}
    gone = {*left_out, *named, *_FORWARDING}
    return [(name, text) for name, text in told
            if name.lower() not in gone and not name.lower().startswith("x-forwarded-")]

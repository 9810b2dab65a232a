"""How a request goes over the wire: httpx's requests and answers on aiohttp's connections, one pool for an event loop.

The pool stays fast with many connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode
from weakref import WeakKeyDictionary

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from httpx_aiohttp.transport import map_aiohttp_exceptions
from yarl import URL

from sync_orchestrator.adapters.http.certificates import trusted_certificates
from sync_orchestrator.adapters.http.response_budget import budget_of_loop
from sync_orchestrator.adapters.http.unpacking import ACCEPTED, Unpacker


class Wire:
    """Sends requests to paths below ``base_url``; ``headers`` go with each, ``timeout`` is each wait's, in seconds."""

    def __init__(self, base_url: str, headers: Mapping[str, str], *, connections: int, timeout: float) -> None:
        self._base_url = base_url.rstrip("/")
        self._limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._headers = headers
        self._timeout = timeout
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, _Client] = WeakKeyDictionary()
        self._last: _Client | None = None

    def build_request(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        **body: object,
    ) -> httpx.Request:
        """A request to a path, or to an absolute address. Raises httpx.InvalidURL."""
        return self._get_client().build_request(
            self._base_url + url if url.startswith("/") else url, method, params, headers, body
        )

    async def fetch_response(self, request: httpx.Request, max_bytes: int) -> Received:
        """What comes back, of at most this number of bytes once it is unpacked; redirects are not followed.

        Raises ResponseTooLarge, ResponseUnreadable, httpx.HTTPError, aiohttp.ClientError, OSError.
        """
        return await self._get_client().fetch_response(request, max_bytes)

    async def close(self) -> None:
        """Ends this event loop's connections."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        self._last = None
        if client is not None:
            await client.close()

    def _get_client(self) -> _Client:
        loop = asyncio.get_running_loop()
        if self._last is not None and self._last.loop is loop:
            return self._last
        client = self._clients.get(loop)
        if client is None:
            transport = Transport(verify=trusted_certificates(), limits=self._limits)
            client = _Client(loop, transport, self._headers, self._timeout)
            self._clients[loop] = client
        self._last = client
        return client


@dataclass(frozen=True, slots=True)
class Received:
    """An answer; ``headers`` by lower-case name."""

    status: int
    headers: dict[str, str]
    content: bytes


class _Client:
    """httpx's own client would merge addresses and look for cookies at each call, at a third of the call's cost.

    No cookie is kept from one call to the next (rule 27): a session that a login gives is sent by ``auth.headers``.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, transport: Transport, headers: Mapping[str, str], timeout: float
    ) -> None:
        self.loop = loop
        self._transport = transport
        client = httpx.AsyncClient(headers={"Accept-Encoding": ACCEPTED, **headers}, transport=transport)
        self._headers = {name.lower(): (name, text) for name, text in client.headers.items()}
        self._extensions = {"timeout": httpx.Timeout(timeout).as_dict()}

    def build_request(
        self,
        url: str,
        method: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str],
        body: Mapping[str, Any],
    ) -> httpx.Request:
        own = {name.lower(): (name, text) for name, text in headers.items()}
        return httpx.Request(
            method,
            with_params(url, params or {}),
            headers=list({**self._headers, **own}.values()),
            extensions=self._extensions,
            **body,
        )

    async def fetch_response(self, request: httpx.Request, max_bytes: int) -> Received:
        return await self._transport.fetch_response(request, max_bytes)

    async def close(self) -> None:
        await self._transport.aclose()


def with_params(url: str, params: Mapping[str, str]) -> httpx.URL:
    """An address with more parameters in its query; one of the same name replaces that of the address.

    A blank is ``%20``: every server reads it, and some refuse ``+`` outside of forms. Raises httpx.InvalidURL,
    UnicodeEncodeError.
    """
    found = httpx.URL(url)
    if not params:
        return found
    query = found.query.decode("ascii")
    if any(name in params for name in httpx.QueryParams(query)):
        query = _encode_query([pair for pair in httpx.QueryParams(query).multi_items() if pair[0] not in params])
    return found.copy_with(query="&".join(filter(None, (query, _encode_query(params.items())))).encode())


def _encode_query(pairs: Iterable[tuple[str, str]]) -> str:
    return urlencode(list(pairs), quote_via=quote, safe="")


class Transport(AiohttpTransport):
    """Sends an address as it is written; aiohttp's own way would decode ``;``, ``'`` and others in it again.

    It keeps no cookies.
    """

    def get_client(self) -> aiohttp.ClientSession:
        """Makes the session of aiohttp, with the limits of this transport and without a cookie jar."""
        connector = aiohttp.TCPConnector(
            limit=self.limits.max_connections or 0, ssl=self.ssl_context, keepalive_timeout=self.limits.keepalive_expiry
        )
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def fetch_response(self, request: httpx.Request, max_bytes: int) -> Received:
        """The response without httpx's object for it, unpacked."""
        with map_aiohttp_exceptions():
            answer = await self._begin_request(request)
            try:
                headers = _decode_headers(answer)
                unpacker = Unpacker(headers.get("content-encoding", ""), max_bytes)
                with budget_of_loop().open_share() as share:
                    while block := await answer.content.readany():
                        for size_bytes in unpacker.unpack_block(block):
                            await share.grow_to(size_bytes)
                    return Received(answer.status, headers, unpacker.finish_body())
            except BaseException:
                answer.close()  # the rest of it is not wanted
                raise

    async def _begin_request(self, request: httpx.Request) -> aiohttp.ClientResponse:
        if not isinstance(self.client, aiohttp.ClientSession):
            self.client = self.get_client()
        waits = request.extensions.get("timeout", {})
        return await self.client.request(
            request.method,
            URL(str(request.url), encoded=True),
            headers=request.headers,
            data=request.content or None,
            allow_redirects=False,
            auto_decompress=False,
            compress=False,
            timeout=aiohttp.ClientTimeout(
                sock_connect=waits.get("connect"), sock_read=waits.get("read"), connect=waits.get("pool")
            ),
        )


def _decode_headers(answer: aiohttp.ClientResponse) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw, text in answer.raw_headers:
        name = raw.decode("latin-1").lower()
        headers[name] = f"{headers[name]}, {_decode_text(text)}" if name in headers else _decode_text(text)
    return headers


def _decode_text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")

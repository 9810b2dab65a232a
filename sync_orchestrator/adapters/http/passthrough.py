"""Passes a request through to a legacy upstream: method, path, query, body and an allow list of headers."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from sync_orchestrator.adapters.http.certificates import trusted_certificates
from sync_orchestrator.adapters.http.unpacking import CODINGS, ResponseTooLarge, ResponseUnreadable, Unpacker
from sync_orchestrator.config.routes import HOP_BY_HOP_HEADERS, normalize_header_name
from sync_orchestrator.errors import CallFailed, Failure

RawHeaders = list[tuple[bytes, bytes]]
"""Headers as they are on the wire: names and values are bytes."""

_log = logging.getLogger("sync_orchestrator.http")

# The service sends a Date of its own; Alt-Svc would lead callers past the service.
_NOT_FOR_CALLERS = HOP_BY_HOP_HEADERS | {"date", "server", "alt-svc", "forwarded", "via"}
_WITHOUT_BODY = (204, 205, 304)
_OTHER_CODINGS = {"br", "zstd", "compress", "x-compress", "dcb", "dcz"}
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_ALLOWED_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_ADDED_ON_THE_WAY = re.compile(r"forwarded|via$|x-forwarded|x-real-ip|cf-|sec-|x-api-key$")
_MAX_CONNECTIONS = 100
_KEEP_ALIVE_SECONDS = 5
_MAX_WITHHELD_NAMES = 20


@dataclass(frozen=True, slots=True, repr=False)
class Passed:
    """A response of the upstream; ``headers`` are those that callers may get, as bytes."""

    status: int
    headers: RawHeaders
    content: bytes


class Upstream:
    """Passes requests to the paths below ``base_url``.

    ``headers`` are sent with each request and replace those of the caller, whichever way the caller spells their names.
    ``passes`` names the headers of a caller that are passed on. ``timeout`` is the deadline of a request in seconds.
    """

    def __init__(self, base_url: str, headers: dict[str, str], timeout: float, passes: Collection[str]) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = headers
        self._timeout = timeout
        own = {normalize_header_name(name) for name in headers}
        self._passes = {name.lower() for name in passes} - own - HOP_BY_HOP_HEADERS
        self._withheld: set[str] = own | HOP_BY_HOP_HEADERS
        self._most_withheld = len(self._withheld) + _MAX_WITHHELD_NAMES
        self._session: aiohttp.ClientSession | None = None

    async def pass_request(
        self, method: str, target: str, headers: Iterable[tuple[bytes, bytes]], content: bytes, most: int
    ) -> Passed:
        """Sends one request and reads its response of at most ``most`` bytes, before and after decompression.

        ``target`` is path and query as they go out. Redirects are not followed. Raises CallFailed: permanent and not
        unknown where the request cannot be sent, transient where no response came, permanent and unknown where the
        response cannot be passed on.
        """
        try:
            sent = self._select_headers(list(headers))
            url = URL(self._base_url + target, encoded=True)
        except ValueError as error:
            raise CallFailed(Failure.PERMANENT, f"cannot be sent ({type(error).__name__})") from None
        try:
            async with asyncio.timeout(self._timeout):
                async with self._open_session().request(
                    method, url, headers=sent, data=content or None, allow_redirects=False
                ) as response:
                    _check_response(response)
                    body = await _read_body(response, most)
                    if method == "HEAD" or response.status in _WITHOUT_BODY:
                        response.close()  # a body sent all the same would be read as the response to the next caller
                return _build_passed(method, response, body, most)
        except CallFailed:
            raise
        except (TimeoutError, aiohttp.ClientConnectorError) as error:
            raise CallFailed(Failure.TRANSIENT, f"no response ({type(error).__name__})", unknown=True) from None
        except Exception as error:  # libraries raise errors of many kinds for what is not HTTP
            raise _build_unusable_failure(f"{type(error).__name__}") from None

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _select_headers(self, headers: RawHeaders) -> CIMultiDict[str]:
        """The headers that go out. Raises ValueError for values that aiohttp would send as other bytes."""
        gone = _named_by_connection(headers)
        sent: CIMultiDict[str] = CIMultiDict()
        cookies: list[bytes] = []
        for raw_name, raw in headers:
            name = raw_name.decode("latin-1").lower()
            if name not in self._passes:
                self._note_withheld(name)
            elif name in gone:
                continue
            elif name == "cookie":
                cookies.append(raw)
            else:
                sent.add(raw_name.decode("ascii"), raw.decode())
        if cookies:  # HTTP/2 may split them, HTTP/1.1 has one header (RFC 9113, 8.2.3)
            sent["cookie"] = b"; ".join(cookies).decode()
        sent.update(self._headers)
        sent["Accept-Encoding"] = "identity"
        return sent

    def _note_withheld(self, name: str) -> None:
        """Logs each name once, so that an operator who moves traffic here learns what the upstream misses."""
        if (
            name in self._withheld
            or len(self._withheld) >= self._most_withheld
            or not name.replace("-", "").isalnum()
            or not name.isascii()
            or _ADDED_ON_THE_WAY.match(name)
        ):
            return
        self._withheld.add(name)
        _log.warning(
            "the header %s of a caller is not passed on to %s; if it is needed there, list it under "
            "legacy.pass_headers",
            name,
            self._base_url,
        )

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=_MAX_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_SECONDS, ssl=trusted_certificates()
            )
            # No cookie of one caller is kept for the next, and no header is added that nobody sent.
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=aiohttp.ClientTimeout(),
                skip_auto_headers=("Accept", "User-Agent", "Content-Type"),
            )
        return self._session


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[str]:
    return {
        normalize_header_name(word.strip())
        for name, value in headers
        if name.lower() == b"connection"
        for word in value.decode("latin-1").split(",")
    }


def _check_response(response: aiohttp.ClientResponse) -> None:
    """Raises CallFailed for a response that may not be passed on, or whose end is not certain."""
    if not 200 <= response.status <= 599:
        raise _build_unusable_failure(f"status {response.status}")
    codings = [value.strip().lower() for name, value in response.raw_headers if name.lower() == b"transfer-encoding"]
    lengths = {value.strip() for name, value in response.raw_headers if name.lower() == b"content-length"}
    if codings not in ([], [b"chunked"]) or (codings and lengths) or len(lengths) > 1:
        raise _build_unusable_failure("Transfer-Encoding and Content-Length leave the end of the response uncertain")
    if not all(length.isdigit() for length in lengths):
        raise _build_unusable_failure("Content-Length is not a number")


async def _read_body(response: aiohttp.ClientResponse, most: int) -> bytes:
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > most:
            response.close()
            raise _too_large(most)
    return bytes(content)


def _build_passed(method: str, response: aiohttp.ClientResponse, body: bytes, most: int) -> Passed:
    left_out = _NOT_FOR_CALLERS | _named_by_connection(response.raw_headers)
    headers = [
        (name.lower(), value)
        for name, value in response.raw_headers
        if _NAME.fullmatch(name)
        and not _NOT_ALLOWED_IN_VALUES.search(value)
        and normalize_header_name(name.decode("latin-1")) not in left_out
    ]
    if method == "HEAD":
        lengths = [value for name, value in response.raw_headers if name.lower() == b"content-length"]
        return Passed(response.status, headers + [(b"content-length", value.strip()) for value in lengths[:1]], b"")
    if response.status in _WITHOUT_BODY:
        return Passed(response.status, headers, b"")
    codings = [
        word.strip().lower()
        for value in response.headers.getall("Content-Encoding", [])
        for word in value.split(",")
        if word.strip().lower() not in ("", "identity")
    ]
    if not body or (codings and codings[-1] in _OTHER_CODINGS):
        return Passed(response.status, headers, body)
    if len(codings) > 1 or (codings and codings[0] not in CODINGS):
        raise _build_unusable_failure("an unknown Content-Encoding")
    if codings:
        body = _unpack_body(body, codings[0], most)
    return Passed(response.status, [(name, value) for name, value in headers if name != b"content-encoding"], body)


def _unpack_body(body: bytes, coding: str, most: int) -> bytes:
    """Raises CallFailed where the body is not what its Content-Encoding says, or larger than ``most`` bytes."""
    unpacker = Unpacker(coding, most)
    try:
        for _ in unpacker.unpack_block(body):
            pass
        return unpacker.finish_body()
    except ResponseTooLarge:
        raise _too_large(most) from None
    except ResponseUnreadable as error:
        raise _build_unusable_failure(str(error)) from None


def _too_large(most: int) -> CallFailed:
    return _build_unusable_failure(f"a response of more than {most} bytes")


def _build_unusable_failure(why: str) -> CallFailed:
    return CallFailed(Failure.PERMANENT, f"the response cannot be passed on: {why}", unknown=True)

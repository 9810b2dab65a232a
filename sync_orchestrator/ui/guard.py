"""An ASGI middleware that lets only the UI's own pages, and clients that are no browsers, reach the UI.

Four checks, for HTTP and for WebSockets:

* **Host**: loopback, or a configured name. Stops pages that rebind their own name to this machine.
* **Origin** and **Sec-Fetch-Site**: browsers state which page a request comes from. Any page but our own is refused.
  Links may still open a page of the UI, because that returns HTML without data and changes nothing.
* **Content type**: requests that can change something must be ``application/json``, which a form cannot send and a page
  of another origin cannot send without permission. This also covers browsers that state nothing.
* **No GraphQL by GET**: an image or a link could send it.

Responses forbid frames of other pages, so that no click in the UI can be stolen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from starlette.datastructures import MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sync_orchestrator.texts.host_names import (
    AllowedHosts,
    Host,
    InvalidHost,
    Origin,
    header_values,
    port_without_default,
    read_host,
)

GRAPHQL_PATH = "/graphql"
MAX_LOGGED_REFUSALS = 50

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_WEBSOCKET_POLICY_VIOLATION = 1008
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class UiRefusal:
    """Why a request is refused."""

    status: int
    reason: str


class UiGuard:
    """Refuses requests that pages of other origins can make a browser send."""

    def __init__(
        self, app: ASGIApp, hosts: AllowedHosts, public_origins: frozenset[Origin], is_page: Callable[[Scope], bool]
    ) -> None:
        """Puts the guard around an application.

        ``public_origins``: where the UI is for its users, if a proxy is before it. ``is_page``: whether a request is
        for the HTML of the UI, and not for data.
        """
        self._app = app
        self._hosts = hosts
        self._public_origins = public_origins
        self._is_page = is_page
        self._logged: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with security headers added to the response, or refuses it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self.find_refusal(scope)
        if refusal is None:
            await self._app(scope, receive, _with_security_headers(send))
            return
        self._log_refusal(refusal)
        if scope["type"] == "websocket":
            await _refuse_websocket(refusal, scope, receive, send)
        else:
            response = PlainTextResponse(refusal.reason + "\n", refusal.status)
            await response(scope, receive, _with_security_headers(send))

    def find_refusal(self, scope: Scope) -> UiRefusal | None:
        """Why a request of type ``http`` or ``websocket`` is refused, or None if it is accepted."""
        try:
            host = read_host(scope["headers"])
        except InvalidHost as error:
            return UiRefusal(400, f"Invalid Host header: {error}.")
        if host is None:
            return UiRefusal(400, "A Host header is required.")
        if not self._hosts.allows(host):
            return UiRefusal(
                421,
                f"The UI does not answer for the host '{host}'. To allow it, add it to "
                "ui.allowed_hosts in sync.yaml and restart.",
            )
        return self._check_origin(scope, host) or self._check_site(scope) or _check_form(scope)

    def _check_origin(self, scope: Scope, host: Host) -> UiRefusal | None:
        origins = header_values(scope["headers"], b"origin")
        if not origins:
            return None
        origin = Origin.parse(origins[0])
        if len(origins) > 1 or origin is None or not self._is_own_origin(origin, host, scope):
            return UiRefusal(
                403,
                "Refused: the request comes from a page of another origin. Behind a proxy that changes "
                "Host, set alerts.ui_url in sync.yaml to the public URL of the UI and restart.",
            )
        return None

    def _is_own_origin(self, origin: Origin, host: Host, scope: Scope) -> bool:
        if origin in self._public_origins:
            return True
        port = port_without_default(host.port, origin.scheme)
        if (origin.name, origin.port) != (host.name, port):
            return False
        schemes = {public.scheme for public in self._public_origins if (public.name, public.port) == (host.name, port)}
        if schemes:
            return False  # it is known here by another scheme alone
        # Without a port, http and https of this machine are two services. Elsewhere a proxy may do TLS before us.
        is_secure = scope.get("scheme") in ("https", "wss")
        return not (host.is_loopback and host.port is None and (origin.scheme == "https") != is_secure)

    def _check_site(self, scope: Scope) -> UiRefusal | None:
        sites = header_values(scope["headers"], b"sec-fetch-site")
        if not sites or sites == ["same-origin"]:
            return None
        if sites == ["none"] and self._is_opened(scope, by_user=True):
            return None
        if sites in (["cross-site"], ["same-site"]) and self._is_opened(scope, by_user=False):
            return None
        return UiRefusal(
            403, "Refused: only pages of the UI itself may request this. Open the UI's start page instead."
        )

    def _is_opened(self, scope: Scope, *, by_user: bool) -> bool:
        """Whether a tab opens a page: by the address bar or a bookmark (``by_user``), or by a link of another page.

        Both are harmless: the page is HTML without data. A login proxy sends users back by such a link.
        """
        if scope["type"] != "http" or scope["method"] != "GET":
            return False
        given = [header_values(scope["headers"], name) for name in (b"sec-fetch-mode", b"sec-fetch-dest")]
        if given != [["navigate"], ["document"]] and not (by_user and given == [[], []]):
            return False
        if scope["path"] == GRAPHQL_PATH:
            accepted = header_values(scope["headers"], b"accept")
            return by_user and any("text/html" in value for value in accepted)  # the playground; queries: _check_form
        return self._is_page(scope)

    def _log_refusal(self, refusal: UiRefusal) -> None:
        if refusal.reason not in self._logged and len(self._logged) < MAX_LOGGED_REFUSALS:
            self._logged.add(refusal.reason)
            _LOG.warning("%s %s", refusal.status, refusal.reason)


def _check_form(scope: Scope) -> UiRefusal | None:
    """Refuses what forms, images and links can send although it may change something."""
    if scope["type"] == "websocket":
        return None
    if scope["method"] in _SAFE_METHODS:
        if scope["path"] == GRAPHQL_PATH and scope["query_string"]:
            return UiRefusal(405, "Send GraphQL by POST, as application/json.")
        return None
    kinds = header_values(scope["headers"], b"content-type")
    if len(kinds) != 1 or kinds[0].partition(";")[0].strip(" \t").lower() != "application/json":
        return UiRefusal(415, "Requests that can change something must have one header Content-Type: application/json.")
    return None


async def _refuse_websocket(refusal: UiRefusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Refuses the handshake, with the reason where the server can send one."""
    await receive()
    if "websocket.http.response" in scope.get("extensions", {}):
        body = (refusal.reason + "\n").encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await send({"type": "websocket.http.response.start", "status": refusal.status, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})
    else:
        await send({"type": "websocket.close", "code": _WEBSOCKET_POLICY_VIOLATION, "reason": "refused"})


def _with_security_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Frame-Options"] = "DENY"
            headers.append("Content-Security-Policy", "frame-ancestors 'none'")  # beside Dagster's: both apply
            headers["Cross-Origin-Opener-Policy"] = "same-origin"
            headers["Cross-Origin-Resource-Policy"] = "same-origin"
            headers["X-Content-Type-Options"] = "nosniff"
        await send(message)

    return send_with_headers

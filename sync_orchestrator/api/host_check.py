"""An ASGI middleware that answers requests without a key only under hosts that are allowed.

The other calls need a key, which no web page has. The open ones could be read by a page that rebinds its own name to
this machine, so they accept IP addresses, ``localhost`` and the names in ``api.allowed_hosts``.
"""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from sync_orchestrator.api.problems import make_problem
from sync_orchestrator.texts.host_names import AllowedHosts, InvalidHost, read_host

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""Paths that need no key."""


class HostCheck:
    """Refuses requests of open paths under other hosts: 421, or 400 where ``Host`` is malformed.

    Without a ``Host`` header a request passes: no browser sends that, and load balancers that speak HTTP/1.0 do.
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Iterable[str]) -> None:
        """``allowed_hosts``: names besides ``localhost`` and IP addresses. Raises InvalidHost."""
        self._app = app
        self._hosts = AllowedHosts(allowed_hosts, all_addresses=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, or refuses it."""
        if scope["type"] == "http" and scope["path"] in OPEN_PATHS:
            try:
                host = read_host(scope["headers"])
            except InvalidHost:
                await make_problem(400, "Invalid Host header.")(scope, receive, send)
                return
            if host is not None and not self._hosts.allows(host):
                detail = "Unknown host. Add its name to api.allowed_hosts in sync.yaml, or use an IP address."
                await make_problem(421, detail)(scope, receive, send)
                return
        await self._app(scope, receive, send)

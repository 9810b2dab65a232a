"""Who calls: an API key in the request, or a body signed with a source system's secret.

Not here: how keys are made and kept (``core/access.py``).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping

from standardwebhooks import Webhook
from starlette.requests import Request

from sync_orchestrator.api.database import Database
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import Config
from sync_orchestrator.core.access import Caller, find

_REMEMBERED_SECONDS = 5.0
_MOST_REMEMBERED = 10_000
_SIGNATURE = "webhook-signature"


class Access:
    """Tells callers by their keys. A key that is revoked is good for five more seconds at most."""

    def __init__(self, database: Database, config: Config) -> None:
        self._database = database
        self._known: OrderedDict[str, tuple[float, Caller | None]] = OrderedDict()
        self._signed = {name: [Webhook(str(secret)) for secret in source.webhook_secrets]
                        for name, source in config.sources.items() if source.webhook_secrets}

    async def caller(self, headers: Mapping[str, str]) -> Caller:
        """Whose key the request shows, in ``Authorization: Bearer …`` or ``X-API-Key``. Raises Refused (401)."""
        key = _key(headers)
        caller = None if key is None else await self._caller_of(key)
        if caller is None:
            detail = "This key is not good." if key else "An API key is needed: Authorization: Bearer <key>."
            raise Refused(401, detail, {"WWW-Authenticate": "Bearer"})
        return caller

    async def authorise(self, request: Request, scope: str) -> Caller:
        """The caller, if its key covers the scope. Raises Refused (401, 403)."""
        caller = await self.caller(request.headers)
        require(caller, scope)
        return caller

    async def sender(self, headers: Mapping[str, str]) -> Caller | None:
        """Who sends events, by its key; None where the body will tell, since it is signed. Raises Refused (401)."""
        return None if self._signed and _SIGNATURE in headers else await self.caller(headers)

    def signer(self, headers: Mapping[str, str], body: bytes) -> Caller:
        """Who signed a body, as it was sent. Raises Refused (401)."""
        sources = [name for name, secrets in self._signed.items()
                   if any(_verifies(secret, body, headers) for secret in secrets)]
        if not sources:
            raise Refused(401, "The signature does not fit the body, the time or any secret of a source system.",
                          {"WWW-Authenticate": "Bearer"})
        return Caller(f"the signature of {sources[0]}", frozenset(f"events:{name}" for name in sources))

    async def _caller_of(self, key: str) -> Caller | None:
        now = time.monotonic()
        if (known := self._known.get(key)) is not None and known[0] > now:
            return known[1]
        caller = await self._database.ask(lambda: self._look_up(key))
        self._known[key] = (now + _REMEMBERED_SECONDS, caller)
        self._known.move_to_end(key)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return caller

    def _look_up(self, key: str) -> Caller | None:
        with self._database.engine.begin() as connection:
            return find(connection, key)


def require(caller: Caller, scope: str) -> None:
    """Raises Refused (403) where the caller's key does not cover the scope."""
    if not caller.may(scope):
        raise Refused(403, "This key does not cover what is asked.")


def _key(headers: Mapping[str, str]) -> str | None:
    kind, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if kind.lower() == "bearer" else headers.get("x-api-key")


def _verifies(secret: Webhook, body: bytes, headers: Mapping[str, str]) -> bool:
    try:
        secret.verify(body, dict(headers), json_parse=False)
    except Exception:  # it raises errors of many kinds, for what is not base64, not ASCII, not UTF-8, without a comma…
        return False
    return True

"""The HTTP client for custom adapters: calls that the configuration does not describe.

Deadlines, logins, the shared rate, requested waits and the masking of secrets are those of ``adapters/http/client.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Prepared, Sign
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.config import RequestSettings
from sync_orchestrator.config.calls import Method
from sync_orchestrator.errors import CallFailed


@dataclass(frozen=True, slots=True)
class Writing:
    """A write is under way; ``deadline``: the monotonic time before which each of its calls must begin.

    ``creates``: it makes a record, so that a POST is sent to the collection.
    """

    deadline: float | None
    creates: bool = False


writing: ContextVar[Writing | None] = ContextVar("writing", default=None)
"""What the present task is asked to write; None while it reads."""


class Client:
    """Calls to one system. ``sign`` makes the headers that depend on the whole call."""

    def __init__(self, http: HttpClient, sign: Sign | None = None) -> None:
        self._http = http
        self._sign = sign

    async def call(
        self,
        method: Method,
        path: str,
        *,
        params: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        body: object = None,
        reads: bool | None = None,
    ) -> Answer:
        """One call; its answer is a good one.

        ``path`` stands below ``base_url`` and is sent as it is written: encode keys with ``quote(key, safe="")``.
        ``params`` are encoded; those that are None are left out. ``body``: bytes as they are, anything else as JSON.
        ``reads``: reading it again is harmless, so it is tried again a few times; unless told, of GET and HEAD, and of
        all calls outside of ``create``, ``update`` and ``delete``.

        Raises CallFailed: a 404 is ``missing``, a 409 ``duplicate`` and ``conflict``, and ``outcomes`` of the
        configuration come first. An HTML page, a redirect and a 404 to the POST of a ``create`` are states of the
        system: TRANSIENT.
        """
        prepared = Prepared(
            RequestSettings(method=method, path="/"),
            path,
            {name: str(value) for name, value in (params or {}).items() if value is not None},
            dict(headers or {}),
            body,
            self._sign,
        )
        write = writing.get()
        is_create = write is not None and write.creates and method == "POST"
        prepared = replace(prepared, about="collection" if is_create else "unknown")
        if (write is None or method in ("GET", "HEAD")) if reads is None else reads:
            return await self._http.send_with_retries(prepared)
        return await self._http.send_prepared(prepared, write=True, deadline=None if write is None else write.deadline)

    def garbage(self, what: str, came: object) -> CallFailed:
        """The failure of a good answer that is not what was asked for; of a write, one of unknown outcome."""
        return self._http.build_unusable_failure(what, came, write=writing.get() is not None)

    def shown(self, text: str) -> str:
        """Text for an error message: on one line, clipped, without secrets."""
        return self._http.sanitize_text(text)

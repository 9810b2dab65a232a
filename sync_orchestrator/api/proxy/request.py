"""A call of one of the proxy's routes, as its caller made it, and what templates may know of it."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.datastructures import Headers

from sync_orchestrator.api import bodies
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.config import RouteSettings
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.strict_json import parse

_OUR_KEYS = (b"authorization", b"x-api-key")
_QUERY = re.compile(r"[\x21-\x7e]*")
_MAX_PARAMETERS = 100


@dataclass(frozen=True, slots=True)
class ProxyRequest:
    """One request of a caller to the proxy, with its path and headers checked."""

    method: str
    path: str
    """In its one spelling, below ``/proxy``."""
    parts: dict[str, str]
    query: str
    headers: Headers
    body: bytes
    """As it was sent."""
    limit: int

    @property
    def target(self) -> str:
        """The path with the query, as a request line has it."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def sent_headers(self) -> list[tuple[bytes, bytes]]:
        """The caller's headers as bytes, without a key of this service."""
        return [
            (name, value) for name, value in self.headers.raw if not (name.lower() in _OUR_KEYS and b"sync_" in value)
        ]

    def refuse_ambiguous(self, route: RouteSettings) -> None:
        """Raises Refused (400) for a request that two servers may read in two ways.

        These are a header that may be there once and is there twice, a body of a ``GET``, which some servers take for
        the next request, and a query with bytes that are not printable ASCII.
        """
        if not _QUERY.fullmatch(self.query):
            raise Refused(400, "The query must be printable ASCII: percent-encode other characters as UTF-8.")
        names = Counter(name.decode("latin-1").lower() for name, _ in self.headers.raw)
        if repeated := [name for name in sorted(route.single_headers()) if names[name] > 1]:
            raise Refused(400, f"Send the header {repeated[0]} once.")
        if self.body and self.method in ("GET", "HEAD"):
            raise Refused(400, "A GET cannot have a body.")

    def build_template_values(self, route: RouteSettings) -> dict[str, Any]:
        """What templates of a route know. Raises Refused: 400, 413, 415."""
        known: dict[str, object] = {
            **self.parts,
            "query": {**dict.fromkeys(route.query), **self._read_parameters(route)},
            "headers": {name.lower(): self.headers.get(name) for name in route.headers},
        }
        if route.method != "GET":
            known["body"] = self._read_document()
        return known

    def _read_parameters(self, route: RouteSettings) -> dict[str, str]:
        try:
            told = parse_qsl(self.query, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS)
        except ValueError:
            raise Refused(400, "The query cannot be read.") from None
        found = dict(told)
        if len(found) != len(told) or not found.keys() <= set(route.query):
            raise Refused(400, "A parameter of the query is not known here, or stands there twice.")
        return found

    def _read_document(self) -> Any:
        if not self.body:
            return None
        kind = self.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise Refused(415, "Send application/json, in UTF-8.")
        try:
            return parse(bodies.decode_body(self.body, self.headers.get("content-encoding", ""), self.limit))
        except InvalidEvent:
            raise Refused(400, "The body cannot be read as JSON.") from None

"""A route of the proxy: what comes in, the call that goes out, what its answer becomes, and how traffic moves to it."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sync_orchestrator.config.call_checks import check_names
from sync_orchestrator.config.calls import RequestSettings
from sync_orchestrator.config.types import Expression, Model, Name, Seconds, Template
from sync_orchestrator.expressions.templates import names_in

_PART = re.compile(r"\{(\w+)\}")
_OF_EVERY_CALL = {"query", "headers", "body"}
_NEVER_A_NAME = {"authorization", "x-api-key", "proxy-authorization", "cookie"}

HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=100)]

HOP_BY_HOP_HEADERS = frozenset(
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "http2-settings",
        "expect",
        "host",
        "content-length",
        "accept-encoding",
    }
)
"""Headers that belong to one connection, or that the service sets itself. They are never passed on."""

PASSED_HEADERS = frozenset(
    {
        "accept",
        "accept-charset",
        "accept-language",
        "authorization",
        "baggage",
        "cache-control",
        "content-digest",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-md5",
        "content-type",
        "cookie",
        "digest",
        "dnt",
        "idempotency-key",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "origin",
        "pragma",
        "prefer",
        "range",
        "referer",
        "repr-digest",
        "soapaction",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-correlation-id",
        "x-request-id",
        "x-requested-with",
    }
)
"""The headers of a caller that ``legacy`` gets by default: end-to-end headers that carry no claim of a proxy."""

SINGLE_HEADERS = frozenset(
    {
        "authorization",
        "content-disposition",
        "content-length",
        "content-md5",
        "content-type",
        "host",
        "idempotency-key",
        "if-modified-since",
        "if-range",
        "if-unmodified-since",
        "origin",
        "range",
        "referer",
        "soapaction",
        "traceparent",
        "user-agent",
        "x-api-key",
        "x-correlation-id",
        "x-request-id",
        "x-requested-with",
    }
)
"""Headers that HTTP allows once. Of two, one server reads the first and the next one reads the last."""


def normalize_header_name(name: str) -> str:
    """Returns the name as servers compare it: CGI and WSGI make the same name of ``X_Key`` and ``X-Key``."""
    return name.lower().replace("_", "-")


class RouteErrorRule(Model):
    """An answer that is no success, as callers shall see it: problem details with a constant text."""

    when: Expression
    """True for the answers meant: a JMESPath over ``{status, body, text, headers}``, header names in lower case."""
    status: int = Field(ge=400, le=599)
    """What callers get."""
    detail: str = Field(min_length=1, max_length=300)
    """What they read; nothing is filled in."""
    code: str | None = Field(default=None, pattern=r"^[\w.-]+$", max_length=100)
    """For programs: the member ``code`` of the problem details."""


class ArchiveReadSettings(Model):
    """An archived record in place of the third party's answer, marked by the header ``X-Served-From: archive``."""

    archive: Literal["down", "always"] = "down"
    """``down``: where the breaker is open, no answer comes in time or it is a 5xx. ``always``: it is never asked."""
    key: Template
    """The record's key. Names: those of the call, but for ``body``."""
    answer: Expression = "payload"
    """What callers get: over ``{payload, key, group, revision}``, the payload being what the mapping makes."""


class LegacySettings(Model):
    """Where traffic goes that does not go to the third party yet: passed through as it is."""

    base_url: str = Field(pattern=r"^https?://")
    """The address that the route's path stands below."""
    headers: dict[
        Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")],
        Annotated[str, Field(pattern=r"^[\x20-\x7e]*$")],
    ] = Field(default={}, repr=False)
    """Sent with every call, in place of what the caller sent under these names. ``X_Key`` and ``X-Key`` are the same
    name."""
    pass_headers: list[HeaderName] = []
    """Further headers of a caller that are passed on. By default only those of HTTP itself that hold between both ends
    are passed, with ``Authorization`` and ``Cookie``, those under ``headers`` of the route, and that of
    ``rollout.by_header``."""
    timeout: Seconds = Field(default=10, gt=0)
    """The deadline of one call."""

    @model_validator(mode="after")
    def _check_headers(self) -> Self:
        if "@" in self.base_url.partition("://")[2].partition("/")[0]:
            raise ValueError("legacy.base_url: put credentials into legacy.headers: {Authorization: ...}")
        own = {normalize_header_name(name) for name in self.headers}
        if framing := own & (HOP_BY_HOP_HEADERS - {"host"}):
            raise ValueError(f"legacy.headers: '{min(framing)}' is set by the service itself; remove it")
        for name in self.pass_headers:
            if name.lower() in HOP_BY_HOP_HEADERS:
                raise ValueError(
                    f"legacy.pass_headers: '{name}' belongs to one connection and is never passed on; remove it"
                )
            if name.lower() in own:
                raise ValueError(f"legacy.pass_headers: '{name}' is set by legacy.headers; remove it from one of them")
        return self


class RolloutSettings(Model):
    """How traffic moves from ``legacy`` to the third party, and when it falls back by itself."""

    by_header: HeaderName | None = None
    """The header whose value decides which way a call goes: the same value always goes the same way."""
    by_part: str | None = None
    """Or the part of the path."""
    patience: Seconds = Field(default=1, gt=0)
    """How long a read waits for the third party before it is answered by ``legacy``."""
    compare: Expression = "@"
    """What of both bodies is compared in shadow mode."""
    window: Seconds = Field(default=60, ge=5, le=3600)
    """Rates are those of so long, since the last change of the share."""
    min_calls: int = Field(default=20, ge=1)
    """Fewer calls in the window say nothing."""
    error_rate: float = Field(default=0.05, ge=0, lt=1)
    """With a larger share of failures the share falls back to 0."""
    difference_rate: float = Field(default=0.05, ge=0, lt=1)
    """The same for answers that differ from those of ``legacy``."""

    @model_validator(mode="after")
    def _check_header_or_part(self) -> Self:
        if (self.by_header is None) == (self.by_part is None):
            raise ValueError("say 'by_header' or 'by_part', one of them")
        return self


class RouteSettings(Model):
    """A friendlier call in front of one of a third party.

    Names in ``call``: the parts of ``path``, ``query`` and ``headers`` (objects of what is named there; null where the
    caller sent none; header names in lower case), and ``body``.
    """

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    """The verb that callers use."""
    path: str = Field(pattern=r"^(/([A-Za-z0-9._~-]+|\{[a-z_]\w*\}))+$")
    """The address below ``/proxy``, with its parts as ``{name}``."""
    query: list[Annotated[str, Field(min_length=1, max_length=100)]] = []
    """The parameters that there are; others are refused."""
    headers: list[HeaderName] = []
    """The headers of a caller that templates may use; nothing else of them is known."""
    reads: bool | None = None
    """Whether it may be repeated, since it changes nothing; a ``GET`` is one that may."""
    third_party: Name
    """Who is called, by its name under ``third_parties``."""
    call: RequestSettings
    """The call. Where it has no body the caller's own is sent, but for a read."""
    answer: Expression = "body"
    """What callers get: over ``{status, body, text, headers}``, such as ``{sku: body.code}``."""
    status: int | None = Field(default=None, ge=200, le=299)
    """Its status; that of the third party unless told."""
    errors: list[RouteErrorRule] = []
    """What answers become that are no success; the first that fits. What fits none is told by its meaning."""
    timeout: Seconds = Field(default=10, gt=0)
    """The deadline of a call with all that belongs to it, such as its second attempt."""
    request_bytes: int = Field(default=1_048_576, ge=0)
    """The largest body of a caller."""
    answer_bytes: int = Field(default=8_388_608, ge=1)
    """The largest answer, of the third party and of ``legacy``."""
    entity: Name | None = None
    """The entity that it shows; its validation decides whether more traffic may go here."""
    read_from: ArchiveReadSettings | None = None
    """Where the answer may come from in place of the third party."""
    allow_writes: bool = False
    """It may write at a third party that holds mirrored entities. What it writes to these is drift."""
    legacy: LegacySettings | None = None
    """Where the traffic went before."""
    rollout: RolloutSettings | None = None
    """How it moves; needed with ``legacy``."""

    @property
    def is_read(self) -> bool:
        """Whether a call changes nothing: as ``reads`` says, or by default where the method is GET."""
        return self.method == "GET" if self.reads is None else self.reads

    def passed_headers(self) -> frozenset[str]:
        """Returns the names of the headers of a caller that ``legacy`` gets, in lower case."""
        assert self.legacy is not None
        by_header = [self.rollout.by_header] if self.rollout is not None and self.rollout.by_header else []
        return PASSED_HEADERS | {name.lower() for name in [*self.headers, *by_header, *self.legacy.pass_headers]}

    def single_headers(self) -> frozenset[str]:
        """Returns the names of the headers that a caller may send once only, in lower case."""
        by_header = [self.rollout.by_header] if self.rollout is not None and self.rollout.by_header else []
        return SINGLE_HEADERS | {name.lower() for name in [*self.headers, *by_header]}

    def list_path_parts(self) -> list[str]:
        """The names in its path."""
        return _PART.findall(self.path)

    def format_shape(self) -> str:
        """Method and path, whatever its parts are called."""
        return f"{self.method} {_PART.sub('{}', self.path)}"

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        parts = self.list_path_parts()
        if len(parts) != len(set(parts)) or _OF_EVERY_CALL & set(parts):
            raise ValueError("path: each part needs a name of its own, other than query, headers and body")
        if {".", ".."} & set(self.path.split("/")):
            raise ValueError("path: '.' and '..' cannot stand in it")
        if told := {name.lower() for name in self.headers} & _NEVER_A_NAME:
            raise ValueError(f"headers: '{sorted(told)[0]}' is never handed on; set it in the third party's own")
        if self.is_read and self.call.method not in ("GET", "HEAD", "POST"):
            raise ValueError(f"call.method: a read does not call by {self.call.method}")
        if self.method == "GET" and not self.is_read:
            raise ValueError("reads: a GET changes nothing, so that it may be repeated; use another method")
        self._check_names({*parts, "query", "headers"})
        self._check_rollout(parts)
        return self

    def _check_names(self, names: set[str]) -> None:
        known = names if self.method == "GET" else {*names, "body"}
        check_names({"call": self.call}, {"call": known})
        if self.read_from is None:
            return
        if self.entity is None or not self.is_read:
            raise ValueError("read_from: say which 'entity' it is; and only a read can have it")
        if unknown := names_in(self.read_from.key) - names:
            raise ValueError(f"read_from.key: nothing fills in '{sorted(unknown)[0]}'")

    def _check_rollout(self, parts: list[str]) -> None:
        if (self.legacy is None) != (self.rollout is None):
            raise ValueError("'legacy' and 'rollout' belong together")
        if self.rollout is not None and self.rollout.by_part not in (None, *parts):
            raise ValueError(f"rollout.by_part: the path has no part '{self.rollout.by_part}'")

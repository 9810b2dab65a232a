"""Calls whose templates are filled in, and the form in which they are sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.responses import About
from sync_orchestrator.config import RequestSettings

_CONTENT_TYPES = {"json": "application/json", "lines": "application/x-ndjson"}

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, repr=False)
class Outgoing:
    """A call as it goes out: ``target`` is path and query as they are written on the wire."""

    method: str
    target: str
    headers: Mapping[str, str]
    content: bytes


Sign = Callable[[Outgoing], Mapping[str, str]]
"""Headers that depend on the whole call, such as a signature; made anew for each attempt."""


@dataclass(frozen=True, slots=True, repr=False)
class Prepared:
    """A call with its templates filled in."""

    request: RequestSettings
    url: str
    params: dict[str, str]
    headers: dict[str, str]
    content: Any
    """Bytes are sent as they are."""
    sign: Sign | None = None
    most: int | None = None
    """The largest answer that is read, in bytes; None: as configured for the system."""
    about: About = "record"
    """What it addresses, which decides what a 404 says."""


def drop_empty(texts: Mapping[str, str]) -> dict[str, str]:
    """Returns the texts that are not empty."""
    return {name: text for name, text in texts.items() if text}


def encode_content(request: RequestSettings, headers: dict[str, str], content: Any) -> dict[str, Any]:
    """Returns the headers and the encoded body of a request, as httpx takes them."""
    if content is None:
        return {"headers": headers}
    if isinstance(content, bytes):
        return {"headers": headers, "content": content}
    if request.content == "form":
        return {"headers": headers, "data": content}
    documents = content if request.content == "lines" else [content]
    lines = [exact_json.dumps(document) for document in documents]
    body = b"\n".join(lines) + b"\n" if request.content == "lines" else lines[0]
    return {"headers": {"content-type": _CONTENT_TYPES[request.content], **headers}, "content": body}

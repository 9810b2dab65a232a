"""The documents of a request with change events: one or many, one at a time, in bounded memory.

Not here: what a document means (``cloud_events.py``, ``own_events.py``), what is JSON (``strict_json.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote

from sync_orchestrator import exact_json
from sync_orchestrator.api.intake import json_items
from sync_orchestrator.api.intake.turns import Turn
from sync_orchestrator.api.problems import Refused
from sync_orchestrator.errors import InvalidEvent
from sync_orchestrator.event_formats.strict_json import parse

BINARY = "ce-specversion"
"""The header that says that an event is in binary mode."""

_ONE, _BATCH, _EITHER = "application/cloudevents+json", "application/cloudevents-batch+json", "application/json"
_PREFIX = "ce-"
_WRITTEN_TIMES = 4
"""An event may be written with so many times the bytes that it has: blanks, escaped characters."""
_PARSED_BYTES = 4096
"""Items of so many bytes are parsed together."""
_THREAD_BYTES = 65_536
"""An event of this size is parsed in a thread."""


@dataclass(frozen=True, slots=True)
class Form:
    """What the headers of a request say of its body. ``attributes``: of an event in binary mode."""

    kind: Literal["one", "batch", "either"]
    attributes: dict[str, str] | None = None

    def check(self, is_array: bool) -> None:
        """Raises Refused (400) for a body that is not what the content type says."""
        if self.kind != "either" and is_array != (self.kind == "batch"):
            wanted = "an array" if self.kind == "batch" else "an object"
            raise Refused(
                400,
                f"A body of this content type must be {wanted}.",
                errors=[located(0, InvalidEvent(f"must be {wanted}"))],
            )


@dataclass(slots=True)
class Document:
    """``at``: its place in a batch; None where the body is no batch."""

    at: int | None
    value: Any
    is_too_large: bool = False


@dataclass(frozen=True, slots=True)
class Caps:
    """How many events a request may have, and how large each may be."""

    events: int
    event_bytes: int


def form_of_own_events(headers: Mapping[str, str]) -> Form:
    """Raises Refused (415)."""
    kind = _content_type(headers)
    if kind != _EITHER and not kind.endswith("+json"):
        raise Refused(415, f"Send {_EITHER}, in UTF-8: one event, or an array of them.")
    return Form("either")


def form_of_cloud_events(headers: Mapping[str, str]) -> Form:
    """In any of the three modes. Raises Refused: 400, 415."""
    kind = _content_type(headers)
    if BINARY in headers:
        return Form("one", _attributes(headers))
    if kind not in (_ONE, _BATCH, _EITHER):
        raise Refused(415, f"Send {_ONE}, {_BATCH} or {_EITHER}, in UTF-8, or the attributes as ce- headers.")
    return Form("one" if kind == _ONE else "batch" if kind == _BATCH else "either")


def documents_at_once(body: bytes, form: Form, headers: Mapping[str, str], caps: Caps) -> Iterator[Document]:
    """The documents of a small body. Raises Refused: 400, 413, 415."""
    if form.attributes is not None:
        yield _measured(None, _in_binary_mode(body, form.attributes, headers), len(body), caps)
        return
    whole = _parsed(body, None)
    form.check(isinstance(whole, list))
    if not isinstance(whole, list):
        yield _measured(None, whole, len(body), caps)
        return
    if len(whole) > caps.events:
        raise _too_many(caps)
    for at, value in enumerate(whole):
        yield _measured(at, value, len(body), caps)


async def documents_in_slices(
    body: bytes, form: Form, headers: Mapping[str, str], caps: Caps, turn: Turn
) -> AsyncIterator[list[Document]]:
    """The documents of a large body, some at a time, parsed when it is its turn. Raises Refused: 400, 413, 415."""
    if form.attributes is not None or not json_items.is_array(body):
        if len(body) > _WRITTEN_TIMES * caps.event_bytes:
            yield [Document(None, None, is_too_large=True)]
            return
        if form.attributes is not None:
            value: Any = _in_binary_mode(body, form.attributes, headers)
        else:
            value = await _parsed_apart(body, None)
            form.check(is_array=False)
        yield [_measured(None, value, len(body), caps)]
        return
    form.check(is_array=True)
    places = await _places(body, caps, turn)
    first = 0
    while first < len(places):
        last = first
        begin, end = places[first]
        while last + 1 < len(places) and places[last + 1][1] - begin <= _PARSED_BYTES:
            last += 1
        if last > first:
            values = _items(body, places[first : last + 1], first)
            written = places[last][1] - begin
        elif end - begin > _WRITTEN_TIMES * caps.event_bytes:
            yield [Document(first, None, is_too_large=True)]
            values = []
        else:
            values, written = [await _parsed_apart(body[begin:end], first)], end - begin
        if values:
            yield [_measured(at, value, written, caps) for at, value in enumerate(values, first)]
        first = last + 1
        await turn.go_on()


def _items(body: bytes, places: list[tuple[int, int]], first: int) -> list[Any]:
    """Parses small items that follow each other together, which is faster.

    Where they cannot be parsed, the first bad one is named.
    """
    try:
        found = parse(b"[%b]" % body[places[0][0] : places[-1][1]])
    except InvalidEvent:
        found = None
    if isinstance(found, list) and len(found) == len(places):
        return found
    return [_parsed(body[begin:end], at) for at, (begin, end) in enumerate(places, first)]


async def _places(body: bytes, caps: Caps, turn: Turn) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    try:
        for some in json_items.spans(body):
            found += some
            if len(found) > caps.events:
                raise _too_many(caps)
            await turn.go_on()
    except ValueError as error:
        raise _unreadable(InvalidEvent(f"the body is not JSON: {error}"), None) from None
    return found


def _measured(at: int | None, value: Any, written_bytes: int, caps: Caps) -> Document:
    is_too_large = written_bytes > caps.event_bytes and len(exact_json.dumps(value)) > caps.event_bytes
    return Document(at, value, is_too_large)


def _attributes(headers: Mapping[str, str]) -> dict[str, str]:
    """Of an event whose data is the body (HTTP protocol binding of CloudEvents 1.0.2)."""
    found = {name.removeprefix(_PREFIX): unquote(value) for name, value in headers.items() if name.startswith(_PREFIX)}
    if "data" in found or "data_base64" in found:
        raise Refused(400, "The data of an event in binary mode is the body.")
    return found


def _in_binary_mode(body: bytes, attributes: dict[str, str], headers: Mapping[str, str]) -> dict[str, Any]:
    if not body:
        return {**attributes}
    kind = _content_type(headers)
    if kind != _EITHER and not kind.endswith("+json"):
        raise Refused(415, f"The data of an event is {_EITHER}, in UTF-8.")
    return {**attributes, "data": _parsed(body, None)}


async def _parsed_apart(body: bytes, at: int | None) -> Any:
    return await asyncio.to_thread(_parsed, body, at) if len(body) > _THREAD_BYTES else _parsed(body, at)


def _parsed(body: bytes, at: int | None) -> Any:
    try:
        return parse(body, outer=0 if at is None else 1)
    except InvalidEvent as error:
        raise _unreadable(error, at) from None


def _unreadable(error: InvalidEvent, at: int | None) -> Refused:
    return Refused(400, "The body cannot be read.", errors=[located(at or 0, error)])


def _too_many(caps: Caps) -> Refused:
    return Refused(413, f"A request may have at most {caps.events} events; send smaller batches.")


def located(index: int, error: InvalidEvent) -> dict[str, Any]:
    """An error as an answer lists it."""
    return {"index": index, "field": error.field, "reason": str(error)}


def _content_type(headers: Mapping[str, str]) -> str:
    """The media type; empty for one in another encoding than UTF-8."""
    kind, *parameters = [piece.strip().lower() for piece in headers.get("content-type", "").split(";")]
    charsets = [parameter for parameter in parameters if parameter.startswith("charset=")]
    return "" if any(text.replace('"', "") != "charset=utf-8" for text in charsets) else kind

"""The documents of a request with change events: one or many, one at a time, in bounded memory."""

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

    def check_shape(self, is_array: bool) -> None:
        """Raises Refused (400) for a body that is not what the content type says."""
        if self.kind != "either" and is_array != (self.kind == "batch"):
            wanted = "an array" if self.kind == "batch" else "an object"
            raise Refused(
                400,
                f"A body of this content type must be {wanted}.",
                errors=[locate_error(0, InvalidEvent(f"must be {wanted}"))],
            )


@dataclass(slots=True)
class EventDocument:
    """``at``: its place in a batch; None where the body is no batch."""

    at: int | None
    value: object
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
        return Form("one", _read_attributes(headers))
    if kind not in (_ONE, _BATCH, _EITHER):
        raise Refused(415, f"Send {_ONE}, {_BATCH} or {_EITHER}, in UTF-8, or the attributes as ce- headers.")
    return Form("one" if kind == _ONE else "batch" if kind == _BATCH else "either")


def documents_at_once(body: bytes, form: Form, headers: Mapping[str, str], caps: Caps) -> Iterator[EventDocument]:
    """The documents of a small body. Raises Refused: 400, 413, 415."""
    if form.attributes is not None:
        yield _measure_document(None, _in_binary_mode(body, form.attributes, headers), len(body), caps)
        return
    whole = _parse_body(body, None)
    form.check_shape(isinstance(whole, list))
    if not isinstance(whole, list):
        yield _measure_document(None, whole, len(body), caps)
        return
    if len(whole) > caps.events:
        raise _too_many(caps)
    for at, value in enumerate(whole):
        yield _measure_document(at, value, len(body), caps)


async def documents_in_slices(
    body: bytes, form: Form, headers: Mapping[str, str], caps: Caps, turn: Turn
) -> AsyncIterator[list[EventDocument]]:
    """The documents of a large body, some at a time, parsed when it is its turn. Raises Refused: 400, 413, 415."""
    if form.attributes is not None or not json_items.is_array(body):
        if len(body) > _WRITTEN_TIMES * caps.event_bytes:
            yield [EventDocument(None, None, is_too_large=True)]
            return
        if form.attributes is not None:
            value: object = _in_binary_mode(body, form.attributes, headers)
        else:
            value = await _parsed_apart(body, None)
            form.check_shape(is_array=False)
        yield [_measure_document(None, value, len(body), caps)]
        return
    form.check_shape(is_array=True)
    places = await _find_item_places(body, caps, turn)
    first = 0
    while first < len(places):
        last = first
        begin, end = places[first]
        while last + 1 < len(places) and places[last + 1][1] - begin <= _PARSED_BYTES:
            last += 1
        if last > first:
            values = _parse_items(body, places[first : last + 1], first)
            written = places[last][1] - begin
        elif end - begin > _WRITTEN_TIMES * caps.event_bytes:
            yield [EventDocument(first, None, is_too_large=True)]
            values = []
        else:
            values, written = [await _parsed_apart(body[begin:end], first)], end - begin
        if values:
            yield [_measure_document(at, value, written, caps) for at, value in enumerate(values, first)]
        first = last + 1
        await turn.go_on()


def _parse_items(body: bytes, places: list[tuple[int, int]], first: int) -> list[object]:
    """Parses small items that follow each other together, which is faster.

    Where they cannot be parsed, the first bad one is named.
    """
    try:
        found = parse(b"[%b]" % body[places[0][0] : places[-1][1]])
    except InvalidEvent:
        found = None
    if isinstance(found, list) and len(found) == len(places):
        return found
    return [_parse_body(body[begin:end], at) for at, (begin, end) in enumerate(places, first)]


async def _find_item_places(body: bytes, caps: Caps, turn: Turn) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    try:
        for some in json_items.find_item_spans(body):
            found += some
            if len(found) > caps.events:
                raise _too_many(caps)
            await turn.go_on()
    except ValueError as error:
        raise _make_refusal(InvalidEvent(f"the body is not JSON: {error}"), None) from None
    return found


def _measure_document(at: int | None, value: object, written_bytes: int, caps: Caps) -> EventDocument:
    is_too_large = written_bytes > caps.event_bytes and len(exact_json.dumps(value)) > caps.event_bytes
    return EventDocument(at, value, is_too_large)


def _read_attributes(headers: Mapping[str, str]) -> dict[str, str]:
    """Of an event whose data is the body (HTTP protocol binding of CloudEvents 1.0.2)."""
    found = {name.removeprefix(_PREFIX): unquote(value) for name, value in headers.items() if name.startswith(_PREFIX)}
    if "data" in found or "data_base64" in found:
        raise Refused(400, "The data of an event in binary mode is the body.")
    return found


def _in_binary_mode(body: bytes, attributes: dict[str, str], headers: Mapping[str, str]) -> dict[str, object]:
    if not body:
        return {**attributes}
    kind = _content_type(headers)
    if kind != _EITHER and not kind.endswith("+json"):
        raise Refused(415, f"The data of an event is {_EITHER}, in UTF-8.")
    return {**attributes, "data": _parse_body(body, None)}


async def _parsed_apart(body: bytes, at: int | None) -> Any:
    return await asyncio.to_thread(_parse_body, body, at) if len(body) > _THREAD_BYTES else _parse_body(body, at)


def _parse_body(body: bytes, at: int | None) -> object:
    try:
        return parse(body, outer=0 if at is None else 1)
    except InvalidEvent as error:
        raise _make_refusal(error, at) from None


def _make_refusal(error: InvalidEvent, at: int | None) -> Refused:
    return Refused(400, "The body cannot be read.", errors=[locate_error(at or 0, error)])


def _too_many(caps: Caps) -> Refused:
    return Refused(413, f"A request may have at most {caps.events} events; send smaller batches.")


def locate_error(index: int, error: InvalidEvent) -> dict[str, object]:
    """An error as an answer lists it."""
    return {"index": index, "field": error.field, "reason": str(error)}


def _content_type(headers: Mapping[str, str]) -> str:
    """The media type; empty for one in another encoding than UTF-8."""
    kind, *parameters = [piece.strip().lower() for piece in headers.get("content-type", "").split(";")]
    charsets = [parameter for parameter in parameters if parameter.startswith("charset=")]
    return "" if any(text.replace('"', "") != "charset=utf-8" for text in charsets) else kind

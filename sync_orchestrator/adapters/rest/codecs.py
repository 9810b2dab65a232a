"""Mapped fields in the third party's shape, and back: numbers as texts or cents, typed objects, language maps.

Pure: no calls. A value that would not come back as it was is refused before anything is sent: written all the same, it
would differ for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal, DecimalException
from typing import Any

from jmespath.exceptions import JMESPathError

from sync_orchestrator.config.targets import CodecSettings
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.errors import MappingFailed
from sync_orchestrator.exact_json import decimal_of, format_decimal, parse_number, simplify_number
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.templates import TemplateFailed
from sync_orchestrator.expressions.times import any_moment_in, format_time, parse_time, written_as

_OTHER = "other"
_MAX_DIGITS = 400  # more than the largest float has
_EXACT = Context(prec=_MAX_DIGITS)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMERAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_PLACE = re.compile(r"@|[A-Za-z_]\w*(\.[A-Za-z_]\w*|\[-?[0-9]{1,9}\])*", re.ASCII)
_TRUTH = {"true": True, "false": False}


class Codecs:
    """The codecs of one target; ``mapped`` are the payload's fields, ``fields`` those of them that are not plain."""

    def __init__(self, fields: Mapping[str, CodecSettings], mapped: tuple[str, ...]) -> None:
        self._codecs = {name: _FieldCodec(name, fields.get(name, CodecSettings())) for name in mapped}
        self.names = frozenset(mapped)
        self._names = mapped if all(fields.get(name, CodecSettings()) == CodecSettings() for name in mapped) else None

    def encode(self, payload: Mapping[str, object]) -> Json:
        """The payload as the third party wants it written; nulls stay null.

        Raises MappingFailed naming the field.
        """
        return {
            name: self._codecs[name].encode(value) if name in self._codecs else value for name, value in payload.items()
        }

    def decode(self, record: object) -> dict[str, object]:
        """The mapped fields of one of their records as plain values.

        What cannot be decoded is left as it is, and so shows as a difference.
        """
        if self._names is not None and isinstance(record, dict):
            return {name: record.get(name) for name in self._names}
        return {name: codec.decode(record) for name, codec in self._codecs.items()}

    def as_sent(self, payload: Mapping[str, object]) -> dict[str, object]:
        """Returns the payload as it would be read from what was written.

        A template, or reading, may make another value of it. A field that is read from elsewhere, or that cannot be
        written, stays as it is.
        """
        return {
            name: self._codecs[name].as_sent(value) if name in self._codecs else value
            for name, value in payload.items()
        }

    @property
    def change_values(self) -> bool:
        """Whether writing and reading may make another value of one."""
        return any(codec.changes_values for codec in self._codecs.values())

    def decode_field(self, record: Mapping[str, object], name: str) -> object:
        """One of these fields."""
        return self._codecs[name].decode(record)


class _FieldCodec:
    def __init__(self, name: str, codec: CodecSettings) -> None:
        self._name = name
        self._kind = codec.kind
        self._write = codec.write
        self._read = compile_selector(codec.read) if codec.read is not None else None
        self._place = templates.place_of(codec.write, "value") if codec.read is None else None
        self._replaces_null = templates.replaces_null(codec.write)
        self._to_theirs, self._to_ours = _KINDS[codec.kind](codec)
        shows_value = self._place is not None and templates.is_name(
            templates.text_at(codec.write, self._place), "value"
        )
        is_moved = codec.read is not None and _PLACE.fullmatch(codec.read) is not None
        self.changes_values = codec.kind == "time" or (
            (codec.write is not None and not shows_value)
            if codec.read is None
            else codec.write is not None or not is_moved
        )
        self._reads_by_function = codec.read is not None and not is_moved

    def encode(self, value: object) -> object:
        if value is None and not self._replaces_null:
            return None
        try:
            theirs = value if self._kind == "plain" or value is None else self._encode_value(value)
            return theirs if self._write is None else templates.render_value(self._write, {"value": theirs})
        except (ValueError, DecimalException, TemplateFailed) as error:
            why = "it has too many digits" if isinstance(error, DecimalException) else error
            place = f"fields.{self._name}"
            raise MappingFailed(
                f"{place}: {_format_value(value):.80} cannot be written as {self._kind}: {why}"
            ) from None

    def as_sent(self, value: object) -> object:
        if not self.changes_values:
            return value
        try:
            found = self.decode({self._name: self.encode(value)})
        except MappingFailed:
            return value
        if self._read is None:
            return found
        if found is None:  # it is read from elsewhere
            return value
        if self._reads_by_function:
            return found
        # A server may show a number for a text that was written, or the value alone for ``{set: value}``: a plain
        # ``read`` does not say so.
        kinds = {_classify_value(found), _classify_value(value)}
        is_listed = isinstance(found, list) or (isinstance(value, list) and not isinstance(found, dict))
        return found if is_listed or (len(kinds) == 1 and _OTHER not in kinds) else value

    def decode(self, record: object) -> object:
        shown = self._read_shown_value(record)
        if shown is None:
            return None
        try:
            return self._to_ours(shown)
        except (ValueError, DecimalException):
            return shown

    def _encode_value(self, value: object) -> object:
        theirs = self._to_theirs(value)
        if self._kind == "time":  # which may be less exact there: what comes back is what is compared
            return theirs
        back = self._to_ours(theirs)
        if compute_digest(back) != compute_digest(value):
            raise ValueError(f"it would come back as {_format_value(back):.80}")
        return theirs

    def _read_shown_value(self, record: object) -> object:
        shown = record.get(self._name) if isinstance(record, dict) else None
        if self._read is None:
            return shown if self._place is None else _find_at_place(self._place, shown)
        try:
            return self._read.search(record)
        except JMESPathError:
            return shown


def _classify_value(value: object) -> str:
    if isinstance(value, bool):
        return "truth value"
    return "text" if isinstance(value, str) else "number" if isinstance(value, int | float | Decimal) else _OTHER


def _format_value(value: object) -> str:
    return format_decimal(value) if isinstance(value, Decimal) and value.is_finite() else repr(value)


def _find_at_place(place: tuple[object, ...], shape: Any) -> Any:
    """What stands at a place of a shape; another shape is given as it is."""
    found = shape
    for step in place:
        fits = step in found if isinstance(found, dict) else isinstance(found, list) and step in range(len(found))
        if not fits:
            return shape
        found = found[step]
    return found


def _parse_decimal(value: object) -> Decimal:
    """A number, or a numeral in a text, exactly as it is written. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | str):
        raise ValueError("it is no number")
    if isinstance(value, str):
        if not _is_numeral(value):
            raise ValueError("it is no number")
        return Decimal(value)
    return decimal_of(value)


def _plain_kind(codec: CodecSettings) -> tuple[Callable[[object], object], Callable[[object], object]]:
    return lambda value: value, lambda value: value


def _text_kind(codec: CodecSettings) -> tuple[Callable[[object], object], Callable[[object], object]]:
    def to_theirs(value: object) -> str:
        if isinstance(value, bool):
            return "true" if value else "false"
        return value if isinstance(value, str) else _format_number(value)

    def to_ours(value: object) -> object:
        if not isinstance(value, str):
            return value
        return _TRUTH[value] if value in _TRUTH else _of_numeral(value) if _is_numeral(value) else value

    return to_theirs, to_ours


def _number_kind(codec: CodecSettings) -> tuple[Callable[[object], object], Callable[[object], object]]:
    def to_theirs(value: object) -> int | float | Decimal:
        if not isinstance(value, str) or not _is_numeral(value):
            raise ValueError("it is no number in a text")
        return _of_numeral(value)

    return to_theirs, lambda value: value if isinstance(value, str) else _format_number(value)


def _decimal_text(codec: CodecSettings) -> tuple[Callable[[object], object], Callable[[object], object]]:
    def to_theirs(value: object) -> str:
        return format(_parse_decimal(value).quantize(Decimal(1).scaleb(-codec.digits), context=_EXACT), "f")

    return to_theirs, lambda value: simplify_number(_parse_decimal(value))


def _minor_units(codec: CodecSettings) -> tuple[Callable[[object], object], Callable[[object], object]]:
    def to_theirs(value: object) -> int:
        return int(_parse_decimal(value).scaleb(codec.digits, context=_EXACT).to_integral_value())

    return to_theirs, lambda value: simplify_number(_parse_decimal(value).scaleb(-codec.digits, context=_EXACT))


def _bool_number(codec: CodecSettings) -> tuple[Callable[[object], object], Callable[[object], object]]:
    def to_theirs(value: object) -> int:
        if not isinstance(value, bool):
            raise ValueError("it is no truth value")
        return int(value)

    def to_ours(value: object) -> object:
        return bool(_parse_decimal(value)) if value in (0, 1, "0", "1") else value

    return to_theirs, to_ours


def _time_kind(codec: CodecSettings) -> tuple[Callable[[object], object], Callable[[object], object]]:
    def to_theirs(value: object) -> object:
        return format_time(value, codec.format, codec.zone)

    def to_ours(value: object) -> str:
        shown = written_as(any_moment_in(value, codec.format, codec.zone), codec.format, codec.zone)
        return parse_time(shown, codec.format, codec.zone)

    return to_theirs, to_ours


def _format_number(value: object) -> str:
    if isinstance(value, Decimal):
        value = simplify_number(value)
        return format_decimal(value) if isinstance(value, Decimal) else _format_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("it is no number")
    return str(int(value)) if _is_short_whole(value) else repr(value)


def _is_short_whole(value: float) -> bool:
    return isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)


def _is_numeral(text: str) -> bool:
    return len(text) <= _MAX_DIGITS and _NUMERAL.fullmatch(text) is not None


def _of_numeral(text: str) -> int | float | Decimal:
    return int(text) if _WHOLE.fullmatch(text) else parse_number(text)


_KINDS = {
    "plain": _plain_kind,
    "text": _text_kind,
    "number": _number_kind,
    "decimal_text": _decimal_text,
    "minor_units": _minor_units,
    "bool_number": _bool_number,
    "time": _time_kind,
}

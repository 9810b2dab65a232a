"""JSON whose numbers keep their digits (rule 34).

A number is an int or a float where that is exactly what was written, else a ``decimal.Decimal``. What Python's own
floats cannot hold is neither rounded nor invented on the way.

orjson reads and writes what it can do exactly, which is nearly everything; the rest takes a slower way. Pure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import suppress
from decimal import Context, Decimal
from json.encoder import encode_basestring, encode_basestring_ascii
from typing import Any, NoReturn

import orjson

MAX_DIGITS = 400
"""Numbers of more digits, before or behind the point, are refused; more than the largest float has."""

EXACT = Context(prec=4 * MAX_DIGITS, Emax=10**9, Emin=-(10**9))
"""For arithmetic on decimals that rounds nothing."""

ONLY_JSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS
"""For orjson: refuse what the standard library refuses."""

_ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
_MANY_DIGITS, _NEGATIVE = b"0" * 16, b"-000"
_INEXACT = (b"0" * 19, b".00000000", b"00000000.", _MANY_DIGITS + b"e", b"e" + _NEGATIVE)
"""Among digits that are all written 0: whole numbers that may have more than 64 bits, fractions of 16 digits or more
(of which 8 are on one side), and numbers close to 0. Nothing else is another number as a float; what is too large for
one is refused by orjson."""
_SHORT = 16


def parse(content: bytes) -> Any:
    """Parses JSON; NaN and infinity are none. Raises ValueError, RecursionError."""
    if not _needs_care(content):
        with suppress(ValueError):  # it refuses what the other one can read: single surrogates, byte order marks
            return orjson.loads(content)
    return parse_text(content.decode(json.detect_encoding(content), "surrogatepass"))


def parse_text(text: str) -> Any:
    """The same for a text. Raises ValueError, RecursionError."""
    return json.loads(text, parse_constant=_refuse_constant, parse_float=parse_number)


def parse_number(text: str) -> float | Decimal:
    """The number that a JSON numeral with a fraction or an exponent says.

    Raises ValueError for one of absurd size.
    """
    found = float(text)
    if len(text) <= _SHORT and 1e-300 < abs(found) < 1e300:
        return found
    said = Decimal(text)
    if is_absurd(said):
        raise ValueError("a number is too large" if said.adjusted() > 0 else "a number has too many digits")
    if math.isinf(found):
        raise ValueError("a number is too large")
    return found if Decimal(repr(found)) == said else said


def parse_whole_number(text: str) -> int:
    """The number that a JSON numeral without fraction and exponent says. Raises ValueError for absurd length."""
    if len(text) > MAX_DIGITS:
        raise ValueError("a number has too many digits")
    return int(text)


def is_absurd(value: Decimal) -> bool:
    """Whether a decimal is not finite, or has more digits than are carried."""
    if not value.is_finite():
        return True
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int)
    return value != 0 and max(abs(value.adjusted()), abs(exponent)) > MAX_DIGITS


def simplify_number(value: Decimal) -> int | float | Decimal:
    """Returns the same number as an int or a float where one is exactly that as it is written.

    Any other number is a decimal without trailing zeros.

    Raises ValueError for one that is not finite or of absurd size.
    """
    if is_absurd(value):
        raise ValueError("a number has too many digits" if value.is_finite() else "a number is not finite")
    if value == value.to_integral_value(context=EXACT):
        return int(value)
    found = float(value)
    return found if Decimal(repr(found)) == value else value.normalize(EXACT)


_FLOATS_ARE_WHOLE = 2.0**53
_AS_THEY_ARE = frozenset({str, int, bool, type(None)})
_MOSTLY_AS_THEY_ARE = _AS_THEY_ARE | {float}


def normalize_numbers(value: object) -> object:
    """A JSON value with whole numbers as such: 1 for 1.0; a decimal is a float where one is written alike.

    Raises ValueError for numbers that are not finite, or of absurd size.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
        if not value.is_integer():
            return value
        return int(value) if abs(value) < _FLOATS_ARE_WHOLE else int(Decimal(repr(value)))
    if isinstance(value, Decimal):
        return simplify_number(value)
    if isinstance(value, dict):
        if _stays_as_it_is(value):
            return value
        return {key: item if type(item) in _AS_THEY_ARE else normalize_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [item if type(item) in _AS_THEY_ARE else normalize_numbers(item) for item in value]
    return value


def _stays_as_it_is(value: dict[Any, Any]) -> bool:
    """Whether a flat object has no number that is written otherwise; the quick way for most rows."""
    kinds = set(map(type, value.values()))
    if not kinds <= _MOSTLY_AS_THEY_ARE:
        return False
    return float not in kinds or all(item % 1 > 0 for item in value.values() if type(item) is float)  # not NaN either


def decimal_of(value: float | Decimal) -> Decimal:
    """A number as a decimal of the digits that it is written with."""
    if isinstance(value, Decimal):
        return value
    return Decimal(value) if isinstance(value, int) else Decimal(repr(value))


def format_decimal(value: Decimal) -> str:
    """A decimal as JSON and people write it. Raises ValueError for one that is not finite or of absurd size."""
    if is_absurd(value):
        raise ValueError("a number has too many digits" if value.is_finite() else "a number is not finite")
    return format(value, "f")


def dumps(value: object, *, sort_keys: bool = False) -> bytes:
    """Compact JSON. Raises ValueError for a number that is not finite, TypeError for what is no JSON."""
    try:
        written = orjson.dumps(
            value, default=decimal_fragment, option=ONLY_JSON | (orjson.OPT_SORT_KEYS if sort_keys else 0)
        )
        if b"null" not in written:  # as orjson writes numbers that are not finite, too
            return written
    except TypeError:  # whole numbers of more than 64 bits, lone surrogates, great depth
        pass
    return dump_text(value, sort_keys=sort_keys).encode()


def dump_text(
    value: object,
    *,
    sort_keys: bool = False,
    ascii_only: bool = False,
    spaced: bool = False,
    indent: int | None = None,
    default: Callable[[object], object] | None = None,
) -> str:
    """JSON as a text, compact unless ``spaced`` or indented; ``default`` makes JSON of what is none.

    Raises ValueError for a number that is not finite, TypeError for what is no JSON, RecursionError.
    """

    def serialize_other(found: object) -> object:
        if isinstance(found, Decimal):
            raise _Exact
        if default is None:
            raise TypeError(f"Object of type {type(found).__name__} is not JSON serializable")
        return default(found)

    comma, colon = ", " if spaced and indent is None else ",", ": " if spaced or indent is not None else ":"
    try:
        return json.dumps(
            value,
            sort_keys=sort_keys,
            ensure_ascii=ascii_only,
            indent=indent,
            allow_nan=False,
            separators=(comma, colon),
            default=serialize_other,
        )
    except _Exact:  # the standard library writes no decimals
        return "".join(_Writer(sort_keys, ascii_only, indent, (comma, colon), default).write_pieces(value, 0))


class _Exact(Exception):
    """There is a decimal."""


def _needs_care(content: bytes) -> bool:
    """Whether a number in it may be one that orjson would make another of; mostly the first look says no."""
    joined = content.translate(_ALIKE, b".")
    if _MANY_DIGITS not in joined and _NEGATIVE not in joined:
        return False
    alike = content.translate(_ALIKE)
    return any(sign in alike for sign in _INEXACT)


def decimal_fragment(value: object) -> object:
    """For orjson, as its ``default``: a decimal as it is written. Raises TypeError for anything else."""
    if isinstance(value, Decimal):
        return orjson.Fragment(format_decimal(value))
    raise TypeError


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


class _Writer:
    """Writes what ``json.dumps`` writes, and decimals."""

    def __init__(
        self,
        sort_keys: bool,
        ascii_only: bool,
        indent: int | None,
        separators: tuple[str, str],
        default: Callable[[object], object] | None,
    ) -> None:
        self._sort_keys = sort_keys
        self._string = encode_basestring_ascii if ascii_only else encode_basestring
        self._indent = indent
        self._comma, self._colon = separators
        self._default = default

    def write_pieces(self, value: object, depth: int) -> list[str]:
        if isinstance(value, str):
            return [self._string(value)]
        if isinstance(value, Decimal):
            return [format_decimal(value)]
        if value is None or isinstance(value, bool | int | float):
            return [json.dumps(value, allow_nan=False)]
        if isinstance(value, dict):
            return self._write_object(value, depth)
        if isinstance(value, list | tuple):
            return self._join_items("[", [self.write_pieces(item, depth + 1) for item in value], "]", depth)
        if self._default is None:
            raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")
        return self.write_pieces(self._default(value), depth)

    def _write_object(self, value: dict[Any, Any], depth: int) -> list[str]:
        names = sorted(value) if self._sort_keys else value
        return self._join_items(
            "{",
            [[self._write_name(name), self._colon, *self.write_pieces(value[name], depth + 1)] for name in names],
            "}",
            depth,
        )

    def _write_name(self, name: object) -> str:
        [found] = json.loads(json.dumps({name: None}))  # one that is no text is written as the standard library does
        return self._string(found)

    def _join_items(self, begin: str, items: list[list[str]], end: str, depth: int) -> list[str]:
        if not items:
            return [begin, end]
        lead = "" if self._indent is None else "\n" + " " * (self._indent * (depth + 1))
        made = [begin]
        for place, item in enumerate(items):
            made += [self._comma if place else "", lead, *item]
        return [*made, "" if self._indent is None else "\n" + " " * (self._indent * depth), end]

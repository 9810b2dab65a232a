"""Functions on values, for mapping and reading: one registry, used by JMESPath expressions and as template filters.

Pure. A function gets what JSON can hold, takes a time that grows with the length of it alone, and gives null for null
unless it is there to replace null. Numbers keep their digits (rule 34). Functions on times are in ``times.py``.
"""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from typing import Any

from sync_orchestrator import exact_json
from sync_orchestrator.exact_json import EXACT, decimal_of, is_absurd, normalize_numbers, simplify_number
from sync_orchestrator.expressions import times as value_times
from sync_orchestrator.expressions.times import ValueFailed
from sync_orchestrator.texts.unicode_forms import normalize_text

MAX_TEXT_LENGTH = 50_000_000
"""Characters of the longest text that a function makes: a short text can stand for a long one, by ``replace``."""

MAX_ROUND_DIGITS = 30

UNKNOWN = object()
"""An argument that is known only when the function is called."""

_NUMERAL = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_NUMBERED_SIGN = re.compile(r"&#0*([0-9]+)")


_Checks = Mapping[str, Callable[[Any], object]]


@dataclass(frozen=True, slots=True)
class ValueFunction:
    """A function of the registry.

    Attributes:
        name: Its name in expressions, and as a filter.
        apply: The implementation.
        takes_null: Whether it is called for null, too; the others give null then.
        checks: By parameter, what raises ValueError for an argument that can never work.
    """

    name: str
    apply: Callable[..., object]
    takes_null: bool = False
    checks: _Checks = field(default_factory=dict)

    def call(self, *args: object, **named: object) -> Any:
        """Calls the function. Raises ValueFailed, which names the function, for arguments that do not fit."""
        if args and args[0] is None and not self.takes_null:
            return None
        try:
            return self._bind_arguments(args, named)(self.apply)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ValueFailed(f"{self.name}: {error}") from None

    def check_arguments(self, args: Sequence[object], named: Mapping[str, object]) -> None:
        """Checks a call before there are values; ``UNKNOWN`` is an argument that is not known yet.

        Raises ValueError that names the function.
        """
        try:
            bound = inspect.signature(self.apply).bind(*args, **named)
            for name, value in bound.arguments.items():
                if value is not UNKNOWN and name in self.checks:
                    self.checks[name](value)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.name}: {error}; it is called as {self.usage}") from None

    @property
    def usage(self) -> str:
        """How it is called in an expression."""
        shown = []
        for name, parameter in inspect.signature(self.apply).parameters.items():
            if parameter.kind is parameter.VAR_POSITIONAL:
                shown.append(f"{name}...")
            else:
                shown.append(name if parameter.default is parameter.empty else f"[{name}]")
        return f"{self.name}({', '.join(shown)})"

    def _bind_arguments(
        self, args: Sequence[object], named: Mapping[str, object]
    ) -> Callable[[Callable[..., object]], object]:
        bound = inspect.signature(self.apply).bind(*args, **named) if named else None
        return lambda apply: apply(*args) if bound is None else apply(*bound.args, **bound.kwargs)


def kind_of(value: object) -> str:
    """What a value is, for an error: ``the number 5``, ``a list``."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, int | float | Decimal):
        return f"the number {value!s:.40}"
    if isinstance(value, str):
        return f"the text {value!r:.60}"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list | tuple) else "no value"


# Texts.


def trim(value: object, signs: object = None) -> str:
    """Without blanks (or ``signs``) at both ends."""
    return _require_text(value).strip(None if signs is None else _require_text(signs))


def collapse_spaces(value: object) -> str:
    """Each run of blanks and line breaks as one space, none at the ends."""
    return " ".join(_require_text(value).split())


def replace(value: object, old: object, new: object, count: object = None) -> str:
    """With ``new`` in place of each ``old``, or of the first ``count`` of them."""
    text, wanted, put = _require_text(value), _require_text(old), _require_text(new)
    if not wanted:
        raise ValueError("there is no text to replace")
    most = -1 if count is None else _require_whole_number(count)
    places = text.count(wanted) if count is None else min(text.count(wanted), most)
    _check_length(len(text) + places * (len(put) - len(wanted)))
    return text.replace(wanted, put, most)


def lower(value: object) -> str:
    """In lower case."""
    return _require_text(value).lower()


def upper(value: object) -> str:
    """In upper case."""
    return _require_text(value).upper()


def cut(value: object, length: object) -> str:
    """The first ``length`` characters."""
    return _require_text(value)[: _require_whole_number(length)]


def line_breaks(value: object) -> str:
    """Returns the text with a line feed for each line break."""
    return _require_text(value).replace("\r\n", "\n").replace("\r", "\n")


def nfc(value: object) -> str:
    """In Unicode normalization form C, in which a letter and its accent are one character."""
    return normalize_text("NFC", _require_text(value))


def html_unescape(value: object) -> str:
    """With the characters that HTML's ``&amp;``, ``&#39;`` and the like stand for."""
    # The standard library makes a number of any length, which takes the square of that; seven digits are enough.
    return html.unescape(_NUMBERED_SIGN.sub(lambda found: f"&#{found[1][:8]}", _require_text(value)))


def split(value: object, separator: object, count: object = None) -> list[str]:
    """A list of the texts between separators, cut at the first ``count`` of them; the empty text is an empty list."""
    text, between = _require_text(value), _require_text(separator)
    if not between:
        raise ValueError("the separator is empty")
    return text.split(between, -1 if count is None else _require_whole_number(count)) if text else []


# Lists.


def join(values: object, glue: object) -> str | None:
    """One text of a list of texts and numbers. The arguments may come in either order."""
    if isinstance(values, str):
        values, glue = glue, values
    if values is None:
        return None
    pieces = [
        to_string(item) if _is_scalar(item) else _raise_value_error(f"{kind_of(item)} in the list")
        for item in _require_list(values)
    ]
    between = _require_text(glue)
    _check_length(sum(map(len, pieces)) + len(between) * len(pieces))
    return between.join(pieces)


def sort(values: object) -> list[object]:
    """A list in order: numbers by size, then texts by code point, then anything else by its JSON."""
    return sorted(_require_list(values), key=_build_sort_key)


def unique(values: object) -> list[object]:
    """A list without what it has already; 1 and 1.0 are the same."""
    kept: dict[tuple[int, object], object] = {}
    for item in _require_list(values):
        kept.setdefault(_build_equality_key(item), item)
    return list(kept.values())


# Numbers.


def round_half_up(value: object, digits: object = 0) -> Any:
    """Rounded to ``digits`` behind the point, halves away from zero."""
    return simplify_number(_round_decimal(value, digits, ROUND_HALF_UP))


def round_half_even(value: object, digits: object = 0) -> object:
    """Rounded to ``digits`` behind the point, halves to the even neighbour."""
    return simplify_number(_round_decimal(value, digits, ROUND_HALF_EVEN))


def fixed(value: object, digits: object = 2) -> str:
    """A text with exactly ``digits`` behind the point, halves rounded away from zero: 9.9 is "9.90"."""
    return format(_round_decimal(value, digits, ROUND_HALF_UP), "f")


def to_number(value: object) -> object:
    """A number of a text with all its digits; null for what is none."""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or _NUMERAL.fullmatch(value) is None:
        return None
    text = value.strip()
    return exact_json.parse_whole_number(text) if text.lstrip("+-").isdigit() else exact_json.parse_number(text)


def to_string(value: object) -> str:
    """The text of a number or a truth value, the JSON of anything else; a text stays as it is."""
    return value if isinstance(value, str) else exact_json.dump_text(value, ascii_only=True, default=str)


# Null.


def coalesce(*values: object) -> object:
    """The first of its arguments that is not null; null if all are."""
    return next((value for value in values if value is not None), None)


def null_as_empty(value: object) -> object:
    """The empty text for null, anything else as it is."""
    return "" if value is None else value


def empty_as_null(value: object) -> object:
    """Null for an empty text, list or object, anything else as it is."""
    return None if value in ("", [], {}) else value


# What they share.


def _require_text(value: object) -> str:
    return value if isinstance(value, str) else _raise_value_error(f"{kind_of(value)} is no text")


def _require_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else _raise_value_error(f"{kind_of(value)} is no list")


def _raise_value_error(why: str) -> Any:
    raise ValueError(why)


def _is_scalar(value: object) -> bool:
    return isinstance(value, str | bool | int | float | Decimal)


def _require_whole_number(value: object) -> int:
    number = value if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None
    if number is None or number != int(number) or number < 0:
        raise ValueError(f"{kind_of(value)} is no whole number")
    return int(number)


def _require_digits(value: object) -> int:
    if (digits := _require_whole_number(value)) > MAX_ROUND_DIGITS:
        raise ValueError(f"at most {MAX_ROUND_DIGITS} digits")
    return digits


def _require_decimal(value: object) -> Decimal:
    if isinstance(value, str):
        value = to_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{kind_of(value)} is no number")
    exact = decimal_of(value)
    if is_absurd(exact):
        raise ValueError("the number has too many digits")
    return exact


def _round_decimal(value: object, digits: object, rounding: str) -> Decimal:
    try:
        exact = _require_decimal(value)
    except ValueError:
        raise ValueError(f"{kind_of(value)} is no number") from None
    rounded = exact.quantize(Decimal(1).scaleb(-_require_digits(digits)), rounding=rounding, context=EXACT)
    return rounded if rounded else abs(rounded)  # no minus before 0.00


def _check_length(length: int) -> None:
    if length > MAX_TEXT_LENGTH:
        raise ValueError(f"the text would have more than {MAX_TEXT_LENGTH} characters")


def _build_sort_key(item: object) -> tuple[int, object]:
    if isinstance(item, int | float | Decimal) and not isinstance(item, bool):
        return 0, item
    return (1, item) if isinstance(item, str) else (2, exact_json.dump_text(normalize_numbers(item), sort_keys=True))


def _build_equality_key(item: object) -> tuple[int, object]:
    return _build_sort_key(item) if not isinstance(item, float | Decimal) else (0, decimal_of(item))


def _build_functions() -> dict[str, ValueFunction]:
    digits: _Checks = {"digits": _require_digits}
    times: _Checks = {"format": value_times.check_format, "zone": value_times.zone_of}
    simple: list[Callable[..., object]] = [
        trim,
        collapse_spaces,
        replace,
        lower,
        upper,
        line_breaks,
        nfc,
        html_unescape,
        split,
        join,
        sort,
        unique,
    ]
    return {
        each.name: each
        for each in (
            *(ValueFunction(function.__name__, function) for function in simple),
            ValueFunction("cut", cut, checks={"length": _require_whole_number}),
            ValueFunction("round", round_half_up, checks=digits),
            ValueFunction("round_half_even", round_half_even, checks=digits),
            ValueFunction("fixed", fixed, checks=digits),
            ValueFunction("to_number", to_number),
            ValueFunction("to_string", to_string, takes_null=True),
            ValueFunction(
                "parse_time", value_times.parse_time, checks={**times, "format": value_times.check_readable_format}
            ),
            ValueFunction("format_time", value_times.format_time, checks=times),
            ValueFunction("coalesce", coalesce, takes_null=True),
            ValueFunction("null_as_empty", null_as_empty, takes_null=True),
            ValueFunction("empty_as_null", empty_as_null),
        )
    }


FUNCTIONS = _build_functions()
"""All functions, by name."""

REPLACE_NULL = frozenset({"coalesce", "null_as_empty"})
"""Those that make something of null, so that a template with one of them is filled in for null, too."""

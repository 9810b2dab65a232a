"""Functions on values, for mapping and reading: one registry, used by JMESPath expressions and as template filters.

Pure. A function gets what JSON can hold, takes a time that grows with the length of it alone, and gives null for null
unless it is there to replace null. Numbers keep their digits (rule 34). Functions on times are in ``value_times.py``.
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
from sync_orchestrator.exact_json import EXACT, decimal_of, is_absurd, plain, simplest
from sync_orchestrator.expressions import times as value_times
from sync_orchestrator.expressions.times import ValueFailed
from sync_orchestrator.texts.unicode_forms import normalized

MAX_TEXT_LENGTH = 50_000_000
"""Characters of the longest text that a function makes: a short text can stand for a long one, by ``replace``."""

MAX_ROUND_DIGITS = 30

UNKNOWN = object()
"""An argument that is known only when the function is called."""

_NUMERAL = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_NUMBERED_SIGN = re.compile(r"&#0*([0-9]+)")


_Checks = Mapping[str, Callable[[Any], Any]]


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
    apply: Callable[..., Any]
    takes_null: bool = False
    checks: _Checks = field(default_factory=dict)

    def call(self, *args: Any, **named: Any) -> Any:
        """Calls the function. Raises ValueFailed, which names the function, for arguments that do not fit."""
        if args and args[0] is None and not self.takes_null:
            return None
        try:
            return self._bound(args, named)(self.apply)
        except (ValueError, TypeError, ArithmeticError) as error:
            raise ValueFailed(f"{self.name}: {error}") from None

    def check(self, args: Sequence[Any], named: Mapping[str, Any]) -> None:
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

    def _bound(self, args: Sequence[Any], named: Mapping[str, Any]) -> Callable[[Callable[..., Any]], Any]:
        bound = inspect.signature(self.apply).bind(*args, **named) if named else None
        return lambda apply: apply(*args) if bound is None else apply(*bound.args, **bound.kwargs)


def kind_of(value: Any) -> str:
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


def trim(value: Any, signs: Any = None) -> str:
    """Without blanks (or ``signs``) at both ends."""
    return _text(value).strip(None if signs is None else _text(signs))


def collapse_spaces(value: Any) -> str:
    """Each run of blanks and line breaks as one space, none at the ends."""
    return " ".join(_text(value).split())


def replace(value: Any, old: Any, new: Any, count: Any = None) -> str:
    """With ``new`` in place of each ``old``, or of the first ``count`` of them."""
    text, wanted, put = _text(value), _text(old), _text(new)
    if not wanted:
        raise ValueError("there is no text to replace")
    most = -1 if count is None else _whole(count)
    places = text.count(wanted) if count is None else min(text.count(wanted), most)
    _check_length(len(text) + places * (len(put) - len(wanted)))
    return text.replace(wanted, put, most)


def lower(value: Any) -> str:
    """In lower case."""
    return _text(value).lower()


def upper(value: Any) -> str:
    """In upper case."""
    return _text(value).upper()


def cut(value: Any, length: Any) -> str:
    """The first ``length`` characters."""
    return _text(value)[: _whole(length)]


def line_breaks(value: Any) -> str:
    """Returns the text with a line feed for each line break."""
    return _text(value).replace("\r\n", "\n").replace("\r", "\n")


def nfc(value: Any) -> str:
    """In Unicode normalization form C, in which a letter and its accent are one character."""
    return normalized("NFC", _text(value))


def html_unescape(value: Any) -> str:
    """With the characters that HTML's ``&amp;``, ``&#39;`` and the like stand for."""
    # The standard library makes a number of any length, which takes the square of that; seven digits are enough.
    return html.unescape(_NUMBERED_SIGN.sub(lambda found: f"&#{found[1][:8]}", _text(value)))


def split(value: Any, separator: Any, count: Any = None) -> list[str]:
    """A list of the texts between separators, cut at the first ``count`` of them; the empty text is an empty list."""
    text, between = _text(value), _text(separator)
    if not between:
        raise ValueError("the separator is empty")
    return text.split(between, -1 if count is None else _whole(count)) if text else []


# Lists.


def join(values: Any, glue: Any) -> str | None:
    """One text of a list of texts and numbers. The arguments may come in either order."""
    if isinstance(values, str):
        values, glue = glue, values
    if values is None:
        return None
    pieces = [
        to_string(item) if _is_scalar(item) else _refuse(f"{kind_of(item)} in the list") for item in _list(values)
    ]
    between = _text(glue)
    _check_length(sum(map(len, pieces)) + len(between) * len(pieces))
    return between.join(pieces)


def sort(values: Any) -> list[Any]:
    """A list in order: numbers by size, then texts by code point, then anything else by its JSON."""
    return sorted(_list(values), key=_order)


def unique(values: Any) -> list[Any]:
    """A list without what it has already; 1 and 1.0 are the same."""
    kept: dict[tuple[int, Any], Any] = {}
    for item in _list(values):
        kept.setdefault(_same(item), item)
    return list(kept.values())


# Numbers.


def round_half_up(value: Any, digits: Any = 0) -> Any:
    """Rounded to ``digits`` behind the point, halves away from zero."""
    return simplest(_rounded(value, digits, ROUND_HALF_UP))


def round_half_even(value: Any, digits: Any = 0) -> Any:
    """Rounded to ``digits`` behind the point, halves to the even neighbour."""
    return simplest(_rounded(value, digits, ROUND_HALF_EVEN))


def fixed(value: Any, digits: Any = 2) -> str:
    """A text with exactly ``digits`` behind the point, halves rounded away from zero: 9.9 is "9.90"."""
    return format(_rounded(value, digits, ROUND_HALF_UP), "f")


def to_number(value: Any) -> Any:
    """A number of a text with all its digits; null for what is none."""
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return value
    if not isinstance(value, str) or _NUMERAL.fullmatch(value) is None:
        return None
    text = value.strip()
    return exact_json.whole(text) if text.lstrip("+-").isdigit() else exact_json.number(text)


def to_string(value: Any) -> str:
    """The text of a number or a truth value, the JSON of anything else; a text stays as it is."""
    return value if isinstance(value, str) else exact_json.text(value, ascii_only=True, default=str)


# Null.


def coalesce(*values: Any) -> Any:
    """The first of its arguments that is not null; null if all are."""
    return next((value for value in values if value is not None), None)


def null_as_empty(value: Any) -> Any:
    """The empty text for null, anything else as it is."""
    return "" if value is None else value


def empty_as_null(value: Any) -> Any:
    """Null for an empty text, list or object, anything else as it is."""
    return None if value in ("", [], {}) else value


# What they share.


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _refuse(f"{kind_of(value)} is no text")


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else _refuse(f"{kind_of(value)} is no list")


def _refuse(why: str) -> Any:
    raise ValueError(why)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | bool | int | float | Decimal)


def _whole(value: Any) -> int:
    number = value if isinstance(value, int | float | Decimal) and not isinstance(value, bool) else None
    if number is None or number != int(number) or number < 0:
        raise ValueError(f"{kind_of(value)} is no whole number")
    return int(number)


def _digits(value: Any) -> int:
    if (digits := _whole(value)) > MAX_ROUND_DIGITS:
        raise ValueError(f"at most {MAX_ROUND_DIGITS} digits")
    return digits


def _decimal(value: Any) -> Decimal:
    if isinstance(value, str):
        value = to_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError(f"{kind_of(value)} is no number")
    exact = decimal_of(value)
    if is_absurd(exact):
        raise ValueError("the number has too many digits")
    return exact


def _rounded(value: Any, digits: Any, rounding: str) -> Decimal:
    try:
        exact = _decimal(value)
    except ValueError:
        raise ValueError(f"{kind_of(value)} is no number") from None
    rounded = exact.quantize(Decimal(1).scaleb(-_digits(digits)), rounding=rounding, context=EXACT)
    return rounded if rounded else abs(rounded)  # no minus before 0.00


def _check_length(length: int) -> None:
    if length > MAX_TEXT_LENGTH:
        raise ValueError(f"the text would have more than {MAX_TEXT_LENGTH} characters")


def _order(item: Any) -> tuple[int, Any]:
    if isinstance(item, int | float | Decimal) and not isinstance(item, bool):
        return 0, item
    return (1, item) if isinstance(item, str) else (2, exact_json.text(plain(item), sort_keys=True))


def _same(item: Any) -> tuple[int, Any]:
    return _order(item) if not isinstance(item, float | Decimal) else (0, decimal_of(item))


def _functions() -> dict[str, ValueFunction]:
    digits: _Checks = {"digits": _digits}
    times: _Checks = {"format": value_times.check_format, "zone": value_times.zone_of}
    simple: list[Callable[..., Any]] = [
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
            ValueFunction("cut", cut, checks={"length": _whole}),
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


FUNCTIONS = _functions()
"""All functions, by name."""

REPLACE_NULL = frozenset({"coalesce", "null_as_empty"})
"""Those that make something of null, so that a template with one of them is filled in for null, too."""

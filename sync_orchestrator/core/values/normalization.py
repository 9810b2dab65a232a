"""What a third party is known to do to a value, done to both sides before they are compared (rule 35). Pure.

How a value is written and read is in ``adapters/rest/codecs.py``; the functions themselves are in
``expressions/functions.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import reduce
from typing import TYPE_CHECKING, Any

from jmespath.exceptions import JMESPathError

from sync_orchestrator.expressions.functions import FUNCTIONS
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.times import ValueFailed

if TYPE_CHECKING:
    from sync_orchestrator.config.targets import CodecSettings, Normalization

Normalizer = Callable[[object], object]


def build_normalizers(fields: Mapping[str, CodecSettings]) -> dict[str, Normalizer]:
    """By mapped field, what makes one of all values that the third party makes one of."""
    return {name: _all_of(codec.normalize) for name, codec in fields.items() if codec.normalize}


def _all_of(steps: Sequence[Normalization]) -> Normalizer:
    each = [_build_step(step) for step in steps]
    return lambda value: reduce(lambda found, step: step(found), each, value)


def _build_step(step: Normalization) -> Normalizer:
    from sync_orchestrator.config.targets import CutNormalization, FunctionNormalization, RoundNormalization

    if isinstance(step, RoundNormalization):
        return _of_number("round", step.round)
    if isinstance(step, CutNormalization):
        return _of_text("cut", step.cut)
    return _by_expression(step.apply) if isinstance(step, FunctionNormalization) else _STEPS[step]


def _by_expression(expression: str) -> Normalizer:
    """What an expression makes of a value; the value itself where the expression does not fit it."""
    found = compile_selector(expression)

    def apply_expression(value: object) -> Any:
        try:
            return found.search(value)
        except (JMESPathError, TypeError, ValueError, ArithmeticError):
            return value

    return apply_expression


def _for_each_value(change: Normalizer) -> Normalizer:
    """The same for each value in a list or an object; names stay."""

    def change_values(value: object) -> object:
        if isinstance(value, dict):
            return {name: change_values(item) for name, item in value.items()}
        return [change_values(item) for item in value] if isinstance(value, list | tuple) else change(value)

    return change_values


def _if_it_fits(name: str, *args: object) -> Normalizer:
    """A function of the registry; a value that does not fit it stays as it is."""
    function = FUNCTIONS[name]

    def change_if_valid(value: object) -> object:
        try:
            return function.call(value, *args)
        except ValueFailed:
            return value

    return change_if_valid


def _of_text(name: str, *args: object) -> Normalizer:
    change = _if_it_fits(name, *args)
    return _for_each_value(lambda value: change(value) if isinstance(value, str) else value)


def _of_number(name: str, *args: object) -> Normalizer:
    change = _if_it_fits(name, *args)
    return _for_each_value(lambda value: change(value) if isinstance(value, int | float | Decimal) else value)


_STEPS: dict[str, Normalizer] = {
    **{
        name: _of_text(name)
        for name in ("trim", "collapse_spaces", "lower", "upper", "nfc", "html_unescape", "line_breaks")
    },
    "unescape_html": _of_text("html_unescape"),
    "time": _of_text("parse_time"),
    "empty_as_null": _if_it_fits("empty_as_null"),
    "null_as_empty": _if_it_fits("null_as_empty"),
    "sort_list": _if_it_fits("sort"),
    "unique": _if_it_fits("unique"),
}

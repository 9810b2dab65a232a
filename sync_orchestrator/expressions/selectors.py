"""JMESPath, compiled once; a plain path of fields is walked without its interpreter, to the same end.

It knows the functions of ``functions.py`` besides its own. Where expressions stand and what they look at, each
setting says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import cache
from types import new_class
from typing import Any

import jmespath
from jmespath import Options
from jmespath.exceptions import JMESPathError
from jmespath.functions import REVERSE_TYPES_MAP, TYPES_MAP, Functions, signature
from jmespath.parser import ParsedResult

from sync_orchestrator import exact_json
from sync_orchestrator.expressions.functions import FUNCTIONS, UNKNOWN, ValueFunction
from sync_orchestrator.expressions.times import ValueFailed

# JMESPath's own tables of what is a number: they decide which functions take a decimal.
TYPES_MAP["Decimal"] = "number"
REVERSE_TYPES_MAP["number"] = (*REVERSE_TYPES_MAP["number"], "Decimal")

_FIELDS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@cache
def compile_selector(expression: str) -> ParsedResult:
    """The expression, ready to ``search`` documents. Raises JMESPathError for what is none."""
    parsed = jmespath.compile(expression)
    return _Fields(parsed) if _FIELDS.fullmatch(expression) else _Contained(parsed.expression, parsed.parsed)


def _as_method(function: ValueFunction) -> Callable[..., object]:
    """A function of the registry as JMESPath's interpreter calls it."""

    @signature({"types": [], "variadic": True})
    def call_function(self: Functions, *args: object) -> Any:
        return function.call(*args)

    return call_function


_METHODS = {f"_func_{name}": _as_method(function) for name, function in FUNCTIONS.items()}
_ValueFunctions: Any = new_class("_ValueFunctions", (Functions,), exec_body=lambda body: body.update(_METHODS))


class _ExactFunctions(_ValueFunctions):  # type: ignore[misc]
    """The functions of the registry, and JMESPath's where they would lose digits of a number, or not take a decimal."""

    @signature({"types": ["array-number"]})
    def _func_sum(self, numbers: list[Any]) -> Any:
        if not any(isinstance(number, Decimal) for number in numbers):
            return sum(numbers)
        total = Decimal(0)
        for number in numbers:
            total = exact_json.EXACT.add(total, exact_json.decimal_of(number))
        return exact_json.simplify_number(total)

    @signature({"types": ["array-number"]})
    def _func_avg(self, numbers: list[object]) -> object:
        if not numbers:
            return None
        total = self._func_sum(numbers)
        return exact_json.simplify_number(total / len(numbers)) if isinstance(total, Decimal) else total / len(numbers)

    @signature({"types": []})
    def _func_type(self, value: object) -> str:
        return "number" if isinstance(value, Decimal) else TYPES_MAP[type(value).__name__]


OPTIONS = Options(custom_functions=_ExactFunctions())


def check_calls(expression: str) -> None:
    """Checks the functions that an expression calls: their names, the number of arguments, and those that are literals.

    Raises JMESPathError for what is no expression, ValueError for a call that can never work.
    """
    for name, children in _find_calls(jmespath.compile(expression).parsed):
        if name in FUNCTIONS:
            FUNCTIONS[name].check_arguments([_literal_value(child) for child in children], {})
        elif name not in _ExactFunctions.FUNCTION_TABLE:
            raise ValueError(
                f"unknown function '{name}'; expected one of: {', '.join(sorted(_ExactFunctions.FUNCTION_TABLE))}"
            )
        else:
            _check_number(name, len(children))


def _find_calls(node: Any) -> Iterator[tuple[str, list[object]]]:
    if node["type"] == "function_expression":
        yield node["value"], node["children"]
    for child in node["children"]:
        if isinstance(child, dict):
            yield from _find_calls(child)


def _literal_value(node: Any) -> Any:
    return node["value"] if node["type"] == "literal" else UNKNOWN


def _check_number(name: str, given: int) -> None:
    """Checks the number of arguments of one of JMESPath's own functions. Raises ValueError."""
    wanted = _ExactFunctions.FUNCTION_TABLE[name]["signature"]
    more = bool(wanted) and wanted[-1].get("variadic", False)
    if given < len(wanted) or (given > len(wanted) and not more):
        raise ValueError(f"{name} takes {'at least ' if more else ''}{len(wanted)} argument(s), not {given}")


class ExpressionFailed(JMESPathError):
    """An expression cannot be evaluated on a document; the interpreter's own error says why."""


class _Contained(ParsedResult):
    """Raises JMESPathError and nothing else, whatever the interpreter raises on foreign data (rule 37)."""

    def search(self, value: Any, options: Any = None) -> Any:
        try:
            return super().search(value, options=OPTIONS if options is None else options)
        except JMESPathError:
            raise
        except ValueFailed as error:
            raise ExpressionFailed(f"'{self.expression}': {error}") from None
        except Exception as error:
            raise ExpressionFailed(f"'{self.expression}': {type(error).__name__}: {error}") from None


class _Fields(ParsedResult):
    def __init__(self, parsed: ParsedResult) -> None:
        super().__init__(parsed.expression, parsed.parsed)
        self._names = parsed.expression.split(".")

    def search(self, value: object, options: object = None) -> object:
        for name in self._names:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

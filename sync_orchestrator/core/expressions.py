"""JMESPath, compiled once; a plain path of fields is walked without its interpreter, to the same end.

Not here: where expressions stand and what they look at (each setting says so).
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from typing import Any

import jmespath
from jmespath import Options
from jmespath.exceptions import JMESPathError
from jmespath.functions import REVERSE_TYPES_MAP, TYPES_MAP, Functions, signature
from jmespath.parser import ParsedResult

from sync_orchestrator.core import exact_json

# JMESPath's own tables of what is a number: they decide which functions take a decimal.
TYPES_MAP["Decimal"] = "number"
REVERSE_TYPES_MAP["number"] = (*REVERSE_TYPES_MAP["number"], "Decimal")

_NUMERAL = re.compile(r"\s*[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_FIELDS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@cache
def compiled(expression: str) -> ParsedResult:
    """The expression, ready to ``search`` documents. Raises JMESPathError for what is none."""
    parsed = jmespath.compile(expression)
    return _Fields(parsed) if _FIELDS.fullmatch(expression) else _Contained(parsed.expression, parsed.parsed)


class _ExactFunctions(Functions):
    """JMESPath's functions where they would lose digits of a number, or not take a decimal."""

    @signature({"types": ["array-number"]})
    def _func_sum(self, numbers: list[Any]) -> Any:
        if not any(isinstance(number, Decimal) for number in numbers):
            return sum(numbers)
        total = Decimal(0)
        for number in numbers:
            total = exact_json.EXACT.add(total, exact_json.decimal_of(number))
        return exact_json.simplest(total)

    @signature({"types": ["array-number"]})
    def _func_avg(self, numbers: list[Any]) -> Any:
        if not numbers:
            return None
        total = self._func_sum(numbers)
        return exact_json.simplest(total / len(numbers)) if isinstance(total, Decimal) else total / len(numbers)

    @signature({"types": []})
    def _func_to_string(self, value: Any) -> str:
        return value if isinstance(value, str) else exact_json.text(value, ascii_only=True, default=str)

    @signature({"types": []})
    def _func_to_number(self, value: Any) -> Any:
        if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
            return value
        if not isinstance(value, str) or _NUMERAL.fullmatch(value) is None:
            return None
        text = value.strip()
        return int(text) if text.lstrip("+-").isdigit() else exact_json.number(text)

    @signature({"types": []})
    def _func_type(self, value: Any) -> str:
        return "number" if isinstance(value, Decimal) else TYPES_MAP[type(value).__name__]


OPTIONS = Options(custom_functions=_ExactFunctions())


class ExpressionFailed(JMESPathError):
    """An expression cannot be evaluated on a document; the interpreter's own error says why."""


class _Contained(ParsedResult):
    """Raises JMESPathError and nothing else, whatever the interpreter raises on foreign data (rule 37)."""

    def search(self, value: Any, options: Any = None) -> Any:
        try:
            return super().search(value, options=OPTIONS if options is None else options)
        except JMESPathError:
            raise
        except Exception as error:
            raise ExpressionFailed(f"'{self.expression}': {type(error).__name__}: {error}") from None


class _Fields(ParsedResult):
    def __init__(self, parsed: ParsedResult) -> None:
        super().__init__(parsed.expression, parsed.parsed)
        self._names = parsed.expression.split(".")

    def search(self, value: Any, options: Any = None) -> Any:
        for name in self._names:
            if not isinstance(value, dict):
                return None
            value = value.get(name)
        return value

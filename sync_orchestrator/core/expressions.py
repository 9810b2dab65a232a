"""JMESPath, compiled once; a plain path of fields is walked without its interpreter, to the same end.

Not here: where expressions stand and what they look at (each setting says so).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jmespath
from jmespath.exceptions import JMESPathError
from jmespath.parser import ParsedResult

_FIELDS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@cache
def compiled(expression: str) -> ParsedResult:
    """The expression, ready to ``search`` documents. Raises JMESPathError for what is none."""
    parsed = jmespath.compile(expression)
    return _Fields(parsed) if _FIELDS.fullmatch(expression) else _Contained(parsed.expression, parsed.parsed)


class ExpressionFailed(JMESPathError):
    """An expression cannot be evaluated on a document; the interpreter's own error says why."""


class _Contained(ParsedResult):
    """Raises JMESPathError and nothing else, whatever the interpreter raises on foreign data (rule 37)."""

    def search(self, value: Any, options: Any = None) -> Any:
        try:
            return super().search(value, options)
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

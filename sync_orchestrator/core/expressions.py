"""JMESPath, compiled once; a plain path of fields is walked without its interpreter, to the same end.

Not here: where expressions stand and what they look at (each setting says so).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import jmespath
from jmespath.parser import ParsedResult

_FIELDS = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")


@cache
def compiled(expression: str) -> ParsedResult:
    """The expression, ready to ``search`` documents. Raises JMESPathError for what is none."""
    parsed = jmespath.compile(expression)
    return _Fields(parsed) if _FIELDS.fullmatch(expression) else parsed


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

"""Truth values from foreign data: what a field says, never Python's truth of a text (rule 33). Pure."""

from __future__ import annotations

from decimal import Decimal
from functools import cache
from typing import Any

from jmespath.exceptions import JMESPathError
from jmespath.visitor import TreeInterpreter

from sync_orchestrator.errors import SyncError
from sync_orchestrator.expressions.selectors import OPTIONS, compile_selector

_WORDS = {
    "true": True,
    "t": True,
    "yes": True,
    "y": True,
    "on": True,
    "1": True,
    "false": False,
    "f": False,
    "no": False,
    "n": False,
    "off": False,
    "0": False,
    "": False,
}
_BITS = {"AA==": False, "AQ==": True}
"""One byte 0 or 1, such as a BIT(1), in base64, which ``core/values/plain_json.py`` writes bytes in."""
_JOINING = frozenset({"not_expression", "and_expression", "or_expression", "filter_projection"})
_GOING_DOWN = frozenset(
    {"subexpression", "index_expression", "pipe", "projection", "filter_projection", "value_projection"}
)


class NoTruth(SyncError):
    """A value that is neither true nor false; the message says which, and what to write instead."""


def parse_truth(value: object) -> bool:
    """Reads a truth value.

    Null and blank texts are false. The numbers 0 and 1, a byte 0 or 1, and the words true, t, yes, y, on, false, f,
    no, n and off (in any case) are what they say.

    Raises NoTruth for anything else.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, int | float | Decimal) and value in (0, 1):
        return value == 1
    if isinstance(value, bytes) and len(value) == 1 and value[0] in (0, 1):
        return value[0] == 1
    if isinstance(value, str):
        word = value.strip()
        if (read := _WORDS.get(word.lower(), _BITS.get(word))) is not None:
            return read
    raise NoTruth(f"{value!r:.60} is neither true nor false")


def says_something(value: object) -> bool:
    """Whether something is there, for conditions such as ``body.error``, where a text is the error.

    A truth value is what it says, an object or list counts unless it is empty, and any other number or text counts.
    """
    if isinstance(value, dict | list):
        return bool(value)
    try:
        return parse_truth(value)
    except NoTruth:
        return True


class _Interpreter(TreeInterpreter):
    """JMESPath whose ``!``, ``&&`` and ``||`` take a text or number that is a truth value for what it says."""

    def visit_not_expression(self, node: Any, value: Any) -> bool:
        found = self.visit(node["children"][0], value)
        return not (bool(found) if isinstance(found, dict | list) else parse_truth(found))

    def _is_false(self, value: object) -> bool:
        return not says_something(value)


class Condition:
    """An expression of the configuration whose result is true or false."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._plain = compile_selector(expression)
        self._node = self._plain.parsed
        self._joins = _collect_node_types(self._node) & _JOINING
        fields = _collect_fields(self._node)
        self._needs_one_of = fields if self._node["type"] != "field" and self._is_true_of_nothing() else frozenset()

    def holds(self, document: object) -> bool:
        """Whether the condition is true of a document.

        Raises NoTruth where the result is no truth value, where the expression does not fit the document, and where it
        is true only because the document has none of the fields that the expression names: a field that disappeared
        says nothing.
        """
        try:
            holds = parse_truth(self.evaluate_on(document))
        except NoTruth as error:
            raise NoTruth(
                f"'{self._expression}' is to be true or false: {error}; configure a comparison, such as "
                f"\"{self._expression} == 'X'\""
            ) from None
        except (JMESPathError, TypeError, ValueError, ArithmeticError) as error:
            raise NoTruth(f"'{self._expression}' does not fit: {str(error).partition(chr(10))[0]}") from None
        if holds and self._needs_one_of and isinstance(document, dict) and self._needs_one_of.isdisjoint(document):
            raise NoTruth(
                f"'{self._expression}' is true only because there is no field '{sorted(self._needs_one_of)[0]}'"
            )
        return holds

    def applies(self, document: object) -> bool:
        """The same for a rule that picks documents: objects and lists count unless they are empty.

        An expression that does not fit the document picks nothing. Raises NoTruth for another text or number.
        """
        try:
            found = self.evaluate_on(document)
            return bool(found) if isinstance(found, dict | list) else parse_truth(found)
        except NoTruth as error:
            raise NoTruth(f"'{self._expression}' is to be true or false: {error}; configure a comparison") from None
        except (JMESPathError, TypeError, ValueError, ArithmeticError):
            return False

    def evaluate_on(self, document: object) -> Any:
        """What the expression gives. Raises NoTruth for the negation of what is no truth value, and JMESPathError."""
        return _Interpreter(OPTIONS).visit(self._node, document) if self._joins else self._plain.search(document)

    def _is_true_of_nothing(self) -> bool:
        try:
            return parse_truth(self.evaluate_on({}))
        except (NoTruth, JMESPathError, TypeError, ValueError, ArithmeticError):
            return False


@cache
def parse_condition(expression: str) -> Condition:
    """The condition, parsed once."""
    return Condition(expression)


def fields_named_by(expression: str) -> frozenset[str]:
    """The fields of a document itself that an expression names."""
    return _collect_fields(compile_selector(expression).parsed)


def _collect_node_types(node: Any) -> frozenset[str]:
    children = [child for child in node.get("children", ()) if isinstance(child, dict)]
    return frozenset({node["type"]}).union(*map(_collect_node_types, children))


def _collect_fields(node: Any) -> frozenset[str]:
    """The fields of the document itself that an expression names."""
    if node["type"] == "field":
        return frozenset({node["value"]})
    children = [child for child in node.get("children", ()) if isinstance(child, dict)]
    return frozenset().union(*map(_collect_fields, children[:1] if node["type"] in _GOING_DOWN else children))

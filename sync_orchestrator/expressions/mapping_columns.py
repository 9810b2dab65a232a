"""The source fields that each field of a mapping is made of, for lineage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jmespath

Path = tuple[str, ...]
"""Names of fields from the whole document down, such as ``("shop", "price")``."""

_CHAINS = frozenset({"subexpression", "pipe", "index_expression", "projection", "value_projection"})
"""Expressions whose second operand is evaluated on the result of the first one."""


AGREED = "agreed"
"""The name by which mappings read the merged values of fields that people change on both sides, like a part's."""


def columns_of(mapping: Mapping[str, str]) -> dict[str, tuple[Path, ...]]:
    """The fields that expressions read.

    Args:
        mapping: JMESPath expressions over ``{key, group, <part>: {...}}``, by field of the third party.

    Returns:
        By field the sorted paths that it is made of; an expression without any, such as a literal, has none.
    """
    return {name: paths_of(expression) for name, expression in mapping.items()}


def paths_of(expression: str) -> tuple[Path, ...]:
    """The sorted paths that one expression reads of its document."""
    return tuple(sorted(path for path in _collect_paths(jmespath.compile(expression).parsed, ()) if path))


def _collect_paths(node: Any, at: Path) -> set[Path]:
    """The paths that the value of an expression is made of, where its document is at ``at``."""
    kind, children = node["type"], node.get("children", [])
    if kind == "field":
        return {(*at, str(node["value"]))}
    if kind in ("identity", "current", "index", "slice"):
        return {at}
    if kind == "literal":
        return set()
    if kind in _CHAINS:
        return _read_at(children[1], _collect_paths(children[0], at))
    if kind == "filter_projection":
        kept, then, condition = children
        places = _collect_paths(kept, at)
        return _read_at(then, places) | _read_at(condition, places)
    if kind == "function_expression":
        return _read_arguments(children, at)
    return {path for child in children for path in _collect_paths(child, at)}


def _read_at(node: object, places: set[Path]) -> set[Path]:
    return {path for place in places for path in _collect_paths(node, place)}


def _read_arguments(arguments: list[Any], at: Path) -> set[Path]:
    """An expression that is passed as an argument, such as ``&price``, is evaluated on the items of the others."""
    values = {path for each in arguments if each["type"] != "expref" for path in _collect_paths(each, at)}
    for each in arguments:
        if each["type"] == "expref":
            values |= _read_at(each["children"][0], values or {at})
    return values

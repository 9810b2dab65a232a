"""Which headers an expression on ``{body, headers}`` looks at.

A signature covers the body and two headers: the other headers may not decide what a signed event means.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import jmespath

SIGNED_HEADERS = ("webhook-id", "webhook-timestamp")
"""The headers that a signature covers (Standard Webhooks 1.0)."""

_ON_EACH = ("projection", "value_projection", "filter_projection", "flatten", "index_expression", "subexpression")


def reads_unsigned(expression: str, signed: Collection[str] = SIGNED_HEADERS) -> bool:
    """Whether an expression can see a header that no signature covers: by its name, or by all that there is.

    Args:
        expression: JMESPath on ``{body, headers}``.
        signed: The names, in lower case, of the headers that the signature covers.
    """
    parsed: Any = jmespath.compile(expression).parsed
    return _node_reads_headers(parsed, signed, at_top=True)


def _node_reads_headers(node: dict[str, Any], signed: Collection[str], *, at_top: bool) -> bool:
    """Whether a node of the syntax tree does; ``at_top``: it looks at the whole, and not at a piece of it."""
    if not at_top:
        return False
    kind, children = node["type"], [child for child in node["children"] if isinstance(child, dict)]
    if kind == "field":
        return bool(node["value"] == "headers")
    if kind == "current":
        return True
    if kind in ("expref", "identity"):
        return False
    if kind in ("subexpression", "pipe") and children[0]["type"] == "current":
        rest = children[1:]
        return _node_reads_headers(rest[0] if len(rest) == 1 else {**node, "children": rest}, signed, at_top=True)
    if kind in ("subexpression", "pipe") and children[0] == {"type": "field", "children": [], "value": "headers"}:
        return children[1]["type"] != "field" or children[1]["value"] not in signed
    if kind == "value_projection" and children[0]["type"] == "identity":
        return True
    if kind in (*_ON_EACH, "pipe"):
        return _node_reads_headers(children[0], signed, at_top=True)
    return any(_node_reads_headers(child, signed, at_top=True) for child in children)

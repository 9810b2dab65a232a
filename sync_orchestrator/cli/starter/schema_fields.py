"""Finds and describes fields in the schemas of an OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sync_orchestrator.cli.starter.columns import plain_name
from sync_orchestrator.cli.starter.openapi import OpenApiDocument, Schema
from sync_orchestrator.cli.starter.resources import Place, join_step


def find_fields_beside(document: OpenApiDocument, schema: Schema, place: Place) -> Mapping[str, Schema]:
    """The fields of the object that a place is in."""
    found = schema
    for step in place.expression.split(".")[:-1]:
        found = document.list_properties(found).get(step, {})
    return document.list_properties(found) if place.expression.endswith("attributes") else {}


def find_leaves(document: OpenApiDocument, schema: Schema, expression: str, depth: int) -> list[tuple[str, str]]:
    """The plain fields of a response outside of its list, by plain name, with their places."""
    found: list[tuple[str, str]] = []
    for name, field in document.list_properties(schema).items():
        place = join_step(expression, name)
        if document.list_properties(field):
            found += find_leaves(document, field, place, depth + 1) if depth < 2 else []
        elif "items" not in field:
            found.append((plain_name(name), place))
    return found


def constant_of(field: Schema) -> Any:
    """Returns the only value that a field can have; None where it can have several."""
    if "const" in field:
        return field["const"]
    choices = field.get("enum")
    return choices[0] if isinstance(choices, list) and len(choices) == 1 else None


def describe_field(field: Schema) -> str:
    """Returns the type of a field and its choices or format, in words for a comment."""
    if "const" in field:
        return f"always {field['const']!r}"
    kind = field.get("type", "any")
    named = "/".join(str(each) for each in kind if each != "null") if isinstance(kind, list) else str(kind)
    choices = field.get("enum")
    more = (
        f", one of {', '.join(map(str, choices[:6]))}"
        if isinstance(choices, list)
        else (f", {field['format']}" if isinstance(field.get("format"), str) else "")
    )
    return f"{named}{more}"

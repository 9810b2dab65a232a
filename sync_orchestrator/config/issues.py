"""What is wrong with a document, for people: line, field and hint.

A validator of ours begins its message with the field that it means, where that is further in (``read: nothing fills
in …``), and has one line for each thing that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sync_orchestrator.config.environment import Place
from sync_orchestrator.config.place_marks import LINE_MARK
from sync_orchestrator.config.positions import find_child, line_of
from sync_orchestrator.texts.nearest_names import MAX_LISTED, find_nearest_names

_POINTED = re.compile(r"'?([a-z_]\w*(?:\.\w+|\[\d+\])*)'?(:?) ?", re.IGNORECASE)

_HINTS = {
    "missing": "is needed",
    "model_type": "must be a section, with fields below it",
    "model_attributes_type": "must be a section, with fields below it",
    "dict_type": "must be a section, with names below it",
    "list_type": "must be a list",
    "too_short": "needs at least one entry",
    "string_type": "must be a text; put it in quotes",
}


@dataclass(frozen=True, order=True)
class Complaint:
    """One thing that is wrong."""

    line: int
    field: str
    hint: str

    def __str__(self) -> str:
        return f"{self.line}: {self.field}: {self.hint}"


def make_complaint(tree: yaml.Node, place: Place, hint: str) -> Complaint:
    """A complaint about a place of the document."""
    return Complaint(line_of(tree, place), format_place(place), hint)


def list_complaints(error: ValidationError, tree: yaml.Node, schema: dict[str, object]) -> list[Complaint]:
    """All that a validation found. ``schema``: the JSON Schema, which knows the names that could have been meant."""
    found = {
        each
        for details in error.errors(include_url=False, include_input=False)
        for each in _explain_error(details, tree, schema)
    }
    return sorted(found)


def format_place(place: Place) -> str:
    """A place as people read it."""
    return ".".join(str(step) for step in place) or "the whole file"


def _explain_error(details: ErrorDetails, tree: yaml.Node, schema: dict[str, object]) -> Iterator[Complaint]:
    place = _without_tags(tree, details["loc"], missing=details["type"] == "missing")
    kind = details["type"]
    if kind == "value_error":
        for line in details["msg"].removeprefix("Value error, ").splitlines():
            further, hint = _pointed_at(tree, place, line)
            yield make_complaint(tree, further, LINE_MARK.sub(lambda mark: _line_named(tree, mark[1]), hint))
    elif kind == "extra_forbidden":
        yield make_complaint(tree, place, _explain_unknown_field(str(place[-1]), properties_at(schema, place[:-1])))
    else:
        hint = _HINTS.get(kind, details["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("Value "))
        yield make_complaint(tree, place, f"the name {hint}" if "[key]" in details["loc"] else hint)


def _line_named(tree: yaml.Node, place: str) -> str:
    node, line = tree, 0
    for step in place.split("."):
        found = find_child(node, step)
        if found is None:
            return "the default"
        line, node = found
    return f"line {line}"


def _without_tags(tree: yaml.Node, loc: tuple[int | str, ...], *, missing: bool) -> Place:
    """The place in the document: pydantic names the chosen kind of a union as if it were a step."""
    place: list[str | int] = []
    node: yaml.Node | None = tree
    for number, step in enumerate(loc):
        found = None if node is None else find_child(node, step)
        if found is not None:
            node = found[1]
            place.append(step)
        elif missing and number == len(loc) - 1:
            place.append(step)
    return tuple(place)


def _pointed_at(tree: yaml.Node, place: Place, message: str) -> tuple[Place, str]:
    """The place that a message begins with, and the rest of the message."""
    match = _POINTED.match(message)
    node = _find_node(tree, place)
    if match is None or node is None:
        return place, message
    further: list[str | int] = []
    for word in re.findall(r"\w+", match[1]):
        step = int(word) if word.isdigit() else word
        found = find_child(node, step)
        if found is None:
            if match[2] and further:
                further.append(step)
            break
        node = found[1]
        further.append(step)
    return (*place, *further), message[match.end() :] if further and match[2] else message


def _find_node(node: yaml.Node, place: Place) -> yaml.Node | None:
    for step in place:
        found = find_child(node, step)
        if found is None:
            return None
        node = found[1]
    return node


def _explain_unknown_field(name: str, known: list[str]) -> str:
    for nearest in find_nearest_names(name, known, limit=1):
        return f"there is no such field; did you mean '{nearest}'?"
    if 0 < len(known) <= MAX_LISTED:
        return f"there is no such field; known here: {', '.join(known)}"
    return "there is no such field"


def properties_at(schema: dict[str, object], place: Place) -> list[str]:
    """The names of fields that a JSON Schema knows at a place, of every kind that it could be."""
    nodes = _expand_alternatives(schema, schema)
    for step in place:
        below = [inner for node in nodes for inner in _find_schemas_below(node, step)]
        nodes = [inner for node in below for inner in _expand_alternatives(schema, node)]
    return sorted({name for node in nodes for name in node.get("properties", {})})


def _find_schemas_below(node: dict[str, Any], step: str | int) -> list[dict[str, Any]]:
    if isinstance(step, int):
        found = [node.get("items")]
    elif step in node.get("properties", {}):
        found = [node["properties"][step]]
    else:
        found = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
    return [each for each in found if isinstance(each, dict)]


def _expand_alternatives(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _expand_alternatives(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
    choices = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [inner for choice in choices for inner in _expand_alternatives(schema, choice)] if choices else [node]

"""What is wrong with a document, for people: line, field and hint.

A validator of ours begins its message with the field that it means, where that is further in (``read: nothing fills
in …``), and has one line for each thing that is wrong. Not here: what is wrong (the models of this package).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sync_orchestrator.config.environment import Place
from sync_orchestrator.config.place_marks import LINE_MARK
from sync_orchestrator.config.positions import child, line_of

_POINTED = re.compile(r"'?([a-z_]\w*(?:\.\w+|\[\d+\])*)'?(:?) ?", re.IGNORECASE)
_MOST_NAMED = 12

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


def complaint(tree: yaml.Node, place: Place, hint: str) -> Complaint:
    """A complaint about a place of the document."""
    return Complaint(line_of(tree, place), dotted(place), hint)


def complaints(error: ValidationError, tree: yaml.Node, schema: dict[str, Any]) -> list[Complaint]:
    """All that a validation found. ``schema``: the JSON Schema, which knows the names that could have been meant."""
    found = {
        each for details in error.errors(include_url=False, include_input=False) for each in _of(details, tree, schema)
    }
    return sorted(found)


def dotted(place: Place) -> str:
    """A place as people read it."""
    return ".".join(str(step) for step in place) or "the whole file"


def _of(details: ErrorDetails, tree: yaml.Node, schema: dict[str, Any]) -> Iterator[Complaint]:
    place = _without_tags(tree, details["loc"], missing=details["type"] == "missing")
    kind = details["type"]
    if kind == "value_error":
        for line in details["msg"].removeprefix("Value error, ").splitlines():
            further, hint = _pointed_at(tree, place, line)
            yield complaint(tree, further, LINE_MARK.sub(lambda mark: _line_named(tree, mark[1]), hint))
    elif kind == "extra_forbidden":
        yield complaint(tree, place, _unknown(str(place[-1]), properties_at(schema, place[:-1])))
    else:
        hint = _HINTS.get(kind, details["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("Value "))
        yield complaint(tree, place, f"the name {hint}" if "[key]" in details["loc"] else hint)


def _line_named(tree: yaml.Node, place: str) -> str:
    node, line = tree, 0
    for step in place.split("."):
        found = child(node, step)
        if found is None:
            return "the default"
        line, node = found
    return f"line {line}"


def _without_tags(tree: yaml.Node, loc: tuple[int | str, ...], *, missing: bool) -> Place:
    """The place in the document: pydantic names the chosen kind of a union as if it were a step."""
    place: list[str | int] = []
    node: yaml.Node | None = tree
    for number, step in enumerate(loc):
        found = None if node is None else child(node, step)
        if found is not None:
            node = found[1]
            place.append(step)
        elif missing and number == len(loc) - 1:
            place.append(step)
    return tuple(place)


def _pointed_at(tree: yaml.Node, place: Place, message: str) -> tuple[Place, str]:
    """The place that a message begins with, and the rest of the message."""
    match = _POINTED.match(message)
    node = _at(tree, place)
    if match is None or node is None:
        return place, message
    further: list[str | int] = []
    for word in re.findall(r"\w+", match[1]):
        step = int(word) if word.isdigit() else word
        found = child(node, step)
        if found is None:
            if match[2] and further:
                further.append(step)
            break
        node = found[1]
        further.append(step)
    return (*place, *further), message[match.end() :] if further and match[2] else message


def _at(node: yaml.Node, place: Place) -> yaml.Node | None:
    for step in place:
        found = child(node, step)
        if found is None:
            return None
        node = found[1]
    return node


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    if close:
        return f"there is no such field; did you mean '{close[0]}'?"
    if 0 < len(known) <= _MOST_NAMED:
        return f"there is no such field; known here: {', '.join(known)}"
    return "there is no such field"


def properties_at(schema: dict[str, Any], place: Place) -> list[str]:
    """The names of fields that a JSON Schema knows at a place, of every kind that it could be."""
    nodes = _alternatives(schema, schema)
    for step in place:
        below = [inner for node in nodes for inner in _below(node, step)]
        nodes = [inner for node in below for inner in _alternatives(schema, node)]
    return sorted({name for node in nodes for name in node.get("properties", {})})


def _below(node: dict[str, Any], step: str | int) -> list[dict[str, Any]]:
    if isinstance(step, int):
        found = [node.get("items")]
    elif step in node.get("properties", {}):
        found = [node["properties"][step]]
    else:
        found = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
    return [each for each in found if isinstance(each, dict)]


def _alternatives(schema: dict[str, Any], node: dict[str, Any]) -> list[dict[str, Any]]:
    if "$ref" in node:
        return _alternatives(schema, schema["$defs"][node["$ref"].rsplit("/", 1)[-1]])
    choices = [*node.get("anyOf", ()), *node.get("oneOf", ())]
    return [inner for choice in choices for inner in _alternatives(schema, choice)] if choices else [node]

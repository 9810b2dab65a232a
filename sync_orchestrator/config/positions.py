"""Where things stand in a YAML file: from a place in the document to its line."""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from sync_orchestrator.config.environment import Place


def line_of(node: yaml.Node, place: Place) -> int:
    """The line of a place; of what is missing, that of the nearest thing around it."""
    line: int = node.start_mark.line + 1
    for step in place:
        found = find_child(node, step)
        if found is None:
            break
        line, node = found
    return line


def find_child(node: yaml.Node, step: str | int) -> tuple[int, yaml.Node] | None:
    """The line of one step further in, and what stands there; None where nothing does."""
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and 0 <= step < len(node.value):
        item: yaml.Node = node.value[step]
        return item.start_mark.line + 1, item
    if not isinstance(node, yaml.MappingNode):
        return None
    merged: list[yaml.Node] = []
    for name, value in node.value:
        if name.value == str(step):
            return name.start_mark.line + 1, value
        if name.tag == "tag:yaml.org,2002:merge":
            merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
    return next((found for each in merged if (found := find_child(each, step)) is not None), None)


def walk_scalars(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, str, int]]:
    """Each plain text in a document, names included, with its place and line."""
    if isinstance(node, yaml.ScalarNode):
        if node.style is None:
            yield place, node.value, node.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from walk_scalars(item, (*place, number))
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                further = (*place, name.value)
                yield from walk_scalars(name, further)
                yield from walk_scalars(value, further)


def written_twice(node: yaml.Node, place: Place = ()) -> Iterator[tuple[Place, int, int]]:
    """Names that stand twice in one mapping, of which YAML takes the last: place, line, and line of the first."""
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            yield from written_twice(item, (*place, number))
    elif isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                continue
            line = name.start_mark.line + 1
            if name.value in first and name.value != "<<":
                yield (*place, name.value), line, first[name.value]
            first.setdefault(name.value, line)
            yield from written_twice(value, (*place, name.value))

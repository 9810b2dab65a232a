"""Finds the resources of an OpenAPI document: a collection, its single records, and where these are in bodies."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sync_orchestrator.cli.starter.columns import plain_name
from sync_orchestrator.cli.starter.openapi import OpenApiDocument, Operation, Schema
from sync_orchestrator.errors import ConfigError

PARAMETER = re.compile(r"\{([^{}]+)\}")
_MAX_DEPTH = 3


@dataclass(frozen=True, slots=True)
class Resource:
    """The operations of one kind of record; ``parents`` are the parameters in the path before it."""

    path: str
    id_parameter: str | None
    parents: tuple[str, ...]
    create: Operation | None
    listing: Operation | None
    read: Operation | None
    update: Operation | None
    delete: Operation | None

    @property
    def operations(self) -> list[Operation]:
        """The operations that exist, in the order of a record's life."""
        return [each for each in (self.create, self.listing, self.read, self.update, self.delete) if each is not None]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record, or a list of them, is in a body: a JMESPath, and the schema of a record."""

    expression: str
    schema: Schema


def list_resources(document: OpenApiDocument) -> list[Resource]:
    """All resources, the most complete ones first."""
    items: dict[str, str] = {}
    for path in document.paths:
        parent, _, last = path.rpartition("/")
        if PARAMETER.fullmatch(last):
            items.setdefault(parent, path)
    found = [
        _make_resource(document, path, items.get(path))
        for path in {**document.paths, **items}
        if not PARAMETER.search(path.rpartition("/")[2])
    ]
    return sorted(
        (each for each in found if len(each.operations) > 1 and (each.create or each.update)),
        key=lambda each: (-len(each.operations), len(each.parents), each.path),
    )


def find_resource(document: OpenApiDocument, entity: str, path: str = "", *, reads: bool = False) -> Resource:
    """The resource of an entity, by its path or by its name.

    Args:
        document: The document.
        entity: What a record is called, such as ``product``; its plural counts, too.
        path: The path of the collection, where the name does not decide.
        reads: Whether it is only read, so that one without writes is good, too.

    Raises:
        ConfigError: No resource fits, or several do; the message names the choices.
    """
    known = list_resources(document)
    if reads:
        paths = document.paths.keys() - {each.path for each in known}
        only_listed = (
            _make_resource(document, path, None)
            for path in sorted(paths)
            if not PARAMETER.search(path.rpartition("/")[2])
        )
        known += [each for each in only_listed if each.listing is not None]
    option = "--source-path" if reads else "--third-party-path"
    names = ", ".join(each.path for each in known) or "none: no path has operations that list and write records"
    if path:
        wanted = "/" + path.strip("/")
        for each in known:
            if plain_path(each.path) == plain_path(wanted):
                return each
        raise ConfigError(f"{option}: {document.source} has no collection {wanted}; expected one of: {names}")
    fitting = [each for each in known if plain_name(each.path.rpartition("/")[2]) in _list_plurals(entity)]
    if not fitting and len(known) == 1:
        return known[0]
    best = [
        each
        for each in fitting
        if len(each.operations) == len(fitting[0].operations) and len(each.parents) == len(fitting[0].parents)
    ]
    if len(best) == 1:
        return best[0]
    what = "several collections" if best else "no collection"
    choices = ", ".join(each.path for each in best) if best else names
    raise ConfigError(
        f"{document.source}: {what} may be the one of '{entity}': name it with {option}; expected one of: {choices}"
    )


def plain_path(path: str) -> str:
    """A path with its parameters' names left out, so that two spellings are the same."""
    return PARAMETER.sub("{}", path.rstrip("/"))


def _list_plurals(entity: str) -> set[str]:
    name = plain_name(entity)
    plurals = {name, f"{name}s", f"{name}es"}
    return plurals | {f"{name[:-1]}ies"} if name.endswith("y") else plurals


def _make_resource(document: OpenApiDocument, path: str, item: str | None) -> Resource:
    here, below = document.paths.get(path, {}), document.paths.get(item or "", {})
    return Resource(
        path=path,
        id_parameter=PARAMETER.findall(item)[-1] if item else None,
        parents=tuple(PARAMETER.findall(path)),
        create=here.get("post"),
        listing=here.get("get"),
        read=below.get("get"),
        update=below.get("patch") or below.get("put") or below.get("post"),
        delete=below.get("delete"),
    )


def record_place(document: OpenApiDocument, schema: Schema, fields: Collection[str]) -> Place:
    """Where one record is in a body: the object that has most of the fields; the outermost of equals."""
    places = list(_find_objects(document, schema, "@", 0))
    return max(places, key=lambda place: _rate_fit(document, place, fields), default=Place("@", schema))


def list_place(document: OpenApiDocument, schema: Schema, fields: Collection[str]) -> Place | None:
    """Where the list of records is in a body, and the schema of one of them; None where there is none."""
    places = []
    for expression, item in _find_arrays(document, schema, "@", 0):
        for place in _find_objects(document, item, "@", 1):
            inner = "" if place.expression == "@" else f"[].{place.expression}"
            places.append(Place(expression + inner if expression != "@" or not inner else inner, place.schema))
    return max(places, key=lambda place: _rate_fit(document, place, fields), default=None)


def _rate_fit(document: OpenApiDocument, place: Place, fields: Collection[str]) -> tuple[int, int]:
    here = document.list_properties(place.schema)
    return len(here.keys() & set(fields)), -place.expression.count(".")


def _find_objects(document: OpenApiDocument, schema: Schema, expression: str, depth: int) -> Iterator[Place]:
    found = document.resolve_schema(schema)
    properties = document.list_properties(found)
    if not properties:
        if depth == 0:
            yield Place(expression, found)
        return
    yield Place(expression, found)
    if depth < _MAX_DEPTH:
        for name, inner in properties.items():
            if document.list_properties(inner):
                yield from _find_objects(document, inner, join_step(expression, name), depth + 1)


def _find_arrays(
    document: OpenApiDocument, schema: Schema, expression: str, depth: int
) -> Iterator[tuple[str, Schema]]:
    found = document.resolve_schema(schema)
    if "items" in found:
        yield expression, document.resolve_schema(found["items"])
        return
    if depth < _MAX_DEPTH:
        for name, inner in document.list_properties(found).items():
            yield from _find_arrays(document, inner, join_step(expression, name), depth + 1)


def join_step(expression: str, name: str) -> str:
    """A JMESPath one step further in."""
    step = name if re.fullmatch(r"[A-Za-z_]\w*", name) else '"' + name.replace('"', '\\"') + '"'
    return step if expression == "@" else f"{expression}.{step}"

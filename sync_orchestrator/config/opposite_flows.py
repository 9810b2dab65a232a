"""Entities that write the same field, or pass a value round in a circle: what is refused before anything is written.

Pure. A collection is recognized by the addresses of its calls: the path of the list, and the paths under which one
record is read or written, whatever the names in their templates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from sync_orchestrator.config.calls import ListCallSettings, RequestSettings
from sync_orchestrator.config.sources import PartSettings, RestSourceSettings, SharedSourceSettings, Source
from sync_orchestrator.config.targets import TargetSettings, ThirdPartySettings
from sync_orchestrator.expressions.mapping_columns import paths_of

if TYPE_CHECKING:
    from sync_orchestrator.config.entities import EntitySettings

_NAMES = re.compile(r"\{\{.*?\}\}")


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of the records of a collection. ``addresses``: those of the collection's calls."""

    system: str
    addresses: frozenset[str]
    path: tuple[str, ...]

    def is_same(self, other: _Field) -> bool:
        """Whether both are one field, or one holds the other."""
        length = min(len(self.path), len(other.path))
        return (
            self.system == other.system
            and bool(self.addresses & other.addresses)
            and self.path[:length] == other.path[:length]
        )


@dataclass(frozen=True, slots=True)
class _Flow:
    """An entity's mapped field, from the field of a source to the one of its third party."""

    entity: str
    field: str
    source: _Field
    target: _Field


def find_write_conflicts(
    entities: Mapping[str, EntitySettings],
    sources: Mapping[str, Source],
    third_parties: Mapping[str, ThirdPartySettings],
) -> Iterator[str]:
    """Yields what is wrong, a sentence each.

    Two entities write the same records of a third party against one another, or entities write one another's fields in
    a loop.
    """
    for (name, one), (other_name, other) in combinations(entities.items(), 2):
        yield from _compare_targets(name, one.mapping, one.third_party, other_name, other.mapping, other.third_party)
    yield from _find_loops(list(_list_flows(entities, sources, third_parties)))


def _compare_targets(
    name: str,
    mapping: Mapping[str, str],
    one: TargetSettings,
    other_name: str,
    other_mapping: Mapping[str, str],
    other: TargetSettings,
) -> Iterator[str]:
    if one.system != other.system or not _share_records(one, other):
        return
    keys = {one.key_field, other.key_field}
    fields, others = (
        {_place_of(target, field): field for field in mapped if field not in keys}
        for target, mapped in ((one, mapping), (other, other_mapping))
    )
    place = f"entities.{other_name}"
    if both := sorted(fields.keys() & others.keys()):
        yield (
            f"{place}.mapping.{others[both[0]]}: entities.{name}.mapping.{fields[both[0]]} writes the same field of "
            f"the same records of {one.system}, so each would overwrite the other. Map it in one of the two entities"
        )
        return
    for where, target, them in ((place, other, name), (f"entities.{name}", one, other_name)):
        if _overwrites_records(target):
            yield (
                f"{where}.third_party.update: a PUT writes whole records, and entities.{them} writes other fields of "
                f"the same records of {one.system}, which it would remove. Use a call that changes fields alone, such "
                "as PATCH, or let one entity have all fields"
            )
            return


def _share_records(one: TargetSettings, other: TargetSettings) -> bool:
    """Whether two entities are kept in one collection, unless their lists tell their records apart by a parameter."""
    if not _addresses_of_target(one) & _addresses_of_target(other):
        return False
    filters, others = (_constant_params(target.list) for target in (one, other))
    return all(others.get(name, value) == value for name, value in filters.items())


def _constant_params(call: ListCallSettings | None) -> dict[str, str]:
    params = {} if call is None else call.params
    return {name: str(value) for name, value in params.items() if "{{" not in str(value)}


def _overwrites_records(target: TargetSettings) -> bool:
    calls = [target.update, None if target.bulk_update is None else target.bulk_update.request]
    return any(call is not None and call.method == "PUT" for call in calls)


def _addresses_of_target(target: TargetSettings) -> frozenset[str]:
    return _addresses(target.list, target.update, target.read)


def _addresses_of_part(part: PartSettings) -> frozenset[str]:
    changes = part.changes if isinstance(part.changes, ListCallSettings) else None
    return _addresses(part.list, part.read, changes)


def _addresses(*calls: RequestSettings | None) -> frozenset[str]:
    """The addresses of some calls. Where one address takes all calls, as in GraphQL, the body tells them apart."""
    found = set()
    for call in calls:
        if call is None:
            continue
        path = _NAMES.sub("{}", call.path)
        if "{}" in path or call.method == "GET":
            found.add(path)
        elif call.body is not None:
            found.add(f"{path} {call.body!r}")
    return frozenset(found)


def _place_of(target: TargetSettings, field: str) -> str:
    """Where a mapped field is in their records."""
    codec = target.fields.get(field)
    return field if codec is None or codec.read is None else codec.read


def _list_flows(
    entities: Mapping[str, EntitySettings],
    sources: Mapping[str, Source],
    third_parties: Mapping[str, ThirdPartySettings],
) -> Iterator[_Flow]:
    for name, entity in entities.items():
        target = entity.third_party
        there = _addresses_of_target(target)
        for field, expression in entity.mapping.items():
            place = paths_of(_place_of(target, field))
            for path in paths_of(expression):
                part = entity.parts.get(path[0])
                system = None if part is None else _system_of(path[0], sources, third_parties)
                if part is None or system is None or len(path) < 2:
                    continue
                source = _Field(system, _addresses_of_part(part), tuple(path[1:]))
                for written in place:
                    yield _Flow(name, field, source, _Field(target.system, there, tuple(written)))


def _system_of(name: str, sources: Mapping[str, Source], third_parties: Mapping[str, ThirdPartySettings]) -> str | None:
    """The third party that a source system is: by ``same_as``, or an API of the same name; None where it is none."""
    source = sources.get(name)
    if isinstance(source, SharedSourceSettings):
        return source.same_as
    return name if isinstance(source, RestSourceSettings) and name in third_parties else None


def _find_loops(flows: list[_Flow]) -> Iterator[str]:
    """Follows each flow to the flows that read what it writes; the first that leads back to it is a loop."""
    told: set[frozenset[tuple[str, str]]] = set()
    for first in flows:
        trail = _find_way_back(first, flows)
        if trail is None:
            continue
        members = frozenset((flow.entity, flow.field) for flow in trail)
        if members in told:
            continue
        told.add(members)
        yield _describe_loop(trail)


def _find_way_back(first: _Flow, flows: list[_Flow]) -> list[_Flow] | None:
    waiting, seen = [[first]], {id(first)}
    while waiting:
        trail = waiting.pop(0)
        if trail[-1].target.is_same(first.source):
            return trail
        for flow in flows:
            if id(flow) not in seen and trail[-1].target.is_same(flow.source):
                seen.add(id(flow))
                waiting.append([*trail, flow])
    return None


def _describe_loop(trail: list[_Flow]) -> str:
    first, *others = trail
    place = f"entities.{first.entity}.mapping.{first.field}"
    read = f"'{'.'.join(first.source.path)}' of {first.source.system}"
    if not others:
        return f"{place}: writes {read} back to where it is read. Leave it out"
    back = " and ".join(f"entities.{flow.entity}.mapping.{flow.field}" for flow in others)
    return (
        f"{place}: reads {read}, which {back} writes again from what this writes: the value would go in a circle. "
        "Let one side own it, and leave one of these fields out"
    )

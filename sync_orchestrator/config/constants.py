"""Constants that calls send beside values of a record, and that no comparison sees.

Only mapped fields are compared. A constant in a body is sent with each write, and a change of it at the third party is
not noticed; so ``check`` names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sync_orchestrator.config.entities import EntitySettings
from sync_orchestrator.config.targets import TargetSettings
from sync_orchestrator.expressions.templates import constants_added, names_in, takes_fields_of

_TECHNICAL = ("_", "@", "$")
"""What names of types and the like begin with, such as ``__class__``, ``@type`` and ``$type``."""


def uncompared_constants(entity: EntitySettings) -> dict[str, list[str]]:
    """The names of constants that are sent and not compared, by the setting that sends them.

    A constant is one of them where it is in the same object as a value of the record. A name that is mapped, too, is
    left out: it is compared.
    """
    found: dict[str, list[str]] = {}
    for place, template, value in _find_body_templates(entity.third_party):
        names = [
            name
            for name in dict.fromkeys(_find_constants_beside(template, value))
            if name not in entity.mapping and not name.startswith(_TECHNICAL)
        ]
        if names:
            found[place] = names
    return found


def _find_body_templates(target: TargetSettings) -> Iterator[tuple[str, object, str]]:
    """Each template of a body or a value, its place, and the name in it that stands for what is written."""
    for name in ("create", "update"):
        if (call := getattr(target, name)) is not None:
            yield f"{name}.body", call.body, "payload"
            for number, follower in enumerate(call.then):
                yield f"{name}.then[{number}].body", follower.body, "payload"
                if follower.if_missing is not None:
                    yield f"{name}.then[{number}].if_missing.body", follower.if_missing.body, "payload"
    for name, bulk in target.collect_bulk_calls().items():
        yield f"{name}.item", bulk.item, "payload"
        yield f"{name}.request.body", bulk.request.body, "payload"
    for name, codec in target.fields.items():
        yield f"fields.{name}.write", codec.write, "value"


def _find_constants_beside(template: object, value: str) -> Iterator[str]:
    """The names of constants that are in one object with a field of ``value``, or with it itself."""
    if isinstance(template, str):
        yield from constants_added(template, value)
    elif isinstance(template, Mapping):
        if any(takes_fields_of(part, value) for part in template.values()):
            yield from (str(name) for name, part in template.items() if not names_in(part))
        for part in template.values():
            yield from _find_constants_beside(part, value)
    elif isinstance(template, list | tuple):
        for part in template:
            yield from _find_constants_beside(part, value)

"""``${NAME}`` and ``${NAME:-default}`` in ``sync.yaml``: how secrets come in without standing in the file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Self

from sync_orchestrator.texts.masking import MIN_SECRET_LENGTH, register_variables

Place = tuple[str | int, ...]
"""Where something stands in the document: names and numbers, from the outside."""

NAMED = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class FromEnvironment(str):
    """A text with values of the environment in it. ``template``: the same, with their names in place of them."""

    __slots__ = ("template",)
    template: str

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Fills in what the environment has, or else the defaults; what has neither is left as it is.

        What the environment has counts as a secret in all texts of this process from here on.
        """
        register_variables(name for name, _ in NAMED.findall(text))
        made = cls(NAMED.sub(lambda match: os.environ.get(match[1], match[0] if match[2] is None else match[2]), text))
        made.template = NAMED.sub(
            lambda match: f"{{{{ '{match[1]}' | environment }}}}" if match[1] in os.environ else match[2] or "", text
        )
        return made


def as_template(value: object) -> Any:
    """Returns what a template is made of.

    A value of the environment is in it by name, so it is never read as a template itself, nor shown in an error.
    """
    if isinstance(value, FromEnvironment):
        return value.template
    if isinstance(value, Mapping):
        return {name: as_template(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_template(part) for part in value]
    return value


def filled_in(value: object) -> object:
    """A document with the environment's values in its texts."""
    if isinstance(value, dict):
        return {name: filled_in(part) for name, part in value.items()}
    if isinstance(value, list):
        return [filled_in(part) for part in value]
    return FromEnvironment.from_text(value) if isinstance(value, str) and NAMED.search(value) else value


def find_unset_variables(value: object, place: Place = ()) -> list[tuple[Place, str]]:
    """Where a document asks for what the environment does not have, and the variable's name."""
    if isinstance(value, dict):
        return [found for name, part in value.items() for found in find_unset_variables(part, (*place, name))]
    if isinstance(value, list):
        return [found for number, part in enumerate(value) for found in find_unset_variables(part, (*place, number))]
    if not isinstance(value, str):
        return []
    return [(place, match[1]) for match in NAMED.finditer(value) if match[1] not in os.environ and match[2] is None]


def without_values(message: str, text: str) -> str:
    """A message about a document, with the names of its variables in place of their values."""
    values = {os.environ[name]: name for name, _ in NAMED.findall(text) if name in os.environ}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_SECRET_LENGTH:
            message = message.replace(value, f"${{{values[value]}}}")
    return message

"""Records to try a third party with: made of a sample, with keys of their own, and changed a little where asked.

A sample is a record as the mapping makes it. Pure.
"""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sync_orchestrator.config import EntitySettings
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.errors import ConfigError

_FREE_TEXT = re.compile(r"name|title|label|text|descr|note|comment", re.IGNORECASE)
_TIME = re.compile(r"(\d{4}-\d\d-)(\d\d)([T ]\d\d:\d\d.*|)")
_DECIMAL = re.compile(r"(\d{1,12})(\.\d+)")
_A_CODE = re.compile(r"[A-Z0-9_.:+-]*|\d.*|https?://.*|[0-9a-f-]{32,}")


def unknown_key_like(key: str) -> str:
    """A key that nobody has, of the form of ``key``: digits, a UUID or a text."""
    if key.isascii() and key.isdigit():
        return f"9{secrets.randbelow(10**8):08}"
    try:
        return str(uuid.uuid4()) if str(uuid.UUID(key)) == key else uuid.uuid4().hex
    except ValueError:
        return "sync-orchestrator-no-such-key"


class Samples:
    """Makes payloads of one entity. ``text``: the field that takes any text, where it is not to be guessed."""

    def __init__(
        self,
        entity: EntitySettings,
        samples: Sequence[Json],
        group: str | None,
        *,
        text: str | None = None,
        prefix: str | None = None,
    ) -> None:
        self._fields = list(entity.mapping)
        self._samples: list[Json] = [{name: sample.get(name) for name in self._fields} for sample in samples]
        self._key_field = entity.third_party.key_field
        self._of_group = [name for name, expression in entity.mapping.items() if expression.strip() == "group"]
        self._own = {
            self._key_field,
            *self._of_group,
            *(name for name, expression in entity.mapping.items() if expression.strip() == "key"),
        }
        self._times = {name for name, codec in entity.third_party.fields.items() if codec.kind == "time"}
        self._key_is_number = isinstance(samples[0].get(self._key_field), int)
        pattern = entity.third_party.key_pattern
        self.prefix = _make_prefix(pattern, self._key_is_number, prefix)
        self.group = group if group is not None else self._told_group()
        if text is not None and text not in self._fields:
            raise ConfigError(f"the mapping has no field '{text}'; it has {', '.join(self._fields)}")
        self.text = text or self._find_field(str)
        self.decimal = self._find_field(float)
        self.number = self._find_field(int)
        self.truth = self._find_field(bool)

    def build_payload(self, key: str, group: str | None, change: int = 0, **fields: object) -> Json:
        """A record with this key; another ``change``, another content. Of several samples, each is a content."""
        made = dict(self._samples[change % len(self._samples)])
        if change >= len(self._samples):
            made |= self._change_field(change)
        for name in self._own:
            made[name] = group if name in self._of_group else self._write_key(key)
        return {**made, **fields}

    def suggest_changes(self, payload: Json) -> Json:
        """Other values for all mapped fields of a record that can get one, by field.

        Those of another sample where it has others, since they are valid there; else one that is close to the present
        value. Null, an empty text, a truth value in a text, and what looks like a code have none.
        """
        found = {}
        for name, value in payload.items():
            if name in self._own:
                continue
            others = [sample[name] for sample in self._samples if compute_digest(sample[name]) != compute_digest(value)]
            other = others[0] if others else _other_value(name, value)
            if compute_digest(other) != compute_digest(value):
                found[name] = other
        return found

    @property
    def changeable(self) -> bool:
        """Whether there are two contents to tell apart."""
        return self._digest_contents(0) != self._digest_contents(1)

    def _digest_contents(self, change: int) -> bytes:
        return compute_digest(self.build_payload("k", "g", change))

    def _change_field(self, change: int) -> Json:
        sample = self._samples[0]
        if self.text is not None:
            return {self.text: f"{sample[self.text] or ''} {change}".strip()}
        if self.decimal is not None:
            return {self.decimal: sample[self.decimal] + change}
        if self.number is not None:
            return {self.number: sample[self.number] + change}
        return {} if self.truth is None else {self.truth: sample[self.truth] ^ bool(change % 2)}

    def _find_field(self, kind: type) -> str | None:
        """A field that holds a value of this kind, and is not known to follow rules of its own."""
        known = self._own | self._times
        fitting = [name for name in self._fields if name not in known and type(self._samples[0][name]) is kind]
        if kind is str:
            fitting = [name for name in fitting if _FREE_TEXT.search(name)] or [
                name for name in fitting if not _A_CODE.fullmatch(self._samples[0][name])
            ]
        return next(iter(fitting), None)

    def _told_group(self) -> str | None:
        return next(
            (str(self._samples[0][name]) for name in self._of_group if self._samples[0][name] is not None), None
        )

    def _write_key(self, key: str) -> object:
        return int(key) if self._key_is_number and key.isdigit() else key


def _other_value(name: str, value: object) -> Any:
    """A value that is close to another one and of its kind; the value itself where none can be made."""
    match value:
        case bool():
            return not value
        case int() | float() | Decimal():
            return value + 1
        case str() if (time := _TIME.fullmatch(value)) is not None:
            return f"{time[1]}{'11' if time[2] == '12' else '12'}{time[3]}"
        case str() if (number := _DECIMAL.fullmatch(value)) is not None:
            return f"{int(number[1]) + 1}{number[2]}"
        case str() if value.strip() and (_FREE_TEXT.search(name) or not _A_CODE.fullmatch(value)):
            return f"{value} 1"
        case list() if value:
            return [*value[:-1], _other_value(name, value[-1])]
        case dict() if value:
            return {key: _other_value(key, part) for key, part in value.items()}
    return value


def _make_prefix(pattern: str | None, is_number: bool, told: str | None) -> str:
    """How keys begin that nobody has: some of it is random, whatever is asked for."""
    digits = f"{secrets.randbelow(10**6):06}"
    ways = [f"9{digits}"] if is_number else [f"sync-test-{digits}-", f"T{digits}", f"9{digits}"]
    for prefix in ways if told is None else [f"{told}{digits}"]:
        if pattern is None or re.fullmatch(pattern, f"{prefix}10"):
            return prefix
    raise ConfigError(f"no key could be made that fits key_pattern '{pattern}': say with --prefix how keys begin")

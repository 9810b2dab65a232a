"""From a record's parts to the third party's payload, and the digest by which payloads are compared."""

from __future__ import annotations

import hashlib
import math
from decimal import Decimal
from typing import Any

import orjson
from jmespath.exceptions import JMESPathError

from sync_orchestrator.core import exact_json
from sync_orchestrator.core.errors import MappingFailed
from sync_orchestrator.core.expressions import compiled


class Mapping:
    """An entity's mapping: third-party field by third-party field, a JMESPath over ``{key, group, <part>…}``."""

    def __init__(self, expressions: dict[str, str]) -> None:
        self._compiled = {name: compiled(text) for name, text in expressions.items()}
        self.fields = tuple(expressions)
        self._names = expressions.keys()
        self.fingerprint = digest(dict(expressions)).hex()

    def payload(self, key: str, group: str | None, parts: dict[str, Any]) -> dict[str, Any]:
        """The payload of one record.

        Raises MappingFailed naming the field.
        """
        document = {**parts, "key": key, "group": group}
        payload = {}
        for name, expression in self._compiled.items():
            try:
                payload[name] = expression.search(document)
            except (JMESPathError, TypeError, ValueError, ArithmeticError) as error:
                raise MappingFailed(f"mapping.{name}: {error}") from None
        return payload

    def digest_of_theirs(self, fields: dict[str, Any]) -> bytes:
        """The digest of a record as the third party shows it; what it added is left out."""
        return digest(fields if fields.keys() == self._names else {name: fields.get(name) for name in self.fields})


def digest(value: Any) -> bytes:
    """16 bytes of BLAKE2b over the canonical JSON of a value: sorted keys, 1.0 and 1 alike."""
    return hashlib.blake2b(_sorted_json(plain(value)), digest_size=16).digest()


def canonical(value: Any) -> str:
    """JSON text that is the same for equal values.

    Raises ValueError for numbers that are not finite, RecursionError for absurd depth.
    """
    return exact_json.text(plain(value), sort_keys=True)


def _sorted_json(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS | exact_json.ONLY_JSON,
                            default=exact_json.decimal_fragment)
    except TypeError:  # whole numbers of more than 64 bits, lone surrogates, great depth
        return exact_json.text(value, sort_keys=True).encode("utf-8", "surrogatepass")


_FLOATS_ARE_WHOLE = 2.0**53
_AS_THEY_ARE = frozenset({str, int, bool, type(None)})


def plain(value: Any) -> Any:
    """A JSON value with whole numbers as such: 1 for 1.0; a decimal is a float where one is written alike.

    Raises ValueError for numbers that are not finite, or of absurd size.
    """
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("a number is not finite")
        if not value.is_integer():
            return value
        return int(value) if abs(value) < _FLOATS_ARE_WHOLE else int(Decimal(repr(value)))
    if isinstance(value, Decimal):
        return exact_json.simplest(value)
    if isinstance(value, dict):
        if _AS_THEY_ARE.issuperset(map(type, value.values())):
            return value
        return {key: item if type(item) in _AS_THEY_ARE else plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [item if type(item) in _AS_THEY_ARE else plain(item) for item in value]
    return value

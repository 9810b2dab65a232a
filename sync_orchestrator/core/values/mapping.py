"""From a record's parts to the third party's payload, and the digest by which payloads are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from collections.abc import Mapping as NamedValues
from typing import TYPE_CHECKING, Any

import orjson
from jmespath.exceptions import JMESPathError

from sync_orchestrator import exact_json
from sync_orchestrator.core.ports import Json
from sync_orchestrator.core.values.normalization import build_normalizers
from sync_orchestrator.errors import MappingFailed
from sync_orchestrator.exact_json import normalize_numbers
from sync_orchestrator.expressions.selectors import compile_selector

if TYPE_CHECKING:
    from sync_orchestrator.config.targets import CodecSettings

Codecs = NamedValues[str, "CodecSettings"]

_NO_CODECS: Codecs = {}
_COMPARED = {"normalize", "write", "read"}
_OF_TIMES = {"kind", "format", "zone"}


class Mapping:
    """An entity's mapping: third-party field by third-party field, a JMESPath over ``{key, group, <part>…}``.

    ``codecs``: how fields are written, of which those count here that change what is compared. ``as_sent`` gives a
    payload as the third party has it once it was written, where templates make another value of it.
    """

    def __init__(
        self,
        expressions: dict[str, str],
        codecs: Codecs = _NO_CODECS,
        *,
        as_sent: Callable[[dict[str, object]], dict[str, object]] | None = None,
    ) -> None:
        self._compiled = {name: compile_selector(text) for name, text in expressions.items()}
        self.fields = tuple(expressions)
        self._names = expressions.keys()
        self._normalizers = build_normalizers(codecs)
        self._as_sent = as_sent
        self.fingerprint = compute_digest({**expressions, **_compared_by(codecs, sent=as_sent is not None)}).hex()

    def build_payload(self, key: str, group: str | None, parts: NamedValues[str, object]) -> Json:
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

    def digest_of_ours(self, payload: Json) -> bytes:
        """The digest of a payload as the third party is expected to show it."""
        sent = payload if self._as_sent is None else self._as_sent(payload)
        return compute_digest(self._normalize_fields(sent))

    def digest_of_theirs(self, fields: dict[str, object]) -> bytes:
        """The digest of a record as the third party shows it; what it added is left out."""
        shown = fields if fields.keys() == self._names else {name: fields.get(name) for name in self.fields}
        return compute_digest(self._normalize_fields(shown))

    def list_differences(self, payload: Json, fields: dict[str, object]) -> list[dict[str, Any]]:
        """The fields in which a payload and a record of the third party differ, with their values as they are."""
        sent = payload if self._as_sent is None or not payload else self._as_sent(payload)
        ours, theirs = self._normalize_fields(sent), self._normalize_fields(fields)
        return [
            {"field": name, "ours": payload.get(name), "theirs": fields.get(name)}
            for name in self.fields
            if compute_digest(ours.get(name)) != compute_digest(theirs.get(name))
        ]

    def _normalize_fields(self, fields: dict[str, object]) -> dict[str, object]:
        if not self._normalizers:
            return fields
        return {
            name: self._normalizers[name](value) if name in self._normalizers else value
            for name, value in fields.items()
        }


def _compared_by(codecs: Codecs, *, sent: bool) -> dict[str, object]:
    """What of the codecs decides how payloads are compared; nothing where all is compared as it is."""
    changing = {
        name: codec.model_dump(
            mode="json", include=_COMPARED | (_OF_TIMES if codec.kind == "time" else set()), exclude_defaults=True
        )
        for name, codec in codecs.items()
        if codec.normalize or codec.kind == "time" or (sent and {"read", "write"} & codec.model_fields_set)
    }
    return {"compared by": changing} if changing else {}


def compute_digest(value: object) -> bytes:
    """16 bytes of BLAKE2b over the canonical JSON of a value: sorted keys, 1.0 and 1 alike."""
    return hashlib.blake2b(_sorted_json(normalize_numbers(value)), digest_size=16).digest()


def to_canonical_json(value: object) -> str:
    """JSON text that is the same for equal values.

    Raises ValueError for numbers that are not finite, RecursionError for absurd depth.
    """
    return exact_json.dump_text(normalize_numbers(value), sort_keys=True)


def _sorted_json(value: object) -> bytes:
    try:
        return orjson.dumps(
            value, option=orjson.OPT_SORT_KEYS | exact_json.ONLY_JSON, default=exact_json.decimal_fragment
        )
    except TypeError:  # whole numbers of more than 64 bits, lone surrogates, great depth
        return exact_json.dump_text(value, sort_keys=True).encode("utf-8", "surrogatepass")

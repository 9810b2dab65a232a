"""One record of a third party, as an answer shows it: its key, id, business group, mapped fields, whether it is gone.

Pure: no calls.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.rest.codecs import Codecs
from sync_orchestrator.config import TargetSettings
from sync_orchestrator.core.ports import Found, Item, Json, WriteGuard
from sync_orchestrator.core.values.identity import other_key
from sync_orchestrator.core.values.mapping import Mapping
from sync_orchestrator.core.values.names import NoName, canonical_name
from sync_orchestrator.core.values.shared_fields import check_guard
from sync_orchestrator.errors import CallFailed
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.truth import NoTruth, parse_condition

MAX_MATCHED = 2000
"""Characters that a configured pattern is given of a key or a header."""


class Records:
    """The records of one target. ``mapped_fields`` are the payload's fields, the only ones compared."""

    def __init__(self, http: HttpClient, target: TargetSettings, mapped_fields: tuple[str, ...]) -> None:
        self.assigns_ids = target.ids == "theirs"
        self.codecs = Codecs(target.fields, mapped_fields)
        self._mapping = Mapping(
            dict.fromkeys(mapped_fields, "@"),
            target.fields,
            as_sent=self.codecs.as_sent if self.codecs.change_values else None,
        )
        self._http = http
        self._target = target
        self._id = compile_selector(target.id)
        self._group = compile_selector(target.group) if target.group else None
        self._gone = parse_condition(target.gone_when) if target.gone_when else None

    def are_written(self, payload: Json, fields: Json) -> bool:
        """Whether a record's fields are those of a payload, as far as the third party keeps them."""
        return not self._mapping.list_differences(payload, fields)

    def check_guard(self, guard: WriteGuard, record: Json) -> None:
        """Raises CallFailed where a guarded field of a record has been changed by somebody else."""
        check_guard(self._mapping, guard, self.to_found(record).fields)

    def build_address(self, item: Item) -> dict[str, object]:
        """What templates know of a record's place."""
        return {"key": item.key, "id": item.external_id if self.assigns_ids else item.key, "group": item.group}

    def accepts_key(self, key: str) -> bool:
        """Whether a record of this key can be written there."""
        pattern = self._target.key_pattern
        return pattern is None or (len(key) <= MAX_MATCHED and re.fullmatch(pattern, key) is not None)

    def key_in(self, record: object) -> str | None:
        """Our key in a record; None where there is none. Raises CallFailed for what cannot be a key."""
        return (
            self._read_name(self.codecs.decode_field(record, self._target.key_field), record)
            if isinstance(record, dict)
            else None
        )

    def key_of(self, record: object) -> str:
        """Our key in a record. Raises CallFailed where there is none."""
        if (key := self.key_in(record)) is None:
            raise self._http.build_unusable_failure(
                f"no '{self._target.key_field}' in a record of the third party", record
            )
        return key

    def id_of(self, record: object) -> str:
        """Its id, which is the key where that is ours. Raises CallFailed where there is none."""
        if not self.assigns_ids:
            return self.key_of(record)
        if (external_id := self._their_id(record)) is None:
            raise self._http.build_unusable_failure(
                f"no id at '{self._target.id}' in a record of the third party", record
            )
        return external_id

    def is_gone(self, record: object) -> bool:
        """Whether it is shown though it is deleted or deactivated. Raises CallFailed where that cannot be read."""
        try:
            return self._gone is not None and self._gone.holds(record)
        except NoTruth as error:
            raise self._http.build_unusable_failure(f"gone_when: {error}", record) from None

    def to_found(self, record: object) -> Found:
        """The record for the core. Raises CallFailed where it cannot be one."""
        if not isinstance(record, dict):
            raise self._http.build_unusable_failure("a record of the third party is not an object", record)
        fields: Json = self.codecs.decode(record)
        key = self._read_name(fields[self._target.key_field], record)
        group = self._read_name(self._http.search_document(self._group, record), record) if self._group else None
        return Found(key, self.id_of(record) if self.assigns_ids or key is None else key, group, fields)

    def shown_in(self, document: object, place: str | None) -> Json | None:
        """The record in the response to a write, at ``place`` or where all have it; None where there is none."""
        try:
            record = self._http.search_document(compile_selector(place or self._target.record), document)
        except CallFailed:
            return None
        if isinstance(record, list) and len(record) == 1:
            record = record[0]
        return record if isinstance(record, dict) else None

    def stranger_in(self, record: object, key: str) -> str | None:
        """The key in a record if it is not ``key``; None where it is, or where the record shows no key."""
        try:
            return other_key(key, self.key_in(record))
        except CallFailed:
            return None

    def made_id(self, answer: Answer, place: str | None) -> str | None:
        """The id of what a create made, by a header or in the record at ``place``; None where its answer has none."""
        if (told := self._id_in_header(answer)) is not None:
            return told
        try:
            return self._their_id(self.shown_in(answer.body, place))
        except CallFailed:
            return None

    def _id_in_header(self, answer: Answer) -> str | None:
        source = self._target.id_from
        if source is None:
            return None
        match = re.search(source.pattern, answer.headers.get(source.header.lower(), "")[:MAX_MATCHED])
        return unquote(match[1]) or None if match and match[1] else None

    def _their_id(self, record: object) -> str | None:
        return (
            self._read_name(self._http.search_document(self._id, record), record, of_ours=False)
            if isinstance(record, dict)
            else None
        )

    def _read_name(self, value: object, record: object, *, of_ours: bool = True) -> str | None:
        if isinstance(value, bool | dict | list):
            return None
        try:
            return canonical_name(value, of_ours=of_ours)
        except NoName as error:
            raise self._http.build_unusable_failure(f"a record of the third party: {error}", record) from None

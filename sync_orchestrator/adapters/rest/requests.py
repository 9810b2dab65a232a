"""One write of one record: what its templates know, the call, and what its answer says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.http.responses import About, Answer
from sync_orchestrator.adapters.rest.records import Records
from sync_orchestrator.adapters.rest.references import References
from sync_orchestrator.config import RequestSettings, TargetSettings
from sync_orchestrator.config.calls import READING
from sync_orchestrator.config.two_way import is_partial
from sync_orchestrator.core.ports import Item
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.errors import CallFailed, Failure, MappingFailed, Refusal
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.templates import TemplateFailed


@dataclass(frozen=True, slots=True)
class Written:
    """What the third party says of one record's write: the id it gave, if it says one, and the body.

    ``unread``: why the response does not prove that the record was written; then the record has to be read back.
    """

    id: str | None
    body: object
    unread: CallFailed | None = None
    status: int | None = None
    """The status of the response; of one in a call with others, that of the call."""


class Send(Protocol):
    """The way one record's write takes to the third party: in a call of its own, or in one with others."""

    async def __call__(self, item: Item, values: Values) -> Written:
        """Writes the record; ``values`` is what templates know of it. Raises CallFailed for this record alone."""
        ...


class Sender:
    """The writing calls of one target, a record at a time."""

    def __init__(self, http: HttpClient, target: TargetSettings, records: Records, references: References) -> None:
        self._http = http
        self._target = target
        self._records = records
        self._references = references
        self._wanted = _list_costly_names(target)
        self._sends_changes = is_partial(target)
        self._record_is_configured = "record" in target.model_fields_set
        self._error_names = tuple(
            name for name in ("errors", "error") if name not in records.codecs.names and name != target.key_field
        )

    def build_delete_values(self, item: Item) -> dict[str, object]:
        """What the templates of a delete know."""
        return self._records.build_address(item)

    def build_write_values(self, item: Item) -> dict[str, object]:
        """What the templates of a create or update know. Raises CallFailed for what cannot be written there."""
        if not self._records.accepts_key(item.key):
            raise CallFailed(Failure.PERMANENT, f"its key does not fit key_pattern '{self._target.key_pattern}'")
        guard = item.guard
        left_out = guard.unchanged if guard is not None and self._sends_changes else frozenset()
        try:
            payload = self._records.codecs.encode({k: v for k, v in item.payload.items() if k not in left_out})
        except MappingFailed as error:
            raise CallFailed(Failure.PERMANENT, str(error)) from None
        values = {**self.build_delete_values(item), "payload": payload}
        if "digest" in self._wanted:
            values["digest"] = compute_digest(item.payload).hex()
        if "idempotency_key" in self._wanted:
            values["idempotency_key"] = self._idempotency_key(item, values)
        return values

    async def send_call(
        self, call: RequestSettings, item: Item, values: Values, body: object = None, *, about: About = "record"
    ) -> Answer:
        """One writing call; ``body`` is sent where it has none of its own. Raises CallFailed."""
        known = await self._references.add_references(call, values)
        answer = await self._http.send(
            call, known, write=True, outcomes=self._target.outcomes, deadline=item.deadline, body=body, about=about
        )
        if answer.content and answer.body is None and answer.text.strip() != "null":
            raise self._http.build_unusable_failure(
                "the answer is not JSON", answer.text, write=True, about_system=True
            )
        if self._names_errors(answer) and not self._http.has_rule(answer, call, self._target.outcomes):
            raise self._http.build_unusable_failure(
                f"the response {answer.status} names errors", answer.text, write=True
            )
        return answer

    async def create(self, item: Item, values: Values) -> Written:
        """The ``create`` call, with its idempotency key."""
        call, idempotency = self._target.create, self._target.idempotency
        assert call is not None
        if idempotency is not None and idempotency.header is not None:
            header = {idempotency.header: "{{ idempotency_key }}"}
            call = call.model_copy(update={"headers": {**call.headers, **header}})
        answer = await self.send_call(call, item, values, _own_body(call, values), about="collection")
        other = self._records.stranger_in(self._records.shown_in(answer.body, call.record), item.key)
        if other is not None:
            raise build_wrong_record_failure(other, "create")
        return Written(self._records.made_id(answer, call.record), answer.body, status=answer.status)

    async def update(self, item: Item, values: Values) -> Written:
        """The ``update`` call."""
        call = self._target.update
        assert call is not None
        answer = await self.send_call(call, item, values, _own_body(call, values))
        shown = self._records.shown_in(answer.body, call.record)
        if (other := self._records.stranger_in(shown, item.key)) is not None:
            raise (
                not_ours(item.external_id, other)
                if self._records.assigns_ids
                else build_wrong_record_failure(other, "update")
            )
        is_expected = call.record is not None or (self._record_is_configured and answer.status != 204)
        if shown is None and is_expected:
            where = call.record or self._target.record
            return Written(
                None,
                answer.body,
                self._http.build_unusable_failure(
                    f"no record at '{where}' in the response {answer.status} to an update", answer.text, write=True
                ),
                answer.status,
            )
        return Written(None, answer.body, status=answer.status)

    async def delete(self, item: Item, values: Values) -> Written:
        """The ``delete`` call."""
        assert self._target.delete is not None
        return Written(None, (await self.send_call(self._target.delete, item, values)).body)

    async def replace_refused_delete(self, item: Item, values: Values) -> Written:
        """The call in place of a delete that was refused."""
        assert self._target.delete is not None
        assert self._target.delete.refused is not None
        return Written(None, (await self.send_call(self._target.delete.refused, item, values)).body)

    def build_missing_id_failure(self, written: Written) -> CallFailed:
        """The failure of a create whose answer names no id: it may have been carried out."""
        return self._http.build_unusable_failure(
            f"no id at '{self._target.id}' in the answer to a create", written.body, write=True
        )

    def _names_errors(self, answer: Answer) -> bool:
        """Whether a good response lists errors, as GraphQL does; fields of the record of that name are none."""
        body = answer.body
        return isinstance(body, dict) and any(body.get(name) for name in self._error_names)

    def _idempotency_key(self, item: Item, values: Values) -> str:
        ours = quote(item.idempotency_key or "")
        if self._target.idempotency is None:
            return ours
        try:
            return templates.render_text(self._target.idempotency.value, {**values, "idempotency_key": ours})
        except TemplateFailed as error:
            raise CallFailed(Failure.PERMANENT, self._http.sanitize_text(str(error))) from None


def _own_body(call: RequestSettings, values: Values) -> Any:
    """What is sent where a call has no body of its own: the payload, or nothing where it only reads."""
    return None if call.method in READING else values["payload"]


def not_ours(external_id: str | None, shown_key: str) -> CallFailed:
    """The failure of a call under an id of ours that shows another record: ours is not there."""
    return CallFailed(
        Failure.PERMANENT,
        f"the id {external_id} is the id of another record by now: {shown_key}",
        refusal=Refusal.MISSING,
        not_ours=shown_key,
    )


def build_wrong_record_failure(shown_key: str, verb: str) -> CallFailed:
    """The failure of a write whose response shows another record: neither its id nor its content is ours."""
    return CallFailed(
        Failure.PERMANENT,
        f"the response to its {verb} shows another record: {shown_key}",
        unknown=True,
        not_ours=shown_key,
    )


def _list_costly_names(target: TargetSettings) -> set[str]:
    """Of what is costly to make, that which a template of the target may ask for."""
    settings = target.model_dump_json(exclude_none=True)
    named = {name for name in ("digest", "idempotency_key") if name in settings}
    return named | {"idempotency_key"} if target.idempotency is not None else named

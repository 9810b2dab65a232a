"""How one record is written: by which calls, in which order, at which revision, and what follows where one is refused.

A write of several calls that breaks off is no success; the next push does all of them again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from jmespath.exceptions import JMESPathError

from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.rest.reads import Present, Reads
from sync_orchestrator.adapters.rest.records import Records
from sync_orchestrator.adapters.rest.requests import Send, Sender, Written, not_ours
from sync_orchestrator.config import RequestSettings, TargetSettings
from sync_orchestrator.config.call_checks import IN_CONDITIONS
from sync_orchestrator.config.calls import LinkedCallSettings
from sync_orchestrator.core.crash_points import CrashPoint
from sync_orchestrator.core.ports import Item
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions.truth import NoTruth, parse_condition, parse_truth

_between_calls = CrashPoint("writes.between_calls")

Verb = Literal["create", "update", "delete", "refused"]


class Writes:
    """Creates, updates and deletes the records of one target; ``bulks`` are the verbs that go with others in one call.

    Each method may raise CallFailed.
    """

    def __init__(
        self,
        target: TargetSettings,
        sender: Sender,
        reads: Reads,
        records: Records,
        bulks: Mapping[str, Send] | None = None,
    ) -> None:
        self._target = target
        self._sender = sender
        self._reads = reads
        self._records = records
        self._send: dict[str, Send] = {
            "create": sender.create,
            "update": sender.update,
            "delete": sender.delete,
            "refused": sender.replace_refused_delete,
            **(bulks or {}),
        }
        refused = target.delete.refused if target.delete else None
        calls: dict[Verb, RequestSettings | None] = {
            "update": target.update,
            "delete": target.delete,
            "refused": refused,
        }
        self._with_revision = {
            verb for verb, call in calls.items() if call is not None and "revision" in call.collect_template_names()
        }
        self._upsert: tuple[Callable[[Item], Awaitable[bool]], ...] = {
            "update": (self._overwrite_record,),
            "update_first": (self._overwrite_record, self._create_under_our_id, self._overwrite_record),
            "create_first": (self._create_under_our_id, self._overwrite_record, self._create_under_our_id),
        }[target.upsert]

    async def create(self, item: Item) -> str:
        """Makes the record and returns its id; with our ids that is an update, which makes what is missing."""
        if self._records.assigns_ids:
            return await self._create_record(item)
        if await self.update(item) is None:
            raise CallFailed(
                Failure.TRANSIENT,
                'the third party responds "not found" to a write that makes what is missing',
                about_system=True,
            )
        return item.key

    async def update(self, item: Item) -> str | None:
        """Overwrites the record and returns its id; None where it is not there, and is not made."""
        if self._records.assigns_ids:
            return item.external_id if await self._overwrite_record(item) else None
        for write in self._upsert:
            if await write(item):
                return item.key
        return None

    async def delete(self, item: Item) -> None:
        """Removes the record, or deactivates it where that is refused; one that is gone already is no failure."""
        if not self._records.assigns_ids and not self._records.accepts_key(item.key):
            return  # it cannot have been written
        try:
            await self._at_revision("delete", item, self._sender.build_delete_values(item))
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING and failure.not_ours is None:
                return
            if failure.not_ours is not None or not _is_refusal(failure):
                raise
            if self._target.gone_when is not None and await self._is_gone(item):
                return
            if self._target.delete is None or self._target.delete.refused is None:
                raise self._of_conflict("delete", failure) from None
            await self._deactivate_record(item)

    async def _create_record(self, item: Item) -> str:
        try:
            written = await self._send["create"](item, self._sender.build_write_values(item))
        except CallFailed as failure:
            revived = await self._revive_deleted_record(item) if failure.may_be_duplicate else None
            if revived is None:
                raise
            return revived
        external_id = written.id or await self._read_back(item, written)
        await self._make_linked_calls("create", replace(item, external_id=external_id), written)
        return external_id

    async def _create_under_our_id(self, item: Item) -> bool:
        """Creates the record under our id; says whether it was not there yet."""
        try:
            written = await self._send["create"](item, self._sender.build_write_values(item))
        except CallFailed as failure:
            if failure.may_be_duplicate:
                return False
            raise
        await self._make_linked_calls("create", item, written)
        return True

    async def _overwrite_record(self, item: Item) -> bool:
        """Updates the record; says whether it is there."""
        try:
            written = await self._at_revision("update", item, self._sender.build_write_values(item))
        except CallFailed as failure:
            if failure.refusal is Refusal.MISSING and failure.not_ours is None:
                return False
            if failure.status == 405 and failure.kind is Failure.PERMANENT and failure.reason is None:
                failure.kind, failure.about_system = Failure.TRANSIENT, True  # the address takes no writes now
            raise self._of_conflict("update", failure) from None
        if written.unread is not None:
            await self._confirm_written(item, written.unread)
        await self._make_linked_calls("update", item, written)
        return True

    async def _confirm_written(self, item: Item, unread: CallFailed) -> None:
        """Reads a record whose write was answered without it. Raises CallFailed where it is not as it was written."""
        try:
            found = await self._reads.read(item)
        except CallFailed:
            raise unread from None
        if found is None or found.key != item.key or not self._records.are_written(item.payload, found.fields):
            raise unread

    async def _read_back(self, item: Item, written: Written) -> str:
        """The id of what a create has made without naming it: the record with our key and content."""
        unnamed = self._sender.build_missing_id_failure(written)
        if self._target.lookup is None:
            raise unnamed
        try:
            found = await self._reads.lookup(item.key, item.group)
        except CallFailed:
            raise unnamed from None
        same = sorted(
            record.external_id
            for record in found
            if record.key == item.key and self._records.are_written(item.payload, record.fields)
        )
        if not same:
            raise unnamed
        return same[0]

    async def _revive_deleted_record(self, item: Item) -> str | None:
        """Writes over a deleted record that keeps our key taken, and returns its id; None where there is none such."""
        if self._target.gone_when is None or self._target.lookup is None:
            return None
        deleted = await self._reads.find_tombstones(item.key, item.group)
        if not deleted:
            return None
        revived = replace(item, external_id=deleted[0])
        if not await self._overwrite_record(revived):
            return None
        if await self._reads.read(revived) is None:
            raise CallFailed(Failure.PERMANENT, "a deleted record keeps its key taken, and no update revives it")
        return deleted[0]

    async def _deactivate_record(self, item: Item) -> None:
        try:
            await self._at_revision("refused", item, self._sender.build_delete_values(item))
        except CallFailed as failure:
            if failure.refusal is not Refusal.MISSING or failure.not_ours is not None:
                raise self._of_conflict("refused", failure) from None

    async def _is_gone(self, item: Item) -> bool:
        present = await self._reads.read_present(item)
        return present is None or present.gone or self._find_stranger(item, present) is not None

    def _find_stranger(self, item: Item, present: Present) -> str | None:
        """The key that the record under a given id shows, if it is another one's."""
        return self._records.stranger_in(present.record, item.key) if self._records.assigns_ids else None

    async def _at_revision(self, verb: Verb, item: Item, values: Values) -> Written:
        """One write at the revision that the record has now; once more where that has moved on meanwhile."""
        if verb not in self._with_revision:
            return await self._send[verb](item, values)
        try:
            return await self._send[verb](item, {**values, "revision": await self._read_revision(verb, item)})
        except CallFailed as failure:
            if not failure.may_be_conflict:
                raise
        return await self._send[verb](item, {**values, "revision": await self._read_revision(verb, item)})

    async def _read_revision(self, verb: Verb, item: Item) -> Any:
        """Null for a record that the update itself makes."""
        present = await self._reads.read_present(item)
        if present is not None and (other := self._find_stranger(item, present)) is not None:
            raise not_ours(item.external_id, other)
        if present is None and (verb != "update" or self._records.assigns_ids or self._target.upsert == "update_first"):
            raise CallFailed(Failure.PERMANENT, "there is no such record", refusal=Refusal.MISSING)
        if present is not None and item.guard is not None:
            self._records.check_guard(item.guard, present.record)
        if present is not None and present.gone and verb != "update":
            raise CallFailed(Failure.PERMANENT, "it is deleted already", refusal=Refusal.MISSING)
        return None if present is None else present.revision

    def _of_conflict(self, verb: Verb, failure: CallFailed) -> CallFailed:
        """What a write came to in the end: of a second conflict, that others are writing the record, which passes."""
        if not (failure.may_be_conflict and verb in self._with_revision):
            return failure
        return CallFailed(
            Failure.TRANSIENT, f"its revision has moved on again: {failure.detail}", status=failure.status
        )

    async def _make_linked_calls(self, verb: Literal["create", "update"], item: Item, written: Written) -> None:
        """The calls that belong to a write, in order; where one fails the record is there all the same."""
        first = self._target.create if verb == "create" else self._target.update
        before = {"status": written.status, "body": written.body}
        steps: dict[str, object] = {"write": before}
        for number, call in enumerate(first.then if first else ()):
            _between_calls()
            values = {
                **self._sender.build_write_values(item),
                "answer": before["body"],
                "response": before,
                "steps": steps,
            }
            place = f"{verb}.then[{number}]"
            try:
                if not _is_due(call, values, place):
                    continue
                answer = await self._read_write_response(call, item, values)
            except CallFailed as failure:
                raise CallFailed(
                    failure.kind,
                    f"{call.method} {call.path}, after the {verb}: {failure.detail}",
                    status=failure.status,
                    retry_after=failure.retry_after,
                    unknown=failure.unknown,
                    external_id=item.external_id,
                    about_system=failure.about_system,
                    reason=failure.reason,
                    refusal=Refusal.HALF_WRITTEN if failure.refusal is Refusal.HALF_WRITTEN else None,
                ) from None
            before = {"status": answer.status, "body": answer.body}
            if call.name is not None:
                steps[call.name] = before

    async def _read_write_response(self, call: LinkedCallSettings, item: Item, values: Values) -> Answer:
        """The response to a linked call, or to the one in its place where what it would change is not there."""
        try:
            return await self._sender.send_call(call, item, values)
        except CallFailed as failure:
            if failure.refusal is not Refusal.MISSING or call.if_missing is None:
                raise
        return await self._sender.send_call(call.if_missing, item, values)


def _is_due(call: LinkedCallSettings, values: Values, place: str) -> bool:
    """Whether the condition of a linked call holds. Raises CallFailed where that cannot be said."""
    if call.when is None:
        return True
    document = {name: values.get(name) for name in IN_CONDITIONS}
    try:
        found = parse_condition(call.when).evaluate_on(document)
        return bool(found) if isinstance(found, dict | list) else parse_truth(found)
    except (NoTruth, JMESPathError, TypeError, ValueError, ArithmeticError) as error:
        raise CallFailed(
            Failure.PERMANENT,
            f"{place}.when: '{call.when}' is neither true nor false of this record: {str(error).partition(chr(10))[0]}",
        ) from None


def _is_refusal(failure: CallFailed) -> bool:
    """Whether the other side has refused for good; not where nothing could be sent, or the address is wrong."""
    return failure.kind is Failure.PERMANENT and failure.status is not None and not 300 <= failure.status < 400

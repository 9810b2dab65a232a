"""Many writes in one call: single writes that are under way at once are gathered, and each gets its own outcome.

A record is still pushed by itself, so order, leases and attempts are what they are for a call of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sync_orchestrator import exact_json
from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.rest.records import Records
from sync_orchestrator.adapters.rest.references import References
from sync_orchestrator.adapters.rest.requests import Send, Written, not_ours
from sync_orchestrator.config import BulkCallSettings, OutcomeRule, TargetSettings
from sync_orchestrator.config.bulk_calls import ITEM_NAMES
from sync_orchestrator.core.ports import TOO_OLD, Item
from sync_orchestrator.core.shutdown import ending, not_begun
from sync_orchestrator.core.systems.claim_holders import is_over
from sync_orchestrator.core.values.names import NoName, canonical_name
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions import templates
from sync_orchestrator.expressions.selectors import compile_selector
from sync_orchestrator.expressions.templates import TemplateFailed, names_in

_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _WaitingWrite:
    """One write that waits for its result; ``shape`` is how ``item`` stands in the call."""

    item: Values
    shape: Any
    deadline: float | None
    done: asyncio.Future[object]

    def fail_with(self, failure: CallFailed) -> None:
        if not self.done.done():
            self.done.set_exception(failure)


def in_bulk(
    http: HttpClient,
    target: TargetSettings,
    references: References,
    records: Records,
    lost: Callable[[Iterable[str]], None] = lambda keys: None,
) -> dict[str, Send]:
    """The writes of a target that go with others, by verb; those that are set up alike go in one call.

    ``lost`` is called with the keys of a call whose outcome is unknown.
    """
    calls: list[InBulk] = []
    sends: dict[str, Send] = {}
    for verb in ("create", "update", "delete"):
        bulk: BulkCallSettings | None = getattr(target, f"bulk_{verb}")
        if bulk is None:
            continue
        call = next((call for call in calls if call.bulk == bulk), None)
        if call is None:
            call = InBulk(http, bulk, target.outcomes, references, lost)
            calls.append(call)
        sends[verb] = _BulkSend(call, verb, records)
    return sends


class _BulkSend:
    """One verb's way into calls with others."""

    def __init__(self, call: InBulk, verb: str, records: Records) -> None:
        self._call = call
        self._verb = verb
        self._records = records
        expression = call.bulk.result_id
        self._id = compile_selector(expression) if expression else None

    async def __call__(self, item: Item, values: Values) -> Written:
        result = await self._call.write_item({**values, "op": self._verb}, item.deadline)
        if self._call.bulk.results is None:
            return Written(None, result)
        external_id = None
        if self._id is not None:
            external_id = _to_name(self._call.http.search_document(self._id, result, write=True))
        self._check_whose(item, result, external_id)
        if external_id is None and self._id is not None and self._verb == "update":
            return Written(
                None,
                result,
                self._build_unread_failure(f"no id at '{self._call.bulk.result_id}' in its result", result),
            )
        return Written(external_id, result)

    def _check_whose(self, item: Item, result: object, external_id: str | None) -> None:
        """Raises CallFailed where a result is another record's, by the key or the id that it shows."""
        other = self._records.stranger_in(result, item.key)
        if self._verb == "create":
            if other is not None:
                raise self._build_unread_failure(f"its result shows another record, {other}", result)
            return
        if not self._records.assigns_ids or item.external_id is None:
            return
        if external_id is not None and external_id != item.external_id:
            raise self._build_unread_failure(f"its result shows another id than {item.external_id}", result)
        if other is not None:
            by_id = self._call.bulk.match == "id" or external_id == item.external_id
            raise (
                not_ours(item.external_id, other)
                if by_id
                else self._build_unread_failure(f"its result shows another record, {other}", result)
            )

    def _build_unread_failure(self, what: str, result: object) -> CallFailed:
        return self._call.http.build_unusable_failure(what, result, write=True)


class InBulk:
    """Calls of many items to one system."""

    def __init__(
        self,
        http: HttpClient,
        bulk: BulkCallSettings,
        outcomes: Sequence[OutcomeRule],
        references: References,
        lost: Callable[[Iterable[str]], None] = lambda keys: None,
    ) -> None:
        self._lost = lost
        self.http = http
        self.bulk = bulk
        self._outcomes = outcomes
        self._references = references
        self._of_an_item = bulk.request.model_copy(update={"outcomes": bulk.outcomes})
        self._judged = bool(bulk.outcomes or outcomes or http.outcomes)
        self._results = compile_selector(bulk.results) if bulk.results else None
        self._result_key = compile_selector(bulk.result_key)
        self._status = compile_selector(bulk.status) if bulk.status else None
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str | None, dict[str, _WaitingWrite]]] = (
            WeakKeyDictionary()
        )
        self._calls: set[asyncio.Task[None]] = set()
        self._alone: dict[str, None] = {}
        self._in_items = names_in(bulk.item) & references.names

    async def write_item(self, item: Values, deadline: float | None = None) -> Any:
        """Sends an item (``op``, ``key``, ``id``, ``group``, ``payload``…) with others; returns its result.

        The result is None where the configuration names no ``results``. ``deadline``: the monotonic time before which
        the call must begin. Raises CallFailed.
        """
        loop = asyncio.get_running_loop()
        waiting = _WaitingWrite(
            item, self._shape_item(await self._with_references(item)), deadline, loop.create_future()
        )
        if (key := str(item["key"])) in self._alone:
            del self._alone[key]
            self._start_call([waiting])
        else:
            self._add_to_queue(loop, waiting)
        return await waiting.done

    async def _with_references(self, item: Values) -> Values:
        """An item with the references that its template asks for. Raises CallFailed for this record alone."""
        if not self._in_items:
            return item
        known = {name for name in self._in_items if self._references.can_resolve(name, item)}
        return {**dict.fromkeys(self._in_items), **item, **await self._references.resolve_references(item, known)}

    def _shape_item(self, item: Values) -> object:
        if self.bulk.item is None:
            return item
        try:
            return templates.render_value(self.bulk.item, {**dict.fromkeys(ITEM_NAMES), **item})
        except TemplateFailed as error:
            raise CallFailed(Failure.PERMANENT, self.http.sanitize_text(str(error))) from None

    def _add_to_queue(self, loop: asyncio.AbstractEventLoop, waiting: _WaitingWrite) -> None:
        group = waiting.item["group"]
        place = group if self.bulk.by_group and isinstance(group, str) else None
        queues = self._queues.setdefault(loop, {})
        queue = queues.setdefault(place, {})
        if (key := str(waiting.item["key"])) in queue:  # in one call its two results could not be kept apart
            self._start_call([waiting])
            return
        queue[key] = waiting
        if len(queue) >= self._size:
            self._flush_queue(queues, place, queue)
        elif len(queue) == 1:
            loop.call_later(self.bulk.gather, self._flush_late, queues, place, queue)

    @property
    def _size(self) -> int:
        """How many records one call has now: fewer than configured where larger calls are not answered."""
        return self.bulk.size if self.http.limit is None else self.http.limit.limit_batch(self.bulk.size)

    def _flush_late(
        self, queues: dict[str | None, dict[str, _WaitingWrite]], place: str | None, queue: dict[str, _WaitingWrite]
    ) -> None:
        """Sends a queue that is not full, once there is room for another call: until then it may still grow."""
        if queues.get(place) is queue and self.http.limit is not None and not self.http.limit.has_room():
            deadlines = [waiting.deadline for waiting in queue.values() if waiting.deadline is not None]
            if time.monotonic() + self.bulk.gather < min(deadlines, default=float("inf")):
                asyncio.get_running_loop().call_later(self.bulk.gather, self._flush_late, queues, place, queue)
                return
        self._flush_queue(queues, place, queue)

    def _flush_queue(
        self, queues: dict[str | None, dict[str, _WaitingWrite]], place: str | None, queue: dict[str, _WaitingWrite]
    ) -> None:
        """Sends a queue unless that was done already, when it was full."""
        if queues.get(place) is not queue:
            return
        del queues[place]
        for batch in _split_by_size(queue.values(), self.bulk.bytes):
            self._start_call(batch)

    def _start_call(self, batch: Sequence[_WaitingWrite]) -> None:
        call = asyncio.create_task(self._send_batch(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _send_batch(self, batch: Sequence[_WaitingWrite]) -> None:
        batch = _in_time([waiting for waiting in batch if not waiting.done.done()])
        if not batch:
            return
        if ending.is_requested:
            for waiting in batch:
                waiting.fail_with(not_begun())
            return
        try:
            answer = await self._make_call(batch)
        except CallFailed as failure:
            await self._handle_failure(batch, failure)
        except Exception as error:  # nobody else would hear of it
            for waiting in batch:
                waiting.fail_with(CallFailed(Failure.TRANSIENT, f"{type(error).__name__}: {error}", unknown=True))
        else:
            await self._handle_success(batch, answer)

    async def _make_call(self, batch: Sequence[_WaitingWrite]) -> Answer:
        items = [waiting.shape for waiting in batch]
        values = await self._references.add_references(
            self.bulk.request, {"items": items, "group": batch[0].item["group"]}
        )
        plain = self.bulk.item is None
        deadlines = [waiting.deadline for waiting in batch if waiting.deadline is not None]
        answer = await self.http.send(
            self.bulk.request,
            values,
            write=True,
            outcomes=self._outcomes,
            deadline=min(deadlines, default=None),
            body=[item.get("payload", item["id"]) for item in items] if plain else items,
            about="collection",
        )
        if answer.is_markup:
            raise self.http.build_unusable_failure("the answer is not JSON", answer.text, write=True, about_system=True)
        errors = isinstance(answer.body, dict) and (answer.body.get("errors") or answer.body.get("error"))
        if self._results is None and errors and not self.http.has_rule(answer, self.bulk.request, self._outcomes):
            raise self.http.build_unusable_failure(
                f"the response {answer.status} names errors", answer.text, write=True
            )
        return answer

    async def _handle_failure(self, batch: Sequence[_WaitingWrite], failure: CallFailed) -> None:
        """The call as a whole failed: where less would do, or one bad item is to be found, it is sent in halves."""
        refused = failure.kind is Failure.PERMANENT and not failure.unknown
        if len(batch) > 1 and (failure.refusal is Refusal.TOO_LARGE or (refused and self.bulk.atomic)):
            middle = len(batch) // 2
            await self._send_batch(batch[:middle])
            await self._send_batch(batch[middle:])
        elif len(batch) > 1 and refused:
            self._part_may_be_written(batch, failure)
        else:
            if failure.unknown:
                self._lost([str(waiting.item["key"]) for waiting in batch])
            for waiting in batch:
                waiting.fail_with(failure)

    def _part_may_be_written(self, batch: Sequence[_WaitingWrite], failure: CallFailed) -> None:
        """Refused for one of them: each is looked up before it is written again, and goes alone the next time."""
        for waiting in batch:
            self._alone[str(waiting.item["key"])] = None
            waiting.fail_with(
                CallFailed(
                    Failure.TRANSIENT,
                    f"the call with {len(batch) - 1} others failed: {failure}",
                    status=failure.status,
                    unknown=True,
                )
            )
        while len(self._alone) > _REMEMBERED:
            self._alone.pop(next(iter(self._alone)))

    async def _handle_success(self, batch: Sequence[_WaitingWrite], answer: Answer) -> None:
        try:
            results = [None] * len(batch) if self._results is None else self._results_of(batch, answer)
        except CallFailed as failure:
            for waiting in batch:
                waiting.fail_with(failure)
            return
        for waiting, result in zip(batch, results, strict=True):
            try:
                failed = result if isinstance(result, CallFailed) else await self._item_failure(answer, result)
            except CallFailed as failure:
                failed = failure
            if failed is not None:
                waiting.fail_with(failed)
            elif not waiting.done.done():
                waiting.done.set_result(result)

    def _results_of(self, batch: Sequence[_WaitingWrite], answer: Answer) -> list[object]:
        """A result for each item, in their order; a failure for those that have none."""
        assert self._results is not None
        found = self.http.search_document(self._results, answer.body, write=True)
        if isinstance(found, dict) and self.bulk.match != "position":
            by_name = found
        elif not isinstance(found, list):
            raise self.http.build_unusable_failure(
                f"no list of results at '{self.bulk.results}'", answer.text, write=True
            )
        elif self.bulk.match == "position":
            if len(found) != len(batch):
                raise self.http.build_unusable_failure(
                    f"{len(found)} results for {len(batch)} items", answer.text, write=True
                )
            return found
        else:
            by_name = self._by_name(found)
        return [
            by_name.get(
                _to_name(waiting.item[self.bulk.match]),
                CallFailed(Failure.TRANSIENT, "no result for it among those of its call", unknown=True),
            )
            for waiting in batch
        ]

    def _by_name(self, results: Sequence[object]) -> dict[str | None, object]:
        """The results by the id or key that they show; a failure for a name with results that differ."""
        by_name: dict[str | None, object] = {}
        for result in results:
            name = _to_name(self.http.search_document(self._result_key, result, write=True))
            if name in by_name and by_name[name] != result:
                result = self.http.build_unusable_failure(
                    "more than one result for it", [by_name[name], result], write=True
                )
            by_name[name] = result
        return by_name

    async def _item_failure(self, answer: Answer, result: object) -> CallFailed | None:
        """The failure that a result stands for. One that cannot be read is not a success: its outcome is unknown."""
        if self._results is None:
            return None
        if result is None:
            return self.http.build_unusable_failure("no result for it", answer.text, write=True)
        status = None if self._status is None else self.http.search_document(self._status, result, write=True)
        read = status if type(status) is int and 100 <= status <= 599 else None
        if not self._judged and read is not None and 200 <= read < 300:
            return None
        own = Answer(
            answer.status if read is None else read,
            answer.headers,
            exact_json.dumps(result),
            answer.url,
            status_is_known=read is not None or self._status is None,
        )
        failure = await self.http.failure_of(own, self._of_an_item, self._outcomes, write=True)
        if (
            failure is None
            and not own.status_is_known
            and not self.http.has_rule(own, self._of_an_item, self._outcomes)
        ):
            return self.http.build_unusable_failure(
                f"no status at '{self.bulk.status}' in its result", result, write=True
            )
        return failure


def _in_time(batch: Sequence[_WaitingWrite]) -> list[_WaitingWrite]:
    """Those whose call may still begin; the others are told that it may not."""
    for waiting in batch:
        if is_over(waiting.deadline):
            waiting.fail_with(CallFailed(Failure.THROTTLED, TOO_OLD))
    return [waiting for waiting in batch if not waiting.done.done()]


def _split_by_size(queue: Iterable[_WaitingWrite], most_bytes: int | None) -> list[list[_WaitingWrite]]:
    """Parts of a queue that each fit a call; an item that alone is larger goes alone."""
    portions: list[list[_WaitingWrite]] = [[]]
    size = 0
    for waiting in queue:
        length = 0 if most_bytes is None else len(exact_json.dumps(waiting.shape))
        if most_bytes is not None and portions[-1] and size + length > most_bytes:
            portions.append([])
            size = 0
        portions[-1].append(waiting)
        size += length
    return portions


def _to_name(value: object) -> str | None:
    """An id, or what a result is known by: the number 7.0 is 7."""
    if value is None or isinstance(value, bool | dict | list):
        return None
    try:
        return canonical_name(value, of_ours=False)
    except NoName:
        return str(value)

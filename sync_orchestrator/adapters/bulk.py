"""Many writes in one call: single writes that are under way at once are gathered, and each gets its own outcome.

A record is still pushed by itself, so order, leases and attempts are what they are for a call of its own. Not here:
such calls (``sending.py``), what a write consists of (``writes.py``), when a record is pushed (``core/drain.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sync_orchestrator import templates
from sync_orchestrator.adapters.answers import Answer
from sync_orchestrator.adapters.http import Http, Values
from sync_orchestrator.adapters.references import References
from sync_orchestrator.adapters.sending import Send, Written
from sync_orchestrator.config import Bulk, Outcome, Target
from sync_orchestrator.config.calls import ITEM_NAMES
from sync_orchestrator.core import exact_json
from sync_orchestrator.core.errors import CallFailed, Failure
from sync_orchestrator.core.expressions import compiled
from sync_orchestrator.core.names import NoName, canonical_name
from sync_orchestrator.core.ports import TOO_OLD, Item
from sync_orchestrator.templates import TemplateFailed

_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One write that waits for its result; ``shape`` is how ``item`` stands in the call."""

    item: Values
    shape: Any
    deadline: float | None
    done: asyncio.Future[Any]

    def fails(self, failure: CallFailed) -> None:
        if not self.done.done():
            self.done.set_exception(failure)


def in_bulk(http: Http, target: Target, references: References) -> dict[str, Send]:
    """The writes of a target that go with others, by verb; those that are set up alike go in one call."""
    calls: list[InBulk] = []
    sends: dict[str, Send] = {}
    for verb in ("create", "update", "delete"):
        bulk: Bulk | None = getattr(target, f"bulk_{verb}")
        if bulk is None:
            continue
        call = next((call for call in calls if call.bulk == bulk), None)
        if call is None:
            call = InBulk(http, bulk, target.outcomes, references)
            calls.append(call)
        sends[verb] = _Sent(call, verb)
    return sends


class _Sent:
    """One verb's way into calls with others."""

    def __init__(self, call: InBulk, verb: str) -> None:
        self._call = call
        self._verb = verb
        expression = call.bulk.result_id
        self._id = compiled(expression) if expression else None

    async def __call__(self, item: Item, values: Values) -> Written:
        result = await self._call.write({**values, "op": self._verb}, item.deadline)
        external_id = None if self._id is None else self._call.http.search(self._id, result)
        return Written(_text(external_id), result)


class InBulk:
    """Calls of many items to one system."""

    def __init__(self, http: Http, bulk: Bulk, outcomes: Sequence[Outcome], references: References) -> None:
        self.http = http
        self.bulk = bulk
        self._outcomes = outcomes
        self._references = references
        self._of_an_item = bulk.request.model_copy(update={"outcomes": bulk.outcomes})
        self._judged = bool(bulk.outcomes or outcomes or http.outcomes)
        self._results = compiled(bulk.results) if bulk.results else None
        self._result_key = compiled(bulk.result_key)
        self._status = compiled(bulk.status) if bulk.status else None
        self._queues: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str | None, list[_Waiting]]] = (
            WeakKeyDictionary())
        self._calls: set[asyncio.Task[None]] = set()
        self._alone: dict[str, None] = {}

    async def write(self, item: Values, deadline: float | None = None) -> Any:
        """Sends an item (``op``, ``key``, ``id``, ``group``, ``payload``…) with others; returns its result.

        The result is None where the configuration names no ``results``. ``deadline``: the monotonic time before which
        the call must begin. Raises CallFailed.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(item, self._shape(item), deadline, loop.create_future())
        if (key := str(item["key"])) in self._alone:
            del self._alone[key]
            self._begin([waiting])
        else:
            self._gather(loop, waiting)
        return await waiting.done

    def _shape(self, item: Values) -> Any:
        if self.bulk.item is None:
            return item
        try:
            return templates.value(self.bulk.item, {**dict.fromkeys(ITEM_NAMES), **item})
        except TemplateFailed as error:
            raise CallFailed(Failure.PERMANENT, self.http.shown(str(error))) from None

    def _gather(self, loop: asyncio.AbstractEventLoop, waiting: _Waiting) -> None:
        place = waiting.item["group"] if self.bulk.by_group else None
        queues = self._queues.setdefault(loop, {})
        queue = queues.setdefault(place, [])
        queue.append(waiting)
        if len(queue) >= self.bulk.size:
            self._flush(queues, place, queue)
        elif len(queue) == 1:
            loop.call_later(self.bulk.gather, self._flush, queues, place, queue)

    def _flush(self, queues: dict[str | None, list[_Waiting]], place: str | None, queue: list[_Waiting]) -> None:
        """Sends a queue unless that was done already, when it was full."""
        if queues.get(place) is not queue:
            return
        del queues[place]
        for batch in _portions(queue, self.bulk.bytes):
            self._begin(batch)

    def _begin(self, batch: Sequence[_Waiting]) -> None:
        call = asyncio.create_task(self._send(batch))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _send(self, batch: Sequence[_Waiting]) -> None:
        batch = _in_time([waiting for waiting in batch if not waiting.done.done()])
        if not batch:
            return
        try:
            answer = await self._call(batch)
        except CallFailed as failure:
            await self._failed(batch, failure)
        except Exception as error:  # nobody else would hear of it
            for waiting in batch:
                waiting.fails(CallFailed(Failure.TRANSIENT, f"{type(error).__name__}: {error}", unknown=True))
        else:
            await self._succeeded(batch, answer)

    async def _call(self, batch: Sequence[_Waiting]) -> Answer:
        items = [waiting.shape for waiting in batch]
        values = await self._references.known(
            self.bulk.request, {"items": items, "group": batch[0].item["group"]})
        plain = self.bulk.item is None
        deadlines = [waiting.deadline for waiting in batch if waiting.deadline is not None]
        return await self.http.send(
            self.bulk.request, values, write=True, outcomes=self._outcomes, deadline=min(deadlines, default=None),
            body=[item.get("payload", item["id"]) for item in items] if plain else items)

    async def _failed(self, batch: Sequence[_Waiting], failure: CallFailed) -> None:
        """The call as a whole failed: where less would do, or one bad item is to be found, it is sent in halves."""
        refused = failure.kind is Failure.PERMANENT and not failure.unknown
        if len(batch) > 1 and (failure.too_large or (refused and self.bulk.atomic)):
            middle = len(batch) // 2
            await self._send(batch[:middle])
            await self._send(batch[middle:])
        elif len(batch) > 1 and refused:
            self._part_may_be_written(batch, failure)
        else:
            for waiting in batch:
                waiting.fails(failure)

    def _part_may_be_written(self, batch: Sequence[_Waiting], failure: CallFailed) -> None:
        """Refused for one of them: each is looked up before it is written again, and goes alone the next time."""
        for waiting in batch:
            self._alone[str(waiting.item["key"])] = None
            waiting.fails(CallFailed(Failure.TRANSIENT, f"the call with {len(batch) - 1} others failed: {failure}",
                                     status=failure.status, unknown=True))
        while len(self._alone) > _REMEMBERED:
            self._alone.pop(next(iter(self._alone)))

    async def _succeeded(self, batch: Sequence[_Waiting], answer: Answer) -> None:
        try:
            results = [None] * len(batch) if self._results is None else self._results_of(batch, answer)
        except CallFailed as failure:
            for waiting in batch:
                waiting.fails(failure)
            return
        for waiting, result in zip(batch, results, strict=True):
            if isinstance(result, CallFailed):
                waiting.fails(result)
            elif (failed := await self._item_failure(answer, result)) is not None:
                waiting.fails(failed)
            elif not waiting.done.done():
                waiting.done.set_result(result)

    def _results_of(self, batch: Sequence[_Waiting], answer: Answer) -> list[Any]:
        """A result for each item, in their order; a failure for those that have none."""
        assert self._results is not None
        found = self.http.search(self._results, answer.body)
        if isinstance(found, dict) and self.bulk.match != "position":
            by_name = found
        elif not isinstance(found, list):
            raise self.http.garbage(f"no list of results at '{self.bulk.results}'", answer.text, write=True)
        elif self.bulk.match == "position":
            if len(found) != len(batch):
                raise self.http.garbage(f"{len(found)} results for {len(batch)} items", answer.text, write=True)
            return found
        else:
            by_name = {_text(self.http.search(self._result_key, result)): result for result in found}
        return [by_name.get(_text(waiting.item[self.bulk.match]), CallFailed(
            Failure.TRANSIENT, "no result for it among those of its call", unknown=True)) for waiting in batch]

    async def _item_failure(self, answer: Answer, result: Any) -> CallFailed | None:
        if self._results is None:
            return None
        status = None if self._status is None else self.http.search(self._status, result)
        if not self._judged and isinstance(status, int) and 200 <= status < 300:
            return None
        own = Answer(status if isinstance(status, int) else answer.status, answer.headers,
                     exact_json.dumps(result), answer.url)
        return await self.http.failure_of(own, self._of_an_item, self._outcomes, write=True)


def _in_time(batch: Sequence[_Waiting]) -> list[_Waiting]:
    """Those whose call may still begin; the others are told that it may not."""
    now = time.monotonic()
    for waiting in batch:
        if waiting.deadline is not None and waiting.deadline < now:
            waiting.fails(CallFailed(Failure.THROTTLED, TOO_OLD))
    return [waiting for waiting in batch if not waiting.done.done()]


def _portions(queue: Iterable[_Waiting], most_bytes: int | None) -> list[list[_Waiting]]:
    """Parts of a queue that each fit a call; an item that alone is larger goes alone."""
    portions: list[list[_Waiting]] = [[]]
    size = 0
    for waiting in queue:
        length = 0 if most_bytes is None else len(exact_json.dumps(waiting.shape))
        if most_bytes is not None and portions[-1] and size + length > most_bytes:
            portions.append([])
            size = 0
        portions[-1].append(waiting)
        size += length
    return portions


def _text(value: Any) -> str | None:
    """An id, or what a result is known by: the number 7.0 is 7."""
    if value is None or isinstance(value, dict | list):
        return None
    try:
        return canonical_name(value, of_ours=False)
    except NoName:
        return str(value)

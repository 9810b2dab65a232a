"""What a call refers to at the third party, looked up before it: the id of a store, of a category. Kept for a while."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.rest.paging import record_in
from sync_orchestrator.config import OutcomeRule, RequestSettings
from sync_orchestrator.config.calls import ReferenceSettings
from sync_orchestrator.core.values.mapping import compute_digest
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions.selectors import compile_selector

MAX_CACHED_REFERENCES = 10_000

_Flights = dict[bytes, asyncio.Task[object]]


class References:
    """The references of one target. ``outcomes`` are the target's; ``clock`` gives seconds."""

    def __init__(
        self,
        http: HttpClient,
        references: Mapping[str, ReferenceSettings],
        outcomes: Sequence[OutcomeRule] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._references = references
        self._outcomes = outcomes
        self._clock = clock
        self._kept: dict[bytes, tuple[float, object, float]] = {}
        self._flights: WeakKeyDictionary[asyncio.AbstractEventLoop, _Flights] = WeakKeyDictionary()

    @property
    def names(self) -> frozenset[str]:
        """The names by which templates use the references."""
        return frozenset(self._references)

    def can_resolve(self, name: str, values: Values) -> bool:
        """Whether all that a reference is looked up by is known."""
        return self._references[name].collect_template_names() <= values.keys()

    async def add_references(self, call: RequestSettings, values: Values) -> Values:
        """The values with the references of a call's templates. Raises CallFailed, as ``resolve_references``."""
        asked = call.collect_template_names() & self._references.keys() if self._references else set()
        return {**values, **await self.resolve_references(values, asked)} if asked else values

    async def resolve_references(self, values: Values, asked: set[str]) -> dict[str, object]:
        """The references among the names ``asked``, each by what its templates make of ``values``.

        Many that need the same at once make one call. Raises CallFailed, REFERENCE where there is no such thing yet.
        """
        names = sorted(asked & self._references.keys())
        found = await asyncio.gather(*(self._resolve_one(name, self._references[name], values) for name in names))
        return dict(zip(names, found, strict=True))

    async def have_changed(self, values: Values, since: float) -> bool:
        """Whether references that were looked up before ``since`` and kept are others by now.

        For a call that was refused: the kept ones are dropped and looked up again (rule 27). Raises CallFailed, as
        ``resolve_references``.
        """
        changed = False
        for name, reference in self._references.items():
            try:
                call = self._http.prepare_request(reference, values)
            except CallFailed:
                continue  # the call was made without it
            key = compute_digest([name, call.url, call.params, call.headers, call.content])
            until, kept, at = self._kept.get(key, (0.0, None, 0.0))
            if kept is None or at >= since or self._clock() >= until:
                continue
            self._kept.pop(key, None)
            changed |= await self._resolve_one(name, reference, values) != kept
        return changed

    def read_clock(self) -> float:
        """The time by which references are kept."""
        return self._clock()

    async def _resolve_one(self, name: str, reference: ReferenceSettings, values: Values) -> Any:
        try:
            call = self._http.prepare_request(reference, values)
        except CallFailed as failure:
            raise CallFailed(failure.kind, f"reference '{name}': {failure.detail}") from None
        key = compute_digest([name, call.url, call.params, call.headers, call.content])
        until, kept, _ = self._kept.get(key, (0.0, None, 0.0))
        if kept is not None and self._clock() < until:
            return kept
        flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        flight = flights.get(key)
        if flight is None:
            flight = flights[key] = asyncio.create_task(self._lookup_reference(name, reference, values, key))
            flight.add_done_callback(lambda done: _end_flight(flights, key, done))
        return await asyncio.shield(flight)  # one caller that gives up takes it from no other

    async def _lookup_reference(self, name: str, reference: ReferenceSettings, values: Values, key: bytes) -> object:
        try:
            answer = await self._http.read(reference, values, self._outcomes)
            found = self._find_in_response(reference, answer)
        except CallFailed as failure:
            if failure.refusal is not Refusal.MISSING:
                raise CallFailed(
                    failure.kind,
                    f"reference '{name}': {failure.detail}",
                    status=failure.status,
                    retry_after=failure.retry_after,
                    about_system=failure.about_system,
                ) from None
            found, came = None, failure.detail
        else:
            came = f"answer {answer.status}: {self._http.sanitize_text(answer.text)}"
        if found is None:
            raise CallFailed(Failure.REFERENCE, f"reference '{name}' is not there yet: {came}")
        self._keep_reference(key, found, self._clock() + reference.keep)
        return found

    def _find_in_response(self, reference: ReferenceSettings, answer: Answer) -> object:
        if (
            answer.body is not None
            and self._http.search_document(compile_selector(reference.record), answer.body) is None
        ):
            return None
        found = record_in(self._http, reference, answer)
        if isinstance(found, bool):
            raise self._http.build_unusable_failure(
                f"a truth value at '{reference.record}', where a reference is expected", answer.text
            )
        return None if found in ("", [], {}) else found

    def _keep_reference(self, key: bytes, found: object, until: float) -> None:
        self._kept.pop(key, None)
        while len(self._kept) >= MAX_CACHED_REFERENCES:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[key] = until, found, self._clock()


def _end_flight(flights: _Flights, key: bytes, done: asyncio.Task[object]) -> None:
    del flights[key]
    if not done.cancelled():
        done.exception()  # looked at, in case nobody waits for it any more

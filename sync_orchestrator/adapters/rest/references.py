"""What a call refers to at the third party, looked up before it: the id of a store, of a category. Kept for a while.

Not here: which calls ask for it (``rest_third_party.py``), what waiting for it means (``core/push/settlement.py``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sync_orchestrator.adapters.http.client import Http
from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.http.responses import Answer
from sync_orchestrator.adapters.rest.paging import record_in
from sync_orchestrator.config import Outcome, Request
from sync_orchestrator.config.calls import Reference
from sync_orchestrator.core.values.mapping import digest
from sync_orchestrator.errors import CallFailed, Failure, Refusal
from sync_orchestrator.expressions.selectors import compiled

MOST_KEPT = 10_000

_Flights = dict[bytes, asyncio.Task[Any]]


class References:
    """The references of one target. ``outcomes`` are the target's; ``clock`` gives seconds."""

    def __init__(
        self,
        http: Http,
        references: Mapping[str, Reference],
        outcomes: Sequence[Outcome] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._references = references
        self._outcomes = outcomes
        self._clock = clock
        self._kept: dict[bytes, tuple[float, Any, float]] = {}
        self._flights: WeakKeyDictionary[asyncio.AbstractEventLoop, _Flights] = WeakKeyDictionary()

    @property
    def names(self) -> frozenset[str]:
        """The names by which templates use the references."""
        return frozenset(self._references)

    def can_resolve(self, name: str, values: Values) -> bool:
        """Whether all that a reference is looked up by is known."""
        return self._references[name].names() <= values.keys()

    async def known(self, call: Request, values: Values) -> Values:
        """The values with the references that a call's templates ask for. Raises CallFailed, as ``resolve``."""
        asked = call.names() & self._references.keys() if self._references else set()
        return {**values, **await self.resolve(values, asked)} if asked else values

    async def resolve(self, values: Values, asked: set[str]) -> dict[str, Any]:
        """The references among the names ``asked``, each by what its templates make of ``values``.

        Many that need the same at once make one call. Raises CallFailed, REFERENCE where there is no such thing yet.
        """
        names = sorted(asked & self._references.keys())
        found = await asyncio.gather(*(self._one(name, self._references[name], values) for name in names))
        return dict(zip(names, found, strict=True))

    async def have_changed(self, values: Values, since: float) -> bool:
        """Whether references that were looked up before ``since`` and kept are others by now.

        For a call that was refused: the kept ones are dropped and looked up again (rule 27). Raises CallFailed, as
        ``resolve``.
        """
        changed = False
        for name, reference in self._references.items():
            try:
                call = self._http.prepared(reference, values)
            except CallFailed:
                continue  # the call was made without it
            key = digest([name, call.url, call.params, call.headers, call.content])
            until, kept, at = self._kept.get(key, (0.0, None, 0.0))
            if kept is None or at >= since or self._clock() >= until:
                continue
            self._kept.pop(key, None)
            changed |= await self._one(name, reference, values) != kept
        return changed

    def now(self) -> float:
        """The time by which references are kept."""
        return self._clock()

    async def _one(self, name: str, reference: Reference, values: Values) -> Any:
        try:
            call = self._http.prepared(reference, values)
        except CallFailed as failure:
            raise CallFailed(failure.kind, f"reference '{name}': {failure.detail}") from None
        key = digest([name, call.url, call.params, call.headers, call.content])
        until, kept, _ = self._kept.get(key, (0.0, None, 0.0))
        if kept is not None and self._clock() < until:
            return kept
        flights = self._flights.setdefault(asyncio.get_running_loop(), {})
        flight = flights.get(key)
        if flight is None:
            flight = flights[key] = asyncio.create_task(self._looked_up(name, reference, values, key))
            flight.add_done_callback(lambda done: _landed(flights, key, done))
        return await asyncio.shield(flight)  # one caller that gives up takes it from no other

    async def _looked_up(self, name: str, reference: Reference, values: Values, key: bytes) -> Any:
        try:
            answer = await self._http.read(reference, values, self._outcomes)
            found = self._in_answer(reference, answer)
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
            came = f"answer {answer.status}: {self._http.shown(answer.text)}"
        if found is None:
            raise CallFailed(Failure.REFERENCE, f"reference '{name}' is not there yet: {came}")
        self._keep(key, found, self._clock() + reference.keep)
        return found

    def _in_answer(self, reference: Reference, answer: Answer) -> Any:
        if answer.body is not None and self._http.search(compiled(reference.record), answer.body) is None:
            return None
        found = record_in(self._http, reference, answer)
        if isinstance(found, bool):
            raise self._http.garbage(
                f"a truth value at '{reference.record}', where a reference is expected", answer.text
            )
        return None if found in ("", [], {}) else found

    def _keep(self, key: bytes, found: Any, until: float) -> None:
        self._kept.pop(key, None)
        while len(self._kept) >= MOST_KEPT:
            self._kept.pop(next(iter(self._kept)), None)
        self._kept[key] = until, found, self._clock()


def _landed(flights: _Flights, key: bytes, done: asyncio.Task[Any]) -> None:
    del flights[key]
    if not done.cancelled():
        done.exception()  # looked at, in case nobody waits for it any more

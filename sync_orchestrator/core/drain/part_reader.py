"""Reads the parts that the events of a batch ask for: together where their source can, else one by one.

A record whose read fails holds up no other. Where a read of several records fails, they are read one by one, so that
each has a failure of its own; a source that is down is found out by a few of these.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sync_orchestrator.core.values.names import fold_name
from sync_orchestrator.core.values.storable import sort_out
from sync_orchestrator.errors import CallFailed, Failure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sync_orchestrator.core.drain.event_decisions import ReadSource
    from sync_orchestrator.core.ports import PartRead, SourceSystem

_log = logging.getLogger("sync_orchestrator.events")

PROBED_RECORDS = 8
"""How many records are read one by one before the others of a failed read are given up for this time."""


async def read_requested_parts(
    sources: Mapping[str, SourceSystem], entity: str, requests: Sequence[ReadSource]
) -> list[dict[str, PartRead | None] | CallFailed]:
    """Reads the parts that events ask for; each part of a record once, however many events ask for it.

    Args:
        sources: The entity's source systems, by part.
        entity: The entity's name, for the log.
        requests: The events, with the parts that each of them asks for.

    Returns:
        For each request, in order, what the sources show by part, None for a part that they do not have. CallFailed
        where one of its parts cannot be read or cannot be stored.
    """
    keys_by_part: dict[str, dict[str, None]] = {}
    for request in requests:
        for part in request.parts:
            keys_by_part.setdefault(part, {})[request.event.key] = None
    readers = {part: PartReader(sources[part], entity) for part in keys_by_part}
    shown = await asyncio.gather(*(readers[part].read_records(list(keys)) for part, keys in keys_by_part.items()))
    outcomes = dict(zip(keys_by_part, shown, strict=True))
    return [
        _gather_parts({part: outcomes[part][request.event.key] for part in sorted(request.parts)})
        for request in requests
    ]


def _gather_parts(outcomes: Mapping[str, PartRead | CallFailed | None]) -> dict[str, PartRead | None] | CallFailed:
    parts: dict[str, PartRead | None] = {}
    for part, outcome in outcomes.items():
        if isinstance(outcome, CallFailed):
            return outcome
        parts[part] = outcome
    _, unusable = sort_out(found for found in parts.values() if found is not None)
    return CallFailed(Failure.PERMANENT, str(unusable[0].problem)) if unusable else parts


class PartReader:
    """Reads one part of records of one entity.

    Args:
        source: Where the part is read.
        entity: The entity's name, for the log.
    """

    def __init__(self, source: SourceSystem, entity: str) -> None:
        self._source = source
        self._entity = entity

    async def read_records(self, keys: Sequence[str]) -> dict[str, PartRead | CallFailed | None]:
        """Reads records in chunks of the source's own size.

        Args:
            keys: Their keys, each once.

        Returns:
            By key, what the source shows of each record: its part, None where there is no such record, or the failure.
        """
        size = max(1, self._source.read_many_size)
        chunks = [keys[at : at + size] for at in range(0, len(keys), size)]
        outcomes: dict[str, PartRead | CallFailed | None] = {}
        for found in await asyncio.gather(*map(self._read_chunk, chunks)):
            outcomes |= found
        return outcomes

    async def _read_chunk(self, keys: Sequence[str]) -> dict[str, PartRead | CallFailed | None]:
        if len(keys) == 1:
            return await self._read_singly(keys)
        try:
            rows = await self._source.read_many(keys)
        except Exception as error:
            return await self._read_after_failure(keys, self._classify(error, keys))
        return await self._assign_rows(keys, rows)

    async def _assign_rows(
        self, keys: Sequence[str], rows: Iterable[PartRead]
    ) -> dict[str, PartRead | CallFailed | None]:
        """What a read of several records shows of each. What it leaves unclear is read by itself."""
        outcomes: dict[str, PartRead | CallFailed | None] = dict.fromkeys(keys)
        unclear = set()
        for row in rows:
            if outcomes.get(row.key) is not None:  # several rows of one key
                unclear.add(row.key)
            elif row.key in outcomes:
                outcomes[row.key] = row
        absent = [key for key, outcome in outcomes.items() if outcome is None]
        if self._source.confirms_absence:
            unclear.update(absent)
        elif absent:  # a source that compares less strictly may have shown one under the key of another
            spellings = Counter(map(fold_name, keys))
            unclear |= {key for key in absent if spellings[fold_name(key)] > 1}
        return outcomes | await self._read_singly([key for key in keys if key in unclear])

    async def _read_after_failure(
        self, keys: Sequence[str], failure: CallFailed
    ) -> dict[str, PartRead | CallFailed | None]:
        """Reads one by one what could not be read together.

        Any of the records may be the one that cannot be read, so a few come first, other ones each time. Where none of
        them can be read and none is refused for good, the source itself is down, and the others are left for later. A
        refusal is only ever that of a record's own read.
        """
        if failure.kind is Failure.THROTTLED:
            return dict.fromkeys(keys, failure)
        order = random.sample(keys, len(keys))
        outcomes = await self._read_singly(order[:PROBED_RECORDS])
        if all(_may_pass(outcome) for outcome in outcomes.values()):
            given_up = failure if _may_pass(failure) else next(iter(outcomes.values()))
            return outcomes | dict.fromkeys(order[PROBED_RECORDS:], given_up)
        return outcomes | await self._read_singly(order[PROBED_RECORDS:])

    async def _read_singly(self, keys: Sequence[str]) -> dict[str, PartRead | CallFailed | None]:
        return dict(zip(keys, await asyncio.gather(*map(self._read_record, keys)), strict=True))

    async def _read_record(self, key: str) -> PartRead | CallFailed | None:
        try:
            return await self._source.read(key)
        except Exception as error:
            return self._classify(error, [key])

    def _classify(self, error: Exception, keys: Sequence[str]) -> CallFailed:
        if isinstance(error, CallFailed):
            return error
        # Whatever a library raises is these events' trouble, not the drain's.
        _log.error("reading %s %r from its source failed unexpectedly", self._entity, keys[:5], exc_info=error)
        return CallFailed(Failure.TRANSIENT, f"{type(error).__name__}: {error}"[:300])


def _may_pass(outcome: PartRead | CallFailed | None) -> bool:
    """Whether a read failed in a way that may have nothing to do with its record."""
    return isinstance(outcome, CallFailed) and outcome.kind is not Failure.PERMANENT

"""Whether the other side obeys a filter: some servers ignore one that they do not know, and give everything."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sync_orchestrator.adapters.http.client import HttpClient
from sync_orchestrator.adapters.http.prepared_calls import Values
from sync_orchestrator.adapters.rest.paging import first_page, get_count
from sync_orchestrator.config import CountCallSettings, FilterCheckSettings, ListCallSettings, OutcomeRule
from sync_orchestrator.errors import CallFailed, Failure

KEEP = 3600.0
"""For so many seconds a filter that was obeyed is trusted."""


class Filters:
    """The filters of one adapter's calls, each proven with a value that cannot exist, and again after an hour.

    To be called with an answer in hand that found something, before it is used. Then the proof means something (where
    there is nothing at all, an ignored filter gives nothing, too), and an answer of nothing is right in any case::

        number = await get_count(http, count, values)
        if number:
            await filters.prove("count", count, values, "group", *target.references)
    """

    def __init__(
        self, http: HttpClient, settings: FilterCheckSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._http = http
        self._settings = settings
        self._clock = clock
        self._proven: dict[str, float] = {}

    async def prove_filters(
        self,
        name: str,
        call: ListCallSettings | CountCallSettings,
        values: Values,
        *filters: str,
        outcomes: Sequence[OutcomeRule] = (),
    ) -> None:
        """Returns where the call named ``name`` obeys the names ``filters`` of its templates.

        Whichever of them it does not use is left aside. Raises CallFailed, PERMANENT where everything comes back.
        """
        used = sorted(call.collect_template_names() & set(filters))
        now = self._clock()
        if self._settings.off or not used or now < self._proven.get(name, now):
            return
        impossible = {filter: self._choose_impossible_value(filter) for filter in used}
        asked = " and ".join(f"{filter} '{value}'" for filter, value in impossible.items())
        place = f"the filter of '{name}' ({call.method} {call.path})"
        try:
            came = await self._describe_result(call, {**values, **impossible}, outcomes)
        except CallFailed as failure:
            if not is_refusal(failure):
                raise CallFailed(
                    failure.kind,
                    f"{place} cannot be checked, asked for {asked}: {failure.detail}",
                    status=failure.status,
                    retry_after=failure.retry_after,
                ) from None
            came = None
        if came:
            raise CallFailed(
                Failure.PERMANENT,
                (
                    f"{place} is ignored: asked for {asked}, of which there is nothing, it answers with {came}; "
                    f"write '{name}' with a filter that the other side knows, or set "
                    "'filter_check: {off: true}' to trust it"
                ),
            )
        self._proven[name] = now + KEEP

    def _choose_impossible_value(self, filter: str) -> Any:
        if filter == "keys":
            return [self._settings.key]
        return self._settings.key if filter == "key" else self._settings.group

    async def _describe_result(
        self, call: ListCallSettings | CountCallSettings, values: Values, outcomes: Sequence[OutcomeRule]
    ) -> str | None:
        """What comes; None for nothing."""
        if isinstance(call, CountCallSettings):
            number = await get_count(self._http, call, values, outcomes)
            return f"a count of {number}" if number else None
        items = await first_page(self._http, call, values, outcomes)
        return f"{len(items)} items" if items else None


def is_refusal(failure: CallFailed) -> bool:
    """Whether a value that cannot exist was refused, which is an obeyed filter, too.

    For a call that a real value got a good response to just before.
    """
    final = failure.kind in (Failure.PERMANENT, Failure.REFERENCE) or failure.status in (403, 404, 410)
    return final and failure.status is not None and not 300 <= failure.status < 400

"""How much each source system may send to this replica, by the generic cell rate algorithm (GCRA)."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from sync_orchestrator.api.problems import Refused

_BURST_SECONDS = 1.0


class IntakeThrottle:
    """Counts events by source; ``rates`` in events a second, None: no limit."""

    def __init__(self, rates: Mapping[str, float | None], clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = {source: rate for source, rate in rates.items() if rate is not None}
        self._clock = clock
        self._paid_until = dict.fromkeys(self._rates, 0.0)

    def charge_events(self, sources: Iterable[str]) -> None:
        """Takes one for each event. Raises Refused (429) with the time to wait, and takes nothing then.

        A batch of more than a second's worth is taken when nothing is owed.
        """
        if not self._rates:
            return
        now = self._clock()
        costs = {source: n / self._rates[source] for source, n in Counter(sources).items() if source in self._rates}
        waits = [self._compute_wait(source, cost, now) for source, cost in costs.items()]
        if max(waits, default=0) > 0:
            raise Refused(
                429,
                "This source system sends more than it may; nothing was recorded.",
                {"Retry-After": str(math.ceil(max(waits)))},
            )
        for source, cost in costs.items():
            self._paid_until[source] = max(self._paid_until[source], now) + cost

    def _compute_wait(self, source: str, cost: float, now: float) -> float:
        owed = max(0.0, self._paid_until[source] - now)
        return min(owed, owed + cost - _BURST_SECONDS)

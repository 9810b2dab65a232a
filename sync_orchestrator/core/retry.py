"""The retry rule: what a failure costs and how long it waits. A pure function of attempts, failure and policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sync_orchestrator.errors import Failure

if TYPE_CHECKING:
    from sync_orchestrator.config import RetrySettings


@dataclass(frozen=True, slots=True)
class Decision:
    """``attempts`` spent so far; ``wait`` in seconds, or None for dead."""

    attempts: int
    wait: float | None


def after_failure(
    policy: RetrySettings,
    spent: int,
    failure: Failure,
    *,
    retry_after: float | None = None,
    waited: float = 0.0,
    draw: float = 0.0,
) -> Decision:
    """What follows a failed attempt, ``spent`` attempts having been spent before it.

    ``draw`` in 0..1 chooses the jitter; ``retry_after`` (seconds) is what the other side asked for. A throttled call
    costs no attempt: it was not tried. Nor does one whose reference is missing: it waits for as long as it takes, each
    time in proportion to the ``waited`` seconds before.
    """
    asked = retry_after or 0.0
    if failure is Failure.THROTTLED:
        return Decision(spent, max(asked, policy.first_wait))
    if failure is Failure.REFERENCE:
        wait = min(policy.max_wait, max(policy.first_wait, waited * (policy.factor - 1)))
        return Decision(spent, max(asked, wait * (1 + policy.jitter * draw)))
    attempts = spent + 1
    if failure is Failure.PERMANENT or attempts > policy.retries:
        return Decision(attempts, None)
    wait = _compute_backoff(policy, spent)
    return Decision(attempts, max(asked, wait * (1 + policy.jitter * draw)))


def after_conflict(policy: RetrySettings, spent: int, *, draw: float = 0.0) -> Decision:
    """What follows a refusal that names another record while other records are under way (rule 26).

    A unique value that another record still has may be free soon, so it is tried again as any failure that may pass.
    """
    return after_failure(policy, spent, Failure.TRANSIENT, draw=draw)


def _compute_backoff(policy: RetrySettings, spent: int) -> float:
    try:
        return min(policy.max_wait, policy.first_wait * policy.factor**spent)
    except OverflowError:
        return policy.max_wait

"""Which failed reads are tried again, how often, and after which wait."""

from __future__ import annotations

from tenacity import RetryCallState, wait_random_exponential

from sync_orchestrator.errors import CallFailed, Failure

READ_ATTEMPTS = 4

_backing_off = wait_random_exponential(multiplier=0.1, max=2)


def may_pass_soon(failure: CallFailed) -> bool:
    """Whether a read is worth another try at once: not after a redirect, which stays for a while."""
    redirects = failure.status is not None and 300 <= failure.status < 400
    return failure.kind is Failure.TRANSIENT and not redirects


def may_pass(error: BaseException) -> bool:
    """What a wait may fix: one of our own choice, or the one that is asked for."""
    return isinstance(error, CallFailed) and (
        may_pass_soon(error) or (error.kind is Failure.THROTTLED and error.retry_after is not None)
    )


def wait_before_retry(state: RetryCallState) -> float:
    """Returns the seconds until the next attempt: those that the system asked for, or else an exponential wait."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after if isinstance(error, CallFailed) else None
    return _backing_off(state) if asked is None else asked

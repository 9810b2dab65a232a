"""The retry rule, a case a row: what a failure costs and how long it waits."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sync_orchestrator.config import RetrySettings
from sync_orchestrator.core.retry import Decision, after_failure
from sync_orchestrator.errors import Failure

TRANSIENT, THROTTLED, AUTH, PERMANENT = Failure.TRANSIENT, Failure.THROTTLED, Failure.AUTH, Failure.PERMANENT
DEFAULT = RetrySettings(jitter=0)

POLICIES = st.builds(
    RetrySettings,
    retries=st.integers(0, 100),
    first_wait=st.floats(0.001, 7200),
    factor=st.floats(1, 50),
    max_wait=st.floats(0.001, 86_400),
    jitter=st.floats(0, 1),
)
DRAWS = st.floats(0, 1)
COUNTED = st.sampled_from([TRANSIENT, AUTH])

the_same_every_time = settings(deadline=None, database=None, derandomize=True)


@pytest.mark.parametrize(
    ("spent", "attempts", "wait"),
    [
        (0, 1, 10),
        (1, 2, 20),
        (2, 3, 40),
        (3, 4, None),
        (4, 5, None),  # the policy was tightened meanwhile
    ],
)
@pytest.mark.parametrize("failure", [TRANSIENT, AUTH])
def test_one_and_three_attempts_wait_ten_twenty_forty_seconds_then_dead(
    failure: Failure, spent: int, attempts: int, wait: float | None
) -> None:
    assert after_failure(DEFAULT, spent, failure) == Decision(attempts, wait)


@pytest.mark.parametrize("spent", [0, 2, 3])
def test_what_is_refused_for_good_is_dead_at_once(spent: int) -> None:
    assert after_failure(DEFAULT, spent, PERMANENT, retry_after=5) == Decision(spent + 1, None)


@pytest.mark.parametrize(
    ("spent", "asked", "wait"),
    [
        (0, None, 10),
        (0, 3, 10),
        (0, 90, 90),
        (3, None, 10),  # out of attempts but for this one
        (3, 7200, 7200),
    ],
)
def test_a_throttled_call_costs_no_attempt(spent: int, asked: float | None, wait: float) -> None:
    assert after_failure(DEFAULT, spent, THROTTLED, retry_after=asked) == Decision(spent, wait)


@pytest.mark.parametrize(
    ("spent", "asked", "wait"),
    [
        (0, 30, 30),
        (0, 3, 10),
        (0, 0, 10),
        (2, 30, 40),
        (2, 41, 41),
        (1, 7200, 7200),  # beyond max_wait
        (3, 30, None),
    ],
)
def test_what_the_other_side_asks_for_lengthens_a_wait_and_never_shortens_it(
    spent: int, asked: float, wait: float | None
) -> None:
    assert after_failure(DEFAULT, spent, TRANSIENT, retry_after=asked) == Decision(spent + 1, wait)


@pytest.mark.parametrize(
    ("jitter", "draw", "wait"),
    [
        (0.1, 0.0, 20),
        (0.1, 0.5, 21),
        (0.1, 1.0, 22),
        (1.0, 1.0, 40),
        (0.0, 1.0, 20),
    ],
)
def test_jitter_lengthens_a_wait_by_at_most_its_share(jitter: float, draw: float, wait: float) -> None:
    decision = after_failure(RetrySettings(jitter=jitter), 1, TRANSIENT, draw=draw)
    assert decision.attempts == 2
    assert decision.wait == pytest.approx(wait)


def test_jitter_is_not_added_to_what_the_other_side_asks_for() -> None:
    assert after_failure(RetrySettings(jitter=1), 0, TRANSIENT, retry_after=30, draw=1.0).wait == 30


@pytest.mark.parametrize(
    ("policy", "waits"),
    [
        (RetrySettings(jitter=0, retries=0), [None]),
        (RetrySettings(jitter=0, retries=1, first_wait=0.5), [0.5, None]),
        (RetrySettings(jitter=0, retries=3, factor=1), [10, 10, 10, None]),
        (RetrySettings(jitter=0, retries=3, factor=3), [10, 30, 90, None]),
        (RetrySettings(jitter=0, retries=5, max_wait=60), [10, 20, 40, 60, 60, None]),
        (RetrySettings(jitter=0, retries=2, first_wait=90, max_wait=60), [60, 60, None]),
    ],
)
def test_other_policies_have_their_own_waits(policy: RetrySettings, waits: list[float | None]) -> None:
    assert [after_failure(policy, spent, TRANSIENT).wait for spent in range(len(waits))] == waits


@the_same_every_time
@given(policy=POLICIES, failure=COUNTED, draw=DRAWS)
def test_waits_never_shrink_from_one_attempt_to_the_next(policy: RetrySettings, failure: Failure, draw: float) -> None:
    waits = [after_failure(policy, spent, failure, draw=draw).wait for spent in range(policy.retries)]
    known = [wait for wait in waits if wait is not None]
    assert len(known) == policy.retries
    assert known == sorted(known)


@the_same_every_time
@given(policy=POLICIES, spent=st.integers(0, 120), failure=COUNTED, draw=DRAWS, asked=st.none() | st.floats(0, 1e6))
def test_waits_and_attempts_are_bounded(
    policy: RetrySettings, spent: int, failure: Failure, draw: float, asked: float | None
) -> None:
    decision = after_failure(policy, spent, failure, retry_after=asked, draw=draw)
    assert decision.attempts == spent + 1
    assert (decision.wait is None) == (decision.attempts > policy.retries)
    if decision.wait is not None:
        assert decision.wait >= min(policy.first_wait, policy.max_wait)
        assert decision.wait <= max(asked or 0.0, policy.max_wait * (1 + policy.jitter))


@the_same_every_time
@given(policy=POLICIES, spent=st.integers(0, 120), draw=DRAWS, asked=st.none() | st.floats(0, 1e6))
def test_what_is_not_tried_is_never_dead(policy: RetrySettings, spent: int, draw: float, asked: float | None) -> None:
    decision = after_failure(policy, spent, THROTTLED, retry_after=asked, draw=draw)
    assert decision == Decision(spent, max(asked or 0.0, policy.first_wait))


def test_a_steep_policy_is_capped_too() -> None:
    policy = RetrySettings(retries=100, factor=10_000, jitter=0)
    assert after_failure(policy, 99, TRANSIENT).wait == policy.max_wait

from __future__ import annotations

import math
from collections import deque
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from quire.engine.admission import MAX_IDLE_ACCOUNTS, Account, Admission, most_queued_tokens
from quire.engine.messages import KeyLimits, Rejected, SampleSpec, Sampling, Submit

SECOND = 10**9


class Clock:
    def __init__(self) -> None:
        self.ns = 5 * SECOND

    def __call__(self) -> int:
        return self.ns

    def advance(self, seconds: float) -> None:
        self.ns += math.ceil(seconds * SECOND)


def door(requests: int | None = None, tokens: int | None = None) -> tuple[Admission, Clock]:
    clock = Clock()
    return Admission(requests, tokens, clock), clock


UNLIMITED = KeyLimits("k")


def submit(key: KeyLimits = UNLIMITED, num_tokens: int = 3, n: int = 1, resumed: bool = False) -> Submit:
    return Submit("engine", "request", [1] * num_tokens, Sampling(), [SampleSpec(i, 0) for i in range(n)], key=key,
                  resumed=resumed)


def accepted(admission: Admission, message: Submit, waiting: int = 0, waiting_tokens: int = 0) -> Account:
    answer = admission.admit(message, waiting, waiting_tokens)
    assert isinstance(answer, Account), answer
    return answer


def refused(admission: Admission, message: Submit, waiting: int = 0, waiting_tokens: int = 0) -> Rejected:
    answer = admission.admit(message, waiting, waiting_tokens)
    assert isinstance(answer, Rejected)
    return answer


def test_a_full_queue_refuses_and_names_its_flag() -> None:
    admission, _ = door(requests=10, tokens=100)
    accepted(admission, submit(n=2), 8, 0)
    refusal = refused(admission, submit(n=2), 9, 0)
    assert (refusal.kind, refusal.reason, refusal.closed_s) == ("overloaded", "queue_requests", 0.05)
    assert "9 samples wait, this request has 2, and --max-queued-requests is 10" in refusal.message
    accepted(admission, submit(num_tokens=50), 1, 50)
    refusal = refused(admission, submit(num_tokens=51), 1, 50)
    assert (refusal.kind, refusal.reason) == ("overloaded", "queue_tokens")
    assert "50 tokens wait, this prompt has 51, and --max-queued-tokens is 100" in refusal.message


def test_who_finds_the_queue_empty_may_enter_at_any_size() -> None:
    admission, _ = door(requests=2, tokens=10)
    accepted(admission, submit(n=100, num_tokens=1000))


def test_the_time_to_come_again_follows_the_pace_of_the_queue() -> None:
    admission, clock = door(requests=100)
    for _ in range(20):
        clock.advance(1)
        admission.departed(5, 50)
    assert 5 <= refused(admission, submit(n=26), 100).retry_after_s <= 7  # 26 too many, five a second
    clock.advance(3600)
    admission.departed(5, 50)
    assert refused(admission, submit(n=26), 100).retry_after_s <= 2, "an idle hour says nothing of the pace"
    clock.advance(15)
    assert refused(admission, submit(n=26), 100).retry_after_s == 60, "nothing moves"


def test_a_keys_requests_a_minute() -> None:
    admission, clock = door()
    key = KeyLimits("k", requests_per_minute=7)
    for remaining in reversed(range(7)):
        rate = accepted(admission, submit(key)).rate(clock())
        assert rate is not None
        assert (rate.limit_requests, rate.remaining_requests, rate.limit_tokens) == (7, remaining, 0)
        assert math.isclose(rate.reset_requests_s, (7 - remaining) * 60 / 7)
    refusal = refused(admission, submit(key))
    assert (refusal.kind, refusal.reason) == ("limit", "key_requests")
    assert refusal.message.startswith("The key 'k' has used up its 7 requests a minute.")
    assert refusal.closed_s == refusal.retry_after_s
    assert math.isclose(refusal.retry_after_s, 60 / 7, rel_tol=1e-8)
    accepted(admission, submit(KeyLimits("other", requests_per_minute=7)))


def test_a_keys_tokens_a_minute_count_prompts_and_outputs_and_may_go_into_debt() -> None:
    admission, clock = door()
    key = KeyLimits("k", tokens_per_minute=60)
    account = accepted(admission, submit(key, num_tokens=59))
    account.charge_output(31, clock())  # 90 in all: 30 over
    refusal = refused(admission, submit(key, num_tokens=1))
    assert (refusal.reason, refusal.retry_after_s) == ("key_tokens", 31.0)
    assert refusal.rate is not None
    assert (refusal.rate.remaining_tokens, refusal.rate.reset_tokens_s) == (0, 90.0)
    assert refused(admission, submit(key, num_tokens=999)).retry_after_s == 31.0, "the size does not matter"


def test_concurrency_counts_requests_and_not_samples() -> None:
    admission, _ = door()
    key = KeyLimits("k", max_concurrent=2)
    first = accepted(admission, submit(key, n=5))
    accepted(admission, submit(key))
    refusal = refused(admission, submit(key))
    assert (refusal.kind, refusal.reason, refusal.closed_s) == ("limit", "key_concurrency", 0.05)
    assert "has 2 unfinished requests and may have 2" in refusal.message
    first.num_running -= 1
    accepted(admission, submit(key))


def test_a_resumed_request_passes_and_counts_as_running_and_is_not_charged_again() -> None:
    admission, _ = door(requests=1)
    key = KeyLimits("k", requests_per_minute=1, max_concurrent=1)
    for _ in range(3):
        account = accepted(admission, submit(key, resumed=True), waiting=50)
    assert account.num_running == 3
    assert refused(admission, submit(key)).reason == "key_concurrency"
    account.num_running = 0
    accepted(admission, submit(key))


def test_a_refusal_charges_nothing() -> None:
    admission, _ = door(requests=1)
    key = KeyLimits("k", requests_per_minute=1)
    for _ in range(5):
        assert refused(admission, submit(key), waiting=5).reason == "queue_requests"
    accepted(admission, submit(key))


def test_the_keys_own_limit_is_named_before_the_queues() -> None:
    admission, _ = door(requests=1)
    key = KeyLimits("k", requests_per_minute=1)
    accepted(admission, submit(key))
    assert refused(admission, submit(key), waiting=5).kind == "limit"


def test_changed_limits_hold_at_once_and_keep_what_was_used() -> None:
    admission, clock = door()
    for _ in range(10):
        accepted(admission, submit(KeyLimits("k", requests_per_minute=10)))
    raised = KeyLimits("k", requests_per_minute=15)
    for _ in range(5):
        accepted(admission, submit(raised))
    assert refused(admission, submit(raised)).reason == "key_requests"
    assert accepted(admission, submit(KeyLimits("k"))).rate(clock()) is None


def test_accounts_with_nothing_to_remember_are_dropped() -> None:
    admission, clock = door()
    kept = accepted(admission, submit(KeyLimits("runs", max_concurrent=1)))
    for number in range(5 * MAX_IDLE_ACCOUNTS):
        accepted(admission, submit(KeyLimits(f"key {number}", requests_per_minute=60))).num_running -= 1
        clock.advance(0.01)
    assert len(admission._accounts) <= 2 * MAX_IDLE_ACCOUNTS
    assert kept.num_running == 1
    assert refused(admission, submit(KeyLimits("runs", max_concurrent=1))).reason == "key_concurrency"


GAPS_S = st.lists(st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 90)), min_size=1, max_size=60)


@given(st.integers(1, 40), GAPS_S)
def test_never_more_requests_than_the_burst_and_what_the_time_brings(limit: int, gaps: list[float]) -> None:
    admission, clock = door()
    key = KeyLimits("k", requests_per_minute=limit)
    times: list[int] = []
    for gap in gaps:
        clock.advance(gap)
        if isinstance(admission.admit(submit(key), 0, 0), Account):
            times.append(clock.ns)
    for first, start in enumerate(times):
        for last in range(first, len(times)):
            assert last - first + 1 <= limit + (times[last] - start) * limit / (60 * SECOND) + 1e-9


@given(st.integers(1, 10**6), st.integers(0, 10**6), GAPS_S, st.lists(st.integers(1, 4000), min_size=1, max_size=9))
def test_who_comes_when_told_is_let_in_and_not_a_nanosecond_before(requests: int, tokens: int, gaps: list[float],
                                                                   sizes: list[int]) -> None:
    admission, clock = door()
    key = KeyLimits("k", requests_per_minute=requests, tokens_per_minute=tokens)
    for turn, gap in enumerate(gaps):
        clock.advance(gap)
        message = submit(key, sizes[turn % len(sizes)])
        answer = admission.admit(message, 0, 0)
        if isinstance(answer, Account):
            answer.charge_output(sizes[-turn % len(sizes)], clock())
            continue
        at = clock.ns + round(answer.retry_after_s * SECOND)
        clock.ns = at - 1
        assert refused(admission, message).retry_after_s == 1 / SECOND
        clock.ns = at
        accepted(admission, message)


@given(st.integers(1, 5), st.lists(st.booleans(), max_size=80))
def test_never_more_at_once_than_allowed(limit: int, arrivals: list[bool]) -> None:
    admission, _ = door()
    key = KeyLimits("k", max_concurrent=limit)
    running: deque[Account] = deque()
    for arrives in arrivals:
        if arrives:
            answer: Any = admission.admit(submit(key), 0, 0)
            assert isinstance(answer, Account) == (len(running) < limit)
            if isinstance(answer, Account):
                running.append(answer)
        elif running:
            running.popleft().num_running -= 1


def test_queued_tokens_have_a_limit_that_grows_with_the_cache_and_is_never_small() -> None:
    assert most_queued_tokens(None, cache_tokens=5456) == 1_048_576
    assert most_queued_tokens(None, cache_tokens=500_000) == 8_000_000
    assert most_queued_tokens(100, cache_tokens=500_000) == 100


def test_the_spacing_of_places_is_the_queues_pace_and_a_burst_is_none() -> None:
    admission, clock = door(requests=10, tokens=1000)
    assert refused(admission, submit(), 10).spacing_s == 0.05, "nothing left it yet: unknown"
    admission.departed(64, 6400)
    assert refused(admission, submit(), 10).spacing_s == 1 / 64, "not 64 in no time"
    clock.advance(8.0)
    assert refused(admission, submit(n=2), 10).spacing_s == 2 * 8 / 64
    assert refused(admission, submit(num_tokens=800), 1, 300).spacing_s == 1.0
    assert admission.overdue([1, 2], 300.0, 10).spacing_s == 2 * 8 / 64, "who waited in vain is spread too"

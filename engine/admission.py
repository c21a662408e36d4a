"""The door: what may queue. One place sees every worker's requests, so limits hold across all of them.

Asked by the core before a request becomes known to the scheduler; says yes, or why not and when to come again. Counts
what each key has running and used this minute; the limits themselves come with every submission.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from quire.engine.messages import KeyLimits, RateState, Rejected, Submit

MINUTE_NS = 60 * 10**9
REFUSAL_S = 0.05  # for so long a worker may refuse by itself what waits for others to end
CONCURRENCY_RETRY_S = 1.0
MIN_RETRY_S, MAX_RETRY_S = 1.0, 60.0
UNKNOWN_SPACING_S = 0.05  # where nothing left the queue lately
MAX_IDLE_ACCOUNTS = 1024
# Tokens that may wait where nobody says: so many times what the KV cache holds, work for minutes, and at least so many,
# some 40 MB of them.
QUEUED_CACHES = 16
MIN_QUEUED_TOKENS = 2**20


def most_queued_tokens(given: int | None, cache_tokens: int) -> int:
    """What --max-queued-tokens is, or comes to where it is unset."""
    return given if given is not None else max(QUEUED_CACHES * cache_tokens, MIN_QUEUED_TOKENS)


class Admission:
    def __init__(self, max_queued_requests: int | None, max_queued_tokens: int | None,
                 clock: Callable[[], int] = time.monotonic_ns) -> None:
        """`clock` gives nanoseconds. None is no limit."""
        self._max_queued_requests = max_queued_requests
        self._max_queued_tokens = max_queued_tokens
        self.now = clock
        self._accounts: dict[str, Account] = {}  # by key name
        self._sweep_at = MAX_IDLE_ACCOUNTS
        self._departed_requests = _Flow(clock())
        self._departed_tokens = _Flow(clock())

    def admit(self, message: Submit, num_waiting: int, num_waiting_tokens: int) -> Account | Rejected:
        """The account of the request's key, charged with it, or the refusal. The counts are of what waits already.

        A request that was accepted before passes whatever the limits.
        """
        now = self.now()
        account = self._account(message.key, now)
        if not message.resumed:
            refusal = (account.refusal(message, now)
                       or self._queue_refusal(message, num_waiting, num_waiting_tokens, now))
            if refusal is not None:
                return refusal
            account.charge_request(len(message.prompt_token_ids), now)
        account.num_running += 1
        return account

    def overdue(self, ids: list[int], timeout_s: float, num_waiting: int) -> Rejected:
        """The refusal of a request whose time in the queue is over."""
        return Rejected(
            ids, "overloaded", f"No step took the request up within {round(timeout_s, 1):g} s, its limit for waiting "
            "in the queue (--queue-timeout, or less by x-queue-timeout). Try again later.",
            retry_after_s=self._departed_requests.time_for(num_waiting + 1, self.now()), reason="queue_timeout",
            spacing_s=self._departed_requests.spacing_s(len(ids), self.now()))

    def departed(self, num_requests: int, num_tokens: int) -> None:
        """So much left the queue to run."""
        now = self.now()
        self._departed_requests.add(num_requests, now)
        self._departed_tokens.add(num_tokens, now)

    def _account(self, key: KeyLimits, now: int) -> Account:
        account = self._accounts.get(key.name)
        if account is None:
            if len(self._accounts) >= self._sweep_at:
                self._accounts = {name: a for name, a in self._accounts.items() if not a.idle(now)}
                self._sweep_at = MAX_IDLE_ACCOUNTS + len(self._accounts)
            account = self._accounts[key.name] = Account()
        account.set_limits(key, now)
        return account

    def _queue_refusal(self, message: Submit, num_waiting: int, num_waiting_tokens: int, now: int) -> Rejected | None:
        """Whoever finds the queue empty may enter it at any size: else it could never."""
        limit = self._max_queued_requests
        if limit is not None and num_waiting and num_waiting + len(message.samples) > limit:
            return _refusal(
                message, "overloaded", "queue_requests", f"The queue is full: {num_waiting} samples wait, this request "
                f"has {len(message.samples)}, and --max-queued-requests is {limit}. Try again later.",
                self._departed_requests.time_for(num_waiting + len(message.samples) - limit, now),
                spacing_s=self._departed_requests.spacing_s(len(message.samples), now))
        limit = self._max_queued_tokens
        num_tokens = len(message.prompt_token_ids)
        if limit is not None and num_waiting and num_waiting_tokens + num_tokens > limit:
            return _refusal(
                message, "overloaded", "queue_tokens", f"The queue is full: {num_waiting_tokens} tokens wait, this "
                f"prompt has {num_tokens}, and --max-queued-tokens is {limit}. Try again later.",
                self._departed_tokens.time_for(num_waiting_tokens + num_tokens - limit, now),
                spacing_s=self._departed_tokens.spacing_s(num_tokens, now))
        return None


class Account:
    """What one key has running, and what it used this minute."""

    __slots__ = ("_limits", "_requests", "_tokens", "num_running")

    def __init__(self) -> None:
        self._limits = KeyLimits()
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.num_running = 0  # unfinished requests

    def set_limits(self, key: KeyLimits, now: int) -> None:
        if key == self._limits:
            return
        self._limits = key
        self._requests = _resized(self._requests, key.requests_per_minute, now)
        self._tokens = _resized(self._tokens, key.tokens_per_minute, now)

    def idle(self, now: int) -> bool:
        """Whether forgetting it changes nothing."""
        return not self.num_running and all(bucket is None or bucket.full(now)
                                            for bucket in (self._requests, self._tokens))

    def refusal(self, message: Submit, now: int) -> Rejected | None:
        """Why the key may not send this now; charges nothing."""
        key = message.key
        if key.max_concurrent and self.num_running >= key.max_concurrent:
            return _refusal(
                message, "limit", "key_concurrency", f"The key {key.name!r} has {self.num_running} unfinished requests "
                f"and may have {key.max_concurrent}. Wait for one to end.", CONCURRENCY_RETRY_S, self.rate(now))
        waits = [(bucket.wait_ns(now), what, bucket.limit)
                 for bucket, what in ((self._requests, "requests"), (self._tokens, "tokens")) if bucket is not None]
        wait_ns, what, limit = max(waits, default=(0, "", 0))
        if not wait_ns:
            return None
        wait_s = wait_ns / 1e9
        return _refusal(
            message, "limit", f"key_{what}", f"The key {key.name!r} has used up its {limit} {what} a minute. The "
            "header retry-after says when to try again.", wait_s, self.rate(now), closed_s=wait_s)

    def charge_request(self, num_prompt_tokens: int, now: int) -> None:
        if self._requests is not None:
            self._requests.take(1, now)
        if self._tokens is not None:
            self._tokens.take(num_prompt_tokens, now)

    @property
    def limits_output(self) -> bool:
        return self._tokens is not None

    def charge_output(self, num_tokens: int, now: int) -> None:
        if self._tokens is not None:
            self._tokens.take(num_tokens, now)

    def rate(self, now: int) -> RateState | None:
        """Where the key stands; None without limits a minute."""
        requests, tokens = self._requests, self._tokens
        if requests is None and tokens is None:
            return None
        return RateState(*(requests.state(now) if requests else (0, 0, 0.0)),
                         *(tokens.state(now) if tokens else (0, 0, 0.0)))


class Bucket:
    """A token bucket in whole numbers, so that whoever comes when told is let in to the nanosecond.

    One item is MINUTE_NS units, and each nanosecond brings `limit` units, up to a minute's worth. It may go into debt:
    what a request will cost is known only afterwards, so whoever finds one item in it is let in.
    """

    __slots__ = ("_at", "_level", "limit")

    def __init__(self, limit: int, now: int) -> None:
        self.limit = limit
        self._level = limit * MINUTE_NS
        self._at = now

    def resized(self, limit: int, now: int) -> Bucket:
        """The same use under another limit."""
        bucket = Bucket(limit, now)
        bucket._level += self._refilled(now) - self.limit * MINUTE_NS
        return bucket

    def take(self, count: int, now: int) -> None:
        self._level = self._refilled(now) - count * MINUTE_NS
        self._at = now

    def wait_ns(self, now: int) -> int:
        """Until one item is there; 0 if it is."""
        return max(0, -(-(MINUTE_NS - self._refilled(now)) // self.limit))

    def full(self, now: int) -> bool:
        return self._refilled(now) == self.limit * MINUTE_NS

    def state(self, now: int) -> tuple[int, int, float]:
        """Limit, what remains of it, and seconds until all of it is there again."""
        level = self._refilled(now)
        missing = self.limit * MINUTE_NS - level
        return self.limit, max(0, level // MINUTE_NS), missing / self.limit / 1e9

    def _refilled(self, now: int) -> int:
        return min(self.limit * MINUTE_NS, self._level + (now - self._at) * self.limit)


def _resized(bucket: Bucket | None, limit: int, now: int) -> Bucket | None:
    if not limit:
        return None
    return bucket.resized(limit, now) if bucket is not None else Bucket(limit, now)


class _Flow:
    """How fast something goes by: counts over the present window and the one before it."""

    __slots__ = ("_before", "_before_ns", "_began", "_count")

    WINDOW_NS = 10 * 10**9

    def __init__(self, now: int) -> None:
        self._began = now
        self._count = 0
        self._before = 0
        self._before_ns = 0

    def add(self, count: int, now: int) -> None:
        self._roll(now)
        self._count += count

    def time_for(self, count: int, now: int) -> float:
        """Seconds until `count` more went by, at the present pace, within MIN_RETRY_S..MAX_RETRY_S."""
        self._roll(now)
        gone = self._before + self._count
        elapsed_s = (self._before_ns + now - self._began) / 1e9
        return float(min(max(math.ceil(count * elapsed_s / max(gone, 1)), MIN_RETRY_S), MAX_RETRY_S))

    def spacing_s(self, count: int, now: int) -> float:
        """Seconds that `count` more take to go by, however short: what is to lie between two who come again."""
        self._roll(now)
        gone = self._before + self._count
        if not gone:
            return UNKNOWN_SPACING_S
        # A burst, as the first step takes up, is no pace: it counts as that of a second.
        return min(count * max((self._before_ns + now - self._began) / 1e9, 1.0) / gone, MAX_RETRY_S)

    def _roll(self, now: int) -> None:
        elapsed = now - self._began
        if elapsed >= self.WINDOW_NS:
            stale = elapsed >= 2 * self.WINDOW_NS  # nothing came or went for long: that says nothing of the pace
            self._before, self._before_ns = (0, 0) if stale else (self._count, elapsed)
            self._began, self._count = now, 0


def _refusal(message: Submit, kind: str, reason: str, text: str, retry_after_s: float, rate: RateState | None = None,
             closed_s: float = REFUSAL_S, spacing_s: float = 0.0) -> Rejected:
    return Rejected([sample.id for sample in message.samples], kind, text, retry_after_s=retry_after_s, reason=reason,
                    rate=rate, closed_s=closed_s, spacing_s=spacing_s)

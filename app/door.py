"""What this worker remembers of the engine's refusals, so that the next request alike is refused without asking again:
before its body is read, in a microsecond.

The engine's door (`quire.engine.admission`) decides, and says for how long its word holds; here nothing is counted but
the places in a full queue that were promised. Called by `quire.app.exchange` at a request's beginning and when the
engine refused one.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import msgspec

from quire.engine.errors import OverloadedError
from quire.engine.messages import RateState

MAX_WAIT_S = 60.0  # OpenAI's clients take no longer one for an answer


class Door:
    def __init__(self, num_workers: int = 1, clock: Callable[[], float] = time.monotonic,
                 uniform: Callable[[float, float], float] = random.uniform) -> None:
        self._num_workers = num_workers
        self._clock = clock
        self._uniform = uniform
        # Key name -> the refusal and when it was heard; None stands for all keys. At most one entry a key.
        self._closed: dict[str | None, tuple[OverloadedError, float]] = {}
        self._promised_until = 0.0  # when the last one who was refused for a full queue is to come again

    def check(self, key: str) -> None:
        """Raises OverloadedError where the engine would refuse whatever this key asks for."""
        if self._closed:  # nearly always empty
            self._check(None)
            self._check(key)

    def refused(self, key: str, error: OverloadedError) -> OverloadedError:
        """The engine refused a request of `key` with `error`: what the client is to be told."""
        if error.closed_s > 0:
            self._closed[key if error.own_limit else None] = error, self._clock()
        return self._told(error, 0.0)

    def _check(self, name: str | None) -> None:
        if name not in self._closed:
            return
        error, heard = self._closed[name]
        age_s = self._clock() - heard
        if age_s >= error.closed_s:
            del self._closed[name]
            return
        raise self._told(error, age_s)

    def _told(self, error: OverloadedError, age_s: float) -> OverloadedError:
        retry_after_s = max(0.0, error.retry_after_s - age_s)
        if error.spacing_s:
            retry_after_s = self._in_turn(retry_after_s, error.spacing_s)
        return OverloadedError(error.message, retry_after_s, own_limit=error.own_limit, reason=error.reason,
                               rate=_aged(error.rate, age_s))

    def _in_turn(self, earliest_s: float, spacing_s: float) -> float:
        """Who is refused for a full queue gets the next place that comes free and is not promised yet, so that all of
        them are served as fast as the queue moves; told the same, they would come at once, and most in vain again.

        Beyond what clients wait for at most, they are spread over its second half. Each worker promises its share.
        """
        now = self._clock()
        told_s = max(earliest_s, self._promised_until - now)
        self._promised_until = now + min(told_s + spacing_s * self._num_workers, MAX_WAIT_S)
        return told_s if told_s < MAX_WAIT_S else self._uniform(MAX_WAIT_S / 2, MAX_WAIT_S)


def _aged(rate: RateState | None, age_s: float) -> RateState | None:
    if rate is None:
        return None
    return msgspec.structs.replace(rate, reset_requests_s=max(0.0, rate.reset_requests_s - age_s),
                                   reset_tokens_s=max(0.0, rate.reset_tokens_s - age_s))

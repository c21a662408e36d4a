"""What this worker remembers of the engine's refusals, so that the next request alike is refused without asking again:
before its body is read, in a microsecond.

The engine's door (`quire.engine.admission`) decides, and says for how long its word holds; here nothing is counted.
Called by `quire.app.exchange` at a request's beginning and when the engine refused one.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from quire.engine.errors import OverloadedError
from quire.engine.messages import RateState


class Door:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Key name -> the refusal and when it was heard; None stands for all keys. At most one entry a key.
        self._closed: dict[str | None, tuple[OverloadedError, float]] = {}

    def check(self, key: str) -> None:
        """Raises OverloadedError where the engine would refuse whatever this key asks for."""
        if self._closed:  # nearly always empty
            self._check(None)
            self._check(key)

    def note(self, key: str, error: OverloadedError) -> None:
        """The engine refused a request of `key`."""
        if error.closed_s > 0:
            self._closed[key if error.own_limit else None] = error, self._clock()

    def _check(self, name: str | None) -> None:
        if name not in self._closed:
            return
        error, heard = self._closed[name]
        age_s = self._clock() - heard
        if age_s >= error.closed_s:
            del self._closed[name]
            return
        raise OverloadedError(error.message, max(0.0, error.retry_after_s - age_s), own_limit=error.own_limit,
                              reason=error.reason, rate=_aged(error.rate, age_s))


def _aged(rate: RateState | None, age_s: float) -> RateState | None:
    if rate is None:
        return None
    return msgspec.structs.replace(rate, reset_requests_s=max(0.0, rate.reset_requests_s - age_s),
                                   reset_tokens_s=max(0.0, rate.reset_tokens_s - age_s))

"""How long a request may take: to its first step, to its first token, in all. Counted from its arrival.

The server's settings are the most; a request may ask for less by header. The queue's deadline is the engine's to keep,
since only it knows when a step takes a request up; the other two end the request here. Called by `quire.app.exchange`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from starlette.datastructures import Headers

from quire.app.errors import ApiError
from quire.app.in_flight import Running
from quire.app.settings import ServeSettings
from quire.app.telemetry.record import CLIENT_DEADLINE, RequestRecord
from quire.engine.errors import OverloadedError

# The engine refuses what waits too long; a request that it never got, because it is away, is refused here a bit later.
_QUEUE_GRACE_S = 1.0
_QUEUE_TIMEOUT = "queue_timeout"  # the engine's word for it


@dataclass(frozen=True)
class Deadline:
    """`seconds` 0: none. `source` names what to change, flag or header."""

    seconds: float
    source: str
    chosen: bool = False  # by the client

    def reason(self, own: str) -> str:
        """For metrics: that a client had no longer time is no failure of the server's."""
        return CLIENT_DEADLINE if self.chosen else own


@dataclass(frozen=True)
class Deadlines:
    queue: Deadline
    ttft: Deadline
    total: Deadline

    @classmethod
    def of(cls, headers: Headers, settings: ServeSettings) -> Deadlines:
        """Raises ApiError (400) for a header that is no number of seconds."""
        return cls(_shorter(headers, "x-queue-timeout", settings.queue_timeout, "--queue-timeout"),
                   _shorter(headers, "x-ttft-timeout", settings.ttft_timeout, "--ttft-timeout"),
                   _shorter(headers, "x-request-timeout", settings.request_timeout, "--request-timeout"))

    def arm(self, running: Running, record: RequestRecord) -> None:
        """From now on `running` ends when its time is over."""
        age_s = record.total_s
        if self.total.seconds:
            running.call_in(self.total.seconds - age_s, partial(self._end_total, running))
        if self.ttft.seconds:
            running.call_in(self.ttft.seconds - age_s, partial(self._end_ttft, running, record))
        if self.queue.seconds:
            running.call_in(self.queue.seconds + _QUEUE_GRACE_S - age_s, partial(self._end_queue, running, record))

    def queue_timeout_s(self, record: RequestRecord) -> float:
        """What is left of the time to the first step; 0: there is no limit."""
        return max(0.001, self.queue.seconds - record.total_s) if self.queue.seconds else 0.0

    def _end_total(self, running: Running) -> None:
        # Not to be tried again: the same request would take as long again, and its work is lost each time.
        running.end("deadline", ApiError(504, _message("The request did not finish", self.total),
                                         headers={"x-should-retry": "false"},
                                         reason=self.total.reason("deadline_total")))

    def _end_ttft(self, running: Running, record: RequestRecord) -> None:
        if record.first_token is None:
            running.end("deadline", ApiError(504, _message("The request had no first token", self.ttft),
                                             reason=self.ttft.reason("deadline_ttft")))

    def _end_queue(self, running: Running, record: RequestRecord) -> None:
        if record.submitted is not None and record.num_samples == 0:
            running.end("deadline", ApiError(
                503, _message("The engine is restarting, and the request was not taken up", self.queue),
                headers={"retry-after": "5"}, reason=self.queue.reason(_QUEUE_TIMEOUT)))

    def name_choice(self, error: OverloadedError) -> None:
        """The engine's refusal after a time in the queue that the client chose says so."""
        if error.reason == _QUEUE_TIMEOUT:
            error.reason = self.queue.reason(_QUEUE_TIMEOUT)


def _message(what: str, deadline: Deadline) -> str:
    return f"{what} within {deadline.seconds:g} seconds ({deadline.source})."


def _shorter(headers: Headers, name: str, limit_s: float, flag: str) -> Deadline:
    given = headers.get(name)
    if given is None:
        return Deadline(limit_s, flag)
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ApiError(400, f"The header {name} must be a number of seconds greater than 0, got {given[:50]!r}.", name)
    if limit_s and seconds >= limit_s:
        return Deadline(limit_s, flag)
    return Deadline(seconds, f"the header {name}", chosen=True)

"""How far a run is: a line that is written over on a terminal, a line now and then elsewhere. On standard error."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

from quire.app.batch.line import Result
from quire.app.duration import duration

TERMINAL_S, LOG_S = 0.5, 30.0
SPEED_S = 60.0  # the speed is that of so many last seconds


class Progress:
    """Of `total` lines, `done` of them in earlier runs."""

    def __init__(self, total: int, done: int, failed: int, out: TextIO | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._total, self._done, self._failed = total, done, failed
        self._out = sys.stderr if out is None else out
        self._clock = clock
        self._terminal = self._out.isatty()
        self._first_done = done
        self._tokens_in = self._tokens_out = 0
        self._width = 0
        self._next_note = self._began = self._next = clock()
        self._seen: deque[tuple[float, int, int, int]] = deque()  # when, and lines, tokens in and tokens out by then
        self.begin()

    @property
    def num_failed(self) -> int:
        return self._failed

    def add(self, results: list[Result]) -> None:
        for result in results:
            self._done += 1
            self._failed += result.failed
            self._tokens_in += result.usage.prompt_tokens
            self._tokens_out += result.usage.completion_tokens
        now = self._clock()
        if now < self._next:
            return
        self._next = now + (TERMINAL_S if self._terminal else LOG_S)
        self._seen.append((now, self._done, self._tokens_in, self._tokens_out))
        while len(self._seen) > 2 and now - self._seen[1][0] >= SPEED_S:
            self._seen.popleft()
        if self._terminal:
            self._over(self.line())
        else:
            self._out.write(f"quire run-batch: {self.line()}\n")

    def begin(self) -> None:
        """From now on requests are sent: what went before is no part of the speed."""
        self._began = self._clock()
        self._next = self._began + (TERMINAL_S if self._terminal else LOG_S)
        self._seen = deque([(self._began, self._done, 0, 0)])

    def note(self, text: str) -> None:
        """What is waited for before the first request."""
        if self._terminal:
            self._over(f"server: {text}")
        elif self._clock() >= self._next_note:
            self._next_note = self._clock() + LOG_S
            self._out.write(f"quire run-batch: server: {text}\n")

    def line(self) -> str:
        (first, done, tokens_in, tokens_out), last = self._seen[0], self._seen[-1]
        parts = [f"{self._done:,} of {self._total:,} lines ({self._done / max(1, self._total):.0%})",
                 f"{self._failed:,} failed"]
        seconds = last[0] - first
        if seconds > 0:
            rates = (last[2] - tokens_in) / seconds, (last[3] - tokens_out) / seconds
            parts.append("tokens/s: {:,.0f} in, {:,.0f} out".format(*rates))
            if last[1] > done:
                parts.append(f"{duration((self._total - self._done) * seconds / (last[1] - done))} left")
        return ", ".join(parts)

    def end(self, said: str) -> None:
        """The last line: what `said` says, and what this run did."""
        seconds = max(self._clock() - self._began, 1e-9)
        if self._width:
            self._over("")
            self._out.write("\r")
        self._out.write(
            f"quire run-batch: {said}: {self._done:,} of {self._total:,} lines have a result, {self._failed:,} failed; "
            f"this run: {self._done - self._first_done:,} lines in {duration(seconds)}, {self._tokens_in:,} tokens in, "
            f"{self._tokens_out:,} out ({self._tokens_out / seconds:,.1f}/s)\n")

    def _over(self, text: str) -> None:
        self._out.write("\r" + text.ljust(self._width))
        self._out.flush()
        self._width = len(text)

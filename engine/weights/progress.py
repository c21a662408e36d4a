"""Shows how far start-up is: a tqdm bar on a terminal, a log line a phase and quarter otherwise. Both on stderr.

Knows phases as text and fractions only. Called by the engine's program and by the offline `LLM`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from tqdm import tqdm

Progress = Callable[[str, float], None]

# Its own printer, so that lines go to stderr in a program that never configured structlog too.
_log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))
_LOGGED_STEP = 0.25


@contextmanager
def reporter(also: Progress | None = None) -> Iterator[Progress]:
    """A callback that takes (phase, fraction done) and shows it; `also` gets every call too."""
    shown = _Bar() if sys.stderr.isatty() else _Lines()

    def report(phase: str, fraction: float) -> None:
        shown.update(phase, fraction)
        if also is not None:
            also(phase, fraction)

    try:
        yield report
    finally:
        shown.close()


class _Bar:
    def __init__(self) -> None:
        self._phase = ""
        self._bar: tqdm | None = None

    def update(self, phase: str, fraction: float) -> None:
        if self._bar is None or phase != self._phase:
            self.close()
            self._phase = phase
            self._bar = tqdm(total=100, desc=phase, unit="%", file=sys.stderr,
                             bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}")
        self._bar.update(round(100 * fraction) - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class _Lines:
    def __init__(self) -> None:
        self._phase = ""
        self._next = 0.0
        self._started = 0.0

    def update(self, phase: str, fraction: float) -> None:
        if phase != self._phase:
            self._phase, self._next, self._started = phase, 0.0, time.monotonic()
        if fraction >= self._next:
            _log.info(phase, percent=round(100 * fraction), elapsed_s=round(time.monotonic() - self._started, 1))
            self._next = min(fraction + _LOGGED_STEP, 1.0) if fraction < 1 else math.inf

    def close(self) -> None:
        pass

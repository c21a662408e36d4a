"""What steps are like: how long, how many samples, how many tokens. Knows no requests; the core feeds and reads it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from quire.engine.messages import Distribution
from quire.engine.plan import StepPlan

SECONDS = (.0005, .001, .0015, .002, .003, .004, .005, .0075, .01, .015, .02, .03, .04, .05, .075, .1, .15, .2, .3, .5,
           .75, 1., 2., 5., 10.)
SAMPLES = tuple(2**i for i in range(11))  # 1..1024
TOKENS = tuple(2**i for i in range(15))  # 1..16384


class Histogram:
    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def distribution(self) -> Distribution:
        return Distribution(list(self._bounds), self._counts.copy(), self._total)


class StepStats:
    __slots__ = ("_launched_at", "samples", "seconds", "tokens")

    def __init__(self) -> None:
        self.seconds = Histogram(SECONDS)
        self.samples = Histogram(SAMPLES)
        self.tokens = Histogram(TOKENS)
        self._launched_at: float | None = None

    def launched(self, plan: StepPlan, now: float) -> None:
        if self._launched_at is not None:
            self.seconds.observe(now - self._launched_at)
        self._launched_at = now
        self.samples.observe(len(plan.rows))
        self.tokens.observe(sum(plan.num_tokens))

    def rested(self) -> None:
        """There was nothing to do: the time to the next launch is no step's."""
        self._launched_at = None

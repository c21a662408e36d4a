"""What a load test measured, as the points of plots: times in seconds, latencies in ms. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

from quire.loadtest.report.axis import round_up
from quire.loadtest.report.svg import Point

PERCENTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
_BINS = 40  # of time, about


@dataclass(slots=True)
class Sent:
    """What became of one request; times in seconds."""

    error: str | None = None
    at: float = 0.0  # when it was sent, after the run's start
    ttft: float = 0.0
    tpot: float | None = None
    num_tokens: int = 0
    gaps: list[float] = field(default_factory=list)

    @property
    def total(self) -> float:
        """To its last token."""
        return self.ttft + sum(self.gaps)

    def tokens_between(self, start: float, end: float) -> float:
        """Of its tokens, as many as the share of its chunks that came then."""
        times = list(accumulate(self.gaps, initial=self.at + self.ttft))
        return self.num_tokens * sum(start <= time < end for time in times) / len(times)


REQUESTS_A_SECOND, USERS = "offered load, requests/s", "users"  # the axes on which loads have a place


@dataclass(frozen=True)
class Load:
    name: str
    value: float | None = None  # its place on the axis; None where it has none
    axis: str = REQUESTS_A_SECOND


@dataclass(frozen=True)
class Output:
    """What came within a time."""

    num_answers: int
    num_tokens: float


@dataclass(frozen=True)
class Run:
    """All requests of one load."""

    load: Load
    seconds: float
    sent: list[Sent]
    output: Output | None = None  # of `seconds`, where requests began before them or ended after; else that of `sent`
    users: list[Point] = field(default_factory=list)  # how many there were at a time, where users are what sends

    @cached_property
    def good(self) -> list[Sent]:
        return [sent for sent in self.sent if sent.error is None]

    @property
    def num_failed(self) -> int:
        return len(self.sent) - len(self.good)

    @property
    def num_tokens(self) -> int:
        return sum(sent.num_tokens for sent in self.good)

    @property
    def answered_per_s(self) -> float:
        return (self.output.num_answers if self.output else len(self.good)) / self.seconds

    @property
    def output_per_s(self) -> float:
        """In tokens."""
        return (self.output.num_tokens if self.output else self.num_tokens) / self.seconds

    @cached_property
    def latencies(self) -> dict[str, list[tuple[float, float]]]:
        """By kind: when it was over, and how long it took in ms; in no order."""
        return {
            "time to first token": [(sent.at + sent.ttft, 1e3 * sent.ttft) for sent in self.good],
            "inter-token latency": [(sent.at + sent.ttft + passed, 1e3 * gap) for sent in self.good
                                    for passed, gap in zip(accumulate(sent.gaps), sent.gaps)],
            "end to end": [(sent.at + sent.total, 1e3 * sent.total) for sent in self.good]}

    def values(self, kind: str) -> list[float]:
        return [value for _, value in self.latencies[kind]]

    @cached_property
    def bin_s(self) -> float:
        return round_up(max(self.seconds, 1e-3) / _BINS)

    def over_time(self, kind: str) -> dict[str, list[Point]]:
        """Each percentile of what was over in each bin of time; NaN in one without any."""
        bins: dict[int, list[float]] = defaultdict(list)
        for when, value in self.latencies[kind]:
            bins[int(when / self.bin_s)].append(value)
        places = range(max(bins, default=-1) + 1)
        return {name: [((place + 0.5) * self.bin_s, percentile(bins.get(place, []), q)) for place in places]
                for name, q in PERCENTILES.items()}

    def tokens_per_s(self) -> list[Point]:
        """Chunks with a token that came in each bin of time, a second."""
        bins: dict[int, int] = defaultdict(int)
        for kind in ("time to first token", "inter-token latency"):
            for when, _ in self.latencies[kind]:
                bins[int(when / self.bin_s)] += 1
        return [((place + 0.5) * self.bin_s, bins[place] / self.bin_s) for place in range(max(bins, default=-1) + 1)]

    def failed_per_s(self) -> list[Point]:
        """Requests sent in each bin of time that failed, a second."""
        bins: dict[int, int] = defaultdict(int)
        for sent in self.sent:
            bins[int(sent.at / self.bin_s)] += sent.error is not None
        return [((place + 0.5) * self.bin_s, bins[place] / self.bin_s) for place in range(max(bins, default=-1) + 1)]

    def in_flight(self) -> list[Point]:
        """Requests that were sent and not over, in the middle of each bin of time."""
        changes = sorted([(sent.at, 1) for sent in self.good] + [(sent.at + sent.total, -1) for sent in self.good])
        points, running, place = [], 0, 0
        for i in range(math.ceil(self.seconds / self.bin_s)):
            middle = (i + 0.5) * self.bin_s
            while place < len(changes) and changes[place][0] <= middle:
                running += changes[place][1]
                place += 1
            points.append((middle, float(running)))
        return points

    def errors(self) -> dict[str, int]:
        """How many failed with each message, the most frequent first."""
        counts: dict[str, int] = defaultdict(int)
        for sent in self.sent:
            if sent.error is not None:
                counts[sent.error] += 1
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def percentile(values: Iterable[float], q: float) -> float:
    """The value at rank `q` * number of `values`, without interpolation; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else math.nan

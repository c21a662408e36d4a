"""What a watcher wants to know, from the scrapes of the last minute: levels of now, rates, percentiles, use by key.

Refuses to know how scrapes are made and how figures are shown.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from quire.app.top.exposition import Exposition

WINDOW_S = 60.0
MOST_POINTS = 240  # of each history
PERCENTILES = (0.5, 0.9, 0.99)
LATENCIES = {"first token": "vllm:time_to_first_token_seconds", "between tokens": "vllm:inter_token_latency_seconds",
             "whole request": "vllm:e2e_request_latency_seconds"}
_TOKENS_IN, _TOKENS_OUT = "vllm:prompt_tokens_total", "vllm:generation_tokens_total"
_HITS, _QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
_ENDED = "vllm:request_success_total"
_REFUSED, _ABORTED = "quire:requests_rejected_total", "quire:requests_aborted_total"


@dataclass(frozen=True)
class Latency:
    num: int  # observations
    percentiles: tuple[float | None, ...]  # seconds, of PERCENTILES


@dataclass(frozen=True)
class KeyUse:
    requests: float  # in the window
    tokens_in: float
    tokens_out: float


@dataclass(frozen=True)
class Figures:
    """None: the server does not tell. Rates are those between the last two scrapes; `window_s` is what percentiles,
    hits and use by key are of, None where that is all since the server's start."""

    window_s: float | None
    running: float | None
    waiting: float | None
    kv_usage: float | None
    cache_hits: float | None  # share of prompt tokens
    in_per_s: float | None
    out_per_s: float | None
    requests_per_s: float | None
    refused: float  # in the window
    aborted: float
    restarts: float  # of engines, ever
    latencies: dict[str, Latency]
    keys: dict[str, KeyUse]
    histories: dict[str, list[float]] = field(default_factory=dict)


class History:
    """Scrapes of the last WINDOW_S, and the points of the plots."""

    def __init__(self) -> None:
        self._scrapes: deque[tuple[float, Exposition]] = deque()
        self._points: dict[str, deque[float]] = {}

    def add(self, now_s: float, scrape: Exposition) -> Figures:
        """`now_s` on any clock that runs on."""
        if self._scrapes and _began_anew(self._scrapes[-1][1], scrape):
            self._scrapes.clear()
        self._scrapes.append((now_s, scrape))
        while len(self._scrapes) > 2 and now_s - self._scrapes[1][0] >= WINDOW_S:
            self._scrapes.popleft()
        return self._figures()

    def _figures(self) -> Figures:
        (first_s, first), (now_s, now) = self._scrapes[0], self._scrapes[-1]
        alone = len(self._scrapes) == 1
        before_s, before = self._scrapes[-1 if alone else -2]

        def rate(name: str) -> float | None:
            new, old = now.sum(name), before.sum(name)
            return None if new is None or old is None or now_s <= before_s else max(0.0, new - old) / (now_s - before_s)

        def gained(name: str) -> float:
            return (now.sum(name) or 0.0) - (0.0 if alone else first.sum(name) or 0.0)

        latencies = {}
        for title, name in LATENCIES.items():
            histogram = now.histogram(name)
            if not alone:
                histogram = histogram.since(first.histogram(name))
            latencies[title] = Latency(int(histogram.total), tuple(map(histogram.quantile, PERCENTILES)))
        queries = gained(_QUERIES)
        figures = Figures(
            window_s=None if alone else now_s - first_s,
            running=now.sum("vllm:num_requests_running"), waiting=now.sum("vllm:num_requests_waiting"),
            kv_usage=now.mean("vllm:kv_cache_usage_perc"), cache_hits=gained(_HITS) / queries if queries > 0 else None,
            in_per_s=rate(_TOKENS_IN), out_per_s=rate(_TOKENS_OUT), requests_per_s=rate(_ENDED),
            refused=gained(_REFUSED), aborted=gained(_ABORTED), restarts=now.sum("quire:engine_restarts_total") or 0.0,
            latencies=latencies, keys=_keys(now, None if alone else first))
        for name in ("running", "waiting", "kv_usage", "in_per_s", "out_per_s"):
            value = getattr(figures, name)
            if value is not None:
                self._points.setdefault(name, deque(maxlen=MOST_POINTS)).append(value)
        figures.histories.update((name, list(points)) for name, points in self._points.items())
        return figures


def _began_anew(before: Exposition, now: Exposition) -> bool:
    """Whether it is another server, or the same one started again; an engine's restart leaves these as they are."""
    return any((now.sum(name) or 0.0) < (before.sum(name) or 0.0) for name in (_TOKENS_IN, _TOKENS_OUT, _ENDED))


def _keys(now: Exposition, first: Exposition | None) -> dict[str, KeyUse]:
    """Those that were used, ever; the busiest first."""
    columns = []
    for what in ("requests", "prompt_tokens", "output_tokens"):
        name = f"quire:key_{what}_total"
        columns.append((now.by(name, "key"), {} if first is None else first.by(name, "key")))
    names = [name for name, value in columns[0][0].items() if value]
    use = {name: KeyUse(*(new.get(name, 0.0) - old.get(name, 0.0) for new, old in columns)) for name in names}
    return dict(sorted(use.items(), key=lambda item: (-item[1].tokens_in - item[1].tokens_out, item[0])))

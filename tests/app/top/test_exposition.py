"""Percentiles from histograms: within the bucket where the true one lies, and of the gain between two scrapes."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from quire.app.top.exposition import Exposition
from quire.app.top.exposition import Histogram as Buckets

BOUNDS = (0.01, 0.1, 1.0, 10.0)
observations = st.lists(st.floats(0, 100), max_size=60)


def scrape(before: list[float], after: list[float]) -> tuple[Exposition, Exposition]:
    registry = CollectorRegistry()
    histogram = Histogram("x:seconds", "", ["engine"], buckets=BOUNDS, registry=registry)
    taken = []
    for values in (before, after):
        for i, value in enumerate(values):
            histogram.labels(str(i % 2)).observe(value)  # of two engines, which are summed
        taken.append(Exposition(generate_latest(registry).decode()))
    return taken[0], taken[1]


@given(observations, observations, st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_lies_in_the_bucket_of_the_true_one(before: list[float], after: list[float], q: float) -> None:
    first, last = scrape(before, after)
    gained = last.histogram("x:seconds").since(first.histogram("x:seconds")) if before else last.histogram("x:seconds")
    found = gained.quantile(q)
    assert gained.total == len(after)
    if not after:
        assert found is None
        return
    true = sorted(after)[math.ceil(q * len(after)) - 1]
    place = bisect_left(BOUNDS, true)
    if place == len(BOUNDS):
        assert found == BOUNDS[-1]
    else:
        assert found is not None
        assert (0.0, *BOUNDS)[place] <= found <= BOUNDS[place]


def test_values_lie_evenly_within_a_bucket_as_prometheus_takes_them() -> None:
    buckets = Buckets((1.0, 3.0, math.inf), (0.0, 10.0, 10.0))
    assert [buckets.quantile(q) for q in (0.5, 1.0)] == [2.0, 3.0]


def test_counts_that_began_anew_are_taken_as_they_are() -> None:
    before, now = Buckets((1.0, math.inf), (5.0, 9.0)), Buckets((1.0, math.inf), (6.0, 7.0))
    assert now.since(before) == now
    assert Buckets((), ()).quantile(0.5) is None


def test_sums_are_over_all_labels_and_what_is_not_there_is_none() -> None:
    registry = CollectorRegistry()
    counter = Counter("quire:key_requests", "", ["key", "x"], registry=registry)
    counter.labels('a "quoted" \\ name', "1").inc(2)
    counter.labels('a "quoted" \\ name', "2").inc(3)
    counter.labels("b", "1").inc(4)
    found = Exposition(generate_latest(registry).decode())
    name = "quire:key_requests_total"
    assert (found.sum(name), found.mean(name), found.sum("quire:other")) == (9, 3, None)
    assert found.by(name, "key") == {'a "quoted" \\ name': 5, "b": 4}
    assert found.labels(name, "x") == ["1", "2", "1"]


def test_what_is_no_exposition_is_refused() -> None:
    with pytest.raises(ValueError):
        Exposition("<html>\n{{{")

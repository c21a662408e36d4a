"""A scrape of /metrics as numbers: sums over label sets, and percentiles of what histograms gained between two scrapes.

Pure: knows no server and no clock.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` observations were at most `bounds[i]`, the last of which is infinite."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def total(self) -> float:
        return self.counts[-1] if self.counts else 0.0

    def since(self, before: Histogram) -> Histogram:
        """What was observed after `before`; all of it where the counts began anew in between."""
        if self.bounds != before.bounds or any(now < then for now, then in zip(self.counts, before.counts)):
            return self
        return Histogram(self.bounds, tuple(now - then for now, then in zip(self.counts, before.counts)))

    def quantile(self, q: float) -> float | None:
        """The value that a share `q` of the observations do not exceed, None where there are none.

        Within a bucket, values are taken to lie evenly; beyond the last finite bound, that bound is all that is known.
        As Prometheus' histogram_quantile.
        """
        if self.total <= 0:
            return None
        rank = q * self.total
        place = bisect.bisect_left(self.counts, rank)
        if self.bounds[place] == float("inf"):
            return self.bounds[place - 1] if place else None
        low, below = (self.bounds[place - 1], self.counts[place - 1]) if place else (0.0, 0.0)
        inside = self.counts[place] - below
        return low + (self.bounds[place] - low) * ((rank - below) / inside if inside else 1.0)


class Exposition:
    """Raises ValueError where `text` is not Prometheus' format."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append(sample)

    def sum(self, name: str) -> float | None:
        """Over all label sets; None where there is no such sample."""
        found = self._samples.get(name)
        return None if found is None else sum(sample.value for sample in found)

    def mean(self, name: str) -> float | None:
        """Over all label sets."""
        found = self._samples.get(name)
        return None if found is None else sum(sample.value for sample in found) / len(found)

    def by(self, name: str, label: str) -> dict[str, float]:
        """Sums by the value of `label`."""
        sums: dict[str, float] = defaultdict(float)
        for sample in self._samples.get(name, []):
            sums[sample.labels.get(label, "")] += sample.value
        return dict(sums)

    def labels(self, name: str, label: str) -> list[str]:
        """The values of `label` in the samples of `name`."""
        return [sample.labels[label] for sample in self._samples.get(name, []) if label in sample.labels]

    def histogram(self, name: str) -> Histogram:
        """The sum over all label sets; without buckets where there is none of this name."""
        counts: dict[float, float] = defaultdict(float)
        for sample in self._samples.get(f"{name}_bucket", []):
            counts[float(sample.labels["le"])] += sample.value
        bounds = tuple(sorted(counts))
        return Histogram(bounds, tuple(counts[bound] for bound in bounds))

"""How well users are to be served: of each request (goodput), and of a whole run (what sets the exit code)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from quire.loadtest.users import setting
from quire.loadtest.users.answer import ITL, TTFT

GOODPUT = "goodput"
_TOKEN = "SSE"  # the type of what is reported of a stream
_LEAST_DRIFT_SAMPLES = 20  # on either side, for a 95th percentile that says something


class Sample(Protocol):
    at: float
    ttft: float
    error: str | None


class Missed(Exception):
    """A request was served, but not well."""


def unserved(measured: dict[str, Any]) -> Missed | None:
    """By which limit of QUIRE_GOOD_TTFT_MS and QUIRE_GOOD_TPOT_MS a request was not served well, if by any."""
    if measured.get("error"):
        return Missed("it failed")
    for key, name in (("ttft", "QUIRE_GOOD_TTFT_MS"), ("tpot", "QUIRE_GOOD_TPOT_MS")):
        most, value = setting.limit(name), measured[key]
        if most is not None and value is not None and 1e3 * value > most:
            return Missed(f"beyond {name} {most:g}")
    return None


def judges_requests() -> bool:
    return any(setting.limit(name) is not None for name in ("QUIRE_GOOD_TTFT_MS", "QUIRE_GOOD_TPOT_MS"))


def missed(stats: Any, sent: Sequence[Sample] = ()) -> list[str]:
    """The limits of the whole run that were not kept, in words.

    Args:
        stats: Locust's.
        sent: every request, where they were gathered; for the drift alone.
    """
    found = [*_latencies(stats), *_failures(stats)]
    least = setting.limit("QUIRE_SLO_GOODPUT_RATIO")
    if least is not None and (good := 1.0 - stats.get(GOODPUT, "SLO").fail_ratio) < least:
        found.append(f"{good:.1%} of the requests were served well < QUIRE_SLO_GOODPUT_RATIO {least:g}")
    most = setting.limit("QUIRE_SLO_DRIFT")
    if most is not None and (drifted := drift(sent)) > most:
        found.append(f"p95 {TTFT} of the last third is {drifted:.2f} times the first's > QUIRE_SLO_DRIFT {most:g}")
    return found


def _latencies(stats: Any) -> list[str]:
    found = []
    for name, variable in ((TTFT, "QUIRE_SLO_TTFT_P95_MS"), (ITL, "QUIRE_SLO_ITL_P95_MS")):
        most = setting.limit(variable)
        if most is not None and (value := stats.get(name, _TOKEN).get_response_time_percentile(0.95)) > most:
            found.append(f"p95 {name} {value:.0f} ms > {variable} {most:g}")
    return found


def _failures(stats: Any) -> list[str]:
    entries = [entry for (_, method), entry in stats.entries.items() if method == "POST"]
    num_asked = sum(entry.num_requests for entry in entries)
    num_failed = sum(entry.num_failures for entry in entries)
    if num_asked == num_failed:
        return ["no request was served", *([f"100.0% of {num_asked} requests failed"] if num_asked else [])]
    most = setting.limit("QUIRE_SLO_FAILURE_RATIO") or 0.0
    ratio = num_failed / num_asked
    return [f"{ratio:.1%} of the requests failed > QUIRE_SLO_FAILURE_RATIO {most:g}"] if ratio > most else []


def drift(sent: Sequence[Sample]) -> float:
    """p95 of the time to the first token in the last third of the run's time, over that in the first; 1 of few."""
    good = [one for one in sent if one.error is None]
    if not good:
        return 1.0
    start, end = min(one.at for one in good), max(one.at for one in good)
    third = (end - start) / 3
    first = sorted(one.ttft for one in good if one.at < start + third)
    last = sorted(one.ttft for one in good if one.at >= end - third)
    if min(len(first), len(last)) < _LEAST_DRIFT_SAMPLES:
        return 1.0
    return last[int(0.95 * len(last))] / first[int(0.95 * len(first))]

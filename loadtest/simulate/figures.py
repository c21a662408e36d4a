"""What a replay comes to: the figures, and as lines to read."""

from __future__ import annotations

from typing import Any

from quire.loadtest.report.measured import PERCENTILES, percentile
from quire.loadtest.simulate.replay import Replayed, Served

_KINDS = {"queue_s": "in the queue", "ttft_s": "to the first token", "tpot_s": "for each later token",
          "e2e_s": "to the last token"}


def figures(replayed: Replayed) -> dict[str, Any]:
    """Latencies in seconds by percentile: in the queue (arrival to the step that takes it up), ttft, tpot (first token
    to last, by the tokens after the first), e2e. Rates per second, shares from 0 to 1."""
    r, seconds = replayed, max(replayed.seconds, 1e-9)
    return {
        "requests": len(r.served), "invalid": r.num_invalid, "overload": r.num_overload, "seconds": r.seconds,
        "requests_per_s": len(r.served) / seconds, "prompt_tokens_per_s": r.num_prompt_tokens / seconds,
        "output_tokens_per_s": r.num_output_tokens / seconds, "steps": r.num_steps, "preemptions": r.num_preemptions,
        "cache_hits": r.num_cached_tokens / max(1, r.num_prompt_tokens), "device_busy": r.busy_s / seconds,
        "running_mean": r.running_s / seconds, "running_most": r.most_running, "waiting_most": r.most_waiting,
        "kv_usage_mean": r.cache_s / seconds, "kv_usage_most": r.most_cache,
        **{kind: {name: percentile(values, q) for name, q in PERCENTILES.items()} if values else None
           for kind, values in _latencies(r.served).items()},
    }


def _latencies(served: list[Served]) -> dict[str, list[float]]:
    return {
        "queue_s": [s.started - s.arrival.arrival_s for s in served],
        "ttft_s": [s.first_token - s.arrival.arrival_s for s in served],
        "tpot_s": [(s.ended - s.first_token) / (s.arrival.output_tokens - 1) for s in served
                   if s.arrival.output_tokens > 1],
        "e2e_s": [s.ended - s.arrival.arrival_s for s in served],
    }


def lines(found: dict[str, Any]) -> list[str]:
    told = [_rates(found)]
    if found["invalid"] or found["overload"]:
        told.append(f"refused: {found['invalid']} that could never be served, {found['overload']} for a full queue")
    told.append(f"{'seconds':24}" + "".join(f"{name:>10}" for name in PERCENTILES))
    for kind, says in _KINDS.items():
        if found[kind] is not None:
            told.append(f"  {says:22}" + "".join(f"{found[kind][name]:10.4f}" for name in PERCENTILES))
    return [*told, _crowd(found), _cache(found), _device(found)]


def _rates(found: dict[str, Any]) -> str:
    return (f"{found['requests']} requests in {found['seconds']:.1f} s, {found['requests_per_s']:.2f}/s: "
            f"{found['output_tokens_per_s']:.0f} output and {found['prompt_tokens_per_s']:.0f} prompt tokens/s")


def _crowd(found: dict[str, Any]) -> str:
    return (f"running: {found['running_mean']:.1f} on average, {found['running_most']} at most; waiting: "
            f"{found['waiting_most']} at most")


def _cache(found: dict[str, Any]) -> str:
    return (f"KV cache in use: {found['kv_usage_mean']:.0%} on average, {found['kv_usage_most']:.0%} at most; "
            f"{found['preemptions']} preemptions; prefix cache: {found['cache_hits']:.1%} of prompts' tokens")


def _device(found: dict[str, Any]) -> str:
    return f"device busy {found['device_busy']:.0%} of the time, {found['steps']} steps"

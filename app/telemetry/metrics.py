"""Prometheus metrics under vLLM's names, right with any number of HTTP workers.

What the workers count lies in shared files (prometheus_client's multiprocess mode) and is summed on each scrape. What
the engine counts comes from its own last Status, which every worker has, so no worker adds it up a second time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from app.telemetry.record import RequestRecord
    from engine.frontend.async_llm import AsyncLLMEngine

_TTFT_BUCKETS = (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
# vLLM's begin at 10 ms, which says nothing of a fast decode; the three smaller ones are ours.
_ITL_BUCKETS = (.001, .0025, .005, .01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_E2E_BUCKETS = (.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKEN_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000)
LABELS = ("model_name", "engine")


class Metrics:
    def __init__(self, model_name: str) -> None:
        self._labels = (model_name, "0")
        self.registry = CollectorRegistry()
        self.ttft = self._histogram("vllm:time_to_first_token_seconds", "Request received to first token",
                                    _TTFT_BUCKETS)
        self.inter_token = self._histogram("vllm:inter_token_latency_seconds", "Between two outputs of one sample",
                                           _ITL_BUCKETS)
        self.tpot = self._histogram("vllm:request_time_per_output_token_seconds",
                                    "Mean seconds per output token after the first, by request", _ITL_BUCKETS)
        self.e2e = self._histogram("vllm:e2e_request_latency_seconds", "Request received to its end", _E2E_BUCKETS)
        self.request_prompt_tokens = self._histogram("vllm:request_prompt_tokens", "Prompt tokens of a request",
                                                     _TOKEN_BUCKETS)
        self.request_generation_tokens = self._histogram("vllm:request_generation_tokens", "Output tokens of a request",
                                                         _TOKEN_BUCKETS)
        self._success = Counter("vllm:request_success", "Finished samples", (*LABELS, "finished_reason"),
                                registry=self.registry)
        self._http = Counter("http_requests", "HTTP requests", ("method", "handler", "status"), registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, LABELS, buckets=buckets, registry=self.registry).labels(*self._labels)

    def http_request(self, method: str, handler: str, status: int) -> None:
        self._http.labels(method, handler, str(status)).inc()

    def generation_ended(self, record: RequestRecord, end: float) -> None:
        """Counts a request that reached the engine, however it ended."""
        for reason in record.finish_reasons:
            self._success.labels(*self._labels, reason).inc()
        self.e2e.observe(end - record.started)
        self.request_prompt_tokens.observe(record.prompt_tokens)
        self.request_generation_tokens.observe(record.output_tokens)
        if record.tpot_s is not None:
            self.tpot.observe(record.tpot_s)

    def expose(self, engine: AsyncLLMEngine) -> bytes:
        """The text of /metrics: all workers' counts, and the engine's."""
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        engine_registry = CollectorRegistry()
        engine_registry.register(_EngineCollector(engine, self._labels))
        return bytes(generate_latest(registry) + generate_latest(engine_registry))


class _EngineCollector:
    def __init__(self, engine: AsyncLLMEngine, labels: tuple[str, str]) -> None:
        self._engine = engine
        self._labels = labels

    def collect(self) -> Iterable[Metric]:
        yield self._gauge("quire:engine_ready", "1 while the engine takes requests", self._engine.state == "ready")
        yield self._gauge("quire:model_load_progress_ratio", "0 to 1", self._engine.loading[1])
        status = self._engine.status
        if status is None:
            return
        yield self._gauge("vllm:num_requests_running", "Samples in the running batch", status.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Samples waiting to run", status.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", status.kv_usage)
        yield self._gauge("quire:engine_last_step_age_seconds", "Since the engine's last step", status.last_step_age_s)
        yield self._counter("vllm:prefix_cache_queries", "Prompt tokens looked up", status.prefix_queries)
        yield self._counter("vllm:prefix_cache_hits", "Prompt tokens found", status.prefix_hits)
        yield self._counter("vllm:num_preemptions", "Samples put back to wait", status.num_preemptions)
        yield self._counter("vllm:prompt_tokens", "Prompt tokens computed", status.prompt_tokens)
        yield self._counter("vllm:generation_tokens", "Tokens generated", status.generation_tokens)
        yield self._counter("quire:engine_steps", "Steps of the engine", status.num_steps)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

"""What the engines say of themselves, as Prometheus families, read from their last Status at each scrape.

Every worker holds the same Status, so any of them may answer. Each engine has its label, "0" where there is one.
Counters are as the engine counts: they begin anew with a new engine, which Prometheus' rate() and increase() allow for.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from quire.app.telemetry.metrics import LABELS
from quire.engine.messages import Distribution, EngineInfo, Status

if TYPE_CHECKING:
    from quire.engine.config import EngineArgs
    from quire.engine.frontend.async_llm import AsyncLLMEngine
    from quire.engine.frontend.client import EngineClient


class EngineCollector(Collector):
    def __init__(self, engine: AsyncLLMEngine, args: EngineArgs, model_name: str) -> None:
        self._engine = engine
        self._args = args
        self._model_name = model_name

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}  # one of each name, with the samples of all engines
        for place, engine in enumerate(self._engine.engines):
            said = _Said(engine, self._args, (self._model_name, str(place)))
            for family in said.families():
                if family.name in families:
                    families[family.name].samples += family.samples
                else:
                    families[family.name] = family
        return families.values()


class _Said:
    """By one engine."""

    def __init__(self, engine: EngineClient, args: EngineArgs, labels: tuple[str, str]) -> None:
        self._engine = engine
        self._args = args
        self._labels = labels

    def families(self) -> Iterable[Metric]:
        yield self._gauge("quire:engine_ready", "1 while the engine takes requests", self._engine.state == "ready")
        yield self._gauge("quire:engine_gone", "1 once the engine failed too often and is started no more",
                          self._engine.state == "gone")
        yield self._gauge("quire:model_load_progress_ratio", "0 to 1", self._engine.loading[1])
        info, status = self._engine.info, self._engine.status  # of another thread's: they may change
        if info is not None:
            yield self._cache_config(info)
        if status is not None:
            yield from self._of_status(status)

    def _of_status(self, status: Status) -> Iterable[Metric]:
        yield self._gauge("vllm:num_requests_running", "Samples in the running batch", status.num_running)
        yield self._gauge("vllm:num_requests_waiting", "Samples waiting to run", status.num_waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", status.kv_usage)
        yield self._gauge("quire:waiting_tokens", "Tokens of waiting samples", status.num_waiting_tokens)
        yield self._gauge("quire:engine_last_step_age_seconds", "Since the engine's last step", status.last_step_age_s)
        for name, text, value in (
                ("vllm:prefix_cache_queries", "Prompt tokens looked up", status.prefix_queries),
                ("vllm:prefix_cache_hits", "Prompt tokens found", status.prefix_hits),
                ("vllm:num_preemptions", "Samples put back to wait", status.num_preemptions),
                ("quire:engine_steps", "Steps", status.num_steps),
                ("quire:engine_log_lines_dropped", "Log lines that standard error did not take",
                 status.log_lines_dropped),
                ("quire:graph_steps", "Steps that a captured CUDA graph carried out", status.num_graph_steps)):
            family = CounterMetricFamily(name, text + ", since this engine started", labels=LABELS)
            family.add_metric(self._labels, value)
            yield family
        for name, text, distribution in (
                ("quire:step_seconds", "From one step's launch to the next, while there was work", status.step_seconds),
                ("quire:step_samples", "Samples in a step", status.step_samples),
                ("vllm:iteration_tokens_total", "Tokens that a step computed", status.step_tokens)):
            if distribution is not None:
                yield self._histogram(name, text + ", since this engine started", distribution)

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, value)
        return family

    def _histogram(self, name: str, text: str, distribution: Distribution) -> Metric:
        bounds = [floatToGoString(bound) for bound in (*distribution.bounds, float("inf"))]
        family = HistogramMetricFamily(name, text, labels=LABELS)
        family.add_metric(self._labels, list(zip(bounds, accumulate(distribution.counts))), distribution.total)
        return family

    def _cache_config(self, info: EngineInfo) -> Metric:
        facts = {"block_size": info.block_size, "num_gpu_blocks": info.num_blocks,
                 "cache_dtype": info.kv_type or info.dtype,
                 "enable_prefix_caching": self._args.enable_prefix_caching,
                 "gpu_memory_utilization": self._args.gpu_memory_utilization, "device": info.device,
                 "max_model_len": info.max_model_len, "max_num_seqs": info.max_num_seqs,
                 "max_num_batched_tokens": info.max_num_batched_tokens}
        family = GaugeMetricFamily("vllm:cache_config_info", "The engine's cache and limits, as labels; always 1",
                                   labels=(*LABELS, *facts))
        family.add_metric((*self._labels, *map(str, facts.values())), 1)
        return family

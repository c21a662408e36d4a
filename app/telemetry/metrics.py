"""What an HTTP worker counts for Prometheus, under vLLM's names where the meaning is vLLM's, and `/metrics`' text.

Right with any number of workers: what they count lies in shared files (prometheus_client's multiprocess mode) and is
summed on each scrape. What the engine, the system and this worker's state say is read on each scrape (`collectors`).
"""

from __future__ import annotations

import asyncio
import glob
import os
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from quire.app.telemetry import shared_values
from quire.app.telemetry.record import CLIENT_DEADLINE, RequestRecord
from quire.engine.messages import FINISH_REASONS, REJECTIONS
from quire.engine.stderr import stderr

# Every bound of vLLM's is kept, so that quantiles on existing dashboards stay what they were; the finer ones are ours.
_TTFT_S = (.001, .002, .003, .004, .005, .0075, .01, .015, .02, .03, .04, .05, .06, .08, .1, .15, .25, .5, .75, 1, 2.5,
           5, 7.5, 10, 20, 40, 80, 160, 640, 2560)
_TOKEN_GAP_S = (.0005, .001, .002, .003, .004, .005, .006, .007, .008, .009, .01, .0125, .015, .02, .025, .03, .04, .05,
                .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_PHASE_S = (.001, .002, .003, .005, .0075, .01, .02, .03, .05, .075, .1, .2, .3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20,
           30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000, 100000, 200000)
_SAMPLES = (1, 2, 5, 10, 20)
_LAG_S = (.001, .002, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30)

MAX_KEY_NAMES = 1000  # beyond it, keys are counted together: every label is memory, here and in Prometheus
OTHER_KEYS = "other"
TICK_S = 0.5
LABELS = ("model_name", "engine")
# Label values that are known ahead. Beside the engine's REJECTIONS, what is refused before it is asked.
EARLY_REJECTIONS = ("key", "host", "loading", "draining", "body_too_large", "bodies", "images", "image_memory",
                    "deadline_ttft", "deadline_total", CLIENT_DEADLINE, "malformed", "method", "head_too_large",
                    "http_version", "header_timeout", "body_timeout", "connections", "pipelining", "client_certificate")
ABORTS = ("disconnect", "deadline", "shutdown")
SOURCES = ("local_compute", "local_cache_hit")
OF_MODEL = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")
STATUSES = ("200", "400", "401", "403", "404", "413", "429", "499", "500", "503", "504")


class Metrics:
    def __init__(self, model_name: str) -> None:
        self.labels = (model_name, "0")
        self.registry = CollectorRegistry()
        self._key_names: set[str] = set()
        self._tokens_to_count = 0
        self._lines_counted = 0  # of those that the log dropped

        of_model = self._model_histogram
        self.ttft = of_model("vllm:time_to_first_token_seconds", "Request received to first token", _TTFT_S)
        self.inter_token = of_model("vllm:inter_token_latency_seconds", "Between two outputs of one sample",
                                    _TOKEN_GAP_S)
        self._tpot = of_model("vllm:request_time_per_output_token_seconds",
                              "Mean seconds per output token after the first, by request", _TOKEN_GAP_S)
        self._e2e = of_model("vllm:e2e_request_latency_seconds", "Request received to its end", _PHASE_S)
        self._queue = of_model("vllm:request_queue_time_seconds", "Sent to the engine to its first step", _PHASE_S)
        self._prefill = of_model("vllm:request_prefill_time_seconds", "First step to first token", _PHASE_S)
        self._decode = of_model("vllm:request_decode_time_seconds", "First token to last token", _PHASE_S)
        self._inference = of_model("vllm:request_inference_time_seconds", "First step to last token", _PHASE_S)
        self._prompt_lengths = of_model("vllm:request_prompt_tokens", "Prompt tokens of a request", _TOKENS)
        self._output_lengths = of_model("vllm:request_generation_tokens", "Output tokens of a request", _TOKENS)
        self._longest_outputs = of_model("vllm:request_max_num_generation_tokens",
                                         "Output tokens of a request's longest sample", _TOKENS)
        self._computed_lengths = of_model("vllm:request_prefill_kv_computed_tokens",
                                          "Prompt tokens of a request that were not in the prefix cache", _TOKENS)
        self._asked_tokens = of_model("vllm:request_params_max_tokens", "max_tokens, of requests that set it", _TOKENS)
        self._asked_samples = of_model("vllm:request_params_n", "Samples (n) that requests asked for", _SAMPLES)

        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Prompt tokens, cached ones too", *LABELS)
        self._prompt_tokens_by_source = self._counter(
            "vllm:prompt_tokens_by_source", "Prompt tokens by where their KV came from", *LABELS, "source")
        self._prompt_tokens_cached = self._counter("vllm:prompt_tokens_cached",
                                                   "Prompt tokens found in the prefix cache", *LABELS)
        self._generation_tokens = self._counter("vllm:generation_tokens", "Tokens generated", *LABELS)
        self._success = self._counter("vllm:request_success", "Samples that ended, by how", *LABELS, "finished_reason")
        self._resumed = self._counter("quire:requests_resumed",
                                      "Requests handed to a new engine after a crash, counted at their end", *LABELS)
        self._rejected = self._counter("quire:requests_rejected", "Requests refused, by why", "reason")
        self._aborted = self._counter("quire:requests_aborted", "Requests ended before their time, by why", "reason")
        self._key_requests = self._counter("quire:key_requests", "Requests by key name", "key")
        self._key_prompt_tokens = self._counter("quire:key_prompt_tokens", "Prompt tokens by key name", "key")
        self._key_output_tokens = self._counter("quire:key_output_tokens", "Output tokens by key name", "key")
        self._http = self._counter("http_requests", "HTTP requests", "method", "handler", "status", "deadline")
        self._spans_dropped = self._counter("quire:spans_dropped",
                                            "Trace spans that the collector did not take in time")
        self._log_lines_dropped = self._counter("quire:log_lines_dropped",
                                                "Log lines of HTTP workers that standard error did not take")
        # The sum of live workers: gunicorn tells prometheus_client which are dead (app/gunicorn_conf.py).
        self.http_in_flight = Gauge("quire:http_requests_in_flight", "HTTP requests being answered, without probes",
                                    registry=self.registry, multiprocess_mode="livesum")
        self._loop_lag = Histogram("quire:event_loop_lag_seconds", "How late the workers' event loops run what is due",
                                   buckets=_LAG_S, registry=self.registry)
        self._begin_at_zero()

    def _begin_at_zero(self) -> None:
        """What is known ahead is there from the start: rate() sees the first of a kind only as an increase from 0."""
        for counter in (self._prompt_tokens, self._prompt_tokens_cached, self._generation_tokens, self._resumed):
            counter.labels(*self.labels)
        for source in SOURCES:
            self._prompt_tokens_by_source.labels(*self.labels, source)
        for finished in FINISH_REASONS:
            self._success.labels(*self.labels, finished)
        for rejected in (*REJECTIONS, *EARLY_REJECTIONS):
            self._rejected.labels(rejected)
        for aborted in ABORTS:
            self._aborted.labels(aborted)
        for handler in OF_MODEL:
            for status in STATUSES:
                self._http.labels("POST", handler, status, "")
            for status in ("503", "504"):
                self._http.labels("POST", handler, status, "client")

    def expect_keys(self, names: Iterable[str]) -> None:
        """Keys that there are, whether they were used or not."""
        for name in names:
            key = self._key_label(name)
            for counter in (self._key_requests, self._key_prompt_tokens, self._key_output_tokens):
                counter.labels(key)

    def _model_histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(name, text, LABELS, buckets=buckets, registry=self.registry).labels(*self.labels)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    # While requests run

    def prompt_taken_up(self, num_tokens: int, num_cached: int) -> None:
        self._prompt_tokens.labels(*self.labels).inc(num_tokens)
        self._prompt_tokens_cached.labels(*self.labels).inc(num_cached)
        self._prompt_tokens_by_source.labels(*self.labels, SOURCES[0]).inc(num_tokens - num_cached)
        self._prompt_tokens_by_source.labels(*self.labels, SOURCES[1]).inc(num_cached)

    def tokens_generated(self, num_tokens: int) -> None:
        # Called for every token of every stream, so it only adds; `_count_tokens` follows within a tick.
        self._tokens_to_count += num_tokens

    def _count_tokens(self) -> None:
        num_tokens, self._tokens_to_count = self._tokens_to_count, 0
        if num_tokens:
            self._generation_tokens.labels(*self.labels).inc(num_tokens)

    def connection_refused(self, reason: str) -> None:
        """Before there was a request that the application could see."""
        self._rejected.labels(reason).inc()

    def spans_dropped(self, num_spans: int) -> None:
        self._spans_dropped.inc(num_spans)

    async def tick(self) -> None:
        """Runs for as long as the worker: measures how late its event loop is, and counts what waits to be."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + TICK_S
            await asyncio.sleep(TICK_S)
            self._loop_lag.observe(max(0.0, loop.time() - due))
            self._count_tokens()
            self._count_dropped_lines()

    def _count_dropped_lines(self) -> None:
        num_new = stderr.num_dropped - self._lines_counted
        if num_new:
            self._lines_counted += num_new
            self._log_lines_dropped.inc(num_new)

    # At a request's end

    def request_ended(self, record: RequestRecord, handler: str) -> None:
        deadline = "client" if record.rejected == CLIENT_DEADLINE else ""  # an empty label is none
        self._http.labels(record.method, handler, str(record.status), deadline).inc()
        if record.rejected:
            self._rejected.labels(record.rejected).inc()
        if record.aborted:
            self._aborted.labels(record.aborted).inc()
        if record.key.name:
            key = self._key_label(record.key.name)
            self._key_requests.labels(key).inc()
            self._key_prompt_tokens.labels(key).inc(record.prompt_tokens)
            self._key_output_tokens.labels(key).inc(record.output_tokens)
        if record.asked is not None and record.num_samples:
            self._generation_ended(record)

    def _generation_ended(self, record: RequestRecord) -> None:
        """Counts a request that the engine accepted, however it ended."""
        assert record.asked is not None
        self._count_tokens()
        for reason in record.all_finish_reasons():
            self._success.labels(*self.labels, reason).inc()
        if record.num_resumed:
            self._resumed.labels(*self.labels).inc()
        for histogram, value in (
                (self._e2e, record.total_s), (self._queue, record.queue_s), (self._prefill, record.prefill_s),
                (self._decode, record.decode_s), (self._inference, record.inference_s), (self._tpot, record.tpot_s),
                (self._prompt_lengths, record.prompt_tokens),
                (self._computed_lengths, record.prompt_tokens - record.cached_tokens)):
            if value is not None:
                histogram.observe(value)
        if (params := record.asked.params) is None:
            return
        self._output_lengths.observe(record.output_tokens)
        self._longest_outputs.observe(record.longest_output)
        self._asked_samples.observe(params.n)
        if params.max_tokens is not None:
            self._asked_tokens.observe(params.max_tokens)

    def _key_label(self, name: str) -> str:
        if name not in self._key_names:
            if len(self._key_names) >= MAX_KEY_NAMES:
                return OTHER_KEYS
            self._key_names.add(name)
        return name

    def num_in_flight(self) -> int:
        """Requests that all workers are answering. Reads files: not on the event loop."""
        directory, [own] = _shared_directory(), self.http_in_flight.collect()
        families = [own] if directory is None else MultiProcessCollector.merge(
            glob.glob(os.path.join(directory, "gauge_livesum_*.db")))
        return round(sum(sample.value for family in families if family.name == own.name for sample in family.samples))

    # At a scrape

    def expose(self, collectors: Iterable[Collector]) -> bytes:
        """The text of /metrics: all workers' counts, and what `collectors` say. Reads files: not on the event loop."""
        counted = self.registry
        if _shared_directory() is not None:
            counted = CollectorRegistry()
            MultiProcessCollector(counted)
        said = CollectorRegistry()
        for collector in collectors:
            said.register(collector)
        return bytes(generate_latest(counted) + generate_latest(said))


def _shared_directory() -> str | None:
    """Where all workers' counts lie; None where this worker can tell its own alone."""
    return None if shared_values.alone else os.environ.get("PROMETHEUS_MULTIPROC_DIR") or None

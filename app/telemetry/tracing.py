"""OpenTelemetry spans of requests, made at their ends from the times in their records; nothing is done for a token.

A request is a SERVER span; under it, for one that generated, `{operation} {model}` with GenAI attributes, and under
that queue, prefill and decode. Prompts and outputs are never in them. Imported only where traces are wanted: it brings
OpenTelemetry. A collector that is slow or dead costs spans (counted), never a request's time.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from quire import __version__
from quire.app.telemetry.record import RequestRecord

log = structlog.get_logger(__name__)

PROVIDER = "quire"
CLOSE_S = 2.0
QUIET_S = 60.0  # complaints of the exporter are logged once in this time
_CONTEXT = TraceContextTextMapPropagator()


class RequestTrace:
    """The span of one request, from its first byte; `end` adds what is known only then."""

    def __init__(self, tracer: trace.Tracer, record: RequestRecord, handler: str, headers: Mapping[str, str],
                 scheme: str) -> None:
        self._tracer = tracer
        self._record = record
        self._epoch_ns = time.time_ns() - time.perf_counter_ns()
        self._span = tracer.start_span(
            f"{record.method} {handler}", _CONTEXT.extract(headers), SpanKind.SERVER,
            {"http.request.method": record.method, "http.route": handler, "url.path": record.path[:200],
             "url.scheme": scheme, "client.address": record.client, "quire.request.id": record.request_id},
            start_time=self._ns(record.started))
        context = self._span.get_span_context()
        record.trace_id = f"{context.trace_id:032x}"
        self.traceparent = f"00-{record.trace_id}-{context.span_id:016x}-{context.trace_flags:02x}"

    def end(self) -> None:
        span, record = self._span, self._record
        if not span.is_recording():
            return
        if record.asked is not None:
            self._generation(record)
        span.set_attribute("http.response.status_code", record.status)
        if record.key.name:
            span.set_attribute("quire.key.name", record.key.name)
        _set_error(span, record)
        span.end(self._ns(record.started + record.total_s))

    def _generation(self, record: RequestRecord) -> None:
        assert record.asked is not None
        begin, end = record.submitted or record.started, record.started + record.total_s
        parent = self._child(self._span, f"{record.asked.operation} {record.asked.model}", begin)
        parent.set_attributes(_gen_ai(record))
        _set_error(parent, record)
        taken_up, first, last = record.taken_up, record.first_token, record.last_token
        if record.submitted is not None and record.num_samples:
            self._child(parent, "queue", record.submitted).end(self._ns(taken_up or first or end))
        if taken_up is not None:
            self._child(parent, "prefill", taken_up).end(self._ns(first or end))
        if first is not None:
            self._child(parent, "decode", first).end(self._ns(last or end))
        parent.end(self._ns(end))

    def _child(self, parent: Span, name: str, begin: float) -> Span:
        return self._tracer.start_span(name, set_span_in_context(parent), start_time=self._ns(begin))

    def _ns(self, perf_counter: float) -> int:
        return self._epoch_ns + int(perf_counter * 1e9)


def _gen_ai(record: RequestRecord) -> dict[str, Any]:
    """The attributes of OpenTelemetry's GenAI conventions, those that are known."""
    asked = record.asked
    assert asked is not None
    values = {
        "gen_ai.operation.name": asked.operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": asked.model,
        "gen_ai.request.stream": asked.stream,
        "gen_ai.response.id": asked.reply_id,
        "gen_ai.response.model": asked.model,
        "gen_ai.response.finish_reasons": record.all_finish_reasons() or None,
        "gen_ai.response.time_to_first_chunk": record.ttft_s if asked.stream else None,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "quire.request.resumed": record.num_resumed or None,
    }
    if (params := asked.params) is not None:
        values |= {
            "gen_ai.request.max_tokens": params.max_tokens,
            "gen_ai.request.temperature": params.temperature,
            "gen_ai.request.top_p": params.top_p,
            "gen_ai.request.choice.count": params.n if params.n > 1 else None,
        }
    return {name: value for name, value in values.items() if value is not None}


def _set_error(span: Span, record: RequestRecord) -> None:
    error = record.error_type
    if error:
        span.set_attribute("error.type", error)
    if record.failed:
        span.set_status(Status(StatusCode.ERROR, error))


class Tracing:
    """The worker's tracer. `on_dropped` is told how many spans were lost, from any thread."""

    def __init__(self, endpoint: str | None, sample_ratio: float, on_dropped: Callable[[int], None]) -> None:
        """Without an endpoint, the OTEL_... variables name it, as they do all that is not said here."""
        _log_seldom()
        # None: the SDK's own choice, which is to trace all, or what OTEL_TRACES_SAMPLER says.
        sampler: Sampler | None = None if sample_ratio == 1 else ParentBased(TraceIdRatioBased(sample_ratio))
        # atexit would wait half a minute for a collector that hangs; `close` does not.
        self._provider = TracerProvider(sampler, _resource(), shutdown_on_exit=False)
        exporter = _CountingExporter(OTLPSpanExporter(endpoint), on_dropped)
        self._provider.add_span_processor(_CountingProcessor(exporter))
        self._tracer = self._provider.get_tracer("quire", __version__)

    def begin(self, record: RequestRecord, handler: str, headers: Mapping[str, str], scheme: str) -> RequestTrace:
        return RequestTrace(self._tracer, record, handler, headers, scheme)

    async def close(self) -> None:
        """Send what there is, unless that takes longer than CLOSE_S."""
        done = threading.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            done.set()

        threading.Thread(target=shut_down, daemon=True).start()  # a daemon is left behind where it hangs
        deadline = time.monotonic() + CLOSE_S
        while not done.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


def _resource() -> Resource:
    found = OTELResourceDetector().detect().attributes  # OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES: they win
    return Resource.create({"service.name": "quire", "service.version": __version__,
                            "service.instance.id": f"{socket.gethostname()}:{os.getpid()}", **found})


class _CountingExporter(SpanExporter):
    """Counts the spans that it was given, and those that did not arrive."""

    def __init__(self, exporter: SpanExporter, on_dropped: Callable[[int], None]) -> None:
        self._exporter = exporter
        self.on_dropped = on_dropped
        self.num_taken = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_taken += len(spans)
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            self.on_dropped(len(spans))
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _CountingProcessor(BatchSpanProcessor):
    """Its queue is bounded (OTEL_BSP_MAX_QUEUE_SIZE); a span that does not fit pushes out another, which is counted."""

    def __init__(self, exporter: _CountingExporter) -> None:
        wanted = os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", "")
        self._capacity = int(wanted) if wanted.isdecimal() and int(wanted) else 2048  # as the SDK reads it
        self._counting = exporter
        self._num_queued = 0  # in all, less those pushed out
        super().__init__(exporter, max_queue_size=self._capacity)

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            if self._num_queued - self._counting.num_taken >= self._capacity:
                self._counting.on_dropped(1)
            else:
                self._num_queued += 1
        super().on_end(span)


_QUERY = re.compile(r"\?\S*")  # of the collector's address: it may hold a token


class _SeldomHandler(logging.Handler):
    """The SDK complains of every batch that fails, and of every span that does not fit; once a minute is enough."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._next = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + QUIET_S
            log.warning("traces are not delivered", reason=_QUERY.sub("", record.getMessage())[:300])


def _log_seldom() -> None:
    logger = logging.getLogger("opentelemetry")
    logger.handlers = [_SeldomHandler()]
    logger.propagate = False

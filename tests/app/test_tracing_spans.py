"""Spans made of records, without a collector: what cannot be brought about in the real server at will."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from structlog.testing import capture_logs

from quire.app.main import create_app
from quire.app.settings import ServeSettings
from quire.app.telemetry.record import Asked, RequestRecord
from quire.app.telemetry.tracing import Tracing
from quire.engine.sampling_params import SamplingParams
from tests.app.conftest import worker_settings

NOWHERE = "http://127.0.0.1:1/v1/traces"


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Tracing, InMemorySpanExporter, list[int]]]]:
    monkeypatch.setattr("quire.app.telemetry.tracing.OTLPSpanExporter", Swallowing)
    made: list[Tracing] = []

    def tracing(ratio: float = 1.0) -> tuple[Tracing, InMemorySpanExporter, list[int]]:
        dropped: list[int] = []
        exporter = InMemorySpanExporter()
        made.append(Tracing(NOWHERE, ratio, dropped.append))
        made[-1]._provider.add_span_processor(SimpleSpanProcessor(exporter))
        return made[-1], exporter, dropped

    yield tracing
    for one in made:
        asyncio.run(one.close())


def record(**facts: Any) -> RequestRecord:
    now = time.perf_counter()
    values: dict[str, Any] = {"started": now - 5, "ended": now, "status": 200, "num_samples": 1} | facts
    return RequestRecord("id", "POST", "/v1/completions",
                         asked=Asked("text_completion", "m", True, SamplingParams(n=1), "cmpl-id"), **values)


def spans_of(tracing: Tracing, exporter: InMemorySpanExporter, record: RequestRecord) -> dict[str, ReadableSpan]:
    trace = tracing.begin(record, record.path, {}, "http")
    trace.end()
    return {span.name: span for span in exporter.get_finished_spans()}


def test_what_never_happened_has_no_span(make: Callable[..., Any]) -> None:
    tracing, exporter, _ = make()
    now = time.perf_counter()
    waited = record(submitted=now - 4, aborted="disconnect", status=499)
    spans = spans_of(tracing, exporter, waited)
    assert set(spans) == {"POST /v1/completions", "text_completion m", "queue"}
    server = spans["POST /v1/completions"]
    assert server.attributes is not None
    assert server.attributes["error.type"] == "disconnect"
    assert server.status.is_ok or server.status.is_unset
    assert spans["queue"].end_time == server.end_time


def test_a_failure_after_the_reply_began_is_an_error(make: Callable[..., Any]) -> None:
    tracing, exporter, _ = make()
    now = time.perf_counter()
    spans = spans_of(tracing, exporter, record(submitted=now - 4, taken_up=now - 3, first_token=now - 2,
                                               last_token=now - 1, finish_reasons=["error"]))
    assert set(spans) == {"POST /v1/completions", "text_completion m", "queue", "prefill", "decode"}
    for name in ("POST /v1/completions", "text_completion m"):
        assert not spans[name].status.is_ok
        attributes = spans[name].attributes
        assert attributes is not None
        assert attributes["error.type"] == "error"


def test_the_ratio_decides_only_where_the_caller_did_not(make: Callable[..., Any]) -> None:
    tracing, exporter, _ = make(0.0)
    assert not spans_of(tracing, exporter, record())
    sampled = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    tracing.begin(record(), "/v1/completions", sampled, "http").end()
    assert exporter.get_finished_spans()


def test_what_does_not_fit_the_queue_is_counted(make: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    monkeypatch.setattr("quire.app.telemetry.tracing.OTLPSpanExporter", Hanging)
    tracing, _, dropped = make()
    bare = record()
    bare.asked = None
    for _ in range(8 + 8 + 5):
        tracing.begin(bare, "/", {}, "http").end()
    assert 5 <= sum(dropped) <= 13  # the thread may have taken a batch by then, or not


class Swallowing:
    def __init__(self, endpoint: str) -> None:
        pass

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        pass


class Hanging(Swallowing):
    is_over = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.is_over.wait(60)
        return SpanExportResult.SUCCESS


async def test_closing_waits_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quire.app.telemetry.tracing.OTLPSpanExporter", Hanging)
    monkeypatch.setattr("quire.app.telemetry.tracing.CLOSE_S", 0.1)
    tracing = Tracing(NOWHERE, 1.0, lambda _: None)
    tracing.begin(record(), "/", {}, "http").end()
    await tracing.close()
    assert not Hanging.is_over.is_set(), "it was not waited for"
    Hanging.is_over.set()


def test_complaints_are_logged_once_a_minute(make: Callable[..., Any]) -> None:
    make()
    with capture_logs() as logs:
        for _ in range(5):
            logging.getLogger("opentelemetry.exporter").error("Failed to export %s", "spans")
    assert [entry["reason"] for entry in logs] == ["Failed to export spans"]


@pytest.mark.parametrize(("environment", "traced"), [
    ({}, False), ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
    ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
    ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": NOWHERE, "OTEL_TRACES_EXPORTER": "none"}, False)])
async def test_tracing_is_on_where_an_endpoint_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        environment: dict[str, str], traced: bool) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    tracing = create_app(worker_settings(tmp_path)).state.service.tracing
    assert (tracing is not None) is traced
    if tracing is not None:
        await tracing.close()


def test_an_endpoint_without_scheme_is_refused_at_start() -> None:
    [problem] = ServeSettings(otlp_traces_endpoint="collector:4318").problems()
    assert "--otlp-traces-endpoint" in problem

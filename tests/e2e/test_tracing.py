"""Traces of the real server, as a collector gets them; and a collector that is slow or gone, which nobody notices."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.otlp import Collector, Span, collecting
from tests.e2e.server import KEY, Server, serving, until

MODEL = "smollm2-135m-instruct"
SECRET = "zebra crossing at noon"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE[::-1]}-{PARENT}-00"
NUM_ASKED = 5


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(collector: Collector) -> Iterator[Server]:
    environment = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_HEADERS": "x-tenant=acme",
                   "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
                   "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url}
    with serving(environment=environment) as server:
        yield server


def ask(server: Server, headers: dict[str, str] | None = None, **body: object) -> httpx.Response:
    return httpx.post(
        f"{server.url}/v1/chat/completions", timeout=60,
        headers={"authorization": f"Bearer {KEY}"} | (headers or {}),
        json={"messages": [{"role": "user", "content": SECRET}], "max_tokens": 6, "temperature": 0,
              "ignore_eos": True} | body)


def inside(child: Span, parent: Span) -> bool:
    return child.parent_id == parent.span_id and parent.start_ns <= child.start_ns <= child.end_ns <= parent.end_ns


def test_a_request_is_a_tree_of_spans_under_its_callers(traced: Server, collector: Collector) -> None:
    reply = ask(traced, {"traceparent": SAMPLED, "tracestate": "vendor=1", "x-request-id": "req-1"}, top_p=0.9)
    spans = collector.of_trace(TRACE, 5)
    server, chat = spans["POST /v1/chat/completions"], spans[f"chat {MODEL}"]
    assert reply.headers["traceparent"] == f"00-{TRACE}-{server.span_id}-01"
    assert server.parent_id == PARENT
    assert server.kind == 2
    assert server.trace_state == "vendor=1"
    assert server.attributes["http.response.status_code"] == 200
    assert server.attributes["http.route"] == "/v1/chat/completions"
    assert server.attributes["quire.request.id"] == "req-1"
    assert server.attributes["quire.key.name"]
    assert chat.attributes == chat.attributes | {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "quire", "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 6, "gen_ai.request.temperature": 0.0, "gen_ai.request.top_p": 0.9,
        "gen_ai.request.stream": False, "gen_ai.response.id": reply.json()["id"], "gen_ai.response.model": MODEL,
        "gen_ai.response.finish_reasons": ["length"], "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.input_tokens": reply.json()["usage"]["prompt_tokens"]}
    assert inside(chat, server)
    queue, prefill, decode = (spans[name] for name in ("queue", "prefill", "decode"))
    assert all(inside(part, chat) for part in (queue, prefill, decode))
    assert queue.end_ns == prefill.start_ns
    assert prefill.end_ns == decode.start_ns
    assert abs(time.time_ns() - server.end_ns) < 120e9
    assert not server.failed
    assert collector.headers["x-tenant"] == "acme"
    assert collector.resource["service.name"] == "quire"
    assert collector.resource["deployment.environment.name"] == "test"


def test_a_stream_tells_its_time_to_the_first_chunk(traced: Server, collector: Collector) -> None:
    reply = ask(traced, stream=True, temperature=1)
    trace_id = reply.headers["traceparent"].split("-")[1]
    chat = collector.of_trace(trace_id, 5)[f"chat {MODEL}"]
    assert chat.attributes["gen_ai.request.stream"] is True
    assert 0 < chat.attributes["gen_ai.response.time_to_first_chunk"] < 60


def test_failures_are_marked_and_an_invalid_parent_is_ignored(traced: Server, collector: Collector) -> None:
    reply = ask(traced, {"traceparent": "00-zz-yy-01"}, max_tokens=-1)
    assert reply.status_code == 400
    trace_id = reply.headers["traceparent"].split("-")[1]
    span = collector.of_trace(trace_id, 1)["POST /v1/chat/completions"]
    assert span.parent_id == ""
    assert span.attributes["http.response.status_code"] == 400
    assert span.attributes["error.type"] == "invalid"
    assert not span.failed  # the client's fault is no error of the server's


def test_an_unsampled_parent_probes_and_scrapes_leave_no_span(traced: Server, collector: Collector) -> None:
    assert ask(traced, {"traceparent": UNSAMPLED}).headers["traceparent"].endswith("-00")
    for path in ("/metrics", "/readyz", "/healthz"):
        assert "traceparent" not in traced.get(path).headers
    reply = traced.get("/v1/models")
    collector.of_trace(reply.headers["traceparent"].split("-")[1], 1)  # so all before it would be there
    assert not [span for span in collector.spans if span.trace_id == TRACE[::-1]]
    assert not [span for span in collector.spans if "metrics" in span.name or "z" in span.name.rpartition("/")[2]]


def test_neither_prompts_nor_outputs_nor_keys_are_in_spans(traced: Server, collector: Collector) -> None:
    reply = ask(traced)
    collector.of_trace(reply.headers["traceparent"].split("-")[1], 5)
    text = reply.json()["choices"][0]["message"]["content"]
    for secret in (SECRET, text, KEY):
        assert secret.encode() not in collector.raw


def test_the_request_line_names_the_trace(traced: Server) -> None:
    ask(traced, {"traceparent": SAMPLED, "x-request-id": "with-a-trace"})
    until(lambda: [line for line in traced.events("request") if line["request_id"] == "with-a-trace"])
    [line] = [line for line in traced.events("request") if line["request_id"] == "with-a-trace"]
    assert line["trace_id"] == TRACE
    assert line["queue_ms"] >= 0
    assert line["finish"] == "length"


def test_a_hanging_collector_costs_no_time(traced: Server, collector: Collector) -> None:
    def rate() -> float:
        begin = time.perf_counter()
        for _ in range(NUM_ASKED):
            assert ask(traced).status_code == 200
        return NUM_ASKED / (time.perf_counter() - begin)

    rate()  # so that the prompt is in the prefix cache both times
    undisturbed = rate()
    collector.hang_s, posts = 3.0, collector.num_posts
    try:
        hanging = rate()
        assert hanging > undisturbed / 2
        until(lambda: collector.num_posts > posts)
    finally:
        collector.hang_s = 0.0


def test_without_an_endpoint_workers_do_not_load_opentelemetry(server: Server) -> None:
    for pid in server.pids()["workers"]:
        # Its one compiled dependency: protobuf.
        assert "google/_upb" not in Path(f"/proc/{pid}/maps").read_text()
    assert "traceparent" not in ask(server).headers


@pytest.mark.slow
def test_a_dead_collector_is_said_once_and_never_delays_the_end() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}/v1/traces"  # bound, not listening: refuses
        with serving("--otlp-traces-endpoint", address, environment={
                "OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "1"}) as server:
            for _ in range(3):
                assert ask(server).status_code == 200
            until(lambda: server.metric("quire:spans_dropped_total") >= 5, 30)
            assert ask(server).status_code == 200
            time.sleep(1.5)
            assert len(server.events("traces are not delivered")) == 1
            begin = time.monotonic()
            os.kill(server.process.pid, signal.SIGTERM)
            assert server.wait_exit() == 0
            assert time.monotonic() - begin < 15

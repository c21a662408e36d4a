"""Debian's Prometheus scrapes the real server: its answers are what was asked of the server, also after a worker and
the engine were killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.prometheus import running_prometheus
from tests.e2e.server import KEY, Server, alive, serving, until

NUM_REQUESTS, NUM_TOKENS = 6, 5
HEADERS = {"authorization": f"Bearer {KEY}"}
# What the engine counts, which begins anew with a new one.
OF_THE_ENGINE = {
    "quire:engine_steps_total", "quire:graph_steps_total", "quire:step_samples_count", "quire:step_seconds_count",
    "vllm:iteration_tokens_total_count", "vllm:num_preemptions_total", "vllm:prefix_cache_hits_total",
    "vllm:prefix_cache_queries_total"}

pytestmark = pytest.mark.skipif(shutil.which("prometheus") is None, reason="Debian's package prometheus is missing")

CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs:
  - job_name: quire
    authorization: {{credentials: {key}}}
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[dict[str, Any]]:
        reply = httpx.get(f"{self._url}/api/v1/query", params={"query": expression}, timeout=10).json()
        assert reply["status"] == "success", reply
        return list(reply["data"]["result"])

    def value(self, expression: str) -> float:
        result = self.query(expression)
        return float(result[0]["value"][1]) if result else float("nan")

    def wait_for(self, expression: str, value: float, timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + timeout_s
        while (found := self.value(expression)) != value:
            assert time.monotonic() < deadline, f"{expression} is {found}, not {value}"
            time.sleep(0.05)

    def wait_scrapes(self, count: int) -> None:
        """Lets the server be asked that many times more."""
        begun = time.monotonic()
        until(lambda: self.value(f"sum_over_time(up[{round(1000 * (time.monotonic() - begun)) + 1}ms])") >= count)


@contextmanager
def scraping(server: Server, directory: Path) -> Iterator[Prometheus]:
    config = directory / "prometheus.yml"
    config.write_text(CONFIG.format(key=KEY, target=server.url.removeprefix("http://")))
    with running_prometheus(config) as url:
        prometheus = Prometheus(url)
        until(lambda: prometheus.value("up") == 1, 30)
        yield prometheus


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Prometheus]]:
    directory = tmp_path_factory.mktemp("prometheus")
    with serving("-asc", "2") as server, scraping(server, directory) as prometheus:
        yield server, prometheus


def ask(server: Server, count: int = NUM_REQUESTS) -> int:
    """That many requests, each on a connection of its own; returns their prompts' tokens."""
    num_prompt_tokens = 0
    for _ in range(count):
        reply = httpx.post(f"{server.url}/v1/completions", timeout=60, headers=HEADERS, json={
            "prompt": "The sea", "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True})
        assert reply.status_code == 200, reply.text
        num_prompt_tokens += reply.json()["usage"]["prompt_tokens"]
    return num_prompt_tokens


def test_prometheus_counts_what_was_asked_through_kills(scraped: tuple[Server, Prometheus]) -> None:
    server, prometheus = scraped
    prompt_tokens = ask(server)

    def check(num_requests: int) -> None:
        prometheus.wait_for('sum(vllm:request_success_total{finished_reason="length"})', num_requests)
        prometheus.wait_for("sum(vllm:generation_tokens_total)", num_requests * NUM_TOKENS)
        prometheus.wait_for("sum(vllm:prompt_tokens_total)", prompt_tokens * num_requests / NUM_REQUESTS)
        prometheus.wait_for("sum(quire:key_requests_total) > bool 0", 1)
        prometheus.wait_for("vllm:time_to_first_token_seconds_count", num_requests)
        prometheus.wait_for("vllm:request_queue_time_seconds_count", num_requests)
        prometheus.wait_for("quire:http_requests_in_flight", 0)

    check(NUM_REQUESTS)
    for histogram in ("vllm:time_to_first_token_seconds", "vllm:request_queue_time_seconds", "quire:step_seconds",
                      "vllm:inter_token_latency_seconds", "vllm:iteration_tokens_total"):
        # Over what was there before anything could be scraped, too: of the buckets themselves, not of their rate.
        quantile = prometheus.value(f"histogram_quantile(0.5, sum by (le) ({histogram}_bucket))")
        assert 0 < quantile < 1000, histogram
    prometheus.wait_for("sum(rate(http_requests_total[30s])) > bool 0", 1)  # its own scrapes count too
    assert prometheus.value('quire:processes{process="http_worker"}') == 2

    # A worker with a stream is killed: its counts stay, its share of the gauge goes, another takes its place.
    workers = server.pids()["workers"]
    with httpx.stream("POST", f"{server.url}/v1/completions", headers=HEADERS, timeout=60, json={
            "prompt": "The sea", "max_tokens": 900, "ignore_eos": True, "stream": True}) as reply:
        chunks = reply.iter_bytes()  # kept: the connection is closed with its last reader
        next(chunks)
        prometheus.wait_for("quire:http_requests_in_flight", 1)
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    until(lambda: len(set(server.pids()["workers"]) - set(workers)) == 2 and not any(map(alive, workers)))
    until(lambda: _ready(server), 60)
    prometheus.wait_scrapes(1)
    generated = prometheus.value("sum(vllm:generation_tokens_total)")
    assert generated >= NUM_REQUESTS * NUM_TOKENS
    prometheus.wait_for("quire:http_requests_in_flight", 0)
    prometheus.wait_for('sum(vllm:request_success_total{finished_reason="length"})', NUM_REQUESTS)

    # The engine is killed: what workers count goes on, the restart is seen the same whichever worker answers.
    os.kill(server.pids()["engine"][0], signal.SIGKILL)
    until(lambda: len(server.events("ready")) == 2, 90)
    ask(server)
    prometheus.wait_for('sum(vllm:request_success_total{finished_reason="length"})', 2 * NUM_REQUESTS)
    prometheus.wait_for("quire:engine_restarts_total", 1)
    prometheus.wait_scrapes(4)  # answered by either worker
    assert prometheus.value("sum(changes(quire:engine_restarts_total[2m]))") == 1
    names = {sample["metric"]["__name__"] for sample in prometheus.query("{__name__=~'.*_total|.*_count'}")}
    assert len(names) > 25
    assert {name for name in names if prometheus.value(f"sum(resets({name}[2m]))") > 0} <= OF_THE_ENGINE
    assert prometheus.value("sum(increase(vllm:request_success_total[2m])) > bool 0") == 1


def _ready(server: Server) -> bool:
    try:
        return server.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.skipif(shutil.which("promtool") is None, reason="Debian's package prometheus is missing")
def test_promtool_finds_nothing_but_what_vllms_names_bring(scraped: tuple[Server, Prometheus]) -> None:
    server, _ = scraped
    run = subprocess.run(["promtool", "check", "metrics"], input=server.get("/metrics").text, capture_output=True,
                         text=True)
    ours = [line for line in run.stderr.splitlines() if not line.startswith(("vllm:", "http_requests"))
            and "contain ':'" not in line]
    assert not ours, run.stderr

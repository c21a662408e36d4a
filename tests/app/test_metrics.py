"""What the service counts, in one process on the fake engine: each thing once, under its name, and nothing a client
can blow up. That workers and Prometheus agree is tests/e2e's matter."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette

from quire.app.keys.key import NEVER, Key, digest_of
from quire.app.keys.key_file import write_key_file
from quire.app.telemetry import metrics as m
from quire.app.telemetry.record import Asked, RequestRecord
from quire.engine.messages import Distribution, KeyLimits, Status
from quire.engine.sampling_params import SamplingParams
from tests.app.fake_engine import INFO, FakeEngine

CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
STATUS = Status(num_running=2, num_waiting=1, kv_usage=0.25, prefix_queries=10, prefix_hits=4, num_preemptions=3,
                num_steps=7, prompt_tokens=20, generation_tokens=30, last_step_age_s=0.5, num_waiting_tokens=11,
                num_graph_steps=5, step_seconds=Distribution([0.001, 0.01], [1, 2, 4], 0.5),
                step_samples=Distribution([1, 2], [3, 4, 0], 11.0), step_tokens=Distribution([1, 8], [0, 6, 1], 100.0))
VLLM_BOUNDS = {
    "vllm:time_to_first_token_seconds": [.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20,
                                         40, 80, 160, 640, 2560],
    "vllm:inter_token_latency_seconds": [.01, .025, .05, .075, .1, .15, .2, .3, .4, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40,
                                         80],
    "vllm:e2e_request_latency_seconds": [.3, .5, .8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960,
                                         1920, 7680],
    "vllm:request_params_n": [1, 2, 5, 10, 20],
}


class Scraped(dict[str, float]):
    """Samples by name and labels, as Prometheus writes them, model_name and engine left out."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        for family in self.families.values():
            assert family.documentation, family.name
            for sample in family.samples:
                labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
                inner = ",".join(f'{k}="{v}"' for k, v in sorted(labels.items()))
                name = sample.name + (f"{{{inner}}}" if inner else "")
                assert name not in self, f"{name} is said twice"
                self[name] = sample.value


async def scrape(client: httpx.AsyncClient) -> Scraped:
    reply = await client.get("/metrics")
    assert reply.status_code == 200
    return Scraped(reply.text)


async def test_a_request_is_counted_once_in_everything(client: httpx.AsyncClient) -> None:
    for _ in range(2):
        assert (await client.post("/v1/chat/completions", json=CHAT | {"n": 2, "max_tokens": 4})).status_code == 200
    found = await scrape(client)
    assert found['vllm:request_success_total{finished_reason="stop"}'] == 4
    assert found["vllm:prompt_tokens_total"] == 10
    assert found["vllm:prompt_tokens_cached_total"] == 6
    assert found['vllm:prompt_tokens_by_source_total{source="local_compute"}'] == 4
    assert found['vllm:prompt_tokens_by_source_total{source="local_cache_hit"}'] == 6
    assert found["vllm:generation_tokens_total"] == 16
    for name, total in {"request_prompt_tokens": 10, "request_generation_tokens": 16, "request_params_n": 4,
                        "request_max_num_generation_tokens": 8, "request_params_max_tokens": 8,
                        "request_prefill_kv_computed_tokens": 4}.items():
        assert found[f"vllm:{name}_count"] == 2, name
        assert found[f"vllm:{name}_sum"] == total, name
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds",
                 "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
                 "request_time_per_output_token_seconds"):
        assert found[f"vllm:{name}_count"] == 2, name
    assert found['http_requests_total{deadline="",handler="/v1/chat/completions",method="POST",status="200"}'] == 2
    assert found["quire:http_requests_in_flight"] == 0


async def test_refusals_and_early_ends_are_counted_by_reason(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    await client.post("/v1/chat/completions", json={})
    fake.fails_after = 2
    await client.post("/v1/chat/completions", json=CHAT)
    found = await scrape(client)
    assert found['quire:requests_rejected_total{reason="invalid"}'] == 1
    assert found['vllm:request_success_total{finished_reason="error"}'] == 1


async def test_the_engines_word_is_passed_on(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    without = await scrape(client)
    assert "vllm:num_requests_running" not in without
    fake.status = STATUS
    found = await scrape(client)
    assert found["vllm:num_requests_running"] == 2
    assert found["vllm:kv_cache_usage_perc"] == 0.25
    assert found["vllm:prefix_cache_hits_total"] == 4
    assert found["quire:graph_steps_total"] == 5
    assert found["quire:waiting_tokens"] == 11
    assert found['quire:step_seconds_bucket{le="0.001"}'] == 1
    assert found['quire:step_seconds_bucket{le="0.01"}'] == 3
    assert found['quire:step_seconds_bucket{le="+Inf"}'] == found["quire:step_seconds_count"] == 7
    assert found["quire:step_seconds_sum"] == 0.5
    assert found["quire:step_samples_sum"] == 11
    assert found['vllm:iteration_tokens_total_bucket{le="8.0"}'] == 6
    [info] = found.families["vllm:cache_config_info"].samples
    assert info.labels["num_gpu_blocks"] == str(INFO.num_blocks)
    assert info.value == 1
    assert found["quire:engine_ready"] == 1
    fake.state = "down"
    assert (await scrape(client))["quire:engine_ready"] == 0


async def test_each_engine_speaks_under_its_own_label(client: httpx.AsyncClient, fake: FakeEngine) -> None:
    other = FakeEngine()
    fake.others, other.state, fake.status = [other], "down", STATUS
    families = {f.name: f for f in text_string_to_metric_families((await client.get("/metrics")).text)}

    def of(name: str) -> dict[str, float]:
        return {sample.labels["engine"]: sample.value for sample in families[name].samples}

    assert of("quire:engine_ready") == {"0": 1, "1": 0}
    assert of("quire:engine_gone") == {"0": 0, "1": 0}
    assert of("vllm:num_requests_running") == {"0": 2}
    other.status = STATUS
    text = (await client.get("/metrics")).text
    families = {f.name: f for f in text_string_to_metric_families(text)}
    assert of("vllm:num_requests_running") == {"0": 2, "1": 2}
    assert of("vllm:num_preemptions").keys() == {"0", "1"}
    types = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(types) == len(set(types)), "each family once, as the format asks"


async def test_first_starts_are_no_restarts(client: httpx.AsyncClient, tmp_path: Path) -> None:
    (tmp_path / "engine_starts").write_text("++++")
    assert (await scrape(client))["quire:engine_restarts_total"] == 3


async def test_build_processes_and_the_loops_lag_are_there(client: httpx.AsyncClient) -> None:
    await asyncio.sleep(m.TICK_S + 0.2)
    found = await scrape(client)
    [build] = found.families["quire:build_info"].samples
    assert build.labels["version"]
    assert found["quire:event_loop_lag_seconds_count"] >= 1
    assert found["quire:engine_restarts_total"] == 0
    assert found['quire:process_resident_memory_bytes{process="launcher"}'] > 0


@pytest.mark.parametrize("name", VLLM_BOUNDS)
async def test_vllms_bounds_are_all_there_and_a_millisecond_is_resolved(client: httpx.AsyncClient, name: str) -> None:
    found = await scrape(client)
    bounds = [float(sample.labels["le"]) for sample in found.families[name].samples if sample.name.endswith("_bucket")]
    assert set(VLLM_BOUNDS[name]) < set(bounds)
    if name.endswith("seconds"):
        assert {.001, .002, .003} < set(bounds)


def ended(metrics: m.Metrics, key: str, **facts: Any) -> None:
    record = RequestRecord("id", "POST", "/v1/completions", key=KeyLimits(key), status=200, num_samples=1,
                           asked=Asked("text_completion", "m", False, SamplingParams(), "cmpl-id"), prompt_tokens=3,
                           output_tokens=2, **facts)
    metrics.request_ended(record, "/v1/completions")


def test_keys_are_counted_by_name_and_there_are_never_too_many_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(m, "MAX_KEY_NAMES", 3)
    metrics = m.Metrics("m")
    for name in ("a", "b", "a", "c", "d", "e", "b", ""):
        ended(metrics, name)
    found = Scraped(metrics.expose([]).decode())
    counted = {name: value for name, value in found.items() if name.startswith("quire:key_requests_total")}
    assert counted == {f'quire:key_requests_total{{key="{name}"}}': value
                       for name, value in {"a": 2, "b": 2, "c": 1, "other": 2}.items()}
    assert found['quire:key_prompt_tokens_total{key="a"}'] == 6
    assert found['quire:key_output_tokens_total{key="other"}'] == 4


def test_samples_that_never_finished_count_as_aborted_or_failed() -> None:
    metrics = m.Metrics("m")
    ended(metrics, "", aborted="disconnect")
    ended(metrics, "")
    ended(metrics, "", finish_reasons=["length"], num_resumed=2)
    found = Scraped(metrics.expose([]).decode())
    assert {reason: found[f'vllm:request_success_total{{finished_reason="{reason}"}}']
            for reason in ("abort", "error", "length")} == {"abort": 1, "error": 1, "length": 1}
    assert found['quire:requests_aborted_total{reason="disconnect"}'] == 1
    assert found["quire:requests_resumed_total"] == 1


async def test_scraping_does_not_hold_up_the_loop(make_app: Callable[..., Starlette],
                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    seen = []
    expose = m.Metrics.expose

    def slow(self: m.Metrics, *args: Any) -> bytes:
        seen.append(threading.current_thread())
        return expose(self, *args)

    monkeypatch.setattr(m.Metrics, "expose", slow)
    app = make_app()
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        await scrape(client)
    assert seen[0] is not threading.main_thread()


async def test_counters_are_at_zero_before_the_first_request(make_app: Callable[..., Starlette],
                                                             tmp_path: Path) -> None:
    path = str(tmp_path / "keys.yaml")
    write_key_file(path, [Key(name="ann", sha256="0" * 64, created=NEVER)])
    app = make_app(key_digests=[digest_of("the operator's own")], api_key_file=path)
    async with app.router.lifespan_context(app), httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
        headers = {"authorization": "Bearer the operator's own"}
        found = Scraped((await client.get("/metrics", headers=headers)).text)
        counters = [family for family in found.families.values() if family.type == "counter"]
        assert [family.name for family in counters if not family.samples] == []
        for name in ('vllm:request_success_total{finished_reason="error"}', "vllm:prompt_tokens_total",
                     "vllm:generation_tokens_total", 'vllm:prompt_tokens_by_source_total{source="local_cache_hit"}',
                     'quire:requests_rejected_total{reason="draining"}',
                     'quire:requests_aborted_total{reason="disconnect"}',
                     'http_requests_total{deadline="",handler="/v1/completions",method="POST",status="500"}',
                     'http_requests_total{deadline="client",handler="/v1/completions",method="POST",status="504"}',
                     'quire:key_requests_total{key="ann"}', "quire:requests_resumed_total"):
            assert found[name] == 0, name
        write_key_file(path, [Key(name=name, sha256=digit * 64, created=NEVER)
                              for name, digit in (("ann", "0"), ("bob", "1"))])
        app.state.service.keys.reload()
        Path(app.state.service.settings.reload_file).write_text('{"log_level": "info"}')
        for _ in range(100):
            await asyncio.sleep(0.05)
            if 'quire:key_requests_total{key="bob"}' in Scraped((await client.get("/metrics", headers=headers)).text):
                return
        raise AssertionError("a key that comes later is not there")

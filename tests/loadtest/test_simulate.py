"""`quire simulate`: what comes of a load where it can be worked out by hand, and the real scheduler behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quire.app.cli import main
from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.plan import StepPlan
from quire.loadtest.simulate import trace
from quire.loadtest.simulate.cost_model import TYPICAL, CostModel, Reached
from quire.loadtest.simulate.figures import figures
from quire.loadtest.simulate.gpus import GPUS
from quire.loadtest.simulate.main import Plant, build
from quire.loadtest.simulate.replay import Replay, Replayed
from quire.loadtest.simulate.trace import Arrival

SHAPES = Path(__file__).parents[2] / "loadtest" / "models"


def plant(shape: str = "llama-7b", reached: Reached = TYPICAL, **flags: Any) -> Plant:
    return build(EngineArgs.of({"model": str(SHAPES / shape), "load_format": "dummy", **flags}), GPUS["h200"], reached)


def replayed(arrivals: list[Arrival], max_queued_requests: int = 4096, **flags: Any) -> Replayed:
    made = plant(**flags)
    return Replay(made.scheduler, made.cost, max_queued_requests=max_queued_requests,
                  max_queued_tokens=None).run(arrivals)


def decodes(starts: list[int]) -> StepPlan:
    return StepPlan(0, [*range(len(starts))], starts, [1] * len(starts), [True] * len(starts), len(starts))


def prompt(num_tokens: int, start: int = 0) -> StepPlan:
    return StepPlan(0, [0], [start], [num_tokens], [True])


# The device


def products(made: Plant, shape: str = "llama-7b") -> tuple[float, float]:
    """Parameters of all layers, and of the head. The embedding, which is as large, is not multiplied by."""
    head = {"llama-7b": 32000 * 4096}[shape]
    return made.num_weight_bytes / 2 - 2 * head, head


def test_a_lone_token_takes_as_long_as_reading_the_weights_but_for_the_embedding() -> None:
    made = plant(reached=Reached(1.0, 1.0, 0.0))
    read = 2 * sum(products(made))
    assert made.cost.seconds(decodes([0])) == pytest.approx(read / GPUS["h200"].bytes_per_s, rel=2e-3)


def test_a_long_prompt_takes_as_long_as_its_products_and_attention_and_what_lies_between() -> None:
    made = plant(reached=Reached(1.0, 1.0, 0.0))
    count, layers, width, inner = 8000, 32, 4096, 11008
    of_layers, head = products(made)
    flop = 2 * of_layers * (count * (layers - 1) + 1) / layers + 2 * head
    attention = layers * 4 * width * count * count / 2 / 0.6
    kv_bytes = 2 * 2 * layers * width * count
    between = 2 * layers * count * (8 * width + 4 * inner)
    right = (flop + attention) / GPUS["h200"].flop_per_s + (kv_bytes + between) / GPUS["h200"].bytes_per_s
    assert made.cost.seconds(prompt(count)) == pytest.approx(right, rel=1e-3)


def test_reading_and_multiplying_overlap_in_part() -> None:
    cost = plant(reached=Reached(1.0, 1.0, 0.0)).cost
    some, twice = cost._products_s(200, 200), cost._products_s(400, 400)
    assert some < twice < 2 * some
    read, multiplied = cost._products_s(0, 0), cost._products_s(10**6, 10**6) / 10**6 * 200
    assert max(read, multiplied) < some < read + multiplied


def test_what_is_reached_and_lost_counts() -> None:
    whole, half = plant(reached=Reached(1.0, 1.0, 0.0)), plant(reached=Reached(0.5, 0.5, 1e-4))
    for plan in (decodes([1000] * 64), prompt(4000)):
        assert half.cost.seconds(plan) == pytest.approx(2 * whole.cost.seconds(plan) + 32 * 1e-4)


def test_a_step_takes_no_less_than_the_host() -> None:
    cost = plant("qwen2.5-0.5b", Reached(1.0, 1.0, 0.0, host_s=0.002, host_row_s=0.0001)).cost
    assert cost.seconds(decodes([0] * 80)) == pytest.approx(0.010)


def test_windows_shared_beginnings_and_experts_save_reading() -> None:
    long = decodes([30_000] * 8)
    gemma, llama, mixture = (plant(shape).cost for shape in ("gemma-3-4b", "llama-3.1-8b", "qwen3-30b-a3b"))
    assert gemma._layers[1024] > 4 * gemma._layers[None] > 0
    short = decodes([500] * 8)
    assert gemma.seconds(long) - gemma.seconds(short) < (llama.seconds(long) - llama.seconds(short)) / 2
    shared = decodes([30_000] * 8)
    shared.shared_places, shared.num_shared_tokens = [*range(8)], 28_000
    assert llama.seconds(shared) < llama.seconds(long) - 7 * 28_000 * 32 * 4096 / GPUS["h200"].bytes_per_s
    of_one, of_many = mixture.seconds(decodes([0])), mixture.seconds(decodes([0] * 512))
    assert 4 < of_many / of_one < 20, "one token reads 8 experts of 128, many read all"


# The engine


def test_one_alone_waits_for_nobody() -> None:
    found = figures(replayed([Arrival(1.0, 1000, 101)]))
    cost: CostModel = plant().cost
    assert found["queue_s"]["p50"] == 0
    assert found["ttft_s"]["p50"] == pytest.approx(cost.seconds(prompt(1000)))
    assert cost.seconds(decodes([1000])) <= found["tpot_s"]["p50"] <= cost.seconds(decodes([1100]))
    assert found["e2e_s"]["p50"] == pytest.approx(found["ttft_s"]["p50"] + 100 * found["tpot_s"]["p50"])
    assert (found["steps"], found["preemptions"], found["requests"]) == (101, 0, 1)


def test_in_a_cache_that_is_too_small_requests_wait_and_are_preempted_and_all_are_served() -> None:
    arrivals = [Arrival(0.0, 300, 300) for _ in range(40)]
    found = replayed(arrivals, num_gpu_blocks_override=250)
    assert len(found.served) == 40
    assert found.num_preemptions > 0 and found.most_cache > 0.95
    assert found.num_output_tokens == 40 * 300
    free = replayed(arrivals)
    assert free.num_preemptions == 0 and free.seconds < found.seconds / 2


@pytest.mark.parametrize("caching", [True, False])
def test_prompts_that_begin_alike_are_computed_once(caching: bool) -> None:
    arrivals = [Arrival(float(i), 1000, 2, prefix="a" if i % 2 else "b", prefix_tokens=800) for i in range(20)]
    found = replayed(arrivals, enable_prefix_caching=caching)
    assert found.num_cached_tokens == (18 * 800 if caching else 0)


def test_a_full_queue_and_what_never_fits_are_refused_as_the_door_does() -> None:
    found = replayed([Arrival(0.0, 5000, 10), *(Arrival(0.0, 100, 10) for _ in range(50))], max_queued_requests=8,
                     max_num_seqs=4, max_model_len=4096)
    assert found.num_invalid == 1
    assert found.num_overload == 50 - 8
    assert len(found.served) == 8


def test_a_load_beyond_what_the_gpu_does_shows_in_the_queue() -> None:
    calm, flooded = (figures(replayed([*trace.poisson("decode", rate, 150)], max_num_seqs=32)) for rate in (2.0, 500.0))
    assert calm["queue_s"]["p99"] < 0.1 < 5 < flooded["queue_s"]["p99"]
    assert calm["device_busy"] < flooded["device_busy"] <= 1
    assert flooded["running_mean"] > 20


# The command


def test_the_command_reads_a_trace_and_writes_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"arrival_s": 0.2, "prompt_tokens": 50, "output_tokens": 5, "prefix": "system", "prefix_tokens": 40},
             {"arrival_s": 0.1, "prompt_tokens": 60, "output_tokens": 5, "prefix": "system", "prefix_tokens": 40}]
    (tmp_path / "trace.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert main(["simulate", "--model", str(SHAPES / "llama-7b"), "--load-format", "dummy", "--gpu", "l40s", "--trace",
                 str(tmp_path / "trace.jsonl"), "--json", str(tmp_path / "found.json")]) == 0
    told = capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert "l40s: weights 12.6 GiB" in told and "2 requests in" in told and "to the first token" in told
    assert found["requests"] == 2 and found["cache_hits"] == pytest.approx(32 / 110)


@pytest.mark.parametrize(("line", "said"), [
    ('{"arrival_s": 1, "prompt_tokens": 5}', "line 1: Object missing required field `output_tokens`"),
    ('{"arrival_s": 1, "prompt_tokens": 0, "output_tokens": 2}', "line 1: prompt_tokens is 0"),
    ('{"arrival_s": -1, "prompt_tokens": 1, "output_tokens": 2}', "line 1: arrival_s is -1.0"),
    ('{"arrival_s": 1, "prompt_tokens": 1, "output_tokens": 2, "prefix_tokens": 2}', "line 1: prefix_tokens is 2"),
    ("", "has no request in it"), ("{", "line 1: ")])
def test_a_trace_that_is_none_is_refused_by_its_line(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "trace.jsonl").write_text(line)
    with pytest.raises(ConfigError) as refused:
        trace.read(str(tmp_path / "trace.jsonl"))
    assert said in str(refused.value)


@pytest.mark.parametrize(("flags", "said"), [
    (["--gpu", "a10"], "--gpu: the weights of"), (["--gpu", "h200", "--tensor-parallel-size", "2"], "one engine with"),
    (["--gpu", "h200", "--trace", "/nowhere/t"], "/nowhere/t cannot be read: No such file"),
    (["--gpu", "h200", "--block-size", "17"], "--block-size: 17")])
def test_what_cannot_be_simulated_is_said(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = [] if "--trace" in flags else ["--workload", "single"]
    assert main(["simulate", "--model", str(SHAPES / "llama-13b"), "--load-format", "dummy", *source, *flags]) == 2
    assert said in capsys.readouterr().err

"""A KV cache larger than the memory is refused at the start, with both figures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError, MemoryShortageError
from quire.engine.execution import capacity
from quire.engine.execution.capacity import settle_blocks
from quire.engine.host_memory import free_and_total
from quire.engine.kv_groups import BlockNeed

BLOCK = 2**20


def blocks(device: str = "cpu", positions: int = 16, graph_bytes: int = 0, **args: Any) -> int:
    """For a model made for so many positions."""
    runner: Any = SimpleNamespace(device=torch.device(device), block_bytes=BLOCK, measure_graphs=lambda: graph_bytes)
    engine_args = EngineArgs(**args)
    config: Any = SimpleNamespace(args=engine_args, max_model_len=args.get("max_model_len") or positions,
                                  block_need=BlockNeed((None,), engine_args.block_size, 512))
    return settle_blocks(runner, config, lambda *_: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine and a GPU of ten blocks, five of which are free."""
    monkeypatch.setattr(capacity, "free_and_total", lambda: (5 * BLOCK, 10 * BLOCK))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 * BLOCK, 10 * BLOCK))
    monkeypatch.setattr(capacity, "_measure_worst_step", lambda *_: 2 * BLOCK)  # the rest of the GPU's


def test_a_cache_beyond_this_machine_is_refused_with_the_figures() -> None:
    with pytest.raises(ConfigError, match=r"--kv-cache-memory-bytes: 1073741824 MiB of KV cache were asked for, and "
                                          r"beside the weights \d+ of \d+ MiB of memory are free; ask for less"):
        blocks(kv_cache_memory_bytes=2**50)


def test_a_cache_that_fits_is_taken() -> None:
    half = free_and_total()[0] // 2
    assert blocks(kv_cache_memory_bytes=half) == half // BLOCK
    assert blocks() == 240


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_less_memory_than_there_may_be_another_time_is_a_reason_that_may_pass(small: None, device: str) -> None:
    assert blocks(device, kv_cache_memory_bytes=5 * BLOCK) == 5
    with pytest.raises(MemoryShortageError, match=r"6 MiB of KV cache were asked for, .*weights.* 5 of 10 MiB of"):
        blocks(device, kv_cache_memory_bytes=6 * BLOCK)
    with pytest.raises(ConfigError) as caught:
        blocks(device, kv_cache_memory_bytes=10 * BLOCK)
    assert not isinstance(caught.value, MemoryShortageError)


def test_a_gpus_utilization_is_for_all_that_uses_it(small: None) -> None:
    assert blocks("cuda", gpu_memory_utilization=0.9) == 9 - 3 - 2  # in use, and of a step
    with pytest.raises(ConfigError, match=r"--gpu-memory-utilization: it leaves 0.0 MiB"):
        blocks("cuda", gpu_memory_utilization=0.5)


def test_graphs_are_counted_before_the_cache(small: None) -> None:
    assert blocks("cuda", graph_bytes=BLOCK, gpu_memory_utilization=0.9) == 9 - 3 - 2 - 1
    assert blocks("cuda", graph_bytes=BLOCK, kv_cache_memory_bytes=4 * BLOCK) == 4
    with pytest.raises(MemoryShortageError, match="beside the weights, a step and graphs 4 of 10 MiB"):
        blocks("cuda", graph_bytes=BLOCK, kv_cache_memory_bytes=5 * BLOCK)


def memory(monkeypatch: pytest.MonkeyPatch, free_blocks: int, of: int = 2000) -> None:
    monkeypatch.setattr(capacity, "free_and_total", lambda: (free_blocks * BLOCK, of * BLOCK))


def test_on_a_cpu_a_whole_context_has_room_where_half_of_the_free_memory_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for free, got in ((1000, 360), (720, 360), (600, 300), (480, 240), (100, 240)):
        memory(monkeypatch, free)
        assert blocks(positions=360 * 16) == got, free
    memory(monkeypatch, 1200)
    assert blocks(positions=360 * 16, tensor_parallel_size=2) == 300
    assert blocks(positions=360 * 16, data_parallel_size=2) == 300
    assert blocks(positions=16) == 240, "a short context leaves room for others"


def test_a_context_that_was_asked_for_and_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    memory(monkeypatch, 600)
    assert blocks(positions=700 * 16, max_model_len=500 * 16) == 500
    with pytest.raises(MemoryShortageError, match=r"--max-model-len 11200: 700 MiB of KV cache were asked for"):
        blocks(positions=700 * 16, max_model_len=700 * 16)
    for limit in ({"kv_cache_memory_bytes": 3 * BLOCK}, {"num_gpu_blocks_override": 3}):
        assert blocks(max_model_len=48, **limit) == 3
        with pytest.raises(ConfigError, match="--max-model-len: 49 tokens were asked for, and the KV cache holds 48; "
                                              f"ask for at most 48, or for more.*--{next(iter(limit))[:2]}") as caught:
            blocks(max_model_len=49, **limit)
        assert not isinstance(caught.value, MemoryShortageError)


def test_a_gpus_context_that_was_asked_for_is_refused_by_the_same_rule(small: None) -> None:
    assert blocks("cuda", gpu_memory_utilization=0.9, max_model_len=64) == 4
    with pytest.raises(ConfigError, match=r"holds 64; .*--gpu-memory-utilization"):
        blocks("cuda", gpu_memory_utilization=0.9, max_model_len=65)


def test_ranks_of_one_machine_share_its_memory(small: None) -> None:
    assert blocks(kv_cache_memory_bytes=3 * BLOCK) == 3
    with pytest.raises(MemoryShortageError, match=r"2 times 3 MiB of KV cache were asked for, .*weights 5 of 10 MiB"):
        blocks(kv_cache_memory_bytes=3 * BLOCK, tensor_parallel_size=2)
    assert blocks(kv_cache_memory_bytes=3 * BLOCK, tensor_parallel_size=2, distributed_executor_backend="ray") == 3
    assert blocks("cuda", kv_cache_memory_bytes=3 * BLOCK, tensor_parallel_size=2) == 3

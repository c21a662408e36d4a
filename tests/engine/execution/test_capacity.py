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

BLOCK = 2**20


def blocks(device: str = "cpu", **args: Any) -> int:
    runner: Any = SimpleNamespace(device=torch.device(device), block_bytes=BLOCK)
    config: Any = SimpleNamespace(args=EngineArgs(**args))
    return settle_blocks(runner, config, lambda *_: None)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine and a GPU of ten blocks, five of which are free."""
    monkeypatch.setattr(capacity, "free_and_total", lambda: (5 * BLOCK, 10 * BLOCK))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (7 * BLOCK, 10 * BLOCK))
    monkeypatch.setattr(capacity, "_measure_worst_step", lambda *_: 2 * BLOCK)  # the rest of the GPU's


def test_a_cache_beyond_this_machine_is_refused_with_the_figures() -> None:
    with pytest.raises(ConfigError, match=r"--kv-cache-memory-bytes: 1073741824 MiB were asked for, and beside the "
                                          r"weights \d+ of \d+ MiB of memory are free; ask for less"):
        blocks(kv_cache_memory_bytes=2**50)


def test_a_cache_that_fits_is_taken() -> None:
    half = free_and_total()[0] // 2
    assert blocks(kv_cache_memory_bytes=half) == half // BLOCK
    assert blocks() == 240


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_less_memory_than_there_may_be_another_time_is_a_reason_that_may_pass(small: None, device: str) -> None:
    assert blocks(device, kv_cache_memory_bytes=5 * BLOCK) == 5
    with pytest.raises(MemoryShortageError, match=r"6 MiB were asked for, and beside the weights.* 5 of 10 MiB of"):
        blocks(device, kv_cache_memory_bytes=6 * BLOCK)
    with pytest.raises(ConfigError) as caught:
        blocks(device, kv_cache_memory_bytes=10 * BLOCK)
    assert not isinstance(caught.value, MemoryShortageError)


def test_a_gpus_utilization_is_for_all_that_uses_it(small: None) -> None:
    assert blocks("cuda", gpu_memory_utilization=0.9) == 9 - 3 - 2  # in use, and of a step
    with pytest.raises(ConfigError, match=r"--gpu-memory-utilization: it leaves 0.0 MiB"):
        blocks("cuda", gpu_memory_utilization=0.5)


def test_ranks_of_one_machine_share_its_memory(small: None) -> None:
    assert blocks(kv_cache_memory_bytes=3 * BLOCK) == 3
    with pytest.raises(MemoryShortageError, match="2 times 3 MiB were asked for, and beside the weights 5 of 10 MiB"):
        blocks(kv_cache_memory_bytes=3 * BLOCK, tensor_parallel_size=2)
    assert blocks(kv_cache_memory_bytes=3 * BLOCK, tensor_parallel_size=2, distributed_executor_backend="ray") == 3
    assert blocks("cuda", kv_cache_memory_bytes=3 * BLOCK, tensor_parallel_size=2) == 3

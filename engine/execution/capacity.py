"""How many KV blocks a rank has room for. Called once by each rank, after its model is loaded and before the cache is.
"""

from __future__ import annotations

import torch

from quire.engine.config import CPU_KV_BYTES, EngineArgs, EngineConfig
from quire.engine.errors import ConfigError, MemoryShortageError
from quire.engine.execution import warm_up
from quire.engine.execution.model_runner import ModelRunner, Progress
from quire.engine.host_memory import free_and_total


def settle_blocks(runner: ModelRunner, config: EngineConfig, progress: Progress) -> int:
    """Raises ConfigError where there is no room for one, MemoryShortageError where there is less than was asked for."""
    args = config.args
    if args.num_gpu_blocks_override is not None:
        return args.num_gpu_blocks_override
    step_bytes = 0
    if runner.device.type != "cpu":
        progress("measuring memory", 0.0)
        step_bytes = _measure_worst_step(runner, config)
        torch.cuda.empty_cache()
    flag = "--kv-cache-memory-bytes"
    if args.kv_cache_memory_bytes is not None:
        available = args.kv_cache_memory_bytes
        _require_room(args, available, runner.device, step_bytes)
    elif runner.device.type == "cpu":
        available = CPU_KV_BYTES
    else:
        available, flag = _free_device_bytes(args) - step_bytes, "--gpu-memory-utilization"
    num_blocks = available // runner.block_bytes
    if num_blocks < 1:
        raise ConfigError(f"{flag}: it leaves {max(available, 0) / 2**20:.1f} MiB for the KV cache, and one block "
                          f"takes {runner.block_bytes / 2**20:.1f} MiB; raise it, or use a smaller model or dtype")
    return int(num_blocks)


def _require_room(args: EngineArgs, wanted: int, device: torch.device, step_bytes: int) -> None:
    """A CPU's pages are taken when they are first written: without this, it would be found out under load."""
    num_ranks = 1
    if device.type == "cpu":
        free, total = free_and_total()
        beside, of, more = "weights", "of memory are free", "free memory, or raise the container's limit"
        # The ranks of an engine load at the same time. On a cluster nobody here knows which are on one machine, and of
        # several engines those that serve have taken theirs.
        if args.distributed_executor_backend != "ray":
            num_ranks = args.num_ranks
    else:
        free, total = torch.cuda.mem_get_info()
        free = max(0, free - step_bytes)
        beside, of, more = "weights and a step", "of the GPU are free", "free the GPU (nvidia-smi tells who has it)"
    if num_ranks * wanted > free:
        times = f"{num_ranks} times " if num_ranks > 1 else ""
        error = MemoryShortageError if num_ranks * wanted < total else ConfigError
        raise error(f"--kv-cache-memory-bytes: {times}{wanted / 2**20:.0f} MiB were asked for, and beside the {beside} "
                    f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB {of}; ask for less, {more}")


def _free_device_bytes(args: EngineArgs) -> int:
    """What the utilization allows, less all that is in use now."""
    free, total = torch.cuda.mem_get_info()
    return int(total * args.gpu_memory_utilization) - (total - free)


def _measure_worst_step(runner: ModelRunner, config: EngineConfig) -> int:
    """Bytes that a step over the whole token budget, sampling in every row, allocates at its peak."""
    runner.allocate(1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.launch(warm_up.worst_plan(config)).result()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    runner.kv_caches = []
    return peak

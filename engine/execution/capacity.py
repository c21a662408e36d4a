"""How many KV blocks a rank has room for. Called once by each rank, after its model is loaded and before the cache is.

On a GPU the request table is in use by then; what a step and the captured graphs will take is measured here.
"""

from __future__ import annotations

import torch

from quire.engine import cpu_cache
from quire.engine.config import EngineArgs, EngineConfig
from quire.engine.errors import ConfigError, MemoryShortageError
from quire.engine.execution import warm_up
from quire.engine.execution.model_runner import ModelRunner, Progress
from quire.engine.host_memory import free_and_total


def settle_blocks(runner: ModelRunner, config: EngineConfig, progress: Progress) -> int:
    """
    Raises:
        ConfigError: there is no room for one block, or not for the context that was asked for.
        MemoryShortageError: less memory is free than was asked for.
    """
    args = config.args
    if args.num_gpu_blocks_override is not None:
        num_blocks, flag = args.num_gpu_blocks_override, "--num-gpu-blocks-override"
    else:
        available, flag = _available_bytes(runner, config, progress)
        num_blocks = available // runner.block_bytes
        if num_blocks < 1:
            raise ConfigError(f"{flag}: it leaves {max(available, 0) / 2**20:.1f} MiB for the KV cache, and one block "
                              f"takes {runner.block_bytes / 2**20:.1f} MiB; raise it, or use a smaller model or dtype")
    room = config.block_need.room(num_blocks)
    if args.max_model_len is not None and args.max_model_len > room:
        raise ConfigError(f"--max-model-len: {args.max_model_len} tokens were asked for, and the KV cache holds "
                          f"{room}; ask for at most {room}, or for more cache ({flag})")
    return num_blocks


def _available_bytes(runner: ModelRunner, config: EngineConfig, progress: Progress) -> tuple[int, str]:
    """For the cache, and the flag that says so."""
    args, device = config.args, runner.device
    beside = 0
    if device.type != "cpu":
        progress("measuring memory", 0.0)
        beside = _measure_worst_step(runner, config)
        torch.cuda.empty_cache()
        beside += runner.measure_graphs()
    if args.kv_cache_memory_bytes is not None:
        _require_room(args, "--kv-cache-memory-bytes", args.kv_cache_memory_bytes, device, beside)
        return args.kv_cache_memory_bytes, "--kv-cache-memory-bytes"
    if device.type != "cpu":
        return _free_device_bytes(args) - beside, "--gpu-memory-utilization"
    asked_for = args.max_model_len is not None
    cache = cpu_cache.default_bytes(config.block_need.blocks_for(config.max_model_len) * runner.block_bytes,
                                    asked_for=asked_for, free_bytes=free_and_total()[0],
                                    num_sharers=_ranks_here(args) * args.data_parallel_size)
    if asked_for and cache > cpu_cache.LEAST_BYTES:
        _require_room(args, f"--max-model-len {args.max_model_len}", cache, device, beside)
    return cache, "--kv-cache-memory-bytes"


def _ranks_here(args: EngineArgs) -> int:
    """Ranks of an engine that load at the same time and share this memory. On a cluster nobody here knows which do."""
    return 1 if args.distributed_executor_backend == "ray" else args.num_ranks


def _require_room(args: EngineArgs, flag: str, wanted: int, device: torch.device, beside_bytes: int) -> None:
    """A CPU's pages are taken when they are first written: without this, it would be found out under load."""
    num_ranks = 1
    if device.type == "cpu":
        free, total = free_and_total()
        beside, of, more = "weights", "of memory are free", "free memory, or raise the container's limit"
        num_ranks = _ranks_here(args)  # of several engines those that serve have taken their memory
    else:
        free, total = torch.cuda.mem_get_info()
        free = max(0, free - beside_bytes)
        beside, of = "weights, a step and graphs", "of the GPU are free"
        more = "free the GPU (nvidia-smi tells who has it)"
    if num_ranks * wanted > free:
        times = f"{num_ranks} times " if num_ranks > 1 else ""
        error = MemoryShortageError if num_ranks * wanted < total else ConfigError
        raise error(f"{flag}: {times}{wanted / 2**20:.0f} MiB of KV cache were asked for, and beside the {beside} "
                    f"{free / 2**20:.0f} of {total / 2**20:.0f} MiB {of}; ask for less, {more}")


def _free_device_bytes(args: EngineArgs) -> int:
    """What the utilization allows, less all that is in use now."""
    free, total = torch.cuda.mem_get_info()
    return int(total * args.gpu_memory_utilization) - (total - free)


def _measure_worst_step(runner: ModelRunner, config: EngineConfig) -> int:
    """Bytes that a step over the whole token budget, sampling in every row, allocates at its peak, or one that encodes
    as many images as one may."""
    runner.allocate(1)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    runner.launch(warm_up.worst_plan(config, samples=runner.model.generates)).result()
    runner.rehearse_tower()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    runner.free_cache()
    return peak

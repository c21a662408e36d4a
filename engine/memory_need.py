"""What a model needs of the machine's memory, on a CPU, against what there is: asked before its weights are read.

Without the question the kernel answers, by killing the process half way. Called by the core, and by `quire doctor`.
"""

from __future__ import annotations

from dataclasses import dataclass

from quire.engine import cpu_cache
from quire.engine.config import EngineArgs, kv_type
from quire.engine.errors import ConfigError, MemoryShortageError
from quire.engine.host_memory import free_and_total
from quire.engine.model_config import ModelConfig
from quire.engine.quantization_config import stays_packed
from quire.engine.weights.size import cpu_weight_bytes, kv_block_bytes


@dataclass(frozen=True)
class MemoryNeed:
    """Of one engine, in bytes, with all its ranks; what steps and the program itself take beside it is left out."""

    weights: int
    cache: int

    @classmethod
    def of(cls, args: EngineArgs, model: ModelConfig, dtype: str, free: int) -> MemoryNeed:
        """`free` is what there is for all engines. Raises WeightError for files that do not say how large they are."""
        weights = cpu_weight_bytes(model, dtype, args.cpu_weights, dummy=args.load_format == "dummy",
                                   packed=stays_packed("cpu", args.quantization, model.file_format))
        ranks_here = args.num_ranks
        if args.distributed_executor_backend == "ray":  # this machine has one, for all we know
            ranks_here, weights = 1, weights // args.num_ranks
        block = kv_block_bytes(model, kv_type(args, dtype), args.block_size) // ranks_here
        if args.kv_cache_memory_bytes is not None:
            cache = args.kv_cache_memory_bytes
        elif args.num_gpu_blocks_override is not None:
            cache = args.num_gpu_blocks_override * block
        else:
            context = min(args.max_model_len or model.max_position_embeddings, model.max_position_embeddings)
            cache = cpu_cache.default_bytes(
                args.cpu_block_need(model).blocks_for(context) * block, asked_for=args.max_model_len is not None,
                free_bytes=max(0, free - args.data_parallel_size * weights),
                num_sharers=ranks_here * args.data_parallel_size)
        return cls(weights, ranks_here * cache)

    @property
    def total(self) -> int:
        return self.weights + self.cache


def require_host_memory(args: EngineArgs, model: ModelConfig, dtype: str) -> None:
    """Raises ConfigError where the model can never fit, MemoryShortageError where it does not fit now."""
    free, total = free_and_total()
    need = MemoryNeed.of(args, model, dtype, free)
    if need.total <= free:
        return
    error = MemoryShortageError if need.total <= total else ConfigError
    flag = "--model" if need.weights > free or args.kv_cache_memory_bytes is None else "--kv-cache-memory-bytes"
    raise error(f"{flag}: {model.path} needs {_gib(need.total)} of memory, {_gib(need.weights)} for weights in "
                f"{dtype} and {_gib(need.cache)} for KV cache, and {_gib(free)} of {_gib(total)} are free, by machine "
                "and container; free memory or raise the container's limit, or take a smaller model, --dtype half, "
                 "--cpu-weights int8, --kv-cache-dtype fp8, or fewer --kv-cache-memory-bytes")


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"

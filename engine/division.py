"""How what a model has many of is dealt out to ranks, and the refusal of what does not divide.

Refuses to know torch: `quire doctor` asks here before anything is loaded.
"""

from __future__ import annotations

from quire.engine.config import EngineArgs
from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig
from quire.engine.model_registry import OTHER, family_of

ATTENTION_HEADS = "the number of attention heads"


def layers_of_stage(num_layers: int, stage: int, num_stages: int) -> range:
    """Raises ConfigError where they do not divide."""
    if num_layers % num_stages:
        raise ConfigError(f"--pipeline-parallel-size: the number of layers ({num_layers}) does not divide by "
                          f"{num_stages}")
    part = num_layers // num_stages
    return range(stage * part, (stage + 1) * part)


def share(count: int, what: str, rank: int, size: int) -> slice:
    """The part of `count` things that is `rank`'s of `size`. Raises ConfigError where they do not divide."""
    if count % size:
        raise ConfigError(f"--tensor-parallel-size: {what} ({count}) does not divide by {size}")
    part = count // size
    return slice(rank * part, (rank + 1) * part)


def share_of_kv_heads(count: int, rank: int, size: int) -> slice:
    """As `share`; with fewer KV heads than ranks, neighbouring ranks hold the same head."""
    if count >= size:
        return share(count, "the number of KV heads", rank, size)
    if size % count:
        raise ConfigError(f"--tensor-parallel-size: {size} is not a multiple of the number of KV heads ({count})")
    head = rank * count // size
    return slice(head, head + 1)


def require_divisible(args: EngineArgs, model: ModelConfig) -> None:
    """Raises ConfigError. The layers would too, but on ranks that took half a minute to start."""
    if args.num_ranks > 1 and family_of(model.architecture, args.model_impl) is OTHER:
        raise ConfigError(f"--tensor-parallel-size, --pipeline-parallel-size: {model.architecture} runs by "
                          "transformers' code, which is not split over devices; use 1")
    share_of_kv_heads(model.num_kv_heads, 0, args.tensor_parallel_size)
    share(model.num_heads, ATTENTION_HEADS, 0, args.tensor_parallel_size)
    layers_of_stage(model.num_layers, 0, args.pipeline_parallel_size)

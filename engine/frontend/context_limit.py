"""Why no more tokens fit than do: added to the refusal of what is too long, where the model itself would take it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from quire.engine.config import EngineArgs
from quire.engine.errors import ContextLengthError
from quire.engine.messages import EngineInfo
from quire.engine.model_config import ModelConfig


@contextmanager
def naming_limits(args: EngineArgs, model: ModelConfig, info: EngineInfo | None) -> Iterator[None]:
    try:
        yield
    except ContextLengthError as error:
        raise error.explained(*_reason_and_remedy(args, model, info)) from None


def _reason_and_remedy(args: EngineArgs, model: ModelConfig, info: EngineInfo | None) -> tuple[str, str]:
    """What limits it if not the model, and what to do, as parts of that refusal."""
    own = model.max_position_embeddings
    if info is None or info.max_model_len >= own:
        return "", ""
    if args.max_model_len is not None:
        return (f" here, as --max-model-len says (the model itself takes {own})",
                ", or start the engine with a longer --max-model-len")
    if args.num_gpu_blocks_override is not None:
        flag = "--num-gpu-blocks-override"
    elif info.device == "cpu" or args.kv_cache_memory_bytes is not None:
        flag = "--kv-cache-memory-bytes"
    else:
        flag = "--gpu-memory-utilization"
    return (f" here, which is what the KV cache holds (the model itself takes {own})",
            f", or start the engine with more cache ({flag})")

"""Settles device and dtype before anything is loaded, and refuses what the device cannot do, saying what would work."""

from __future__ import annotations

import ctypes
import os

import torch

from engine.config import DTYPES, EngineArgs, EngineConfig
from engine.errors import ConfigError
from engine.model_config import ModelConfig

BFLOAT16_CAPABILITY = (8, 0)
LARGE_GPU_BYTES = 70 * 10**9


def settle(args: EngineArgs, model: ModelConfig) -> EngineConfig:
    """The whole configuration for this machine.

    Raises:
        ConfigError: a value does not fit the model or the device.
    """
    args.checked()
    device = _device(args)
    cpu = device == "cpu"
    return EngineConfig(
        args=args,
        model=model,
        device=device,
        dtype=_dtype(args, model, device),
        max_model_len=_max_model_len(args, model),
        max_num_seqs=args.max_num_seqs or (64 if cpu else _most_gpu_rows()),
        max_num_batched_tokens=args.max_num_batched_tokens or (512 if cpu else 8192),
        # A CPU step runs inside launch(): there is nothing to overlap with.
        async_scheduling=(not cpu) if args.async_scheduling is None else args.async_scheduling,
    )


def _device(args: EngineArgs) -> str:
    if args.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device: cuda was asked for, but torch sees no GPU; check the driver (nvidia-smi) and that "
                          "torch is a CUDA build, or use --device cpu")
    return args.device


def _dtype(args: EngineArgs, model: ModelConfig, device: str) -> str:
    wanted = DTYPES[args.dtype]
    if device == "cpu":
        # Without bf16 matrix units a bfloat16 product is two orders slower than float32, so "auto" never picks it.
        return "float32" if wanted == "auto" else wanted
    if wanted == "auto":
        wanted = model.dtype
    if wanted == "bfloat16":
        capability = torch.cuda.get_device_capability()
        if capability < BFLOAT16_CAPABILITY:
            raise ConfigError(
                f"--dtype: bfloat16 needs a GPU of compute capability {_dotted(BFLOAT16_CAPABILITY)} or higher; "
                f"{torch.cuda.get_device_name()} has {_dotted(capability)}. Use --dtype half.")
    return wanted


def _most_gpu_rows() -> int:
    """Large GPUs have the KV memory to run a thousand samples at once; waiting ones would keep it idle."""
    large = torch.cuda.get_device_properties(0).total_memory >= LARGE_GPU_BYTES
    return 1024 if large else 256


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def _max_model_len(args: EngineArgs, model: ModelConfig) -> int:
    if args.max_model_len is None:
        return model.max_position_embeddings
    if args.max_model_len > model.max_position_embeddings:
        raise ConfigError(f"--max-model-len: {args.max_model_len} is more than the {model.max_position_embeddings} "
                          f"positions that {model.path} was made for")
    return args.max_model_len


def return_freed_memory() -> None:
    """Loading frees tens of megabytes that glibc would keep for later; other C libraries have no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def prepare_cpu(args: EngineArgs) -> None:
    """Thread counts must be set before the first parallel region."""
    torch.set_num_threads(args.cpu_threads or len(os.sched_getaffinity(0)))

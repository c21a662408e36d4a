"""Settles device and dtype before anything is loaded, and refuses what the device cannot do, saying what would work."""

from __future__ import annotations

import os
import sys

import structlog
import torch

from quire.engine.config import (
    CPU_STEP_TOKENS,
    DTYPES,
    GPU_STEP_TOKENS,
    LARGE_GPU_BYTES,
    EngineArgs,
    EngineConfig,
    gpu_rows,
    kv_type,
)
from quire.engine.errors import ConfigError
from quire.engine.execution.hardware import Hardware
from quire.engine.model_config import ModelConfig
from quire.engine.model_registry import OTHER, family_of, overflows_float16
from quire.engine.quantization.cpu_product import require
from quire.engine.quantization_config import FLOAT16, FLOAT32, INT8, stays_packed

BFLOAT16_CAPABILITY = (8, 0)
# Its own printer, so that lines go to stderr in a program that never configured structlog too.
_log = structlog.wrap_logger(structlog.PrintLogger(sys.stderr))


def settle(args: EngineArgs, model: ModelConfig, hardware: Hardware, *, offline: bool = False) -> EngineConfig:
    """The whole configuration for this hardware. `args` are checked; `offline`, nobody waits for single tokens.

    Raises:
        ConfigError: a value does not fit the model or the device.
    """
    device = _device(args, hardware)
    cpu = device == "cpu"
    if family_of(model.architecture, args.model_impl) is OTHER:
        _log.info("the model runs by transformers' code, slower than a family of Quire's own",
                  architecture=model.architecture)
    if model.quantization is not None:
        _log.info("the weights are quantised", form=model.quantization.says,
                  product=_product(args, model, device))
    if args.batch_invariant:
        _check_batch_invariant(args, model)
    dtype = _dtype(args, model, device, hardware)
    kv_type(args, dtype)  # refuses one that does not go with it
    if args.cpu_weights != FLOAT32:
        _check_cpu_weights(args, model, device, dtype)
        _log.info("weights are held in fewer bits", form=args.cpu_weights,
                  product="FBGEMM's, found right on this machine; inputs and sums in float32")
    return EngineConfig(
        args=args,
        model=model,
        device=device,
        dtype=dtype,
        max_model_len=args.model_len(model),
        max_num_seqs=args.max_num_seqs or (64 if cpu else gpu_rows(hardware.memory_bytes)),
        max_num_batched_tokens=args.max_num_batched_tokens or (
            CPU_STEP_TOKENS if cpu else _gpu_tokens(hardware, offline)),
        num_steps_ahead=_num_steps_ahead(args, device),
    )


def _product(args: EngineArgs, model: ModelConfig, device: str) -> str:
    """What multiplies with quantised weights, for people."""
    if not stays_packed(device, args.quantization, model.file_format):
        return "made floats as they are read"
    if device == "cpu":
        return ("whole numbers of 4 and 8 bits read packed, where a C compiler is; others made floats tile by tile at "
                "every step")
    if args.batch_invariant:
        return "read packed; inputs are never rounded"
    return "read packed; with many rows made floats, or inputs rounded to 8 bits where checkpoint and GPU allow it"


def _device(args: EngineArgs, hardware: Hardware) -> str:
    if args.device == "auto" and hardware.unusable:
        _log.warning("the GPU is not used, the CPU computes, many times slower", reason=hardware.unusable,
                     advice="quire doctor looks closer; --device cpu says that this is meant, --device cuda refuses it")
    if args.device == "cpu" or (args.device == "auto" and not hardware.num_gpus):
        return "cpu"
    if not hardware.num_gpus:
        raise ConfigError("--device: cuda was asked for, but " + (hardware.unusable or (
            "torch sees no GPU; check the driver (nvidia-smi) and that torch is a CUDA build, or use --device cpu")))
    if args.distributed_executor_backend != "ray" and args.num_ranks > hardware.num_gpus:
        raise ConfigError(f"--tensor-parallel-size times --pipeline-parallel-size is {args.num_ranks}, and torch sees "
                          f"{hardware.num_gpus} GPUs; lower them, or show it more (CUDA_VISIBLE_DEVICES)")
    return "cuda"


def _check_batch_invariant(args: EngineArgs, model: ModelConfig) -> None:
    if family_of(model.architecture, args.model_impl) is OTHER:
        raise ConfigError(f"--batch-invariant: {model.architecture} runs by transformers' code, whose products depend "
                          "on the batch; leave the flag out, or serve a family that `quire models` calls native")
    if args.tensor_parallel_size > 2:
        raise ConfigError("--batch-invariant: the order in which more than two ranks are summed depends on the batch; "
                          f"use --tensor-parallel-size 1 or 2, got {args.tensor_parallel_size}")


def _check_cpu_weights(args: EngineArgs, model: ModelConfig, device: str, dtype: str) -> None:
    form = args.cpu_weights
    if device != "cpu":
        raise ConfigError(f"--cpu-weights: {form} is for engines on a CPU, and this one computes on a GPU; leave the "
                          "flag out, or use --device cpu")
    if dtype != FLOAT32:
        raise ConfigError(f"--cpu-weights: {form} is multiplied with inputs in float32, and --dtype is {dtype}; leave "
                          "one of the two out")
    if stays_packed(device, args.quantization, model.file_format):
        raise ConfigError(f"--cpu-weights: {form} was asked for, and --quantization {args.quantization} keeps weights "
                          "on a CPU as the checkpoint packs them; leave one of the two out")
    if args.batch_invariant and form == FLOAT16:
        raise ConfigError("--cpu-weights: the last bit of float16's products depends on the number of rows, and "
                          f"--batch-invariant forbids that; use {INT8} or {FLOAT32}")
    if family_of(model.architecture, args.model_impl) is OTHER:
        raise ConfigError(f"--cpu-weights: {model.architecture} runs by transformers' code, which has float32 only; "
                          "leave the flag out")
    require(form)


def _dtype(args: EngineArgs, model: ModelConfig, device: str, hardware: Hardware) -> str:
    wanted = DTYPES[args.dtype]
    cpu = device == "cpu"
    has_bfloat16 = cpu or hardware.capability >= BFLOAT16_CAPABILITY
    overflows = f"activations of {model.architecture} overflow float16"
    if wanted == "float16" and overflows_float16(model.architecture):
        _log.warning("replies may be rubbish: " + overflows, dtype="float16",
                     advice="--dtype " + ("bfloat16" if has_bfloat16 and not cpu else "float32"))
    if wanted == "auto":
        # Without bf16 matrix units a bfloat16 product is two orders slower than float32, so a CPU never picks it.
        wanted = "float32" if cpu else model.dtype
        if wanted == "float16" and overflows_float16(model.architecture):
            if not has_bfloat16:
                raise ConfigError(f"--dtype: the checkpoint's own is float16, which is not safe: {overflows}, "
                                  f"and {hardware.name} has no bfloat16. Use --dtype float32, or half all the same.")
            _log.info("computing in bfloat16: " + overflows, checkpoint="float16")
            wanted = "bfloat16"
    if wanted == "bfloat16" and not has_bfloat16:
        raise ConfigError("--dtype: bfloat16 is only supported on GPUs with compute capability of at least "
                          f"{_dotted(BFLOAT16_CAPABILITY)}; your {hardware.name} GPU has compute capability "
                          f"{_dotted(hardware.capability)}. Use float16 instead: --dtype=half.")
    return wanted


def _gpu_tokens(hardware: Hardware, offline: bool) -> int:
    """Longer steps keep a small model's GPU busy while the host prepares the next, and hold up whoever decodes."""
    return 2 * GPU_STEP_TOKENS if offline and hardware.memory_bytes >= LARGE_GPU_BYTES else GPU_STEP_TOKENS


def _num_steps_ahead(args: EngineArgs, device: str) -> int:
    if args.pipeline_parallel_size > 1:
        return args.pipeline_parallel_size
    if args.async_scheduling is not None:
        return int(args.async_scheduling)
    # A CPU step of one rank runs inside launch(): there is nothing to overlap with.
    return int(device != "cpu" or args.num_ranks > 1)


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


def prepare_cpu(args: EngineArgs) -> None:
    """Thread counts must be set before the first parallel region. All ranks share the cores, unless told how many."""
    if args.cpu_threads is None and "OMP_NUM_THREADS" in os.environ:
        return  # torch has read it
    num_ranks = args.num_ranks * args.data_parallel_size
    torch.set_num_threads(args.cpu_threads or max(1, len(os.sched_getaffinity(0)) // num_ranks))

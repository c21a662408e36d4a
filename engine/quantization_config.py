"""What a checkpoint says of how its weights are quantised, and what `--quantization` may say of it.

Refuses to know torch, so that a checkpoint that cannot be run is refused before anything is read. `METHODS` is the
registry: a method is one file in `quire.engine.quantization`, which reads the weights, and one line here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from quire.engine import compressed_tensors_config
from quire.engine.arguments import shown
from quire.engine.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Quantization:
    method: str  # a name in SCHEMES
    config: dict[str, Any] = field(default_factory=dict)  # as the checkpoint states it
    says: str = ""  # what it is, for people


@dataclass(frozen=True, slots=True)
class Method:
    """`schemes`: "module:function" in `quire.engine.quantization`, called with the configuration. `says`: what the
    configuration asks for, in words; raises ConfigError where that is not supported."""

    schemes: str
    says: Callable[[dict[str, Any]], str]
    aliases: tuple[str, ...] = ()  # other names of the method in checkpoints, and vLLM's of its kernels


def _int(config: dict[str, Any], *names: str, default: int | None = None) -> int:
    """The first of these fields that is there. Raises ConfigError where it is no integer, or missing."""
    for name in names:
        if config.get(name) is not None:
            if type(config[name]) is not int:
                raise ConfigError(f"quantization_config: {name} must be an integer, is {shown(config[name])}")
            return int(config[name])
    if default is None:
        raise ConfigError(f"quantization_config: {names[0]} is missing")
    return default


def _one_of(config: dict[str, Any], name: str, allowed: tuple[Any, ...]) -> Any:
    """That field, or the first that is allowed where it is missing. Raises ConfigError where it is another."""
    value = config.get(name)
    if value is None:
        return allowed[0]
    if value not in allowed:
        raise ConfigError(f"quantization_config: {name} {shown(value)} is not supported; supported are "
                          f"{', '.join(map(str, allowed))}")
    return value


def group_size(config: dict[str, Any], *names: str) -> int:
    """-1: one group over all of a row. Raises ConfigError."""
    size = _int(config, *(names or ("group_size",)), default=-1)
    if size != -1 and size < 1:
        raise ConfigError(f"quantization_config: group_size must be positive, or -1 for whole rows, is {size}")
    return size


def _groups(size: int) -> str:
    return "whole rows" if size == -1 else f"groups of {size}"


def _awq(config: dict[str, Any]) -> str:
    bits = _int(config, "bits", "w_bit", default=4)
    if bits != 4:
        raise ConfigError(f"quantization_config: bits {bits} is not supported with AWQ; supported is 4")
    _one_of(config, "version", ("gemm", "GEMM"))
    _one_of(config, "format", ("gemm", "GEMM"))
    return f"AWQ, 4 bits, {_groups(group_size(config, 'group_size', 'q_group_size'))}"


def _gptq(config: dict[str, Any]) -> str:
    bits = _int(config, "bits")
    if bits not in (2, 3, 4, 8):
        raise ConfigError(f"quantization_config: bits {bits} is not supported with GPTQ; supported are 2, 3, 4 and 8")
    _one_of(config, "checkpoint_format" if config.get("checkpoint_format") else "format", ("gptq", "gptq_v2"))
    _refuse_malformed_exceptions(config.get("dynamic") or {})
    order = ", act order" if config.get("desc_act") else ""
    return f"GPTQ, {bits} bits, {_groups(group_size(config))}{order}"


def _refuse_malformed_exceptions(exceptions: Any) -> None:
    """GPTQModel's `dynamic`: patterns of module names -> what is different there. Raises ConfigError."""
    if not isinstance(exceptions, dict) or not all(isinstance(changes, dict) for changes in exceptions.values()):
        raise ConfigError(f"quantization_config: dynamic must be an object of objects, is {shown(exceptions)}")
    for pattern in exceptions:
        try:
            re.compile(pattern.removeprefix("+:").removeprefix("-:"))
        except re.error as error:
            raise ConfigError(f"quantization_config: dynamic holds {shown(pattern)}, no pattern: {error}") from error


def _fp8(config: dict[str, Any]) -> str:
    _one_of(config, "fmt", ("e4m3",))
    scheme = _one_of(config, "activation_scheme", ("dynamic", "static"))
    block = config.get("weight_block_size")
    if block is None:
        return f"FP8, a scale a tensor or an output, {scheme}"
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n >= 16 for n in block):
        raise ConfigError("quantization_config: weight_block_size must be two integers of at least 16, is "
                          f"{shown(block)}")
    return f"FP8, blocks of {block[0]} by {block[1]}"


def _modelopt(config: dict[str, Any]) -> str:
    stated = config.get("quantization") or config
    supported = ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4")
    return f"ModelOpt's {_one_of(stated, 'quant_algo', supported)}"


def _bitsandbytes(config: dict[str, Any]) -> str:
    if config.get("load_in_8bit"):
        return "bitsandbytes, 8 bits"
    kind = _one_of(config, "bnb_4bit_quant_type", ("nf4",)) if config.get("load_in_4bit") else None
    if kind is None:
        raise ConfigError("quantization_config: neither load_in_4bit nor load_in_8bit is set")
    return "bitsandbytes, nf4" + (" with double quantisation" if config.get("bnb_4bit_use_double_quant") else "")


METHODS: dict[str, Method] = {
    "awq": Method("awq:schemes", _awq, ("awq_marlin",)),
    "gptq": Method("gptq:schemes", _gptq, ("gptq_marlin",)),
    "compressed-tensors": Method("compressed_tensors:schemes", compressed_tensors_config.says),
    "fp8": Method("fp8:schemes", _fp8, ("fbgemm_fp8",)),
    "modelopt": Method("modelopt:schemes", _modelopt, ("modelopt_fp4", "modelopt_fp8")),
    "bitsandbytes": Method("bitsandbytes:schemes", _bitsandbytes),
}
GGUF = "gguf"  # whose files say tensor by tensor
_ONLINE = Quantization("online-fp8", {}, "rounded to FP8 as they are read, a scale an output")
_ASK_FOR_ONLINE = ("fp8", "fp8_per_channel")
SCHEMES = {GGUF: "gguf_blocks:schemes", _ONLINE.method: "fp8:online",
           **{name: method.schemes for name, method in METHODS.items()}}
NAMES = tuple(sorted({GGUF, *_ASK_FOR_ONLINE, *METHODS,
                      *(alias for method in METHODS.values() for alias in method.aliases)}))


# Forms in which a CPU may hold weights, whatever the checkpoint stores: `--cpu-weights`
FLOAT32, FLOAT16, INT8 = CPU_WEIGHTS = ("float32", "float16", "int8")


def quantization_of(config: Any) -> Quantization:
    """What the object `quantization_config` says.

    Raises:
        ConfigError: the method is not known, or not in the form that is stated.
    """
    if not isinstance(config, dict):
        raise ConfigError(f"quantization_config must be an object, is {shown(config)}")
    method = method_of(config.get("quant_method"))
    if method is None:
        raise ConfigError(f"the weights are quantised by {shown(config.get('quant_method'))}, which is not supported; "
                          f"supported are {', '.join(METHODS)} and GGUF files")
    return Quantization(method, config, METHODS[method].says(config))


def method_of(name: Any) -> str | None:
    """Its name in METHODS; None: there is none of that name."""
    return next((method for method, known in METHODS.items() if name == method or name in known.aliases), None)


def agreed(asked: str | None, stated: Quantization | None, path: str) -> Quantization | None:
    """What `--quantization` and the checkpoint say together.

    Raises:
        ConfigError: they differ.
    """
    if not asked:
        return stated
    method = method_of(asked)
    if stated is None and asked in _ASK_FOR_ONLINE:
        return _ONLINE
    if stated is None:
        raise ConfigError(f"--quantization: {asked} was asked for, and the weights at {path} are not quantised; leave "
                          "the flag out")
    if method != stated.method:
        raise ConfigError(f"--quantization: {asked} was asked for, and the weights at {path} are quantised by "
                          f"{stated.method}; leave the flag out")
    return stated


def stays_packed(device: str, asked: str | None, file_format: str) -> bool:
    """Whether products read weights as they are packed. A CPU is many times faster with floats, and so is a GPU with
    many rows of a GGUF file's blocks: there it is as `--quantization` asks, by naming what the checkpoint is."""
    return bool(asked) or (device != "cpu" and file_format != GGUF)


def refuse_unless_gguf(asked: str | None, path: str) -> None:
    """Raises ConfigError where `--quantization` says that a GGUF file is something else."""
    if asked and asked != GGUF:
        raise ConfigError(f"--quantization: {asked} was asked for, and {path} is a GGUF file; leave the flag out")

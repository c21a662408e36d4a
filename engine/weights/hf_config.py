"""Reads config.json and generation_config.json of a Hugging Face checkpoint into a `ModelConfig`.

Names that transformers renamed between versions come out in one form: `hf["rope_parameters"]` always holds `rope_type`
and `rope_theta`. Refuses to know torch and tensors. Called by `quire.engine.weights.locate`; GGUF's reader shares
`model_config`.
"""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quire.engine.errors import ConfigError
from quire.engine.model_config import ModelConfig
from quire.engine.model_registry import FAMILIES, family_of

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "longrope", "yarn")
DTYPES = ("float32", "float16", "bfloat16")
_DEFAULT_POSITIONS = 2048
_MISSING = object()
# generation_config.json's name -> the name in SamplingParams
_SAMPLING_FIELDS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
                    "repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens"}


def read(path: Path, *, with_generation_defaults: bool, model_impl: str = "auto") -> ModelConfig:
    """The model of a checkpoint directory.

    Raises:
        ConfigError: a file is malformed, or describes a model that cannot be run.
    """
    hf = _read_json(path / "config.json")
    generation = _generation(path) if (path / "generation_config.json").is_file() else _Generation()
    if hf.get("quantization_config"):
        method = hf["quantization_config"].get("quant_method", "unknown")
        raise ConfigError(f"{path}: the weights are quantised by {method!r}, which is not supported; quantised models "
                          "are read from GGUF files only")
    eos = generation.eos if generation.eos is not None else hf.get("eos_token_id")
    return model_config(path, "hf", hf, eos, generation.defaults if with_generation_defaults else {}, model_impl)


def with_generation_of(config: ModelConfig, path: Path) -> ModelConfig:
    """`config` with the sampling defaults and the ends that another directory's generation_config.json states.

    Raises:
        ConfigError: the file is malformed.
    """
    generation = _generation(path)
    eos = config.eos_token_ids if generation.eos is None else _as_ids(generation.eos)
    return replace(config, generation_defaults=generation.defaults, eos_token_ids=eos)


def model_config(path: Path, file_format: str, hf: dict[str, Any], eos: int | list[int] | None,
                 generation_defaults: dict[str, Any], model_impl: str = "quire") -> ModelConfig:
    """The facts that the engine needs, out of a configuration in Hugging Face's names."""
    architecture = _architecture(path, hf, model_impl)
    hf = _in_standard_names(path, architecture, hf, model_impl)
    heads = _count(path, hf, "num_attention_heads")
    hidden = _count(path, hf, "hidden_size")
    if not hf.get("head_dim") and hidden % heads:
        raise ConfigError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and "
                          "head_dim is missing")
    rope = _rope_parameters(path, hf)
    positions = hf.get("max_position_embeddings") or _DEFAULT_POSITIONS
    return ModelConfig(
        path=str(path),
        file_format=file_format,
        architecture=architecture,
        dtype=_dtype(hf),
        vocab_size=_count(path, hf, "vocab_size"),
        hidden_size=hidden,
        num_layers=_count(path, hf, "num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=hf.get("num_key_value_heads") or heads,
        head_dim=hf.get("head_dim") or hidden // heads,
        max_position_embeddings=_scaled_positions(positions, rope),
        windows=_windows(hf),
        bos_token_id=hf.get("bos_token_id"),
        eos_token_ids=() if eos is None else _as_ids(eos),
        hf={**hf, "rope_parameters": rope},
        generation_defaults=generation_defaults,
    )


@dataclass(frozen=True, slots=True)
class _Generation:
    defaults: dict[str, Any] = field(default_factory=dict)
    eos: int | list[int] | None = None


def _generation(path: Path) -> _Generation:
    file = path / "generation_config.json"
    stated = _read_json(file)
    eos = stated.get("eos_token_id")
    if eos is not None and not all(type(id) is int for id in _as_ids(eos)):
        raise ConfigError(f"{file}: eos_token_id must be a token id or a list of them, is {eos!r}")
    defaults = {ours: stated[theirs] for theirs, ours in _SAMPLING_FIELDS.items() if stated.get(theirs) is not None}
    return _Generation(defaults, eos)


def _as_ids(eos: int | list[int]) -> tuple[int, ...]:
    return tuple(eos) if isinstance(eos, list) else (eos,)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: must hold a JSON object, holds {type(value).__name__}")
    return value


def _architecture(path: Path, hf: dict[str, Any], model_impl: str) -> str:
    """The first that is a family of ours, else the first that may run otherwise."""
    named = hf.get("architectures") or []
    for name in sorted(named, key=lambda name: name not in FAMILIES):
        if family_of(name, model_impl) is not None:
            return str(name)
    raise ConfigError(f"{path}: architecture {', '.join(map(str, named)) or 'unknown (config.json names none)'} is not "
                      f"supported; supported are {', '.join(sorted(FAMILIES))}")


def _in_standard_names(path: Path, architecture: str, hf: dict[str, Any], model_impl: str) -> dict[str, Any]:
    family = family_of(architecture, model_impl)
    assert family is not None
    if family.facts is None:
        return hf
    module, name = family.facts.split(":")
    try:
        translated: dict[str, Any] = getattr(importlib.import_module(f"quire.engine.model_facts.{module}"), name)(hf)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return translated


def _windows(hf: dict[str, Any]) -> tuple[int | None, ...]:
    windows = tuple(hf.get("layer_windows") or ())
    return windows if any(window is not None for window in windows) else ()


def _count(path: Path, hf: dict[str, Any], name: str) -> int:
    value = hf.get(name, _MISSING)
    if not isinstance(value, int) or value < 1:
        raise ConfigError(f"{path}: {name} must be a positive integer, "
                          f"{'is missing' if value is _MISSING else f'is {value!r}'}")
    return value


def _dtype(hf: dict[str, Any]) -> str:
    name = str(hf.get("dtype") or hf.get("torch_dtype") or "float32").removeprefix("torch.")
    return name if name in DTYPES else "float32"


def _rope_parameters(path: Path, hf: dict[str, Any]) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`; before, `rope_theta` stood alone and `rope_scaling` held the rest."""
    rope = dict(hf.get("rope_scaling") or {}) | dict(hf.get("rope_parameters") or {})
    rope["rope_type"] = rope.get("rope_type") or rope.pop("type", None) or "default"
    rope["rope_theta"] = float(rope.get("rope_theta") or hf.get("rope_theta") or 10000.0)
    rope.setdefault("partial_rotary_factor", hf.get("partial_rotary_factor") or 1.0)
    if rope["rope_type"] == "su":  # Phi-3's first word for it
        rope["rope_type"] = "longrope"
    if rope["rope_type"] not in ROPE_TYPES:
        raise ConfigError(f"{path}: rope scaling of type {rope['rope_type']!r} is not supported; supported are "
                          f"{', '.join(ROPE_TYPES)}")
    required = {"default": (), "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",), "longrope": (),
                "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
    for name in required[rope["rope_type"]]:
        if not isinstance(rope.get(name), (int, float)) or rope[name] <= 0:
            raise ConfigError(f"{path}: rope scaling of type {rope['rope_type']!r} needs a positive {name}, "
                              f"has {rope.get(name)!r}")
    positions = hf.get("max_position_embeddings") or _DEFAULT_POSITIONS
    if rope["rope_type"] in ("yarn", "dynamic") and not rope.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = positions
    if rope["rope_type"] == "longrope":
        original = rope.get("original_max_position_embeddings") or hf.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = original or positions
        rope["factor"] = rope.get("factor") or positions / rope["original_max_position_embeddings"]
        for name in ("short_factor", "long_factor"):
            if not isinstance(rope.get(name), list):
                raise ConfigError(f"{path}: rope scaling of type 'longrope' needs a list {name}")
    return rope


def _scaled_positions(positions: int, rope: dict[str, Any]) -> int:
    """How far the scaling stretches the model. llama3's max_position_embeddings is already the stretched one."""
    if rope["rope_type"] in ("linear", "dynamic"):
        return int(positions * rope["factor"])
    if rope["rope_type"] == "yarn":
        return int(rope["original_max_position_embeddings"] * rope["factor"])
    return positions

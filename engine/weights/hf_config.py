"""Reads config.json and generation_config.json of a Hugging Face checkpoint into a `ModelConfig`.

Names that transformers renamed between versions come out in one form: `hf["rope_parameters"]` always holds `rope_type`
and `rope_theta`. Refuses to know torch and tensors. Called by `quire.engine.weights.locate`; GGUF's reader shares
`model_config`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError, InvalidRequestError
from quire.engine.model_config import ModelConfig
from quire.engine.model_facts.fields import is_number, refuse_malformed, refuse_no_count
from quire.engine.model_registry import ARCHITECTURES_OF_TYPES, BASE_MODELS, FAMILIES, OTHER, Family, family_of
from quire.engine.quantization_config import Quantization, quantization_of
from quire.engine.sampling_params import SamplingParams
from quire.engine.weights.image_limit import with_image_limit
from quire.engine.weights.json_file import read_json
from quire.engine.weights.pooling_facts import pooling

ROPE_TYPES = ("default", "linear", "dynamic", "llama3", "longrope", "yarn")
DTYPES = ("float32", "float16", "bfloat16")
# Where null is not as good as nothing: no window, though there is one where nothing is said; four times hidden_size.
_NULL_SAYS = ("sliding_window", "n_inner")
_OURS = ("layer_windows", "local_rope_parameters")  # names that `model_facts` fills in, and no file has
_DEFAULT_POSITIONS, _MOST_POSITIONS = 2048, 2**31 - 1  # of 32 bits, on the device
_DEFAULT_THETA = 10000.0
_ROPE_NEEDS = {"linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
               "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")}
_ROPE_LISTS = ("short_factor", "long_factor")
_ROPE_NUMBERS = {  # what they are above, and at most
    "rope_theta": (1, 10**15), "partial_rotary_factor": (0, 1), "factor": (0, 2**20),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "attention_factor", "beta_fast", "beta_slow"), (0, 2**20)),
    "original_max_position_embeddings": (1, _MOST_POSITIONS),
    **dict.fromkeys(("mscale", "mscale_all_dim", "llama_4_scaling_beta"), (-1, 2**20))}
# Of tools that write no quantization_config into config.json -> their quant_method
_QUANTIZATION_FILES = {"quant_config.json": "awq", "quantize_config.json": "gptq",
                       "hf_quant_config.json": "modelopt"}
# generation_config.json's name -> the name in SamplingParams
_SAMPLING_FIELDS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
                    "repetition_penalty": "repetition_penalty", "max_new_tokens": "max_tokens"}


def read(path: Path, *, with_generation_defaults: bool, model_impl: str = "auto") -> ModelConfig:
    """The model of a checkpoint directory.

    Raises:
        ConfigError: a file is malformed, or describes a model that cannot be run.
    """
    hf = read_json(path / "config.json")
    generation = _Generation()
    if (path / "generation_config.json").is_file():
        generation = _generation(path, with_defaults=with_generation_defaults)
    quantization = _quantization(path, hf)
    eos = None if generation.eos is None else list(generation.eos)
    config = model_config(path, "hf", hf, eos, generation.defaults, model_impl)
    return replace(config, pooling=pooling(path, hf), vision=with_image_limit(path, config.vision),
                   quantization=quantization)


def _quantization(path: Path, hf: dict[str, Any]) -> Quantization | None:
    """What config.json says, or else the file beside it that a tool wrote. Raises ConfigError."""
    config = hf.get("quantization_config") or hf.get("compression_config")
    for file, method in _QUANTIZATION_FILES.items():
        if not config and (path / file).is_file():
            config = {"quant_method": method, **read_json(path / file)}
    try:
        return quantization_of(config) if config else None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def with_generation_of(config: ModelConfig, path: Path) -> ModelConfig:
    """`config` with the sampling defaults and the ends that another directory's generation_config.json states.

    Raises:
        ConfigError: the file is malformed.
    """
    generation = _generation(path, with_defaults=True)
    eos = config.eos_token_ids if generation.eos is None else generation.eos
    return replace(config, generation_defaults=generation.defaults, eos_token_ids=eos)


def model_config(path: Path, file_format: str, hf: dict[str, Any], eos: int | list[int] | None,
                 generation_defaults: dict[str, Any], model_impl: str = "quire") -> ModelConfig:
    """The facts that the engine needs, out of a configuration in Hugging Face's names.

    Raises:
        ConfigError: a field is missing, holds what it cannot hold, or asks for what is not supported.
    """
    architecture, family = _architecture(path, hf, model_impl)
    try:
        return _model_config(path, file_format, hf, architecture, family, eos, generation_defaults)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _model_config(path: Path, file_format: str, hf: dict[str, Any], architecture: str, family: Family,
                  eos: int | list[int] | None, generation_defaults: dict[str, Any]) -> ModelConfig:
    if family is not OTHER and hf.get("is_causal") is False:  # of others, a trial tells what they attend to
        raise ConfigError("is_causal is false, by which tokens see those behind them; that is not supported, Quire "
                          "runs decoders")
    hf = _in_standard_names(hf, family)
    required = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    for name in required if family is OTHER else (*required, "intermediate_size"):
        if hf.get(name) is None:
            raise ConfigError(f"{name} must be a positive integer, is missing")
    for name in (*required, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        if hf.get(name) is not None:
            refuse_no_count(name, hf[name])
    heads, hidden = hf["num_attention_heads"], hf["hidden_size"]
    kv_heads = hf.get("num_key_value_heads") or heads
    if hf.get("head_dim") is None and hidden % heads:
        raise ConfigError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}, and head_dim is "
                          "missing")
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    positions = hf.get("max_position_embeddings") or _DEFAULT_POSITIONS
    rope = _rope_parameters(hf, positions)
    hf = {**hf, "rope_parameters": rope}
    if local := hf.get("local_rope_parameters"):
        hf["local_rope_parameters"] = _checked_rope({"rope_theta": _DEFAULT_THETA, **local}, hf, positions)
    return ModelConfig(
        path=str(path),
        file_format=file_format,
        architecture=architecture,
        dtype=_dtype(hf),
        vocab_size=hf["vocab_size"],
        hidden_size=hidden,
        num_layers=hf["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hf.get("head_dim") or hidden // heads,
        max_position_embeddings=min(_scaled_positions(positions, rope), _MOST_POSITIONS),
        windows=_windows(hf),
        bos_token_id=next(iter(_token_ids("bos_token_id", hf.get("bos_token_id"))), None),
        eos_token_ids=_token_ids("eos_token_id", hf.get("eos_token_id") if eos is None else eos),
        hf=hf,
        generation_defaults=generation_defaults,
        vision=None if family.vision is None else _of_family(family.vision)(hf),
    )


@dataclass(frozen=True, slots=True)
class _Generation:
    defaults: dict[str, Any] = field(default_factory=dict)
    eos: tuple[int, ...] | None = None


def _generation(path: Path, *, with_defaults: bool) -> _Generation:
    file = path / "generation_config.json"
    stated = read_json(file)
    defaults = {ours: stated[theirs] for theirs, ours in _SAMPLING_FIELDS.items()
                if with_defaults and stated.get(theirs) is not None}
    eos = stated.get("eos_token_id")
    try:
        SamplingParams(**defaults)
        return _Generation(defaults, None if eos is None else _token_ids("eos_token_id", eos))
    except InvalidRequestError as error:  # as every request would be that leaves it to the file
        raise ConfigError(f"{file}: {error} Correct it, or leave its defaults out: --generation-config vllm") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error


def _token_ids(name: str, stated: Any) -> tuple[int, ...]:
    """In order, each once. Negative numbers stand for no token."""
    ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
    if not all(type(id) is int for id in ids):
        raise ConfigError(f"{name} must be a token id or a list of them, is {shown(stated)}")
    return tuple(dict.fromkeys(id for id in ids if id >= 0))


def _architecture(path: Path, hf: dict[str, Any], model_impl: str) -> tuple[str, Family]:
    """The first that is a family of ours, else the first that may run otherwise."""
    named = hf.get("architectures") or _by_type(hf)
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ConfigError(f"{path}: architectures must be a list of names, is {shown(named)}")
    for name in sorted(named, key=lambda name: name not in FAMILIES and name not in BASE_MODELS):
        if (family := family_of(name, model_impl)) is not None:
            return name, family
    raise ConfigError(f"{path}: architecture {', '.join(named) or 'unknown (config.json names none)'} is not "
                      f"supported; supported are {', '.join(sorted(FAMILIES))}")


def _by_type(hf: dict[str, Any]) -> list[str]:
    kind = hf.get("model_type")
    return [ARCHITECTURES_OF_TYPES[kind]] if isinstance(kind, str) and kind in ARCHITECTURES_OF_TYPES else []


def _in_standard_names(hf: dict[str, Any], family: Family) -> dict[str, Any]:
    hf = {name: value for name, value in hf.items() if name not in _OURS}
    if family is not OTHER:  # whose fields may hold anything, under the same names
        refuse_malformed(hf)
        hf = {name: value for name, value in hf.items() if value is not None or name in _NULL_SAYS}
    if family.facts is None:
        return hf
    translated: dict[str, Any] = _of_family(family.facts)(hf)
    return translated


def _of_family(place: str) -> Callable[[dict[str, Any]], Any]:
    """The function that a registry's line names."""
    module, name = place.split(":")
    function: Callable[[dict[str, Any]], Any] = getattr(
        importlib.import_module(f"quire.engine.model_facts.{module}"), name)
    return function


def _windows(hf: dict[str, Any]) -> tuple[int | None, ...]:
    windows = tuple(hf.get("layer_windows") or ())
    return windows if any(window is not None for window in windows) else ()


def _dtype(hf: dict[str, Any]) -> str:
    name = str(hf.get("dtype") or hf.get("torch_dtype") or "float32").removeprefix("torch.")
    return name if name in DTYPES else "float32"


def _rope_parameters(hf: dict[str, Any], positions: int) -> dict[str, Any]:
    """transformers 5 writes `rope_parameters`; before, `rope_theta` stood alone and `rope_scaling` held the rest."""
    rope = dict(hf.get("rope_scaling") or {}) | dict(hf.get("rope_parameters") or {})
    for name, default in (("rope_theta", _DEFAULT_THETA), ("partial_rotary_factor", 1.0)):
        if rope.get(name) is None:
            rope[name] = default if hf.get(name) is None else hf[name]
    return _checked_rope(rope, hf, positions)


def _checked_rope(stated: dict[str, Any], hf: dict[str, Any], positions: int) -> dict[str, Any]:
    rope = dict(stated)
    kind = rope.get("rope_type") or rope.pop("type", None) or "default"
    if kind == "su":  # Phi-3's first word for it
        kind = "longrope"
    if kind not in ROPE_TYPES:
        raise ConfigError(f"rope scaling of type {shown(kind)} is not supported; supported are {', '.join(ROPE_TYPES)}")
    rope["rope_type"] = kind
    for name, value in rope.items():
        _refuse_malformed_rope(kind, name, value)
    for name in _ROPE_NEEDS.get(kind, ()):
        if rope.get(name) is None:
            raise ConfigError(f"rope scaling of type {kind!r} needs a positive {name}")
    rope["rope_theta"] = float(rope["rope_theta"])
    if kind in ("yarn", "dynamic") and not rope.get("original_max_position_embeddings"):
        rope["original_max_position_embeddings"] = positions
    if kind == "longrope":
        original = rope.get("original_max_position_embeddings") or hf.get("original_max_position_embeddings")
        rope["original_max_position_embeddings"] = original or positions
        rope["factor"] = rope.get("factor") or positions / rope["original_max_position_embeddings"]
        for name in _ROPE_LISTS:
            if rope.get(name) is None:
                raise ConfigError(f"rope scaling of type 'longrope' needs a list {name}")
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        raise ConfigError(f"rope scaling of type 'llama3' needs a low_freq_factor below its high_freq_factor, has "
                          f"{rope['low_freq_factor']} and {rope['high_freq_factor']}")
    return rope


def _refuse_malformed_rope(kind: str, name: str, value: Any) -> None:
    """Raises ConfigError. What is not known here is not read."""
    if isinstance(value, dict):
        raise ConfigError(f"rope_parameters holds an object {name}, as of models whose layers turn in several ways; "
                          "of this architecture that is not supported")
    if value is None:
        return
    if name in _ROPE_LISTS:
        is_right, what = isinstance(value, list) and all(is_number(x) and x > 0 for x in value), "a list of numbers"
    elif name in _ROPE_NUMBERS:
        above, most = _ROPE_NUMBERS[name]
        is_right, what = is_number(value) and above < value <= most, f"a number above {above}, and {most} at most"
    else:
        return
    if not is_right:
        raise ConfigError(f"rope scaling of type {kind!r}: {name} must be {what}, is {shown(value)}")


def _scaled_positions(positions: int, rope: dict[str, Any]) -> int:
    """How far the scaling stretches the model. llama3's max_position_embeddings is already the stretched one."""
    if rope["rope_type"] in ("linear", "dynamic"):
        return int(positions * rope["factor"])
    if rope["rope_type"] == "yarn":
        return int(rope["original_max_position_embeddings"] * rope["factor"])
    return positions

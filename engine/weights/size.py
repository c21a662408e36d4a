"""How much memory a model's weights will take, from what its files say of themselves, before any of them is read.

Imports no torch. Called by the engine before it loads, and by `quire doctor`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quire.engine.model_config import ModelConfig
from quire.engine.weights.gguf_parts import read_model
from quire.engine.weights.index import checkpoint_files, has_checkpoint
from quire.engine.weights.safetensors_header import header_of

_FLOATS = ("F64", "F32", "F16", "BF16")
_PACKED_BYTES = {"I64": 8, "I32": 4}  # others: 1
_EXPERT = ".experts."
_CODES = ("weight", "qweight", "weight_packed")
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1, "int8": 1}


def weight_bytes(model: ModelConfig, dtype: str, *, dummy: bool = False, packed: bool = True) -> int:
    """As `dtype`: a GGUF file's numbers are unpacked, floats of another type are converted. With `packed`, what a
    checkpoint of safetensors has packed stays so, but for experts.

    Raises WeightError for files that do not say it.
    """
    if model.quantization is not None and not dummy and has_checkpoint(Path(model.path), "model.safetensors"):
        bits = model.quantization.config.get("bits") or 4
        per_code = {"I32": 32 // bits, "U8": 2}  # weights in a number of that type; in others one
        return sum(_held_bytes(name, entry, ITEM_BYTES[dtype], per_code, packed)
                   for name, entry in _entries(Path(model.path)))
    return _num_elements(model, dummy) * ITEM_BYTES[dtype]


def cpu_weight_bytes(model: ModelConfig, dtype: str, form: str, *, dummy: bool = False, packed: bool = True) -> int:
    """As `weight_bytes`, with products in the form of `--cpu-weights`; a table of embeddings and experts stay floats.

    Raises WeightError for files that do not say it.
    """
    whole = weight_bytes(model, dtype, dummy=dummy, packed=packed)
    if form == "float32" or _count(model, "num_experts", "num_local_experts"):
        return whole
    table = 0 if model.file_format == "gguf" else model.vocab_size * model.hidden_size  # a GGUF file's stays as stored
    return whole * ITEM_BYTES[form] // ITEM_BYTES[dtype] + table * (ITEM_BYTES[dtype] - ITEM_BYTES[form])


def kv_block_bytes(model: ModelConfig, kv_type: str, block_size: int) -> int:
    """Of a block that has room for as many layers as a KV group has, of all ranks. `kv_type`: config.kv_type's."""
    return 2 * model.kv_groups.depth * block_size * model.num_kv_heads * model.head_dim * ITEM_BYTES[kv_type]


def _num_elements(model: ModelConfig, dummy: bool) -> int:
    if dummy:
        return _num_dummy_elements(model)
    path = Path(model.path)
    if model.file_format == "gguf":
        return sum(math.prod(tensor.shape) for tensor in read_model(path).header.tensors.values())
    if not has_checkpoint(path, "model.safetensors") and has_checkpoint(path, "pytorch_model.bin"):
        files = checkpoint_files(path, "pytorch_model.bin")
        return sum(file.stat().st_size for file in files) // ITEM_BYTES[model.dtype]  # hardly anything else is in them
    return sum(math.prod(entry["shape"]) for _, entry in _entries(path))


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of each tensor its name, "shape" and "dtype"."""
    for file in checkpoint_files(path, "model.safetensors"):
        table, _ = header_of(file)
        yield from table.items()


def _held_bytes(name: str, entry: dict[str, Any], item_bytes: int, per_code: dict[str, int], packed: bool) -> int:
    count = math.prod(entry["shape"])
    if entry["dtype"] in _FLOATS:
        return count * item_bytes
    if name.endswith(_CODES) and (_EXPERT in name or not packed):
        return count * per_code.get(entry["dtype"], 1) * item_bytes
    return count * _PACKED_BYTES.get(entry["dtype"], 1)


def _num_dummy_elements(model: ModelConfig) -> int:
    """Random weights come from no file: the matrices of a layer as all families here have them, and the embedding."""
    heads, kv = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    num_experts = _count(model, "num_experts", "num_local_experts") or 1
    inner = _count(model, *["moe_intermediate_size"][:num_experts - 1], "intermediate_size")
    layer = model.hidden_size * (2 * heads + 2 * kv + 3 * inner * num_experts)
    tables = 1 if model.hf.get("tie_word_embeddings", False) else 2
    return model.num_layers * layer + tables * model.vocab_size * model.hidden_size


def _count(model: ModelConfig, *names: str) -> int:
    """The first that is one: of families that transformers runs, a field may hold a list of all layers' own."""
    return next((value for name in names if type(value := model.hf.get(name)) is int and value > 0), 0)

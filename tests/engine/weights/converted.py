"""Writes a checkpoint of transformers' as the GGUF file that llama.cpp's converter would make of it.

Metadata goes through the package gguf's own methods, and names through its table. What the converter does to tensors is
stated here from the sides of the two programs that compute with them, not from our reader's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file
from transformers import PretrainedConfig, PreTrainedModel

F32, Q8_0 = gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0
Tensors = Iterator[tuple[str, np.ndarray]]
# Families before there were KV heads or MLPs of other widths; the converter knows this of them by itself.
_OLDER = ("bloom", "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "mpt")
_SCALING = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN,
            "longrope": gguf.RopeScalingType.LONGROPE}


def pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """transformers turns dimension i of a head with i + half (rotate_half). Of architectures where ggml turns
    neighbours, 2 i and 2 i + 1, the converter moves the rows of q and k there."""
    return np.concatenate([np.stack(np.split(head, 2), 1).reshape(head.shape) for head in np.split(weight, heads)])


def one_by_one(weight: np.ndarray, kv_heads: int, group: int) -> np.ndarray:
    """transformers cuts the product of query_key_value into KV heads, and each into its `group` queries, k and v; ggml
    takes all of q, then all of k, then all of v."""
    heads = np.split(weight, kv_heads * (group + 2))
    kinds = [("q" if i % (group + 2) < group else "kv"[i % (group + 2) - group]) for i in range(len(heads))]
    return np.concatenate([head for wanted in "qkv" for head, kind in zip(heads, kinds) if kind == wanted])


def _same(name: str, data: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    return data


def _with_pairs(name: str, data: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    if ".q_proj." in name:
        return pairs(data, config.num_attention_heads)
    return pairs(data, config.num_key_value_heads) if ".k_proj." in name else data


def _with_one_by_one(name: str, data: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    if "query_key_value" not in name:
        return data
    heads = config.num_attention_heads
    kv_heads = heads
    if config.model_type == "falcon":
        kv_heads = config.num_kv_heads if config.new_decoder_architecture else 1
    return one_by_one(data, kv_heads, heads // kv_heads)


def _with_one_added(name: str, data: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    """transformers multiplies by 1 + weight, ggml by weight."""
    return data + 1 if name.endswith("norm.weight") else data


def _with_usual_matrices(name: str, data: np.ndarray, config: PretrainedConfig) -> np.ndarray:
    """transformers' Conv1D has [in, out], ggml's products [out, in]."""
    return np.ascontiguousarray(data.T) if data.ndim == 2 and ".h." in name else data


@dataclass(frozen=True)
class Converter:
    arch: str
    tensor: Callable[[str, np.ndarray, PretrainedConfig], np.ndarray] = _same
    facts: Callable[[gguf.GGUFWriter, PretrainedConfig], None] = lambda writer, config: None


def _head_dim(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)


def _rotary(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(int(head_dim * (_rope(config).get("partial_rotary_factor") or 1.0)))


def _falcon(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_head_count_kv(config.num_kv_heads if config.new_decoder_architecture else 1)


def _gemma2(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _head_dim(writer, config)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)


def _gemma3(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _head_dim(writer, config)
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


def _glm4(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _head_dim(writer, config)
    _rotary(writer, config)


def _gpt_neox(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _rotary(writer, config)
    writer.add_parallel_residual(config.use_parallel_residual)


def _granite(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


def _llama(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _rotary(writer, config)
    if getattr(config, "head_dim", None):
        _head_dim(writer, config)
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":  # as a divisor of each frequency
        dim = config.hidden_size // config.num_attention_heads
        frequencies = rope["rope_theta"] ** (-np.arange(0, dim, 2) / dim)
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = np.clip((turns - low) / (high - low), 0, 1)
        writer.add_tensor("rope_freqs.weight", (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32))


def _mixtral(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _llama(writer, config)
    writer.add_expert_count(config.num_local_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)


def _ministral3(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _llama(writer, config)
    writer.add_rope_scaling_yarn_log_mul(config.rope_parameters["mscale_all_dim"])
    writer.add_attn_temperature_scale(config.rope_parameters["llama_4_scaling_beta"])


def _mpt(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_max_alibi_bias(config.attn_config.alibi_bias_max)
    if config.attn_config.clip_qkv is not None:
        writer.add_clamp_kqv(config.attn_config.clip_qkv)


def _olmo2(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])


def _phi3(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _rotary(writer, config)
    writer.add_sliding_window(config.sliding_window or 0)
    rope = config.rope_parameters
    writer.add_rope_scaling_orig_ctx_len(rope.get("original_max_position_embeddings", config.max_position_embeddings))
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        growth = np.log(config.max_position_embeddings / original) / np.log(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + growth)))
        for kind in ("long", "short"):
            writer.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))


def _qwen3moe(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _head_dim(writer, config)
    writer.add_expert_count(config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_expert_feed_forward_length(config.moe_intermediate_size)


# transformers' model type -> what becomes of it
CONVERTERS = {
    "bloom": Converter("bloom", _with_one_by_one),
    "falcon": Converter("falcon", _with_one_by_one, _falcon),
    "gemma": Converter("gemma", _with_one_added, _head_dim),
    "gemma2": Converter("gemma2", _with_one_added, _gemma2),
    "gemma3_text": Converter("gemma3", _with_one_added, _gemma3),
    "glm4": Converter("glm4", facts=_glm4),
    "gpt2": Converter("gpt2", _with_usual_matrices),
    "gpt_bigcode": Converter("starcoder", facts=lambda writer, config: writer.add_head_count_kv(1)),
    "gpt_neox": Converter("gptneox", _with_one_by_one, _gpt_neox),
    "granite": Converter("granite", _with_pairs, _granite),
    "llama": Converter("llama", _with_pairs, _llama),
    "ministral3": Converter("mistral3", _with_pairs, _ministral3),
    "mistral": Converter("llama", _with_pairs, _llama),
    "mixtral": Converter("llama", _with_pairs, _mixtral),
    "mpt": Converter("mpt", facts=_mpt),
    "olmo2": Converter("olmo2", facts=_olmo2),
    "olmo3": Converter("olmo2", facts=_olmo2),
    "phi3": Converter("phi3", facts=_phi3),
    "qwen2": Converter("qwen2"),
    "qwen3": Converter("qwen3", facts=_head_dim),
    "qwen3_moe": Converter("qwen3moe", facts=_qwen3moe),
    "smollm3": Converter("smollm3", _with_pairs, _rotary),
}


def convert(directory: Path, model: PreTrainedModel, file: Path, arch: str = "",
            kind: gguf.GGMLQuantizationType = F32, tensors_a_file: int = 0, fuse_qkv: bool = False) -> None:
    """Writes `file`, or its parts, from the checkpoint of `model` in `directory`. `arch`: if it is to be another's.
    `fuse_qkv`: as the converter does where it is asked to."""
    config = model.config
    converter = CONVERTERS[config.model_type]
    arch = arch or converter.arch
    writer = gguf.GGUFWriter(file, arch, split_max_tensors=tensors_a_file)
    _describe(writer, config)
    converter.facts(writer, config)
    tensors = {_gguf_name(arch, config, name): converter.tensor(name, data, config)
               for name, data in _stacked_experts(load_file(directory / "model.safetensors"))}
    if fuse_qkv:
        for name in [name for name in tensors if ".attn_q." in name]:
            parts = [tensors.pop(name.replace("attn_q", f"attn_{part}")) for part in "qkv"]
            tensors[name.replace("attn_q", "attn_qkv")] = np.concatenate(parts)
    for name, data in tensors.items():
        stored = kind if data.ndim > 1 and data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else F32
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(data), stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    """What all files say."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    is_older = config.model_type in _OLDER
    inner = 4 * config.hidden_size if is_older and config.model_type != "gpt_neox" else config.intermediate_size
    writer.add_feed_forward_length(inner)
    writer.add_context_length(getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", 2048))
    writer.add_head_count(config.num_attention_heads)
    if not is_older:
        writer.add_head_count_kv(config.num_key_value_heads)
    if eps := getattr(config, "rms_norm_eps", None):
        writer.add_layer_norm_rms_eps(eps)
    else:
        writer.add_layer_norm_eps(getattr(config, "layer_norm_eps", None) or config.layer_norm_epsilon)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    rope = _rope(config)
    if rope.get("rope_theta"):
        writer.add_rope_freq_base(rope["rope_theta"])
    scaling = _SCALING.get(rope.get("rope_type", ""))
    if scaling is not None and config.model_type != "phi3":  # of which the converter says it by tensors alone
        writer.add_rope_scaling_type(scaling)
        writer.add_rope_scaling_factor(rope["factor"])
        if scaling == gguf.RopeScalingType.YARN:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            for key, add in (("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
                             ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
                             ("beta_slow", writer.add_rope_scaling_yarn_beta_slow)):
                if rope.get(key) is not None:
                    add(rope[key])


def _rope(config: PretrainedConfig) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or {}
    return rope.get("full_attention", rope)


def _stacked_experts(tensors: dict[str, np.ndarray]) -> Tensors:
    """Experts of one layer in one tensor, where the checkpoint has one each."""
    experts: dict[str, list[np.ndarray]] = {}
    for name, data in tensors.items():
        before, found, after = name.partition(".experts.")
        if not found:
            yield name, data
            continue
        number, _, rest = after.partition(".")
        experts.setdefault(f"{before}.experts.{rest}", []).append(data)
        assert int(number) == len(experts[f"{before}.experts.{rest}"]) - 1, "in order"
    for name, data in experts.items():
        yield name, np.stack(data)


def _gguf_name(arch: str, config: PretrainedConfig, name: str) -> str:
    if arch == "bloom":  # whose names the converter cuts first
        name = name.removeprefix("transformer.")
    found = _name_table(arch, config.num_hidden_layers).get_name(name, try_suffixes=(".weight", ".bias"))
    assert found is not None, name
    return str(found)


@cache
def _name_table(arch: str, layers: int) -> gguf.TensorNameMap:
    return gguf.get_tensor_name_map(next(key for key, known in gguf.MODEL_ARCH_NAMES.items() if known == arch), layers)

"""What llama.cpp's converter makes of each family: one entry an architecture of GGUF files.

An entry says Hugging Face's architecture, the facts that only this family's files hold, and the tensors that the
converter did not copy as they were. What all files say alike is `gguf_config`'s; how a layout is undone,
`gguf_layout`'s. What no file says, such as the window of the first Mistral or an unusual activation, is lost. Imports
neither torch nor numpy: HTTP workers read configurations too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError
from quire.engine.model_facts.fields import is_number
from quire.engine.model_facts.windows import FULL, SLIDING
from quire.engine.weights.gguf_metadata import TensorInfo, read_float32
from quire.engine.weights.gguf_parts import GgufModel

# pairs: the rows of each head of q or k lie (pair, half) instead of (half, pair).
# stacked: q of all heads, then k, then v, where Hugging Face's tensor goes KV head by KV head.
# packed: q and k in pairs and v, each a tensor, where Hugging Face has one.
# turned: matrices [out, in] instead of GPT-2's [in, out].
# plus_one: 1 was added.
Layout = Literal["pairs", "stacked", "packed", "turned", "plus_one"]
RMS, LAYER_NORM = "rms_norm_eps", "layer_norm_eps"


@dataclass(frozen=True, slots=True)
class Described:
    """What a model's files say of it, in the words of `arch`."""

    arch: str
    model: GgufModel

    @property
    def path(self) -> Path:
        return self.model.files[0]

    @property
    def metadata(self) -> dict[str, Any]:
        return self.model.header.metadata

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        return self.model.header.tensors

    def get(self, key: str, default: Any = None) -> Any:
        """The architecture's own value of that key. A list that holds one number for all layers is that number."""
        value = self.metadata.get(f"{self.arch}.{key}", default)
        if not isinstance(value, list):
            return value
        if not value or any(item != value[0] for item in value):
            raise ConfigError(f"{self.path}: {self.arch}.{key} is {shown(value)}, which differs between layers; that "
                              "is not supported")
        return value[0]

    def need(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise ConfigError(f"{self.path}: {self.arch}.{key} is missing from the metadata")
        if not is_number(value) or value <= 0:
            raise ConfigError(f"{self.path}: {self.arch}.{key} is {shown(value)}; it must be a positive number")
        return value

    @property
    def head_dim(self) -> int:
        if self.get("attention.key_length") is not None:
            return int(self.need("attention.key_length"))
        hidden, heads = self.need("embedding_length"), self.need("attention.head_count")
        if hidden % heads:
            raise ConfigError(f"{self.path}: {self.arch}.embedding_length {hidden} is not a multiple of "
                              f"{self.arch}.attention.head_count {heads}")
        return int(hidden // heads)

    def rope(self) -> dict[str, Any]:
        """rope_parameters. Llama 3's scaling is not among them: it is a tensor, rope_freqs.weight, that models read."""
        rope: dict[str, Any] = {"rope_theta": self.get("rope.freq_base", 10000.0)}
        if self.get("rope.dimension_count"):
            rope["partial_rotary_factor"] = _share(self.need("rope.dimension_count"), self.head_dim)
        factor = self.get("rope.scaling.factor") or self.get("rope.scale_linear") or 1.0
        kind = self.get("rope.scaling.type") or ("linear" if factor != 1.0 else "none")
        if original := self.get("rope.scaling.original_context_length"):
            rope["original_max_position_embeddings"] = original
        if "rope_factors_long.weight" in self.tensors:
            return {**rope, "rope_type": "longrope", "attention_factor": self.get("rope.scaling.attn_factor"),
                    "long_factor": self._numbers("rope_factors_long.weight"),
                    "short_factor": self._numbers("rope_factors_short.weight")}
        if kind == "none":
            return rope
        for ours, theirs in _YARN.items():
            if value := self.get(theirs):
                rope[ours] = value
        if "mscale_all_dim" in rope:
            rope["mscale"] = 1.0  # files do not say it; llama.cpp takes it for 1
        return {**rope, "rope_type": kind, "factor": factor}

    def windows(self) -> dict[str, Any]:
        """The window, and which layers have it: a flag for each, or how far those without it are apart."""
        window = self.get("attention.sliding_window")
        if window is None:
            return {}
        pattern = self.metadata.get(f"{self.arch}.attention.sliding_window_pattern")
        if isinstance(pattern, list):
            return {"sliding_window": window or None,
                    "layer_types": [SLIDING if slides else FULL for slides in pattern]}
        return {"sliding_window": window or None, "sliding_window_pattern": pattern}

    def _numbers(self, name: str) -> list[float]:
        if name not in self.tensors:
            raise ConfigError(f"{self.path}: tensor {name!r} is missing")
        tensor = self.tensors[name]
        return read_float32(self.model.files[tensor.part], tensor)


_YARN = {"attention_factor": "rope.scaling.yarn_attn_factor", "beta_fast": "rope.scaling.yarn_beta_fast",
         "beta_slow": "rope.scaling.yarn_beta_slow", "mscale_all_dim": "rope.scaling.yarn_log_multiplier"}


@dataclass(frozen=True, slots=True)
class Form:
    """`facts`: what is to be added to the common configuration, or to replace there. `layouts`: of tensors whose
    Hugging Face name ends so, before .weight or .bias. `others`: architectures that `facts` may say instead, or whose
    models are written as if they were this one's."""

    architecture: str
    facts: Callable[[Described], dict[str, Any]] = lambda file: {}
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    eps: str = RMS
    others: tuple[str, ...] = ()


def _share(part: int, whole: int) -> float:
    """A fraction of which int(fraction * whole) is `part`: the nearest one may come out a hair too small."""
    share = part / whole
    return share if int(share * whole) == part else math.nextafter(share, 1.0)


def _baichuan(file: Described) -> dict[str, Any]:
    """As llama.cpp tells them apart: the 7B models, which have 32 layers, turn positions; others have ALiBi."""
    return {"architectures": ["BaiChuanForCausalLM" if file.need("block_count") == 32 else "BaichuanForCausalLM"]}


def _falcon(file: Described) -> dict[str, Any]:
    """40B and 180B have a second norm; 11B is as new as they are, with one; 7B has a single KV head."""
    kv_heads = file.need("attention.head_count_kv")
    has_two = "blk.0.attn_norm_2.weight" in file.tensors
    return {"new_decoder_architecture": has_two or kv_heads > 1, "num_kv_heads": kv_heads,
            "num_ln_in_parallel_attn": 2 if has_two else 1}


def _gemma2(file: Described) -> dict[str, Any]:
    return {**_soft_caps(file, 50.0, 30.0), **file.windows(), "query_pre_attn_scalar": _query_scalar(file, 46)}


def _gemma3(file: Described) -> dict[str, Any]:
    """Files of models without windows do not name any."""
    local = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", 10000.0)}
    return {"sliding_window": None, **_soft_caps(file, None, None), **file.windows(),
            "query_pre_attn_scalar": _query_scalar(file, 62), "rope_parameters": {FULL: file.rope(), SLIDING: local}}


def _soft_caps(file: Described, attention: float | None, final: float | None) -> dict[str, Any]:
    return {"attn_logit_softcapping": file.get("attn_logit_softcapping", attention),
            "final_logit_softcapping": file.get("final_logit_softcapping", final)}


def _query_scalar(file: Described, layers_of_27b: int) -> int:
    """Files do not say it. As llama.cpp has it: heads are as wide as the scores' scale supposes, but for the 27B's."""
    if file.need("block_count") == layers_of_27b:
        return int(file.need("embedding_length") // file.need("attention.head_count"))
    return file.head_dim


def _glm4(file: Described) -> dict[str, Any]:
    return {"attention_bias": not file.tensors.keys().isdisjoint(("blk.0.attn_q.bias", "blk.0.attn_qkv.bias"))}


def _gptneox(file: Described) -> dict[str, Any]:
    return {"use_parallel_residual": file.get("use_parallel_residual", True),
            "attention_bias": "blk.0.attn_qkv.bias" in file.tensors}


def _granite(file: Described) -> dict[str, Any]:
    if not file.get("rope.scaling.finetuned", True):
        raise ConfigError(f"{file.path}: granite.rope.scaling.finetuned is false, which stands for a model without "
                          "positions; that is not supported")
    names = {"attention_multiplier": "attention.scale", "embedding_multiplier": "embedding_scale",
             "residual_multiplier": "residual_scale", "logits_scaling": "logit_scale"}
    return {ours: value for ours, theirs in names.items() if (value := file.get(theirs))}


def _llama(file: Described) -> dict[str, Any]:
    """Mistral's and Mixtral's files say "llama" too."""
    if not file.get("expert_count"):
        return file.windows()
    return {**file.windows(), "architectures": ["MixtralForCausalLM"], "num_local_experts": file.get("expert_count"),
            "num_experts_per_tok": file.need("expert_used_count")}


def _mistral3(file: Described) -> dict[str, Any]:
    """Mistral Small 3.1, whose queries do not grow, and Ministral 3."""
    beta = file.get("attention.temperature_scale")
    if not beta:
        return {"architectures": ["MistralForCausalLM"], **file.windows()}
    return {**file.windows(), "rope_parameters": {**file.rope(), "llama_4_scaling_beta": beta}}


def _mpt(file: Described) -> dict[str, Any]:
    largest = file.get("attention.max_alibi_bias", 0.0)
    return {"attn_config": {"alibi": bool(largest), "alibi_bias_max": largest,
                            "clip_qkv": file.get("attention.clamp_kqv") or None,
                            "kv_n_heads": file.get("attention.head_count_kv")}}


def _olmo2(file: Described) -> dict[str, Any]:
    """With windows it is OLMo 3, where layers that have one are not stretched to long contexts."""
    windows = file.windows()
    if not windows.get("sliding_window"):
        return {}
    rope = file.rope()
    local = {"rope_type": "default", "rope_theta": file.get("rope.freq_base_swa", rope["rope_theta"])}
    return {**windows, "architectures": ["Olmo3ForCausalLM"], "rope_parameters": {FULL: rope, SLIDING: local}}


def _qwen3moe(file: Described) -> dict[str, Any]:
    """All layers have experts, and the weights of the chosen ones add up to 1."""
    return {"num_experts": file.need("expert_count"), "num_experts_per_tok": file.need("expert_used_count"),
            "moe_intermediate_size": file.need("expert_feed_forward_length"), "norm_topk_prob": True}


_PAIRS: Mapping[str, Layout] = {"self_attn.q_proj": "pairs", "self_attn.k_proj": "pairs"}
_STACKED: Mapping[str, Layout] = {"query_key_value": "stacked"}
_PLUS_ONE: Mapping[str, Layout] = {"norm": "plus_one"}

FORMS = {
    "baichuan": Form("BaichuanForCausalLM", _baichuan, {"W_pack": "packed"}, others=("BaiChuanForCausalLM",)),
    "bloom": Form("BloomForCausalLM", layouts=_STACKED, eps=LAYER_NORM),
    "falcon": Form("FalconForCausalLM", _falcon, _STACKED, LAYER_NORM),
    "gemma": Form("GemmaForCausalLM", layouts=_PLUS_ONE),
    "gemma2": Form("Gemma2ForCausalLM", _gemma2, _PLUS_ONE),
    "gemma3": Form("Gemma3ForCausalLM", _gemma3, _PLUS_ONE),
    "glm4": Form("Glm4ForCausalLM", _glm4),
    "gpt2": Form("GPT2LMHeadModel", layouts={"c_attn": "turned", "c_proj": "turned", "c_fc": "turned"}, eps=LAYER_NORM),
    "gptneox": Form("GPTNeoXForCausalLM", _gptneox, _STACKED, LAYER_NORM),
    "granite": Form("GraniteForCausalLM", _granite, _PAIRS),
    "llama": Form("LlamaForCausalLM", _llama, _PAIRS, others=("MistralForCausalLM", "MixtralForCausalLM")),
    "mistral3": Form("Ministral3ForCausalLM", _mistral3, _PAIRS, others=("MistralForCausalLM",)),
    "mpt": Form("MptForCausalLM", _mpt, eps=LAYER_NORM),
    "olmo2": Form("Olmo2ForCausalLM", _olmo2, others=("Olmo3ForCausalLM",)),
    "phi3": Form("Phi3ForCausalLM", Described.windows),
    "qwen2": Form("Qwen2ForCausalLM"),
    "qwen3": Form("Qwen3ForCausalLM"),
    "qwen3moe": Form("Qwen3MoeForCausalLM", _qwen3moe),
    "smollm3": Form("SmolLM3ForCausalLM", layouts=_PAIRS),
    "starcoder": Form("GPTBigCodeForCausalLM", eps=LAYER_NORM),
}

"""Families that have no file of their own: whatever names their config.json uses for what all have.

What is no decoder of texts with a KV cache is refused here, by its config.json alone, so before anybody reads weights.
"""

from __future__ import annotations

import re
from typing import Any

from quire.engine.errors import ConfigError
from quire.engine.model_facts import renamed

_ALIASES = {
    "hidden_size": ("n_embd", "d_model", "dim", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "attention_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx"),
}
# Kinds of layers, and the sizes of states that only models with such layers have.
_RECURRENT = ("linear_attention", "mamba", "recurrent", "conv", "ssm", "rwkv")
_OF_STATES = ("mamba_", "ssm_", "state_size", "lru_", "linear_attn_", "linear_num_", "conv_L_cache", "attn_type_list")
_RECURRENT_TYPES = re.compile(r"rwkv|xlstm|retnet")  # whose files have no such size
_MEDIA = ("vision_config", "audio_config", "speech_config", "text_config", "llm_config", "language_config",
          "thinker_config")
_ENCODERS = re.compile(r"bert|electra|big_bird|data2vec|roformer|^ernie$|^xmod$")
_HEADS = ("ForCausalLM", "LMHeadModel")


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    """Raises ConfigError for what no decoder with a KV cache is, by its reason."""
    if (why := _why_not(hf)) is not None:
        raise ConfigError(f"{', '.join(hf.get('architectures') or ['the model'])} {why}; that is not supported, Quire "
                          "runs decoders of text whose layers all attend")
    for ours, theirs in _ALIASES.items():
        found = next((name for name in theirs if name in hf), None)
        if ours not in hf and found is not None:
            hf = renamed(hf, **{ours: found})
    return {**hf, "rope_scaling": None, "rope_parameters": None, "rope_theta": None, "partial_rotary_factor": None}


def _why_not(hf: dict[str, Any]) -> str | None:
    model_type = str(hf.get("model_type") or "")
    if hf.get("is_encoder_decoder"):
        return "has an encoder beside its decoder (is_encoder_decoder)"
    if media := next((name for name in _MEDIA if isinstance(hf.get(name), dict)), None):
        return f"is put together from models, for images or sound beside text ({media})"
    if hf.get("add_cross_attention"):
        return "attends to another model's output too (cross attention)"
    if state := _recurrent(hf, model_type):
        return f"has layers with a recurrent state ({state})"
    if hf.get("mem_len") is not None:
        return "keeps a memory of hidden states in place of keys and values (mem_len)"
    if _ENCODERS.search(model_type) and "decoder" not in model_type and not hf.get("is_decoder"):
        return f"is an encoder, which sees its text whole (model_type {model_type})"
    keys, values = _sum_of(hf, "qk_nope_head_dim", "qk_rope_head_dim"), _sum_of(hf, "v_head_dim")
    if keys and values and keys != values:
        return f"has keys of {keys} numbers and values of {values} (v_head_dim)"
    names = [str(name) for name in hf.get("architectures") or ()]
    # Code out of a checkpoint has any names; what it is called for is known elsewhere.
    if not any(name.endswith(_HEADS) for name in names) and "auto_map" not in hf:
        head = re.search(r"For([A-Z]\w+)$", ", ".join(names))
        what = f"a head for {head[1]}, and none" if head else "no head"
        return f"has {what} that goes on with a text (...ForCausalLM)"
    return None


def _sum_of(hf: dict[str, Any], *names: str) -> int:
    return sum(value for name in names if isinstance(value := hf.get(name), int))


def _recurrent(hf: dict[str, Any], model_type: str) -> str:
    """By what a layer with such a state is known; "" where there is none."""
    stated = hf.get("layer_types")
    kinds = {str(kind) for kind in stated} if isinstance(stated, list) else set()
    if kinds:  # they tell more than sizes, which some leave over
        return ", ".join(sorted(kind for kind in kinds if kind.startswith(_RECURRENT)))
    if sizes := [name for name, value in hf.items() if name.startswith(_OF_STATES) and value is not None]:
        return sizes[0]
    return f"model_type {model_type}" if _RECURRENT_TYPES.search(model_type) else ""

"""MPT's names; its attention has a table of its own."""

from __future__ import annotations

from typing import Any

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError
from quire.engine.model_facts import renamed
from quire.engine.model_facts.fields import is_number


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    """Raises ConfigError for variants that no published model of transformers' has."""
    hf = renamed(hf, hidden_size="d_model", num_hidden_layers="n_layers", num_attention_heads="n_heads",
                 max_position_embeddings="max_seq_len", layer_norm_eps="layer_norm_epsilon")
    attention = hf.get("attn_config") or {}
    for name, wanted in (("alibi", True), ("prefix_lm", False), ("qk_ln", False)):
        if attention.get(name, wanted) != wanted:
            raise ConfigError(f"attn_config.{name} {attention[name]!r} is not supported")
    for name in ("alibi_bias_max", "clip_qkv", "softmax_scale"):
        value = attention.get(name)
        if value is not None and not (is_number(value) and value >= 0):
            raise ConfigError(f"attn_config.{name} must be a number that is not negative, is {shown(value)}")
    if not hf.get("no_bias", True):
        raise ConfigError("no_bias false is not supported")
    if "hidden_size" in hf:
        hf["intermediate_size"] = hf.get("expansion_ratio", 4) * hf["hidden_size"]
    return {"tie_word_embeddings": True, **hf, "hidden_act": "gelu",
            "num_key_value_heads": attention.get("kv_n_heads") or hf.get("num_attention_heads")}

"""Families that have no file of their own: whatever names their config.json uses for what all have."""

from __future__ import annotations

from typing import Any

from quire.engine.errors import ConfigError
from quire.engine.model_facts import renamed

_ALIASES = {
    "hidden_size": ("n_embd", "d_model", "dim", "n_embed"),
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_key_value_heads": ("num_kv_heads", "n_head_kv", "n_kv_heads", "multi_query_group_num"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length", "max_sequence_length", "n_ctx"),
}
_RECURRENT = ("linear_attention", "mamba", "mamba2", "recurrent", "conv", "ssm", "rwkv")


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    """Raises ConfigError for what no decoder with a KV cache is, by its reason."""
    names = ", ".join(hf.get("architectures") or ["the model"])
    if hf.get("is_encoder_decoder"):
        raise ConfigError(f"{names} has an encoder; Quire runs decoders only")
    if hf.get("add_cross_attention"):
        raise ConfigError(f"{names} attends to another model's output (cross attention); Quire runs decoders only")
    kinds = {str(kind) for kind in hf.get("layer_types") or ()}
    if recurrent := sorted(kind for kind in kinds if kind.startswith(_RECURRENT)):
        raise ConfigError(f"{names} has layers with a recurrent state ({', '.join(recurrent)}), which is not "
                          "supported; Quire runs decoders whose layers all attend")
    for ours, theirs in _ALIASES.items():
        found = next((name for name in theirs if name in hf), None)
        if ours not in hf and found is not None:
            hf = renamed(hf, **{ours: found})
    rope = hf.get("rope_parameters") or {}
    if not isinstance(rope.get("rope_type", "default"), str) or any(isinstance(v, dict) for v in rope.values()):
        hf = {**hf, "rope_parameters": None}  # by kind of layer: transformers' own code reads it
    return {**hf, "rope_scaling": None, "rope_parameters": None}

"""Falcon's names, those of its first files (RefinedWeb) included."""

from __future__ import annotations

from typing import Any

from quire.engine.model_facts import renamed


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    hf = renamed(hf, num_hidden_layers="n_layer", num_attention_heads="n_head", num_kv_heads="n_head_kv",
                 hidden_act="activation", intermediate_size="ffn_hidden_size", layer_norm_eps="layer_norm_epsilon")
    if not hf.get("intermediate_size") and "hidden_size" in hf:
        hf["intermediate_size"] = 4 * hf["hidden_size"]
    is_new = hf.get("new_decoder_architecture", "n_head_kv" in hf)  # the first 40B says it by this name alone
    heads = hf.get("num_attention_heads")
    kv_heads = hf.get("num_kv_heads") or heads if is_new else 1 if hf.get("multi_query", True) else heads
    return {"tie_word_embeddings": True, "hidden_act": "gelu", "parallel_attn": True, **hf,
            "new_decoder_architecture": is_new, "num_key_value_heads": kv_heads}

"""BLOOM's names; its positions are ALiBi's, so that seq_length is what it was trained with and no bound."""

from __future__ import annotations

from typing import Any

from quire.engine.model_facts import renamed


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    hf = renamed(hf, hidden_size="n_embed", num_hidden_layers="n_layer", num_attention_heads="n_head",
                 max_position_embeddings="seq_length", layer_norm_eps="layer_norm_epsilon")
    if "hidden_size" in hf:
        hf["intermediate_size"] = 4 * hf["hidden_size"]
    return {"tie_word_embeddings": True, **hf, "hidden_act": "gelu_new", "num_key_value_heads": None}

"""GPT-2's names, which GPTBigCode and GPT-J share."""

from __future__ import annotations

from typing import Any

from quire.engine.model_facts import renamed


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    hf = renamed(hf, hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
                 max_position_embeddings="n_positions", intermediate_size="n_inner", hidden_act="activation_function",
                 layer_norm_eps="layer_norm_epsilon")
    if not hf.get("intermediate_size") and "hidden_size" in hf:
        hf["intermediate_size"] = 4 * hf["hidden_size"]
    return {"tie_word_embeddings": True, "hidden_act": "gelu_new", **hf, "num_key_value_heads": None}


def bigcode(hf: dict[str, Any]) -> dict[str, Any]:
    hf = {"hidden_act": "gelu_pytorch_tanh", "multi_query": True, **facts(hf)}
    return {**hf, "num_key_value_heads": 1 if hf["multi_query"] else hf.get("num_attention_heads")}


def gptj(hf: dict[str, Any]) -> dict[str, Any]:
    return {**facts(hf), "tie_word_embeddings": hf.get("tie_word_embeddings", False)}

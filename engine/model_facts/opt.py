"""OPT's names."""

from __future__ import annotations

from typing import Any

from quire.engine.model_facts import renamed


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    hf = renamed(hf, intermediate_size="ffn_dim", hidden_act="activation_function")
    return {"tie_word_embeddings": True, "hidden_act": "relu", **hf, "num_key_value_heads": None}

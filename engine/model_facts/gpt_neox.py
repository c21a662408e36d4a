"""GPT-NeoX: standard names but for the rotary ones of older files."""

from __future__ import annotations

from typing import Any

from quire.engine.model_facts import renamed


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    hf = renamed(hf, rope_theta="rotary_emb_base", partial_rotary_factor="rotary_pct")
    return {"tie_word_embeddings": False, "hidden_act": "gelu", "partial_rotary_factor": 0.25, **hf,
            "num_key_value_heads": None}

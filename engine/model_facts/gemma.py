"""Gemma 1 to 3: defaults that their files leave out, windows, and Gemma 3's two rotations."""

from __future__ import annotations

from typing import Any

from quire.engine.errors import ConfigError
from quire.engine.model_facts.windows import by_kind_of_layer, with_windows


def facts(hf: dict[str, Any]) -> dict[str, Any]:
    """Gemma 1. Its first files say hidden_act "gelu" where the tanh form is meant.

    Raises ConfigError for those that were made to embed texts.
    """
    if hf.get("use_bidirectional_attention"):
        raise ConfigError("use_bidirectional_attention is set, by which tokens see those behind them; that is not "
                          "supported, Quire runs decoders")
    activation = hf.get("hidden_activation") or hf.get("hidden_act") or "gelu_pytorch_tanh"
    return {"tie_word_embeddings": True, "head_dim": 256, "rms_norm_eps": 1e-6, **hf,
            "hidden_act": "gelu_pytorch_tanh" if activation == "gelu" else activation}


def gemma2(hf: dict[str, Any]) -> dict[str, Any]:
    """Every other layer has the window, the first included."""
    return with_windows({"sliding_window": 4096, **facts(hf)}, lambda i: i % 2 == 0)


def gemma3(hf: dict[str, Any]) -> dict[str, Any]:
    """All layers but each sixth; and those with a window turn by a base of their own."""
    pattern = hf.get("sliding_window_pattern") or hf.get("_sliding_window_pattern") or 6
    hf = with_windows({"sliding_window": 4096, **facts(hf)}, lambda i: (i + 1) % pattern != 0)
    if (by_kind := by_kind_of_layer(hf)) is not None:
        return by_kind
    local = {"rope_theta": hf.get("rope_local_base_freq", 10_000.0), "rope_type": "default"}
    return {"rope_theta": 1_000_000.0, **hf, "local_rope_parameters": local}

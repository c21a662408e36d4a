"""Families of standard names that only leave something out, or have windows."""

from __future__ import annotations

from typing import Any

from quire.engine.model_facts.windows import by_kind_of_layer, num_layers, refuse_other_length, with_windows


def windowed(hf: dict[str, Any]) -> dict[str, Any]:
    """Mistral, Phi-3: all layers have the window, if there is one. Ministral: those that layer_types names."""
    return with_windows(hf)


def olmo3(hf: dict[str, Any]) -> dict[str, Any]:
    """Only layers without a window are stretched to long contexts."""
    hf = with_windows(hf, lambda i: (i + 1) % 4 != 0)
    if (by_kind := by_kind_of_layer(hf)) is not None:
        return by_kind
    return {**hf, "local_rope_parameters": {"rope_type": "default", "rope_theta": hf.get("rope_theta") or 10_000.0}}


def qwen2(hf: dict[str, Any]) -> dict[str, Any]:
    """Only where use_sliding_window says so, and only from max_window_layers on."""
    if not hf.get("use_sliding_window", False):
        return {**hf, "sliding_window": None, "layer_types": None}
    first = hf.get("max_window_layers", 28)
    return with_windows(hf, lambda i: bool(i >= first))


def smollm3(hf: dict[str, Any]) -> dict[str, Any]:
    """Tied unless the file says otherwise. no_rope_layers has a 1 for each layer that rotates q and k; where
    use_sliding_window says so, the others have the window."""
    interval = hf.get("no_rope_layer_interval") or 4
    rotated = hf.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(num_layers(hf))]
    hf = {"tie_word_embeddings": True, **hf, "no_rope_layers": rotated}
    refuse_other_length(hf, "no_rope_layers")
    if not hf.get("use_sliding_window", False):
        return {**hf, "sliding_window": None, "layer_types": None}
    return with_windows(hf, lambda i: not rotated[i])


def baichuan(hf: dict[str, Any]) -> dict[str, Any]:
    """The 13B models have ALiBi and no bound of positions but what they were trained with."""
    return {"max_position_embeddings": hf.get("model_max_length", 4096), "tie_word_embeddings": False, **hf}

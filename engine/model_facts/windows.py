"""Which layers look back through a sliding window, how far, and how their positions are turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"


def with_windows(hf: dict[str, Any], is_sliding: Callable[[int], bool] = lambda i: True) -> dict[str, Any]:
    """`hf` with layer_windows: a window or None for each layer. `is_sliding` decides where layer_types says nothing."""
    window, types = hf.get("sliding_window"), hf.get("layer_types")
    if window is None:
        return hf
    sliding = [kind == SLIDING for kind in types] if types else map(is_sliding, range(num_layers(hf)))
    return {**hf, "layer_windows": [window if slides else None for slides in sliding]}


def num_layers(hf: dict[str, Any]) -> int:
    """Layers; what is no number is refused by whoever reads it next."""
    layers = hf.get("num_hidden_layers")
    return layers if isinstance(layers, int) else 0


def by_kind_of_layer(hf: dict[str, Any]) -> dict[str, Any] | None:
    """Where rope_parameters has a table for each kind of layer, `hf` with that of layers without a window there, and
    the other as local_rope_parameters; else None."""
    rope = hf.get("rope_parameters") or {}
    if FULL not in rope:
        return None
    return {**hf, "rope_parameters": rope[FULL], "local_rope_parameters": rope.get(SLIDING, rope[FULL])}

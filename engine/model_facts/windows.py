"""Which layers look back through a sliding window, and how far."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SLIDING = "sliding_attention"


def with_windows(hf: dict[str, Any], is_sliding: Callable[[int], bool] = lambda i: True) -> dict[str, Any]:
    """`hf` with layer_windows: a window or None for each layer. `is_sliding` decides where layer_types says nothing."""
    window, types = hf.get("sliding_window"), hf.get("layer_types")
    sliding = [kind == SLIDING for kind in types] if types else map(is_sliding, range(hf.get("num_hidden_layers", 0)))
    return {**hf, "layer_windows": [window if slides else None for slides in sliding]}

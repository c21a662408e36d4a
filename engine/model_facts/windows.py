"""Which layers look back through a sliding window, how far, and how their positions are turned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError

FULL, SLIDING = "full_attention", "sliding_attention"


def with_windows(hf: dict[str, Any], is_sliding: Callable[[int], bool] = lambda i: True) -> dict[str, Any]:
    """`hf` with layer_windows: a window or None for each layer. `is_sliding` decides where layer_types says nothing.

    Raises ConfigError where layer_types is of another number of layers.
    """
    window, types = hf.get("sliding_window"), hf.get("layer_types")
    if window is None:
        return hf
    if types:
        refuse_other_length(hf, "layer_types")
    sliding = [kind == SLIDING for kind in types] if types else map(is_sliding, range(num_layers(hf)))
    return {**hf, "layer_windows": [window if slides else None for slides in sliding]}


def refuse_other_length(hf: dict[str, Any], name: str) -> None:
    """Raises ConfigError where the list of that name does not say something of each layer."""
    if len(hf[name]) != num_layers(hf):
        raise ConfigError(f"{name} lists {len(hf[name])} layers, and num_hidden_layers is {num_layers(hf)}")


def num_layers(hf: dict[str, Any]) -> int:
    """Layers; what is no number is refused by whoever reads it next."""
    layers = hf.get("num_hidden_layers")
    return layers if isinstance(layers, int) else 0


def by_kind_of_layer(hf: dict[str, Any]) -> dict[str, Any] | None:
    """Where rope_parameters has a table for each kind of layer, `hf` with that of layers without a window there, and
    the other as local_rope_parameters; else None."""
    rope = hf.get("rope_parameters") or {}
    if not isinstance(rope.get(FULL), dict):
        return None
    local = rope.get(SLIDING) or rope[FULL]
    if not isinstance(local, dict):
        raise ConfigError(f"rope_parameters: {SLIDING} must be an object, is {shown(local)}")
    return {**hf, "rope_parameters": rope[FULL], "local_rope_parameters": local}

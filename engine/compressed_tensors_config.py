"""What a compressed-tensors configuration says: config_groups, their targets and formats. Refuses to know torch.

Called by `quire.engine.quantization_config`, which refuses what cannot be run, and by the reader of the weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from quire.engine.arguments import shown
from quire.engine.errors import ConfigError

# format -> type, bits and strategies of weights that are computed in it
_FORMATS: dict[str, tuple[str, tuple[int, ...], tuple[str, ...]]] = {
    "pack-quantized": ("int", (2, 3, 4, 5, 6, 7, 8), ("group", "channel")),
    "int-quantized": ("int", (8,), ("channel", "tensor")),
    "float-quantized": ("float", (8,), ("channel", "tensor", "block")),
    "nvfp4-pack-quantized": ("float", (4,), ("tensor_group",)),
    "mxfp4-pack-quantized": ("float", (4,), ("group",)),
}
_EIGHT_BITS: dict[str, Literal["int8", "e4m3"]] = {"int": "int8", "float": "e4m3"}


@dataclass(frozen=True, slots=True)
class Group:
    targets: tuple[str, ...]
    format: str
    bits: int
    strategy: str
    group_size: int  # -1: whole rows
    is_symmetric: bool
    block: tuple[int, int] | None
    inputs: Literal["int8", "e4m3", None]

    @property
    def has_all_linear(self) -> bool:
        return "Linear" in self.targets

    def names(self, module: str) -> bool:
        return any(re.match(target[3:], module) if target.startswith("re:") else target == module
                   for target in self.targets)


def groups_of(config: dict[str, Any]) -> tuple[Group, ...]:
    """Raises ConfigError where a group asks for what is not supported, or is malformed."""
    stated = config.get("config_groups")
    if not isinstance(stated, dict) or not stated:
        raise ConfigError(f"quantization_config: config_groups must be an object with a group, is {shown(stated)}")
    try:
        return tuple(_group(name, group, config.get("format")) for name, group in stated.items())
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"quantization_config: config_groups is malformed: {error!r}") from error


def says(config: dict[str, Any]) -> str:
    return "compressed-tensors, " + "; ".join(
        f"{group.format}, {group.bits} bits by {group.strategy}"
        + (f" of {group.group_size}" if group.strategy == "group" else "") for group in groups_of(config))


def _group(name: str, stated: dict[str, Any], common: str | None) -> Group:
    weights, inputs = stated["weights"], stated.get("input_activations")
    kind, bits, size = weights["type"], int(weights["num_bits"]), weights.get("group_size")
    strategy = weights.get("strategy") or ("tensor" if size is None else "group" if size > 0 else "channel")
    form = stated.get("format") or common
    if form in ("naive-quantized", "mixed-precision", None):
        form = "int-quantized" if kind == "int" else "float-quantized"
    if form not in _FORMATS:
        raise ConfigError(f"quantization_config: {name} has the format {form}, which is not supported; supported are "
                          f"{', '.join(_FORMATS)}")
    if (kind, bits, strategy) not in {(_FORMATS[form][0], count, way) for count in _FORMATS[form][1]
                                      for way in _FORMATS[form][2]}:
        raise ConfigError(f"quantization_config: {name} has weights of type {kind} in {bits} bits by {strategy} in the "
                          f"format {form}, which is not supported")
    block = weights.get("block_structure")
    if isinstance(block, str):
        block = block.split("x")
    return Group(
        tuple(stated.get("targets") or ()), form, bits, strategy,
        int(size) if strategy in ("group", "tensor_group") else -1, bool(weights.get("symmetric", True)),
        (int(block[0]), int(block[1])) if block else (128, 128) if strategy == "block" else None,
        _EIGHT_BITS[kind] if inputs and (inputs.get("num_bits"), inputs.get("type")) == (8, kind) else None)

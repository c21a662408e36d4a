"""compressed-tensors, as llm-compressor writes it: groups of modules, each with a format of its own.

Modules that a group does not name, or that have no scale, are floats. What a group says is read by
`quire.engine.compressed_tensors_config`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from quire.engine.compressed_tensors_config import Group, groups_of
from quire.engine.quantization.eight_bits import EightBits
from quire.engine.quantization.integers import (
    WORD,
    cut_integers,
    group_by_group,
    selected,
    unpacked,
    whole_groups,
)
from quire.engine.quantization.small_floats import MxFp4, NvFp4
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part, WeightScheme, is_kv_scale
from quire.kernels.packed_weight import PackedWeight

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class PackQuantized:
    """weight_packed int32 [out, in * bits / 32], weight_scale [out, groups]; where asymmetric weight_zero_point int32
    [out * bits / 32, groups]; numbers are stored from 0 on."""

    bits: int
    group: int
    is_symmetric: bool

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        group, outputs = in_features if self.group == -1 else self.group, part.num_rows
        groups = whole_groups(in_features, group, view.name)
        words = -(-in_features * self.bits // WORD)
        packed = view.take_raw("weight_packed", (outputs, words), (torch.int32,), rows=part.rows)
        q = unpacked(packed, self.bits, in_features)[:, columns]
        scales = view.take_raw("weight_scale", (outputs, groups), _FLOATS, rows=part.rows).T
        zeros = None
        if not self.is_symmetric:
            stored = view.take_raw("weight_zero_point", (-(-outputs * self.bits // WORD), groups), (torch.int32,))
            zeros = selected(unpacked(stored.T, self.bits, outputs).T, part.rows).T
        view.skip("weight_shape", "input_scale", "input_zero_point")
        if view.has("weight_g_idx") and view.device.type != "meta":
            own = view.take_raw("weight_g_idx", (in_features,), (torch.int32, torch.int64)).long()
            if bool((own >= 0).all()):  # -1: there is no order
                return group_by_group(q, zeros, scales, own[columns], self.bits, group, view.name)
        view.skip("weight_g_idx")
        return cut_integers(q, zeros, scales, self.bits, group, in_features, columns, view.name)


@dataclass(frozen=True)
class CompressedTensors:
    groups: tuple[Group, ...]

    @property
    def usual(self) -> WeightScheme:
        return _scheme(self.groups[0])

    def of(self, view: View, *, is_layer: bool) -> WeightScheme | None:
        if not view.has("weight_scale"):
            return None
        named = [group for group in self.groups if group.names(view.name)]
        return _scheme((named or [group for group in self.groups if group.has_all_linear] or list(self.groups))[0])

    def ignores(self, name: str) -> bool:
        return is_kv_scale(name)


def _scheme(group: Group) -> WeightScheme:
    if group.format == "pack-quantized":
        return PackQuantized(group.bits, group.group_size, group.is_symmetric)
    if group.format == "nvfp4-pack-quantized":
        return NvFp4("weight_packed", "weight_global_scale", is_divisor=True)
    if group.format == "mxfp4-pack-quantized":
        return MxFp4()
    return EightBits(group.inputs, group.block)


def schemes(config: dict[str, Any]) -> CompressedTensors:
    return CompressedTensors(groups_of(config))

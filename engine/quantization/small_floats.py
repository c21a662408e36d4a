"""Weights of 4-bit floats (e2m1) in small groups: MXFP4, where 32 share a power of two (OCP Microscaling 1.0), and
NVFP4, where 16 share an e4m3 number, and all of a tensor a float.

weight_packed uint8 [out, in / 2], the even input in the low bits. Called by the readers of the formats that store them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from quire.engine.quantization.integers import cut_groups, whole_groups
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part
from quire.kernels.packed_weight import PackedWeight, packed

_MX_GROUP, _NV_GROUP = 32, 16
_EXPONENT_BIAS = 127


@dataclass(frozen=True)
class MxFp4:
    """weight_scale uint8 [out, in / 32]: exponents of two."""

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        groups = whole_groups(in_features, _MX_GROUP, view.name)
        codes = _codes(view, "weight_packed", part, in_features, columns)
        exponents = view.take_raw("weight_scale", (part.num_rows, groups), (torch.uint8,), rows=part.rows).T
        scales = torch.exp2(exponents.float() - _EXPONENT_BIAS).bfloat16()  # which has the same exponents
        scales, cut = cut_groups(scales, _MX_GROUP, in_features, columns, view.name)
        return packed("e2m1", codes, scales, cut)


@dataclass(frozen=True)
class NvFp4:
    """weight_scale e4m3 [out, in / 16]; the tensor's float multiplies it, or divides where `is_divisor`."""

    codes: str
    of_tensor: str
    is_divisor: bool

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        group = _NV_GROUP
        groups = whole_groups(in_features, group, view.name)
        codes = _codes(view, self.codes, part, in_features, columns)
        scales = view.take_raw("weight_scale", (part.num_rows, groups), (torch.float8_e4m3fn,), rows=part.rows).T
        scales, cut = cut_groups(scales.bfloat16(), group, in_features, columns, view.name)
        outer = view.take_raw(self.of_tensor, view.shape(self.of_tensor) or (), (torch.float32,)).reshape(1)
        view.skip("input_scale", "input_global_scale")
        return packed("e2m1", codes, scales, cut,
                      outer=(1 / outer if self.is_divisor else outer).expand(part.size).contiguous())


def _codes(view: View, name: str, part: Part, in_features: int, columns: slice) -> torch.Tensor:
    """uint8 [outputs, this rank's inputs], one to a byte."""
    pairs = view.take_raw(name, (part.num_rows, in_features // 2), (torch.uint8,), rows=part.rows)
    return torch.stack((pairs & 15, pairs >> 4), 2).flatten(1)[:, columns]

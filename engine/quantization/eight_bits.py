"""Weights of 8 bits: small floats (e4m3) or whole numbers, with a scale for all, for each output, or for blocks.

The tensors decide: the weight by its type, the scale's granularity by its shape. Called by the readers of the formats
that store them: fp8, compressed-tensors, ModelOpt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from quire.engine.errors import WeightError
from quire.engine.quantization.integers import cut_groups, selected
from quire.engine.weights.checkpoint import View
from quire.engine.weights.scheme import Part
from quire.kernels.packed_weight import PackedWeight, packed

_SCALES = ("weight_scale", "weight_scale_inv")  # both multiply
_OF_INPUTS = ("input_scale", "input_zero_point", "input_scale_ub")  # inputs are measured as they come
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
E4M3_MOST = 448.0


@dataclass(frozen=True)
class EightBits:
    """`inputs`: what a product with many rows may round them to. `block`: outputs and inputs that share a scale."""

    inputs: Literal["int8", "e4m3", None] = None
    block: tuple[int, int] | None = None

    def read(self, view: View, part: Part, in_features: int, columns: slice, *, transposed: bool) -> PackedWeight:
        codes = view.take_raw("weight", (part.num_rows, in_features), (torch.float8_e4m3fn, torch.int8), rows=part.rows,
                              columns=columns)
        scales, group = self._scales(view, part, in_features)
        scales, cut = cut_groups(scales, group, in_features, columns, view.name)
        view.skip(*_OF_INPUTS)
        kind: Literal["int8", "e4m3"] = "int8" if codes.dtype == torch.int8 else "e4m3"
        inputs = self.inputs if self.inputs == kind else None
        return packed(kind, codes.view(torch.uint8), scales, cut, inputs=inputs)

    def _scales(self, view: View, part: Part, in_features: int) -> tuple[torch.Tensor, int]:
        """[groups, this rank's outputs], and how many inputs share one."""
        name = next((name for name in _SCALES if view.has(name)), _SCALES[0])
        outputs = part.num_rows
        shape = (outputs, 1) if view.has_any and self.block is None else view.shape(name)
        if shape in ((), (1,), (1, 1)):
            scale = view.take_raw(name, shape, _FLOATS).reshape(1, 1)
            return scale.expand(1, part.size), in_features
        if shape in ((outputs,), (outputs, 1)):
            scale = view.take_raw(name, shape, _FLOATS).reshape(outputs, 1)
            return selected(scale, part.rows).T, in_features
        if self.block is None:
            view.require(name, (outputs, 1))
            raise WeightError(f"tensor '{view.name}.{name}' has shape {list(shape or ())}, neither one scale nor one "
                              "for each output")
        high, wide = self.block
        scale = view.take_raw(name, (-(-outputs // high), -(-in_features // wide)), _FLOATS).float()
        return selected(scale.repeat_interleave(high, 0)[:outputs], part.rows).T, wide


def rounded_to_e4m3(weight: torch.Tensor) -> PackedWeight:
    """Floats [outputs, size], each output by its own scale, to the nearest of its numbers."""
    wide = weight.float()
    scale = (wide.abs().amax(1, keepdim=True) / E4M3_MOST).clamp(min=1 / (E4M3_MOST * 512))
    codes = (wide / scale).clamp(-E4M3_MOST, E4M3_MOST).to(torch.float8_e4m3fn).view(torch.uint8)
    return packed("e4m3", codes, scale.T, weight.shape[1], inputs="e4m3")

"""Products with packed weights, as layers/product.py has them for floats. Called by quire.engine.layers.load."""

from __future__ import annotations

import torch

from quire.kernels import launch, ops
from quire.kernels.packed_weight import PackedWeight

_LIBRARY_OUTPUTS = 16  # the library takes multiples of it


class QuantizedProduct:
    """[n, in] -> [n, out]; `bias` is [out]."""

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self._rounds_inputs = (weight.inputs is not None and launch.multiplies(weight.device, weight.inputs)
                               and (weight.scales.shape[0] == 1 or weight.group % launch.EIGHT_BIT_DEPTH == 0))

        self._library_scales: torch.Tensor | None = None  # float32 [1, outputs], where the library may multiply
        if (self._rounds_inputs and weight.inputs == "e4m3" and weight.scales.shape[0] == 1
                and weight.outputs % _LIBRARY_OUTPUTS == 0 and launch.library_multiplies(weight.device)):
            self._library_scales = weight.scales.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._weight
        if weight.order is not None:
            x = x.index_select(1, weight.order)
        if not self._rounds_inputs or x.shape[0] <= launch.EIGHT_BIT_ROWS or launch.is_batch_invariant():
            return ops.packed_product(x, weight, self._bias)
        assert weight.inputs is not None
        codes, scales = ops.round_rows(x, weight.inputs, weight.group, weight.words)
        if self._library_scales is None or x.shape[0] <= launch.LIBRARY_EIGHT_BIT_ROWS or x.dtype != torch.bfloat16:
            return ops.eight_bit_product(codes, scales, weight, self._bias, x.dtype)
        e4m3 = torch.float8_e4m3fn
        return torch._scaled_mm(codes.view(e4m3), weight.codes.view(e4m3).t(), scale_a=scales,
                                scale_b=self._library_scales, bias=self._bias, out_dtype=x.dtype)

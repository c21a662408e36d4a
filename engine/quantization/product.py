"""Products with packed weights, as layers/product.py has them for floats. Called by quire.engine.layers.load."""

from __future__ import annotations

import torch

from quire.kernels import launch, ops
from quire.kernels.packed_weight import PackedWeight


class QuantizedProduct:
    """[n, in] -> [n, out]; `bias` is [out]."""

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias
        self._rounds_inputs = (weight.inputs is not None and launch.multiplies(weight.device, weight.inputs)
                               and (weight.scales.shape[0] == 1 or weight.group % launch.EIGHT_BIT_DEPTH == 0))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        weight = self._weight
        if weight.order is not None:
            x = x.index_select(1, weight.order)
        if not self._rounds_inputs or x.shape[0] <= launch.EIGHT_BIT_ROWS or launch.is_batch_invariant():
            return ops.packed_product(x, weight, self._bias)
        assert weight.inputs is not None
        codes, scales = ops.round_rows(x, weight.inputs, weight.group)
        return ops.eight_bit_product(codes, scales, weight, self._bias, x.dtype)

"""Products with packed weights, as layers/product.py has them for floats. Called by quire.engine.layers.load."""

from __future__ import annotations

from collections.abc import Callable

import torch

from quire.kernels import ops
from quire.kernels.packed_weight import PackedWeight

Product = Callable[[torch.Tensor], torch.Tensor]


class QuantizedProduct:
    """[n, in] -> [n, out]."""

    def __init__(self, weight: PackedWeight, bias: torch.Tensor | None) -> None:
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._weight.order is not None:
            x = x.index_select(1, self._weight.order)
        return ops.packed_product(x, self._weight, self._bias)

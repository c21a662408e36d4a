"""Products whose result for a row does not depend on how many rows there are. Called by quire.engine.layers.product
through quire.kernels.ops, on a GPU and with --batch-invariant."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def fixed_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y[m, n] = sum_k x[m, k] weight[n, k] + bias[n]: sums in float32, in an order that weight's shape alone decides.

    x: [m, k], last dimension contiguous; weight: [n, k] contiguous; bias: [n]. Returns [m, n] of x.dtype.
    """
    return F.linear(x, weight, bias)

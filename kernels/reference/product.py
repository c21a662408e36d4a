"""y = x W^T + b. Called by engine.layers.product through kernels.ops for few rows on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def skinny_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y[m, n] = sum_k x[m, k] weight[n, k] + bias[n], for at most 16 rows m.

    x: [m, k], last dimension contiguous; weight: [n, k] contiguous; bias: [n]. Returns [m, n] of x.dtype. Sums in
    float32.
    """
    return F.linear(x, weight, bias)

"""Products for few rows. Called by quire.engine.layers.product through quire.kernels.ops on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.kernels.reference.activation import gated_activation


def skinny_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """y[m, n] = sum_k x[m, k] weight[n, k] + bias[n], for at most 16 rows m.

    x: [m, k], last dimension contiguous; weight: [n, k] contiguous; bias: [n]. Returns [m, n] of x.dtype. Sums in
    float32.
    """
    return F.linear(x, weight, bias)


def skinny_gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    """gated_activation(y, kind) of the y above: the first half of weight's rows make gates. Returns [m, n / 2].

    y is rounded to x.dtype before the activation, as if it had been written.
    """
    return gated_activation(F.linear(x, weight, bias), kind)

"""A gated product for many rows. Called by engine.layers.product through kernels.ops on a GPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from kernels.reference.activation import gated_activation


def wide_gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    """As skinny_gated_product (kernels/reference/product.py), for any number of rows; x contiguous."""
    return gated_activation(F.linear(x, weight, bias), kind)

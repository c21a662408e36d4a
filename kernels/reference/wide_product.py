"""A gated product for many rows. Called by quire.engine.layers.product through quire.kernels.ops on a GPU."""

from __future__ import annotations

import torch

from quire.kernels.reference.product import skinny_gated_product


def wide_gated_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, kind: str) -> torch.Tensor:
    """As skinny_gated_product, for any number of rows; x contiguous."""
    return skinny_gated_product(x, weight, bias, kind)

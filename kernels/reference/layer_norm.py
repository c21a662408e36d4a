"""Layer norms, alone and fused with the residual addition. Called by layers through quire.kernels.ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def layer_norm(x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float) -> torch.Tensor:
    """out = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias, over the last dimension; var divides by the size.

    x: [..., size], last dimension contiguous; weight, bias: [size], 1 and 0 where None; out: new, of x's shape and
    dtype. All of it in float32, rounded once.
    """
    wide_weight, wide_bias = (None if w is None else w.float() for w in (weight, bias))
    return F.layer_norm(x.float(), x.shape[-1:], wide_weight, wide_bias, eps).to(x.dtype)


def add_layer_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None,
                   eps: float) -> torch.Tensor:
    """residual += x in place; returns layer_norm(residual, weight, bias, eps).

    The sum is rounded to residual.dtype once, and the norm is taken of the rounded sum.
    """
    residual.add_(x)
    return layer_norm(residual, weight, bias, eps)

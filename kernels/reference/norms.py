"""RMS norms, alone and fused with the residual addition. Called by layers through quire.kernels.ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """out = x / sqrt(mean(x^2) + eps) * weight, over the last dimension.

    x: [..., size], last dimension contiguous; weight: [size]; out: new, of x's shape and dtype.
    Mean and quotient in float32; the quotient is rounded to x.dtype before the weight multiplies it.
    """
    if x.dtype == torch.float32:  # the same steps in one call
        return F.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).add_(eps))
    return (wide * scale).to(x.dtype).mul_(weight)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float,
                 inner_weight: torch.Tensor | None = None) -> torch.Tensor:
    """residual += x in place, or with `inner_weight` residual += rms_norm(x, inner_weight, eps); returns
    rms_norm(residual, weight, eps).

    The sum is rounded to residual.dtype once, and the norm is taken of the rounded sum.
    """
    residual.add_(x if inner_weight is None else rms_norm(x, inner_weight, eps))
    return rms_norm(residual, weight, eps)

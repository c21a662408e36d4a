"""RMS normalisation with its weight, alone or fused with the residual addition before it."""

from __future__ import annotations

import torch

from engine.weights.checkpoint import View
from kernels import ops


class RMSNorm:
    def __init__(self, view: View, size: int, eps: float) -> None:
        self.weight = view.take("weight", (size,))
        self.eps = eps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual += x in place, then the norm of residual."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps)

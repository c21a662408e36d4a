"""RMS normalisation with its weight, alone or fused with the additions before it: over ranks, and to the residual."""

from __future__ import annotations

import torch

from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.kernels import ops


class RMSNorm:
    def __init__(self, view: View, size: int, eps: float, parallel: Parallel) -> None:
        self.weight = view.take("weight", (size,))
        self.eps = eps
        self._parallel = parallel

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual += x in place, then the norm of residual. Each rank's x is its part of a sum."""
        return self._parallel.add_rms_norm(x, residual, self.weight, self.eps)

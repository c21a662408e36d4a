"""Norms, alone or fused with the additions before them: over ranks, and to the residual."""

from __future__ import annotations

from typing import Protocol

import torch

from quire.engine.parallel import Parallel
from quire.engine.weights.checkpoint import View
from quire.kernels import ops


class Norm(Protocol):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[..., size] -> a new tensor of that shape."""

    def add(self, x: torch.Tensor, residual: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
        """residual += x in place, then the norm of residual. x is this rank's part of a sum, or the `whole` of it."""

    def add_normed(self, x: torch.Tensor, residual: torch.Tensor, inner: Norm) -> torch.Tensor:
        """residual += inner(x) in place, then the norm of residual. x is whole."""


class RMSNorm:
    """`one_plus`: the checkpoint holds what is to be added to 1, as Gemma's; the sum is kept in float32."""

    def __init__(self, view: View, size: int, eps: float, parallel: Parallel, *, one_plus: bool = False) -> None:
        self.weight = view.take("weight", (size,))
        if one_plus:
            self.weight = self.weight.float() + 1
        self.eps = eps
        self._parallel = parallel

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
        if whole:
            return ops.add_rms_norm(x, residual, self.weight, self.eps)
        return self._parallel.add_rms_norm(x, residual, self.weight, self.eps)

    def add_normed(self, x: torch.Tensor, residual: torch.Tensor, inner: Norm) -> torch.Tensor:
        if isinstance(inner, RMSNorm) and inner.eps == self.eps:
            return ops.add_rms_norm(x, residual, self.weight, self.eps, inner.weight)
        return self.add(inner(x), residual, whole=True)


class LayerNorm:
    """`bias`, `affine`: whether the checkpoint holds a bias, or any weight at all."""

    def __init__(self, view: View, size: int, eps: float, parallel: Parallel, *, bias: bool = True,
                 affine: bool = True) -> None:
        self.weight = view.take("weight", (size,)) if affine else None
        self.bias = view.take("bias", (size,)) if affine and bias else None
        self.eps = eps
        self._parallel = parallel

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.layer_norm(x, self.weight, self.bias, self.eps)

    def add(self, x: torch.Tensor, residual: torch.Tensor, *, whole: bool = False) -> torch.Tensor:
        summed = x if whole else self._parallel.all_reduce(x)
        return ops.add_layer_norm(summed, residual, self.weight, self.bias, self.eps)

    def add_normed(self, x: torch.Tensor, residual: torch.Tensor, inner: Norm) -> torch.Tensor:
        return self.add(inner(x), residual, whole=True)

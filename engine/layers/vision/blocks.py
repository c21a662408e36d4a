"""What a vision tower is put together from: products, norms, attention, MLPs, a block, the merger of patches.

Each rank has all of it. Products are the library's: there are always many rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F

from quire.engine.layers.vision.rotary import Angles
from quire.engine.layers.vision.segments import Segments
from quire.engine.model_facts.vision import ACTIVATIONS
from quire.engine.weights.checkpoint import View
from quire.kernels import ops

EPS = 1e-6
Apply = Callable[[torch.Tensor], torch.Tensor]


class Linear:
    """`names`: of several tensors, whose rows lie one after the other in the result."""

    def __init__(self, view: View, names: tuple[str, ...], in_features: int, out_features: int) -> None:
        """`out_features`: of each."""
        self._weight = view.empty(len(names) * out_features, in_features)
        self._bias = view.empty(len(names) * out_features)
        for number, name in enumerate(names):
            rows = slice(number * out_features, (number + 1) * out_features)
            view.take(f"{name}.weight", (out_features, in_features), out=self._weight[rows])
            view.take(f"{name}.bias", (out_features,), out=self._bias[rows])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class Norm(Protocol):
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[n, size] -> a new tensor of that shape."""

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """residual += x in place, then the norm of residual."""


class LayerNorm:
    def __init__(self, view: View, size: int) -> None:
        self._weight, self._bias = view.take("weight", (size,)), view.take("bias", (size,))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.layer_norm(x, self._weight, self._bias, EPS)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return ops.add_layer_norm(x, residual, self._weight, self._bias, EPS)


class RMSNorm:
    def __init__(self, view: View, size: int) -> None:
        self._weight = view.take("weight", (size,))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return ops.rms_norm(x, self._weight, EPS)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return ops.add_rms_norm(x, residual, self._weight, EPS)


class Attention:
    """Of all patches of a segment to all of them."""

    def __init__(self, view: View, width: int, num_heads: int) -> None:
        self._qkv, self._out = Linear(view, ("qkv",), width, 3 * width), Linear(view, ("proj",), width, width)
        self._num_heads = num_heads

    def __call__(self, x: torch.Tensor, angles: Angles, segments: Segments) -> torch.Tensor:
        qkv = self._qkv(x).view(x.shape[0], 3 * self._num_heads, -1)
        angles.turn(qkv[:, :2 * self._num_heads])
        return self._out(segments.attend(*qkv.split(self._num_heads, 1)))


class MLP:
    """down(act(up x)); `names` are the tensors'."""

    def __init__(self, view: View, names: tuple[str, str], sizes: tuple[int, int, int], activation: str) -> None:
        """`sizes`: in, between, out."""
        up, down = names
        self._up, self._down = Linear(view, (up,), *sizes[:2]), Linear(view, (down,), *sizes[1:])
        self._kind = ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down(ops.activation(self._up(x), self._kind))


class GatedMLP:
    """down(act(gate x) * up x)."""

    def __init__(self, view: View, width: int, between: int, activation: str) -> None:
        self._gate_up = Linear(view, ("gate_proj", "up_proj"), width, between)
        self._down = Linear(view, ("down_proj",), between, width)
        self._kind = ACTIVATIONS[activation]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down(ops.gated_activation(self._gate_up(x), self._kind))


class Block:
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, attention_norm: Norm, attention: Attention, mlp_norm: Norm, mlp: Apply) -> None:
        self._attention_norm, self._attention = attention_norm, attention
        self._mlp_norm, self._mlp = mlp_norm, mlp

    def __call__(self, x: torch.Tensor, angles: Angles, segments: Segments) -> torch.Tensor:
        """In place, [patches, width]."""
        attended = self._attention(self._attention_norm(x), angles, segments)
        return x.add_(self._mlp(self._mlp_norm.add(attended, x)))


class Merger:
    """Joins the patches of a token, which lie one behind the other, and makes a feature of them.

    `joins_first`: before the norm, not behind it.
    """

    def __init__(self, norm: Apply, mlp: Apply, joined_width: int, *, joins_first: bool = False) -> None:
        self._norm, self._mlp = norm, mlp
        self._joined_width = joined_width
        self._joins_first = joins_first

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[patches, width] -> [tokens, out width]."""
        x = self._norm(x.view(-1, self._joined_width)) if self._joins_first else self._norm(x)
        return self._mlp(x.view(-1, self._joined_width))

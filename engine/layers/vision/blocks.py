"""What a vision tower is put together from: products, norms, attention, MLPs, a block, the merger of patches.

In plain torch: a tower's steps are long, and its launches cost little beside them. Each rank has all of it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from quire.engine.layers.vision.rotary import turn
from quire.engine.layers.vision.segments import Segments
from quire.engine.weights.checkpoint import View

EPS = 1e-6
Apply = Callable[[torch.Tensor], torch.Tensor]
Angles = tuple[torch.Tensor, torch.Tensor]  # cos and sin, as PatchRotary.angles gives them


class Linear:
    def __init__(self, view: View, in_features: int, out_features: int) -> None:
        self._weight = view.take("weight", (out_features, in_features))
        self._bias = view.take("bias", (out_features,))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self._weight, self._bias)


class LayerNorm:
    def __init__(self, view: View, size: int) -> None:
        self._weight, self._bias = view.take("weight", (size,)), view.take("bias", (size,))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, self._weight.shape, self._weight, self._bias, EPS)


class RMSNorm:
    def __init__(self, view: View, size: int) -> None:
        self._weight = view.take("weight", (size,))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(x.dtype) * self._weight


class Attention:
    """Of all patches of a segment to all of them."""

    def __init__(self, view: View, width: int, num_heads: int) -> None:
        self._qkv, self._out = Linear(view.sub("qkv"), width, 3 * width), Linear(view.sub("proj"), width, width)
        self._num_heads = num_heads

    def __call__(self, x: torch.Tensor, angles: Angles, segments: Segments) -> torch.Tensor:
        q, k, v = self._qkv(x).view(x.shape[0], 3, self._num_heads, -1).unbind(1)
        return self._out(segments.attend(turn(q, *angles), turn(k, *angles), v))


def activation(kind: str) -> Apply:
    """By config.json's name of it."""
    if kind == "quick_gelu":
        return lambda x: x * torch.sigmoid(1.702 * x)
    if kind == "silu":
        return F.silu
    return lambda x: F.gelu(x, approximate="tanh" if kind == "gelu_pytorch_tanh" else "none")


class MLP:
    """down(act(up x)); `names` are the tensors'."""

    def __init__(self, view: View, names: tuple[str, str], sizes: tuple[int, int, int], kind: str) -> None:
        """`sizes`: in, between, out."""
        up, down = names
        self._up, self._down = Linear(view.sub(up), *sizes[:2]), Linear(view.sub(down), *sizes[1:])
        self._act = activation(kind)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down(self._act(self._up(x)))


class GatedMLP:
    """down(act(gate x) * up x)."""

    def __init__(self, view: View, width: int, between: int, kind: str) -> None:
        self._gate, self._up = (Linear(view.sub(name), width, between) for name in ("gate_proj", "up_proj"))
        self._down = Linear(view.sub("down_proj"), between, width)
        self._act = activation(kind)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._down(self._act(self._gate(x)) * self._up(x))


class Block:
    """x += attention(norm(x)); x += mlp(norm(x))."""

    def __init__(self, attention_norm: Apply, attention: Attention, mlp_norm: Apply, mlp: Apply) -> None:
        self._attention_norm, self._attention = attention_norm, attention
        self._mlp_norm, self._mlp = mlp_norm, mlp

    def __call__(self, x: torch.Tensor, angles: Angles, segments: Segments) -> torch.Tensor:
        """In place, [patches, width]."""
        x += self._attention(self._attention_norm(x), angles, segments)
        x += self._mlp(self._mlp_norm(x))
        return x


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

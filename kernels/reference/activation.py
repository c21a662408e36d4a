"""The activation of an MLP: plain, or gated where gate and up projections are one matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def activation(x: torch.Tensor, kind: str) -> torch.Tensor:
    """out = act(x), act one of "silu", "gelu_tanh", "gelu", "relu" and "quick_gelu", which is x * sigmoid(1.702 x);
    computed in float32, out of x's dtype.

    x: contiguous; out: new, of its shape.
    """
    if kind == "silu":
        return F.silu(x)
    if kind == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    if kind == "relu":
        return F.relu(x)
    if kind == "quick_gelu":
        return torch.sigmoid(1.702 * x.float()).mul_(x).to(x.dtype)
    assert kind == "gelu", kind
    return F.gelu(x)


def gated_activation(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    """out = act(gate) * up, act as `activation`'s.

    gate_up: [tokens, 2 * size], gate first; out: [tokens, size], contiguous.
    The activation is computed in float32 and rounded to the dtype before up multiplies it.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate, kind).mul_(up)

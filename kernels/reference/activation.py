"""The gated activation of an MLP whose gate and up projections are one matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def gated_activation(gate_up: torch.Tensor, kind: str) -> torch.Tensor:
    """out = act(gate) * up, act one of "silu", "gelu_tanh", "gelu".

    gate_up: [tokens, 2 * size], gate first; out: [tokens, size], contiguous.
    The activation is computed in float32 and rounded to the dtype before up multiplies it.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    if kind == "silu":
        out = F.silu(gate)
    elif kind == "gelu_tanh":
        out = F.gelu(gate, approximate="tanh")
    else:
        assert kind == "gelu", kind
        out = F.gelu(gate)
    return out.mul_(up)

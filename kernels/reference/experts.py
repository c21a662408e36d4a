"""Gated MLPs, of which each token goes through some. Called by layers through quire.kernels.ops."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from quire.kernels.reference.activation import gated_activation


def gated_experts(x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
                  kind: str) -> torch.Tensor:
    """out[t] = sum over i of weights[t, i] * down[e] (act(gate[e] x[t]) * up[e] x[t]), with e = ids[t, i].

    x: [tokens, hidden]; gate_up: [experts, 2 * inner, hidden], an expert's gate first; down: [experts, hidden, inner];
    ids: [tokens, chosen] int32, different ones; weights: [tokens, chosen] float32; out: [tokens, hidden], of x's dtype.
    Products are rounded to x's dtype, the weighted sum is taken in float32. `kind` as `gated_activation`'s.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in ids.unique().tolist():
        tokens, places = torch.where(ids == expert)
        inner = gated_activation(F.linear(x[tokens], gate_up[expert]), kind)
        out.index_add_(0, tokens, F.linear(inner, down[expert]) * weights[tokens, places].unsqueeze(1))
    return out.to(x.dtype)

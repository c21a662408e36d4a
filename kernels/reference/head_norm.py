"""RMS norms of the heads of q and k where the product left them. Called by layers through quire.kernels.ops."""

from __future__ import annotations

import torch

from quire.kernels.reference.norms import rms_norm


def norm_heads(qk: torch.Tensor, q_weight: torch.Tensor, k_weight: torch.Tensor, num_q: int, eps: float) -> None:
    """Each head of qk becomes rms_norm(head, weight, eps), in place: q_weight for the first num_q heads, else k_weight.

    qk: [tokens, heads, head_dim], last dimension contiguous; weights: [head_dim].
    """
    qk[:, :num_q] = rms_norm(qk[:, :num_q], q_weight, eps)
    qk[:, num_q:] = rms_norm(qk[:, num_q:], k_weight, eps)

"""Which experts a token goes to, and with what weights. Called by layers through quire.kernels.ops."""

from __future__ import annotations

import torch


def route(logits: torch.Tensor, num_chosen: int, *, scoring: str, renormalize: bool
          ) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's best experts: ids [tokens, num_chosen] int32 and weights [tokens, num_chosen] float32.

    logits: [tokens, experts]. A weight is the expert's score: `scoring` "softmax", over all experts, or "sigmoid";
    with `renormalize`, a token's weights are divided by their sum. In float32.
    """
    wide = logits.float()
    scores = wide.softmax(-1) if scoring == "softmax" else wide.sigmoid()
    weights, ids = scores.topk(num_chosen, dim=-1)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    return ids.int(), weights

"""Log-probabilities of the chosen tokens and of the most likely ones, from the raw logits."""

from __future__ import annotations

from collections.abc import Callable

import torch

Top = Callable[[torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]  # of each row, the largest and their places


def _top(wide: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    values, places = wide.topk(k, dim=1)
    return values, places


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int, find_top: Top = _top
             ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log_softmax(logits) at token_ids, their ranks (1 = most likely, ties share the better rank), and the top ones.

    logits: [samples, vocab] of any float dtype; token_ids: [samples] int32.
    Returns logprob [samples] float32, rank [samples] int32, top ids [samples, num_top] int32 and their
    log-probabilities [samples, num_top] float32, most likely first. Computed in float32.
    """
    wide = logits.float()
    chosen = wide.gather(1, token_ids.long().unsqueeze(1))  # [samples, 1]
    normaliser = wide.logsumexp(dim=1, keepdim=True)
    rank = (wide > chosen).sum(dim=1, dtype=torch.int32) + 1
    top, top_ids = find_top(wide, num_top)
    return (chosen - normaliser).squeeze(1), rank, top_ids.to(torch.int32), top - normaliser

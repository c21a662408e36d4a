"""Log-probabilities of the chosen tokens and of the most likely ones, from the raw logits."""

from __future__ import annotations

from collections.abc import Callable

import torch

Top = Callable[[torch.Tensor, int], torch.Tensor]  # of each row, where the largest are


def _top(wide: torch.Tensor, k: int) -> torch.Tensor:
    return wide.topk(k, dim=1).indices


def logprobs(logits: torch.Tensor, token_ids: torch.Tensor, num_top: int, find_top: Top = _top
             ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """log_softmax(logits) at token_ids, their ranks (1 = most likely, ties share the better rank), and the top ones.

    logits: [samples, vocab] of any float dtype; token_ids: [samples] int32.
    Returns logprob [samples] float32, rank [samples] int32, top ids [samples, num_top] int32 and their
    log-probabilities [samples, num_top] float32, most likely first. Computed in float32.
    """
    wide = logits.float()
    places = token_ids.long().unsqueeze(1)  # [samples, 1]
    rank = (wide > wide.gather(1, places)).sum(dim=1, dtype=torch.int32) + 1
    top_ids = find_top(wide, num_top)
    # Unlike logsumexp, it sums each row alike, however many there are.
    scores = wide.log_softmax(dim=1)
    return scores.gather(1, places).squeeze(1), rank, top_ids.to(torch.int32), scores.gather(1, top_ids)

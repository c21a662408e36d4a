"""Repetition, presence and frequency penalties, read from the request table's own tokens."""

from __future__ import annotations

import torch


def apply_penalties(logits: torch.Tensor, tokens: torch.Tensor, row_ids: torch.Tensor, num_prompt: torch.Tensor,
                    num_total: torch.Tensor, repetition: torch.Tensor, presence: torch.Tensor,
                    frequency: torch.Tensor) -> None:
    """For each token of prompt or output: l = l / r if l > 0 else l * r; then for each token that the output holds
    c > 0 times: l -= presence + frequency * c.

    logits: [samples, vocab] float32, changed in place. tokens: [rows, max_len] int32, the request table: sample i has
    the tokens [row_ids[i], :num_total[i]], of which the first num_prompt[i] are its prompt. The rest: [samples].
    """
    numbers = zip(logits, row_ids.tolist(), num_prompt.tolist(), num_total.tolist(), repetition.tolist(),
                  presence.tolist(), frequency.tolist())
    for row, row_id, prompt, total, r, present, frequent in numbers:
        if r != 1:
            seen = tokens[row_id, :total].unique()
            values = row[seen]
            row[seen] = torch.where(values > 0, values / r, values * r)
        if present != 0 or frequent != 0:
            ids, counts = tokens[row_id, prompt:total].unique(return_counts=True)
            row[ids] -= present + frequent * counts

"""What a grammar does not allow cannot be drawn."""

from __future__ import annotations

import torch


def mask_tokens(logits: torch.Tensor, places: torch.Tensor, masks: torch.Tensor) -> None:
    """logits[places[i], t] = -inf wherever bit t % 32 of masks[i, t // 32] is 0.

    logits: [rows, vocab] float32, changed in place. places: [masked] int32. masks: [masked, ceil(vocab / 32)] int32.
    """
    bits = (masks.unsqueeze(-1) >> torch.arange(32, dtype=torch.int32)) & 1  # [masked, words, 32]
    is_out = bits.flatten(1)[:, :logits.shape[1]] == 0
    logits[places] = logits[places].masked_fill_(is_out, -torch.inf)

"""Structured output: what a row's grammar does not allow next cannot be drawn.

Masks come late, when all that processors edit is queued already. They come on top of it: what is -inf stays so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch

from quire.engine.sampling.processor import Edited


class Masks(NamedTuple):
    """Of several rows of the request table, what their grammars allow next."""

    bits: torch.Tensor  # int32 [rows, ceil(vocab / 32)], a bit a token; on the host
    must_end: list[bool]  # the text is complete: an end token is all that may come

    def hold_back_ends(self, edited: Iterable[Edited]) -> None:
        """min_tokens, of these rows: their grammars come first."""
        for mask, must_end, row in zip(self.bits.numpy().view(np.uint32), self.must_end, edited):
            if row.is_too_short and not must_end:
                for token in row.sampling.stop_token_ids:
                    mask[token // 32] &= ~np.uint32(1 << token % 32)
